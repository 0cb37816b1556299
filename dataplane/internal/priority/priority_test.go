package priority_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/priority"
)

// upstream works on so many requests at once, each for about service; the others wait in line.
type upstream struct {
	workers chan struct{}
	service func() time.Duration
}

func newUpstream(workers int, service time.Duration) *upstream {
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	return &upstream{make(chan struct{}, workers), func() time.Duration { // ± 30 %
		mu.Lock()
		defer mu.Unlock()
		return service*7/10 + time.Duration(rng.Int64N(int64(service)*6/10))
	}}
}

func (u *upstream) serve() {
	u.workers <- struct{}{}
	time.Sleep(u.service())
	<-u.workers
}

// seen is what clients of one class saw.
type seen struct {
	mu   sync.Mutex
	took []time.Duration
	shed int
}

func (s *seen) p99() time.Duration {
	slices.Sort(s.took)
	if len(s.took) == 0 {
		return 0
	}
	return s.took[len(s.took)*99/100]
}

// offer sends a request of a class every gap, whatever became of the ones before, and returns when all have ended.
func offer(l *priority.Limiter, u *upstream, c priority.Class, gap, over time.Duration, from time.Duration) *seen {
	s, began := &seen{}, time.Now()
	rng := rand.New(rand.NewPCG(uint64(c), 7))
	var wg sync.WaitGroup
	for time.Since(began) < over {
		time.Sleep(time.Duration(rng.Int64N(2 * int64(gap))))
		count := time.Since(began) >= from
		wg.Go(func() {
			asked := time.Now()
			t, ok := l.Enter(context.Background(), c, priority.Bounds{})
			if ok {
				u.serve()
				t.Leave(priority.Answered)
			}
			if s.mu.Lock(); count && ok {
				s.took = append(s.took, time.Since(asked))
			} else if count {
				s.shed++
			}
			s.mu.Unlock()
		})
	}
	wg.Wait()
	return s
}

// The promise: free traffic offered at three times what the upstream can do takes nothing from platinum, and the upstream is
// kept busy all the same.
func TestLimiter_PlatinumDoesNotNoticeFree(t *testing.T) {
	for _, c := range []struct {
		workers int
		service time.Duration
	}{{20, 50 * time.Millisecond}, {4, 20 * time.Millisecond}, {100, 200 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			capacity := c.service / time.Duration(c.workers) // between two requests, at full work
			platinum := capacity * 10
			idle := offer(&priority.Limiter{}, newUpstream(c.workers, c.service), priority.Platinum, platinum, 60*time.Second, 0)
			var l priority.Limiter
			u := newUpstream(c.workers, c.service)
			var free, paid *seen
			var wg sync.WaitGroup
			wg.Go(func() { free = offer(&l, u, priority.Free, capacity/3, 60*time.Second, 10*time.Second) })
			wg.Go(func() { paid = offer(&l, u, priority.Platinum, platinum, 60*time.Second, 0) })
			wg.Wait()
			if idle.shed+paid.shed != 0 {
				t.Errorf("%d × %v: platinum shed %d idle and %d beside free, want none", c.workers, c.service, idle.shed, paid.shed)
			}
			if a, b := idle.p99(), paid.p99(); b > 2*a {
				t.Errorf("%d × %v: platinum's p99 is %v beside free, want at most twice the idle %v", c.workers, c.service, b, a)
			}
			work := float64(len(free.took)) / (50 / c.service.Seconds() * float64(c.workers))
			if work < 0.75 || free.shed == 0 {
				t.Errorf("%d × %v: free got %.0f %% of the upstream and %d turned away, want nearly all that platinum leaves", c.workers, c.service, 100*work, free.shed)
			}
			t.Logf("%d × %v: platinum p99 idle %v, beside free %v; free got %.0f %%, %+v", c.workers, c.service, idle.p99(), paid.p99(), 100*work, l.Stats())
			if s := l.Stats(); s.Under != 0 || s.Waiting != 0 {
				t.Errorf("at rest: got %+v, want nobody under way", s)
			}
		})
	}
}

// Under a shortage the classes are served from the top.
func TestLimiter_LowerClassesYieldFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l priority.Limiter
		u := newUpstream(20, 50*time.Millisecond)
		list := []priority.Class{priority.Free, priority.Bronze, priority.Silver, priority.Gold, priority.Platinum}
		got := make([]*seen, len(list))
		var wg sync.WaitGroup
		for i, c := range list { // each a third of what the upstream can do, together 5/3
			wg.Go(func() { got[i] = offer(&l, u, c, 7500*time.Microsecond, 30*time.Second, 5*time.Second) })
		}
		wg.Wait()
		part := func(i int) float64 { return float64(got[i].shed) / float64(got[i].shed+len(got[i].took)) }
		for i := range list {
			t.Logf("class %d: %.1f %% turned away, p99 %v", list[i], 100*part(i), got[i].p99())
			if i > 0 && part(i) > part(i-1)+0.02 {
				t.Errorf("class %d is turned away more than class %d: %.3f, %.3f", list[i], list[i-1], part(i), part(i-1))
			}
		}
		if part(4) > 0 || part(3) > 0.01 || part(0) < 0.5 {
			t.Errorf("got %.3f of free, %.3f of gold and %.3f of platinum turned away; want free to bear it", part(0), part(3), part(4))
		}
	})
}

// An upstream that becomes slow for good is not taken for a short one for ever, and one that fails is spared.
func TestLimiter_Adapts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l priority.Limiter
		u := newUpstream(20, 50*time.Millisecond)
		offer(&l, u, priority.Silver, 2*time.Millisecond, 20*time.Second, 0)
		fast := l.Stats().Limit
		if fast < 20 || fast > 60 {
			t.Errorf("with 20 workers the limit is %d, want it near them", fast)
		}
		u.service = func() time.Duration { return 200 * time.Millisecond }
		slow := offer(&l, u, priority.Silver, 8*time.Millisecond, 120*time.Second, 80*time.Second)
		if n := l.Stats().Limit; n < 16 {
			t.Errorf("an upstream that takes longer for good: the limit is %d, want it found out that 20 are worked on at once", n)
		}
		if work := float64(len(slow.took)) / (40 / 0.2 * 20); work < 0.75 {
			t.Errorf("it is used to %.0f %%", 100*work)
		}
		before := l.Stats().Limit
		for range 2000 {
			if tk, ok := l.Enter(context.Background(), priority.Platinum, priority.Bounds{}); ok {
				time.Sleep(10 * time.Millisecond)
				tk.Leave(priority.Failed)
			}
		}
		if n := l.Stats().Limit; n > before/2 || n < 4 {
			t.Errorf("after failures the limit is %d of %d, want it to fall to no less than 4", n, before)
		}
	})
}

// Whoever waits gets a place, is pushed out, or gives up; nobody is lost and no place either.
func TestLimiter_LosesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l priority.Limiter
		b := priority.Bounds{Min: 3, Max: 3}
		rng := rand.New(rand.NewPCG(3, 4))
		var mu sync.Mutex
		under, most, served, shed := 0, 0, 0, 0
		var wg sync.WaitGroup
		for range 5000 {
			mu.Lock()
			c, gap, work, leave := priority.Class(rng.IntN(5)), time.Duration(rng.Int64N(3e6)), time.Duration(rng.Int64N(20e6)), time.Duration(rng.Int64N(60e6))
			end := priority.End(rng.IntN(3))
			mu.Unlock()
			time.Sleep(gap)
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), leave)
				defer cancel()
				tk, ok := l.Enter(ctx, c, b)
				mu.Lock()
				if !ok {
					shed++
					mu.Unlock()
					return
				}
				under++
				most = max(most, under)
				mu.Unlock()
				time.Sleep(work)
				mu.Lock()
				under--
				served++
				mu.Unlock()
				tk.Leave(end)
			})
		}
		wg.Wait()
		if s := l.Stats(); most > 3 || served == 0 || served+shed != 5000 || s.Under != 0 || s.Waiting != 0 {
			t.Errorf("got %d served, %d turned away, %d at once, at rest %+v; want 5000 in all, 3 at once", served, shed, most, s)
		}
		var told int64
		for _, n := range l.Stats().Shed {
			told += n
		}
		if int(told) != shed {
			t.Errorf("it tells of %d turned away, want %d", told, shed)
		}
	})
}

func TestSeats_KeepShares(t *testing.T) {
	s := priority.NewSeats(10)
	for c, want := range map[priority.Class]int{priority.Free: 6, priority.Gold: 9, priority.Platinum: 10} {
		n := 0
		for s.Take(c) {
			n++
		}
		if n != want {
			t.Errorf("class %d took %d of 10 seats, want %d", c, n, want)
		}
		for range n {
			s.Leave()
		}
	}
	shed := int64(0)
	for _, c := range priority.Classes() {
		shed += s.Shed(c)
	}
	if s.Taken() != 0 || s.Most() != 10 || shed != 3 {
		t.Errorf("got %d taken and %d shed, want 0 and 3", s.Taken(), shed)
	}
}

func TestLimiter_EnterAllocatesNothing(t *testing.T) {
	var l priority.Limiter
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		tk, _ := l.Enter(ctx, priority.Gold, priority.Bounds{})
		tk.Leave(priority.Answered)
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkLimiter(b *testing.B) {
	var l priority.Limiter
	b.ReportAllocs()
	for b.Loop() {
		tk, _ := l.Enter(context.Background(), priority.Gold, priority.Bounds{})
		tk.Leave(priority.Answered)
	}
}

// What can go without has what is free and nobody waits for: of the least class's share, and behind whoever is in line.
func TestLimiter_SpareIsWhatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l priority.Limiter
		one, ten := priority.Bounds{Min: 1, Max: 1}, priority.Bounds{Min: 10, Max: 10}
		first, ok := l.Enter(t.Context(), priority.Gold, one)
		if !ok {
			t.Fatal("no place at an idle upstream")
		}
		if _, ok := l.Spare(one); ok {
			t.Error("got a second place of one")
		}
		var second priority.Ticket
		var wg sync.WaitGroup
		wg.Go(func() { second, ok = l.Enter(t.Context(), priority.Gold, one) })
		synctest.Wait()
		if _, ok := l.Spare(ten); ok {
			t.Error("went before one that waits")
		}
		first.Leave(priority.Untold)
		wg.Wait()
		if !ok {
			t.Fatal("who waited got nothing")
		}
		var spare []priority.Ticket
		for range 20 {
			if got, ok := l.Spare(ten); ok {
				spare = append(spare, got)
			}
		}
		if s := l.Stats(); len(spare) != 5 || s.Under != 6 || s.Shed != [5]int64{} {
			t.Errorf("got %d beside one, %+v, want five, the least class's share of ten, and nobody turned away", len(spare), s)
		}
		for _, got := range append(spare, second) {
			got.Leave(priority.Untold)
		}
		if s := l.Stats(); s.Under != 0 {
			t.Errorf("%d places are not given back", s.Under)
		}
	})
}
