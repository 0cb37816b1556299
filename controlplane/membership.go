package controlplane

import (
	"context"
	"errors"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// steerEvery is how often a leader compares its group's members with the registry, steerSoon how soon again when it has
// changed something.
const (
	steerEvery = time.Second
	steerSoon  = 100 * time.Millisecond
)

// steerGroups keeps the members of each group that this node leads as the registry has them: who joined comes in, who was
// removed goes, one at a time.
func (n *Node) steerGroups(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex // covers errs
	var errs []error
	for _, r := range n.replicas() {
		wg.Go(func() {
			err := r.Node.RunLeader(ctx, func(ctx context.Context) { n.steer(ctx, r.Name, r.Node) })
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *Node) steer(ctx context.Context, name string, node *raftgroup.Node) {
	tick := time.NewTimer(steerSoon)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		next := steerEvery
		wanted, err := n.wanted(name)
		if err == nil {
			var did string
			if did, err = node.Steer(ctx, wanted); did != "" {
				n.log.Info("members of a group change", "group", name, "operation", did, "err", err)
				err, next = nil, steerSoon
			}
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("steer a group's members", "group", name, "err", err)
		}
		tick.Reset(next)
	}
}

// wanted are a group's members by the registry as this node has it; none while the registry is empty or does not know of
// this node's zone yet.
func (n *Node) wanted(name string) (out []raftgroup.Wanted, err error) {
	for kv := range n.catalog.Local().List(model.PrefixNode) {
		c, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if c.Kind != identity.Control || name != catalogGroup && c.Zone != n.self.Zone {
			continue
		}
		out = append(out, raftgroup.Wanted{Server: c.Server(), Node: c.Name, Voter: name != catalogGroup || c.Zone == n.in.PrimaryZone})
	}
	return out, nil
}

// zoneNodes are the control nodes of a zone, this node's or another, as the registry has them.
func (n *Node) zoneNodes(zone string) (nodes []pki.ControlNode) {
	for _, c := range pki.ControlNodes(n.catalog.Local(), n.in) {
		if c.Zone == zone {
			nodes = append(nodes, c)
		}
	}
	return nodes
}

// resolve is where a control node's peer port is: by the registry if it is open and has the node, else by the kit.
func (n *Node) resolve(node string) (addr string, ok bool) {
	if r := n.registry.Load(); r != nil {
		if kv, ok := r.Catalog.Local().Get(model.PrefixNode + node); ok {
			if c, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil && c.Kind == identity.Control && c.PeerAddr != "" {
				return c.PeerAddr, true
			}
		}
	}
	c, ok := n.in.Control(node)
	return c.Peer, ok
}

// ledgerVoters are who must agree on the ledger's state.
func (n *Node) ledgerVoters() (names []string) {
	for _, m := range n.replica.Members() {
		if m.Voter {
			names = append(names, m.Node)
		}
	}
	return names
}

// incarnations are those of this node's groups, which a node that joins has to know.
func (n *Node) incarnations() map[string]uint64 {
	out := map[string]uint64{}
	for _, r := range n.replicas() {
		out[r.Name] = r.Node.Member().Incarnation
	}
	return out
}

// MayLose implements adminapi.Cluster: without the node each of its groups must still have a quorum that answers.
func (n *Node) MayLose(ctx context.Context, node string) error {
	for _, r := range n.replicas() {
		around := r.Node.Around(ctx)
		around[n.self.Name] = r.Node.Status()
		left, answer, member := 0, 0, false
		for _, m := range r.Node.Members() {
			switch s, ok := around[m.Node]; {
			case !m.Voter:
			case m.Node == node:
				member = true
			default:
				left++
				if ok && s.Server == m.Server {
					answer++
				}
			}
		}
		if member && answer < left/2+1 {
			return fault.New(fault.Conflict, "LAST_QUORUM", "group %s would have no quorum without node %s: of its %d other voters %d answer: bring another node in, or back, first", r.Name, node, left, answer)
		}
	}
	return nil
}
