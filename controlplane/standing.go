package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/quota"
)

// standing is how a subscription's quota stands in its present period.
type standing struct {
	customer     model.Customer
	subscription model.Subscription
	zone         *time.Location
	period       quota.Period
	limit        int64 // of the plan and top-ups, without grace: what was sold
	used         int64
	slides       time.Duration // the window of a rolling quota
}

// standings calls each with every subscription that has a quota, of one customer or of all.
func standings(ctx context.Context, store, catalog group.Snapshot, view *ledger.View, now time.Time, only string, each func(standing) error) error {
	plans := map[string]*model.Quota{}
	for kv := range store.List(model.PrefixCustomer + only) {
		customer, err := model.Decode[model.Customer](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if only != "" && customer.Name != only {
			continue // its name begins alike
		}
		zone, err := calendar.Load(customer.TimeZone)
		if err != nil {
			return fmt.Errorf("customer's time zone: %w", err)
		}
		for _, sub := range customer.Subscriptions {
			terms, period, err := lessor.Terms(catalog, customer, sub.Name, zone, now)
			if err != nil {
				return err
			}
			q, read := plans[sub.Plan]
			if plan, ok := catalog.Get(model.PrefixPlan + sub.Plan); ok && !read {
				p, err := model.Decode[model.Plan](plan.Key, plan.Value)
				if err != nil {
					return err
				}
				q, plans[sub.Plan] = p.Quota, p.Quota
			}
			if terms.Mode == "" || q == nil {
				continue
			}
			a, err := view.Account(ledger.AccountID{Customer: customer.Name, Subscription: sub.Name, Period: period.Start}, terms, now.Unix())
			if err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			s := standing{customer: customer, subscription: sub, zone: zone, period: period, limit: quota.Add(q.Units, a.ToppedUp), used: a.Used, slides: slides(q)}
			if err := each(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// accounts is what alerts are raised from.
func (c *central) accounts(ctx context.Context) (out []alert.Account, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	view, err := c.ledger.View(ctx)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	out, err = accounts(ctx, c.store.Local(), c.catalog.Local(), view, time.Now())
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("read every quota of zone %s within 10 s: %w", c.self.Zone, err)
	}
	return out, err
}

func accounts(ctx context.Context, store, catalog group.Snapshot, view *ledger.View, now time.Time) (out []alert.Account, err error) {
	err = standings(ctx, store, catalog, view, now, "", func(s standing) error {
		out = append(out, alert.Account{Customer: s.customer.Name, Subscription: s.subscription.Name, Plan: s.subscription.Plan,
			Period: s.period.Start, PeriodEnd: s.period.End, Limit: s.limit, Used: s.used})
		return nil
	})
	return out, err
}
