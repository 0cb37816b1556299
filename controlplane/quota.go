package controlplane

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
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
	return atLessor(d.Node, func() (*usagev1.ExchangeResponse, error) {
		return d.lessor.Exchange(ctx, name.Node, name.Region, req)
	}, func(leader string) (*usagev1.ExchangeResponse, error) {
		return d.carrier.Exchange(ctx, leader, name.Node, name.Region, req)
	})
}

// atLessor asks the leader of the zone ledger, here or over there.
func atLessor[T any](n *Node, here func() (T, error), there func(leader string) (T, error)) (T, error) {
	leader, self := n.replica.Leader()
	switch {
	case self:
		return here()
	case leader == "":
		var none T
		return none, fault.New(fault.Unavailable, "NO_LEADER", "the ledger of zone %s has no leader now; quotas wait for one", n.self.Zone)
	}
	return there(leader)
}

// zoneQuotas is what operators are told of quotas, and how they raise one.
type zoneQuotas struct{ *Node }

// Quotas implements adminapi.Quotas.
func (q zoneQuotas) Quotas(ctx context.Context, customer string) ([]*adminv1.QuotaStatus, error) {
	return atLessor(q.Node, func() ([]*adminv1.QuotaStatus, error) { return q.lessor.Quotas(ctx, customer) },
		func(leader string) ([]*adminv1.QuotaStatus, error) { return q.carrier.Quotas(ctx, leader, customer) })
}

// TopUp implements adminapi.Quotas.
func (q zoneQuotas) TopUp(ctx context.Context, t adminapi.TopUp) (bool, error) {
	kv, ok := q.store.Local().Get(model.PrefixCustomer + t.Customer)
	if !ok {
		return false, fault.New(fault.NotFound, "CUSTOMER_NOT_FOUND", "customer %q does not exist in zone %s", t.Customer, q.self.Zone)
	}
	customer, err := model.Decode[model.Customer](kv.Key, kv.Value)
	if err != nil {
		return false, err
	}
	now := time.Now()
	subs, err := lessor.Subscriptions(q.catalog.Local(), customer, now)
	if err != nil {
		return false, err
	}
	return lessor.TopUp(ctx, q.ledger, subs, ledger.TopUp{ID: ledger.AccountID{Customer: t.Customer, Subscription: t.Subscription}, Units: t.Units,
		RequestID: t.RequestID, At: now.Unix(), By: t.By, Reason: t.Reason})
}
