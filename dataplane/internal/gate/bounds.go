package gate

import (
	"net/netip"
	"time"

	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/usage"
)

// bound holds a request to what its key is bound to: networks, and the scope that the route asks for. Whoever may use the
// key is told which; false leaves a problem in v.
func (v *Verdict) bound(b *policy.Bounds, remote string) bool {
	if b.Anywhere() || b.Takes(address(remote)) {
		if scope := v.Route.Scope; scope == "" || v.shown.allows(scope, b) {
			return true
		}
		v.refuse(403, ReasonScope, "The route needs the scope "+v.Route.Scope+", which the caller was not given.")
		return false
	}
	v.refuse(403, ReasonAddress, "The key does not work from this network; ask its owner for one that does.")
	return false
}

// address is that of a host:port; the zero Addr, which no network holds, if it is none.
func address(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

// limited says whether a plan has limits that a share of the region's edges is asked for.
func limited(plan *policy.Plan) bool {
	return plan.RequestsPerSecond > 0 || len(plan.Windows) > 0 || plan.MaxConcurrent > 0
}

// limit takes a request from all limits of the plan, or from none.
func (g *Gate) limit(plan *policy.Plan, now time.Duration, v *Verdict) {
	if !limited(plan) {
		return
	}
	share := int64(limit.Whole)
	if v.Account != nil {
		share = v.Account.Offer()
	}
	// The customer is part of the name: a subscription's is unique only within its customer.
	id := limit.ID{Customer: v.Customer, Subscription: v.Subscription, Plan: v.Plan}
	terms := limit.Terms{Concurrent: plan.MaxConcurrent}
	for ; terms.N < min(len(plan.Windows), limit.MaxWindows); terms.N++ {
		terms.Windows[terms.N] = limit.Window(plan.Windows[terms.N])
	}
	entered := g.Limits.Enter(id, now, &terms, share)
	v.windows = entered.Result
	switch {
	case entered.Refused >= 0:
		v.slow(entered.Result[entered.Refused].RetryAfter)
		if plan.RequestsPerSecond > 0 {
			v.rate.Reset = time.Second // not asked: said to be short, since it is not known
		}
		return
	case entered.Crowded:
		v.Outcome, v.RetryAfter, v.Flags = usage.OutcomeLimited, time.Second, usage.FlagRateLimited
		v.refuse(429, ReasonCrowded, "As many requests of the subscription as its plan allows at once are under way; wait for one to end, or move to a plan that allows more.")
		return
	}
	if plan.RequestsPerSecond > 0 {
		var ok bool
		if v.rate, ok = v.found.limiter.Again(now, plan.RequestsPerSecond, burst(plan), share); !ok {
			v.rate, v.found.limiter = g.Limits.Find(id, now, plan.RequestsPerSecond, burst(plan), share)
		}
		if !v.rate.OK {
			entered.Pass().Undo(&v.windows)
			v.slow(v.rate.RetryAfter)
			return
		}
	}
	v.Pass, v.share = entered.Pass(), share
}

// GiveBack returns what a request took of its plan's limits: its quota refused it, or nobody served it and no upstream was
// asked. Once.
func (g *Gate) GiveBack(v *Verdict) {
	if v.share == 0 {
		return
	}
	v.Pass.Undo(&v.windows)
	if v.plan.RequestsPerSecond > 0 {
		v.rate.Remaining++
		g.Limits.Give(limit.ID{Customer: v.Customer, Subscription: v.Subscription, Plan: v.Plan}, v.plan.RequestsPerSecond, v.share)
	}
	v.Pass, v.share = limit.Pass{}, 0
}

func (v *Verdict) slow(wait time.Duration) {
	v.Outcome, v.RetryAfter, v.Flags = usage.OutcomeLimited, wait, usage.FlagRateLimited
	v.refuse(429, ReasonRateExceeded, "Wait as long as Retry-After says, or move to a plan with a higher rate.")
}

func burst(plan *policy.Plan) int {
	if plan.Burst > 0 {
		return plan.Burst
	}
	return plan.RequestsPerSecond
}

// windowPolicy and windowLeft write a window's member of the two headers, under the name of its length.
func (v *Verdict) windowPolicy(b []byte, i int) []byte {
	w := v.plan.Windows[i]
	q, length := int64(w.Requests), int64(w.Per/time.Second)
	if n := int64(w.Burst); n > 0 && n < q { // the time that holds one burst
		q, length = n, max(1, length*n/q)
	}
	b = number(append(v.windowName(b, i, 0), ";q="...), q)
	return number(append(b, ";w="...), length)
}

func (v *Verdict) windowLeft(b []byte, i, from int) []byte {
	r := &v.windows[i]
	b = number(append(v.windowName(b, i, from), ";r="...), int64(r.Remaining))
	return number(append(b, ";t="...), Seconds(r.Reset))
}

func (v *Verdict) windowName(b []byte, i, from int) []byte {
	if len(b) > from {
		b = append(b, ", "...)
	}
	return append(number(append(b, '"'), int64(v.plan.Windows[i].Per/time.Second)), `s"`...)
}
