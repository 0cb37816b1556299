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
	t.Parallel()
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
	t.Parallel()
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

// A node's clock is believed where a majority of all voters has said the same, lately.
func TestLevels_AClockNeedsAMajority(t *testing.T) {
	says := func(ahead time.Duration) Status { return Status{ClockMs: 1, Ahead: ahead} }
	voters := []string{"a", "b", "c"}
	for name, c := range map[string]struct {
		around map[string]Status
		want   bool
	}{
		"alike":                  {map[string]Status{"b": says(time.Second), "c": says(-time.Second)}, true},
		"one is an hour off":     {map[string]Status{"b": says(0), "c": says(time.Hour)}, true},
		"this one is":            {map[string]Status{"b": says(-time.Hour), "c": says(-time.Hour)}, false},
		"this one is, and alone": {map[string]Status{"b": says(-time.Hour)}, false},
		"nobody answered":        {nil, false},
		"they do not say":        {map[string]Status{"b": {}, "c": {}}, false},
		"one that has no vote":   {map[string]Status{"d": says(0)}, false},
	} {
		var l levels
		l.learn(c.around)
		if got := l.agree(voters, "a", time.Minute, time.Minute); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	var l levels
	l.learn(map[string]Status{"b": says(0), "c": says(0)})
	if l.agree(voters, "a", time.Minute, -1) {
		t.Error("what was heard too long ago counts")
	}
	if !l.agree([]string{"a"}, "a", time.Minute, time.Minute) {
		t.Error("a node alone has nobody to agree with")
	}
}

// Nodes tell each other their clocks.
func TestNode_HearsTheOthersClocks(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{LookEvery: 20 * time.Millisecond})
	eventually(t, "the leader's clock is known to agree", func() bool { return c.leader().node.ClockAgrees(30 * time.Second) })
}
