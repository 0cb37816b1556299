package lessor

import (
	"slices"
	"sync"
	"time"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/quota"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// request is one exchange as the leader understands it.
type request struct {
	order    ledger.Exchange
	subjects []*subject
}

// subject is one subscription that an edge asks about.
type subject struct {
	ask    *usagev1.AccountAsk
	terms  ledger.Terms // blank Mode: the plan has no quota
	period quota.Period
	ceil   int64 // as in ledger.Ask
	mine   int   // index of the current period's ask in order.Asks; -1: none
	lease  ledger.Lease
}

func (s *subject) id() ledger.AccountID {
	return ledger.AccountID{Customer: s.ask.GetCustomer(), Subscription: s.ask.GetSubscription(), Period: s.period.Start}
}

// ahead is how long before a period begins an edge may ask for it.
const ahead = 10 * time.Second

// read finds out what the edge asks for. What this leader does not know, a
// customer of another zone or one that it has not heard of yet, is left out of
// the answer and gets nothing.
func (l *Lessor) read(edge string, req *usagev1.ExchangeRequest, now time.Time) *request {
	x := &request{order: ledger.Exchange{Edge: edge, Epoch: req.GetEpoch(), Sequence: req.GetSequence()}}
	for _, p := range req.GetPending() {
		x.order.Pending = append(x.order.Pending, ledger.Pending{Epoch: p.GetEpoch(), Sealed: p.GetSealedSeq()})
	}
	catalog, store := l.cfg.Catalog(), l.cfg.Store()
	seen := make(map[[2]string]bool, len(req.GetAccounts()))
	for _, ask := range req.GetAccounts() {
		key := [2]string{ask.GetCustomer(), ask.GetSubscription()}
		if seen[key] {
			continue // one word on an account a request
		}
		seen[key] = true
		s, zone := l.subject(catalog, store, ask, now)
		if s == nil {
			l.stats.Refused.Add(1)
			continue
		}
		x.subjects = append(x.subjects, s)
		if s.terms.Mode == "" {
			continue
		}
		x.resolve(s, zone, now)
	}
	return x
}

// subject is nil for one that is not of this zone.
func (l *Lessor) subject(catalog, store group.Snapshot, ask *usagev1.AccountAsk, now time.Time) (*subject, *time.Location) {
	customer, ok := get[model.Customer](store, model.PrefixCustomer+ask.GetCustomer())
	if !ok || customer.Zone != "" && customer.Zone != l.cfg.Zone {
		return nil, nil
	}
	zone := l.zones.get(customer.TimeZone)
	if zone == nil {
		l.cfg.Logger.Error("a customer's time zone does not exist here; no quota is leased", "zone", customer.TimeZone)
		return nil, nil
	}
	terms, period, err := Terms(catalog, customer, ask.GetSubscription(), zone, now)
	if err != nil {
		l.cfg.Logger.Error("a plan's quota is not understood; nothing is leased", "plan", terms.Plan, "error", err)
		return nil, nil
	}
	if terms.Plan == "" {
		return nil, nil
	}
	return &subject{ask: ask, terms: terms, period: period, mine: -1}, zone
}

// Terms are the quota of a customer's subscription now, and its period. A blank
// Plan: there is no such subscription, or its plan is gone; a blank Mode: it has
// no quota. Which plan the edge takes for the subscription's is not looked at: an
// edge must not be able to make up subscriptions, or to sell more than was bought.
func Terms(catalog group.Snapshot, customer model.Customer, subscription string, zone *time.Location, now time.Time) (ledger.Terms, quota.Period, error) {
	var name string
	for _, s := range customer.Subscriptions {
		if s.Name == subscription {
			name = s.Plan
		}
	}
	plan, ok := get[model.Plan](catalog, model.PrefixPlan+name)
	if !ok {
		return ledger.Terms{}, quota.Period{}, nil
	}
	t := ledger.Terms{Plan: plan.Name}
	q := plan.Quota
	if q == nil {
		return t, quota.Period{}, nil
	}
	t.Mode, t.Kind, t.Limit, t.Window = or(q.Mode, "soft"), or(q.Period, "month"), q.Units, int64(q.Window/time.Second)
	if t.Mode == "soft" && q.GracePercent > 0 {
		t.Mode, t.Limit = "elastic", quota.Raised(q.Units, q.GracePercent)
	}
	period, err := quota.At(t.Kind, zone, now)
	t.End = period.End
	return t, period, err
}

// resolve turns an edge's ask into one about the current period, or about the
// next when the edge asks shortly ahead, and one that only gives back what it
// has of a period that is over.
func (x *request) resolve(s *subject, zone *time.Location, now time.Time) {
	said := s.ask.GetPeriod()
	if said == s.period.End && s.period.End != 0 && now.Unix() >= s.period.End-int64(ahead/time.Second) {
		next, err := quota.At(s.terms.Kind, zone, time.Unix(said, 0))
		if err == nil {
			s.period, s.terms.End = next, next.End
		}
	}
	s.ceil = -1
	switch {
	case said == s.period.Start:
		s.ceil = max(0, s.ask.GetCeiling())
	case said > usage.PeriodPrepaid && said < s.period.Start: // no edge begins a period
		if was, err := quota.At(s.terms.Kind, zone, time.Unix(said, 0)); err == nil && was.Start == said {
			terms := s.terms
			terms.End = was.End
			x.order.Asks = append(x.order.Asks, ledger.Ask{ID: ledger.AccountID{Customer: s.ask.GetCustomer(), Subscription: s.ask.GetSubscription(), Period: said},
				Terms: terms, Ceiling: max(0, s.ask.GetCeiling())})
		}
	}
	s.mine = len(x.order.Asks)
	x.order.Asks = append(x.order.Asks, ledger.Ask{ID: s.id(), Terms: s.terms, Ceiling: s.ceil, Want: max(0, s.ask.GetWant())})
}

// mustCommit says whether an exchange changes the ledger. If not, this node's
// copy answers it: edges that serve soft plans, or hold nothing, beat without an
// entry. A leader that was replaced and does not know it may answer from an old
// copy; what it says then is never above the edge's own ceiling (see lookUp).
func (x *request) mustCommit(v *ledger.View) (bool, error) {
	epoch, _, pending, err := v.Asker(x.order.Edge)
	if err != nil || epoch != x.order.Epoch || !slices.Equal(pending, x.order.Pending) {
		return true, err
	}
	for i := range x.order.Asks {
		a := &x.order.Asks[i]
		if a.Terms.Mode == "soft" {
			continue
		}
		if a.Want > 0 || a.Ceiling < 0 {
			return true, nil
		}
		acc, err := v.Account(a.ID, a.Terms, 0)
		if err != nil {
			return false, err
		}
		if leasedTo(&acc, x.order.Edge, x.order.Epoch).Leased > a.Ceiling {
			return true, nil
		}
	}
	return false, nil
}

func leasedTo(a *ledger.Account, edge string, epoch uint64) ledger.Holder {
	for _, h := range a.Holders {
		if h.Edge == edge && h.Epoch == epoch {
			return h
		}
	}
	return ledger.Holder{}
}

// lookUp answers from a copy that may be old. An edge lowers its own ceiling
// before it sends it, so a lease of at most the ceiling gives it nothing that it
// does not have.
func (x *request) lookUp(v *ledger.View) error {
	for _, s := range x.subjects {
		if s.mine < 0 {
			continue
		}
		acc, err := v.Account(s.id(), s.terms, time.Now().Unix())
		if err != nil {
			return err
		}
		h := leasedTo(&acc, x.order.Edge, x.order.Epoch)
		s.lease = ledger.Lease{ID: s.id(), Leased: min(h.Leased, max(0, s.ceil)), Spent: h.Spent, Limit: acc.Limit, Used: acc.Used, Held: acc.Held, Available: acc.Available}
	}
	return nil
}

func get[T any](s group.Snapshot, key string) (v T, ok bool) {
	kv, ok := s.Get(key)
	if !ok {
		return v, false
	}
	v, err := model.Decode[T](kv.Key, kv.Value)
	return v, err == nil
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// zoneCache keeps time zones that were read: there are some 600 names.
type zoneCache struct {
	mu sync.Mutex // covers m
	m  map[string]*time.Location
}

// get is nil for a name that does not exist.
func (c *zoneCache) get(name string) *time.Location {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.m[name]; ok {
		return l
	}
	l, err := calendar.Load(name)
	if err != nil {
		return nil
	}
	if c.m == nil {
		c.m = map[string]*time.Location{}
	}
	c.m[name] = l
	return l
}
