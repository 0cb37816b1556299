package raftgroup

import "context"

// Leader is the last leader this node knows of, "" if none, and whether it is
// this node.
func (n *Node) Leader() (name string, self bool) {
	if n.isHalted() {
		return "", false
	}
	at, _ := n.raft.LeaderWithID() // its address is its name; its id changes when it is replaced
	return string(at), string(at) == n.cfg.Node
}

// RunLeader is group.Store's.
func (n *Node) RunLeader(ctx context.Context, work func(ctx context.Context)) error {
	return n.turn.Serve(ctx, n.halted, n.Err, work)
}
