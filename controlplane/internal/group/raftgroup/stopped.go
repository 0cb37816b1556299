package raftgroup

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// Stopped is what a stopped node holds of a group, up to the last entry of which it knows that it is committed: of a group whose
// only voter it is, to the end of its log. While it is open the node does not start. Elsewhere, what stands in the log behind that entry may never have been committed, and then the group
// has gone on without it: a state with it in might be one that never was. Recover takes it, for a group that is gone.
type Stopped struct {
	Captured        // Size is set by OpenStopped
	Beyond   uint64 // entries left out

	disk    *boltDisk
	machine Machine
	header  snapshotHeader
	write   func(io.Writer) error
	release func()
}

// OpenStopped proves the files in cfg.Dir, of which it changes none, and brings m, of the ledger, to what they hold; nil is a
// Store's. An m that keeps files of its own is changed as at the node's next start.
func OpenStopped(cfg Config, m Machine) (*Stopped, error) {
	fail := func(err error) (*Stopped, error) {
		return nil, fmt.Errorf("read stopped group %s in %s: %w", cfg.Group, cfg.Dir, err)
	}
	if err := cfg.condemned(); err != nil {
		return fail(err)
	}
	in, err := Inspect(cfg.Dir, cfg.Group)
	if err != nil {
		return fail(err)
	}
	in.settle(cfg.Node)
	cfg = cfg.withDefaults()
	if m == nil {
		m = newMemory(cfg.Group, cfg.WatchWindow, 0)
	}
	s := &Stopped{machine: m}
	path := filepath.Join(cfg.Dir, "raft.db")
	db, err := openBolt(path, true)
	if err != nil {
		return fail(err)
	}
	s.disk = &boltDisk{db: db, path: path}
	if err := s.load(cfg, in); err != nil {
		s.Close()
		return fail(err)
	}
	return s, nil
}

func (s *Stopped) load(cfg Config, in Inspection) error {
	var broken error
	n := &Node{cfg: cfg, machine: s.machine, disk: s.disk}
	n.fsm = &fsm{group: cfg.Group, machine: s.machine, fail: func(err error) { broken = err }, done: newProgress(), visible: newProgress()}
	var err error
	if n.snaps, err = openSnapshots(cfg.Dir, cfg.Group, newHclog(slog.New(slog.DiscardHandler)), func(err error) { broken = err }); err != nil {
		return err
	}
	newest, bad, err := n.snaps.verifyAll()
	if err != nil {
		return err
	}
	if in.First > newest+1 || in.First == 0 && len(bad) > 0 && newest == 0 {
		return fmt.Errorf("the log begins at entry %d but the newest readable snapshot ends at %d: entries between are gone: back up another node of the zone", in.First, newest)
	}
	if err := n.replay(in.Commit); err != nil {
		return err
	}
	if broken != nil {
		return broken
	}
	s.Incarnation = in.Member.Incarnation
	s.Entry = max(in.Commit, newest, s.machine.Applied())
	if s.Entry == 0 {
		return fmt.Errorf("it knows of nothing that is committed: back up another node of the zone")
	}
	s.Beyond = max(in.Last, s.Entry) - s.Entry
	if s.Term, err = s.term(in); err != nil {
		return err
	}
	if m, ok := s.machine.(*memory); ok {
		s.Revision = m.cur.Load().Rev
	}
	s.header = snapshotHeader{group: cfg.Group, visible: max(n.fsm.visible.get(), s.machine.Applied()), stamp: n.fsm.stamp}
	if s.write, s.release, err = s.machine.Snapshot(); err != nil {
		return err
	}
	var size counter
	if err := s.Write(&size); err != nil {
		return err
	}
	s.Size = int64(size)
	return nil
}

// term is the Entry's.
func (s *Stopped) term(in Inspection) (uint64, error) {
	var l raft.Log
	if in.First > 0 && s.Entry >= in.First && s.Entry <= in.Last {
		err := s.disk.GetLog(s.Entry, &l)
		return l.Term, err
	}
	for _, snap := range in.Snapshots {
		if snap.Err == nil && snap.Index == s.Entry {
			return snap.Term, nil
		}
	}
	return 0, fmt.Errorf("entry %d is in neither log nor snapshot", s.Entry)
}

// Write writes the state as Restore reads it: Size bytes, the same ones each time.
func (s *Stopped) Write(w io.Writer) error { return writeSnapshot(w, s.header, s.write) }

// Store is the state as one that can be read and watched, nil for the ledger. It never leads, and nothing is written to it.
func (s *Stopped) Store() group.Store {
	m, ok := s.machine.(*memory)
	if !ok {
		return nil
	}
	return stoppedStore{m}
}

// Close lets the node start again.
func (s *Stopped) Close() error {
	if s.release != nil {
		s.release()
	}
	return s.disk.Close()
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type stoppedStore struct{ mem *memory }

func (s stoppedStore) Name() string { return s.mem.name }

func (s stoppedStore) Local() group.Snapshot { return s.mem.cur.Load() }

func (s stoppedStore) Watch(from uint64, prefix string) (group.Watch, error) {
	return s.mem.hist.Watch(from, prefix, nil)
}

func (s stoppedStore) WaitFor(ctx context.Context, index uint64) error {
	return s.mem.hist.WaitFor(ctx, index, nil)
}

func (s stoppedStore) Leader() (string, bool) { return "", false }

func (s stoppedStore) RunLeader(ctx context.Context, _ func(context.Context)) error {
	<-ctx.Done()
	return nil
}

func (s stoppedStore) Get(context.Context, string) (group.KV, bool, group.Revision, error) {
	return group.KV{}, false, group.Revision{}, replica.ErrStopped
}

func (s stoppedStore) List(context.Context, string) ([]group.KV, group.Revision, error) {
	return nil, group.Revision{}, replica.ErrStopped
}

func (s stoppedStore) Sync(context.Context) (group.Snapshot, error) { return nil, replica.ErrStopped }

func (s stoppedStore) Txn(context.Context, group.Txn) (group.Result, error) {
	return group.Result{}, replica.ErrStopped
}

func (s stoppedStore) VerifyLeader(context.Context) error { return replica.ErrStopped }
