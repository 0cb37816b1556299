package raftgroup

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bailiwick/shared/fault"
)

// While one member does not know a version of commands it is not proposed, at the leader's door or through it, and
// nothing stops; when the last one is upgraded it is.
func TestGate_ACommandWaitsForTheLastMember(t *testing.T) {
	c := newCluster(t, Config{LookEvery: 20 * time.Millisecond})
	next := []byte{batchVersion + 1, kindTxn, 0, 0, 0}
	restart := func(name string) {
		t.Helper()
		if err := c.stop[name](); err != nil {
			t.Fatal(err)
		}
		delete(c.stores, name)
		c.start(name)
	}
	propose := func() string {
		_, err := c.leader().node.HandlePropose(short(t), next)
		return fault.ReasonOf(err)
	}
	c.base.knows = batchVersion + 1
	for _, name := range c.base.Voters {
		if got := propose(); got != ReasonUpgrading {
			t.Fatalf("before %s is upgraded: got %s, want %s", name, got, ReasonUpgrading)
		}
		put(t, c.leader(), "a", name) // what all know is taken meanwhile
		restart(name)
	}
	// Past the gate the door's own check meets it: this program only pretends.
	eventually(t, "the gate is open", func() bool { return propose() == "COMMAND_UNKNOWN" })
	c.kill(c.follower().node.cfg.Node) // away, it is still known to be upgraded
	if got := propose(); got != "COMMAND_UNKNOWN" {
		t.Errorf("with a member away: got %s, want the gate open", got)
	}
}

func TestSkewed_OneMinorRelease(t *testing.T) {
	for _, c := range []struct {
		own, other string
		want       bool
	}{
		{"v1.4.0", "v1.4.9", false}, {"v1.4.0", "v1.5.0", false}, {"v1.4.0", "v1.3.2", false},
		{"v1.4.0", "v1.6.0", true}, {"v1.4.0", "v1.2.0", true}, {"v2.0.0", "v1.9.0", true},
		{"dev", "v1.2.0", false}, {"v1.4.0", "dev", false}, {"v1.4.0", "", false},
	} {
		got := skewed(c.own, map[string]Status{"n2": {Version: c.other}})
		if (len(got) > 0) != c.want {
			t.Errorf("%s beside %s: got %v, want %v", c.own, c.other, got, c.want)
		}
	}
}

// A node two releases ahead does not take part; those that run do not mind it.
func TestSkew_ANodeThatStartsTooFarAheadStops(t *testing.T) {
	c := newCluster(t, Config{Version: "v1.1.0", LookEvery: 20 * time.Millisecond})
	name := c.follower().node.cfg.Node
	if err := c.stop[name](); err != nil {
		t.Fatal(err)
	}
	delete(c.stores, name)
	c.base.Version = "v1.3.0"
	c.start(name)
	mustContain(t, <-c.fatal, name, "more than one minor release", "v1.1.0")
	if err := c.stop[name](); fault.ReasonOf(err) != ReasonSkew {
		t.Errorf("run: got %v, want %s", err, ReasonSkew)
	}
	delete(c.stores, name)
	put(t, c.leader(), "a", fmt.Sprint(slices.Sorted(slices.Values(c.base.Voters))))
}
