package edgetls_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/edgetls"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
)

const issueLock = "issue_cert_" + host

// What is asked of an authority is asked while the lock is held, and by the time another edge may have it no more.
func TestShelf_AnOrderEndsWithItsLock(t *testing.T) {
	z := newZone(t)
	hold := func(t *testing.T) (context.Context, func()) {
		s := edgetls.NewShelf(t, z)
		if err := s.Lock(t.Context(), issueLock); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := edgetls.WhileHeld(s, t.Context(), host)
		return ctx, func() {
			cancel()
			if err := s.Unlock(t.Context(), issueLock); err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("held", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, release := hold(t)
			defer release()
			time.Sleep(time.Hour)
			if ctx.Err() != nil {
				t.Errorf("after an hour of a held lock: got %v, want alive", context.Cause(ctx))
			}
		})
	})
	t.Run("not heard of", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, release := hold(t)
			defer release()
			time.Sleep(time.Minute)
			z.setAway(true)
			defer z.setAway(false)
			for ends := time.Now(); ; {
				if ctx.Err() == nil {
					if time.Since(ends) > 15*time.Second {
						t.Fatal("after 15 s without an answer: still alive")
					}
					time.Sleep(100 * time.Millisecond)
					continue
				}
				if d := time.Since(ends); d < 11*time.Second {
					t.Errorf("it ended after %v, want not before 11 s: a leader change takes that long", d)
				}
				return
			}
		})
	})
	t.Run("taken by another", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, release := hold(t)
			defer release()
			z.mu.Lock()
			delete(z.locks, issueLock)
			z.mu.Unlock()
			if r, err := z.Lock(t.Context(), &joinv1.LockRequest{Name: issueLock, Holder: "other", TtlMs: 60_000}); err != nil || !r.Held {
				t.Fatal(r, err)
			}
			time.Sleep(5 * time.Second)
			if ctx.Err() == nil {
				t.Error("5 s after another has taken it: still alive")
			}
			delete(z.locks, issueLock)
		})
	})
	t.Run("taken again under the same name", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, release := hold(t)
			defer release()
			z.mu.Lock()
			l := z.locks[issueLock]
			l.fence++ // another's whole order lies between
			z.locks[issueLock] = l
			z.mu.Unlock()
			time.Sleep(5 * time.Second)
			if ctx.Err() == nil {
				t.Error("of an earlier taking: still alive")
			}
		})
	})
	ctx, cancel := edgetls.WhileHeld(edgetls.NewShelf(t, z), t.Context(), host)
	defer cancel()
	if ctx.Err() == nil {
		t.Error("of a lock that was never taken: alive")
	}
}
