package grant

import (
	"slices"
	"time"
)

// Rules by which an end of a relay refuses it, beside the reasons for which a grant is refused.
const (
	NoPair  = "pair-closed"      // the own table has no such pair
	NoGrant = "grant-none"       // no live grant
	NoAPI   = "api-unknown"      // the own table does not have the API, or not under that policy any more
	NoLeave = "receiver-unknown" // no leader of the receiver's zone has answered it for too long, or ever
)

// Table is what an edge's table says of the border.
type Table interface {
	At() At
	Permits(policy, from, to string) bool
	PolicyOf(zone, api string) (policy string, ok bool)
}

// Flight is one relay: of whose request, over which pair, and the edge at its other end.
type Flight struct {
	Zone, API, Policy string
	From, To          string
	Peer              string
}

// Stands says whether a table permits the flight: the pair under its policy, and the API that policy. A request
// that began before may have read another.
func (f Flight) Stands(t Table) bool { return f.refused(t) == "" }

func (f Flight) refused(t Table) (rule string) {
	if p, ok := t.PolicyOf(f.Zone, f.API); !ok || p != f.Policy {
		return NoAPI
	}
	if !t.Permits(f.Policy, f.From, f.To) {
		return NoPair
	}
	return ""
}

// Leave is the sender's half of the decision, made before every attempt: the newest table stands for the flight, and
// a live grant covers it. The peer is not chosen yet.
func (h *Held) Leave(f Flight, t Table, now time.Time) (g *Grant, rule string) {
	if rule := f.refused(t); rule != "" {
		return nil, rule
	}
	if g = h.Live(f.Policy, f.To, t.At(), now); g == nil {
		return nil, NoGrant
	}
	return g, ""
}

// Keep says whether the sender lets a flight go on: what Leave asks, of this moment's table and grants, and that the
// newest grant still names the peer; one that it does not name has left the registry.
func (h *Held) Keep(f Flight, t Table, now time.Time) bool {
	g, _ := h.Leave(f, t, now)
	return g != nil && slices.ContainsFunc(g.Peers, func(p Peer) bool { return p.Edge == f.Peer })
}

// Admit is the receiver's half, from the peer's certificate, the grant that it shows and the own table. What is left
// to ask is Seen.Fresh.
func Admit(g *Grant, api string, peer, self Party, t Table) (policy, rule string) {
	if rule := g.Fits(peer, self, t.At()); rule != "" {
		return "", rule
	}
	policy, ok := t.PolicyOf(g.Zone, api)
	switch {
	case !ok:
		return "", NoAPI
	case !g.Covers(policy):
		return "", Policy
	case !t.Permits(policy, peer.Region, self.Region):
		return "", NoPair
	}
	return policy, ""
}
