package quota_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/quota"
)

// What is due at a tick waits for a moment in which nobody waits for an answer; what a request waits for does not, whenever pauses come.
func TestBook_ExchangesAtPauses(t *testing.T) {
	const every = 5 * time.Millisecond // which ticks are whole numbers of, and what a request that starves waits for
	for phase := range every / time.Millisecond {
		for off := time.Duration(1); off < 100; off += 11 {
			synctest.Test(t, func(t *testing.T) {
				exchangesAtPauses(t, every, phase*time.Millisecond, 2*time.Second+off*time.Millisecond)
			})
		}
	}
}

// exchangesAtPauses has pauses come so long after each whole number of every, and a request starve when quiet is over.
func exchangesAtPauses(t *testing.T, every, phase, quiet time.Duration) {
	pulse, p := beat.New(), &noted{}
	began := time.Now()
	b := newBook(t, p, func(c *quota.Config) { c.Beat, c.Wait = pulse, 500*time.Millisecond })
	run(t, func(ctx context.Context) {
		ctx, end := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for time.Sleep(phase); ctx.Err() == nil; time.Sleep(every) {
				if now := time.Now(); pulse.Pause(now) {
					pulse.Begin(now)
				}
			}
		}()
		time.Sleep(quiet)
		asked := p.times()
		for i, at := range asked[1:] {
			if at.Sub(began)%every != phase {
				t.Errorf("pauses %v after ticks: the %d. exchange came after %v, which is none", phase, i+2, at.Sub(began))
			}
			if gap := at.Sub(asked[i]); gap > time.Second+beat.Late {
				t.Errorf("%v went by without an exchange", gap)
			}
		}
		if len(asked) < 2 {
			t.Errorf("%d exchanges in %v", len(asked), quiet)
		}
		p.nothing.Store(true)
		request(ctx, b, strict) // starves, for half a second
		starved := p.times()[len(asked):]
		if len(starved) < 500/20-5 {
			t.Errorf("a request that starved was asked for %d times in 500 ms", len(starved))
		}
		for i, at := range starved[1:] {
			if gap := at.Sub(starved[i]); gap > 20*time.Millisecond {
				t.Errorf("pauses %v after ticks, %v after one: a request starved, and %v went by without an exchange", phase, quiet%(100*time.Millisecond), gap)
			}
		}
		end()
		<-done
	}, b)
}

// A request whose exchange has to wait for the one before, over a tick, waits for no pause.
func TestBook_WhoIsQueuedWaitsForNoPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pulse := beat.New()
		b := newBook(t, &noted{}, func(c *quota.Config) { c.Beat = pulse })
		run(t, func(ctx context.Context) {
			time.Sleep(2100*time.Millisecond - 1500*time.Microsecond)
			request(ctx, b, strict) // it is asked for 1.5 ms before a tick
			time.Sleep(500 * time.Microsecond)
			pulse.Pause(time.Now()) // and no other
			a, began := b.Account(quota.ID{Customer: "other", Subscription: "main"}, strict), time.Now()
			a.Offer()
			if _, d := a.Take(1, quota.Leases(strict), began.Unix()); d != quota.Wait {
				t.Fatalf("got %v at once", d)
			}
			if _, d := a.Park(ctx, 1, quota.Leases(strict)); d != quota.Taken || time.Since(began) > 1500*time.Microsecond {
				t.Errorf("got %v after %v, want a unit in 1.5 ms, 2 after the exchange before", d, time.Since(began))
			}
		}, b)
	})
}
