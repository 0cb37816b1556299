package lessor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/quota"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Subscription is the quota of one subscription at an instant: which account its
// units are counted in.
type Subscription struct {
	Name   string
	ID     ledger.AccountID
	Terms  ledger.Terms
	Period quota.Period
}

// Subscriptions are a customer's quotas at an instant, those without one left out.
func Subscriptions(catalog group.Snapshot, customer model.Customer, now time.Time) ([]Subscription, error) {
	zone, err := calendar.Load(customer.TimeZone)
	if err != nil {
		return nil, fmt.Errorf("quotas of customer %s: %w", customer.Name, err)
	}
	var out []Subscription
	for _, s := range customer.Subscriptions {
		terms, period, err := Terms(catalog, customer, s.Name, zone, now)
		if err != nil {
			return nil, err
		}
		if terms.Mode == "" {
			continue
		}
		out = append(out, Subscription{Name: s.Name, Terms: terms, Period: period,
			ID: ledger.AccountID{Customer: customer.Name, Subscription: s.Name, Period: period.Start}})
	}
	return out, nil
}

// Quotas is the leader's word on a customer's quotas.
func (l *Lessor) Quotas(ctx context.Context, name string) ([]*adminv1.QuotaStatus, error) {
	l.mu.Lock()
	leads := l.term != nil
	l.mu.Unlock()
	if !leads {
		return nil, notLeader()
	}
	customer, ok := get[model.Customer](l.cfg.Store(), model.PrefixCustomer+name)
	if !ok {
		return nil, fault.New(fault.NotFound, "CUSTOMER_NOT_FOUND", "customer %q does not exist in zone %s", name, l.cfg.Zone)
	}
	now := time.Now()
	subs, err := Subscriptions(l.cfg.Catalog(), customer, now)
	if err != nil {
		return nil, err
	}
	view, err := l.cfg.Ledger.Local()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	out := make([]*adminv1.QuotaStatus, 0, len(subs))
	for _, s := range subs {
		acc, err := view.Account(s.ID, s.Terms, now.Unix())
		if err != nil {
			return nil, err
		}
		out = append(out, l.status(s, &acc, now))
	}
	return out, nil
}

func (l *Lessor) status(s Subscription, acc *ledger.Account, now time.Time) *adminv1.QuotaStatus {
	q := &adminv1.QuotaStatus{Customer: s.ID.Customer, Subscription: s.Name, Plan: s.Terms.Plan, Mode: s.Terms.Mode, Period: s.Terms.Kind,
		Limit: acc.Limit, ToppedUp: acc.ToppedUp, Used: acc.Used, Held: acc.Held, Remaining: max(0, acc.Limit-quota.Add(acc.Used, acc.Held))}
	if s.Period.End != 0 {
		q.PeriodStart, q.PeriodEnd = timestamppb.New(time.Unix(s.Period.Start, 0)), timestamppb.New(time.Unix(s.Period.End, 0))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != nil {
		n := l.term.underWay(acc, s.ID, "", s.Terms.Mode != "soft", now)
		q.Used = quota.Add(q.Used, n)
		if s.Terms.Mode != "soft" {
			q.Held = max(0, q.Held-n)
		}
		q.Remaining = max(0, acc.Limit-quota.Add(q.Used, q.Held))
	}
	for _, h := range acc.Holders {
		if h.Held == 0 {
			continue
		}
		n := &adminv1.QuotaHolder{Edge: h.Edge, Epoch: h.Epoch, Held: h.Held}
		if l.term != nil {
			if at, ok := l.term.edges[h.Edge]; ok {
				n.LastHeard = timestamppb.New(at.at)
			}
		}
		q.Holders = append(q.Holders, n)
	}
	slices.SortFunc(q.Holders, func(a, b *adminv1.QuotaHolder) int { return int(min(1, max(-1, b.GetHeld()-a.GetHeld()))) })
	return q
}

// TopUpper is where a top-up is committed; *ledger.Ledger is one.
type TopUpper interface {
	TopUp(ctx context.Context, o ledger.TopUp) (first ledger.TopUp, repeated bool, err error)
}

// TopUp adds units to the present period of one of subs, the quotas of a
// customer. Any node may propose it: which period is the present one is said by
// that node's clock and stands in the command.
func TopUp(ctx context.Context, to TopUpper, subs []Subscription, t ledger.TopUp) (repeated bool, err error) {
	i := slices.IndexFunc(subs, func(s Subscription) bool { return s.Name == t.ID.Subscription })
	if i < 0 {
		return false, fault.New(fault.Invalid, "NO_QUOTA", "subscription %s of customer %s has no quota", t.ID.Subscription, t.ID.Customer)
	}
	t.ID, t.Terms = subs[i].ID, subs[i].Terms
	first, repeated, err := to.TopUp(ctx, t)
	if err != nil {
		return false, err
	}
	if first.ID.Customer != t.ID.Customer || first.ID.Subscription != t.ID.Subscription || first.Units != t.Units {
		return false, fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %s has topped up something else before, and has no effect again: use a new one", t.RequestID)
	}
	return repeated, nil
}
