package adminapi

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var byEve = seenBy{"eve", "UsageService.QueryUsage"}

// One record a minute stands for what one operator reads of one customer for one reason, and who reads waits for it.
func TestReadBook_OneRecordAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newReadBook()
		var mu sync.Mutex
		var written []seen
		slow := time.Second
		write := func(s seen) error {
			time.Sleep(slow)
			mu.Lock()
			defer mu.Unlock()
			written = append(written, s)
			return nil
		}
		began := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if err := b.once(t.Context(), byEve, seen{"acme", "t1"}, write); err != nil {
					t.Error(err)
				}
				if time.Since(began) < slow {
					t.Error("an answer goes out before its record is written")
				}
			})
		}
		wg.Wait()
		slow = 0
		for _, s := range []seen{{"acme", "t1"}, {"acme", "t2"}, {"other", "t1"}} {
			if err := b.once(t.Context(), byEve, s, write); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.once(t.Context(), seenBy{"bob", byEve.procedure}, seen{"acme", "t1"}, write); err != nil {
			t.Fatal(err)
		}
		if len(written) != 4 {
			t.Errorf("written %v, want one each of acme for t1, acme for t2, other, and bob's", written)
		}
		time.Sleep(readSpan)
		if err := b.once(t.Context(), byEve, seen{"acme", "t1"}, write); err != nil || len(written) != 5 {
			t.Errorf("after a minute: %v, %d records, want a new one", err, len(written))
		}
	})
}

// What cannot be written is an error to all that wait for it, and the next call tries again.
func TestReadBook_AFailureShowsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newReadBook()
		bad, tries := errors.New("no quorum"), 0
		if err := b.once(t.Context(), byEve, seen{"acme", ""}, func(seen) error { tries++; return bad }); err != bad {
			t.Errorf("got %v", err)
		}
		if err := b.once(t.Context(), byEve, seen{"acme", ""}, func(seen) error { tries++; return nil }); err != nil || tries != 2 {
			t.Errorf("got %v after %d tries, want a second one", err, tries)
		}
		// Who waits for another's record that fails writes one himself, and gives up with his own call.
		hold := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = b.once(t.Context(), byEve, seen{"other", ""}, func(seen) error { <-hold; return bad })
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.once(ctx, byEve, seen{"other", ""}, func(seen) error { t.Error("two write at once"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		own := false
		wg.Go(func() {
			if err := b.once(t.Context(), byEve, seen{"other", ""}, func(seen) error { own = true; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		close(hold)
		wg.Wait()
		if !own {
			t.Error("an answer went out on a record that was never written")
		}
	})
}

// Whoever reads customer after customer, or invents reasons, does not fill the log: one record says that he may have seen
// everyone. Minutes that are over are forgotten.
func TestReadBook_IsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newReadBook()
		var written []seen
		write := func(s seen) error { written = append(written, s); return nil }
		for i := range 10_000 {
			if err := b.once(t.Context(), byEve, seen{fmt.Sprint("c", i), fmt.Sprint("because ", i)}, write); err != nil {
				t.Fatal(err)
			}
		}
		if len(written) != readsApart+1 || written[readsApart].customer != everyone {
			t.Errorf("%d records, the last %v; want %d and one of everyone", len(written), written[len(written)-1], readsApart)
		}
		for i := range 3 * readers {
			if i%readers == 0 {
				time.Sleep(readSpan)
			}
			if err := b.once(t.Context(), seenBy{fmt.Sprint("op", i), "x"}, seen{}, write); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(b.minutes); n > readers {
			t.Errorf("%d minutes are kept, want at most %d", n, readers)
		}
	})
}
