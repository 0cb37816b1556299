package raftgroup

import (
	"context"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// Transfer hands the group, which this node must lead, to another voter, "" being the one that is least behind. It
// returns once the other has been told to stand for election with all that is committed; whether it won shows in
// Leader.
func (n *Node) Transfer(ctx context.Context, to string) error {
	if n.isHalted() {
		return replica.ErrStopped
	}
	if n.raft.State() != raft.Leader {
		return notLeader(n.cfg.Group)
	}
	call := n.raft.LeadershipTransfer
	if to != "" {
		if to == n.cfg.Node {
			return nil
		}
		var target *GroupMember
		for _, m := range n.Members() {
			if m.Node == to && m.Voter {
				target = &m
			}
		}
		if target == nil {
			return fault.New(fault.Invalid, "NOT_A_VOTER", "node %s has no vote in group %s and cannot lead it", to, n.cfg.Group).At("node")
		}
		call = func() raft.Future {
			return n.raft.LeadershipTransferToServer(raft.ServerID(target.Server), raft.ServerAddress(target.Node))
		}
	}
	if _, err := n.await(ctx, call); err != nil {
		return fault.New(fault.Unavailable, group.ReasonNoLeader, "hand group %s over to %q: %w", n.cfg.Group, to, err)
	}
	return nil
}
