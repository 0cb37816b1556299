package limit_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/limit"
)

// What is given back can be taken again, and a limit is never fuller than full.
func TestMap_Give(t *testing.T) {
	m, id := limit.NewMap(), limit.ID{Customer: "c"}
	for _, share := range []int64{limit.Whole, limit.Whole / 3} {
		n := 0
		now := time.Hour * time.Duration(share)
		for ; m.Take(id, now, 10, 30, share).OK; n++ {
		}
		for range n {
			m.Give(id, 10, share)
			if !m.Take(id, now, 10, 30, share).OK || m.Take(id, now, 10, 30, share).OK {
				t.Fatalf("share %d: of one given back not exactly one can be taken", share)
			}
		}
		for range 3 * n {
			m.Give(id, 10, share)
		}
		again := 0
		for ; m.Take(id, now, 10, 30, share).OK; again++ {
		}
		if again != n {
			t.Errorf("share %d: %d could be taken of a full limit, and %d after more was given than taken", share, n, again)
		}
	}
	m.Give(limit.ID{Customer: "nobody"}, 10, limit.Whole)
	if m.Len() != 1 {
		t.Errorf("%d limits are held, want 1", m.Len())
	}
}

func TestLimiter_CountsExactly(t *testing.T) {
	for _, c := range []struct {
		rate, burst int
		every, over time.Duration
		want        int // burst at once plus rate × time, never more
	}{
		{5, 5, 10 * time.Millisecond, 0, 1},
		{5, 5, 10 * time.Millisecond, 10 * time.Second, 5 + 50},
		{500, 500, 500 * time.Microsecond, 2 * time.Second, 500 + 1000},
		{3, 1, time.Millisecond, 10 * time.Second, 30}, // 1/3 s is rounded up: kept from below
		{1, 10, 100 * time.Millisecond, 100 * time.Second, 10 + 100},
		{7, 0, time.Millisecond, 7 * time.Second, 49}, // burst 0 is burst 1
	} {
		var l limit.Limiter
		got := 0
		for now := time.Duration(0); now <= c.over; now += c.every {
			if l.Take(now, c.rate, c.burst, limit.Whole).OK {
				got++
			}
		}
		if got != c.want {
			t.Errorf("rate %d burst %d, asked every %v for %v: got %d, want %d", c.rate, c.burst, c.every, c.over, got, c.want)
		}
	}
}

func TestLimiter_TellsWhatIsLeftAndWhen(t *testing.T) {
	var l limit.Limiter
	now := time.Hour
	for i := range 5 {
		if r := l.Take(now, 5, 5, limit.Whole); !r.OK || r.Remaining != 4-i || r.Reset != time.Duration(i+1)*200*time.Millisecond {
			t.Fatalf("take %d: got %+v", i, r)
		}
	}
	r := l.Take(now, 5, 5, limit.Whole)
	if r.OK || r.Remaining != 0 || r.RetryAfter != 200*time.Millisecond || r.Reset != time.Second {
		t.Fatalf("take over the burst: got %+v, want a retry after 200ms and a reset after 1s", r)
	}
	if r = l.Take(now+r.RetryAfter-1, 5, 5, limit.Whole); r.OK {
		t.Error("taken one nanosecond early")
	}
	if r = l.Take(now+200*time.Millisecond, 5, 5, limit.Whole); !r.OK {
		t.Errorf("not taken after RetryAfter: %+v", r)
	}
	// A better plan counts with the next request: what is owed is time, and its window is longer.
	if r = l.Take(now+200*time.Millisecond, 500, 1000, limit.Whole); !r.OK {
		t.Errorf("raised limit: got %+v", r)
	}
	if r = l.Take(now, 0, 0, limit.Whole); !r.OK {
		t.Errorf("no limit: got %+v", r)
	}
}

func TestMap_TakesTogetherWhatOneMay(t *testing.T) {
	m := limit.NewMap()
	var got atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if m.Take(limit.ID{Customer: "acme", Subscription: "main", Plan: "gold"}, time.Second, 10, 137, limit.Whole).OK {
					got.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got.Load() != 137 {
		t.Errorf("got %d at one instant, want the burst of 137", got.Load())
	}
}

func TestMap_ForgetsOnlyFullBuckets(t *testing.T) {
	m := limit.NewMap()
	busy := limit.ID{Customer: "busy", Plan: "free"}
	now := time.Duration(0)
	taken := 0
	for i := range 200_000 {
		now += time.Millisecond
		m.Take(limit.ID{Customer: fmt.Sprint("c", i), Plan: "free"}, now, 5, 5, limit.Whole)
		if m.Take(busy, now, 5, 5, limit.Whole).OK {
			taken++
		}
	}
	// One request empties a fifth of a one-second bucket: about 200 are not full at any instant.
	if n := m.Len(); n > 64*64*2 {
		t.Errorf("got %d limiters of 200,000 seen, want those of the last moments only", n)
	}
	if want := 5 + 5*200 - 1; taken < want-1 || taken > want+1 {
		t.Errorf("busy subscription took %d across sweeps, want %d", taken, want)
	}
}

func TestMap_TakesWithoutAllocating(t *testing.T) {
	m := limit.NewMap()
	id := limit.ID{Customer: "acme", Subscription: "main", Plan: "gold"}
	m.Take(id, 1, 5, 5, limit.Whole)
	if n := testing.AllocsPerRun(100, func() { m.Take(id, 1, 5, 5, limit.Whole) }); n != 0 {
		t.Errorf("got %v allocations a take, want 0", n)
	}
}

func BenchmarkMap_Take(b *testing.B) {
	m := limit.NewMap()
	id := limit.ID{Customer: "acme", Subscription: "main", Plan: "gold"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Take(id, time.Duration(i)*time.Microsecond, 500, 500, limit.Whole)
	}
}

// Three with a third of 5 a second each take 5 a second together, not three times one: a share is exact however
// small the rate, and the last one to it is not lost to rounding.
func TestLimiter_SharesAreExact(t *testing.T) {
	for _, c := range []struct {
		rate, burst int
		shares      []int64
		over        time.Duration
		least, most int // least: the rate without a burst, less one under way for each; most: with the whole burst
	}{
		{5, 5, []int64{333_333, 333_333, 333_333}, time.Minute, 300 - 3, 305},
		{5, 5, []int64{950_000, 50_000}, time.Minute, 300 - 2, 305 + 1}, // the small one's burst is less than one request
		{1, 1, []int64{250_000, 250_000, 250_000, 250_000}, time.Minute, 60 - 4, 60 + 4},
		{1000, 100, []int64{835_000, 70_000, 70_000, 25_000}, 10 * time.Second, 10_000 - 4, 10_100},
		{100_000, 1, []int64{500_000, 500_000}, 100 * time.Millisecond, 100 - 2, 10_000 + 2}, // asked every ms
	} {
		limiters := make([]limit.Limiter, len(c.shares))
		got := 0
		step := min(time.Millisecond, c.over/100)
		for now := time.Duration(0); now <= c.over; now += step {
			for i := range limiters {
				for range 2 {
					if limiters[i].Take(now, c.rate, c.burst, c.shares[i]).OK {
						got++
					}
				}
			}
		}
		if got < c.least || got > c.most {
			t.Errorf("rate %d burst %d shared as %v for %v: got %d, want %d to %d", c.rate, c.burst, c.shares, c.over, got, c.least, c.most)
		}
	}
}

// A share that changes leaves the bucket as full as it was, and a remainder never promises what would be refused.
func TestLimiter_ShareChanges(t *testing.T) {
	var l limit.Limiter
	for range 5 {
		l.Take(0, 10, 10, limit.Whole)
	}
	r := l.Take(0, 10, 10, 100_000) // a tenth: the half that is left is half a request
	if r.OK {
		t.Errorf("got %+v, want it refused: half of a tenth of ten is no request", r)
	}
	if r = l.Take(500*time.Millisecond, 10, 10, 100_000); !r.OK || r.Remaining != 0 {
		t.Errorf("full again: got %+v, want one taken and none left", r)
	}
	var fresh limit.Limiter
	if r = fresh.Take(0, 10, 10, 500_000); !r.OK || r.Remaining != 8 {
		t.Errorf("got %+v, want 8 of the whole limit left, as if the other half stood alike", r)
	}
}

func BenchmarkMap_TakeShare(b *testing.B) {
	m := limit.NewMap()
	id := limit.ID{Customer: "acme", Subscription: "main", Plan: "gold"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Take(id, time.Duration(i)*time.Microsecond, 500, 500, 333_333)
	}
}

// Whoever has used up a long burst, or a small share, and then gets a higher rate is held to the new one.
func TestLimiter_OtherTermsAreForgotten(t *testing.T) {
	for name, before := range map[string]struct {
		rate, burst int
		share       int64
	}{"a longer burst": {1, 1_000_000, limit.Whole}, "a small share": {1, 1, 100}} {
		var l limit.Limiter
		now := time.Hour
		for l.Take(now, before.rate, before.burst, before.share).OK {
		}
		if r := l.Take(now, 100, 100, limit.Whole); r.OK || r.RetryAfter != 10*time.Millisecond {
			t.Errorf("%s: got %+v, want it refused for a hundredth of a second", name, r)
		}
		if r := l.Take(now+10*time.Millisecond, 100, 100, limit.Whole); !r.OK {
			t.Errorf("%s: got %+v after a hundredth of a second, want it let in", name, r)
		}
	}
}

// What was found before is what the map has, or nothing is taken from it: a bucket that nobody else sees would be a second one.
func TestMap_AgainIsTheSameBucket(t *testing.T) {
	m := limit.NewMap()
	id := limit.ID{Customer: "acme", Plan: "free"}
	_, l := m.Find(id, 0, 1, 3, limit.Whole)
	if r, ok := l.Again(0, 1, 3, limit.Whole); !ok || r.Remaining != 1 {
		t.Fatalf("got %v and %+v, want one of three left", ok, r)
	}
	if r := m.Take(id, 0, 1, 3, limit.Whole); !r.OK || r.Remaining != 0 {
		t.Fatalf("got %+v, want none left: both take from one bucket", r)
	}
	now := time.Hour
	for i := range 64 * 64 * 4 { // every shard is swept
		m.Take(limit.ID{Customer: fmt.Sprint("c", i), Plan: "free"}, now, 1, 3, limit.Whole)
	}
	if _, ok := l.Again(now, 1, 3, limit.Whole); ok {
		t.Error("it takes from a bucket that the map has let go")
	}
	if _, ok := (*limit.Limiter)(nil).Again(now, 1, 3, limit.Whole); ok {
		t.Error("it takes from no bucket")
	}
}
