package grant

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Cut is how long an edge may take to cut relays after its table changed.
const Cut = time.Second

// StaleAfter is the age after which an edge's word no longer means that it is connected.
const StaleAfter = 5 * time.Second

// aliveFor is how long after its last word a process is taken for alive when two of one name must be told apart.
// Edges speak every 5 s; a node may go on reporting a machine that is gone until its connection is given up.
const aliveFor = 3 * StaleAfter

// Slack is what the leader adds to a grant's life before it takes it for ended: 1 s and 2 % for clocks that
// run at different speeds. The edge counts from when it asked, which is earlier.
func Slack(d time.Duration) time.Duration { return d + d/50 + time.Second }

// unslack takes that off again, in whole milliseconds rounded up.
func unslack(d time.Duration) time.Duration {
	return ((d-time.Second)*50/51 + time.Millisecond).Truncate(time.Millisecond)
}

// Process is one run of an edge: its name, and what it drew when it started. Two machines that run at once with one
// identity (a cloned disk) are two processes of one name; a restart is another one too.
type Process struct{ Edge, Incarnation string }

// MaxDead is how many earlier processes an edge may name as ended.
const MaxDead = 16

// Reads says whether the incarnation, and those of earlier processes that have ended, can be such: at most 32
// hexadecimal digits each, and none at all of a program from before there were any.
func (p Process) Reads(dead []string) bool {
	if len(dead) > MaxDead || slices.Contains(dead, p.Incarnation) {
		return false
	}
	for _, x := range append([]string{p.Incarnation}, dead...) {
		if len(x) > 32 || strings.Trim(x, "0123456789abcdef") != "" {
			return false
		}
	}
	return true
}

// Book is what the leader of a zone knows only by itself: when the grants it gave have certainly ended, and what
// edges acknowledged, each by process. Open makes it for a term; nothing of it is handed on but what is in the log.
type Book struct {
	ends  map[leaseKey]lease
	words map[Process]*word
}

// leaseKey: by target too, or a pair that ends in seconds would wait for another's offline lifetime. A lease whose
// target is the process's own region is not for relaying but for taking relays (see Held.Takes).
type leaseKey struct {
	Process
	to string
}

// anywhere: what a new leader assumes although nothing in its log says so.
const anywhere = ""

// somebody is the incarnation of which nothing is known: a new leader assumes one of every edge.
const somebody = "*"

type lease struct {
	region string
	end    time.Time
}

// Word is what is said of a process, by the node that it is connected to.
type Word struct {
	Process
	Region       string
	By           string // the node
	Connected    bool
	Spoke        time.Time // when the node last heard from it, by the node's clock; only whether it changes counts
	Epoch, Index uint64    // of the zone's log, as the edge's table has it
}

type word struct {
	Word
	first, at time.Time           // heard
	spoke     time.Time           // the last time that Spoke was a new one
	acked     map[place]time.Time // place of a pending tightening → when its ack was first seen
}

// place in the zone's log. A recovery opens an epoch, whose indexes may be lower than those before.
type place struct{ epoch, index uint64 }

// has says whether a table of this word was made from a log that reaches a place.
func (w Word) has(p place) bool {
	return w.Epoch > p.epoch || w.Epoch == p.epoch && w.Index >= p.index
}

// Record is what the log says of the latest grants of a process, and of what others of its name may still hold.
type Record struct {
	Process
	Region  string
	Given   []Life
	Earlier []Left // how long grants given before these may still last, of every process of the edge
}

// Life is the longest life of a grant for a target, its offline lifetime included.
type Life struct {
	To    string
	Lasts time.Duration
}

// Left is what is left of one, and whose it is.
type Left struct {
	Incarnation string
	Life
}

// Past is all that a new leader finds: the edges of the registry and their regions, the grants that the rules
// allow now (without closures: a closed pair may still be granted), targets of tightenings, the log's records.
type Past struct {
	Edges   map[string]string
	Rules   []Life
	Targets []string
	Records []Record
	// Lost is how long grants may last that are in no record and under no rule, because a recovery lost the end of the log;
	// 0: it lost nothing that may still be held.
	Lost time.Duration
}

// Open begins a term with the worst taken for granted: every process that the log knows, and one more of every edge
// that may hold a grant, got a full one, of at least ttl, when the term began, and nobody has acknowledged anything.
func Open(p Past, ttl time.Duration, since time.Time) *Book {
	b := &Book{ends: map[leaseKey]lease{}, words: map[Process]*word{}}
	longest := map[string]time.Duration{} // by target
	reckon := func(l Life) { longest[l.To] = max(longest[l.To], l.Lasts, ttl) }
	for _, l := range p.Rules {
		reckon(l)
	}
	for _, to := range p.Targets {
		reckon(Life{To: to})
	}
	processes := map[Process]string{}
	for edge, region := range p.Edges {
		processes[Process{edge, somebody}] = region
	}
	for _, r := range p.Records { // the log remembers edges that left the registry, and pairs that left the rules
		processes[Process{r.Edge, somebody}], processes[r.Process] = r.Region, r.Region
		for _, l := range r.Given {
			reckon(l)
		}
		for _, l := range r.Earlier {
			processes[Process{r.Edge, l.Incarnation}] = r.Region
			reckon(l.Life)
		}
	}
	for process, region := range processes {
		b.ends[leaseKey{process, anywhere}] = lease{region, since.Add(Slack(max(ttl, p.Lost)))}
		for to, d := range longest {
			b.ends[leaseKey{process, to}] = lease{region, since.Add(Slack(d))}
		}
	}
	return b
}

// Give enters grants before they are logged: from here on they count as given, whatever becomes of the answer.
// takes is for how long the process may take relays for its region; 0: it may not. It returns the record to log. That
// one replaces the edge's last, whose grants may last longer than these, may be another process's, and its answer may
// be lost: what the edge may hold from earlier goes into it.
func (b *Book) Give(p Process, region string, given []Life, takes time.Duration, now time.Time) Record {
	if takes > 0 {
		given = append(slices.Clip(given), Life{region, takes})
	}
	r := Record{Process: p, Region: region, Given: given}
	for key, l := range b.ends {
		if key.Edge != p.Edge {
			continue
		}
		if !now.Before(l.end) {
			delete(b.ends, key)
		} else if left := unslack(l.end.Sub(now)); key.to != anywhere && left > 0 {
			r.Earlier = append(r.Earlier, Left{key.Incarnation, Life{key.to, left}})
		}
	}
	slices.SortFunc(r.Earlier, func(x, y Left) int {
		return cmp.Or(cmp.Compare(x.Incarnation, y.Incarnation), cmp.Compare(x.To, y.To))
	})
	for _, g := range given {
		key := leaseKey{p, g.To}
		end := now.Add(Slack(g.Lasts))
		if old := b.ends[key].end; old.After(end) {
			end = old
		}
		b.ends[key] = lease{region, end}
	}
	return r
}

// Bury takes an edge's own word that earlier processes of it have ended: what they held is of no use to anybody, once
// what they had sent has had its time to arrive. The word is good: see package incarnation of the data plane.
func (b *Book) Bury(edge string, dead []string, now time.Time) {
	if len(dead) == 0 {
		return
	}
	for key, l := range b.ends {
		if end := now.Add(Cut); key.Edge == edge && slices.Contains(dead, key.Incarnation) && end.Before(l.end) {
			b.ends[key] = lease{l.region, end}
		}
	}
	for _, incarnation := range dead {
		delete(b.words, Process{edge, incarnation})
	}
}

// Hear takes a word about a process. false: the word of a node that it has left; a living one says otherwise.
func (b *Book) Hear(w Word, now time.Time) bool {
	old := b.words[w.Process]
	if old == nil {
		old = &word{first: now, acked: map[place]time.Time{}}
		b.words[w.Process] = old
	} else if old.Connected && !w.Connected && old.By != w.By && now.Sub(old.at) < StaleAfter {
		return false
	}
	for p := range old.acked {
		if !w.has(p) {
			delete(old.acked, p) // it went backwards (a cloned or restored disk): its word is void
		}
	}
	if w.Connected && !w.Spoke.Equal(old.Spoke) {
		old.spoke = now
	}
	old.Word, old.at = w, now
	for process, x := range b.words { // processes that are gone, and hold nothing that would have to be waited for
		if process.Edge == w.Edge && process != w.Process && now.Sub(x.at) > aliveFor && !b.holds(process, now) {
			delete(b.words, process)
		}
	}
	return true
}

// holds says whether any lease of a process has not ended.
func (b *Book) holds(p Process, now time.Time) bool {
	for key, l := range b.ends {
		if key.Process == p && now.Before(l.end) {
			return true
		}
	}
	return false
}

// Known says whether a word of a process is remembered.
func (b *Book) Known(p Process) bool { return b.words[p] != nil }

// Connected says whether a process was heard of lately, as connected.
func (b *Book) Connected(p Process, now time.Time) bool {
	w := b.words[p]
	return w != nil && w.connected(now)
}

func (w *word) connected(now time.Time) bool { return w.Connected && now.Sub(w.at) <= StaleAfter }

// Elder is another living process of the same name that comes first: it holds something, or was heard of earlier.
// While there is one, p gets nothing: a copy of a machine must not relay beside the machine, and taking the permission
// from both would let whoever starts a copy stop an edge's failover. "": there is none.
func (b *Book) Elder(p Process, now time.Time) (incarnation string) {
	holds, first := b.holds(p, now), now
	if w := b.words[p]; w != nil {
		first = w.first
	}
	for q, w := range b.words {
		if q.Edge != p.Edge || q == p || !w.alive(now) {
			continue
		}
		if has := b.holds(q, now); has && !holds || has == holds && w.first.Before(first) {
			return q.Incarnation
		}
	}
	return ""
}

// Twins are the processes of an edge that are certainly alive at once, none if it is one: the older has spoken well
// after the younger began to.
func (b *Book) Twins(edge string, now time.Time) (incarnations []string) {
	var alive []*word
	for p, w := range b.words {
		if p.Edge == edge && w.alive(now) {
			alive = append(alive, w)
			incarnations = append(incarnations, p.Incarnation)
		}
	}
	for _, older := range alive {
		for _, younger := range alive {
			if older.first.Before(younger.first) && older.spoke.Sub(younger.first) > StaleAfter {
				slices.Sort(incarnations)
				return incarnations
			}
		}
	}
	return nil
}

func (w *word) alive(now time.Time) bool { return w.Connected && now.Sub(w.spoke) <= aliveFor }

// Tightening is a pair that is no longer permitted, and the place in the zone's log from which a table lacks it.
type Tightening struct {
	From, To string
	Epoch    uint64
	Barrier  uint64
	// Now is the epoch of the zone's log. A recovery that opened it may have lost the end of the one before, and a table made
	// from what was lost may have the pair again: what was acknowledged in an earlier epoch counts no more. 0: not asked.
	Now uint64
}

// Ground is what a leader knows of the place: the zone's own regions, those of other zones, and the registry's
// edges by region.
type Ground struct {
	Own     func(region string) (own, known bool)
	Members func(region string) []string
}

// InForce says which half makes a tightening hold, or for which edges it still waits (the shorter list): all
// senders have acknowledged or their grants have ended, or all receivers have acknowledged or lost their leave to take
// relays; an acknowledgement counts after the time to cut, and for the process alone that gave it. Only the own zone's edges
// answer to this leader: of a pair from abroad the receivers alone count, of one that leads abroad the senders alone.
func (b *Book) InForce(t Tightening, g Ground, now time.Time) (by string, waiting []string) {
	sends, takes := b.own(t.From, g), b.own(t.To, g)
	var senders, receivers []string
	for key, l := range b.ends { // also edges that were removed: until its end a grant may still be used
		if l.region == t.From && (key.to == t.To || key.to == anywhere) && now.Before(l.end) && !b.acked(key.Process, t, now) {
			senders = append(senders, key.Edge)
		}
	}
	slices.Sort(senders)
	senders = slices.Compact(senders)
	known := map[string]bool{} // receivers, and whether anybody answers for them
	for _, edge := range g.Members(t.To) {
		known[edge] = false
	}
	for process, w := range b.words {
		if w.Region == t.To {
			known[process.Edge] = known[process.Edge] || b.acked(process, t, now)
		}
	}
	open := map[string]bool{} // some process of it may still take relays
	for process, w := range b.words {
		// One that is away has the lease under which it took relays, if it ever had one; programs from before
		// incarnations took them without.
		if w.Region == t.To && w.connected(now) && !b.acked(process, t, now) {
			open[process.Edge] = true
		}
	}
	for key, l := range b.ends {
		if l.region != t.To || key.to != t.To || key.Incarnation == somebody {
			continue
		}
		if now.Before(l.end) && !b.acked(key.Process, t, now) {
			open[key.Edge] = true
		} else if key.Incarnation != "" {
			known[key.Edge] = true
		}
	}
	for edge, answered := range known {
		if !answered || open[edge] {
			receivers = append(receivers, edge)
		}
	}
	if len(known) == 0 { // the registry may not have arrived here yet: nobody has acknowledged anything
		receivers = []string{"edges of " + t.To}
	}
	slices.Sort(receivers)
	switch {
	case sends && len(senders) == 0:
		return "senders", nil
	case takes && len(receivers) == 0:
		return "receivers", nil
	case sends && (!takes || len(senders) <= len(receivers)):
		return "", senders
	}
	return "", receivers
}

// acked says whether a process has applied a table without the pair, long enough ago to have cut what was under way.
// For the one of whom nothing is known any of its name speaks: what a process holds is in the log before it has it.
func (b *Book) acked(p Process, t Tightening, now time.Time) bool {
	if p.Incarnation == somebody {
		for process := range b.words {
			if process.Edge == p.Edge && b.acked(process, t, now) {
				return true
			}
		}
		return false
	}
	w, shut := b.words[p], place{t.Epoch, t.Barrier}
	if w == nil || !w.has(shut) || w.Epoch < t.Now {
		return false
	}
	first, seen := w.acked[shut]
	if !seen {
		w.acked[shut] = now
		return false
	}
	return now.Sub(first) >= Cut
}

// own: a region that the rules do not know any more is known by edges that may hold grants, and those that report.
func (b *Book) own(region string, g Ground) bool {
	if own, known := g.Own(region); known {
		return own
	}
	for _, l := range b.ends {
		if l.region == region {
			return true
		}
	}
	for _, w := range b.words {
		if w.Region == region {
			return true
		}
	}
	return false
}
