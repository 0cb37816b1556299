package raftgroup

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

func marker(Recovered) ([]group.Op, error) {
	return []group.Op{{Key: "recovered", Value: []byte("yes")}}, nil
}

// lost is a cluster of which two nodes are gone for good and the third has stopped; before is its last revision.
func lost(t *testing.T, base Config) (c *cluster, survivor string, before group.Revision) {
	t.Helper()
	c = newCluster(t, base)
	survivor = c.follower().node.cfg.Node
	for _, v := range []string{"1", "2", "3"} {
		before = put(t, c.leader(), "k"+v, v).Revision
		for _, s := range c.stores { // each writes down with the next entry that this one is committed
			if err := s.WaitFor(short(t), before.Index); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name := range c.stores {
		if name != survivor {
			c.kill(name)
		}
	}
	c.kill(survivor)
	return c, survivor, before
}

func TestRecover_OneSurvivorGoesOnInANewEpoch(t *testing.T) {
	t.Parallel()
	for name, base := range map[string]Config{
		"log":      {},
		"snapshot": {SnapshotThreshold: 2, SnapshotInterval: 5 * time.Millisecond, TrailingLogs: 1},
	} {
		t.Run(name, func(t *testing.T) {
			c, survivor, before := lost(t, base)
			for round := range 2 { // a recovery that is repeated recovers once more
				r, err := Recover(c.config(survivor), marker, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if r.Incarnation <= r.Before.Member.Incarnation || r.Term <= r.Before.Term {
					t.Errorf("recovery: got %+v, want a new incarnation and term", r)
				}
				if len(r.Before.Members) != 3-2*round {
					t.Errorf("members before: got %v, want %d", r.Before.Members, 3-2*round)
				}
			}
			s := c.start(survivor)
			eventually(t, "the survivor leads", func() bool { return s.VerifyLeader(short(t)) == nil })
			for _, v := range []string{"1", "2", "3"} {
				wantValue(t, s, "k"+v, v)
			}
			wantValue(t, s, "recovered", "yes")
			after := put(t, s, "k4", "4").Revision
			if after.Epoch <= before.Epoch || after.Index != before.Index+3 {
				t.Errorf("revision after: got %v, want a higher epoch than %v and three indexes more", after, before)
			}
			in, err := Inspect(c.config(survivor).Dir, c.base.Group)
			if err == nil {
				t.Errorf("inspect a running node: got %+v, want it refused", in)
			}
			mustContain(t, err, "another process holds it")
		})
	}
}

// Whoever follows the store's own history, as evidence does, finds no gap at a recovery, and no batch of two epochs.
func TestRecover_HistoryHasNoGap(t *testing.T) {
	t.Parallel()
	c, survivor, before := lost(t, Config{})
	if _, err := Recover(c.config(survivor), marker, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := c.start(survivor)
	after := put(t, s, "k4", "4").Revision
	w, err := s.Watch(1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	next := uint64(1)
	for next <= after.Index {
		events, rev, err := w.Next(short(t))
		if err != nil {
			t.Fatalf("after %d: %v", next-1, err)
		}
		for _, e := range events {
			if e.Index != next {
				t.Errorf("event of index %d, want %d", e.Index, next)
			}
			if old := e.Index <= before.Index; old != (rev.Epoch == before.Epoch) {
				t.Errorf("event %d comes with epoch %d, the first epoch is %d and ends at %d", e.Index, rev.Epoch, before.Epoch, before.Index)
			}
			next++
		}
	}
}

// Entries of which nobody was told that they are committed become part of the state, and are counted.
func TestRecover_UncommittedEntriesAreCommittedAndCounted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	l := c.leader()
	put(t, l, "a", "1")
	name := l.node.cfg.Node
	for other := range c.stores {
		if other != name {
			c.kill(other)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := l.Txn(ctx, group.Txn{Ops: []group.Op{{Key: "b", Value: []byte("2")}}})
	if fault.ReasonOf(err) != group.ReasonOutcomeUnknown {
		t.Fatalf("write without a quorum: got %v, want OUTCOME_UNKNOWN", err)
	}
	c.kill(name)
	r, err := Recover(c.config(name), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if r.Promoted == 0 {
		t.Errorf("recovery: got %+v, want it to say that an entry was not known to be committed", r)
	}
	wantValue(t, c.start(name), "b", "2")
}

// The disks of the nodes that were given up come back and make a quorum of their own kind: the recovered node has
// nothing to do with them, and they stop as soon as they can reach it.
func TestRecover_OldDisksDoNotComeBack(t *testing.T) {
	t.Parallel()
	c, survivor, _ := lost(t, Config{LookEvery: time.Hour}) // there is no later look
	if _, err := Recover(c.config(survivor), marker, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := c.start(survivor)
	put(t, s, "k4", "4")
	for _, name := range c.base.Voters {
		if name == survivor {
			continue
		}
		c.start(name)
		select { // before it took part
		case err := <-c.fatal:
			mustContain(t, err, name, "was recovered or restored at", survivor, "join anew")
		case <-time.After(30 * time.Second):
			t.Fatalf("%s takes part on a disk that was given up", name)
		}
		if err := c.stop[name](); fault.ReasonOf(err) != ReasonSuperseded {
			t.Errorf("run %s: got %v, want %s", name, err, ReasonSuperseded)
		}
		delete(c.stores, name)
	}
	put(t, s, "k5", "5")
	if leader, self := s.Leader(); !self {
		t.Errorf("leader: got %q, want the survivor itself", leader)
	}
}

func TestRecover_Refuses(t *testing.T) {
	t.Parallel()
	c, survivor, _ := lost(t, Config{})
	cfg := c.config(survivor)
	t.Run("nothing there", func(t *testing.T) {
		empty := cfg
		empty.Dir = t.TempDir()
		_, err := Recover(empty, nil, time.Now())
		mustContain(t, err, "no such file")
	})
	t.Run("an empty log", func(t *testing.T) {
		empty := cfg
		empty.Dir = t.TempDir()
		d, err := openDisk(filepath.Join(empty.Dir, "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		_, err = Recover(empty, nil, time.Now())
		mustContain(t, err, "restore a backup")
	})
	t.Run("another node's disk", func(t *testing.T) {
		other := cfg
		other.Node = "n9"
		_, err := Recover(other, nil, time.Now())
		mustContain(t, err, "n9 is no member")
	})
	t.Run("what the state cannot hold", func(t *testing.T) {
		_, err := Recover(cfg, func(Recovered) ([]group.Op, error) { return []group.Op{{Key: ""}}, nil }, time.Now())
		mustContain(t, err, "is empty")
		if in, err := Inspect(cfg.Dir, cfg.Group); err != nil || in.Member.Incarnation != 0 {
			t.Errorf("after a refusal: got %+v, %v, want the directory unchanged", in, err)
		}
	})
	t.Run("corruption", func(t *testing.T) {
		flip(t, cfg.Dir, logBucket, (*bolt.Cursor).Last)
		_, err := Recover(cfg, nil, time.Now())
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("recover: got %v, want ErrCorrupt", err)
		}
	})
}

// A program that does not know of incarnations would take the node for a member since birth.
func TestRecover_AnOlderProgramRefusesTheFile(t *testing.T) {
	c, survivor, _ := lost(t, Config{})
	if _, err := Recover(c.config(survivor), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(c.config(survivor).Dir, "raft.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_ = db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(metaBucket).Get(formatKey); len(v) != 1 || v[0] <= formatBorn {
			t.Errorf("format: got %v, want it above %d", v, formatBorn)
		}
		return nil
	})
}

// The door takes no such command: it is written while the node is stopped, or anybody who may write could open epochs.
func TestStore_DoorRefusesReopening(t *testing.T) {
	c := newCluster(t, Config{Voters: []string{"n1"}})
	_, err := c.leader().node.HandlePropose(short(t), encodeReopen(group.Txn{Ops: []group.Op{{Key: "k"}}}))
	mustContain(t, err, "while its node is stopped")
}

func TestNew_AStrangerHasNoPart(t *testing.T) {
	c := newCluster(t, Config{})
	cfg := c.config("n9")
	cfg.Listen = c.nw.listen(t, "n9")
	_, err := NewStore(cfg)
	if fault.ReasonOf(err) != "NOT_A_MEMBER" {
		t.Errorf("start: got %v, want NOT_A_MEMBER", err)
	}
}
