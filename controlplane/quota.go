package controlplane

import (
	"context"

	"bailiwick/controlplane/internal/peer"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// quotaDoor takes exchanges from edges of this zone. Its name and region come from an edge's certificate.
type quotaDoor struct{ *Node }

func (d quotaDoor) Exchange(ctx context.Context, req *usagev1.ExchangeRequest) (*usagev1.ExchangeResponse, error) {
	name, ok := peer.NameFrom(ctx)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "NO_PEER", "the request carries no verified certificate")
	}
	if name.Kind != identity.Edge || name.Zone != d.self.Zone {
		return nil, fault.New(fault.Denied, "NOT_AN_EDGE", "%s is no edge of zone %s", name.Node, d.self.Zone)
	}
	if err := d.allow(name); err != nil {
		return nil, err
	}
	leader, self := d.replica.Leader()
	switch {
	case self:
		return d.lessor.Exchange(ctx, name.Node, name.Region, req)
	case leader == "":
		return nil, fault.New(fault.Unavailable, "NO_LEADER", "the ledger of zone %s has no leader now; quotas wait for one", d.self.Zone)
	}
	return d.carrier.Exchange(ctx, leader, name.Node, name.Region, req)
}
