package main

import (
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
)

// Bits of the catalog's mask: what an operator may have written.
const (
	gdprSuspended = 1 << iota
	sccSuspended
	crossClosed
	withinOnly
	offlineLong
	strictClosed // the second policy of emea has no pair at all
	underStrict  // the API of emea is under its second policy
)

// Bits of a zone's closures.
const (
	closeWestToCentral = 1 << iota
	closeCross
	closeBasis
	closeFromCentral
	closeCrossing // not written by anybody: a recovery that is not approved yet
)

// The zones' policies. An API of emea is under the first or the second; each has its own pairs.
const (
	open   = "emea"
	strict = "emea-strict"
	us     = "us"
)

// rules compiles each catalog once and remembers what it permits: production's regions.Set answers.
type rules struct {
	cached map[ruleKey][]regions.Permitted
}

type ruleKey struct {
	mask, closures uint16
	zone           int
	expired        bool
	offline        time.Duration
}

func newRules() *rules { return &rules{cached: map[ruleKey][]regions.Permitted{}} }

func compile(mask uint16, offline time.Duration) *regions.Set {
	status := func(bit uint16) string {
		if mask&bit != 0 {
			return regions.Suspended
		}
		return regions.Active
	}
	var regs []regions.Region
	for i, n := range regionNames {
		regs = append(regs, regions.Region{Name: n, Zone: zoneNames[zoneOf(i)]})
	}
	bases := []regions.LegalBasis{{Name: "gdpr", Kind: regions.SameLaw, Status: status(gdprSuspended)},
		{Name: "us-law", Kind: regions.SameLaw}, {Name: "scc", Kind: regions.SCC, Status: status(sccSuspended), Expires: basisEnds}}
	life := time.Duration(0)
	if mask&offlineLong != 0 {
		life = offline
	}
	half := life / 2
	first := regions.Policy{Name: open, Zone: "emea", WithinZone: true, WithinZoneBasis: "gdpr", OfflineGrant: &life}
	if mask&withinOnly == 0 {
		cross := regions.Pair{From: "eu-west", To: "us-east", Basis: "scc", Status: regions.Open}
		if mask&crossClosed != 0 {
			cross.Status = regions.Closed
		}
		first.Pairs = []regions.Pair{cross}
	}
	second := regions.Policy{Name: strict, Zone: "emea", OfflineGrant: &half}
	if mask&strictClosed == 0 { // one direction only: to be mistaken for both
		second.Pairs = []regions.Pair{{From: "eu-west", To: "eu-central", Basis: "gdpr", Status: regions.Open}}
	}
	american := regions.Policy{Name: us, Zone: "us", WithinZone: true, WithinZoneBasis: "us-law", OfflineGrant: &life}
	s, err := regions.Compile(regs, bases, []regions.Policy{first, second, american})
	if err != nil {
		panic(err) // the universe is fixed: it compiles or the program is wrong
	}
	return s
}

func closuresOf(mask uint16) (out []regions.Closure) {
	for bit, c := range map[uint16]regions.Closure{closeWestToCentral: {From: "eu-west", To: "eu-central"}, closeCross: {From: "eu-west", To: "us-east"},
		closeBasis: {Basis: "scc"}, closeFromCentral: {From: "eu-central"}, closeCrossing: {ID: "recovery", Crossing: true}} {
		if mask&bit != 0 {
			out = append(out, c)
		}
	}
	return out
}

// permitted is what a zone permits by a state of its log and a wall clock. Nobody changes the slice.
func (w *world) permitted(zone int, e *entry, wall time.Time) []regions.Permitted {
	key := ruleKey{w.catalog[e.adopted].mask, e.closures, zone, !wall.Before(basisEnds), w.set.offline}
	if w.recovered(e) {
		key.closures |= closeCrossing
	}
	pairs, ok := w.rules.cached[key]
	if !ok {
		set := compile(key.mask, w.set.offline)
		pairs = grant.Touching(set.Pairs(wall, closuresOf(key.closures)), func(region string) bool { return zoneOf(regionID(region)) == zone })
		w.rules.cached[key] = pairs
	}
	return pairs
}
