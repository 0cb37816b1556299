package raftgroup

import (
	"flag"
	"os"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
)

// TestMain runs more tests at once than there are CPUs: they wait for elections, cuts and ends.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// calm keeps a leader where a busy machine lets it wait for half a second: what the suite says of a first attempt is meant of
// one that no change of leaders meets.
var calm = Timing{Heartbeat: 600 * time.Millisecond, Election: 600 * time.Millisecond, Lease: 500 * time.Millisecond, Commit: 10 * time.Millisecond}

// The suite at a follower: every write is forwarded, every read asks the leader.
func TestConformance_Follower(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{Timing: calm}).follower() })
}

func TestConformance_Leader(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{Timing: calm}).leader() })
}
