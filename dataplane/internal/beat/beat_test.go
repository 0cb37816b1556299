package beat_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/beat"
)

const ms = time.Millisecond

// take takes n ticks and says when they came, works for so long after each.
func take(t *beat.Ticker, began time.Time, n int, work time.Duration) (at []time.Duration) {
	for range n {
		<-t.C
		at = append(at, time.Since(began))
		time.Sleep(work)
		t.Again()
	}
	return at
}

// Tickers that begin at any time tick at the same moments, each as often as it is meant to.
func TestTicker_TicksTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, began := beat.New(), time.Now()
		type result struct{ got, want []time.Duration }
		results := make(chan result)
		start := func(after, every, work time.Duration, want ...time.Duration) {
			go func() {
				time.Sleep(after)
				ticker := b.Ticker(every)
				defer ticker.Stop()
				results <- result{take(ticker, began, len(want), work), want}
			}()
		}
		start(0, 50*ms, 0, 50*ms, 100*ms, 150*ms, 200*ms)
		start(13*ms, 50*ms, 7*ms, 50*ms, 100*ms, 150*ms)
		start(49*ms, 100*ms, 0, 100*ms, 200*ms)
		start(50*ms, 50*ms, 0, 100*ms, 150*ms)    // not at once
		start(10*ms, 50*ms, 60*ms, 50*ms, 150*ms) // it takes longer than its period: what it has missed is left out
		start(10*ms, 50*ms, 50*ms, 50*ms, 150*ms) // or just as long
		start(120*ms, 250*ms, 0, 250*ms, 500*ms)
		ticker := b.Between(50 * ms).Ticker(50 * ms)
		if got, want := take(ticker, began, 3, 0), []time.Duration{25 * ms, 75 * ms, 125 * ms}; !slices.Equal(got, want) {
			t.Errorf("between them ticked at %v, want %v", got, want)
		}
		ticker.Stop()
		for range 7 {
			if r := <-results; !slices.Equal(r.got, r.want) {
				t.Errorf("ticked at %v, want %v", r.got, r.want)
			}
		}
	})
}

// Without a beat a ticker is one of package time's.
func TestTicker_ByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(17 * ms)
		var none *beat.Beat
		began := time.Now()
		ticker := none.Ticker(50 * ms)
		if got, want := take(ticker, began, 3, 20*ms), []time.Duration{50 * ms, 100 * ms, 150 * ms}; !slices.Equal(got, want) {
			t.Errorf("ticked at %v, want %v", got, want)
		}
		ticker.Stop()
		select {
		case <-ticker.C:
			t.Error("it ticks though it was stopped")
		case <-time.After(time.Second):
		}
	})
}
