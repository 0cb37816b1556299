package harness

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Load is requests at a rate from a fixed number of workers. A worker that waits for an answer sends nothing
// meanwhile, so a stall shows as fewer requests and not as a pile of them.
type Load struct {
	Sent, OK atomic.Int64
	stop     context.CancelFunc
	wg       sync.WaitGroup
	mu       sync.Mutex // covers failures
	failures []string
	failed   int
}

// StartLoad calls do for request after request until Stop; do returns nil for a success.
func StartLoad(workers, perSecond int, do func(n int64) error) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{stop: cancel}
	tokens := make(chan struct{}, workers)
	l.wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				close(tokens)
				return
			case <-tick.C:
				select {
				case tokens <- struct{}{}:
				default:
				}
			}
		}
	})
	for range workers {
		l.wg.Go(func() {
			for range tokens {
				n := l.Sent.Add(1)
				if err := do(n); err != nil {
					l.mu.Lock()
					l.failed++
					if len(l.failures) < 10 {
						l.failures = append(l.failures, err.Error())
					}
					l.mu.Unlock()
					continue
				}
				l.OK.Add(1)
			}
		})
	}
	return l
}

// Stop ends it after the requests in flight, and returns how many failed with the first reasons.
func (l *Load) Stop() (failed int, reasons []string) {
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed, l.failures
}
