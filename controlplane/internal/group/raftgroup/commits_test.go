package raftgroup

import (
	"testing"

	"bailiwick/controlplane/internal/group/conformance"
)

// Three nodes with fsync in this process, at the leader. Beside it: etcdgroup's BenchmarkCommits.
func BenchmarkCommits(b *testing.B) {
	c := newCluster(b, Config{})
	conformance.Commits(b, c.leader())
}
