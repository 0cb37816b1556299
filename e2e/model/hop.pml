/* Three regions, three versions of the rules, one request at a time: where it may go, from whom it may come, and that
   it goes one hop. DESIGN.md maps each step to the Go code that makes it.

   A table is a version: a node pushes any that it has read, a later one than the edge holds. Grants come for what a
   table and the newest rules permit, and end at any moment: how long they last is border.pml's. With ROGUE the edge of
   region 0 sends what it likes to whom it likes, and the receivers alone keep the border. */

#ifndef ROGUE
#define ROGUE 0
#endif
#ifndef REACH
#define REACH 0
#endif
#ifndef VERSIONS
#define VERSIONS 3
#endif

#define N 3
#define NONE N
#define bit3(x, y) (1 << (3 * (x) + (y)))
#define V1 (bit3(0,1) | bit3(1,2))
#define V2 (bit3(1,2) | bit3(2,0) | bit3(2,1))
#define V3 (bit3(0,2) | bit3(2,0) | bit3(1,2))
#define pairs(v) ((v) == 1 -> V1 : ((v) == 2 -> V2 : V3))
#define rules(v, x, y) (((pairs(v)) >> (3 * (x) + (y))) & 1)

byte newest = 1;    /* committed */
byte tab[N] = 1;    /* each edge's; on disk before it is in force */
bool grant[9];      /* 3*from+to: edge `from` holds it */

/* The request: the region that accepted it, the one it is at, what that one has chosen, what it shows. */
byte phase = 0;     /* 0: none; 1: at an edge; 2: a region chosen, dialled; 3: sent; 4: served */
byte home = 0, at = 0, to = 0, tried = 0;
byte shown = 0;     /* the home it names */
byte paper = 0;     /* the grant it shows, as 3*from+to; 9: none */
byte said = 0;      /* what the client's own header says of its region */

#ifdef NO_DIRECTION
#define rule(v, x, y) (rules(v, x, y) || rules(v, y, x))
#else
#ifdef NO_DIRECT
#define rule(v, x, y) (rules(v, x, y) || (rules(v, x, 3-(x)-(y)) && rules(v, 3-(x)-(y), y)))
#else
#define rule(v, x, y) rules(v, x, y)
#endif
#endif

#ifdef NO_HOME
#define origin said
#else
#define origin home
#endif
#ifdef NO_PAIR
#define sends(x, y) (grant[3*(x)+(y)])
#else
#ifdef NO_GRANT
#define sends(x, y) (rule(tab[x], origin, y))
#else
#define sends(x, y) (rule(tab[x], origin, y) && grant[3*(x)+(y)])
#endif
#endif

inline over() { phase = 0; home = 0; at = 0; to = 0; tried = 0; shown = 0; paper = 0; said = 0 }
inline reach(n) { if :: REACH == n -> assert(false) :: else fi }

inline send() {
#if ROGUE == 0
  assert(at == home);                    /* one hop */
  assert(rules(tab[at], home, to));      /* by the newest rules that the sender knows, in their direction, itself a pair */
  assert(grant[3*at+to]);                /* and a grant that it holds */
#endif
  phase = 3
}

inline accept() {
  assert(at != to);
  assert(rules(tab[to], at, to));        /* by the newest rules that the receiver knows */
#if ROGUE == 0
  assert(rules(tab[to], home, to));
#endif
  assert(paper == 3*at+to);              /* by a grant for this pair */
  assert(shown == at);                   /* the request began where the peer's certificate is from */
  if :: tried != 0 && tried != (1 << to) -> reach(2) :: else fi;
  phase = 4; at = to;
  reach(1)
}

#define each(x) x = 0 :: x = 1 :: x = 2

active proctype Zone() {
  byte x = 0, y = 0;
  do
  :: d_step { newest < VERSIONS -> newest++ }
  :: atomic { if :: each(x) fi; if :: tab[x] < newest -> tab[x]++ :: else fi; x = 0 } /* some node has read that far */
  :: atomic { if :: each(x) fi; if :: each(y) fi;
       if
       :: x != y && tab[x] == newest && rules(newest, x, y) -> grant[3*x+y] = true  /* given to a fresh edge alone */
       :: grant[3*x+y] -> grant[3*x+y] = false                                      /* ended */
       :: else
       fi; x = 0; y = 0 }
  :: atomic { if :: each(x) fi; /* crash and restart: no grant, no request; the table is on disk */
       grant[3*x] = false; grant[3*x+1] = false; grant[3*x+2] = false;
       if :: phase > 0 && at == x -> over() :: else fi; x = 0 }
  od
}

active proctype Request() {
  byte x = 0;
  do
  :: atomic { phase == 0 -> if :: each(x) fi; home = x; at = x; phase = 1;
#ifdef NO_HOME
       if :: each(x) fi; said = x;
#endif
       x = 0 }
#if ROGUE
  :: atomic { phase == 1 && at == 0 -> if :: each(x) fi; to = x; if :: each(x) fi; shown = x;
       if :: grant[1] -> paper = 1 :: grant[2] -> paper = 2 :: paper = 9 fi;
       x = 0; if :: to != 0 -> send() :: else -> over() fi }
#endif
  :: atomic { phase == 1 -> if :: each(x) fi;                    /* the own upstream is down: a region not tried yet */
       if :: x != at && !((tried >> x) & 1) && sends(at, x) -> to = x; tried = tried | (1 << x); phase = 2 :: else fi; x = 0 }
  :: d_step { phase == 1 -> over() }                             /* answered at home, or nowhere is left */
#ifdef NO_RECHECK
  :: d_step { phase == 2 -> shown = at; paper = 3*at+to; send() }
#else
  :: d_step { phase == 2 && sends(at, to) -> shown = at; paper = 3*at+to; send() }
  :: d_step { phase == 2 && !sends(at, to) -> phase = 1; to = 0 }
#endif
#ifdef NO_RECEIVER
#define mine true
#else
#define mine rule(tab[to], at, to)
#endif
#ifdef NO_FITS
#define fits (paper != 9)
#else
#define fits (paper == 3*at+to)
#endif
#ifdef NO_ORIGIN
#define first true
#else
#define first (shown == at)
#endif
#define takes (mine && fits && first)
  :: d_step { phase == 3 && takes -> accept() }
  :: d_step { phase == 3 && !takes -> phase = 1; to = 0; shown = 0; paper = 0 } /* refused: the next region, if any */
  :: d_step { phase == 3 -> over() }                             /* lost */
#ifdef NO_HOP
  :: d_step { phase == 4 -> phase = 1; to = 0; tried = 0; shown = 0; paper = 0 }
#endif
  :: d_step { phase == 4 -> over() }
  od
}
