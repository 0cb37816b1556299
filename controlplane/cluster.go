package controlplane

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/shared/fault"
)

// engine is the catalog or the zone's store as this node has a part in it while Run runs, whatever holds it.
type engine interface {
	group.Store
	Run(ctx context.Context) error
}

// replica is this node's part in a group that is raft's. Members, backups and leadership of such a group are handled by
// the node; those of a store in etcd by etcd's own tools.
type replica struct {
	Name string
	Node *raftgroup.Node
}

func (n *Node) replicas() []replica { return n.parts }

func (n *Node) replicaOf(name string) (*raftgroup.Node, error) {
	for _, r := range n.replicas() {
		if r.Name == name {
			return r.Node, nil
		}
	}
	return nil, fault.New(fault.NotFound, "GROUP_NOT_HERE", "node %s has no part in group %q: it has catalog, %s and %s",
		n.self.Name, name, storeGroup(n.self.Zone), ledgerGroup(n.self.Zone)).At("group")
}

// Members implements adminapi.Cluster.
func (n *Node) Members(ctx context.Context) (out []adminapi.Member, err error) {
	for _, r := range n.replicas() {
		around := r.Node.Around(ctx)
		around[n.self.Name] = r.Node.Status()
		leader, _ := r.Node.Leader()
		for _, m := range r.Node.Members() {
			s, ok := around[m.Node]
			row := adminapi.Member{Group: r.Name, Node: m.Node, Server: m.Server, Role: "learner", Reachable: ok && s.Server == m.Server,
				Applied: s.Applied, Incarnation: s.Incarnation, Version: s.Version}
			switch {
			case m.Node == leader:
				row.Role = "leader"
			case m.Voter:
				row.Role = "voter"
			}
			if last := around[leader].LastLog; row.Reachable && last > s.LastLog {
				row.Lag = last - s.LastLog
			}
			out = append(out, row)
		}
	}
	return append(n.membersBeside(), out...), nil
}

// Transfer implements adminapi.Cluster: it returns once another node leads.
func (n *Node) Transfer(ctx context.Context, name, to string) (string, error) {
	if err := n.inEtcd(name, "hand over", "stop the control node that leads it, and another does; etcd's own leader moves with etcdctl move-leader"); err != nil {
		return "", err
	}
	r, err := n.replicaOf(name)
	if err != nil {
		return "", err
	}
	leader, self := r.Leader()
	switch {
	case leader == "":
		return "", fault.New(fault.Unavailable, "NO_LEADER", "group %s has no leader now that could hand it over", name)
	case leader == to:
		return leader, nil
	case self:
		err = r.Transfer(ctx, to)
	default:
		err = n.carrier.Transfer(ctx, leader, name, to)
	}
	if err != nil {
		return "", err
	}
	for {
		now, _ := r.Leader()
		if now != "" && now != leader {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return "", fault.New(fault.Unavailable, "NO_LEADER", "group %s: %s was asked to hand it over and still leads, or nobody does", name, leader)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
