package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	bolt "go.etcd.io/bbolt"
)

// Wanted is a member that a group is to have. A server that is wanted and no member comes in, without a vote, when it
// says that it is of the group's present incarnation; it gets its vote, if it is to have one, once it has caught up.
type Wanted struct {
	Server, Node string
	Voter        bool
}

// caughtUp is how many entries a member may be behind when it gets its vote: with more, the group would wait for it.
const caughtUp = 256

// changeLimit bounds one change of the configuration.
const changeLimit = 10 * time.Second

// Steer brings the group one step nearer to its wanted members, if this node leads it: one change at a time, so that
// two quorums always have a member in common. It returns what it did, "" if nothing is left to do or all that is left
// has to wait.
func (n *Node) Steer(ctx context.Context, wanted []Wanted) (did string, err error) {
	if n.isHalted() || n.raft.State() != raft.Leader {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	byServer := map[string]Wanted{}
	for _, w := range wanted {
		byServer[w.Server] = w
	}
	if _, ok := byServer[n.member.Server]; !ok {
		if len(wanted) == 0 {
			return "", nil // whoever says that nobody is wanted does not know yet
		}
		return "hand leadership over: this node is leaving", n.Transfer(ctx, "")
	}
	have := map[string]GroupMember{}
	for _, m := range n.Members() {
		have[m.Server] = m
		if _, ok := byServer[m.Server]; !ok {
			return "remove " + m.Server, n.change(ctx, func(prev uint64) raft.IndexFuture {
				return n.raft.RemoveServer(raft.ServerID(m.Server), prev, 0)
			})
		}
	}
	for _, w := range wanted {
		m, member := have[w.Server]
		if m.Voter || member && !w.Voter || w.Node == n.cfg.Node {
			continue
		}
		s, err := n.ask(ctx, w.Node)
		if err != nil || s.Server != w.Server || s.Incarnation != n.member.Incarnation {
			continue // away, or with a disk that has no part in this group
		}
		if !member {
			return "bring in " + w.Server, n.change(ctx, func(prev uint64) raft.IndexFuture {
				return n.raft.AddNonvoter(raft.ServerID(w.Server), raft.ServerAddress(w.Node), prev, 0)
			})
		}
		if s.LastLog+caughtUp >= n.raft.LastIndex() && s.Applied+caughtUp >= n.Applied() {
			return "give a vote to " + w.Server, n.change(ctx, func(prev uint64) raft.IndexFuture {
				return n.raft.AddVoter(raft.ServerID(w.Server), raft.ServerAddress(w.Node), prev, 0)
			})
		}
	}
	return "", nil
}

// change is refused by raft if the configuration is another than this node has looked at.
func (n *Node) change(ctx context.Context, call func(prev uint64) raft.IndexFuture) error {
	prev := n.raft.GetConfiguration().Index()
	_, err := n.await(ctx, func() raft.Future { return call(prev) })
	return err
}

// Join makes dir the place of a node that is to become a member of a running group. It must not exist.
func Join(dir string, m Member) error {
	if m.Server == "" || m.Since.IsZero() {
		return errors.New("join a group: Server and Since are required")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("join a group: %s exists: set it aside first", dir)
	}
	making := dir + ".joining"
	if err := errors.Join(os.RemoveAll(making), os.MkdirAll(making, 0o700)); err != nil {
		return err
	}
	d, err := openDisk(filepath.Join(making, "raft.db"))
	if err != nil {
		return err
	}
	err = d.db.Update(func(tx *bolt.Tx) error { return putMember(tx, m) })
	if err = errors.Join(err, d.Close(), syncDir(making)); err != nil {
		return err
	}
	return errors.Join(os.Rename(making, dir), syncDir(filepath.Dir(dir)))
}
