package failover

import (
	"context"
	"math"
	"sync"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
	"bailiwick/shared/table"
)

// Router chooses where a request goes next.
type Router struct {
	monitor *Monitor
	grants  *Grants
	region  string

	mu  sync.RWMutex // covers bad
	bad map[peerKey]time.Duration
}

// peerKey: a region can be unreachable for all, or its upstream down for one API (api != "").
type peerKey struct{ region, zone, api string }

// NewRouter joins both halves of the decision. grants may be nil: then nothing is ever relayed, which is
// what the receiving end of a relay needs.
func NewRouter(m *Monitor, g *Grants, region string) *Router {
	return &Router{monitor: m, grants: g, region: region, bad: map[peerKey]time.Duration{}}
}

// Candidate is where one attempt goes: Target at home, where it holds a place until Leave, or a relay over a pair with a
// grant.
type Candidate struct {
	Target *Target // nil: a relay
	To     string
	Grant  *grant.Grant
}

// Leave gives the place at the target back. Call it once for each candidate, when nothing of the answer is awaited.
func (c Candidate) Leave() {
	if c.Target != nil {
		c.Target.leave()
	}
}

// Home says whether the attempt stays in this region.
func (c Candidate) Home() bool { return c.Target != nil }

// How far one request goes: what is beyond is not tried.
const (
	homeMost    = 4 // upstreams of the home region
	regionsMost = 8 // other regions
)

// Attempts is the walk of one request over its candidates. Not for concurrent use.
type Attempts struct {
	r     *Router
	api   *policy.API
	route *policy.Route
	once  bool // the request must not be sent twice: proof of life first
	standing
	customer string
	began    time.Duration
	at       time.Duration // the clock was read at: it need not be read again until something was waited for; 0: read it

	targets   []*Target // as of the last Next
	triedHome [homeMost]*Target
	nHome     int
	doubt     [homeMost]*Target // without a sign of life in this Next
	nDoubt    int
	full      bool // a target was well and had no place
	busy      bool // no place came free
	tried     [regionsMost]string
	nTried    int
}

// Start begins the walk. once is for requests that must never be sent twice.
func (r *Router) Start(api *policy.API, route *policy.Route, once bool) Attempts {
	return Attempts{r: r, api: api, route: route, once: once, began: r.monitor.now()}
}

// Ranked has it wait for a place before all of lower ranks; without it goes last.
func (a *Attempts) Ranked(rank int) { a.rank = rank }

// Shares has it leave room for those of higher ranks: it takes no place where so many hundredths of a target's are taken.
func (a *Attempts) Shares(hundredths int) { a.share = int64(hundredths) }

// For says whose request it is: of one customer no more than a share waits for an upstream that has fallen silent.
func (a *Attempts) For(customer string) { a.customer = customer }

// StartAt is Start by who has just read the clock and calls Next at once.
func (r *Router) StartAt(now time.Time, api *policy.API, route *policy.Route, once bool) Attempts {
	at := now.Sub(r.monitor.start)
	return Attempts{r: r, api: api, route: route, once: once, began: at, at: at}
}

// now is the time, as of the last look at the clock if nothing was waited for since.
func (a *Attempts) now() time.Duration {
	if a.at != 0 {
		return a.at
	}
	return a.r.monitor.now()
}

// Next is where to try now, ok false when nowhere is left. It may wait some milliseconds for a sign of life.
// Every call looks at the newest table, and so does whoever sends: a permission is asked for at the moment
// of every attempt, never remembered from an earlier one.
func (a *Attempts) Next(ctx context.Context) (c Candidate, ok bool) {
	m := a.r.monitor
	var timeout time.Duration
	if a.route != nil {
		timeout = a.route.Timeout
	}
	a.targets, a.nDoubt = m.of(a.api), 0
	// 1. A home upstream believed to be well.
	for {
		t := a.pick()
		now := a.now()
		a.at = 0
		if t == nil && a.full {
			now = 0
			t = a.await(ctx, a.targets[0].line, a.api.Dispatch.MaxWaiting, a.patience())
			if t == nil && a.full {
				// Too much to do is no reason to cross a border.
				a.busy = true
				return Candidate{}, false
			}
		}
		if t == nil {
			break
		}
		if now == 0 {
			now = m.now()
		}
		// Silent for long, or about to get what must not be lost: a few milliseconds buy certainty, and keep
		// a merely slow upstream from losing its traffic.
		if t.stalled(now, timeout) || a.once && t.unproven(now) {
			t.leave() // who waits for a sign of life keeps nobody from a place
			if !t.alive(ctx, now, m.cfg.LivenessWait, !a.once) {
				a.doubts(t)
				continue
			}
			if !t.enter(a.standing) {
				continue // somebody took it: another, or in line again
			}
		}
		a.sawHome(t)
		return Candidate{Target: t}, true
	}
	if c, ok = a.pair(); ok {
		return c, true
	}
	return a.last(ctx, timeout)
}

// last is a home upstream in doubt, with its own word that it lives: doubt alone is no reason for a 503. One that has only fallen
// silent is asked again as long as there is hope, and so is a region that was bad a moment ago.
func (a *Attempts) last(ctx context.Context, timeout time.Duration) (Candidate, bool) {
	m := a.r.monitor
	asked := m.now()
	var with *Target // among whose few it waits
	defer func() {
		if with != nil {
			with.dismisses(a.customer)
		}
	}()
	hopeful := func(t *Target) bool {
		// Who asks for another region does so himself, and has others to ask.
		if a.r.grants == nil || m.now()-asked >= hopeFor || timeout != 0 && m.now()-a.began >= timeout || !t.hopeful() {
			return false
		}
		if with == nil && t.admits(a.customer) {
			with = t
		}
		return with != nil
	}
	for {
		hoped := false
		for _, t := range a.targets {
			if a.seenHome(t) || ctx.Err() != nil {
				continue
			}
			// What it answers others meanwhile is its word too, where its health page is slow in a crowd: but none to send on what
			// must not be lost.
			lives := (t.usable() || hopeful(t)) && t.alive(ctx, math.MaxInt64, 0, !a.once)
			if !lives && hopeful(t) {
				hoped = true
				continue
			}
			a.sawHome(t)
			if lives && t.enter(a.standing) {
				return Candidate{Target: t}, true
			}
			a.busy = a.busy || lives
		}
		if !hoped || ctx.Err() != nil {
			return Candidate{}, false
		}
		if c, ok := a.pair(); ok {
			return c, true
		}
	}
}

// pair is the best permitted, granted and not known-bad region not tried yet.
func (a *Attempts) pair() (Candidate, bool) {
	if a.r.grants == nil || a.api.Foreign {
		return Candidate{}, false
	}
	t := a.r.monitor.cfg.Tables.Load()
	if t.RelayOff(&a.api.API) {
		return Candidate{}, false
	}
	for _, p := range t.Pairs(a.api.Policy, a.r.region) {
		if a.seen(p.To) || !deployed(a.api, p.To) || !a.r.good(p.To, &a.api.API) {
			continue
		}
		// Permits again although the pair came from the same table: one rule, one place to break.
		if g := a.r.grants.Live(t, a.api.Policy, p.To); g != nil && t.Permits(a.api.Policy, a.r.region, p.To) {
			if a.nTried == len(a.tried) {
				return Candidate{}, false
			}
			a.tried[a.nTried] = p.To
			a.nTried++
			return Candidate{To: p.To, Grant: g}, true
		}
	}
	return Candidate{}, false
}

// Busy says that Next found nowhere because all that could serve have as many requests as they may.
func (a *Attempts) Busy() bool { return a.busy }

// Hedge is a second place for a request that is still waiting at the first.
func (a *Attempts) Hedge() (Candidate, bool) { return a.pair() }

// CanHedge says whether Hedge would give something, without using it up.
func (a *Attempts) CanHedge() bool {
	b := *a
	_, ok := b.pair()
	return ok
}

// deployed: no list means the table does not say, and the peer will.
func deployed(api *policy.API, region string) bool {
	if len(api.Regions) == 0 {
		return true
	}
	for _, r := range api.Regions {
		if r == region {
			return true
		}
	}
	return false
}

func (a *Attempts) seen(region string) bool {
	for _, r := range a.tried[:a.nTried] {
		if r == region {
			return true
		}
	}
	return false
}

// PeerBad tells that a region did not take a relay: api nil if it could not be reached at all, else its
// upstream of that API is down by its own word. Both are forgotten soon: they cost others only an attempt.
func (r *Router) PeerBad(region string, api *table.API, lasts time.Duration) {
	key := peerKey{region: region}
	if api != nil {
		key.zone, key.api = api.Zone, api.Name
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[key] = r.monitor.now() + lasts
}

// PeerGood takes that back.
func (r *Router) PeerGood(region string, api *table.API) {
	r.mu.RLock()
	n := len(r.bad)
	r.mu.RUnlock()
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.bad, peerKey{region: region})
	delete(r.bad, peerKey{region, api.Zone, api.Name})
}

func (r *Router) good(region string, api *table.API) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.bad) == 0 {
		return true
	}
	now := r.monitor.now()
	return r.bad[peerKey{region: region}] <= now && r.bad[peerKey{region, api.Zone, api.Name}] <= now
}
