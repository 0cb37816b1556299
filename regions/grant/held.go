package grant

import "time"

// Answer is what became of a question for grants.
type Answer uint8

const (
	Silent Answer = iota // none came: offline lifetimes count
	Given                // these are the grants
	Behind               // not now: the edge's table, or the leader, must catch up first
	Denied               // this edge may relay nothing
)

// most is how many grants of one target an edge keeps.
const most = 8

// Held is what an edge may relay. It never changes: Step makes the next one. The zero Held holds nothing.
type Held struct {
	by   map[string][]*Grant // by target region, newest first
	away bool                // the last question got no answer
	take Take
}

// Take is the leave to take relays over for the own region, by the last answer: the other half of what a leader
// gives. An edge that no leader knows of, because its disk was copied or its zone is silent, takes none.
type Take struct {
	Asked time.Time
	Lasts time.Duration // from then on; 0: none
}

// Away says whether the control plane is silent.
func (h *Held) Away() bool { return h.away }

// Step is what an edge holds after an answer. given and take come with Given alone; given carry when they were asked for.
func (h *Held) Step(a Answer, given []*Grant, take Take, now time.Time) *Held {
	switch a {
	case Silent:
		return &Held{by: h.by, away: true, take: h.take}
	case Behind: // ordinary lifetimes count, whatever comes after: whoever is behind gets nothing but policy (invariant 9)
		return &Held{by: h.ordinary(map[string][]*Grant{}, now), take: h.take}
	case Denied: // an answer, not to be mistaken for silence
		return &Held{}
	}
	next := map[string][]*Grant{}
	for _, g := range given {
		next[g.To] = append(next[g.To], g)
	}
	return &Held{by: h.ordinary(next, now), take: take}
}

// ordinary adds to next what is held and was not granted again. It lasts until its ordinary end: the leader counts on
// that, and an edge that is one revision behind must not lose its other pairs. The table, which comes faster, closes
// at once. An offline lifetime it has no longer: the newest answer says how long the zone lets a pair go unasked, and
// what that ended no later silence brings back.
func (h *Held) ordinary(next map[string][]*Grant, now time.Time) map[string][]*Grant {
	for to, list := range h.by {
		for _, g := range list {
			if now.Sub(g.Asked) < g.TTL && len(next[to]) < most {
				if g.OfflineTTL != g.TTL {
					short := *g
					short.OfflineTTL, g = g.TTL, &short
				}
				next[to] = append(next[to], g)
			}
		}
	}
	return next
}

// live: counted from when this edge asked, so it ends before the leader's count.
func (h *Held) live(g *Grant, at At, now time.Time) bool {
	age := now.Sub(g.Asked)
	if age >= g.TTL && !(h.away && age < g.OfflineTTL) {
		return false
	}
	// A recovery opens a new epoch in which nothing of the old one is permitted.
	return g.Catalog.Epoch >= at.Catalog.Epoch && g.Store.Epoch >= at.Store.Epoch
}

// Ends is when a grant that is live now ends, if nothing else is heard of it and no recovery ends it before: from that
// instant on it is not live.
func (h *Held) Ends(g *Grant) time.Time {
	if h.away {
		return g.Asked.Add(max(g.TTL, g.OfflineTTL))
	}
	return g.Asked.Add(g.TTL)
}

// Live is the newest live grant to relay to a region under a policy, nil if there is none.
func (h *Held) Live(policy, to string, at At, now time.Time) *Grant {
	for _, g := range h.by[to] {
		if g.Covers(policy) && h.live(g, at, now) {
			return g
		}
	}
	return nil
}

// Takes says whether this edge may take a relay under a grant: its own zone's leader must have answered it within the
// grant's lifetime and its own leave. A leader counts on that when it takes a receiver that is silent for closed.
func (h *Held) Takes(g *Grant, now time.Time) bool {
	return now.Sub(h.take.Asked) < min(g.OfflineTTL, h.take.Lasts)
}

// LeaveFor is for how long from now on the leave to take relays lasts; not above 0: it has ended, or there was none.
func (h *Held) LeaveFor(now time.Time) time.Duration { return h.take.Lasts - now.Sub(h.take.Asked) }

// All are the live grants, in no order.
func (h *Held) All(at At, now time.Time) []*Grant {
	var out []*Grant
	for _, list := range h.by {
		for _, g := range list {
			if h.live(g, at, now) {
				out = append(out, g)
			}
		}
	}
	return out
}

// Shortest is the shortest ordinary lifetime among what is held, the leave to take relays included, and at most limit.
func (h *Held) Shortest(limit time.Duration) time.Duration {
	for _, list := range h.by {
		for _, g := range list {
			limit = min(limit, g.TTL)
		}
	}
	if h.take.Lasts > 0 {
		limit = min(limit, h.take.Lasts)
	}
	return limit
}
