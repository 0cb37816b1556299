package gate

import (
	"strconv"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/usage"
)

// retryMost bounds Retry-After of a quota that is used up: a month is no time to wait for, and a top-up or
// another plan ends it sooner.
const retryMost = time.Hour

// Settle makes a verdict of what asking for units came to, at once or after a wait.
func (g *Gate) Settle(v *Verdict, ticket quota.Ticket, decision quota.Decision, unix int64) {
	v.Parked, v.Ticket = false, ticket
	switch {
	case decision == quota.Taken || !v.Leased: // what is only watched is never refused
	case decision == quota.Exhausted && v.plan.QuotaPeriod == "prepaid":
		v.Flags = usage.FlagQuotaLimited
		v.refuse(402, ReasonPrepaid, "The prepaid units are used up; buy more.")
	case decision == quota.Exhausted:
		v.Outcome, v.Flags, v.RetryAfter = usage.OutcomeLimited, usage.FlagQuotaLimited, v.untilRenewed(unix)
		v.refuse(429, ReasonQuotaExceeded, "Wait for the next period, or move to a plan with a higher quota.")
	default:
		v.Outcome, v.RetryAfter = usage.OutcomeUnserved, time.Second
		v.refuse(503, ReasonUnconfirmed, "This edge could not confirm in time that units of the quota are left; try again.")
	}
	if !v.Admitted() { // what one limit refuses takes nothing of the others
		g.GiveBack(v)
	}
	v.describe(unix)
}

// untilRenewed is how long until there may be units again.
func (v *Verdict) untilRenewed(unix int64) time.Duration {
	if w, ok := v.Account.Whole(0); ok && w.End != 0 {
		return min(max(time.Duration(w.End-unix)*time.Second, time.Second), retryMost)
	}
	return min(max(v.plan.QuotaWindow/100, time.Second), retryMost) // a rolling one frees units all the time
}

// describe writes the headers of draft-ietf-httpapi-ratelimit-headers-11: a list of one member for the rate
// and one for the quota, of the whole limit and the whole quota, whatever part of it this edge has.
func (v *Verdict) describe(unix int64) {
	b := v.limits[:0] // room for all of MaxWindows
	rated := v.plan.RequestsPerSecond > 0
	if rated {
		q, w := v.plan.RequestsPerSecond, 1
		if n := burst(v.plan); n%q == 0 { // a window in whole seconds that holds exactly one burst at the plan's rate
			q, w = n, n/q
		}
		b = number(append(b, `"plan";q=`...), int64(q))
		b = number(append(b, ";w="...), int64(w))
	}
	for i := range v.plan.Windows {
		b = v.windowPolicy(b, i)
	}
	var whole quota.Whole
	counted := false
	if v.plan.QuotaMode != "" && v.Account != nil {
		whole, counted = v.Account.Whole(v.Ticket.Units())
	}
	if counted {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = number(append(b, `"quota";q=`...), whole.Limit)
		if w := period(whole, v.plan); w > 0 {
			b = number(append(b, ";w="...), w)
		}
	}
	cut := len(b)
	if rated {
		b = number(append(b, `"plan";r=`...), int64(v.rate.Remaining))
		b = number(append(b, ";t="...), Seconds(v.rate.Reset))
	}
	for i := range v.plan.Windows {
		b = v.windowLeft(b, i, cut)
	}
	if counted {
		if len(b) > cut {
			b = append(b, ", "...)
		}
		b = number(append(b, `"quota";r=`...), whole.Rest)
		if whole.End != 0 {
			b = number(append(b, ";t="...), max(1, whole.End-unix))
		}
	}
	if len(b) <= len(v.limits) {
		v.cut, v.end = uint16(cut), uint16(len(b))
	}
}

// Limits are the values of RateLimit and RateLimit-Policy; empty: there is no limit to tell of. They are the verdict's own
// bytes: a copy of it has other ones.
func (v *Verdict) Limits() (limit, policy []byte) { return v.limits[v.cut:v.end], v.limits[:v.cut] }

func period(w quota.Whole, plan *policy.Plan) int64 {
	if w.Length > 0 {
		return w.Length
	}
	return int64(plan.QuotaWindow / time.Second)
}

func number(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }
