package etcdgroup

import (
	"testing"

	"bailiwick/controlplane/internal/group/conformance"
)

// Three members with fsync in this process, one node. Beside it: raftgroup's BenchmarkCommits.
func BenchmarkCommits(b *testing.B) {
	c := &cluster{t: b, sync: true}
	c.make(3)
	s, _ := c.node("n1", "p/")
	put(b, s, "a", "1")
	conformance.Commits(b, s)
}
