package adminapi

import (
	"context"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Quotas is the zone's word on quotas.
type Quotas interface {
	// Quotas are those of a customer's subscriptions now.
	Quotas(ctx context.Context, customer string) ([]*adminv1.QuotaStatus, error)
	// TopUp adds units to the present period of a subscription's quota, once a request id.
	TopUp(ctx context.Context, t TopUp) (repeated bool, err error)
}

// TopUp is units that an operator adds.
type TopUp struct {
	Customer, Subscription string
	Units                  int64
	RequestID, By, Reason  string
}

func (s *server) quotas() (Quotas, error) {
	if s.Quota == nil {
		return nil, s.usageOff()
	}
	return s.Quota, nil
}

// GetQuotas shows what is used, held and left of a customer's quotas.
func (s *server) GetQuotas(ctx context.Context, req *adminv1.GetQuotasRequest) (*adminv1.GetQuotasResponse, error) {
	q, err := s.quotas()
	if err != nil {
		return nil, err
	}
	if _, ok, err := get[model.Customer](state{snap: s.freshOrLocal(ctx, s.Store)}, model.PrefixCustomer+req.GetCustomer()); err != nil || !ok {
		if err == nil {
			err = s.customerUnknown(req.GetCustomer())
		}
		return nil, err
	}
	list, err := q.Quotas(ctx, req.GetCustomer())
	if err != nil {
		return nil, s.explainLedger(err)
	}
	out := &adminv1.GetQuotasResponse{Quotas: list}
	out.TopUps, err = s.topUps(ctx, req.GetCustomer())
	return out, err
}

// maxTopUps bounds a list of top-ups, the newest.
const maxTopUps = 1000

func (s *server) topUps(ctx context.Context, customer string) ([]*adminv1.ToppedUp, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	list, err := v.TopUps(ctx, customer)
	if err != nil {
		return nil, err
	}
	var out []*adminv1.ToppedUp
	for _, t := range list[:min(len(list), maxTopUps)] {
		one := &adminv1.ToppedUp{Subscription: t.ID.Subscription, Units: t.Units, Reason: t.Reason, By: t.By, At: stamp(time.Unix(t.At, 0)), RequestId: t.RequestID}
		if p := t.ID.Period; p != usage.PeriodRolling && p != usage.PeriodPrepaid {
			one.PeriodStart = stamp(time.Unix(p, 0))
		}
		out = append(out, one)
	}
	return out, nil
}

// TopUp needs the quorum of the zone's ledger. Edges hear of it with their next exchange, within a quarter of
// a second where requests wait.
func (s *server) TopUp(ctx context.Context, req *adminv1.TopUpRequest) (*adminv1.TopUpResponse, error) {
	q, err := s.quotas()
	if err != nil {
		return nil, err
	}
	snap, err := s.fresh(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	customer, ok, err := get[model.Customer](state{snap: snap}, model.PrefixCustomer+req.GetCustomer())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, s.customerUnknown(req.GetCustomer())
	}
	name, err := s.withQuota(customer, req.GetSubscription())
	if err != nil {
		return nil, err
	}
	repeated, err := q.TopUp(ctx, TopUp{Customer: customer.Name, Subscription: name, Units: req.GetUnits(), RequestID: req.GetRequestId(), By: operator(ctx), Reason: req.GetReason()})
	if err != nil {
		return nil, s.explainLedger(err)
	}
	out := &adminv1.TopUpResponse{Repeated: repeated}
	list, err := q.Quotas(ctx, customer.Name)
	if err != nil {
		return nil, s.explainLedger(err)
	}
	if i := slices.IndexFunc(list, func(q *adminv1.QuotaStatus) bool { return q.GetSubscription() == name }); i >= 0 {
		out.Quota = list[i]
	}
	return out, nil
}

// withQuota picks the subscription to top up: the one named, or the only one that has a quota.
func (s *server) withQuota(c model.Customer, name string) (string, error) {
	plans := state{snap: s.Catalog.Local()}
	var having []string
	for _, sub := range c.Subscriptions {
		plan, ok, err := get[model.Plan](plans, model.PrefixPlan+sub.Plan)
		if err != nil {
			return "", err
		}
		if ok && plan.Quota != nil {
			having = append(having, sub.Name)
		}
	}
	switch {
	case name != "" && !slices.ContainsFunc(c.Subscriptions, func(s model.Subscription) bool { return s.Name == name }):
		return "", fault.New(fault.NotFound, "SUBSCRIPTION_NOT_FOUND", "customer %s has no subscription %q", c.Name, name).At("subscription")
	case name != "" && !slices.Contains(having, name):
		return "", fault.New(fault.Invalid, "NO_QUOTA", "the plan of customer %s's subscription %s has no quota: there is nothing to top up", c.Name, name).At("subscription")
	case name != "":
		return name, nil
	case len(having) == 0:
		return "", fault.New(fault.Invalid, "NO_QUOTA", "no plan of customer %s has a quota: there is nothing to top up", c.Name)
	case len(having) > 1:
		return "", fault.New(fault.Invalid, "SUBSCRIPTION_REQUIRED", "customer %s has quotas in subscriptions %s: say which to top up", c.Name, strings.Join(having, ", ")).At("subscription")
	}
	return having[0], nil
}
