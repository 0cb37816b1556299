package raftgroup

import (
	"flag"
	"os"
	"testing"

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

// The suite at a follower: every write is forwarded, every read asks the leader.
func TestConformance_Follower(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{}).follower() })
}

func TestConformance_Leader(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{}).leader() })
}
