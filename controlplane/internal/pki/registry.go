package pki

import (
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Registry answers from the catalog as this node has it whether a certificate's
// name is still a node's: it blocks on nothing and works without a quorum.
type Registry struct {
	Catalog      group.Store
	Installation *Installation
}

// Allow refuses a node that the registry does not hold as that kind, region and
// zone. As long as the registry holds no control node at all, those of the
// installation file are allowed: the catalog's first entries travel over them.
func (r Registry) Allow(n identity.Name) error {
	snap := r.Catalog.Local()
	if kv, ok := snap.Get(model.PrefixNode + n.Node); ok {
		m, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if m.Kind == n.Kind && m.Region == n.Region && m.Zone == n.Zone {
			return nil
		}
	} else if n.Kind == identity.Control && !seeded(snap) {
		if c, ok := r.Installation.Control(n.Node); ok && c.Zone == n.Zone && c.Region == n.Region {
			return nil
		}
	}
	return fault.New(fault.Denied, ReasonWithdrawn, "node %s is not in the registry", n)
}

// Since is when the node of that name joined: a certificate issued before is of one that was withdrawn, and does
// not come back to life with the next node of its name. Zero for nodes that came with the installation.
func (r Registry) Since(n identity.Name) time.Time {
	kv, ok := r.Catalog.Local().Get(model.PrefixNode + n.Node)
	if !ok {
		return time.Time{}
	}
	m, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil {
		return time.Time{} // Allow refuses it
	}
	return m.JoinedAt
}

func seeded(snap group.Snapshot) bool {
	for kv := range snap.List(model.PrefixNode) {
		if m, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil && m.Kind == identity.Control {
			return true
		}
	}
	return false
}
