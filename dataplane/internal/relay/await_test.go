package relay

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever asks when a request is let go of hears it then: also where the question is looked at before the request, or after its end.
func TestWaits_WhoAsksHearsOfTheEnd(t *testing.T) {
	key := waitKey{"edge-1", "id", ""}
	for name, c := range map[string]struct {
		begins, ends, asked time.Duration // since the start; ends < 0: never, begins < 0: it never came
		hears               time.Duration
	}{
		"while it is held":                  {0, 3 * time.Second, time.Second, 3 * time.Second},
		"before it is looked at":            {time.Second / 2, 3 * time.Second, 0, 3 * time.Second},
		"when it is over":                   {0, time.Second, 2 * time.Second, 2 * time.Second},
		"of one that holds on for too long": {0, -1, time.Second, 31 * time.Second},
		"of one that never came":            {-1, -1, 0, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w waits
				began := time.Now()
				var all sync.WaitGroup
				if c.begins >= 0 {
					all.Go(func() {
						time.Sleep(c.begins)
						over := w.begin(key)
						if c.ends >= 0 {
							time.Sleep(c.ends - c.begins)
							over(true)
						}
					})
				}
				time.Sleep(c.asked)
				w.await(t.Context(), key)
				if took := time.Since(began); took != c.hears {
					t.Errorf("heard after %v, want %v", took, c.hears)
				}
				all.Wait()
				time.Sleep(time.Minute)
				w.mu.Lock()
				defer w.mu.Unlock()
				if n := len(w.of); n > 1 || n == 1 && c.ends >= 0 || n == 1 && c.begins < 0 {
					t.Errorf("%d are remembered", n)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // nobody stays who has gone himself, and what nobody may ask for is forgotten at once
		var w waits
		w.begin(waitKey{"edge-1", "other", ""})(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		w.await(ctx, key)
		if len(w.of) != 0 {
			t.Errorf("%d are remembered", len(w.of))
		}
	})
}

// One request may come twice within the time for which its first attempt is remembered: each is let go of by itself. Edges of
// before 2026-11-26 give no names to attempts, neither with the request nor when they ask.
func TestWaits_AttemptsAreToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w waits
		named := func(name string) waitKey {
			return waitKey{"edge-1", "id", attemptOf(http.Header{HeaderBounded: {name}})}
		}
		began := time.Now()
		w.begin(named(newAttempt()))(true)
		second := newAttempt()
		over := w.begin(named(second))
		var all sync.WaitGroup
		all.Go(func() { time.Sleep(5 * time.Second); over(true) })
		if w.await(t.Context(), named(second)); time.Since(began) != 5*time.Second {
			t.Errorf("the second is said to be over after %v", time.Since(began))
		}
		all.Wait()
		if attemptOf(http.Header{HeaderBounded: {"1"}}) != attemptOf(http.Header{}) {
			t.Error("an older edge does not hear of what it asks for")
		}
		time.Sleep(time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.of) != 0 {
			t.Errorf("%d are remembered", len(w.of))
		}
	})
}
