/* The border of one pair of regions, a -> b: grants, tightenings, in-force records. DESIGN.md maps each step to the
   Go code that makes it, and each guard to the line that it stands for.

   Two control nodes share a log, one edge in each region. Every alternative of a loop is one atomic step of one
   host; what is not received yet is a host that lags: tables and words carry positions of the log, so a message on
   its way is a reader who has not read. Time is a tick of all clocks. The edge's may be slow once in a grant's life.

   Compiled with: NV versions of the rules; OPEN, bit v says that version v permits the pair; TTL, OFF lifetimes of a
   grant while the control plane answers and while it is silent; NO_x, the guard x is missing; REACH, that state is
   asked for. */

#ifndef NV
#define NV 3
#endif
#ifndef OPEN
#define OPEN 10 /* 1010b: open, closed, open */
#endif
#ifndef TTL
#define TTL 1
#endif
#ifndef OFF
#define OFF 1
#endif
#ifndef REACH
#define REACH 0
#endif

#ifdef NO_SLACK
#define SLACK 0
#else
#define SLACK 2 /* a slow clock, and the time to cut */
#endif
#ifdef NO_OFFLINE
#define LIFE TTL
#else
#define LIFE OFF
#endif
#define FULL (LIFE + SLACK)

#define LOG (2 * NV)
#define permits(v) ((OPEN >> (v)) & 1)

/* The zone's log: what each position says. Raft is one log that its true leader alone appends to. */
byte rule[LOG], base[LOG]; /* version of the rules, version that the leader has noticed */
byte head = 0;
byte pend = 0;      /* barrier of the pending tightening: the position from which tables lack the pair; 0: none */
bool open;          /* the noticed rules permit the pair */
bool bySenders, byReceivers; /* it is shut, and which half said so */
byte sealed = 0;    /* barrier of the newest record by the senders */

/* A table holds what the rules permit and the leader has noticed. */
#ifdef NO_NOTICED
#define holds(p) permits(rule[p])
#else
#define holds(p) (permits(rule[p]) && permits(base[p]))
#endif

/* Control nodes: how far each has read the log. An election swaps them. */
byte leads, other;
#ifdef NO_LOGGED
bool old = false;   /* the other one still takes itself for the leader */
#endif

/* What the leader alone knows. */
byte left = 0;      /* ticks until edge a's grants have certainly ended */
byte ackA = 0, ackB = 0; /* 0: no word of a table at the barrier; 1: heard in this tick; 2: earlier */

/* The edges: position of the table in memory and on disk. */
byte tabA, tabB;
#ifdef NO_FSYNC
byte diskA, diskB;
#else
#define diskA tabA
#define diskB tabB
#endif

/* Edge a's permission. */
byte age = OFF;     /* ticks since it asked for the grant it holds; OFF: it holds none */
bool slowG = false; /* its clock has lost a tick since then */
bool away = false;  /* the last question got no answer */

/* Edge a's question. */
byte q = 0;         /* 0: none; 1: under way; 2: read by a node and in its book; 3: the answer is under way */
byte qage = 0;
bool slowQ = false;

/* A relay. 0: none; 1: chosen, the peer is dialled; 2: sent; 3: the peer serves it. */
byte relay = 0;

#define live (age < OFF && (age < TTL || away))
#define may (holds(tabA) && live)

inline dead() { age = OFF; slowG = false }
inline answered() { q = 0; qage = 0; slowQ = false }
inline reach(n) { if :: REACH == n -> assert(false) :: else fi }

/* The first byte leaves region a. */
inline send() {
  assert(!bySenders);        /* not after the senders' half has closed the pair, and not before it opens */
  assert(tabA >= sealed);    /* not by an edge that never saw a closure that is in force: it is stale */
  assert(holds(tabA));       /* an end that knows the newer rules goes by them: the intersection */
  relay = 2
}

/* Edge b begins to serve. */
inline accept() {
  assert(!bySenders && !byReceivers); /* not after any record */
  assert(holds(tabB));       /* the intersection, at this end */
  relay = 3;
  reach(1);
  if :: rule[tabA] > 1 && REACH == 2 -> assert(false) :: else fi; /* a pair that was opened later */
  if :: age >= TTL && REACH == 3 -> assert(false) :: else fi      /* on the offline lifetime */
}

/* Zone: its operators, and its log read by the nodes. */
active proctype Zone() {
  d_step { open = permits(1); bySenders = !open; byReceivers = !open; rule[0] = 1; base[0] = 1 };
  do
  :: d_step { rule[head] < NV && head < LOG - 1 -> /* a closure or adopted rules: one transaction */
       rule[head+1] = rule[head] + 1; base[head+1] = base[head]; head++ }
  :: d_step { leads < head -> leads++ }
  :: d_step { other < head -> other++ }
  :: d_step { other > 0 -> other = 0 } /* it starts again, and serves before it has read the log */
  od
}

/* Leader: notices, hears, records; and loses its office. */
active proctype Leader() {
  do
  :: d_step { rule[leads] != base[head] && base[leads] == base[head] && head < LOG - 1 ->
       rule[head+1] = rule[head]; base[head+1] = rule[leads]; head++;
       if
       :: open && !permits(base[head]) -> open = false; pend = head; ackA = 0; ackB = 0
       :: !open && permits(base[head]) -> /* opened again: what was pending will never have been shut */
            open = true; pend = 0; bySenders = false; byReceivers = false; ackA = 0; ackB = 0
       :: else
       fi }
  :: d_step { pend > 0 && ackA == 0 && tabA >= pend -> ackA = 1 }
  :: d_step { pend > 0 && ackB == 0 && tabB >= pend -> ackB = 1 }
  :: d_step { ackA > 0 -> ackA = 0 } /* a word from before: a node that the edge has left */
  :: d_step { ackB > 0 -> ackB = 0 }
#ifdef NO_CUTWAIT
#define CUTBY 1
#else
#define CUTBY 2
#endif
#ifdef NO_LAPSE
#define lapsed true
#else
#define lapsed (left == 0)
#endif
  :: d_step { pend > 0 && leads >= pend && (ackA >= CUTBY || lapsed) -> /* every sender has acknowledged or lapsed */
       assert(relay != 3); /* nothing is being served at the instant of the record */
       if :: REACH == 4 && ackA >= CUTBY -> assert(false) :: REACH == 5 && ackA == 0 && tabA < pend -> assert(false) :: else fi;
       bySenders = true; sealed = pend; pend = 0; ackA = 0; ackB = 0 }
#ifndef NO_BARRIER
  :: d_step { pend > 0 && leads >= pend && ackB >= CUTBY -> /* every receiver has acknowledged */
#else
  :: d_step { pend > 0 && leads >= pend -> /* taken for acknowledged when it was sent */
#endif
       assert(relay != 3);
       if :: REACH == 6 && left > 0 && live -> assert(false) :: else fi;
       byReceivers = true; pend = 0; ackA = 0; ackB = 0 }
  :: d_step { /* the other node is elected: it has the whole log, and no memory */
       other = leads; leads = head; ackA = 0; ackB = 0;
#ifdef NO_NEWLEADER
       left = 0;
#else
       left = FULL;
#endif
#ifdef NO_LOGGED
       old = true
#else
       if :: q == 2 -> q = 1 :: else fi /* what the old leader has read, no quorum will take */
#endif
       }
#ifdef NO_LOGGED
  :: d_step { old -> old = false }
#endif
  od
}

/* Grants: edge a asks, a node that takes itself for the leader reads, writes its book, logs, and answers. */
active proctype Grants() {
  do
  :: d_step { q == 0 -> q = 1 }
#ifdef NO_FRESH
#define fresh(p) true
#else
#define fresh(p) (tabA >= (p) || base[tabA] == base[p])
#endif
  :: d_step { q == 1 && holds(leads) && fresh(leads) -> q = 2; left = FULL }
  :: d_step { q == 1 -> answered(); away = false } /* the answer: nothing for this pair, or not yet */
#ifdef NO_LOGGED
  :: d_step { q == 1 && old && holds(other) && fresh(other) -> q = 2 }
  :: d_step { q == 2 -> q = 3 }
#else
  :: d_step { q == 2 && open -> q = 3 } /* a quorum has taken the record, and the noticed rules are the same */
#endif
  :: d_step { q == 3 ->
#ifdef NO_ASKED
       age = 0;
#else
       age = qage;
#endif
       slowG = slowQ; away = false; answered(); if :: age >= TTL -> dead() :: else fi }
  :: d_step { q > 0 -> answered(); away = true; if :: age >= OFF -> dead() :: else fi } /* no answer came */
  od
}

/* Tables: a node pushes what it has read. */
active proctype Tables() {
  do
#ifdef NO_MONO
#define takes(t, p) (t != p)
#else
#define takes(t, p) (t < p)
#endif
  :: d_step { takes(tabA, leads) -> tabA = leads }
  :: d_step { takes(tabA, other) -> tabA = other }
  :: d_step { takes(tabB, leads) -> tabB = leads }
  :: d_step { takes(tabB, other) -> tabB = other }
#ifdef NO_FSYNC
  :: d_step { diskA != tabA -> diskA = tabA }
  :: d_step { diskB != tabB -> diskB = tabB }
#endif
  /* crash and restart: memory is lost, the disk stays */
  :: d_step { tabA = diskA; dead(); away = false; answered(); relay = 0 }
  :: d_step { tabB = diskB; if :: relay > 1 -> relay = 0 :: else fi }
  od
}

/* Relay: one request that cannot be answered at home. */
active proctype Relay() {
  do
  :: d_step { relay == 0 && may -> relay = 1 }
#ifdef NO_RECHECK
  :: d_step { relay == 1 -> send() }
#else
  :: d_step { relay == 1 && may -> send() }
  :: d_step { relay == 1 && !may -> relay = 0 }
#endif
#ifdef NO_RECEIVER
  :: d_step { relay == 2 -> accept() }
#else
  :: d_step { relay == 2 && holds(tabB) -> accept() }
  :: d_step { relay == 2 && !holds(tabB) -> relay = 1 } /* refused: the next attempt asks again */
#endif
  :: d_step { relay == 2 -> relay = 0 }               /* lost */
  :: d_step { relay == 3 -> relay = 0 }               /* done */
  od
}

/* Clock: a tick of every clock. What must be done within the time to cut is done before the next one: a first byte
   arrives or is given up, and each end cuts what its table and grants do not permit. */
#ifdef NO_CUT
#define settled (relay != 2)
#else
#define settled (relay != 2 && !(relay == 3 && (!may || !holds(tabB))))
#endif
active proctype Clock() {
  do
  :: d_step { settled ->
       if :: left > 0 -> left-- :: else fi;
       if :: ackA == 1 -> ackA = 2 :: else fi;
       if :: ackB == 1 -> ackB = 2 :: else fi;
       if :: q > 0 && qage < OFF -> qage++ :: else fi;
       if :: age < OFF -> age++; if :: age == OFF -> dead() :: else fi :: else fi }
  :: d_step { settled && (age == OFF || !slowG) && (q == 0 || !slowQ) && (age < OFF || q > 0) -> /* edge a's clock is slow */
       if :: left > 0 -> left-- :: else fi;
       if :: ackA == 1 -> ackA = 2 :: else fi;
       if :: ackB == 1 -> ackB = 2 :: else fi;
       if :: q > 0 -> slowQ = true :: else fi;
       if :: age < OFF -> slowG = true :: else fi }
  od
}
