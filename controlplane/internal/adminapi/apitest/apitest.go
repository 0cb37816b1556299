// Package apitest is for tests of the admin API and its clients: a group.Store in memory that can lose its
// quorum, seeded zones, and the real handler over them.
//
// It is no engine: nothing replicates and nothing survives the test. Stores may be used from several
// goroutines at once.
package apitest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Store is one group in memory.
type Store struct {
	name string
	down atomic.Bool
	cur  atomic.Pointer[snapshot]

	// mu serialises transactions: it covers seen and the replacement of cur.
	mu   sync.Mutex
	seen map[string]group.Result

	// Lose makes this many transactions answer OUTCOME_UNKNOWN after they were committed.
	Lose atomic.Int32
	// Before, if set, runs ahead of each transaction: a race made certain.
	Before func()
}

// NewStore returns an empty store.
func NewStore(name string) *Store {
	s := &Store{name: name, seen: map[string]group.Result{}}
	s.cur.Store(&snapshot{data: map[string]group.KV{}})
	return s
}

// SetDown takes the quorum away: everything but local reads waits for it.
func (s *Store) SetDown(down bool) { s.down.Store(down) }

// Put writes a value as a test's given state.
func (s *Store) Put(key string, value []byte) {
	if _, err := s.apply(group.Txn{Ops: []group.Op{{Key: key, Value: value}}}); err != nil {
		panic(err)
	}
}

// Rewind goes back to a state that Local told, for the next case of a test.
func (s *Store) Rewind(to group.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur.Store(to.(*snapshot))
}

// Dump is the whole state as text, to see that nothing changed.
func (s *Store) Dump() string {
	var b strings.Builder
	for kv := range s.Local().List("") {
		fmt.Fprintf(&b, "%s@%d=%s\n", kv.Key, kv.ModIndex, kv.Value)
	}
	return b.String()
}

func (s *Store) wait(ctx context.Context) error {
	for s.down.Load() {
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, group.ReasonNoLeader, "%s has no leader: %w", s.name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (s *Store) Name() string          { return s.name }
func (s *Store) Local() group.Snapshot { return s.cur.Load() }
func (s *Store) Leader() (string, bool) {
	if s.down.Load() {
		return "", false
	}
	return "node-1", true
}

func (s *Store) Sync(ctx context.Context) (group.Snapshot, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return s.Local(), nil
}

func (s *Store) Get(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return group.KV{}, false, group.Revision{}, err
	}
	kv, ok := snap.Get(key)
	return kv, ok, snap.Revision(), nil
}

func (s *Store) List(ctx context.Context, prefix string) ([]group.KV, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return nil, group.Revision{}, err
	}
	return slices.Collect(snap.List(prefix)), snap.Revision(), nil
}

func (s *Store) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	if err := t.Validate(); err != nil {
		return group.Result{}, err
	}
	if err := s.wait(ctx); err != nil {
		return group.Result{}, err
	}
	if s.Before != nil {
		s.Before()
	}
	res, err := s.apply(t)
	if err == nil && s.Lose.Load() > 0 {
		s.Lose.Add(-1)
		return group.Result{}, fault.New(fault.Unavailable, group.ReasonOutcomeUnknown, "the leader went away")
	}
	return res, err
}

func (s *Store) apply(t group.Txn) (group.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.seen[t.RequestID]; ok && t.RequestID != "" {
		r.Replayed = true
		return r, nil
	}
	cur := s.cur.Load()
	res := group.Result{Succeeded: true, Failed: -1, Revision: cur.rev, Time: time.Now()}
	for i, c := range t.Compares {
		kv, exists := cur.data[c.Key]
		if c.Exists && !exists || !c.Exists && kv.ModIndex != c.ModIndex {
			res.Succeeded, res.Failed = false, i
			s.seen[t.RequestID] = res
			return res, nil
		}
	}
	next := &snapshot{data: maps.Clone(cur.data), rev: group.Revision{Epoch: 1, Index: cur.rev.Index + 1}}
	for _, op := range t.Ops {
		if op.Delete {
			delete(next.data, op.Key)
			continue
		}
		kv := group.KV{Key: op.Key, Value: op.Value, CreateIndex: next.rev.Index, ModIndex: next.rev.Index, Version: 1}
		if old, ok := cur.data[op.Key]; ok {
			kv.CreateIndex, kv.Version = old.CreateIndex, old.Version+1
		}
		next.data[op.Key] = kv
	}
	res.Revision = next.rev
	s.cur.Store(next)
	s.seen[t.RequestID] = res
	return res, nil
}

func (s *Store) WaitFor(context.Context, uint64) error { return nil } // applied at once

func (s *Store) Watch(uint64, string) (group.Watch, error) {
	return nil, fault.New(fault.Unimplemented, "NO_WATCH", "the store of tests has no watches")
}

func (s *Store) VerifyLeader(ctx context.Context) error { return s.wait(ctx) }

func (s *Store) RunLeader(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

type snapshot struct {
	rev  group.Revision
	data map[string]group.KV
}

func (s *snapshot) Revision() group.Revision        { return s.rev }
func (s *snapshot) Len() int                        { return len(s.data) }
func (s *snapshot) Get(key string) (group.KV, bool) { kv, ok := s.data[key]; return kv, ok }
func (s *snapshot) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		var kvs []group.KV
		for k, kv := range s.data {
			if strings.HasPrefix(k, prefix) {
				kvs = append(kvs, kv)
			}
		}
		slices.SortFunc(kvs, func(a, b group.KV) int { return cmp.Compare(a.Key, b.Key) })
		for _, kv := range kvs {
			if !yield(kv) {
				return
			}
		}
	}
}
