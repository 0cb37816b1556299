package failover_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/upstream"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/table"
)

// rig is a router of eu-west whose pair to eu-central is open and granted, so that leaving the region is always a temptation.
type rig struct {
	*failover.Router
	t      *testing.T
	h      *policy.Holder
	pages  *pages
	m      *failover.Monitor
	ctx    context.Context
	left   []upstream.Place
	leftMu sync.Mutex
}

func newRig(t *testing.T, api table.API, names failover.Names) *rig {
	r := &rig{t: t, h: &policy.Holder{}, pages: &pages{down: map[string]bool{}}}
	r.h.Swap(apiTable(t, 1, api, "eu-central"))
	m, err := failover.New(failover.Config{Tables: r.h, Prober: r.pages, Names: names, Logger: slog.New(slog.DiscardHandler), Left: func(at upstream.Place) {
		r.leftMu.Lock()
		defer r.leftMu.Unlock()
		r.left = append(r.left, at)
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	r.m, r.ctx = m, ctx
	r.Router = failover.NewRouter(m, start(t, &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}, r.h), "eu-west")
	time.Sleep(1500 * time.Millisecond)
	return r
}

func (r *rig) api() *policy.API { return r.h.Load().API("orders.test") }

// next is where one request goes: a target's name, "eu-central", "busy" or "nowhere".
func (r *rig) next(route *policy.Route) (string, failover.Candidate) {
	a := r.Start(r.api(), route, false)
	c, ok := a.Next(r.ctx)
	switch {
	case !ok && a.Busy():
		return "busy", c
	case !ok:
		return "nowhere", c
	case c.Home():
		return place(c.Target), c
	}
	return c.To, c
}

func place(t *failover.Target) string {
	if t.At.Pin.IsValid() {
		return t.At.Pin.String()
	}
	return t.At.Base
}

// answer is a request that is answered at once.
func (r *rig) answer(c failover.Candidate, e failover.Event) {
	if c.Home() {
		c.Target.Begin().End(e)
	}
	c.Leave()
}

var three = []string{"http://a", "http://b", "http://c"}

func TestRouter_TakesTheLessBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three}, nil)
		held := map[string]int{}
		for range 300 {
			where, _ := r.next(nil)
			held[where]++
		}
		for _, url := range three {
			if n := held[url]; n < 90 || n > 110 {
				t.Errorf("300 requests at once: got %v, want a third each", held)
			}
		}
		// One that holds what it gets comes to hold no more than the others.
		r = newRig(t, table.API{Targets: three}, nil)
		slow, got := 0, map[string]int{}
		for range 2000 {
			where, c := r.next(nil)
			got[where]++
			if where == "http://b" {
				slow++ // never answered
				continue
			}
			r.answer(c, failover.Answered)
		}
		if slow > 10 || got["http://a"] < 800 {
			t.Errorf("one of three answers nothing: got %v", got)
		}
	})
}

func TestRouter_InOrderGoesToTheFirstThatIsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three, Dispatch: table.Dispatch{Choice: "in-order"}}, nil)
		for range 50 {
			if where, _ := r.next(nil); where != "http://a" { // held, and still the first
				t.Fatalf("got %s, want http://a", where)
			}
		}
		r.pages.set("http://a/healthz", true)
		time.Sleep(3 * time.Second)
		for range 50 {
			if where, c := r.next(nil); where != "http://b" {
				t.Fatalf("the first is down: got %s, want http://b", where)
			} else {
				r.answer(c, failover.Answered)
			}
		}
	})
}

func (p *pages) set(url string, down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down[url] = down
}

// No more than max_requests are at a target, those beyond it wait in order, those beyond that are told; and with the pair
// open and granted all the while, none of it leads out of the region.
func TestRouter_LimitsOpenNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:2], Dispatch: table.Dispatch{MaxRequests: 2, MaxWaiting: 3, MaxWait: 2 * time.Second}}, nil)
		var held []failover.Candidate
		for range 4 {
			where, c := r.next(nil)
			if !c.Home() {
				t.Fatalf("got %s with places free", where)
			}
			held = append(held, c)
		}
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				where, c := r.next(nil)
				mu.Lock()
				defer mu.Unlock()
				if i < 2 && !c.Home() || i == 2 && where != "busy" {
					t.Errorf("waiter %d: got %s", i, where)
				}
				order = append(order, i)
			})
			time.Sleep(10 * time.Millisecond)
		}
		began := time.Now()
		if where, _ := r.next(nil); where != "busy" || time.Since(began) != 0 {
			t.Errorf("more than may wait: got %s after %v, want busy at once", where, time.Since(began))
		}
		time.Sleep(time.Second)
		held[2].Leave()
		time.Sleep(10 * time.Millisecond)
		held[0].Leave()
		wg.Wait()
		if !slices.Equal(order, []int{0, 1, 2}) {
			t.Errorf("places went to %v, want first come, first served", order)
		}
		if d := time.Since(began); d < 1900*time.Millisecond || d > 2*time.Second {
			t.Errorf("the last of them waited %v, want 2 s less the 10 ms it came before", d)
		}
	})
}

// A target that waits for nobody's sake: the others are down while requests wait, and then it is the pair's turn.
func TestRouter_WhoWaitsWhenAllGoDownLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:1], Dispatch: table.Dispatch{MaxRequests: 1, MaxWaiting: 3, MaxWait: 3 * time.Second}}, nil)
		_, c := r.next(nil)
		done := make(chan string)
		go func() { where, _ := r.next(nil); done <- where }()
		time.Sleep(time.Second)
		r.pages.set("http://a/healthz", true)
		for range 3 {
			c.Target.Begin().End(failover.Failed)
		}
		if where := <-done; where != "eu-central" {
			t.Errorf("the only target went down: got %s, want the pair", where)
		}
	})
}

// Places are conserved: whatever is asked, answered, given up and taken away, no target has more than its limit, nobody waits
// while places are free, and in the end all are.
// Whoever is of a higher rank waits before all others, and where the line is full the last of a lower one goes for it: of one
// client who asks for much nobody else is to notice more than a place's time.
func TestRouter_ThoseOfLowerRanksYieldInTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:1], Dispatch: table.Dispatch{MaxRequests: 1, MaxWaiting: 3, MaxWait: 3 * time.Second}}, nil)
		ask := func(rank int) (failover.Candidate, string) {
			a := r.Start(r.api(), nil, false)
			a.Ranked(rank)
			c, ok := a.Next(r.ctx)
			switch {
			case !ok && a.Busy():
				return c, "busy"
			case !ok:
				return c, "nowhere"
			case !c.Home():
				return c, c.To
			}
			return c, "home"
		}
		first, said := ask(0)
		if said != "home" {
			t.Fatal(said)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(name string, rank int) {
			wg.Go(func() {
				c, said := ask(rank)
				mu.Lock()
				order = append(order, name+" "+said)
				mu.Unlock()
				if said == "home" {
					time.Sleep(10 * time.Millisecond)
					c.Leave()
				}
			})
			synctest.Wait()
		}
		wait("a", 0)
		wait("b", 0)
		wait("c", 0)
		wait("d", 0) // too many wait
		wait("high", 4)
		wait("middle", 2)
		wait("high too", 4)
		wait("e", 0)
		first.Leave()
		wg.Wait()
		if got, want := fmt.Sprint(order), "[d busy c busy b busy a busy e busy high home high too home middle home]"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if c, said := ask(0); said != "home" {
			t.Errorf("afterwards: %s", said)
		} else {
			c.Leave()
		}
	})
}

// Of a target's places those of lower classes leave some for who is above them, while anybody is: else all are theirs.
func TestRouter_LowerClassesLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10
		r := newRig(t, table.API{Targets: three[:1], Dispatch: table.Dispatch{MaxRequests: limit, MaxWaiting: 5, MaxWait: time.Second}}, nil)
		ask := func(rank, share int) (c failover.Candidate, ok bool) {
			a := r.Start(r.api(), nil, false)
			a.Ranked(rank)
			a.Shares(share)
			c, ok = a.Next(r.ctx)
			return c, ok && c.Home()
		}
		var held []failover.Candidate
		fill := func(rank, share, want int) {
			t.Helper()
			for n := 0; ; n++ {
				c, ok := ask(rank, share)
				if !ok {
					if n != want {
						t.Errorf("rank %d with %d hundredths took %d places, want %d", rank, share, n, want)
					}
					return
				}
				held = append(held, c)
			}
		}
		leave := func() {
			for _, c := range held {
				c.Leave()
			}
			held = nil
		}
		fill(0, 60, 10) // nobody is above
		leave()
		if c, ok := ask(4, 100); ok {
			c.Leave()
		}
		fill(0, 60, 6)
		fill(1, 70, 1)
		fill(2, 80, 1)
		fill(3, 90, 1)
		fill(4, 100, 1)
		// Whoever waits gets a place when his class has one, and not before.
		var wg sync.WaitGroup
		var got atomic.Int32
		wg.Go(func() {
			if c, ok := ask(0, 60); ok {
				got.Add(1)
				c.Leave()
			}
		})
		synctest.Wait()
		for n := range 4 { // six are left
			held[n].Leave()
			synctest.Wait()
			if got.Load() != 0 {
				t.Fatalf("a lower class has a place with %d of %d taken", limit-n-1, limit)
			}
		}
		held[4].Leave()
		wg.Wait()
		if got.Load() != 1 {
			t.Error("it got none with five taken")
		}
		held = held[5:]
		leave()
		time.Sleep(2 * time.Minute)
		fill(0, 60, 10)
		leave()
	})
}

func TestRouter_PlacesAreConserved(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			limit := 1 + rnd.IntN(3)
			r := newRig(t, table.API{Targets: three, Dispatch: table.Dispatch{MaxRequests: limit, MaxWaiting: 6, MaxWait: 500 * time.Millisecond}}, nil)
			var wg sync.WaitGroup
			served, busy := 0, 0
			var mu sync.Mutex
			for i := range 120 {
				at := time.Duration(rnd.IntN(3000)) * time.Millisecond
				takes, patience := time.Duration(rnd.IntN(300))*time.Millisecond, time.Duration(50+rnd.IntN(1000))*time.Millisecond
				rank := rnd.IntN(5)
				wg.Go(func() {
					time.Sleep(at)
					ctx, cancel := context.WithTimeout(r.ctx, patience)
					defer cancel()
					a := r.Start(r.api(), nil, false)
					a.Ranked(rank)
					a.Shares([]int{60, 70, 80, 90, 100}[rank])
					c, ok := a.Next(ctx)
					if i%40 == 0 {
						r.pages.set("http://b/healthz", i%80 == 0)
					}
					mu.Lock()
					if ok && c.Home() {
						served++
					} else if a.Busy() {
						busy++
					}
					mu.Unlock()
					if !ok {
						return
					}
					for _, rep := range r.m.Reports() {
						if rep.Busy > int64(limit) {
							t.Errorf("seed %d: %s has %d requests, at most %d may be", seed, rep.Target, rep.Busy, limit)
						}
					}
					time.Sleep(takes)
					r.answer(c, failover.Answered)
				})
			}
			wg.Wait()
			for _, rep := range r.m.Reports() {
				if rep.Busy != 0 || rep.Waiting != 0 {
					t.Errorf("seed %d: at the end %s has %d requests and %d wait", seed, rep.Target, rep.Busy, rep.Waiting)
				}
			}
			if served < 40 {
				t.Errorf("seed %d: %d served, %d busy: too tame", seed, served, busy)
			}
		})
	}
}

// An outlier is taken last of the region's own, and all the same before any other region.
func TestRouter_OutliersComeLastAndOpenNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:2]}, nil)
		erred := func(n int) (at map[string]int) {
			at = map[string]int{}
			for range n {
				where, c := r.next(nil)
				at[where]++
				if where == "http://b" {
					r.answer(c, failover.Erred) // 500: an answer, so its health is well
				} else {
					r.answer(c, failover.Answered)
				}
				time.Sleep(10 * time.Millisecond)
			}
			return at
		}
		if at := erred(600); at["http://b"] < 100 || at["eu-central"] > 0 {
			t.Errorf("before they are compared: got %v, want both", at)
		}
		if at := erred(500); at["http://b"] > 0 || at["http://a"] != 500 {
			t.Errorf("one of two fails all: got %v, want the other alone", at)
		}
		r.pages.set("http://a/healthz", true)
		time.Sleep(3 * time.Second)
		where, last := r.next(nil)
		r.answer(last, failover.Erred)
		if where != "http://b" {
			t.Errorf("the other is down: got %s, want the outlier, and not another region", where)
		}
		r.pages.set("http://a/healthz", false)
		time.Sleep(time.Minute)
		if at := erred(50); at["http://b"] == 0 {
			t.Errorf("30 s later: got %v, want it compared again", at)
		}
	})
}

func TestRouter_ANewTargetStartsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := table.Dispatch{SlowStart: 10 * time.Second}
		r := newRig(t, table.API{Targets: three[:1], Dispatch: d}, nil)
		for range 20 {
			if where, c := r.next(nil); where != "http://a" { // alone at its start
				t.Fatalf("got %s, want http://a", where)
			} else {
				r.answer(c, failover.Answered)
			}
		}
		r.h.Swap(apiTable(t, 1, table.API{Targets: three[:2], Dispatch: d}, "eu-central"))
		time.Sleep(time.Second)
		share := func() (n int) {
			for range 1000 {
				where, c := r.next(nil)
				if where == "http://b" {
					n++
				}
				r.answer(c, failover.Answered)
			}
			return n
		}
		if n := share(); n < 20 || n > 200 {
			t.Errorf("a second after it came: %d of 1000, want some", n)
		}
		time.Sleep(4 * time.Second)
		if n := share(); n < 120 || n > 400 {
			t.Errorf("five seconds after it came: %d of 1000, want a quarter", n)
		}
		time.Sleep(6 * time.Second)
		if n := share(); n < 400 || n > 600 {
			t.Errorf("after its slow start: %d of 1000, want half", n)
		}
	})
}

func TestRouter_TheAPISaysHowHealthIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:1], HealthFailures: 1, HealthGoodFor: time.Minute}, nil)
		_, c := r.next(nil)
		r.answer(c, failover.Failed)
		if p := c.Target.State().Phase; p != failover.Ejected {
			t.Fatalf("one failure of one: %v, want ejected", p)
		}
		time.Sleep(50 * time.Second)
		if p := c.Target.State().Phase; p != failover.Ejected {
			t.Errorf("good for 50 s of a minute: %v, want ejected", p)
		}
		time.Sleep(20 * time.Second)
		if p := c.Target.State().Phase; p != failover.Healthy {
			t.Errorf("good for more than a minute: %v, want healthy", p)
		}
	})
}

// book is what names mean.
type book struct {
	mu      sync.Mutex
	addrs   map[string][]netip.Addr
	wanted  []string
	changed chan struct{}
}

func (b *book) Want(hosts []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = hosts
}

func (b *book) Addrs(host string) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addrs[host]
}

func (b *book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *book) set(host string, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[host] = nil
	for _, a := range addrs {
		b.addrs[host] = append(b.addrs[host], netip.MustParseAddr(a))
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

func TestRouter_EachAddressOfANameIsATarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{addrs: map[string][]netip.Addr{}, changed: make(chan struct{})}
		r := newRig(t, table.API{Targets: []string{"http://orders.internal:8080", "http://192.0.2.9:80"}, Dispatch: table.Dispatch{Discovery: "dns"}}, b)
		places := func() (out []string) {
			for range 60 {
				where, c := r.next(nil)
				r.answer(c, failover.Answered)
				if !slices.Contains(out, where) {
					out = append(out, where)
				}
			}
			slices.Sort(out)
			return out
		}
		synctest.Wait() // until the monitor has said which names it wants
		if !slices.Equal(b.wanted, []string{"orders.internal"}) {
			t.Errorf("names asked for: %v, want orders.internal", b.wanted)
		}
		if got := places(); !slices.Equal(got, []string{"http://192.0.2.9:80", "http://orders.internal:8080"}) {
			t.Errorf("before the name is known: %v, want it dialled by name", got)
		}
		b.set("orders.internal", "192.0.2.1", "192.0.2.2")
		time.Sleep(time.Second)
		if got := places(); !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2", "http://192.0.2.9:80"}) {
			t.Errorf("known: %v, want each address", got)
		}
		// One leaves while a request is under way there: that one ends as it is, and nobody new comes.
		var under failover.Candidate
		for where := ""; where != "192.0.2.1"; {
			where, under = r.next(nil)
			if where != "192.0.2.1" {
				r.answer(under, failover.Answered)
			}
		}
		b.set("orders.internal", "192.0.2.2", "192.0.2.3")
		time.Sleep(time.Second)
		if got := places(); !slices.Equal(got, []string{"192.0.2.2", "192.0.2.3", "http://192.0.2.9:80"}) {
			t.Errorf("another address: %v", got)
		}
		if !r.m.Has(under.Target) {
			t.Error("what lasts at that address would be broken off, although the API names its upstream as before")
		}
		r.answer(under, failover.Answered)
		r.leftMu.Lock()
		defer r.leftMu.Unlock()
		var left []string
		for _, at := range r.left {
			left = append(left, fmt.Sprint(at.Base, " ", at.Pin))
		}
		if want := []string{"http://orders.internal:8080 invalid IP", "http://orders.internal:8080 192.0.2.1"}; !slices.Equal(left, want) {
			t.Errorf("told as left: %v, want %v", left, want)
		}
		if len(r.m.Reports()) != 3 {
			t.Errorf("%d targets remembered, want 3", len(r.m.Reports()))
		}
	})
}

// A name in another script is resolved as it is dialled and verified, in ASCII: no resolver takes the other form.
func TestRouter_DiscoversANameOfAnotherScript(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{addrs: map[string][]netip.Addr{}, changed: make(chan struct{})}
		r := newRig(t, table.API{Targets: []string{"http://bestellungen.bücher.test:8080"}, Dispatch: table.Dispatch{Discovery: "dns"}}, b)
		synctest.Wait()
		if !slices.Equal(b.wanted, []string{"bestellungen.xn--bcher-kva.test"}) {
			t.Errorf("names asked for: %v, want it in ASCII", b.wanted)
		}
		b.set("bestellungen.xn--bcher-kva.test", "192.0.2.1")
		time.Sleep(time.Second)
		if where, _ := r.next(nil); where != "192.0.2.1" {
			t.Errorf("the request goes to %s, want the address that was found", where)
		}
	})
}

func TestRouter_HedgesAtHomeWhereTheRouteAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:2], Dispatch: table.Dispatch{MaxRequests: 1}}, nil)
		a := r.Start(r.api(), nil, false)
		first, ok := a.Next(r.ctx)
		if !ok || !a.CanHedgeHome() {
			t.Fatal("two well: want a second to try")
		}
		second, ok := a.HedgeHome()
		if !ok || second.Target == first.Target {
			t.Fatalf("got %v, want the other one", second)
		}
		if a.CanHedgeHome() {
			t.Error("both tried: want no third")
		}
		b := r.Start(r.api(), nil, false)
		if c, ok := b.HedgeHome(); ok {
			t.Errorf("no place free: a hedge got %v", c)
		}
		first.Leave()
		second.Leave()
	})
}

// BenchmarkRouter_Next is the choice among three targets that are well.
func BenchmarkRouter_Next(b *testing.B) {
	h := &policy.Holder{}
	h.Swap(edgeTable(b, 1, three))
	m, err := failover.New(failover.Config{Tables: h, Prober: &pages{down: map[string]bool{}}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	r := failover.NewRouter(m, nil, "eu-west")
	api := h.Load().API("orders.test")
	b.ReportAllocs()
	for b.Loop() {
		a := r.Start(api, nil, false)
		c, ok := a.Next(b.Context())
		if !ok {
			b.Fatal("nowhere")
		}
		c.Target.Begin().End(failover.Answered)
		c.Leave()
	}
}

// A place is waited for no longer than the route gives the whole request, whatever the API says of waiting.
func TestRouter_WaitsNoLongerThanTheRouteGives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: three[:1], Dispatch: table.Dispatch{MaxRequests: 1, MaxWaiting: 3, MaxWait: 30 * time.Second}}, nil)
		_, c := r.next(nil)
		defer c.Leave()
		for _, route := range []table.Route{{Timeout: 300 * time.Millisecond, Deadline: time.Second}, {Deadline: 300 * time.Millisecond}} {
			began := time.Now()
			if where, _ := r.next(&policy.Route{Route: route}); where != "busy" || time.Since(began) != 300*time.Millisecond {
				t.Errorf("%+v: got %s after %v, want busy after 300ms", route, where, time.Since(began))
			}
		}
	})
}

// What an API of another zone names is told from what the own zone names, and what the region's networks bound is another
// place when they change: neither shares connections with the other.
func TestMonitor_PlacesSayWhoseTheyAreAndWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, table.API{Targets: []string{"http://a"}}, nil)
		_, c := r.next(nil)
		if at := c.Target.At; at.Zone != "" || at.Within != "" {
			t.Errorf("the own zone's: got %+v", at)
		}
		c.Leave()
		a := r.Start(&policy.API{API: table.API{Name: "orders", Zone: "us", Foreign: true, Targets: []string{"http://a"}}}, nil, false)
		if c, ok := a.Next(r.ctx); !ok || !c.Home() || c.Target.At.Zone != "us" {
			t.Errorf("another zone's: got %+v %v", c, ok)
		} else {
			c.Leave()
		}
	})
}
