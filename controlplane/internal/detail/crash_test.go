package detail_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/detail"
)

// The invariant: whatever is acknowledged is found exactly once, whenever the machine crashes or an operation
// of its disk fails; and what is sent again after that is counted once too.
func TestStore_SurvivesACrashAnywhere(t *testing.T) {
	ops := 0
	for at := 1; ; at++ {
		reached := false
		for _, kind := range []string{"crash", "torn", "error"} {
			hit := false
			hit = crashAt(t, at, kind)
			reached = reached || hit
		}
		if t.Failed() || !reached {
			ops = at
			break
		}
	}
	t.Logf("%d operations of the disk", ops)
	if ops < 40 {
		t.Errorf("the story has %d operations of the disk; it tests little", ops)
	}
}

var errDisk = errors.New("the disk does not answer")

// crashAt runs a story of appends, rolls and an erasure in which the n-th operation on the disk fails, and all
// after it too (crash) or it alone (error). It says whether the story was that long.
func crashAt(t *testing.T, n int, kind string) (hit bool) {
	w := newWorld(t, func(c *detail.Config) { c.RollBytes = 4 << 10 })
	w.close()
	var mu sync.Mutex
	count, dead := 0, false
	w.fs.Inject(func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		switch op {
		case "open", "read", "stat":
			return nil
		}
		if count++; count == n {
			hit = true
			dead = kind != "error"
			return errDisk
		}
		if dead {
			return errDisk
		}
		return nil
	})
	s, err := detail.Open(w.cfg)
	acked := map[string]map[uint64]bool{"e1": {}, "e2": {}}
	sent := map[string][]detail.Entry{}
	begin := w.now()
	for _, edge := range []string{"e1", "e2"} {
		for i := range 12 {
			at := begin.Add(time.Duration(i-6) * 5 * time.Hour)
			sent[edge] = append(sent[edge], piece(t, edge, 1, uint64(i+1), row(at, "acme", i), row(at, "gone", i), row(at, "globex", i)))
		}
	}
	if err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		for i := range 12 {
			for _, edge := range []string{"e1", "e2"} {
				from := s.Mark(edge, 1)
				a, err := s.Append(ctx, edge, 1, sent[edge][from:i+1]...)
				for _, x := range a {
					if err == nil && x.Gap {
						t.Errorf("gap in %s at %d: %v", edge, from, a)
					}
				}
				if err == nil {
					for m := from + 1; m <= uint64(i+1); m++ {
						acked[edge][m] = true
					}
				}
			}
			if i == 7 {
				w.tombstone("gone")
				_, _ = s.Erase(ctx, "gone")
			}
			runtime.Gosched()
		}
		cancel()
		<-ended
	}
	w.fs.Inject(nil)
	if kind == "torn" {
		w.fs.CrashTorn(rand.New(rand.NewPCG(uint64(n), 1)))
	} else {
		w.fs.Crash()
	}
	w.open()
	defer w.close()
	count1 := func(customer string) map[string]map[uint64]int64 {
		out := map[string]map[uint64]int64{"e1": {}, "e2": {}}
		for _, sum := range w.found(customer).Sums {
			for _, share := range sum.Shares {
				out[share.Edge][share.Number] += share.Requests
			}
		}
		return out
	}
	for _, customer := range []string{"acme", "globex"} {
		got := count1(customer)
		for edge, numbers := range acked {
			for m := range numbers {
				if got[edge][m] != 1 {
					t.Errorf("%s at %d: %s piece %d of %s was acknowledged and is there %d times", kind, n, edge, m, customer, got[edge][m])
				}
			}
			for m, c := range got[edge] {
				if c != 1 {
					t.Errorf("%s at %d: piece %d of %s is there %d times", kind, n, m, edge, c)
				}
			}
		}
	}
	for _, edge := range []string{"e1", "e2"} { // the edge sends again what was not acknowledged
		mark := w.s.Mark(edge, 1)
		for m := range maps.Keys(acked[edge]) {
			if m > mark {
				t.Errorf("%s at %d: mark of %s is %d, but %d was acknowledged", kind, n, edge, mark, m)
			}
		}
		w.append(edge, 1, sent[edge][mark:]...)
	}
	w.roll()
	for _, customer := range []string{"acme", "globex"} {
		got := count1(customer)
		for edge := range acked {
			for m := range uint64(12) {
				if got[edge][m+1] != 1 {
					t.Errorf("%s at %d: after all was sent, piece %d of %s is there %d times for %s", kind, n, m+1, edge, got[edge][m+1], customer)
				}
			}
		}
	}
	w.tombstone("gone")
	if _, err := w.s.Erase(t.Context(), "gone"); err != nil {
		t.Errorf("%s at %d: erase: %v", kind, n, err)
	}
	if f := w.found("gone"); requests(f) != 0 {
		t.Errorf("%s at %d: %d rows of an erased customer are there", kind, n, requests(f))
	}
	return hit
}
