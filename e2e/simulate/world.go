package main

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

// Two zones of two regions, an edge in each, three control nodes a zone. Host ids: edges 0-3 (as regions), nodes
// 4-9, the catalog 10.
const (
	nRegions  = 4
	nNodes    = 6
	catalogID = nRegions + nNodes
	nHosts    = catalogID + 1
)

var (
	regionNames = [nRegions]string{"eu-west", "eu-central", "us-east", "us-west"}
	edgeNames   = [nRegions]string{"eu-west-edge", "eu-central-edge", "us-east-edge", "us-west-edge"}
	zoneNames   = [2]string{"emea", "us"}
)

func zoneOf(region int) int { return region / 2 }

func regionID(name string) int { return slices.Index(regionNames[:], name) }

// link is a pair of regions by number.
type link struct{ from, to int }

func (l link) String() string { return regionNames[l.from] + ">" + regionNames[l.to] }

// clock is a host's monotonic clock: a rate within 2 % of every other's, and an offset that means nothing.
type clock struct {
	offset time.Duration
	rate   float64
	wall   time.Duration // how far its wall clock is off
}

var epochZero = time.Unix(1_000_000_000, 0)

func (c *clock) at(now time.Duration) time.Time {
	return epochZero.Add(c.offset + time.Duration(float64(now)*c.rate))
}

// entry is the state of a zone's log after one of its writes. It never changes.
type entry struct {
	rev        revision.Revision
	adopted    int // version of the catalog
	closures   uint16
	baseline   []grant.Pair
	changed    uint64 // index of the last change of baseline; 0: none yet
	records    [nRegions]grant.Record
	tightening []pending
}

type pending struct {
	grant.Pair
	index uint64 // of the record's transaction
	done  bool
}

// node is a control node.
type node struct {
	id, zone int
	clock    clock
	applied  int // place in the zone's log
	catalog  int // version of the catalog it has
	term     int // of its book
	book     *grant.Book
	words    [nRegions]grant.Word // of the edges connected to it
	heard    [nRegions]bool
}

type zone struct {
	log    []entry
	leader *node
	term   int
	closed [nRegions][nRegions]record // until the pair is permitted again
}

// record is a completed in-force record: by which half, and when.
type record struct {
	by string
	at time.Duration
}

func (z *zone) last() *entry { return &z.log[len(z.log)-1] }

// held is an edge's table.
type held struct {
	at     grant.At
	exists bool
	pairs  [nRegions][nRegions]bool
}

type edge struct {
	id        int
	up        bool
	clock     clock
	table     held
	disk      held
	old       held // a copy of the disk, for a clone
	grants    *grant.Held
	seen      grant.Seen
	control   int // index among its zone's nodes
	question  int // number of the open question; 0: none
	asked     time.Time
	life      int // incarnation
	homeDown  bool
	lastAsked time.Duration
}

// flight is a relay under way.
type flight struct {
	link
	until    time.Duration
	fromLife int
	toLife   int
	arrived  bool // the receiver took it
	cut      bool
}

// setting is what a schedule draws once.
type setting struct {
	ttl, offline time.Duration
	loss         float64
}

type world struct {
	rng     *rand.Rand
	set     setting
	now     time.Duration
	seq     uint64
	queue   queue
	zones   [2]*zone
	nodes   [nNodes]*node
	edges   [nRegions]*edge
	cut     [nHosts][nHosts]bool
	catalog []catalogVersion
	flights []*flight
	logged  map[string]bool
	ids     int
	rules   *rules
	stats   stats
	trace   func(format string, args ...any)
	failure error
}

type catalogVersion struct {
	rev  revision.Revision
	mask uint16
}

type stats struct {
	schedules, requests, home, relayed, wanted, served int64
	refusedAtReceiver, cutFlights, records             int64
	leaderChanges, crashes, clones, recoveries         int64
	events                                             int64
}

func (s *stats) add(o stats) {
	s.schedules += o.schedules
	s.requests += o.requests
	s.home += o.home
	s.relayed += o.relayed
	s.wanted += o.wanted
	s.served += o.served
	s.refusedAtReceiver += o.refusedAtReceiver
	s.cutFlights += o.cutFlights
	s.records += o.records
	s.leaderChanges += o.leaderChanges
	s.crashes += o.crashes
	s.clones += o.clones
	s.recoveries += o.recoveries
	s.events += o.events
}

// event is something due.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, do})
}

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)+1))
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// send delivers after a while, out of order with others, or not at all.
func (w *world) send(from, to int, do func()) {
	if w.cut[from][to] || w.chance(w.set.loss) {
		return
	}
	d := w.between(time.Millisecond, 60*time.Millisecond)
	if w.chance(0.03) {
		d += w.between(0, 2*time.Second)
	}
	w.after(d, func() {
		if !w.cut[from][to] {
			do()
		}
	})
}

func (w *world) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %v: "+format, append([]any{w.now}, args...)...)
	}
}

func (w *world) log(format string, args ...any) {
	if w.trace != nil {
		w.trace("%10v "+format, append([]any{w.now.Truncate(time.Millisecond)}, args...)...)
	}
}

// Bits of the catalog's mask: what an operator may have written.
const (
	gdprSuspended = 1 << iota
	sccSuspended
	crossClosed
	withinOnly
	offlineLong
)

// Bits of a zone's closures.
const (
	closeWestToCentral = 1 << iota
	closeCross
	closeBasis
	closeFromCentral
)

// rules compiles each catalog once and remembers what it permits: production's regions.Set answers.
type rules struct {
	cached map[ruleKey][]regions.Permitted
}

type ruleKey struct {
	mask, closures uint16
	zone           int
	expired        bool
	offline        time.Duration
}

var basisEnds = epochZero.Add(500*time.Hour + 10*time.Second)

func newRules() *rules { return &rules{cached: map[ruleKey][]regions.Permitted{}} }

func compile(mask uint16, offline time.Duration) *regions.Set {
	status := func(bit uint16) string {
		if mask&bit != 0 {
			return regions.Suspended
		}
		return regions.Active
	}
	var regs []regions.Region
	for i, n := range regionNames {
		regs = append(regs, regions.Region{Name: n, Zone: zoneNames[zoneOf(i)]})
	}
	bases := []regions.LegalBasis{{Name: "gdpr", Kind: regions.SameLaw, Status: status(gdprSuspended)},
		{Name: "us-law", Kind: regions.SameLaw}, {Name: "scc", Kind: regions.SCC, Status: status(sccSuspended), Expires: basisEnds}}
	life := time.Duration(0)
	if mask&offlineLong != 0 {
		life = offline
	}
	emea := regions.Policy{Name: zoneNames[0], Zone: "emea", WithinZone: true, WithinZoneBasis: "gdpr", OfflineGrant: &life}
	if mask&withinOnly == 0 {
		cross := regions.Pair{From: "eu-west", To: "us-east", Basis: "scc", Status: regions.Open}
		if mask&crossClosed != 0 {
			cross.Status = regions.Closed
		}
		emea.Pairs = []regions.Pair{cross}
	}
	us := regions.Policy{Name: zoneNames[1], Zone: "us", WithinZone: true, WithinZoneBasis: "us-law", OfflineGrant: &life}
	s, err := regions.Compile(regs, bases, []regions.Policy{emea, us})
	if err != nil {
		panic(err) // the universe is fixed: it compiles or the program is wrong
	}
	return s
}

func closuresOf(mask uint16) (out []regions.Closure) {
	for bit, c := range map[uint16]regions.Closure{closeWestToCentral: {From: "eu-west", To: "eu-central"}, closeCross: {From: "eu-west", To: "us-east"},
		closeBasis: {Basis: "scc"}, closeFromCentral: {From: "eu-central"}} {
		if mask&bit != 0 {
			out = append(out, c)
		}
	}
	return out
}

// permitted is what a zone permits by a state of its log and a wall clock. The caller may change the slice.
func (w *world) permitted(zone int, e *entry, wall time.Time) []regions.Permitted {
	r := w.rules
	mask := w.catalog[e.adopted].mask
	key := ruleKey{mask, e.closures, zone, !wall.Before(basisEnds), w.set.offline}
	pairs, ok := r.cached[key]
	if !ok {
		set := compile(mask, w.set.offline)
		pairs = grant.Touching(set.Pairs(wall, closuresOf(e.closures)), func(region string) bool { return zoneOf(regionID(region)) == zone })
		r.cached[key] = pairs
	}
	return slices.Clone(pairs)
}
