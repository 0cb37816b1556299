// Package regions owns the vocabulary of residency (regions, zones, legal
// bases, compatibility policies, closures) and the one decision that rests on
// it: whether a request at home in one region may be relayed to another.
//
// It is pure: no clock, no randomness, no I/O, stdlib only; time comes in as an
// argument. That is what lets the same function judge a policy when it is
// written, a view when it is built, and a request at both ends of a relay. It
// never finds a region, measures health or grants a lease. Nothing in it
// outlives the process. A *Set is immutable: any number of readers at once.
package regions

import "time"

// Region is a place where data planes run. It belongs to exactly one zone, for
// ever: a move is a new region and a drain.
type Region struct {
	Name           string
	Provider       string // "aws", "azure", "gcp", or anything for one's own machines
	ProviderRegion string // the provider's name of it: "eu-west-1"
	// Partition is a hard wall that no policy opens: "public" (also when
	// blank), "cn", "us-gov", "us-dod", "eu-sov". It names the wall, not the
	// provider, since many countries fail over only between two providers.
	Partition    string
	Country      string // ISO 3166-1 alpha-2
	Jurisdiction string // of the catalogue: "EEA", "UK", "US"
	Zone         string
	ControlOnly  bool // holds a control node and serves nobody
}

// Zone is a residency zone: the regions in whose control nodes a customer's
// data rests.
type Zone struct {
	Name         string
	Jurisdiction string // blank: not checked
}

// Kinds of legal basis.
const (
	SameLaw  = "same-law" // one law on both sides, no transfer
	Adequacy = "adequacy" // an act says the other side protects enough
	DPF      = "dpf"      // adequacy for certified importers only
	SCC      = "scc"      // standard contractual clauses
	Explicit = "explicit" // whatever else the operator answers for
)

// States of a legal basis and of a pair.
const (
	Active    = "active"
	Suspended = "suspended"
	Open      = "open"
	Closed    = "closed"
)

// LegalBasis is why a flow between two regions is lawful. Suspending it, or
// its end, closes every pair that rests on it.
type LegalBasis struct {
	Name    string
	Kind    string
	Status  string    // Active or Suspended; blank is Active
	Expires time.Time // the instant from which it no longer holds; zero: never
	Source  string    // where the act is to be read
}

// DefaultClass is the data class of proxied requests, and what a pair carries
// that names none.
const DefaultClass = "request"

// Pair permits one direction between two regions.
type Pair struct {
	From, To  string
	Basis     string
	Classes   []string // data classes it carries; empty: DefaultClass alone
	Priority  int      // lower is tried first
	ReviewBy  string   // YYYY-MM-DD; blank: none
	AdoptedBy string   // role that answers for it, not a person's name
	Status    string   // Open or Closed; blank is Open
}

// Policy says which region may take over for which, for the APIs of one zone.
// What it does not say is denied.
type Policy struct {
	Name string
	Zone string // every From lies in it
	// WithinZone stands for all ordered pairs of serving regions of the zone
	// on WithinZoneBasis. A Pair of the same two regions takes its place,
	// also to close it.
	WithinZone        bool
	WithinZoneBasis   string
	WithinZoneClasses []string
	Pairs             []Pair
	// OfflineGrant is how long a grant lasts while the control plane is away.
	// nil: DefaultOfflineGrant for same-law pairs inside the zone, 0 for all
	// others. Set, it holds for every pair of the policy.
	OfflineGrant *time.Duration
	TwoPerson    bool // loosening needs a second operator
}

// DefaultOfflineGrant is for pairs inside one zone under one law.
const DefaultOfflineGrant = time.Hour

// MaxOfflineGrant bounds every one: the longest for which a sender that is cut off can hold up a tightening. Validate
// refuses more, and Compile takes it for this much, whatever is stored.
const MaxOfflineGrant = 30 * 24 * time.Hour

// Closure is a zone's own deny entry. A blank field matches everything, so
// {Basis: b} closes all that rests on b, {From: r} all that leaves r, and one
// with no field set closes every pair: what says too little closes too much.
type Closure struct {
	ID       string
	From, To string
	Basis    string
	// Crossing narrows it to the pairs whose ends lie in two zones: what a
	// recovery closes until it is approved again. Decisions name it as such.
	Crossing bool
}

func (c *Closure) closes(from, to, basis string, local bool) bool {
	return !(c.Crossing && local) && (c.From == "" || c.From == from) && (c.To == "" || c.To == to) && (c.Basis == "" || c.Basis == basis)
}

const defaultPartition = "public"

func (r Region) partition() string {
	if r.Partition == "" {
		return defaultPartition
	}
	return r.Partition
}
