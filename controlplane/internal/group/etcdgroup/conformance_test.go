package etcdgroup

import (
	"flag"
	"fmt"
	"os"
	"sync/atomic"
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

// One etcd for all checks, each below a prefix of its own, at the node that leads and at one that does not.
func TestConformance(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	var n atomic.Int64
	open := func(t *testing.T) (leader, follower *Store) {
		own := &cluster{t: t, members: c.members}
		prefix := fmt.Sprintf("bailiwick/test/%d/", n.Add(1))
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
