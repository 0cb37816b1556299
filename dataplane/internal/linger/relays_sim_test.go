package linger_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
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
