package etcdgroup

import (
	"fmt"
	"testing"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
)

// One etcd for all checks, each below a prefix of its own, at the node that leads and at one that does not.
func TestConformance(t *testing.T) {
	c := newEtcd(t, 1)
	n := 0
	open := func(t *testing.T) (leader, follower *Store) {
		n++
		own := &cluster{t: t, members: c.members}
		prefix := fmt.Sprintf("bailiwick/test/%d/", n)
		leader, _ = own.node("n1", prefix)
		leads(t, leader)
		follower, _ = own.node("n2", prefix)
		eventually(t, "it knows the leader", func() bool { name, _ := follower.Leader(); return name == "n1" })
		return leader, follower
	}
	t.Run("leader", func(t *testing.T) {
		conformance.Run(t, func(t *testing.T) group.Store { s, _ := open(t); return s })
	})
	t.Run("follower", func(t *testing.T) {
		conformance.Run(t, func(t *testing.T) group.Store { _, s := open(t); return s })
	})
}
