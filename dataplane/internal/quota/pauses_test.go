package quota_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/quota"
)

// What is due at a tick waits for a moment in which nobody waits for an answer; what a request waits for does not.
func TestBook_ExchangesAtPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 5 * time.Millisecond // which ticks are whole numbers of, and what a request that starves waits for
		pulse, p := beat.New(), &noted{}
		began := time.Now()
		atPause := func(at time.Time) bool { return at.Sub(began)%every == time.Millisecond }
		b := newBook(t, p, func(c *quota.Config) { c.Beat, c.Wait = pulse, 500*time.Millisecond })
		run(t, func(ctx context.Context) {
			ctx, end := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() { // a pause a millisecond after each tick, and four before
				defer close(done)
				for time.Sleep(time.Millisecond); ctx.Err() == nil; time.Sleep(every) {
					if now := time.Now(); pulse.Pause(now) {
						pulse.Begin(now)
					}
				}
			}()
			time.Sleep(5*time.Second + 3*time.Millisecond)
			quiet := p.times()
			for i, at := range quiet[1:] {
				if !atPause(at) {
					t.Errorf("the %d. exchange came after %v, which is no pause", i+2, at.Sub(began))
				}
				if gap := at.Sub(quiet[i]); gap > time.Second+beat.Late {
					t.Errorf("%v went by without an exchange", gap)
				}
			}
			if len(quiet) < 5 {
				t.Errorf("%d exchanges in 5 s", len(quiet))
			}
			p.nothing.Store(true)
			request(ctx, b, strict) // starves, for half a second
			asked := p.times()[len(quiet):]
			if len(asked) < 500/20-5 {
				t.Errorf("a request that starved was asked for %d times in 500 ms", len(asked))
			}
			for i, at := range asked[1:] {
				if gap := at.Sub(asked[i]); gap > 20*time.Millisecond {
					t.Errorf("a request starved, and %v went by without an exchange", gap)
				}
			}
			end()
			<-done
		}, b)
	})
}
