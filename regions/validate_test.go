package regions_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/regions"
)

// good is a catalog with nothing to say about.
func good() ([]regions.Region, []regions.Zone, []regions.LegalBasis, []regions.Policy) {
	return []regions.Region{region("eu-west", "emea"), region("eu-central", "emea"), control(region("eu-north", "emea")), region("us-east", "us"), region("us-west", "us")},
		[]regions.Zone{{Name: "emea", Jurisdiction: "EEA"}, {Name: "us", Jurisdiction: "US"}},
		[]regions.LegalBasis{{Name: "gdpr", Kind: regions.SameLaw}, {Name: "us-law", Kind: regions.SameLaw}, {Name: "contract", Kind: regions.SCC, Expires: now.AddDate(2, 0, 0)}},
		[]regions.Policy{
			{Name: "gdpr-emea", Zone: "emea", WithinZone: true, WithinZoneBasis: "gdpr", WithinZoneClasses: []string{"request"}},
			{Name: "us", Zone: "us", WithinZone: true, WithinZoneBasis: "us-law"},
		}
}

func TestValidate_SaysNothingAboutAGoodCatalog(t *testing.T) {
	if got := regions.Validate(append4(good())); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func append4(r []regions.Region, z []regions.Zone, b []regions.LegalBasis, p []regions.Policy) ([]regions.Region, []regions.Zone, []regions.LegalBasis, []regions.Policy, time.Time) {
	return r, z, b, p, now
}

func TestValidate_Findings(t *testing.T) {
	type world struct {
		regs     []regions.Region
		zones    []regions.Zone
		bases    []regions.LegalBasis
		policies []regions.Policy
	}
	pair := func(p regions.Pair) func(*world) {
		return func(w *world) { w.policies[0].Pairs = []regions.Pair{p} }
	}
	const e, w = regions.Error, regions.Warning
	tests := []struct {
		name                 string
		change               func(*world)
		severity             regions.Severity
		kind, object         string
		field, reason, words string
	}{
		{"lone region", func(w *world) { w.regs = slices.Delete(w.regs, 1, 2) }, w, "Region", "eu-west", "", "NO_PARTNER", "eu-west cannot fail over: no compatible partner"},
		{"no policy in zone", func(w *world) { w.policies = w.policies[1:] }, w, "Region", "eu-central", "", "NO_PARTNER", "eu-central cannot fail over: no compatible partner"},
		{"self pair", pair(regions.Pair{From: "eu-west", To: "eu-west", Basis: "gdpr"}), e, "Policy", "gdpr-emea", "spec.pairs[0].to", "PAIR_SELF", "with itself"},
		{"unknown from", pair(regions.Pair{From: "mars", To: "eu-west", Basis: "gdpr"}), e, "Policy", "gdpr-emea", "spec.pairs[0].from", "REGION_UNKNOWN", `"mars" does not exist`},
		{"unknown to", pair(regions.Pair{From: "eu-west", To: "mars", Basis: "gdpr"}), e, "Policy", "gdpr-emea", "spec.pairs[0].to", "REGION_UNKNOWN", `"mars" does not exist`},
		{"unknown basis", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "hope"}), e, "Policy", "gdpr-emea", "spec.pairs[0].basis", "BASIS_UNKNOWN", `"hope"`},
		{"no basis", pair(regions.Pair{From: "eu-west", To: "us-east"}), e, "Policy", "gdpr-emea", "spec.pairs[0].basis", "BASIS_MISSING", "no legal basis"},
		{"foreign from", pair(regions.Pair{From: "us-east", To: "eu-west", Basis: "contract"}), e, "Policy", "gdpr-emea", "spec.pairs[0].from", "ZONE_MISMATCH", "us-east lies in us"},
		{"control-only", pair(regions.Pair{From: "eu-west", To: "eu-north", Basis: "gdpr"}), e, "Policy", "gdpr-emea", "spec.pairs[0].to", "REGION_CONTROL_ONLY", "serves no requests"},
		{"status", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "contract", Status: "ajar"}), e, "Policy", "gdpr-emea", "spec.pairs[0].status", "STATUS_INVALID", `"ajar"`},
		{"priority", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "contract", Priority: -1}), e, "Policy", "gdpr-emea", "spec.pairs[0].priority", "PRIORITY_INVALID", "-1"},
		{"class", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "contract", Classes: []string{"ok", "No"}}), e, "Policy", "gdpr-emea", "spec.pairs[0].classes[1]", "CLASS_INVALID", `"No"`},
		{"review malformed", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "contract", ReviewBy: "soon"}), e, "Policy", "gdpr-emea", "spec.pairs[0].review_by", "REVIEW_BY_INVALID", `"soon"`},
		{"review past", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "contract", ReviewBy: "2026-11-21"}), w, "Policy", "gdpr-emea", "spec.pairs[0].review_by", "REVIEW_OVERDUE", "2026-11-21"},
		{"law differs", pair(regions.Pair{From: "eu-west", To: "us-east", Basis: "gdpr"}), w, "Policy", "gdpr-emea", "spec.pairs[0].basis", "LAW_DIFFERS", "eu-west under EEA and us-east under US"},
		{"duplicate pair", func(w *world) {
			w.policies[0].Pairs = []regions.Pair{{From: "eu-west", To: "us-east", Basis: "contract"}, {From: "eu-west", To: "us-east", Basis: "contract"}}
		}, e, "Policy", "gdpr-emea", "spec.pairs[1].to", "PAIR_DUPLICATE", "twice"},
		{"suspended within zone", func(w *world) { w.bases[0].Status = regions.Suspended }, e, "Policy", "gdpr-emea", "spec.within_zone.basis", "BASIS_SUSPENDED", "gdpr, which is suspended"},
		{"expired in a pair", func(w *world) {
			w.bases[2].Expires = now.AddDate(0, -1, 0)
			w.policies[0].Pairs = []regions.Pair{{From: "eu-west", To: "us-east", Basis: "contract"}}
		}, e, "Policy", "gdpr-emea", "spec.pairs[0].basis", "BASIS_EXPIRED", "expired on 2026-10-23"},
		{"expires soon", func(w *world) { w.bases[2].Expires = now.AddDate(0, 1, 0) }, w, "LegalBasis", "contract", "spec.expires", "BASIS_EXPIRES_SOON", "2026-12-23"},
		{"basis kind", func(w *world) { w.bases[2].Kind = "handshake" }, e, "LegalBasis", "contract", "spec.kind", "KIND_INVALID", `"handshake"`},
		{"basis status", func(w *world) { w.bases[2].Status = "asleep" }, e, "LegalBasis", "contract", "spec.status", "STATUS_INVALID", `"asleep"`},
		{"offline grant crosses", func(w *world) {
			w.policies[0].OfflineGrant = ptr(time.Hour)
			w.policies[0].Pairs = []regions.Pair{{From: "eu-west", To: "us-east", Basis: "contract"}}
		}, w, "Policy", "gdpr-emea", "spec.offline_grant", "OFFLINE_GRANT_CROSSES", "across a zone border"},
		{"offline grant without end", func(w *world) { w.policies[0].OfflineGrant = ptr(regions.MaxOfflineGrant + 1) }, e, "Policy", "gdpr-emea", "spec.offline_grant", "OFFLINE_GRANT_INVALID", "may last at most"},
		{"offline grant negative", func(w *world) { w.policies[0].OfflineGrant = ptr(-time.Hour) }, e, "Policy", "gdpr-emea", "spec.offline_grant", "OFFLINE_GRANT_INVALID", "less than nothing"},
		{"partition", func(w *world) {
			w.regs[3].Partition = "us-gov"
			w.policies[0].Pairs = []regions.Pair{{From: "eu-west", To: "us-east", Basis: "contract"}}
		}, e, "Policy", "gdpr-emea", "spec.pairs[0].to", "PARTITION_CROSSED", "no policy crosses a partition"},
		{"region's zone", func(w *world) { w.regs[0].Zone = "moon" }, e, "Region", "eu-west", "spec.zone", "ZONE_UNKNOWN", `"moon"`},
		{"policy's zone", func(w *world) { w.policies[1].Zone = "moon" }, e, "Policy", "us", "spec.zone", "ZONE_UNKNOWN", `"moon"`},
		{"region's law", func(w *world) { w.regs[0].Jurisdiction = "UK" }, w, "Region", "eu-west", "spec.jurisdiction", "JURISDICTION_DIFFERS", "under the law of UK"},
		{"zone of two laws", func(w *world) { w.regs[0].Jurisdiction = "UK" }, w, "Policy", "gdpr-emea", "spec.within_zone.basis", "LAW_DIFFERS", "UK and EEA"},
		{"blank name", func(w *world) { w.regs[0].Name = "" }, e, "Region", "", "name", "NAME_INVALID", `""`},
		{"long name", func(w *world) { w.zones[0].Name = strings.Repeat("z", 33) }, e, "Zone", strings.Repeat("z", 33), "name", "NAME_INVALID", "31"},
		{"capital", func(w *world) { w.bases[0].Name = "GDPR" }, e, "LegalBasis", "GDPR", "name", "NAME_INVALID", "GDPR"},
		{"twice", func(w *world) { w.regs = append(w.regs, w.regs[0]) }, e, "Region", "eu-west", "name", "NAME_DUPLICATE", "twice"},
		{"policy twice", func(w *world) { w.policies = append(w.policies, w.policies[0]) }, e, "Policy", "gdpr-emea", "name", "NAME_DUPLICATE", "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var in world
			in.regs, in.zones, in.bases, in.policies = good()
			tt.change(&in)
			found := regions.Validate(in.regs, in.zones, in.bases, in.policies, now)
			i := slices.IndexFunc(found, func(f regions.Finding) bool {
				return f.Severity == tt.severity && f.Kind == tt.kind && f.Name == tt.object && f.Field == tt.field && f.Reason == tt.reason && strings.Contains(f.Message, tt.words)
			})
			if i < 0 {
				t.Errorf("got %s\nwant %s %s %q %s %s: …%s…", list(found), tt.severity, tt.kind, tt.object, tt.field, tt.reason, tt.words)
			}
			if tt.severity == w && slices.ContainsFunc(found, func(f regions.Finding) bool { return f.Severity == e }) {
				t.Errorf("want warnings alone, got %s", list(found))
			}
			if !slices.IsSortedFunc(found, func(a, b regions.Finding) int { return strings.Compare(string(a.Severity), string(b.Severity)) }) {
				t.Errorf("errors are not first: %s", list(found))
			}
		})
	}
}

func list(found []regions.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "\n  %+v", f)
	}
	return b.String()
}

func TestValidate_ClosedPairRestsOnNothing(t *testing.T) {
	regs, zones, bases, policies := good()
	bases[2].Status = regions.Suspended
	policies[0].Pairs = []regions.Pair{{From: "eu-west", To: "us-east", Basis: "contract", Status: regions.Closed}}
	if got := regions.Validate(regs, zones, bases, policies, now); len(got) != 0 {
		t.Errorf("got %s, want nothing", list(got))
	}
}

// Suspending a basis must be possible while policies rest on it; writing such a
// policy must not.
func TestFinding_Refuses(t *testing.T) {
	regs, zones, bases, policies := good()
	bases[0].Status = regions.Suspended
	found := regions.Validate(regs, zones, bases, policies, now)
	refuses := func(kind, name string) bool {
		return slices.ContainsFunc(found, func(f regions.Finding) bool { return f.Refuses(kind, name) })
	}
	if refuses(regions.KindLegalBasis, "gdpr") || refuses(regions.KindPolicy, "us") || !refuses(regions.KindPolicy, "gdpr-emea") {
		t.Errorf("suspended gdpr: want only a write of gdpr-emea refused: %s", list(found))
	}
	bases[0].Status = regions.Active
	policies[1].Pairs = []regions.Pair{{From: "us-east", To: "mars", Basis: "us-law"}}
	found = regions.Validate(regs, zones, bases, policies, now)
	if !refuses(regions.KindRegion, "mars") {
		t.Errorf("removing a region that a policy names: want it refused: %s", list(found))
	}
}

func TestCompile_RefusesWhatItCannotResolve(t *testing.T) {
	regs, _, bases, policies := good()
	policies[0].WithinZoneBasis = "hope"
	policies[1].Pairs = []regions.Pair{{From: "us-east", To: "mars", Basis: "us-law"}}
	_, err := regions.Compile(regs, bases, policies)
	if err == nil || !strings.Contains(err.Error(), "hope") || !strings.Contains(err.Error(), "mars") {
		t.Errorf("got %v, want both faults named", err)
	}
}

func TestValidateChange(t *testing.T) {
	old := regions.Region{Name: "eu-west", Zone: "emea", Country: "IE", Jurisdiction: "EEA", Provider: "aws"}
	next := old
	next.Provider, next.ControlOnly, next.Partition = "gcp", true, "public"
	if got := regions.ValidateChange(old, next); len(got) != 0 {
		t.Errorf("got %s, want nothing", list(got))
	}
	next.Zone, next.Country, next.Jurisdiction, next.Partition = "us", "US", "US", "us-gov"
	got := regions.ValidateChange(old, next)
	if len(got) != 4 || got[0].Field != "spec.zone" || got[0].Reason != "REGION_IMMUTABLE" || !strings.Contains(got[0].Message, "drain") {
		t.Errorf("got %s, want four errors, the first about the zone", list(got))
	}
}
