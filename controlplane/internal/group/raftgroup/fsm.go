package raftgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group/replica"
)

// An envelope is version u8, the leader's stamp i64 (nanoseconds since 1970,
// big-endian), the Machine's command.
const (
	envelopeVersion = 1
	envelopeHeader  = 1 + 8
)

func seal(at time.Time, cmd []byte) []byte {
	b := make([]byte, 1, envelopeHeader+len(cmd))
	b[0] = envelopeVersion
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	return append(b, cmd...)
}

func unseal(b []byte) (at int64, cmd []byte, err error) {
	if len(b) < envelopeHeader {
		return 0, nil, fmt.Errorf("command of %d bytes is cut short", len(b))
	}
	if b[0] != envelopeVersion {
		return 0, nil, fmt.Errorf("command envelope version %d is unknown, this program knows %d: run a newer bailiwick-control", b[0], envelopeVersion)
	}
	return int64(binary.BigEndian.Uint64(b[1:])), b[envelopeHeader:], nil
}

// progress is a number that only grows and that callers wait for.
type progress struct {
	mu  sync.Mutex // covers both
	at  uint64
	hit chan struct{} // closed and replaced at each advance
}

func newProgress() *progress { return &progress{hit: make(chan struct{})} }

func (p *progress) get() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func (p *progress) advance(to uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to > p.at {
		p.at = to
		close(p.hit)
		p.hit = make(chan struct{})
	}
}

func (p *progress) wait(ctx context.Context, want uint64, stop <-chan struct{}) error {
	for {
		p.mu.Lock()
		at, hit := p.at, p.hit
		p.mu.Unlock()
		if at >= want {
			return nil
		}
		select {
		case <-hit:
		case <-stop:
			return replica.ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type applied struct {
	out []byte
	err error
}

// fsm fits a Machine to raft. raft's AppliedIndex says what was handed to this
// goroutine, not what it has done (ellanetworks/core#1350), so fsm counts itself:
// visible is the latest entry that concerns a Machine (command or configuration),
// which every node computes alike; done also counts a leader's own barrier.
type fsm struct {
	group   string
	machine Machine
	fail    func(error)
	commit  func(index uint64) // told what raft hands over, which is committed; nil while the disk is replayed

	done, visible *progress
	dead          atomic.Bool // after a fatal error nothing is applied or snapshot
	stamp         int64       // highest stamp so far; only the FSM goroutine
}

var errDead = errors.New("this node stopped applying after a fatal error")

func (f *fsm) see(index uint64) {
	if f.commit != nil {
		f.commit(index)
	}
	f.visible.advance(index)
	f.done.advance(index)
}

func (f *fsm) die(err error) error {
	f.dead.Store(true)
	f.fail(err)
	return err
}

// Apply is part of raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	if f.dead.Load() {
		return applied{err: errDead}
	}
	stamp, cmd, err := unseal(l.Data)
	if err != nil {
		return applied{err: f.die(fmt.Errorf("apply entry %d: %w", l.Index, err))}
	}
	// A new leader's clock may be behind its predecessor's.
	f.stamp = max(f.stamp, stamp)
	var out []byte
	if l.Index > f.machine.Applied() { // else it is part of the state already
		if out, err = f.machine.Apply(l.Index, time.Unix(0, f.stamp).UTC(), cmd); err != nil {
			return applied{err: f.die(fmt.Errorf("apply entry %d: %w", l.Index, err))}
		}
	}
	f.see(l.Index)
	return applied{out: out}
}

// StoreConfiguration is part of raft.ConfigurationStore. Without it raft does
// not count a configuration as applied, and a quiet group never snapshots.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) {
	if !f.dead.Load() {
		f.see(index)
	}
}

// Snapshot is part of raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.dead.Load() {
		return nil, errDead
	}
	write, release, err := f.machine.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", f.group, err)
	}
	return &fsmSnapshot{snapshotHeader{group: f.group, visible: f.visible.get(), stamp: f.stamp}, write, release}, nil
}

type fsmSnapshot struct {
	header  snapshotHeader
	write   func(io.Writer) error
	release func()
}

func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	return writeSnapshot(sink, s.header, s.write)
}

func (s *fsmSnapshot) Release() {
	if s.release != nil {
		s.release()
	}
}

// Restore is part of raft.FSM. A failed restore may leave the state half
// replaced (rqlite#2759): it is fatal.
func (f *fsm) Restore(rc io.ReadCloser) error {
	if f.dead.Load() {
		return errDead
	}
	r, err := newSnapshotReader(rc)
	if err != nil {
		return f.die(fmt.Errorf("restore %s: %w", f.group, err))
	}
	defer r.Close()
	if r.group != f.group {
		return f.die(fmt.Errorf("restore %s: the snapshot belongs to group %q", f.group, r.group))
	}
	// A Machine with its own files may be ahead of a snapshot taken earlier.
	if a := f.machine.Applied(); a == 0 || a < r.visible {
		if err := f.machine.Restore(r); err != nil {
			return f.die(fmt.Errorf("restore %s: %w", f.group, err))
		}
	}
	f.stamp = max(f.stamp, r.stamp)
	f.see(r.visible)
	return nil
}
