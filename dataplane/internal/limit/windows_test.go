package limit_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/limit"
)

var acme = limit.ID{Customer: "acme", Subscription: "main", Plan: "gold"}

func terms(concurrent int, windows ...limit.Window) *limit.Terms {
	t := &limit.Terms{N: len(windows), Concurrent: concurrent}
	copy(t.Windows[:], windows)
	return t
}

// Within any time of a window's length, at most its burst and its requests pass; and one that keeps asking gets all of them.
func TestEnter_KeepsEachWindow(t *testing.T) {
	for _, windows := range [][]limit.Window{
		{{Requests: 100, Per: time.Minute}},
		{{Requests: 100, Per: time.Minute, Burst: 1}, {Requests: 1000, Per: time.Hour}},
		{{Requests: 10, Per: time.Second}, {Requests: 60, Per: time.Minute, Burst: 30}, {Requests: 400, Per: time.Hour}, {Requests: 1000, Per: 24 * time.Hour}},
	} {
		m, ts := limit.NewMap(), terms(0, windows...)
		rng := rand.New(rand.NewPCG(1, 2))
		var taken []time.Duration
		end := 3 * windows[len(windows)-1].Per
		for now := time.Duration(0); now < end; now += time.Duration(rng.Int64N(int64(end / 20_000))) {
			e := m.Enter(acme, now, ts, limit.Whole)
			if e.OK() {
				taken = append(taken, now)
				e.Pass().Leave()
				continue
			}
			if wait := e.Result[e.Refused].RetryAfter; wait <= 0 {
				t.Fatalf("refused at %v with nothing to wait for", now)
			}
		}
		for _, w := range windows {
			burst := w.Burst
			if burst == 0 {
				burst = w.Requests
			}
			first := 0
			for i := range taken {
				for taken[i]-taken[first] >= w.Per {
					first++
				}
				if n := i - first + 1; n > burst+w.Requests {
					t.Fatalf("%+v: %d passed within %v before %v, want at most %d", w, n, w.Per, taken[i], burst+w.Requests)
				}
			}
		}
		last := windows[len(windows)-1]
		if want := 3 * last.Requests; len(taken) < want*9/10 {
			t.Errorf("%+v: %d passed in three windows, want about the %d and a burst", last, len(taken), want)
		}
	}
}

// What one window refuses takes nothing from another, nor does what is undone.
func TestEnter_TakesFromAllOrNone(t *testing.T) {
	m := limit.NewMap()
	ts := terms(0, limit.Window{Requests: 2, Per: time.Second}, limit.Window{Requests: 5, Per: time.Hour})
	now := time.Duration(0)
	for i := range 100 {
		e := m.Enter(acme, now, ts, limit.Whole)
		if e.OK() != (i < 2) {
			t.Fatalf("request %d: got %+v", i, e)
		}
	}
	e := m.Enter(acme, now, ts, limit.Whole)
	if e.Refused != 0 || e.Result[1].Remaining != 3 {
		t.Errorf("got window %d refusing and %d left of the hour, want the first and 3", e.Refused, e.Result[1].Remaining)
	}
	now += time.Second
	for range 50 {
		e := m.Enter(acme, now, ts, limit.Whole)
		if !e.OK() {
			t.Fatalf("after an undo: got %+v, want it let in", e)
		}
		e.Pass().Undo(&e.Result)
	}
	passed := 0
	for range 10 {
		now += time.Second
		if e := m.Enter(acme, now, ts, limit.Whole); e.OK() {
			passed++
		} else if e.Refused != 1 || e.Result[1].RetryAfter > 12*time.Minute {
			t.Errorf("got %+v, want the hour's window to refuse until a fifth of an hour is over", e)
		}
	}
	if passed != 3 {
		t.Errorf("%d more passed, want the 3 that were left of the hour", passed)
	}
}

func TestEnter_BoundsWhatIsUnderWay(t *testing.T) {
	m, ts := limit.NewMap(), terms(7)
	var under, most, passed atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 500 {
				e := m.Enter(acme, 0, ts, limit.Whole)
				if !e.OK() {
					if !e.Crowded {
						t.Errorf("got %+v, want it crowded", e)
					}
					continue
				}
				passed.Add(1)
				n := under.Add(1)
				for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
				}
				under.Add(-1)
				e.Pass().Leave()
			}
		})
	}
	wg.Wait()
	if most.Load() > 7 || passed.Load() == 0 {
		t.Errorf("got %d under way at once of %d, want 7 at most", most.Load(), passed.Load())
	}
	for i := range 8 { // all have left
		if e := m.Enter(acme, 0, ts, limit.Whole); e.OK() != (i < 7) {
			t.Errorf("request %d: got %+v, want 7 let in", i, e)
		}
	}
	// Half of an odd bound is rounded up, and the least share has one.
	for share, want := range map[int64]int{500_000: 4, 1: 1} {
		m, n := limit.NewMap(), 0
		for range 20 {
			if e := m.Enter(acme, 0, ts, share); e.OK() {
				n++
			}
		}
		if n != want {
			t.Errorf("share %d: got %d under way, want %d", share, n, want)
		}
	}
}

func TestEnter_SharesAreExact(t *testing.T) {
	w := limit.Window{Requests: 60, Per: time.Minute, Burst: 10}
	a, b, ts, got := limit.NewMap(), limit.NewMap(), terms(0, w), 0
	for now := time.Duration(0); now < time.Hour; now += 50 * time.Millisecond {
		for m, share := range map[*limit.Map]int64{a: 750_000, b: 250_000} {
			if e := m.Enter(acme, now, ts, share); e.OK() {
				e.Pass().Leave()
				got++
			}
		}
	}
	if got < 3598 || got > 3612 {
		t.Errorf("two with three quarters and one quarter of 60 a minute took %d in an hour, want 3600", got)
	}
	long := terms(0, limit.Window{Requests: 1, Per: 744 * time.Hour})
	if e := limit.NewMap().Enter(acme, time.Hour, long, 1); !e.OK() {
		t.Errorf("the least share of the longest window: got %+v, want its one request let in", e)
	}
}

// What was taken under other terms bounds nobody for longer than the terms of now would.
func TestEnter_OtherTermsAreForgotten(t *testing.T) {
	day, minute := limit.Window{Requests: 10, Per: 24 * time.Hour}, limit.Window{Requests: 10, Per: time.Minute}
	for name, c := range map[string]struct {
		before, after *limit.Terms
		share         int64
		wait          time.Duration // for one request under those of after
	}{
		"a share that grows":        {terms(0, day), terms(0, day), 10_000, 144 * time.Minute},
		"a shorter window":          {terms(0, day), terms(0, minute), limit.Whole, 6 * time.Second},
		"windows in another order":  {terms(0, day, minute), terms(0, minute, day), limit.Whole, 144 * time.Minute}, // each keeps its own
		"a window that is no more":  {terms(0, minute, day), terms(0, minute), limit.Whole, 6 * time.Second},
		"no other terms than those": {terms(0, day), terms(0, day), limit.Whole, 144 * time.Minute},
	} {
		m, now := limit.NewMap(), time.Hour
		for range 10 {
			m.Enter(acme, now, c.before, c.share)
		}
		m.Enter(acme, now, c.after, limit.Whole) // refused, or not: it is from here on that the wait counts
		if e := m.Enter(acme, now+c.wait, c.after, limit.Whole); !e.OK() {
			t.Errorf("%s: got %+v after %v, want it let in", name, e, c.wait)
		}
	}
}

// A window is known by its length: a plan whose windows are added to, put in another order or cut keeps what was taken of those that
// stay, and one whose length is changed begins with what was taken of the one that is gone.
func TestEnter_AWindowKeepsItsDebt(t *testing.T) {
	second, minute, hour, day := limit.Window{Requests: 100, Per: time.Second}, limit.Window{Requests: 500, Per: time.Minute}, limit.Window{Requests: 700, Per: time.Hour}, limit.Window{Requests: 1000, Per: 24 * time.Hour}
	two := limit.Window{Requests: 2000, Per: 48 * time.Hour}
	for name, c := range map[string]struct {
		before, after *limit.Terms
		most          int // that pass in a minute, under those of after
	}{
		"one comes before it":         {terms(0, day), terms(0, second, day), 2},
		"in another order":            {terms(0, minute, day), terms(0, day, minute), 2},
		"one before it goes":          {terms(0, minute, day), terms(0, day), 2},
		"one between them goes":       {terms(0, minute, hour, day), terms(0, minute, day), 270}, // of which the hour let some 735 pass
		"all change their places":     {terms(0, second, minute, hour, day), terms(0, day, hour, minute, second), 13},
		"as it was, of more requests": {terms(0, day), terms(0, second, limit.Window{Requests: 2000, Per: 24 * time.Hour}), 3},
		"of another length":           {terms(0, day), terms(0, two), 1002},
		"of another length, at first": {terms(0, day), terms(0, second, two), 1002},
	} {
		m, now, before := limit.NewMap(), time.Hour, 0
		for range 18000 {
			now += 10 * time.Millisecond
			if e := m.Enter(acme, now, c.before, limit.Whole); e.OK() {
				before++
				e.Pass().Leave()
			}
		}
		passed := 0
		for range 6000 {
			now += 10 * time.Millisecond
			if e := m.Enter(acme, now, c.after, limit.Whole); e.OK() {
				passed++
				e.Pass().Leave()
			}
		}
		if passed > c.most {
			t.Errorf("%s: %d passed after %d, want %d at most", name, passed, before, c.most)
		}
	}
}

// What was let in under other windows gives back to none that it has not taken from.
func TestEnter_UndoKnowsItsWindows(t *testing.T) {
	hour, day := limit.Window{Requests: 2, Per: time.Hour}, limit.Window{Requests: 10, Per: 24 * time.Hour}
	m, under, passed := limit.NewMap(), terms(0, hour, day), 0
	first := m.Enter(acme, time.Hour, terms(0, day), limit.Whole)
	for i := range 10 {
		if e := m.Enter(acme, time.Hour, under, limit.Whole); e.OK() {
			passed++
		}
		if i == 0 {
			first.Pass().Undo(&first.Result)
		}
	}
	if passed != 2 {
		t.Errorf("%d passed of two an hour: what is given back is not the hour's", passed)
	}
}

func TestEnter_ForgetsOnlyWhatIsAtRest(t *testing.T) {
	m, ts := limit.NewMap(), terms(2, limit.Window{Requests: 5, Per: time.Second})
	busy := limit.ID{Customer: "busy", Plan: "free"}
	held := m.Enter(busy, 0, ts, limit.Whole)
	now := time.Duration(0)
	for i := range 100_000 {
		now += time.Millisecond
		e := m.Enter(limit.ID{Customer: fmt.Sprint("c", i), Plan: "free"}, now, ts, limit.Whole)
		e.Pass().Leave()
	}
	if n := m.Len(); n > 64*64*2 {
		t.Errorf("got %d of 100,000 seen, want those of the last moments only", n)
	}
	second := m.Enter(busy, now, ts, limit.Whole)
	if third := m.Enter(busy, now, ts, limit.Whole); !second.OK() || !third.Crowded {
		t.Errorf("got %+v and %+v, want one beside the first, which was under way all the time", second, third)
	}
	held.Pass().Leave()
	if e := m.Enter(busy, now, ts, limit.Whole); !e.OK() {
		t.Errorf("got %+v, want it let in", e)
	}
}

func TestEnter_AllocatesNothing(t *testing.T) {
	m, ts := limit.NewMap(), terms(5, limit.Window{Requests: 100, Per: time.Minute}, limit.Window{Requests: 1000, Per: time.Hour})
	e := m.Enter(acme, 1, ts, limit.Whole)
	e.Pass().Leave()
	if n := testing.AllocsPerRun(100, func() { e := m.Enter(acme, 1, ts, limit.Whole); e.Pass().Leave() }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkMap_Enter(b *testing.B) {
	m, ts := limit.NewMap(), terms(5, limit.Window{Requests: 1e6, Per: time.Minute}, limit.Window{Requests: 1e9, Per: time.Hour})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := m.Enter(acme, time.Duration(i)*time.Microsecond, ts, limit.Whole)
		e.Pass().Leave()
	}
}

// Who is refused is told what is left without his request, whichever limit refused him: of the windows' own, or another.
func TestEnter_TellsWhatIsLeftWithoutWhoIsRefused(t *testing.T) {
	second, hour := limit.Window{Requests: 3, Per: time.Second}, limit.Window{Requests: 10, Per: time.Hour}
	m, ts := limit.NewMap(), terms(0, second, hour)
	var last limit.Entered
	for range 2 {
		last = m.Enter(acme, time.Hour, ts, limit.Whole)
	}
	want := last.Result
	undone := m.Enter(acme, time.Hour, ts, limit.Whole)
	if undone.Pass().Undo(&undone.Result); undone.Result != want {
		t.Errorf("undone: told %+v, want %+v as the last one", undone.Result, want)
	}
	m.Enter(acme, time.Hour, ts, limit.Whole)
	want[1].Remaining, want[1].Reset = want[1].Remaining-1, want[1].Reset+6*time.Minute
	if refused := m.Enter(acme, time.Hour, ts, limit.Whole); refused.Refused != 0 || refused.Result[1] != want[1] {
		t.Errorf("refused by window %d: told %+v of the hour, want %+v", refused.Refused, refused.Result[1], want[1])
	}
}
