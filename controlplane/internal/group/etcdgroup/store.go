package etcdgroup

import (
	"context"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// Store is group.Store below a prefix of etcd.
type Store struct {
	cfg    Config
	client *clientv3.Client
	turn   *replica.Turn
	hist   *replica.History
	cur    atomic.Pointer[replica.State]

	haltOnce sync.Once
	halted   chan struct{}
}

var _ group.Store = (*Store)(nil)

// Open does no I/O. Run makes the Store work; until then reads and writes wait.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Store{cfg: cfg, turn: replica.NewTurn(), hist: replica.NewHistory(cfg.Name, cfg.WatchWindow), halted: make(chan struct{})}
	empty := replica.Empty()
	s.cur.Store(&empty)
	return s, nil
}

// Run follows the group until ctx ends (nil) or the node cannot go on.
func (s *Store) Run(ctx context.Context) error {
	<-ctx.Done()
	s.haltOnce.Do(func() { close(s.halted) })
	return nil
}

// Name is part of group.Store.
func (s *Store) Name() string { return s.cfg.Name }

// Local is part of group.Store.
func (s *Store) Local() group.Snapshot { return s.cur.Load() }

// Sync is part of group.Store.
func (s *Store) Sync(ctx context.Context) (group.Snapshot, error) { return nil, replica.ErrStopped }

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
	return group.Result{}, replica.ErrStopped
}

// Watch is part of group.Store.
func (s *Store) Watch(from uint64, prefix string) (group.Watch, error) {
	return s.hist.Watch(from, prefix, s.halted)
}

// WaitFor is part of group.Store.
func (s *Store) WaitFor(ctx context.Context, index uint64) error {
	return s.hist.WaitFor(ctx, index, s.halted)
}

// Leader is part of group.Store.
func (s *Store) Leader() (name string, self bool) { return "", false }

// VerifyLeader is part of group.Store.
func (s *Store) VerifyLeader(ctx context.Context) error { return replica.ErrStopped }

// RunLeader is part of group.Store.
func (s *Store) RunLeader(ctx context.Context, work func(ctx context.Context)) error {
	return s.turn.Serve(ctx, s.halted, func() error { return nil }, work)
}
