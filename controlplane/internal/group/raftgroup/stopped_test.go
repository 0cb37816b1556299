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
