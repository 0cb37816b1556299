package lessor

import (
	"maps"
	"slices"
	"time"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/quota"
)

// term is what one leader remembers. Entries go when they are old, at the latest
// when a sweep finds them.
type term struct {
	since   time.Time
	edges   map[string]heard
	asking  map[ledger.AccountID]map[string]time.Time // edges that lately wanted units
	starved map[ledger.AccountID]starvation
	owing   map[string]map[ledger.AccountID]time.Time // by edge: what others starve for and it held then, until when
	demands map[demandKey]map[string]demand           // by edge
	told    map[ledger.AccountID]map[string]tell
	swept   time.Time
}

type heard struct {
	region string
	epoch  uint64
	at     time.Time
}

type starvation struct {
	edge  string
	until time.Time
}

// demandKey: a plan's rate limit is shared by the edges of one region.
type demandKey struct{ customer, subscription, region string }

type demand struct {
	milli int64 // requests per 1000 s
	at    time.Time
}

func newTerm(now time.Time) *term {
	return &term{since: now, swept: now, edges: map[string]heard{}, asking: map[ledger.AccountID]map[string]time.Time{},
		starved: map[ledger.AccountID]starvation{}, owing: map[string]map[ledger.AccountID]time.Time{}, demands: map[demandKey]map[string]demand{}, told: map[ledger.AccountID]map[string]tell{}}
}

func (t *term) hear(edge, region string, epoch uint64, now time.Time) {
	t.edges[edge] = heard{region, max(epoch, t.edges[edge].epoch), now}
	if now.Sub(t.swept) > 10*time.Second {
		t.sweep(now)
	}
}

func (t *term) alive(edge string, now time.Time) bool {
	return now.Sub(t.edges[edge].at) <= liveFor
}

// live counts the edges of a region.
func (t *term) live(region string, now time.Time) int {
	n := 0
	for _, h := range t.edges {
		if h.region == region && now.Sub(h.at) <= liveFor {
			n++
		}
	}
	return max(1, n)
}

// heardLately is nil while this leader is too young to miss anybody.
func (t *term) heardLately(now time.Time) []string {
	if now.Sub(t.since) <= patience {
		return nil
	}
	out := []string{}
	for edge, h := range t.edges {
		if now.Sub(h.at) <= patience {
			out = append(out, edge)
		}
	}
	slices.Sort(out)
	return out
}

// want takes note of who wants units and what requests come, and sizes the asks.
func (t *term) want(x *request, region string, now time.Time) {
	for _, s := range x.subjects {
		k := demandKey{s.ask.GetCustomer(), s.ask.GetSubscription(), region}
		if t.demands[k] == nil {
			t.demands[k] = map[string]demand{}
		}
		t.demands[k][x.order.Edge] = demand{max(0, s.ask.GetDemandMilli()), now}
		if s.mine < 0 || x.order.Asks[s.mine].Want == 0 {
			continue
		}
		askers := t.asking[s.id()]
		if askers == nil {
			askers = map[string]time.Time{}
			t.asking[s.id()] = askers
		}
		askers[x.order.Edge] = now
		maps.DeleteFunc(askers, func(_ string, at time.Time) bool { return now.Sub(at) > liveFor })
		x.order.Asks[s.mine].Sharers = int64(len(askers))
	}
}

// starve notes that an edge found nothing left for requests that wait, and who may have what it needs: an edge to
// which the quota looked ample may not ask about it for a second.
func (t *term) starve(id ledger.AccountID, holders []ledger.Holder, edge string, now time.Time) {
	until := now.Add(starvingFor)
	t.starved[id] = starvation{edge, until}
	for _, h := range holders {
		if h.Edge == edge || !t.alive(h.Edge, now) || !t.idle(id, h) {
			continue
		}
		owing := t.owing[h.Edge]
		if owing == nil {
			owing = map[ledger.AccountID]time.Time{}
			t.owing[h.Edge] = owing
		}
		if _, known := owing[id]; known || len(owing) < maxRecalled {
			owing[id] = until
		}
	}
}

// recalled takes what an edge is to be told of besides what it asked about.
func (t *term) recalled(x *request, now time.Time) (out []ledger.AccountID) {
	owing := t.owing[x.order.Edge]
	if len(owing) == 0 {
		return nil
	}
	for _, s := range x.subjects { // its own answer says so
		delete(owing, s.id())
	}
	for id, until := range owing {
		if now.Before(until) {
			out = append(out, id) // and stays: this answer may be lost
		} else {
			delete(owing, id)
		}
	}
	return out
}

// recalls says whether an edge must give back what it does not use: another starves.
func (t *term) recalls(id ledger.AccountID, edge string, now time.Time) bool {
	s, ok := t.starved[id]
	return ok && s.edge != edge && now.Before(s.until)
}

// share is an edge's part of a rate limit, in parts per million.
func (t *term) share(k demandKey, edge string, now time.Time) int64 {
	edges := t.demands[k]
	names := make([]string, 0, len(edges))
	for name, d := range edges {
		if now.Sub(d.at) <= liveFor {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	demands := make([]int64, len(names))
	for i, name := range names {
		demands[i] = edges[name].milli
	}
	shares := quota.Shares(t.live(k.region, now), demands)
	if i := slices.Index(names, edge); i >= 0 {
		return shares[i]
	}
	return 0
}

func (t *term) sweep(now time.Time) {
	t.swept = now
	maps.DeleteFunc(t.edges, func(_ string, h heard) bool { return now.Sub(h.at) > 2*patience })
	maps.DeleteFunc(t.starved, func(_ ledger.AccountID, s starvation) bool { return now.After(s.until) })
	for edge, owing := range t.owing {
		maps.DeleteFunc(owing, func(_ ledger.AccountID, until time.Time) bool { return now.After(until) })
		if len(owing) == 0 {
			delete(t.owing, edge)
		}
	}
	for id, edges := range t.told {
		maps.DeleteFunc(edges, func(_ string, is tell) bool { return now.Sub(is.at) > liveFor })
		if len(edges) == 0 {
			delete(t.told, id)
		}
	}
	for id, edges := range t.asking {
		maps.DeleteFunc(edges, func(_ string, at time.Time) bool { return now.Sub(at) > liveFor })
		if len(edges) == 0 {
			delete(t.asking, id)
		}
	}
	for k, edges := range t.demands {
		maps.DeleteFunc(edges, func(_ string, d demand) bool { return now.Sub(d.at) > liveFor })
		if len(edges) == 0 {
			delete(t.demands, k)
		}
	}
}
