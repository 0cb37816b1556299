package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

// Two zones of two regions, two edges in the western and eastern one, three control nodes a zone. Host ids: machines
// of edges 0-6, of which the last is there for a copy of another, nodes 7-12, the catalog 13.
const (
	nRegions  = 4
	nEdges    = 6
	nMachines = nEdges + 1
	twin      = nEdges
	nNodes    = 6
	catalogID = nMachines + nNodes
	nHosts    = catalogID + 1
	nPolicies = 3
)

var (
	zoneNames   = [2]string{"emea", "us"}
	regionNames = [nRegions]string{"eu-west", "eu-central", "us-east", "us-west"}
	edgeNames   = [nEdges]string{"eu-west-1", "eu-west-2", "eu-central-1", "us-east-1", "us-east-2", "us-west-1"}
	edgeRegion  = [nEdges]int{0, 0, 1, 2, 2, 3}
	edgesOf     = [nRegions][]int{{0, 1}, {2}, {3, 4}, {5}}
	nodeNames   = [nNodes]string{"emea-1", "emea-2", "emea-3", "us-1", "us-2", "us-3"}
	policyNames = [nPolicies]string{open, strict, us}
	peersOf     [nRegions][]grant.Peer
)

func init() {
	for region, edges := range edgesOf {
		for _, e := range edges {
			peersOf[region] = append(peersOf[region], grant.Peer{Edge: edgeNames[e]})
		}
	}
}

// api is the one API of each zone.
const api = "orders"

func zoneOf(region int) int { return region / 2 }

func regionID(name string) int { return slices.Index(regionNames[:], name) }

func policyID(name string) int { return slices.Index(policyNames[:], name) }

// pair of regions under a policy, by number.
type pair struct{ policy, from, to int }

func pairOf(p grant.Pair) pair { return pair{policyID(p.Policy), regionID(p.From), regionID(p.To)} }

func (p pair) String() string {
	return policyNames[p.policy] + ":" + regionNames[p.from] + ">" + regionNames[p.to]
}

// clock is a host's: its monotonic one has a rate within 2 % of every other's and an offset that means nothing, its
// wall clock may be off.
type clock struct {
	offset time.Duration
	rate   float64
	off    time.Duration
}

var (
	epochZero = time.Unix(1_000_000_000, 0)
	basisEnds = epochZero.Add(8 * time.Second) // by each wall clock
)

func (c *clock) at(now time.Duration) time.Time {
	return epochZero.Add(c.offset + time.Duration(float64(now)*c.rate))
}

func (c *clock) wall(now time.Duration) time.Time { return epochZero.Add(now + c.off) }

// entry is the state of a zone's log after one of its writes. It never changes.
type entry struct {
	rev        revision.Revision
	adopted    int // version of the catalog
	closures   uint16
	crossing   epochs // under which pairs that cross zones are approved
	baseline   []grant.Pair
	changed    uint64 // index of the last change of baseline; 0: none yet
	changedAt  time.Duration
	records    [nEdges]*grant.Record
	tightening []pending
}

// epochs of the catalog and of a zone's store.
type epochs struct{ catalog, store uint64 }

// recovered says whether what crosses zones is closed since a recovery.
func (w *world) recovered(e *entry) bool {
	return e.rev.Epoch > e.crossing.store || w.catalog[e.adopted].rev.Epoch > e.crossing.catalog
}

type pending struct {
	grant.Pair
	epoch, index uint64 // of the record's transaction
	at           time.Duration
	done         bool
}

// node is a control node.
type node struct {
	id, zone int
	clock    clock
	applied  int // place in the zone's log
	catalog  int // version of the catalog it has
	term     int // of its book
	book     *grant.Book
	words    [nMachines]grant.Word // of the edges connected to it
	dead     [nMachines][]string   // earlier processes that have ended, by their word
	heard    [nMachines]bool
	view     view
	looked   look
}

// view is what a node found permitted, and what of: nothing else changes it.
type view struct {
	of        *entry
	ended     bool
	permitted []regions.Permitted
	pairs     [nPolicies][nRegions][nRegions]bool
}

// look is what the leader compared last and found the same.
type look struct {
	of    *entry
	ended bool
}

type zone struct {
	log    []*entry
	leader *node
	term   int
	led    time.Duration                         // since when
	closed [nPolicies][nRegions][nRegions]record // until the pair is permitted again
}

// record is a completed in-force record: by which half, and when.
type record struct {
	by string
	at time.Duration
}

func (z *zone) last() *entry { return z.log[len(z.log)-1] }

// held is an edge's table.
type held struct {
	at     grant.At
	exists bool
	strict bool // the API of emea is under its second policy
	pairs  [nPolicies][nRegions][nRegions]bool
}

func (t *held) At() grant.At { return t.at }

func (t *held) Permits(policy, from, to string) bool {
	return t.pairs[policyID(policy)][regionID(from)][regionID(to)]
}

func (t *held) PolicyOf(zone, name string) (string, bool) {
	switch {
	case name != api:
		return "", false
	case zone == zoneNames[1]:
		return us, true
	case t.strict:
		return strict, true
	}
	return open, true
}

type edge struct {
	id, region int
	as         int // which edge it is
	up         bool
	clock      clock
	table      held
	disk       held
	old        held // a copy of the disk, for a restart long after
	grants     *grant.Held
	seen       grant.Seen
	control    int      // index among its zone's nodes
	question   int      // number of the open question; 0: none
	life       int      // counts starts and crashes
	run        string   // its incarnation
	dead       []string // earlier ones that it knows to have ended
	homeDown   bool
	lastAsked  time.Duration
	next       time.Duration // until it asks again
}

func (e *edge) zone() int { return zoneOf(e.region) }

func (e *edge) party() grant.Party {
	return grant.Party{Zone: zoneNames[e.zone()], Region: regionNames[e.region], Process: e.process()}
}

func (e *edge) process() grant.Process {
	return grant.Process{Edge: edgeNames[e.as], Incarnation: e.run}
}

// flight is a relay under way.
type flight struct {
	grant *grant.Grant // under which it came
	grant.Flight
	pair
	sender, receiver int
	until            time.Duration
	fromLife, toLife int
	arrived          bool // the receiver took it
	cut              bool
}

// setting is what a schedule draws once.
type setting struct {
	ttl, offline time.Duration
	loss         float64
	calm         time.Duration // trouble ends here; beyond the end of the schedule: never
	length       time.Duration
}

type world struct {
	rng     *rand.Rand
	set     setting
	now     time.Duration
	lost    time.Duration // when the last machine was lost
	seq     uint64
	queue   queue
	zones   [2]zone
	nodes   [nNodes]node
	edges   [nMachines]edge
	cut     [nHosts][nHosts]bool
	catalog []catalogVersion
	flights []*flight
	ids     int
	logged  map[string]bool // ids of grants that are in a log
	rules   *rules
	stats   stats
	trace   func(format string, args ...any)
	failure error
}

type catalogVersion struct {
	rev  revision.Revision
	mask uint16
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.queue.push(event{at: w.now + d, seq: w.seq, do: do})
}

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)+1))
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// send delivers after a while, out of order with others, or not at all.
func (w *world) send(from, to int, do func()) {
	calm := w.now >= w.set.calm
	if w.cut[from][to] || !calm && w.chance(w.set.loss) {
		return
	}
	d := w.between(time.Millisecond, 60*time.Millisecond)
	if !calm && w.chance(0.03) {
		d += w.between(0, 2*time.Second)
	}
	w.seq++
	w.queue.push(event{w.now + d, w.seq, int8(from), int8(to), do})
}

func (w *world) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("at %v: "+format, append([]any{w.now}, args...)...)
	}
}

// log is asked for by whoever has looked whether there is a trace: arguments cost.
func (w *world) log(format string, args ...any) {
	w.trace("%10v "+format, append([]any{w.now.Truncate(time.Millisecond)}, args...)...)
}

type stats struct {
	schedules, requests, home, relayed, wanted, served      int64
	refusedAtReceiver, cutFlights, records                  int64
	leaderChanges, crashes, clones, twins, recoveries, calm int64
	events                                                  int64
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
	s.twins += o.twins
	s.recoveries += o.recoveries
	s.calm += o.calm
	s.events += o.events
}
