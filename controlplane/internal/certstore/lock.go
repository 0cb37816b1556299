package certstore

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity/shelf"
)

// lock is a lock as it rests.
type lock struct {
	Holder  string    `json:"holder"`
	Expires time.Time `json:"expires"` // of the leader's time
	Fence   uint64    `json:"fence"`   // of this taking; every later one's is higher
	Edge    string    `json:"edge,omitempty"`
}

func lockKey(name string) string { return model.PrefixLock + "cert/" + name }

// underway bounds how often a write meets its own lock being lengthened.
const underway = 8

// guarded makes ops if lease is of the lock that guards key and nobody has taken
// that since: whether it is so is decided in the transaction that writes. A lock
// that has ended but that nobody wanted is still its holder's.
func (s *Service) guarded(ctx context.Context, key string, lease *joinv1.Lease, ops []group.Op) error {
	if lease == nil || !shelf.Guards(lease.GetName(), key) {
		return fault.New(fault.Invalid, ReasonUnguarded, "this key is written under the lock that guards it only; the lease is of %q", lease.GetName()).At("lease")
	}
	for range underway {
		compare, err := s.leased(ctx, lease)
		if err != nil {
			return err
		}
		res, err := s.store.Txn(ctx, group.Txn{Compares: []group.Compare{compare}, Ops: ops})
		if err != nil || res.Succeeded {
			return err
		}
	}
	return lost(lease)
}

func lost(lease *joinv1.Lease) error {
	return fault.New(fault.Conflict, ReasonLost, "the lock %s with fence %d is no longer this edge's: nothing is written", lease.GetName(), lease.GetFence())
}

// leased is the condition that lease still holds.
func (s *Service) leased(ctx context.Context, lease *joinv1.Lease) (group.Compare, error) {
	key := lockKey(lease.GetName())
	kv, ok, _, err := s.store.Get(ctx, key)
	if err != nil {
		return group.Compare{}, err
	}
	if !ok {
		return group.Compare{}, lost(lease)
	}
	cur, err := model.Decode[lock](model.PrefixLock, kv.Value)
	if err == nil && (cur.Holder != lease.GetHolder() || cur.Fence != lease.GetFence()) {
		err = lost(lease)
	}
	return group.Compare{Key: key, ModIndex: kv.ModIndex}, err
}

// Lock takes, or for the same holder renews, a lock for a time. held false is
// no error: somebody else has it. It never waits.
func (s *Service) Lock(ctx context.Context, req *joinv1.LockRequest) (*joinv1.LockResponse, error) {
	ttl := time.Duration(req.GetTtlMs()) * time.Millisecond
	if err := s.lockRequest(ctx, req.GetName(), req.GetHolder()); err != nil {
		return nil, err
	}
	if req.GetTtlMs() < MinLockTTL.Milliseconds() || req.GetTtlMs() > MaxLockTTL.Milliseconds() {
		return nil, fault.New(fault.Invalid, ReasonLock, "ttl_ms is not between %d and %d", MinLockTTL.Milliseconds(), MaxLockTTL.Milliseconds()).At("ttl_ms")
	}
	key := lockKey(req.GetName())
	kv, ok, _, err := s.store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	cur := lock{}
	if ok {
		if cur, err = model.Decode[lock](model.PrefixLock, kv.Value); err != nil {
			return nil, err
		}
		// This node's clock only spares the leader the question: it never decides
		// that a lock has ended.
		if cur.Holder != req.GetHolder() && time.Until(cur.Expires) > 0 {
			return &joinv1.LockResponse{}, nil
		}
	}
	compare := []group.Compare{{Key: key, ModIndex: kv.ModIndex}}
	who, _ := peer.NameFrom(ctx)
	if !ok {
		if err := s.admit(ctx, req.GetName(), who.Node); err != nil {
			return nil, err
		}
	}
	// A transaction without operations asks the leader for the time.
	res, err := s.store.Txn(ctx, group.Txn{Compares: compare})
	if err != nil {
		return nil, err
	}
	mine := ok && cur.Holder == req.GetHolder()
	if !res.Succeeded || ok && !mine && !res.Time.After(cur.Expires) {
		return &joinv1.LockResponse{}, nil
	}
	// Above every revision so far, and so above every fence: a lock is taken in a
	// transaction of its own.
	fence := res.Revision.Index + 1
	if mine {
		fence = cur.Fence
	}
	res, err = s.store.Txn(ctx, group.Txn{
		Compares: compare,
		Ops:      []group.Op{{Key: key, Value: model.Encode(lock{req.GetHolder(), res.Time.Add(ttl).UTC(), fence, who.Node})}},
	})
	if err != nil {
		return nil, err
	}
	if !res.Succeeded {
		return &joinv1.LockResponse{}, nil
	}
	return &joinv1.LockResponse{Held: true, Fence: fence}, nil
}

// admit says whether a lock may come into being: names are chosen by edges, and one of them alone must not fill the store.
func (s *Service) admit(ctx context.Context, name, edge string) error {
	if host, ok := shelf.IssueOf(name); ok {
		known, err := s.hosts.Published(ctx, host)
		if err == nil && !known {
			err = fault.New(fault.NotFound, ReasonHost, "no API of the zone is published at %q: there is nothing to lock for it", host).At("name")
		}
		return err
	}
	n := 0
	var over []group.KV // this edge's that have ended: of certificates that were renewed, mostly
	for kv := range s.store.Local().List(lockKey("")) {
		l, err := model.Decode[lock](model.PrefixLock, kv.Value)
		if err != nil {
			return err
		}
		if _, issue := shelf.IssueOf(kv.Key[len(lockKey("")):]); issue || l.Edge != edge {
			continue
		}
		if n++; time.Since(l.Expires) > MaxLockTTL { // beyond any doubt about clocks
			over = append(over, kv)
		}
	}
	if n < MaxLocks {
		return nil
	}
	if len(over) == 0 {
		return fault.New(fault.Exhausted, ReasonLocks, "edge %s holds %d locks, at most %d may be held at a time", edge, n, MaxLocks).At("name")
	}
	var t group.Txn
	for _, kv := range over {
		t.Compares = append(t.Compares, group.Compare{Key: kv.Key, ModIndex: kv.ModIndex})
		t.Ops = append(t.Ops, group.Op{Key: kv.Key, Delete: true})
	}
	_, err := s.store.Txn(ctx, t)
	return err
}

// Unlock releases the holder's lock; one that it no longer holds is no error.
func (s *Service) Unlock(ctx context.Context, req *joinv1.UnlockRequest) (*joinv1.UnlockResponse, error) {
	if err := s.lockRequest(ctx, req.GetName(), req.GetHolder()); err != nil {
		return nil, err
	}
	key := lockKey(req.GetName())
	kv, ok, _, err := s.store.Get(ctx, key)
	if err != nil || !ok {
		return &joinv1.UnlockResponse{}, err
	}
	cur, err := model.Decode[lock](model.PrefixLock, kv.Value)
	if err != nil || cur.Holder != req.GetHolder() {
		return &joinv1.UnlockResponse{}, err
	}
	_, err = s.store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: key, ModIndex: kv.ModIndex}},
		Ops:      []group.Op{{Key: key, Delete: true}},
	})
	return &joinv1.UnlockResponse{}, err
}

func (s *Service) lockRequest(ctx context.Context, name, holder string) error {
	if err := s.edge(ctx); err != nil {
		return err
	}
	if name == "" || len(name) > MaxKey || holder == "" || len(holder) > 128 {
		return fault.New(fault.Invalid, ReasonLock, "a lock has a name of 1 to %d and a holder of 1 to 128 bytes", MaxKey).At("name")
	}
	return nil
}
