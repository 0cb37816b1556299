package conformance

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"bailiwick/controlplane/internal/group"
)

// Commits measures transactions of one small key each by 64 writers.
func Commits(b *testing.B, s group.Store) {
	const writers = 64
	value := make([]byte, 200)
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				if _, err := s.Txn(b.Context(), group.Txn{Ops: []group.Op{{Key: fmt.Sprintf("bench/%02d", w), Value: value}}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}
