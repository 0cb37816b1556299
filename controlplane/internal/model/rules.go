package model

import (
	"fmt"
	"time"

	"bailiwick/regions"
	"bailiwick/shared/fault"
)

// Rules turns stored border rules into the vocabulary of package regions.
func Rules(regs []Region, bases []LegalBasis, policies []Policy) ([]regions.Region, []regions.LegalBasis, []regions.Policy, error) {
	outRegions := make([]regions.Region, 0, len(regs))
	for _, r := range regs {
		outRegions = append(outRegions, r.Rule())
	}
	outBases := make([]regions.LegalBasis, 0, len(bases))
	for _, b := range bases {
		rule, err := b.Rule()
		if err != nil {
			return nil, nil, nil, err
		}
		outBases = append(outBases, rule)
	}
	outPolicies := make([]regions.Policy, 0, len(policies))
	for _, p := range policies {
		outPolicies = append(outPolicies, p.Rule())
	}
	return outRegions, outBases, outPolicies, nil
}

// Compile gives the decision set of the rules a zone has adopted.
func (a Adopted) Compile() (*regions.Set, error) {
	regs, bases, policies, err := Rules(a.Regions, a.Bases, a.Policies)
	if err != nil {
		return nil, err
	}
	return regions.Compile(regs, bases, policies)
}

// Rule is the region as a border rule.
func (r Region) Rule() regions.Region {
	return regions.Region{Name: r.Name, Provider: r.Provider, ProviderRegion: r.ProviderRegion, Partition: r.Partition,
		Country: r.Country, Jurisdiction: r.Jurisdiction, Zone: r.Zone, ControlOnly: r.ControlOnly}
}

// Rule is the legal basis as a border rule. Expires names the last day on which it holds, so the instant it
// ends is the next midnight, UTC.
func (b LegalBasis) Rule() (regions.LegalBasis, error) {
	out := regions.LegalBasis{Name: b.Name, Kind: b.Kind, Status: b.Status, Source: b.Source}
	if b.Expires != "" {
		day, err := time.Parse(time.DateOnly, b.Expires)
		if err != nil {
			return out, &fault.Error{Kind: fault.Invalid, Reason: "EXPIRES_MALFORMED", Field: "spec.expires",
				Message: "legal basis " + b.Name + ": expires " + b.Expires + " is not a date; write it as YYYY-MM-DD"}
		}
		out.Expires = day.AddDate(0, 0, 1)
	}
	return out, nil
}

// Rule is the policy as a border rule.
func (p Policy) Rule() regions.Policy {
	out := regions.Policy{Name: p.Name, Zone: p.Zone, OfflineGrant: p.OfflineGrant, TwoPerson: p.TwoPerson}
	if p.WithinZone != nil {
		out.WithinZone, out.WithinZoneBasis, out.WithinZoneClasses = true, p.WithinZone.Basis, p.WithinZone.Classes
	}
	for _, pair := range p.Pairs {
		out.Pairs = append(out.Pairs, regions.Pair{From: pair.From, To: pair.To, Basis: pair.Basis, Classes: pair.Classes,
			Priority: pair.Priority, ReviewBy: pair.ReviewBy, Status: pair.Status})
	}
	return out
}

// Closures are what a zone has closed under the rules a it adopted, at an epoch of its store: its own closures and,
// after a recovery, all that crosses zones. crossing is nil in a store that has none, written before there was any.
func Closures(stored []Closure, crossing *Crossing, a Adopted, storeEpoch uint64) []regions.Closure {
	out := make([]regions.Closure, 0, len(stored)+1)
	for _, c := range stored {
		out = append(out, c.Rule())
	}
	if crossing != nil {
		if why := crossing.Closed(a.CatalogEpoch, storeEpoch); why != "" {
			out = append(out, regions.Closure{ID: why, Crossing: true})
		}
	}
	return out
}

// Closed says since which recovery pairs that cross zones are closed; "": they are not.
func (c Crossing) Closed(catalogEpoch, storeEpoch uint64) string {
	switch {
	case storeEpoch > c.StoreEpoch:
		return fmt.Sprintf("the recovery that opened epoch %d of the zone's store", storeEpoch)
	case c.CatalogEpoch == 0 && catalogEpoch > 0:
		return "a recovery of the catalog, of which this zone's control nodes have the copy of before: restart them"
	case catalogEpoch > c.CatalogEpoch:
		return fmt.Sprintf("the recovery that opened epoch %d of the catalog", catalogEpoch)
	}
	return ""
}

// Rule is the closure as a border rule.
func (c Closure) Rule() regions.Closure {
	return regions.Closure{ID: c.Name, From: c.From, To: c.To, Basis: c.Basis}
}
