package quota

import (
	"time"

	"bailiwick/dataplane/internal/policy"
)

// While so much of a quota is left that nobody can want for it, edges hold more of it and ask for it seldom: an exchange with the
// leader costs both sides the same whether anything comes of it, and what is held ahead is how long a leader may be silent without
// a request that notices.

const (
	ampleHorizon = 10 // seconds of demand that an edge wants to hold of what is ample, in place of horizon
	// ampleParts: a quota is ample while that is no more than this part of what is left. An edge may come to hold twice as much
	// before it gives back, so 128 edges with the same demand do not hold all.
	ampleParts = 256
	ampleEvery = time.Second // so often is asked who is calm and slack; well below the three seconds after which the leader forgets a demand
)

// horizon is how many seconds of its demand the account wants to hold.
func (a *Account) horizon(l *lease) int64 {
	if l != nil && (l.limit.Load()-l.used.Load())/ampleParts > ampleHorizon*a.wantRate/1000 {
		return ampleHorizon
	}
	return horizon
}

// calm says whether an exchange would bring no units that matter before the account is looked at again: it holds what it wants,
// and so much of the quota is left that nobody wants for what it holds.
func (a *Account) calm(l *lease) bool {
	if a.horizon(l) != ampleHorizon || a.waiters.Load() > 0 {
		return false
	}
	// It asks for more when half of it is gone, so that comes with an exchange that is made anyway where one is made each second.
	want, free := max(ampleHorizon*a.wantRate/1000, floor(l, a.plan.Load())), l.free.Load()
	return 5*free >= 2*want && (free <= 2*want || plenty(l, free))
}

// told says whether the leader knows of the account's demand, about.
func (a *Account) told() bool {
	return a.offerRate-a.toldRate <= a.toldRate/4+1000 && a.toldRate-a.offerRate <= a.toldRate/4+1000
}

// slack says whether it does not matter how the account's rate limit is shared: what comes here, and what the leader was told of it, is
// no more than the floor that each edge has whatever comes to others. Windows and places are shared likewise, but what is taken of them
// here is not known to the book.
func (a *Account) slack(plan *policy.Plan) bool {
	if len(plan.Windows) > 0 || plan.MaxConcurrent > 0 {
		return false
	}
	floor := int64(plan.RequestsPerSecond) * a.book.even.Load() / (10 * millionths / 1000) // a tenth of an even share, per 1000 s
	return plan.RequestsPerSecond == 0 || a.offerRate <= floor && a.toldRate <= floor
}

// pause is how long an account in use that the leader has answered for goes without an exchange; 0: it is due at each tick.
func (a *Account) pause(l *lease) time.Duration {
	plan := a.plan.Load()
	switch {
	case l != nil && (l.free.Load() > 0 || !l.exhausted.Load() && Leases(plan)):
		switch {
		case !a.calm(l):
			return 0
		case a.slack(plan):
			return ampleEvery
		case !a.told():
			return 0
		}
	case plan.QuotaMode == "" && a.slack(plan):
		return ampleEvery
	}
	return watchEvery
}
