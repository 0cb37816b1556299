package borderfuzz

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/lifecycle/porttest"
)

// world is the installation, and who makes trouble in it.
type world struct {
	seed  uint64
	judge *judge
	meter meter
	zones map[string]*zone
	edges []*edge
	ups   []*upstream

	rules *rules // committed; the driver's alone
	stats stats

	// steady has, by edge and service, since when the same upstreams that may serve it do: 0 while none does.
	steady [4][5]atomic.Int64
	last   [4][5]string             // what steady rests on; the driver's alone
	abroad atomic.Pointer[[][2]int] // edges and services that only another region can serve
	start  time.Time
	turns  int // of trouble, so far

	changing atomic.Bool  // trouble is being made right now
	starved  atomic.Int64 // when the machine last let this process wait, ns since start
	waits    atomic.Int64 // how often it did

	forgersMu sync.Mutex // covers forgers
	forgers   map[*edge]*http.Transport
}

type stats struct {
	requests, answered, relayed, wanted, served, forged, refused atomic.Int64
	events                                                       map[string]int
	cut                                                          int           // flows shut with requests under way; the driver's alone
	slowest                                                      time.Duration // until the last of such a request had ended
}

func (w *world) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, stream)) }

func (w *world) upstream(s *service, region string) *upstream {
	for _, u := range w.ups {
		if u.service == s && u.region == region {
			return u
		}
	}
	return nil
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{seed: seed, judge: newJudge(), zones: map[string]*zone{}, forgers: map[*edge]*http.Transport{}, rules: firstRules(), start: time.Now(), stats: stats{events: map[string]int{}}}
	w.meter.judge = w.judge
	w.judge.waited = func(since time.Time) bool { return w.starved.Load() > since.Sub(w.start).Nanoseconds() }
	in := identitytest.New(t, "test.example", "emea", "us")
	for _, s := range services {
		for _, p := range places {
			u := &upstream{service: s, region: p.region, judge: w.judge}
			if err := u.listen(porttest.Addr(t)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { u.become(down) })
			w.ups = append(w.ups, u)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var starts []func()
	for _, p := range places {
		if w.zones[p.zone] == nil {
			w.zones[p.zone] = newZone(t, p.zone)
		}
	}
	for _, p := range places {
		e, l := w.newEdge(t, in, p)
		w.edges = append(w.edges, e)
		starts = append(starts, func() { e.run(ctx, t, &wg, l) })
	}
	w.commit(t)
	for i, e := range w.edges {
		w.tell(t, e) // before it runs: no door opens without a table
		starts[i]()
	}
	w.starved.Store(-settled.Nanoseconds())
	wg.Go(func() { w.starve(ctx) })
	w.need(t, w.rng(2000))
	w.need(t, w.rng(2001))
	w.look()
	return w
}

// commit puts the rules in the leaders' hands. What they permit anew counts as permitted before anybody hears of
// it; what they do not permit any more ends with the grants, if nobody hears of it.
func (w *world) commit(t testing.TB) {
	committed := *w.rules
	committed.state, committed.policy, committed.gone = clone(w.rules.state), clone(w.rules.policy), clone(w.rules.gone)
	now := committed.flows()
	for f := range now {
		w.judge.open(f)
	}
	for _, e := range w.edges {
		e.leader.mu.Lock()
		e.leader.rules = &committed
		for _, f := range w.shutNow(now) {
			if f.from == e.region {
				w.judge.shut(f, latest(e.leader.ends[f.to], time.Now()), false)
			}
		}
		e.leader.mu.Unlock()
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// shutNow are the flows that were permitted once and are not by the rules.
func (w *world) shutNow(permitted map[flow]bool) []flow {
	w.judge.truth.mu.RLock()
	defer w.judge.truth.mu.RUnlock()
	var out []flow
	for f := range w.judge.truth.flows {
		if !permitted[f] {
			out = append(out, f)
		}
	}
	return out
}

// tell brings an edge to the committed rules, as its table's arrival does: in force, what it forbids cut, then
// acknowledged. From here on it is in force for all flows that it ends.
func (w *world) tell(t testing.TB, e *edge) {
	pairs, err := w.rules.pairs(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tab, err := e.table(w.rules, pairs)
	if err != nil {
		t.Fatal(err)
	}
	e.tables.Swap(tab)
	e.has = w.rules.index
	if e.client != nil {
		e.client.Enforce()
		e.server.Enforce()
	}
	for _, f := range w.shutNow(w.rules.flows()) {
		// An edge that has left the registry is not told so by its table: others refuse it.
		if f.to == e.region || f.from == e.region && !w.rules.gone[e.region] {
			w.judge.shut(f, time.Now(), f.to == e.region)
		}
	}
}

// look notes what may be served where: for the liveness half of the judgement.
func (w *world) look() {
	now := time.Since(w.start).Nanoseconds()
	flows := w.rules.flows()
	var abroad [][2]int
	for i, e := range w.edges {
		for j, s := range services {
			rests, any := "", false
			if s.zone == e.zone {
				u := w.upstream(s, e.region)
				rests, any = fmt.Sprint(w.rules.epoch, " ", u.state.Load()), u.serves() // a recovery ends all grants
				for _, to := range w.edges {
					ok := flows[flow{s, e.region, to.region}] && !w.rules.gone[to.region] && e.leader.mode == answers && to.leader.mode == answers && e.has == w.rules.index && to.has == w.rules.index && w.upstream(s, to.region).serves()
					rests += fmt.Sprint(ok, w.upstream(s, to.region).state.Load())
					any = any || ok
				}
			}
			if any && !w.upstream(s, e.region).serves() {
				abroad = append(abroad, [2]int{i, j})
			}
			switch {
			case !any:
				w.steady[i][j].Store(0)
			case rests != w.last[i][j] || w.steady[i][j].Load() == 0:
				w.steady[i][j].Store(now)
			}
			w.last[i][j] = rests
		}
	}
	w.abroad.Store(&abroad)
}

// settled is how long the same upstreams must have been there before a failure counts.
const settled = 2500 * time.Millisecond

// due says since when a request at an edge is due an answer, 0 if none is.
func (w *world) due(edge, service int) int64 {
	since := w.steady[edge][service].Load()
	now := time.Since(w.start).Nanoseconds()
	if since == 0 || w.changing.Load() || now-since < settled.Nanoseconds() || now-w.starved.Load() < settled.Nanoseconds() {
		return 0
	}
	return since
}

// starve notes when the machine does other things: who is not given the processor answers nobody, and grants of a
// second, questions and signs of life end meanwhile. That is no failure to serve.
func (w *world) starve(ctx context.Context) {
	for ctx.Err() == nil {
		const nap, late = 20 * time.Millisecond, 200 * time.Millisecond
		began := time.Now()
		time.Sleep(nap)
		if time.Since(began) > nap+late {
			w.waits.Add(1)
			w.starved.Store(time.Since(w.start).Nanoseconds())
		}
	}
}

// need makes some service depend on another region: a campaign in which nobody needs one shows nothing.
func (w *world) need(t testing.TB, rng *rand.Rand) {
	flows := w.rules.flows()
	if len(flows) < 4 {
		w.rules.heal()
		w.commit(t)
		flows = w.rules.flows()
	}
	w.everybody(t)
	for f := range flows {
		if rng.IntN(len(flows)) > 0 {
			continue
		}
		for u, state := range map[*upstream]int32{w.upstream(f.service, f.from): down, w.upstream(f.service, f.to): well} {
			if err := u.become(state); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
}

// trouble makes one change.
func (w *world) trouble(t testing.TB, rng *rand.Rand) {
	what := ""
	w.changing.Store(true)
	defer func() {
		w.stats.events[what]++
		if w.look(); len(*w.abroad.Load()) == 0 {
			w.need(t, rng)
			w.look()
		}
		w.changing.Store(false)
	}()
	w.turns++
	switch n := rng.IntN(23); {
	case n == 20 || w.turns == 2: // one end alone hears of a tightening; also in the shortest campaign
		what = "sender alone"
		w.half(t, rng, true)
	case n == 21 || w.turns == 4:
		what = "receiver alone"
		w.half(t, rng, false)
	case n == 22 || w.turns == 3:
		what = "erring leader"
		w.err(t, rng)
	case n < 9: // an upstream changes; most APIs are kept up in one region and down in another
		u := w.ups[rng.IntN(len(w.ups))]
		state := int32([]int{well, well, well, down, down, down, down, busy, slow, paused}[rng.IntN(10)])
		what = fmt.Sprintf("upstream %d", state)
		if err := u.become(state); err != nil {
			t.Fatal(err)
		}
		if state != well && state != slow { // then its neighbours are well, mostly
			for _, other := range w.ups {
				if other.service == u.service && other != u && rng.IntN(4) > 0 {
					if err := other.become(well); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	case n < 15: // the rules change
		what = w.rules.change(rng)
		if rng.IntN(12) == 0 {
			w.rules.heal()
			what = "heal"
		}
		w.commit(t)
		for _, i := range rng.Perm(len(w.edges)) {
			if rng.IntN(8) > 0 { // the others hear of it later, or never before the next
				w.tell(t, w.edges[i])
			}
		}
	case n < 17: // a leader falls silent
		what = "silent"
		w.edges[rng.IntN(len(w.edges))].leader.become(silent)
	default: // what was cut off is back
		what = "catch up"
		w.everybody(t)
	}
}
