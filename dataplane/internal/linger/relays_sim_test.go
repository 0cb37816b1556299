package linger_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/incarnation"
	"bailiwick/dataplane/internal/linger"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
	"bailiwick/shared/usage"
)

// The simulation of relays that go on over takeovers. Its leader is grant.Book, its processes go by grant.Held and
// grant.Lent, tell each other by a Link and a Keeper, and know each other's end by package incarnation. What package dataplane and failover
// do between those is written out here anew (simProc), as they do it.
//
// BAILIWICK_RELAYS=500 tries so many schedules, BAILIWICK_RELAYS=@17 the one of seed 17. What goroutines do at one instant is in any
// order, so a seed is a schedule of events, and mostly fails again.
const simEnv = "BAILIWICK_RELAYS"

// simRoute is a policy's pair; the API under it is named as the policy.
type simRoute struct{ policy, from, to string }

var simRoutes = [4]simRoute{{"p", "west", "east"}, {"q", "west", "east"}, {"p", "east", "west"}, {"q", "east", "west"}}

// simTable is a table made from the zone's log up to an index.
type simTable struct {
	index, rules uint64 // rules: the last index at which pairs changed
	open         [len(simRoutes)]bool
}

func (t *simTable) At() grant.At {
	return grant.At{Catalog: revision.Revision{Epoch: 1, Index: 1}, Store: revision.Revision{Epoch: 1, Index: t.index}}
}

func (t *simTable) Permits(policy, from, to string) bool {
	return t.open[slices.Index(simRoutes[:], simRoute{policy, from, to})]
}

func (t *simTable) PolicyOf(_, api string) (string, bool) { return api, true }

func (t *simTable) permitted(also func(int) bool, offline time.Duration) (out []regions.Permitted) {
	for i, r := range simRoutes {
		if t.open[i] && also(i) {
			out = append(out, regions.Permitted{Policy: r.policy, From: r.from, To: r.to, OfflineGrant: offline})
		}
	}
	return out
}

// simTightening is a pair that the leader noticed as closed.
type simTightening struct {
	route   int
	barrier uint64
	at      time.Time
}

// simEdge is one of each region.
type simEdge struct {
	name, region, dir string
	disk              *simTable // the table on it
	full              bool
	away              time.Time // until then it does not reach its zone
	serving           *simProc  // nil: none
	busy              bool      // one is about to
	record            *grant.Record
	all               []*simProc
}

type simStats struct {
	relays, outlived, cut, needless, inForce, lingering, takeovers, lent int
	slowest                                                              time.Duration
}

// simWorld is a zone of two regions with one edge each. mu covers all of it, and is held for nothing that waits.
type simWorld struct {
	t            *testing.T
	seed         uint64
	began        time.Time
	calm         bool
	ttl, offline time.Duration
	ctx          context.Context
	wg           sync.WaitGroup

	mu       sync.Mutex
	rnd      *rand.Rand
	log      []*simTable
	baseline [len(simRoutes)]bool
	changed  uint64
	pending  []*simTightening
	closed   [len(simRoutes)]string    // by which half it is in force; "": it is not
	book     *grant.Book               // nil: no leader
	opened   [len(simRoutes)]time.Time // when pairs were last opened
	term     int
	loss     float64
	delay    time.Duration // on links, at most
	edges    [2]*simEdge
	taken    time.Time // the last takeover
	failed   bool
	trace    []string // nil: nobody reads it
	stats    simStats
}

func (w *simWorld) last() *simTable { return w.log[len(w.log)-1] }

// upTo is a duration below d.
func (w *simWorld) upTo(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rnd.Int64N(int64(d) + 1))
}

func (w *simWorld) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rnd.Float64() < p
}

func (w *simWorld) gaveUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// fail is called with mu.
func (w *simWorld) fail(format string, args ...any) {
	if !w.failed {
		w.failed = true
		w.t.Errorf("seed %d after %v: %s", w.seed, time.Since(w.began), fmt.Sprintf(format, args...))
		for _, line := range w.trace[max(0, len(w.trace)-200):] {
			w.t.Log(line)
		}
	}
}

// note says what happens, for who looks at one seed; with mu.
func (w *simWorld) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%7.3f ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

func (w *simWorld) noted(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(format, args...)
}

// write appends to the zone's log, with mu.
func (w *simWorld) write(change func(*simTable)) uint64 {
	next := *w.last()
	next.index++
	if change != nil {
		change(&next)
	}
	if next.open != w.last().open {
		next.rules = next.index
	}
	w.log = append(w.log, &next)
	return next.index
}

// lead is a leader's look: what it notices, and what is in force.
func (w *simWorld) lead() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.book == nil {
		return
	}
	if now := w.last().open; now != w.baseline && w.rnd.IntN(2) == 0 {
		index := w.write(nil)
		for i := range simRoutes {
			switch {
			case w.baseline[i] && !now[i]:
				w.pending = append(w.pending, &simTightening{i, index, time.Now()})
			case !w.baseline[i] && now[i]:
				w.pending = slices.DeleteFunc(w.pending, func(t *simTightening) bool { return t.route == i })
			}
		}
		w.baseline, w.changed = now, index
	}
	w.pending = slices.DeleteFunc(w.pending, func(t *simTightening) bool {
		r := simRoutes[t.route]
		by, waiting := w.book.InForce(grant.Tightening{From: r.from, To: r.to, Epoch: 1, Barrier: t.barrier, Now: 1}, grant.Ground{
			Own: func(string) (own, known bool) { return true, true },
			Members: func(region string) []string {
				for _, e := range w.edges {
					if e.region == region {
						return []string{e.name}
					}
				}
				return nil
			}}, time.Now())
		if w.last().open[t.route] {
			return false // the next look notices
		}
		if took := time.Since(t.at); w.calm && took > 5*time.Second && time.Since(w.taken) > 10*time.Second && took < 5*time.Second+60*time.Millisecond {
			w.fail("%v waits for %v for %v although all is well; %s", r, waiting, took, w.state())
		}
		if by == "" {
			return false
		}
		w.closed[t.route] = by
		w.note("%v in force by %s", r, by)
		w.stats.inForce++
		w.stats.slowest = max(w.stats.slowest, time.Since(t.at))
		for _, e := range w.edges {
			if slices.ContainsFunc(e.all, func(p *simProc) bool { return !p.dead && !p.took.IsZero() && len(p.out)+len(p.in) > 0 }) {
				w.stats.lingering++
				break
			}
		}
		w.judge("as it is recorded")
		return true
	})
}

// judge fails if anything moves over a pair whose tightening is in force; with mu.
func (w *simWorld) judge(when string) {
	now := time.Now()
	for _, e := range w.edges {
		for _, p := range e.all {
			if p.dead || p.paused != nil {
				continue
			}
			for half, flights := range map[string][]*simFlight{"senders": p.out, "receivers": p.in} {
				grace := 200 * time.Millisecond
				if half == "receivers" {
					grace = 500 * time.Millisecond
				}
				if now.Sub(p.resumed) <= grace {
					continue
				}
				for _, f := range flights {
					if w.closed[f.route] == half && now.Before(f.until) {
						w.fail("a relay over %v goes on in %s, %s, which is in force by %s; %s", simRoutes[f.route], p.name, when, half, w.state())
					}
				}
			}
		}
	}
}

// state is who does what; with mu.
func (w *simWorld) state() (out string) {
	out = fmt.Sprintf("the log is at %d, rules of %d", w.last().index, w.last().rules)
	for _, e := range w.edges {
		for _, p := range e.all {
			if !p.dead {
				out += fmt.Sprintf("; %s: table %d (%d), acked %d, %d out, %d in", p.name, p.table.Load().index, p.table.Load().rules, p.acked, len(p.out), len(p.in))
				if p.paused != nil {
					out += ", paused"
				}
				if !p.took.IsZero() {
					out += fmt.Sprintf(", replaced %v ago", time.Since(p.took))
				}
			}
		}
	}
	return out
}

// depose has another leader begin; with mu.
func (w *simWorld) elect() {
	w.term++
	w.note("a leader begins")
	past := grant.Past{Edges: map[string]string{}}
	for _, r := range w.last().permitted(func(int) bool { return true }, w.offline) {
		past.Rules = append(past.Rules, grant.Life{To: r.To, Lasts: r.OfflineGrant})
	}
	for _, t := range w.pending {
		past.Targets = append(past.Targets, simRoutes[t.route].to)
	}
	for _, e := range w.edges {
		past.Edges[e.name] = e.region
		if e.record != nil {
			past.Records = append(past.Records, *e.record)
		}
	}
	w.book = grant.Open(past, w.ttl, time.Now())
}

// simAnswer is what a leader says to a question.
type simAnswer struct {
	answer grant.Answer
	twin   bool
	given  []*grant.Grant
	takes  time.Duration
}

// ask is border's Grant. An answer that does not come is Silent.
func (w *simWorld) ask(e *simEdge, process grant.Process, dead []string, at grant.At) (a simAnswer) {
	w.mu.Lock()
	lost, term := w.book == nil || w.rnd.Float64() < w.loss || time.Now().Before(e.away), w.term
	if lost {
		w.mu.Unlock()
		return a
	}
	defer w.mu.Unlock()
	now := time.Now()
	if !grant.FreshTable(at.Store.Epoch, at.Store.Index, 1, w.changed) {
		return simAnswer{answer: grant.Behind}
	}
	noticed := func(i int) bool { return w.baseline[i] }
	changed := w.changed
	pairs := w.last().permitted(noticed, w.offline)
	offers := grant.Offers(pairs, e.region, w.ttl, func(string) bool { return true })
	takes := grant.Takes(pairs, e.region, w.ttl)
	w.book.Bury(e.name, dead, now)
	if len(offers) == 0 && takes == 0 {
		return simAnswer{answer: grant.Given}
	}
	if w.book.Elder(process, now) != "" {
		return simAnswer{answer: grant.Behind, twin: true}
	}
	record, before := w.book.Give(process, e.region, grant.Lives(offers), takes, now), e.record
	pause := func(d time.Duration) {
		d = time.Duration(w.rnd.Int64N(int64(d)))
		w.mu.Unlock()
		time.Sleep(d)
		w.mu.Lock()
	}
	pause(50 * time.Millisecond)
	if w.term != term || w.book == nil {
		return a
	}
	if w.changed != changed || e.record != before {
		return simAnswer{answer: grant.Behind}
	}
	e.record = &record
	index := w.write(nil)
	pause(20 * time.Millisecond)
	if w.term != term || w.book == nil || w.rnd.Float64() < w.loss || time.Now().Before(e.away) {
		return a
	}
	still := w.last().permitted(func(int) bool { return true }, w.offline)
	a = simAnswer{answer: grant.Given, takes: min(takes, grant.Takes(still, e.region, w.ttl))}
	for i, o := range offers {
		if o.Confirm(e.region, still) {
			a.given = append(a.given, &grant.Grant{ID: fmt.Sprint(index, "-", i), Zone: "z", Process: process, From: e.region, To: o.To, Policies: o.Policies,
				Catalog: at.Catalog, Store: revision.Revision{Epoch: 1, Index: index}, TTL: o.TTL, OfflineTTL: o.OfflineTTL, Peers: []grant.Peer{{Edge: o.To}}})
		}
	}
	return a
}

// simFlight is one end of a relay.
type simFlight struct {
	route int
	grant *grant.Grant // that a receiver was shown
	until time.Time
}

func (f *simFlight) flight() grant.Flight {
	r := simRoutes[f.route]
	return grant.Flight{Zone: "z", API: r.policy, Policy: r.policy, From: r.from, To: r.to, Peer: r.to}
}

// simProc is a process of an edge.
type simProc struct {
	w     *simWorld
	e     *simEdge
	name  string
	run   *incarnation.Run
	ctx   context.Context
	die   context.CancelFunc
	serve context.Context // while it serves
	leave context.CancelFunc
	parts sync.WaitGroup // of who serves

	table    atomic.Pointer[simTable]
	held     atomic.Pointer[grant.Held]
	answered atomic.Bool
	forsaken atomic.Bool
	slow     atomic.Int64 // how long a table takes to be put in force, at most
	again    chan struct{}
	keeper   *linger.Keeper // of the process before; nil: there is none
	ends     []net.Conn     // of its links

	borrowed sync.Mutex // covers the next two
	stays    func()
	since    time.Time

	// With the world's mu.
	dead      bool
	paused    chan struct{}
	resumed   time.Time
	retired   bool
	ending    bool      // what goes on is cut
	took      time.Time // when another took its place
	out, in   []*simFlight
	hello     []string // dead, as it said when it connected
	connected bool
	spoke     time.Time
	acked     uint64
}

// awake waits while the process is paused. false: it is dead.
func (p *simProc) awake() bool {
	for {
		p.w.mu.Lock()
		paused, dead := p.paused, p.dead
		p.w.mu.Unlock()
		if dead || paused == nil {
			return !dead
		}
		select {
		case <-paused:
		case <-p.ctx.Done():
		}
	}
}

// sleep lets time pass; false: the process is dead, or ctx has ended.
func (p *simProc) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-p.ctx.Done():
	}
	return p.awake() && ctx.Err() == nil
}

// enforce is relay.Client.Enforce and relay.Server.Enforce.
func (p *simProc) enforce(out, in bool) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead || p.paused != nil {
		return
	}
	t, held, now := p.table.Load(), p.held.Load(), time.Now()
	sweep := func(list *[]*simFlight, stands func(*simFlight) bool) {
		*list = slices.DeleteFunc(*list, func(f *simFlight) bool {
			ended := !now.Before(f.until)
			lives := !ended && stands(f)
			if !lives && !p.took.IsZero() && now.Sub(p.took) > 10*time.Second {
				w.stats.outlived++
			}
			if ended || lives {
				return ended
			}
			w.stats.cut++
			// Of one that opens again the grant may be from before it closed, and end before there is a new one.
			if t.open[f.route] && w.last().open[f.route] && !p.ending && now.Sub(w.opened[f.route]) > 5*time.Second {
				w.stats.needless++
				if w.calm {
					w.fail("a relay over %v is cut in %s, whose table permits it, and all is well (grant %v, of leave %v are left); %s", simRoutes[f.route], p.name, held.Live(f.flight().Policy, f.flight().To, t.At(), now), held.LeaveFor(now), w.state())
				}
			}
			return true
		})
	}
	if out {
		sweep(&p.out, func(f *simFlight) bool { return held.Keep(f.flight(), t, now) })
	}
	if in {
		sweep(&p.in, func(f *simFlight) bool { return f.flight().Stands(t) && held.Takes(f.grant, now) })
	}
}

// ticks enforces as package relay does: a process that was paused may have just missed one.
func (p *simProc) ticks(every time.Duration, out bool) {
	for p.sleep(p.ctx, every) {
		p.w.mu.Lock()
		late := time.Since(p.resumed) < every && p.w.rnd.IntN(2) == 0
		p.w.mu.Unlock()
		if late && !p.sleep(p.ctx, p.w.upTo(every-50*time.Millisecond)) {
			return
		}
		p.enforce(out, !out)
	}
}

// begins has relays begin while it serves.
func (p *simProc) begins() {
	w := p.w
	other := w.edges[0]
	if other == p.e {
		other = w.edges[1]
	}
	for p.sleep(p.serve, w.upTo(400*time.Millisecond)) {
		w.mu.Lock()
		life := time.Duration(w.rnd.Int64N(int64(time.Second)))
		if w.rnd.IntN(2) == 0 {
			life = time.Duration(w.rnd.Int64N(int64(50 * time.Second)))
		}
		f := &simFlight{route: w.rnd.IntN(len(simRoutes)), until: time.Now().Add(life)}
		r, t, held, now := simRoutes[f.route], p.table.Load(), p.held.Load(), time.Now()
		switch {
		case p.retired || p.dead || p.paused != nil:
		case r.from == p.e.region:
			if g, _ := held.Leave(f.flight(), t, now); g != nil {
				p.out = append(p.out, f)
				w.stats.relays++
			}
		default: // of the process that serves there, if it would send
			if q := other.serving; q != nil && q.paused == nil {
				if f.grant, _ = q.held.Load().Leave(f.flight(), q.table.Load(), now); f.grant != nil && f.flight().Stands(t) && held.Takes(f.grant, now) {
					shown := *f.grant // as it was signed
					shown.OfflineTTL, f.grant = w.offline, &shown
					p.in = append(p.in, f)
					w.stats.relays++
				}
			}
		}
		w.judge("as another begins")
		w.mu.Unlock()
	}
}

// put has a table in force: what it forbids has ended here when it returns, and behind.
func (p *simProc) put(t *simTable) {
	p.table.Store(t)
	if p.keeper != nil {
		p.keeper.Table([]*syncv1.Signed{{Payload: binary.BigEndian.AppendUint64(nil, t.index)}})
	}
}

func (p *simProc) cut(mark *uint64) {
	p.enforce(true, true)
	if t := p.table.Load(); p.keeper != nil && *mark != t.rules {
		*mark = t.rules
		p.keeper.Tighten(t.At())
	}
}

// follow is subscribe's session: to disk, in force, what it forbids ended, acknowledged.
func (p *simProc) follow(mark *uint64) {
	needBase := false
	for p.sleep(p.serve, p.w.upTo(100*time.Millisecond)+20*time.Millisecond) {
		if slow := time.Duration(p.slow.Load()); slow > 0 && !p.sleep(p.serve, p.w.upTo(slow)) {
			return
		}
		p.w.mu.Lock()
		t, full, lost := p.w.last(), p.e.full, p.w.rnd.Float64() < p.w.loss/2 || time.Now().Before(p.e.away)
		had := p.table.Load()
		if !full && !lost {
			p.e.disk = t
		}
		p.w.mu.Unlock()
		if lost || t.index <= had.index && !needBase {
			continue
		}
		if t.index > had.index {
			p.put(t)
		}
		if needBase { // a snapshot has rules of its own
			*mark = 0
		}
		p.cut(mark)
		if needBase = full; full {
			continue
		}
		p.w.mu.Lock()
		p.acked = t.index
		p.w.note("%s acks %d (%d)", p.name, t.index, t.rules)
		p.w.mu.Unlock()
	}
}

// asks is failover.Grants.Run.
func (p *simProc) asks() {
	w := p.w
	var twin time.Time
	for p.serve.Err() == nil {
		t, asked := p.table.Load(), time.Now()
		answer := make(chan simAnswer, 1)
		w.wg.Go(func() {
			time.Sleep(w.upTo(30 * time.Millisecond))
			a := w.ask(p.e, grant.Process{Edge: p.e.name, Incarnation: p.run.ID}, p.run.Dead(), t.At())
			time.Sleep(w.upTo(30 * time.Millisecond))
			if a.answer != grant.Silent {
				answer <- a
			}
		})
		every := max(50*time.Millisecond, p.held.Load().Shortest(30*time.Second)/3)
		var a simAnswer
		timer := time.NewTimer(min(5*time.Second, max(every, 250*time.Millisecond)))
		select {
		case a = <-answer:
		case <-timer.C:
		case <-p.ctx.Done():
		}
		timer.Stop()
		if !p.awake() || p.serve.Err() != nil {
			return
		}
		for _, g := range a.given {
			g.Asked = asked
		}
		w.noted("%s is answered %d (twin %t) with %d grants, leave %v, asked with %v at %d", p.name, a.answer, a.twin, len(a.given), a.takes, p.run.Dead(), t.index)
		p.held.Store(p.held.Load().Step(a.answer, a.given, grant.Take{Asked: asked, Lasts: a.takes}, time.Now()))
		next := max(50*time.Millisecond, p.held.Load().Shortest(30*time.Second)/3)
		if a.answer == grant.Given {
			p.answered.Store(true)
			p.enforce(true, true)
		}
		if a.answer != grant.Given || p.lacks(t, asked) {
			next = min(next, time.Second)
		}
		if a.twin && p.run.Stays() {
			if twin.IsZero() {
				twin = time.Now()
			}
			if time.Since(twin) > 2*time.Second {
				p.forsaken.Store(true)
			}
			next = min(next, 200*time.Millisecond)
		}
	wait:
		for until := time.Now().Add(next); time.Now().Before(until) && p.table.Load().rules == t.rules; {
			if !p.sleep(p.serve, 50*time.Millisecond) {
				return
			}
			select {
			case <-p.again:
				break wait
			default:
			}
		}
	}
}

// lacks is failover.Grants.lacks.
func (p *simProc) lacks(t *simTable, newest time.Time) bool {
	for i, r := range simRoutes {
		g := p.held.Load().Live(r.policy, r.to, t.At(), time.Now())
		if t.open[i] && (r.from == p.e.region && (g == nil || g.Asked.Before(newest)) || r.to == p.e.region && p.held.Load().LeaveFor(time.Now()) <= 0) {
			return true
		}
	}
	return false
}

// buries is Edge.bury.
func (p *simProc) buries() {
	for p.run.Stays() && p.sleep(p.serve, 250*time.Millisecond) {
		if p.run.Look() {
			select {
			case p.again <- struct{}{}:
			default:
			}
		}
	}
}

// behind is how many processes linger behind, and what relays they have.
func (p *simProc) behind() (processes, relays int) {
	if p.keeper == nil {
		return 0, 0
	}
	out, in, known := p.keeper.Relays()
	if !known {
		out = 1
	}
	select {
	case <-p.keeper.Gone():
		return 0, out + in
	default:
		return p.keeper.Before(), out + in
	}
}

// relays are under way here and behind.
func (p *simProc) relays() (out, in int) {
	_, behind := p.behind()
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return len(p.out) + behind, len(p.in)
}

func (p *simProc) staying() bool {
	out, in := p.relays()
	behind, _ := p.behind()
	p.borrowed.Lock()
	defer p.borrowed.Unlock()
	if p.stays == nil {
		return false
	}
	if linger.Rests(out+in, p.since, behind, time.Now()) {
		return true
	}
	p.stays()
	p.stays = nil
	p.w.noted("%s stays no longer", p.name)
	return false
}

func (p *simProc) goBy(h *grant.Held) {
	p.held.Store(h)
	p.answered.Store(true)
	p.enforce(true, true)
}

// lend is called with locks of package linger, and takes none of the world's.
func (p *simProc) lend(now time.Time) (grant.Lent, bool) {
	if p.forsaken.Load() {
		return grant.Lent{}, true
	}
	if !p.answered.Load() {
		return grant.Lent{}, false
	}
	return p.held.Load().Lend(p.table.Load().At(), now, linger.LentTime), true
}

// start has a process begin to serve, beside the one before it if that goes on over conn.
func (w *simWorld) start(e *simEdge, conn func(*simProc) net.Conn) *simProc {
	run, err := incarnation.Begin(e.dir, "boot", quiet)
	for again := 0; err != nil && again < 10; again++ { // who was killed may not have let go
		time.Sleep(20 * time.Millisecond)
		run, err = incarnation.Begin(e.dir, "boot", quiet)
	}
	if err != nil {
		panic(err)
	}
	p := &simProc{w: w, e: e, run: run, again: make(chan struct{}, 1)}
	p.ctx, p.die = context.WithCancel(w.ctx)
	p.serve, p.leave = context.WithCancel(p.ctx)
	p.held.Store(&grant.Held{})
	w.mu.Lock()
	p.name = fmt.Sprint(e.name, len(e.all))
	p.table.Store(e.disk)
	p.acked, p.hello, p.connected, p.spoke = e.disk.index, run.Dead(), true, time.Now()
	if !w.calm && w.rnd.IntN(4) == 0 {
		p.slow.Store(w.rnd.Int64N(int64(4 * time.Second)))
	}
	w.mu.Unlock()
	var mark uint64
	if conn != nil {
		c := conn(p)
		p.ends = append(p.ends, c)
		p.keeper = linger.NewKeeper(linger.KeeperConfig{Conn: c, Append: func(*usage.Row) error { return nil }, Sublet: sublet(w.t), Fresh: func() time.Time { return time.Time{} }, Logger: quiet,
			Lend: p.lend, Since: p.table.Load().At()})
		w.wg.Go(p.keeper.Run)
	}
	w.mu.Lock()
	w.note("%s begins as %s, dead %v, table %d", p.name, run.ID, p.hello, p.acked)
	e.all, e.serving, e.busy = append(e.all, p), p, false
	w.mu.Unlock()
	w.wg.Go(func() { p.ticks(200*time.Millisecond, true) })
	w.wg.Go(func() { p.ticks(500*time.Millisecond, false) })
	p.parts.Go(func() { p.follow(&mark) })
	p.parts.Go(p.asks)
	p.parts.Go(p.buries)
	p.parts.Go(p.begins)
	w.wg.Go(func() {
		p.parts.Wait()
		p.lingers(&mark)
	})
	return p
}

// kill ends a process as the kernel does.
func (w *simWorld) kill(p *simProc) {
	w.mu.Lock()
	if p.dead {
		w.mu.Unlock()
		return
	}
	w.note("%s ends", p.name)
	p.dead, p.connected, p.out, p.in = true, false, nil, nil
	if p.e.serving == p {
		p.e.serving = nil
	}
	ends := slices.Clone(p.ends)
	w.mu.Unlock()
	p.die()
	for _, c := range ends {
		c.Close()
	}
	p.run.Leave()
	p.borrowed.Lock()
	defer p.borrowed.Unlock()
	if p.stays != nil {
		p.stays()
		p.stays = nil
	}
}

// takeover has another process take the one's place that serves: Edge.settle. What follows is lingers'.
func (w *simWorld) takeover(p *simProc) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if p.took.IsZero() {
			p.e.busy = false // it is dead
		}
	}()
	if !p.awake() {
		return
	}
	if n, _ := p.behind(); n >= linger.MostBefore {
		p.keeper.HurryOldest(10 * time.Second)
	}
	stays := w.calm || !w.chance(0.1) // or another program asks
	if stays {
		over, err := p.run.Stay()
		if err != nil {
			w.t.Errorf("seed %d: %v", w.seed, err)
		}
		p.borrowed.Lock()
		p.stays = over
		p.borrowed.Unlock()
	}
	if !p.sleep(p.ctx, 250*time.Millisecond) {
		return
	}
	w.mu.Lock()
	p.retired = true
	w.mu.Unlock()
	if !stays {
		p.goBy(&grant.Held{})
		p.forsaken.Store(true)
		for until := time.Now().Add(linger.LentTime + 250*time.Millisecond); time.Now().Before(until) && p.sleep(p.ctx, 10*time.Millisecond); {
			if _, relays := p.behind(); relays == 0 {
				break
			}
		}
	}
	p.staying()
	w.mu.Lock()
	w.note("%s is replaced, with %d out and %d in", p.name, len(p.out), len(p.in))
	p.took = time.Now()
	w.taken = time.Now()
	w.mu.Unlock()
	p.leave()
}

// lingers is Edge.giveUp and goOn.
func (p *simProc) lingers(mark *uint64) {
	w := p.w
	w.mu.Lock()
	dead, took := p.dead, p.took
	p.connected = false
	w.mu.Unlock()
	if took.IsZero() || w.ctx.Err() != nil {
		return
	}
	idle := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.e.busy = false
	}
	if dead {
		idle()
		return
	}
	if p.staying() {
		p.run.Leave()
	} else if err := p.run.End(); err != nil {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
	w.mu.Lock()
	w.stats.takeovers++
	if p.e.serving == p {
		p.e.serving = nil
	}
	w.mu.Unlock()
	var mine net.Conn
	crashes := !w.calm && w.chance(0.1)
	early := crashes && w.chance(0.5)
	join := func(q *simProc) net.Conn {
		a, b := w.link(p, q)
		mine = a
		return b
	}
	var next *simProc
	if !early {
		time.Sleep(w.upTo(150 * time.Millisecond))
		next = w.start(p.e, join)
		w.mu.Lock()
		p.ends = append(p.ends, mine)
		dead = p.dead
		w.mu.Unlock()
		if dead {
			mine.Close()
			return
		}
	}
	if crashes {
		if next != nil {
			w.wg.Go(func() {
				time.Sleep(w.upTo(500 * time.Millisecond))
				w.kill(next)
			})
		} else { // nobody is at the other end
			idle()
			w.kill(p)
			return
		}
	}
	var lent atomic.Bool
	var link *linger.Link
	link = linger.NewLink(linger.LinkConfig{Conn: mine,
		Table: func(s *syncv1.Signed) error {
			if slow := time.Duration(p.slow.Load()); slow > 0 {
				p.sleep(p.ctx, w.upTo(slow))
			}
			if !p.awake() {
				return net.ErrClosed
			}
			w.mu.Lock()
			t := w.log[binary.BigEndian.Uint64(s.Payload)-1]
			w.mu.Unlock()
			if t.index <= p.table.Load().index {
				return nil
			}
			p.put(t)
			p.cut(mark)
			w.noted("%s has table %d behind", p.name, t.index)
			return nil
		},
		Fresh: func(time.Time) {}, Left: func() (int64, int) { n, _ := p.behind(); return 1, n },
		Older: func(within time.Duration) bool {
			if n, _ := p.behind(); n == 0 {
				return false
			}
			p.keeper.HurryOldest(within)
			return true
		},
		Heed: func() linger.Heed {
			p.awake()
			p.staying()
			out, in := p.relays()
			return linger.Heed{Out: out, In: in}
		},
		At: func() grant.At { return p.table.Load().At() },
		Lent: func(l grant.Lent, asked time.Time) {
			if !p.awake() {
				return
			}
			w.mu.Lock()
			p.ending = p.ending || link.Healthy() != nil
			w.mu.Unlock()
			w.noted("%s is lent %d pairs for %v, leave %v of age %v, asked %v ago", p.name, len(l.Pairs), l.Pairs, l.TakeLasts, l.TakeAge, time.Since(asked))
			p.goBy(l.Held(asked))
			p.borrowed.Lock()
			defer p.borrowed.Unlock()
			if p.since.IsZero() {
				p.since = time.Now()
			}
			if !lent.Swap(true) {
				w.mu.Lock()
				w.stats.lent++
				w.mu.Unlock()
			}
		}})
	over := make(chan struct{})
	w.wg.Go(func() {
		why := link.Run()
		w.mu.Lock()
		w.note("%s: %v", p.name, why)
		p.ending = true
		w.mu.Unlock()
		if p.awake() {
			p.goBy(&grant.Held{})
		}
		close(over)
	})
	for {
		select {
		case <-over:
			time.Sleep(w.upTo(2 * time.Second)) // what is broken off is counted
			w.kill(p)
			return
		case within := <-link.Ending():
			if p.keeper != nil {
				p.keeper.Hurry(within)
			}
			p.sleep(p.ctx, within)
			if p.awake() {
				w.mu.Lock()
				p.ending = true
				w.mu.Unlock()
				p.goBy(&grant.Held{})
			}
		case <-time.After(100 * time.Millisecond):
			out, in := p.relays()
			if n, _ := p.behind(); n > 0 || out+in > 0 || !p.awake() {
				continue
			}
		}
		link.Close()
		<-over
		w.kill(p)
		return
	}
}

// reports is what the nodes tell the leader of processes.
func (w *simWorld) reports() {
	for w.ctx.Err() == nil {
		time.Sleep(w.upTo(300 * time.Millisecond))
		w.mu.Lock()
		for _, e := range w.edges {
			for _, p := range e.all {
				reached := p.connected && !time.Now().Before(e.away)
				if reached && p.paused == nil && time.Since(p.spoke) > time.Second {
					p.spoke = time.Now()
				}
				if w.book == nil || w.rnd.Float64() < w.loss || !p.connected && len(e.all) > 5 && p != e.all[len(e.all)-1] && p.dead {
					continue
				}
				w.book.Bury(e.name, p.hello, time.Now())
				if e.serving != p && e.serving != nil && slices.Contains(e.serving.hello, p.run.ID) {
					continue // a node has one word of an edge
				}
				w.book.Hear(grant.Word{Process: grant.Process{Edge: e.name, Incarnation: p.run.ID}, Region: e.region, By: "node", Connected: reached, Spoke: p.spoke, Epoch: 1, Index: p.acked}, time.Now())
			}
		}
		w.mu.Unlock()
	}
}

// simConn is one end of a connection between two processes: what is written arrives in its order and some time later.
type simConn struct {
	net.Conn // nil
	p        *simProc
	in, out  *simPipe
	closed   chan struct{}
	once     sync.Once
	deadline time.Time // of the reader
}

type simPipe struct {
	mu     sync.Mutex
	bytes  []byte
	marks  []simMark
	last   time.Time
	ended  bool
	notify chan struct{}
}

type simMark struct {
	n  int
	at time.Time
}

func (w *simWorld) link(a, b *simProc) (x, y net.Conn) {
	p, q := &simPipe{notify: make(chan struct{}, 1)}, &simPipe{notify: make(chan struct{}, 1)}
	return &simConn{p: a, in: p, out: q, closed: make(chan struct{})}, &simConn{p: b, in: q, out: p, closed: make(chan struct{})}
}

func (p *simPipe) rouse() {
	select {
	case p.notify <- struct{}{}:
	default:
	}
}

func (c *simConn) Write(b []byte) (int, error) {
	if !c.p.awake() {
		return 0, net.ErrClosed
	}
	c.p.w.mu.Lock()
	d := c.p.w.delay
	c.p.w.mu.Unlock()
	d = c.p.w.upTo(d)
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ended {
		return 0, io.ErrClosedPipe
	}
	at := time.Now().Add(d)
	if at.Before(c.out.last) {
		at = c.out.last
	}
	c.out.last = at
	c.out.bytes = append(c.out.bytes, b...)
	c.out.marks = append(c.out.marks, simMark{len(b), at})
	c.out.rouse()
	return len(b), nil
}

func (c *simConn) Read(b []byte) (int, error) {
	for {
		if !c.p.awake() {
			return 0, net.ErrClosed
		}
		c.in.mu.Lock()
		wait, now := time.Hour, time.Now()
		if len(c.in.marks) > 0 {
			if m := &c.in.marks[0]; !now.Before(m.at) {
				n := copy(b, c.in.bytes[:m.n])
				c.in.bytes = c.in.bytes[n:]
				if m.n -= n; m.n == 0 {
					c.in.marks = c.in.marks[1:]
				}
				c.in.mu.Unlock()
				return n, nil
			} else {
				wait = m.at.Sub(now)
			}
		} else if c.in.ended {
			c.in.mu.Unlock()
			return 0, io.EOF
		}
		c.in.mu.Unlock()
		if !c.deadline.IsZero() {
			if !now.Before(c.deadline) {
				return 0, os.ErrDeadlineExceeded
			}
			wait = min(wait, c.deadline.Sub(now))
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.closed:
			timer.Stop()
			return 0, net.ErrClosed
		case <-c.in.notify:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (c *simConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		for _, p := range []*simPipe{c.in, c.out} {
			p.mu.Lock()
			p.ended = true
			p.rouse()
			p.mu.Unlock()
		}
	})
	return nil
}

func (c *simConn) SetReadDeadline(t time.Time) error { c.deadline = t; return nil }
func (c *simConn) SetWriteDeadline(time.Time) error  { return nil }

// TestRelays_InvariantBorder has processes of two edges take each other's place under relays that go on, while pairs close and open:
// once the leader says that a tightening is in force nothing moves over the pair in any of them, whoever is paused, slow, killed or
// replaced meanwhile; and where nothing of that happens, relays outlast takeovers, and tightenings do not wait.
func TestRelays_InvariantBorder(t *testing.T) {
	first, seeds := 0, 90
	if testing.Short() {
		seeds = 24
	}
	if s := os.Getenv(simEnv); s != "" {
		n, err := strconv.Atoi(s)
		if s[0] == '@' {
			if n, err = strconv.Atoi(s[1:]); err == nil {
				first, n = n, 1
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	base := t.TempDir()
	if dir, err := os.MkdirTemp("/dev/shm", "relays"); err == nil { // every start is written down, and waited for
		base = dir
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	var all simStats
	lasting := 0
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := relays(t, uint64(seed), filepath.Join(base, fmt.Sprint(seed)))
				if s.outlived > 0 {
					lasting++
				}
				all.relays, all.outlived, all.cut, all.needless = all.relays+s.relays, all.outlived+s.outlived, all.cut+s.cut, all.needless+s.needless
				all.inForce, all.lingering, all.takeovers, all.lent = all.inForce+s.inForce, all.lingering+s.lingering, all.takeovers+s.takeovers, all.lent+s.lent
				all.slowest = max(all.slowest, s.slowest)
			})
		})
	}
	t.Logf("%d seeds: %+v, in %d seeds relays outlived a takeover by 10 s", seeds, all, lasting)
	if seeds >= 24 && (lasting < seeds*2/3 || all.inForce < 3*seeds || all.lingering < seeds || all.lent < 3*seeds) {
		t.Error("that is too little to say anything")
	}
}

func relays(t *testing.T, seed uint64, dir string) simStats {
	rnd := rand.New(rand.NewPCG(seed, 31))
	w := &simWorld{t: t, seed: seed, calm: seed%3 == 0, rnd: rand.New(rand.NewPCG(seed, 32)), delay: 2 * time.Millisecond,
		ttl: []time.Duration{3 * time.Second, 10 * time.Second, 30 * time.Second}[rnd.IntN(3)]}
	if w.calm { // rules change often, and an edge that is behind goes by ordinary lifetimes
		w.ttl = max(w.ttl, 10*time.Second)
	}
	w.offline = max(w.ttl, []time.Duration{0, 20 * time.Second, 5 * time.Minute}[rnd.IntN(3)])
	w.began = time.Now()
	ctx, end := context.WithCancel(context.Background())
	w.ctx = ctx
	w.log = []*simTable{{index: 1, rules: 1, open: [4]bool{true, true, true, true}}}
	w.baseline, w.changed = w.last().open, 1
	for i, region := range []string{"west", "east"} {
		w.edges[i] = &simEdge{name: region, region: region, dir: filepath.Join(dir, region), disk: w.last()}
	}
	w.elect()
	for _, e := range w.edges {
		w.start(e, nil)
	}
	w.wg.Go(w.reports)
	w.wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			w.lead()
			w.mu.Lock()
			w.judge("still")
			if w.rnd.IntN(6) == 0 { // keys, which forbid nothing
				w.write(nil)
			}
			for _, e := range w.edges { // whoever died is started again
				if e.serving == nil && !e.busy && w.rnd.IntN(6) == 0 {
					w.revive(e)
				}
			}
			w.mu.Unlock()
		}
	})
	for began := time.Now(); time.Since(began) < 70*time.Second && !w.gaveUp(); {
		time.Sleep(time.Duration(rnd.Int64N(int64(2500 * time.Millisecond))))
		w.event(rnd)
	}
	w.mu.Lock()
	w.loss = 0
	w.mu.Unlock()
	time.Sleep(5 * time.Second)
	w.mu.Lock()
	var all []*simProc
	for _, e := range w.edges {
		all = append(all, e.all...)
		w.edges[0].full, w.edges[1].full = false, false
	}
	for _, p := range all {
		p.resume()
	}
	w.mu.Unlock()
	end()
	for _, p := range all {
		w.kill(p)
	}
	w.wg.Wait()
	for _, p := range all {
		if p.keeper != nil {
			<-p.keeper.Gone()
		}
	}
	return w.stats
}

// revive is with mu.
func (w *simWorld) revive(e *simEdge) {
	e.busy = true
	w.wg.Go(func() {
		time.Sleep(w.upTo(300 * time.Millisecond))
		if w.ctx.Err() == nil {
			w.start(e, nil)
		}
	})
}

// resume is with mu.
func (p *simProc) resume() {
	if p.paused != nil {
		close(p.paused)
		p.w.note("%s is resumed", p.name)
		p.paused, p.resumed = nil, time.Now()
	}
}

// simThemes are the events of schedules, by how often each comes: of those where all is well, and of others.
var simThemes = []string{"trrr   ", "tttttrrrrpppklmssdbf", "tttrrrrssssddbk", "ttrrraap", "tttrrrkkssbf", "ttttrrrspl"}

// event is one thing that happens.
func (w *simWorld) event(rnd *rand.Rand) {
	e := w.edges[rnd.IntN(2)]
	of := simThemes[0]
	if w.seed%3 != 0 {
		of = simThemes[1+w.seed/3%uint64(len(simThemes)-1)]
	}
	kind := of[rnd.IntN(len(of))]
	w.mu.Lock()
	defer w.mu.Unlock()
	var living []*simProc
	for _, p := range e.all {
		if !p.dead {
			living = append(living, p)
		}
	}
	if len(living) == 0 {
		return
	}
	p := living[rnd.IntN(len(living))]
	switch kind {
	case 't': // takeover
		if q := e.serving; q != nil && !e.busy && q.paused == nil {
			e.busy = true
			w.wg.Go(func() { w.takeover(q) })
		}
	case 'r': // rules
		i := rnd.IntN(len(simRoutes))
		w.write(func(t *simTable) { t.open[i] = !t.open[i] })
		w.note("%v open %t at %d", simRoutes[i], w.last().open[i], w.last().index)
		if w.last().open[i] {
			w.closed[i], w.opened[i] = "", time.Now()
		}
	case 'p': // pause
		if p.paused == nil {
			p.paused = make(chan struct{})
			w.note("%s is paused", p.name)
			d := time.Duration(rnd.Int64N(int64(6 * time.Second)))
			if rnd.IntN(4) == 0 {
				d = time.Duration(rnd.Int64N(int64(30 * time.Second)))
			}
			w.wg.Go(func() {
				select {
				case <-time.After(d):
				case <-w.ctx.Done():
				}
				w.mu.Lock()
				p.resume()
				w.mu.Unlock()
			})
		}
	case 'k': // kill
		if e.serving != nil && rnd.IntN(2) == 0 {
			p = e.serving
		}
		w.wg.Go(func() { w.kill(p) })
	case 'l': // leader
		w.book = nil
		w.term++
		d := time.Duration(rnd.Int64N(int64(8 * time.Second)))
		w.wg.Go(func() {
			time.Sleep(d)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.elect()
		})
	case 'm': // messages are lost
		w.loss = rnd.Float64() * rnd.Float64()
	case 's': // slow
		p.slow.Store(rnd.Int64N(int64(9 * time.Second)))
		w.note("%s takes up to %v for a table", p.name, time.Duration(p.slow.Load()))
	case 'd': // delay
		if w.delay = 2 * time.Millisecond; rnd.IntN(2) == 0 {
			w.delay = time.Duration(rnd.Int64N(int64(2500 * time.Millisecond)))
		}
	case 'b': // a link breaks
		if len(p.ends) > 0 {
			c := p.ends[rnd.IntN(len(p.ends))]
			w.note("a link of %s breaks", p.name)
			w.wg.Go(func() { c.Close() })
		}
	case 'f': // a disk is full

		e.full = !e.full
	case 'a': // the zone is away
		e.away = time.Now().Add(time.Duration(rnd.Int64N(int64(2*w.offline + 5*time.Second))))
		if rnd.IntN(3) > 0 { // or the other half closes the pair
			w.edges[0].away, w.edges[1].away = e.away, e.away
		}
		w.note("%s is cut off until %v", e.name, e.away.Sub(w.began))
	}
}
