package certstore_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/certstore"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

const (
	fencedKey  = "certificates/ca/a.test/a.test.key"
	fencedMeta = "certificates/ca/a.test/a.test.json"
	fencedLock = "issue_cert_a.test"
)

// Whoever has lost a lock writes nothing, however long he slept and whatever he calls.
func TestFence_WhoLostTheLockWritesNothing(t *testing.T) {
	s, ctx := start(t)
	old := take(t, s, ctx, fencedLock, "sleeper", certstore.MinLockTTL)
	store := func(lease *joinv1.Lease, key, value string) error {
		_, err := s.Store(ctx, &joinv1.StoreRequest{Key: key, Value: []byte(value), Lease: lease})
		return err
	}
	if err := store(old, fencedKey, "first"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Order(ctx, &joinv1.OrderRequest{Host: "a.test", Tries: 2, Lease: old}); err != nil {
		t.Fatal(err)
	}
	var next *joinv1.Lease
	for deadline := time.Now().Add(time.Minute); next == nil; time.Sleep(50 * time.Millisecond) {
		r, err := s.Lock(ctx, &joinv1.LockRequest{Name: fencedLock, Holder: "waker", TtlMs: 60_000})
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("the lock never ends: %v", err)
		}
		if r.Held {
			next = &joinv1.Lease{Name: fencedLock, Holder: "waker", Fence: r.Fence}
		}
	}
	if next.Fence <= old.Fence {
		t.Errorf("fence of the next holder: got %d, want above %d", next.Fence, old.Fence)
	}
	if err := store(next, fencedKey, "second"); err != nil {
		t.Fatal(err)
	}
	thief := &joinv1.Lease{Name: fencedLock, Holder: "waker", Fence: old.Fence}
	for name, lease := range map[string]*joinv1.Lease{"the old lease": old, "the old fence": thief} {
		_, e1 := s.Delete(ctx, &joinv1.DeleteRequest{Key: fencedKey, Lease: lease})
		_, e2 := s.Order(ctx, &joinv1.OrderRequest{Host: "a.test", Tries: 1, Lease: lease})
		_, e3 := s.Ordered(ctx, &joinv1.OrderedRequest{Host: "a.test", Lease: lease, Outcome: joinv1.OrderOutcome_ORDER_OUTCOME_ISSUED})
		for i, err := range []error{store(lease, fencedKey, "late"), e1, e2, e3} {
			if fault.ReasonOf(err) != certstore.ReasonLost {
				t.Errorf("%s, call %d: got %v, want %s", name, i, err, certstore.ReasonLost)
			}
		}
	}
	if r, err := s.Lock(ctx, &joinv1.LockRequest{Name: fencedLock, Holder: "sleeper", TtlMs: 60_000}); err != nil || r.Held {
		t.Errorf("the old holder's extension: got %v, %v, want refused", r, err)
	}
	// The same name again is another taking: what its earlier life holds is void as well.
	if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: fencedLock, Holder: "waker"}); err != nil {
		t.Fatal(err)
	}
	if err := store(next, fencedKey, "released"); fault.ReasonOf(err) != certstore.ReasonLost {
		t.Errorf("after the release: got %v, want %s", err, certstore.ReasonLost)
	}
	again := take(t, s, ctx, fencedLock, "sleeper", time.Minute)
	if err := store(old, fencedKey, "reborn"); again.Fence <= next.Fence || fault.ReasonOf(err) != certstore.ReasonLost {
		t.Errorf("a lock taken again by the same name: fence %d after %d, and the first lease: %v", again.Fence, next.Fence, err)
	}
	if r, err := s.Load(ctx, &joinv1.LoadRequest{Key: fencedKey}); err != nil || string(r.Value) != "second" {
		t.Errorf("in the end: got %q, %v, want what the rightful holder wrote", r.GetValue(), err)
	}
}

func TestFence_EveryWriteNeedsTheLockThatGuardsIt(t *testing.T) {
	s, ctx := start(t)
	other := take(t, s, ctx, "issue_cert_b.test", "me", time.Minute)
	for name, lease := range map[string]*joinv1.Lease{"no lease": nil, "another host's": other} {
		_, e1 := s.Store(ctx, &joinv1.StoreRequest{Key: fencedKey, Value: []byte("v"), Lease: lease})
		_, e2 := s.Delete(ctx, &joinv1.DeleteRequest{Key: fencedKey, Lease: lease})
		_, e3 := s.Order(ctx, &joinv1.OrderRequest{Host: "a.test", Tries: 1, Lease: lease})
		_, e4 := s.Store(ctx, &joinv1.StoreRequest{Key: fencedKey, Value: []byte("v"), Lease: lease, IfVersion: 1})
		for i, err := range []error{e1, e2, e3, e4} {
			if fault.ReasonOf(err) != certstore.ReasonUnguarded {
				t.Errorf("%s, call %d: got %v, want %s", name, i, err, certstore.ReasonUnguarded)
			}
		}
	}
	// Metadata may be brought up to date by its version alone.
	mine := take(t, s, ctx, fencedLock, "me", time.Minute)
	if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: fencedMeta, Value: []byte("one"), Lease: mine}); err != nil {
		t.Fatal(err)
	}
	read, err := s.Load(ctx, &joinv1.LoadRequest{Key: fencedMeta})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: fencedMeta, Value: []byte("two"), IfVersion: read.Version}); err != nil {
		t.Errorf("metadata as it was read: got %v, want stored", err)
	}
	if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: fencedMeta, Value: []byte("three"), IfVersion: read.Version}); fault.ReasonOf(err) != certstore.ReasonReplaced {
		t.Errorf("metadata that was replaced since: got %v, want %s", err, certstore.ReasonReplaced)
	}
}

// A holder that lengthens its lock all the time does not refuse its own writes.
func TestFence_WritesBesideExtensions(t *testing.T) {
	s, ctx := start(t)
	lease := take(t, s, ctx, fencedLock, "me", time.Minute)
	extend, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for extend.Err() == nil {
			r, err := s.Lock(ctx, &joinv1.LockRequest{Name: fencedLock, Holder: "me", TtlMs: 60_000})
			if err != nil || !r.Held || r.Fence != lease.Fence {
				t.Errorf("extension: got %v, %v, want held with fence %d", r, err, lease.Fence)
				return
			}
			time.Sleep(5 * time.Millisecond) // a thousand times as often as an edge does
		}
	})
	for i := range 20 {
		if _, err := s.Store(ctx, &joinv1.StoreRequest{Key: fencedKey, Value: fmt.Append(nil, i), Lease: lease}); err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	stop()
	wg.Wait()
}

// between does something after the next read, before what is made of it.
type between struct {
	group.Store
	then *func()
}

func (b between) Get(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
	kv, ok, rev, err := b.Store.Get(ctx, key)
	if f := *b.then; f != nil {
		*b.then = nil
		f()
	}
	return kv, ok, rev, err
}

// Whether a lock is still held is decided where the write is: one that is lost between its check and the write
// is lost.
func TestFence_LostBetweenCheckAndWrite(t *testing.T) {
	var then func()
	s, ctx := startOn(t, func(store group.Store) group.Store { return between{store, &then} })
	writes := map[string]func(*joinv1.Lease) error{
		"store": func(l *joinv1.Lease) error {
			_, err := s.Store(ctx, &joinv1.StoreRequest{Key: fencedKey, Value: []byte("late"), Lease: l})
			return err
		},
		"delete": func(l *joinv1.Lease) error {
			_, err := s.Delete(ctx, &joinv1.DeleteRequest{Key: fencedKey, Lease: l})
			return err
		},
		"order": func(l *joinv1.Lease) error {
			_, err := s.Order(ctx, &joinv1.OrderRequest{Host: "a.test", Tries: 1, Lease: l})
			return err
		},
	}
	for name, write := range writes {
		old := take(t, s, ctx, fencedLock, "old/"+name, time.Minute)
		var next *joinv1.Lease
		then = func() {
			if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: fencedLock, Holder: old.Holder}); err != nil {
				t.Error(err)
			}
			next = take(t, s, ctx, fencedLock, "next/"+name, time.Minute)
		}
		if err := write(old); fault.ReasonOf(err) != certstore.ReasonLost {
			t.Errorf("%s: got %v, want %s", name, err, certstore.ReasonLost)
		}
		if err := write(next); err != nil {
			t.Errorf("%s by the next holder: %v", name, err)
		}
		if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: fencedLock, Holder: next.Holder}); err != nil {
			t.Fatal(err)
		}
	}
}

// Edges choose the names of locks. One for a host that nobody publishes comes to nothing, and of all others an edge holds so
// many at a time; what its renewals of long ago left behind makes room by itself.
func TestLock_OneEdgeDoesNotFillTheStore(t *testing.T) {
	s, ctx := start(t)
	if _, err := s.Lock(ctx, &joinv1.LockRequest{Name: "issue_cert_unknown.test", Holder: "me", TtlMs: 60_000}); fault.ReasonOf(err) != certstore.ReasonHost {
		t.Errorf("a host that nobody publishes: got %v, want %s", err, certstore.ReasonHost)
	}
	take(t, s, ctx, "issue_cert_a.test", "me", time.Minute)
	for i := range certstore.MaxLocks {
		take(t, s, ctx, fmt.Sprint("ari_", i), "me", time.Minute)
	}
	if _, err := s.Lock(ctx, &joinv1.LockRequest{Name: "ari_more", Holder: "me", TtlMs: 60_000}); fault.ReasonOf(err) != certstore.ReasonLocks {
		t.Errorf("one more than %d: got %v, want %s", certstore.MaxLocks, err, certstore.ReasonLocks)
	}
	take(t, s, ctx, "ari_0", "me", time.Minute)             // what it has is lengthened
	take(t, s, ctx, "issue_cert_b.test", "me", time.Minute) // and hosts are served
	other := name("emea", identity.Edge)
	other.Node = "n2"
	take(t, s, peer.WithName(t.Context(), other), "ari_more", "you", time.Minute) // and so are other edges
	if _, err := s.Unlock(ctx, &joinv1.UnlockRequest{Name: "ari_1", Holder: "me"}); err != nil {
		t.Fatal(err)
	}
	take(t, s, ctx, "ari_next", "me", time.Minute)
}

func TestLock_WhatEndedLongAgoMakesRoom(t *testing.T) {
	var under group.Store
	s, ctx := startOn(t, func(s group.Store) group.Store { under = s; return s })
	for i := range certstore.MaxLocks {
		value := fmt.Appendf(nil, `{"holder":"gone","edge":"n","fence":1,"expires":%q}`, time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
		if _, err := under.Txn(ctx, group.Txn{Ops: []group.Op{{Key: model.PrefixLock + fmt.Sprint("cert/ari_", i), Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	take(t, s, ctx, "ari_next", "me", time.Minute)
	kvs, _, err := under.List(ctx, model.PrefixLock+"cert/")
	if err != nil || len(kvs) != 1 {
		t.Errorf("locks: got %d, %v, want the new one alone", len(kvs), err)
	}
}
