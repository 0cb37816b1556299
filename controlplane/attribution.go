package controlplane

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/attribution"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/identity"
	"bailiwick/shared/usage"
)

// attribute judges what an edge says was used: the edge must be registered, and what it says plausible and of this
// zone. A customer that was deleted meanwhile still owes what he used, and an edge that was cut off may have served
// him since; so with APIs and pairs of regions. A name unknown here is only refused when this node has caught up.
func (n *Node) attribute(edge, region string, epoch uint64, cells map[usage.Cell]usage.Sums) (reason, detail string, err error) {
	if err := n.allow(identity.Name{Zone: n.self.Zone, Installation: n.in.Name, Region: region, Kind: identity.Edge, Node: edge}); err != nil {
		return ingest.ReasonWithdrawn, "", nil
	}
	if cells == nil {
		return "", "", nil
	}
	catalog := n.catalog.Local()
	var joined time.Time
	if kv, ok := catalog.Get(model.PrefixNode + edge); ok {
		if node, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil {
			joined = node.JoinedAt
		}
	}
	if f := attribution.Plausible(cells, joined, epoch, n.cfg.MaxEdgeRate); f.Reason != "" {
		return f.Reason, f.Detail, nil
	}
	zone := zoneFacts{zone: n.self.Zone, store: n.store.Local(), catalog: catalog}
	f := attribution.Entitled(cells, region, zone)
	if !f.Unknown {
		return f.Reason, f.Detail, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if zone.store, err = n.store.Sync(ctx); err != nil {
		return "", "", err
	}
	f = attribution.Entitled(cells, region, zone)
	// The catalog is asked last: its quorum may be in a zone that is away, and then such a block waits.
	if f.Reason == attribution.ForeignAPI || f.Reason == attribution.ForeignRegion {
		if zone.catalog, err = n.catalog.Sync(ctx); err != nil {
			return "", "", err
		}
		f = attribution.Entitled(cells, region, zone)
	}
	return f.Reason, f.Detail, nil
}

// zoneFacts is what two snapshots know of the zone.
type zoneFacts struct {
	zone           string
	store, catalog group.Snapshot
}

func (f zoneFacts) Customer(name string) bool { return homed(f.store, name) }

func (f zoneFacts) API(name string) bool {
	key := model.APIKey(f.zone, name)
	_, is := f.catalog.Get(key)
	if !is {
		_, is = f.catalog.Get(model.PrefixGone + key)
	}
	return is
}

// Region is generous: a region of the zone, or one to which any pair of the zone's policies leads or ever led. A
// pair that was closed a minute ago was still used before; that it is not used after is the relay's to see to.
func (f zoneFacts) Region(name string) bool {
	kv, ok := f.catalog.Get(model.PrefixRegion + name)
	if !ok {
		kv, ok = f.catalog.Get(model.PrefixGone + model.PrefixRegion + name)
	}
	if ok {
		if r, err := model.Decode[model.Region](kv.Key, kv.Value); err == nil && r.Zone == f.zone {
			return true
		}
	}
	for kv := range f.catalog.List(model.PrefixPolicy) {
		if p, err := model.Decode[model.Policy](kv.Key, kv.Value); err == nil && p.Zone == f.zone {
			for _, pair := range p.Pairs {
				if pair.To == name {
					return true
				}
			}
		}
	}
	if kv, ok := f.store.Get(model.KeyPermitted); ok {
		if p, err := model.Decode[model.Permitted](kv.Key, kv.Value); err == nil {
			for _, pair := range p.Pairs {
				if pair.To == name {
					return true
				}
			}
		}
	}
	for kv := range f.store.List(model.PrefixInForce) { // every pair that was closed has left a record
		if r, err := model.Decode[model.InForce](kv.Key, kv.Value); err == nil && r.To == name {
			return true
		}
	}
	return false
}

// homed says whether a customer is of this zone, or was.
func homed(store group.Snapshot, customer string) bool {
	_, is := store.Get(model.PrefixCustomer + customer)
	if !is {
		_, is = store.Get(model.PrefixGone + customer)
	}
	return is
}
