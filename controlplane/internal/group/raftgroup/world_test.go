package raftgroup

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
)

// Nodes cut off long enough to come back by a snapshot, and leaders killed. That a recovered group's revisions go on is
// recover_test's.
func TestConformance_World(t *testing.T) {
	t.Parallel()
	conformance.RunWorld(t, func(t *testing.T) conformance.World {
		c := newCluster(t, Config{SnapshotThreshold: 40, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: 10})
		c.leader()
		return conformance.World{
			Stores: c.running,
			Cut: func() {
				name := c.follower().node.cfg.Node
				c.nw.isolate(name, true)
				time.Sleep(500 * time.Millisecond)
				c.nw.isolate(name, false)
			},
			Kill: func() {
				name := c.leader().node.cfg.Node
				c.kill(name)
				c.start(name)
			},
		}
	})
}

// running are the stores of the voters, nil where one is down.
func (c *cluster) running() (out []group.Store) {
	c.nw.mu.Lock()
	defer c.nw.mu.Unlock()
	for _, name := range c.base.Voters {
		var s group.Store
		if have := c.nw.nodes[name]; have != nil {
			s = have
		}
		out = append(out, s)
	}
	return out
}
