package borderfuzz

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

// What is under way when a tightening comes into force: requests that have an answer begun and go on. They are held by
// an upstream until they are cut or let go, and the tightening is one that a single end has heard of, so that this end
// alone can cut them.

const (
	headerHold = "X-Hold"
	// holdFor is the offline lifetime of a sender's grants while only its receiver is told: longer than anybody waits here.
	holdFor = 20 * time.Second
	// cutBy is when a relay that goes on is a breach. What is promised is abortIn; a machine that is busy with other
	// things may take longer, and one that is never cut goes on for holdFor.
	cutBy = 10 * time.Second
)

// held is a request that its upstream answers with byte after byte.
type held struct {
	mu      sync.Mutex // covers at
	at      *upstream  // that holds it; nil: none (yet, or any more)
	release chan struct{}
}

func (h *held) by(u *upstream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = u
}

func (h *held) where() *upstream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

// hold answers until the request ends.
func (u *upstream) hold(w http.ResponseWriter, r *http.Request, h *held) {
	rc := http.NewResponseController(w)
	w.Header()[headerUpstream] = []string{u.region}
	w.WriteHeader(http.StatusOK)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	h.by(u)
	defer h.by(nil)
	for {
		if _, err := io.WriteString(w, "."); err != nil || rc.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-h.release:
			return
		}
	}
}

// half shuts a flow while requests are under way over it, tells one end, and sees them end. Which one that is also says
// how the other can not: a receiver that hears nothing of it and keeps its leave, because no rule of its own zone changed;
// a sender whose control plane is silent and whose grants last offline.
func (w *world) half(t testing.TB, rng *rand.Rand, senderAlone bool) {
	w.everybody(t)
	f, shut, ok := w.toShut(rng, senderAlone)
	if !ok {
		w.rules.heal()
		w.commit(t)
		w.everybody(t)
		if f, shut, ok = w.toShut(rng, senderAlone); !ok {
			t.Fatal("with everything open there is no flow to shut")
		}
	}
	for _, u := range w.ups {
		if state := int32(down); u.service == f.service {
			if u.region == f.to {
				state = well
			}
			if err := u.become(state); err != nil {
				t.Fatal(err)
			}
		}
	}
	from, to := w.at(f.from), w.at(f.to)
	if !senderAlone {
		from.leader.last(holdFor)
	}
	defer func() {
		from.leader.last(offline)
		to.leader.leaves(false)
		w.everybody(t)
	}()
	if !within(cutBy, func() bool { return w.granted(from, f, senderAlone) }) {
		return
	}
	shots, done := w.underWay(f)
	defer done()
	if !within(3*time.Second, func() bool { return holding(shots, to.region) > 0 }) {
		return // that serving may take longer is not this test's matter
	}
	shut()
	w.rules.index++
	deaf := to
	if senderAlone {
		to.leader.leaves(true)
	} else {
		deaf = from
		from.leader.become(silent)
	}
	w.commit(t)
	for _, e := range w.edges {
		if e != deaf {
			w.tell(t, e)
		}
	}
	began := time.Now()
	if !within(cutBy, func() bool { return holding(shots, to.region) == 0 }) {
		w.judge.breach("%d relays of %s from %s to %s go on %v after the pair was shut in force", holding(shots, to.region), f.service.host, f.from, f.to, time.Since(began))
	}
	w.stats.cut++
	w.stats.slowest = max(w.stats.slowest, time.Since(began))
}

// everybody is brought to the committed rules, by leaders that answer.
func (w *world) everybody(t testing.TB) {
	for _, e := range w.edges {
		if e.leader.become(answers); e.has != w.rules.index {
			w.tell(t, e)
		}
	}
}

func (w *world) at(region string) *edge {
	for _, e := range w.edges {
		if e.region == region {
			return e
		}
	}
	return nil
}

func within(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// toShut draws a flow, and how it is shut.
func (w *world) toShut(rng *rand.Rand, senderAlone bool) (f flow, shut func(), ok bool) {
	r := w.rules
	n := 0
	offer := func(g flow, how func()) {
		if n++; rng.IntN(n) == 0 {
			f, shut, ok = g, how, true
		}
	}
	for g := range r.flows() {
		if r.gone[g.to] || !senderAlone && zoneOf(g.from) != zoneOf(g.to) {
			continue // across zones no grant lasts offline: the relays would end with it
		}
		for _, p := range g.service.policies { // the API comes under one that does not have the pair
			other := *r
			other.policy = clone(r.policy)
			if other.policy[g.service] = p; !other.flows()[g] {
				offer(g, func() { r.policy[g.service] = p })
			}
		}
		if senderAlone {
			continue // without the pair the grant would end soon, and the relays with it
		}
		for how := leftOut; how < closings; how++ {
			for _, a := range arcs {
				if a.policy == r.policy[g.service] && a.from == g.from && a.to == g.to {
					offer(g, func() { r.state[a] = how })
				}
			}
		}
		if len(r.gone) == 0 {
			offer(g, func() { r.gone[g.from] = true })
		}
	}
	return f, shut, ok
}

// granted says whether a sender may relay over a flow, for as long as the test needs.
func (w *world) granted(from *edge, f flow, senderAlone bool) bool {
	for _, g := range from.grants.Held() {
		if g.To == f.to && g.Covers(w.rules.policy[f.service]) && (senderAlone || g.OfflineTTL >= holdFor) {
			return true
		}
	}
	return false
}

// underWay sends requests that their upstream holds. done lets them go and waits for them.
func (w *world) underWay(f flow) (shots []*shot, done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	from := w.at(f.from)
	var wg sync.WaitGroup
	for range 3 {
		s := &shot{edge: from, service: f.service, expect: good, held: &held{release: make(chan struct{})}}
		q := &request{method: "GET", target: "/v1/hold", host: f.service.host}
		q.add("X-Api-Key", from.keys[0])
		q.add(headerHold, "1")
		w.judge.start(s)
		w.stats.requests.Add(1)
		wg.Go(func() {
			for ctx.Err() == nil && s.served.Load() == nil { // a region that did not serve a moment ago is not tried at once
				(&client{w: w}).through(ctx, s, q)
				time.Sleep(20 * time.Millisecond)
			}
		})
		shots = append(shots, s)
	}
	return shots, func() {
		for _, s := range shots {
			close(s.held.release)
		}
		cancel()
		wg.Wait()
	}
}

func holding(shots []*shot, region string) (n int) {
	for _, s := range shots {
		if u := s.held.where(); u != nil && u.region == region {
			n++
		}
	}
	return n
}
