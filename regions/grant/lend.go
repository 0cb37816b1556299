package grant

import "time"

// Lent is what a process lets the one before it go by, whose relays go on when it has taken that one's place: nothing new may
// begin by it. It says how long each part lasts, from when it was asked for, and goes over a connection between the two.
type Lent struct {
	Pairs []LentPair `json:"pairs,omitempty"` // those of one target with the newest grant first

	// The leave to take relays, as of when it was lent: how long ago the leader gave it, and how long it lasts from then on.
	TakeAge   time.Duration `json:"take_age,omitempty"`
	TakeLasts time.Duration `json:"take_lasts,omitempty"` // 0: none
}

// LentPair is what is left of one grant.
type LentPair struct {
	To       string        `json:"to"`
	Policies []string      `json:"policies"`
	Peers    []Peer        `json:"peers"`
	Catalog  uint64        `json:"catalog"` // epochs in which it was given
	Store    uint64        `json:"store"`
	Lasts    time.Duration `json:"lasts"`
}

// Lend lends what is live at this moment, for at most most, and no longer than it lasts here. An older grant is lent for no longer than
// a newer one of its target: it would speak for peers that the newer does not name while that one counts here still.
func (h *Held) Lend(at At, now time.Time, most time.Duration) (l Lent) {
	for _, list := range h.by {
		lasts := most
		for _, g := range list {
			if h.live(g, at, now) {
				lasts = min(lasts, h.Ends(g).Sub(now))
				l.Pairs = append(l.Pairs, LentPair{To: g.To, Policies: g.Policies, Peers: g.Peers, Catalog: g.Catalog.Epoch, Store: g.Store.Epoch, Lasts: lasts})
			}
		}
	}
	if h.LeaveFor(now) > 0 {
		l.TakeAge = now.Sub(h.take.Asked)
		l.TakeLasts = min(h.take.Lasts, l.TakeAge+most)
	}
	return l
}

// Held is what was lent, for who asked for it at a moment of its own clock: that was before it was lent, so it ends here before it
// ends there.
func (l Lent) Held(asked time.Time) *Held {
	by := map[string][]*Grant{}
	for _, p := range l.Pairs {
		g := &Grant{To: p.To, Policies: p.Policies, Peers: p.Peers, TTL: p.Lasts, OfflineTTL: p.Lasts, Asked: asked}
		g.Catalog.Epoch, g.Store.Epoch = p.Catalog, p.Store
		by[p.To] = append(by[p.To], g)
	}
	return &Held{by: by, take: Take{Asked: asked.Add(-l.TakeAge), Lasts: l.TakeLasts}}
}
