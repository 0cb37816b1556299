package quota

// While so much of a quota is left that nobody can want for it, edges hold more of it and ask for it seldom: an exchange with the
// leader costs both sides the same whether anything comes of it, and what is held ahead is how long a leader may be silent without
// a request that notices.

const (
	ampleHorizon = 8 // seconds of demand that an edge wants to hold of what is ample, in place of horizon
	// ampleParts: a quota is ample while that is no more than this part of what is left. An edge may come to hold twice as much
	// before it gives back, so 128 edges with the same demand do not hold all.
	ampleParts = 256
)

// horizon is how many seconds of its demand the account wants to hold.
func (a *Account) horizon(l *lease) int64 {
	if l != nil && (l.limit.Load()-l.used.Load())/ampleParts > ampleHorizon*a.wantRate/1000 {
		return ampleHorizon
	}
	return horizon
}

// calm says whether an exchange would change nothing that matters before the account is looked at again: it holds what it wants,
// its demand is what the leader was told, and so much of the quota is left that nobody wants for what it holds.
func (a *Account) calm(l *lease) bool {
	if a.horizon(l) != ampleHorizon || a.waiters.Load() > 0 {
		return false
	}
	want, free := max(ampleHorizon*a.wantRate/1000, floor(l, a.plan.Load())), l.free.Load()
	if 2*free < want || free > 2*want && !plenty(l, free) {
		return false
	}
	return a.offerRate-a.toldRate <= a.toldRate/4+1000 && a.toldRate-a.offerRate <= a.toldRate/4+1000
}
