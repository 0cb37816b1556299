// Package grant owns the life of a permission to relay: what a grant says, how long the edge that holds it may use
// it (Held), what the edge that receives a relay asks of it (Fits, Seen), what the zone's leader reckons with
// (Book), and when a tightening is in force (Book.InForce, Notice).
//
// Everything here is a step from a state and an event to a state: no clock, no I/O, no lock, no randomness. Time
// comes in as an argument; callers hand in readings of their own monotonic clock and never compare them across
// hosts. Production runs exactly this code behind a lock (border, failover, relay), and the simulation in
// e2e/simulate runs it under any order of events. Nothing survives a crash by itself. A Grant and a Held never
// change and may be shared; a Book and a Seen belong to one goroutine at a time.
package grant

import (
	"slices"
	"time"

	"bailiwick/shared/revision"
)

// Reasons for which a grant is refused, at either end of a relay.
const (
	Malformed = "grant-malformed"
	Zone      = "grant-zone"      // signed for a zone whose requests this is not about
	Signature = "grant-signature" //
	Edge      = "grant-edge"      // given to another edge
	Twin      = "grant-twin"      // given to another process of that name
	From      = "grant-from"      // for another sending region
	To        = "grant-to"        // for another receiving region
	Epoch     = "grant-epoch"     // from before a recovery
	Policy    = "grant-policy"    // does not cover the policy
	Expired   = "grant-expired"   //
)

// Grant is a permission to relay over one pair, verified. It never changes.
type Grant struct {
	ID         string
	Zone       string
	Process    // to which it was given
	From, To   string
	Policies   []string
	Catalog    revision.Revision // epoch and index only
	Store      revision.Revision
	TTL        time.Duration
	OfflineTTL time.Duration // at least TTL
	GrantedAt  int64         // unix ms, for people
	Peers      []Peer
	Signed     []byte // as received, to show to the peer

	Asked time.Time // by the holder's monotonic clock; zero at a receiver
}

// Peer is an edge of the other region.
type Peer struct{ Edge, Addr string }

// Covers says whether the grant is for requests under a policy.
func (g *Grant) Covers(policy string) bool { return slices.Contains(g.Policies, policy) }

// At is the position of the table that an edge decides by.
type At struct{ Catalog, Store revision.Revision }

// Behind says of which log an update would bring less than an edge has applied; "": of neither. An edge never goes
// back, not even from a disk that did (invariant 5): what it applied is the floor of what it takes.
func (at At) Behind(floor At) string {
	switch {
	case at.Catalog.Less(floor.Catalog):
		return "catalog"
	case at.Store.Less(floor.Store):
		return "zone"
	}
	return ""
}

// Mine says why an edge may not hold the grant; "": it may.
func (g *Grant) Mine(self Party, at At) (reason string) {
	switch {
	case g.Zone != self.Zone:
		return Zone
	case g.Edge != self.Edge:
		return Edge
	case g.Incarnation != self.Incarnation:
		return Twin
	case g.From != self.Region:
		return From
	case g.Catalog.Epoch < at.Catalog.Epoch || g.Store.Epoch < at.Store.Epoch:
		return Epoch
	}
	return ""
}

// Party is an end of a relay: zone, region and edge are from its certificate. Which process of that name it is, it says
// itself: that keeps two machines apart that do not know of each other, not a liar, who could as well lie in its acks.
type Party struct {
	Zone, Region string
	Process
}

// Fits says why a receiver refuses the grant that a peer shows, whatever the request is about; "": it does not.
func (g *Grant) Fits(peer, self Party, at At) (reason string) {
	switch {
	case g.Zone != peer.Zone: // only the sender's zone says what leaves it
		return Zone
	case g.Edge != peer.Edge:
		return Edge
	case g.Incarnation != peer.Incarnation:
		return Twin
	case g.From != peer.Region:
		return From
	case g.To != self.Region:
		return To
	case g.Catalog.Epoch < at.Catalog.Epoch, // the catalog is every zone's
		g.Zone == self.Zone && g.Store.Epoch < at.Store.Epoch:
		return Epoch
	}
	return ""
}
