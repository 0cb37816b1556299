package raftgroup

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Captured says which state of a group a capture is.
type Captured struct {
	Entry, Term uint64 // of the log, the last that is part of it
	Incarnation uint64
	Revision    group.Revision // of a Store's state
	Size        int64
}

// Capture is the group's state, with all that was acknowledged before the call, as Restore reads it.
func (n *Node) Capture(ctx context.Context) (Captured, io.ReadCloser, error) {
	fail := func(err error) (Captured, io.ReadCloser, error) {
		return Captured{}, nil, fmt.Errorf("capture group %s: %w", n.cfg.Group, err)
	}
	index, err := n.ReadIndex(ctx)
	if err == nil {
		err = n.WaitApplied(ctx, index)
	}
	if err != nil {
		return fail(err)
	}
	var meta *raft.SnapshotMeta
	var rc io.ReadCloser
	f, err := n.await(ctx, func() raft.Future { return n.raft.Snapshot() })
	switch {
	case err == nil:
		meta, rc, err = f.(raft.SnapshotFuture).Open()
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		var metas []*raft.SnapshotMeta
		if metas, err = n.snaps.List(); err == nil && len(metas) == 0 {
			err = fault.New(fault.Unavailable, "NOTHING_TO_CAPTURE", "nothing was ever written to it")
		}
		if err == nil {
			meta, rc, err = n.snaps.Open(metas[0].ID)
		}
	}
	if err != nil {
		return fail(err)
	}
	c := Captured{Entry: meta.Index, Term: meta.Term, Incarnation: n.member.Incarnation, Size: meta.Size}
	if _, ok := n.machine.(*memory); ok {
		if c.Revision, err = n.revisionOf(meta.ID); err != nil {
			rc.Close()
			return fail(err)
		}
	}
	return c, rc, nil
}

// revisionOf reads the revision at the beginning of a Store's snapshot.
func (n *Node) revisionOf(id string) (group.Revision, error) {
	_, rc, err := n.snaps.Open(id)
	if err != nil {
		return group.Revision{}, err
	}
	defer rc.Close()
	r, err := newSnapshotReader(rc)
	if err != nil {
		return group.Revision{}, err
	}
	defer r.Close()
	b := bufio.NewReader(r)
	var v [3]uint64 // version, epoch, index
	for i := range v {
		if v[i], err = binary.ReadUvarint(b); err != nil {
			return group.Revision{}, err
		}
	}
	return group.Revision{Epoch: v[1], Index: v[2]}, nil
}

// Restore makes a group of which the node in cfg, under the id server, is the only member from a capture, in a new incarnation and, if open
// is not nil, a new epoch. cfg.Dir must not exist; it does when Restore returns nil, whole, and not before.
func Restore(cfg Config, server string, c Captured, state io.Reader, open func(Recovered) ([]group.Op, error), now time.Time) (Recovered, error) {
	r := Recovered{Incarnation: max(c.Incarnation+1, uint64(now.Unix())), Term: c.Term + 1, Last: c.Entry + 1}
	if open != nil {
		r.Last++
	}
	r.Before.Last, r.Before.Commit = c.Entry, c.Entry
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("restore group %s: %s exists: set it aside first", cfg.Group, cfg.Dir)
	}
	making := cfg.Dir + ".restoring"
	err := os.RemoveAll(making)
	if err == nil {
		err = restoreInto(cfg, server, making, c, state, open, r, now)
	}
	if err == nil {
		err = os.Rename(making, cfg.Dir)
	}
	if err == nil {
		err = syncDir(filepath.Dir(cfg.Dir))
	}
	if err != nil {
		return r, errors.Join(fmt.Errorf("restore group %s: %w", cfg.Group, err), os.RemoveAll(making))
	}
	return r, nil
}

func restoreInto(cfg Config, server, dir string, c Captured, state io.Reader, open func(Recovered) ([]group.Op, error), r Recovered, now time.Time) error {
	entries, err := reopening(cfg, server, r, open, now)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	snaps, err := openSnapshots(dir, cfg.Group, newHclog(cfg.withDefaults().Logger), func(error) {})
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(cfg.Node))
	sink, err := snaps.Create(1, c.Entry, c.Term, alone(server, cfg.Node), 1, trans)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sink, state); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil { // read back to its end
		return err
	}
	d, err := openDisk(filepath.Join(dir, "raft.db"))
	if err != nil {
		return err
	}
	return errors.Join(d.reopen(Member{Server: server, Incarnation: r.Incarnation, Since: now.UTC()}, entries), d.Close(), syncDir(dir))
}

func alone(server, node string) raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(server), Address: raft.ServerAddress(node)}}}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
