package raftgroup

import (
	"testing"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
)

// The suite at a follower: every write is forwarded, every read asks the leader.
func TestConformance_Follower(t *testing.T) {
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{}).follower() })
}

func TestConformance_Leader(t *testing.T) {
	conformance.Run(t, func(t *testing.T) group.Store { return newCluster(t, Config{}).leader() })
}
