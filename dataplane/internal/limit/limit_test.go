package limit_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/limit"
)

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
