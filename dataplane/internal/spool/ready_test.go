package spool_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"bailiwick/dataplane/internal/spool"
)

// Places are made ready by writing zeros, and pages by touching them, beside whoever writes rows: none of those is wiped out, whoever
// is ahead.
func TestSpool_MakingPlacesReadyWipesOutNoRow(t *testing.T) {
	const writers, each = 4, 5000 // some 3.5 MB
	for name, beside := range map[string]bool{"Run keeps ahead": true, "Run is late": false} {
		t.Run(name, func(t *testing.T) {
			dir := fastDir(t)
			s := open(t, spool.Config{Dir: dir, SegmentBytes: 2 << 20})
			var wg, run sync.WaitGroup
			var done atomic.Bool
			if beside {
				run.Go(func() {
					for !done.Load() {
						if err := errors.Join(s.GroupCommit(), s.Provide()); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range writers {
				wg.Go(func() {
					for range each {
						r := row("acme")
						if err := s.Append(&r); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			done.Store(true)
			run.Wait()
			s.Abandon() // as a kill does: what was answered is in the files
			s = open(t, spool.Config{Dir: dir, SegmentBytes: 2 << 20})
			if n := requests(t, pending(t, s))["acme"]; n != writers*each {
				t.Errorf("%d rows are found, want %d", n, writers*each)
			}
		})
	}
}
