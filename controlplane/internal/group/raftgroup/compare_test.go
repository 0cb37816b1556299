package raftgroup

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// A node whose state differs, as after a flipped bit in memory, stops itself and does not come back on its directory;
// the others go on.
func TestCompare_ANodeThatDiffersStopsItself(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{CheckEvery: 5, LookEvery: 20 * time.Millisecond})
	victim := c.follower()
	name := victim.node.cfg.Node
	for i := range 12 {
		put(t, c.leader(), fmt.Sprint("k", i), "v")
	}
	eventually(t, "all have hashed, alike", func() bool {
		put(t, c.leader(), "more", "v") // hashes of quick revisions are left out
		for _, s := range c.stores {
			if len(s.mem.checks.newest()) < 2 {
				return false
			}
		}
		return true
	})
	select {
	case err := <-c.fatal:
		t.Fatalf("alike, and yet: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	kv, ok := victim.mem.cur.Load().Tree.Get([]byte("k3"))
	if !ok {
		t.Fatal("k3 is not there")
	}
	bad := *kv.(*group.KV)
	bad.Value = []byte("w")
	cur := victim.mem.cur.Load()
	tree, _, _ := cur.Tree.Insert([]byte("k3"), &bad)
	victim.mem.cur.Store(&state{State: replica.State{Rev: cur.Rev, Tree: tree}, applied: cur.applied})
	var fatal error
	eventually(t, "it is found", func() bool {
		select {
		case fatal = <-c.fatal:
			return true
		default:
			put(t, c.leader(), "more", "w")
			return false
		}
	})
	mustContain(t, fatal, name, "differs from that of the majority")
	if err := c.stop[name](); fault.ReasonOf(err) != ReasonDiffers {
		t.Errorf("run: got %v, want %s", err, ReasonDiffers)
	}
	delete(c.stores, name)
	cfg := c.config(name)
	cfg.Listen = c.nw.listen(t, name)
	if _, err := NewStore(cfg); fault.ReasonOf(err) != ReasonDiffers {
		t.Errorf("start again: got %v, want %s", err, ReasonDiffers)
	}
	put(t, c.leader(), "z", "1")
}

func TestContradicted_NeedsAMajorityOfAllVoters(t *testing.T) {
	at := func(index uint64, sum byte) Status {
		return Status{Checkpoints: []Checkpoint{{1, index, [32]byte{sum}}}}
	}
	mine := []Checkpoint{{1, 5, [32]byte{9}}}
	voters := []string{"a", "b", "c"}
	for name, c := range map[string]struct {
		others map[string]Status
		want   bool
	}{
		"alike":           {map[string]Status{"b": at(5, 9), "c": at(5, 9)}, false},
		"two others":      {map[string]Status{"b": at(5, 1), "c": at(5, 1)}, true},
		"one other":       {map[string]Status{"b": at(5, 1)}, false},
		"three states":    {map[string]Status{"b": at(5, 1), "c": at(5, 2)}, false},
		"another index":   {map[string]Status{"b": at(6, 1), "c": at(6, 1)}, false},
		"without a vote":  {map[string]Status{"b": at(5, 1), "d": at(5, 1)}, false},
		"nobody answered": {nil, false},
	} {
		if _, got := contradicted(mine, c.others, voters, "a"); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
