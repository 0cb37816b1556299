package raftgroup

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
)

// What a stopped node is not sure of is left out, and said: the group may have gone on without it. All that it knows to be
// committed is there, also what it learnt after its last write to the log.
func TestOpenStopped_HoldsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	l := c.leader()
	name := l.node.cfg.Node
	acked := put(t, l, "acked", "1")
	cfg := c.config(name)
	if _, err := OpenStopped(cfg, nil); err == nil {
		t.Fatal("opened under a running node")
	}
	c.kill(name)
	// As if it had been cut off with an entry that nobody else has.
	d, err := openDisk(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	end, err := d.LastIndex()
	if err == nil {
		err = errors.Join(d.StoreLog(&raft.Log{Index: end + 1, Term: 99, Type: raft.LogCommand, Data: seal(time.Now(), encodeTxn(group.Txn{Ops: []group.Op{{Key: "lost", Value: []byte("1")}}}))}), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenStopped(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, ok := s.Store().Local().Get("acked"); !ok || s.Revision != acked.Revision {
		t.Errorf("got revision %v, acked there %v, want %v", s.Revision, ok, acked.Revision)
	}
	if _, ok := s.Store().Local().Get("lost"); ok || s.Beyond == 0 {
		t.Errorf("what nobody committed: there %v, %d left out, want it left out", ok, s.Beyond)
	}
	// It restores, and so does the one of a node that kept its log in a snapshot.
	var state bytes.Buffer
	if err := s.Write(&state); err != nil || int64(state.Len()) != s.Size {
		t.Fatalf("wrote %d bytes, %v, want %d", state.Len(), err, s.Size)
	}
	alone := Config{Group: cfg.Group, Node: "n9", Dir: filepath.Join(t.TempDir(), "zone"), Voters: []string{"n9"}, Timing: Local()}
	open := func(Recovered) ([]group.Op, error) { return nil, nil }
	if _, err := Restore(alone, "n9", s.Captured, &state, open, time.Now()); err != nil {
		t.Fatal(err)
	}
	back, err := OpenStopped(alone, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if _, ok := back.Store().Local().Get("acked"); !ok || back.Revision.Epoch <= acked.Revision.Epoch {
		t.Errorf("restored: got revision %v, acked there %v, want a later epoch than %v", back.Revision, ok, acked.Revision)
	}
}

// A group's only voter holds all that was ever acknowledged: a backup of it has that too, after a crash, which leaves the disk
// some writes behind in knowing how far its log is committed, and with the log that the group was born with and nothing else.
func TestOpenStopped_TheOnlyVoterHoldsAll(t *testing.T) {
	t.Parallel()
	slow := Local()
	slow.Heartbeat, slow.Election = time.Hour, time.Hour // nobody has led by the time it stops
	for _, tc := range []struct {
		name      string
		base      Config
		write     bool
		commit    uint64 // what a crash left of it
		committed bool
	}{
		{"it crashed", Config{Voters: []string{"n1"}}, true, 0, true},
		{"it crashed, with a copy that has no vote beside it", Config{Voters: []string{"n1"}, Nonvoters: []string{"n2"}}, true, 1, true},
		{"nobody has led yet", Config{Voters: []string{"n1"}, Timing: slow}, false, 0, true},
		{"one of three, and nobody has led yet", Config{Voters: []string{"n1", "n2", "n3"}, Timing: slow}, false, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, tc.base)
			var acked group.Result
			if tc.write {
				acked = put(t, c.leader(), "acked", "1")
			}
			cfg := c.config("n1")
			c.kill("n1")
			d, err := openDisk(filepath.Join(cfg.Dir, "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.SetUint64(commitKey, tc.commit), d.Close()); err != nil {
				t.Fatal(err)
			}
			s, err := OpenStopped(cfg, nil)
			if !tc.committed {
				if err == nil {
					t.Fatalf("opened at entry %d: any of it may be another's", s.Entry)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, ok := s.Store().Local().Get("acked"); ok != tc.write || s.Revision != acked.Revision || s.Beyond != 0 || s.Entry == 0 {
				t.Errorf("got revision %v at entry %d, acked there %v, %d left out, want %v, %v and none", s.Revision, s.Entry, ok, s.Beyond, acked.Revision, tc.write)
			}
		})
	}
}

// A node without a vote knows nothing of what its group committed since the last it was told, though the group has one voter.
func TestOpenStopped_ACopyDoesNotDecide(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Voters: []string{"n1"}, Nonvoters: []string{"n2"}})
	put(t, c.leader(), "acked", "1")
	cfg := c.config("n2")
	c.wantSameState()
	c.kill("n2")
	d, err := openDisk(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SetUint64(commitKey, 1), d.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStopped(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Entry != 1 || s.Beyond == 0 {
		t.Errorf("got entry %d and %d left out, want 1 and the rest left out", s.Entry, s.Beyond)
	}
}
