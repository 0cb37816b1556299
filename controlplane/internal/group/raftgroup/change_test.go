package raftgroup

import (
	"testing"
	"time"

	"bailiwick/shared/fault"
)

func (c *cluster) steer(s *Store, wanted []Wanted) {
	c.t.Helper()
	eventually(c.t, "the members are as wanted", func() bool {
		if _, err := s.node.Steer(short(c.t), wanted); err != nil {
			c.t.Logf("steer: %v", err)
			return false
		}
		have := map[GroupMember]bool{}
		for _, m := range s.node.Members() {
			have[m] = true
		}
		for _, w := range wanted {
			if !have[GroupMember{w.Server, w.Node, w.Voter}] {
				return false
			}
		}
		return len(have) == len(wanted)
	})
}

func all(names ...string) (out []Wanted) {
	for _, n := range names {
		out = append(out, Wanted{Server: n, Node: n, Voter: true})
	}
	return out
}

// A member without a vote bears no authority: when the voters' group was recovered it keeps serving its copy, and
// begins anew at its next start. Nothing that rests on it ends with the group's quorum.
func TestRecover_AMemberWithoutAVoteLeavesItsCopyBehind(t *testing.T) {
	t.Parallel()
	c, survivor, _ := lost(t, Config{Nonvoters: []string{"n4"}})
	if _, err := Recover(c.config(survivor), marker, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := c.start(survivor)
	n4 := c.start("n4")
	eventually(t, "it is cut off from both", func() bool { return n4.node.fence.up() })
	if kv, ok := n4.Local().Get("k1"); !ok || string(kv.Value) != "1" {
		t.Errorf("its copy: got %q, %v, want it kept", kv.Value, ok)
	}
	if n4.node.Err() != nil || !n4.node.LeftBehind() || s.node.LeftBehind() {
		t.Errorf("it ended: %v; left behind: %v, the survivor: %v", n4.node.Err(), n4.node.LeftBehind(), s.node.LeftBehind())
	}
	wanted := append(all(survivor), Wanted{Server: "n4", Node: "n4"})
	for range 3 { // with the disk of before it is not brought in
		if did, err := s.node.Steer(short(t), wanted); did != "" || err != nil {
			t.Errorf("steer: got %q, %v, want nothing done", did, err)
		}
	}
	if err := c.stop["n4"](); err != nil {
		t.Errorf("stop: %v", err)
	}
	n4 = c.start("n4")
	c.steer(s, wanted)
	last := put(t, s, "k9", "9")
	if err := n4.WaitFor(short(t), last.Revision.Index); err != nil {
		t.Fatal(err)
	}
	if _, ok := n4.Local().Get("recovered"); !ok {
		t.Error("its new copy is not of the recovered group")
	}
	delete(c.stores, "n4") // its history of results differs by nothing, but it has no vote
}

// A disk of before, under a name that joined anew, is neither brought in nor can it speak with the group's members.
func TestSteer_BringsInNoOldDisk(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	l := c.leader()
	put(t, l, "a", "1")
	name := c.follower().node.cfg.Node
	_ = c.stop[name]()
	delete(c.stores, name)
	var wanted []Wanted
	for _, w := range all("n1", "n2", "n3") {
		if w.Node == name {
			w.Server = name + "~1" // it joined anew, says the registry
		}
		wanted = append(wanted, w)
	}
	eventually(t, "the old server is removed", func() bool {
		_, _ = l.node.Steer(short(t), wanted)
		return len(l.node.Members()) == 2
	})
	c.start(name) // on its old disk
	for range 3 {
		if did, err := l.node.Steer(short(t), wanted); did != "" || err != nil {
			t.Errorf("steer: got %q, %v, want nothing done", did, err)
		}
	}
	put(t, l, "b", "2")
	_ = c.stop[name]()
	delete(c.stores, name)
}

func TestTransfer_Refuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Nonvoters: []string{"n4"}})
	l, f := c.leader(), c.follower()
	if err := f.node.Transfer(short(t), ""); fault.ReasonOf(err) != "NOT_LEADER" {
		t.Errorf("at a follower: got %v", err)
	}
	for _, to := range []string{"n4", "n9"} {
		if err := l.node.Transfer(short(t), to); fault.ReasonOf(err) != "NOT_A_VOTER" {
			t.Errorf("to %s: got %v, want NOT_A_VOTER", to, err)
		}
	}
}
