package raftgroup

import (
	"context"
	"crypto/rand"
	"sync"

	"bailiwick/controlplane/internal/group"
)

// Store is group.Store on a Node of its own.
type Store struct {
	node *Node
	mem  *memory
}

var _ group.Store = (*Store)(nil)

// NewStore is New with the store's own Machine, which lives in memory.
func NewStore(cfg Config) (*Store, error) {
	mem := newMemory(cfg.Group, cfg.withDefaults().WatchWindow, cfg.withDefaults().CheckEvery)
	mem.knows = cfg.knows
	n, err := New(cfg, mem)
	if err != nil {
		return nil, err
	}
	return &Store{node: n, mem: mem}, nil
}

// Node is the group's member: its doors, its Stats.
func (s *Store) Node() *Node { return s.node }

// Run is Node.Run, and hashes the state beside it.
func (s *Store) Run(ctx context.Context) error {
	hashing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.mem.checks.run(hashing) })
	err := s.node.Run(ctx)
	stop()
	wg.Wait()
	return err
}

// Close is Node.Close, for a Store that is never Run.
func (s *Store) Close() error { return s.node.Close() }

// Name is part of group.Store.
func (s *Store) Name() string { return s.node.cfg.Group }

// Local is part of group.Store.
func (s *Store) Local() group.Snapshot { return s.mem.cur.Load() }

// Sync is part of group.Store.
func (s *Store) Sync(ctx context.Context) (group.Snapshot, error) {
	index, err := s.node.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.node.WaitApplied(ctx, index); err != nil {
		return nil, err
	}
	return s.Local(), nil
}

// Get is part of group.Store.
func (s *Store) Get(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return group.KV{}, false, group.Revision{}, err
	}
	kv, ok := snap.Get(key)
	return kv, ok, snap.Revision(), nil
}

// List is part of group.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]group.KV, group.Revision, error) {
	snap, err := s.Sync(ctx)
	if err != nil {
		return nil, group.Revision{}, err
	}
	var out []group.KV
	for kv := range snap.List(prefix) {
		out = append(out, kv)
	}
	return out, snap.Revision(), nil
}

// Txn is part of group.Store.
func (s *Store) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	if err := t.Validate(); err != nil {
		return group.Result{}, err
	}
	drawn := t.RequestID == ""
	if drawn {
		t.RequestID = rand.Text() // Propose itself retries after an unknown outcome
	}
	r, err := s.propose(ctx, encodeTxn(t))
	r.Replayed = r.Replayed && !drawn // who gave no id has asked once
	return r, err
}

func (s *Store) propose(ctx context.Context, cmd []byte) (group.Result, error) {
	out, err := s.node.Propose(ctx, cmd)
	if err != nil {
		return group.Result{}, err
	}
	r, err := decodeResult(out)
	if err != nil {
		return group.Result{}, unknownOutcome(s.Name(), err)
	}
	return r, nil
}

// OpenEpoch raises the epoch, after an operator recovered the group from a lost
// quorum or a backup: positions given out before mean nothing any more, and all
// watches end with COMPACTED.
func (s *Store) OpenEpoch(ctx context.Context) (group.Revision, error) {
	r, err := s.propose(ctx, encodeEpoch(rand.Text()))
	return r.Revision, err
}

// Watch is part of group.Store.
func (s *Store) Watch(from uint64, prefix string) (group.Watch, error) {
	return s.mem.hist.Watch(from, prefix, s.node.halted)
}

// WaitFor is part of group.Store.
func (s *Store) WaitFor(ctx context.Context, index uint64) error {
	return s.mem.hist.WaitFor(ctx, index, s.node.halted)
}

// Leader is part of group.Store.
func (s *Store) Leader() (name string, self bool) { return s.node.Leader() }

// VerifyLeader is part of group.Store.
func (s *Store) VerifyLeader(ctx context.Context) error { return s.node.VerifyLeader(ctx) }

// RunLeader is part of group.Store.
func (s *Store) RunLeader(ctx context.Context, work func(ctx context.Context)) error {
	return s.node.RunLeader(ctx, work)
}

// StateHash is over all replicated state: nodes that applied the same entries
// have the same.
func (s *Store) StateHash() (group.Revision, [32]byte) { return s.mem.hash() }
