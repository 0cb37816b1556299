package regions_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/regions"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func region(name, zone string) regions.Region {
	j := map[string]string{"emea": "EEA", "us": "US", "uk": "UK"}[zone]
	return regions.Region{Name: name, Zone: zone, Jurisdiction: j}
}

func control(r regions.Region) regions.Region { r.ControlOnly = true; return r }

func ptr[T any](v T) *T { return &v }

// world is the sandbox with a pair out of emea for each way a basis can be.
func world() ([]regions.Region, []regions.Zone, []regions.LegalBasis, []regions.Policy) {
	cn := region("cn-north", "emea")
	cn.Partition = "cn"
	return []regions.Region{
			region("eu-west", "emea"), region("eu-central", "emea"), control(region("eu-north", "emea")), cn,
			region("us-east", "us"), region("us-west", "us"), region("uk-south", "uk"),
		}, []regions.Zone{{Name: "emea", Jurisdiction: "EEA"}, {Name: "us", Jurisdiction: "US"}, {Name: "uk", Jurisdiction: "UK"}},
		[]regions.LegalBasis{
			{Name: "gdpr", Kind: regions.SameLaw},
			{Name: "us-law", Kind: regions.SameLaw, Status: regions.Active},
			{Name: "adequacy-uk", Kind: regions.Adequacy, Expires: now.AddDate(5, 0, 0)},
			{Name: "dpf", Kind: regions.DPF, Status: regions.Suspended},
			{Name: "privacy-shield", Kind: regions.Adequacy, Expires: now},
		}, []regions.Policy{
			{Name: "gdpr-emea", Zone: "emea", WithinZone: true, WithinZoneBasis: "gdpr", Pairs: []regions.Pair{
				{From: "eu-west", To: "uk-south", Basis: "adequacy-uk", Classes: []string{"request", "cache"}, Priority: 5},
				{From: "eu-west", To: "us-east", Basis: "dpf"},
				{From: "eu-west", To: "us-west", Basis: "privacy-shield"},
				{From: "eu-central", To: "eu-west", Basis: "gdpr", Status: regions.Closed},
			}},
			{Name: "us", Zone: "us", OfflineGrant: ptr(time.Minute), Pairs: []regions.Pair{{From: "us-east", To: "us-west", Basis: "us-law"}}},
		}
}

func compile(t testing.TB) *regions.Set {
	t.Helper()
	regs, _, bases, policies := world()
	s, err := regions.Compile(regs, bases, policies)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSet_Permits(t *testing.T) {
	s := compile(t)
	shut := []regions.Closure{{ID: "c1", From: "eu-central", To: "uk-south"}, {ID: "c2", Basis: "adequacy-uk"}}
	tests := []struct {
		policy, home, target, class string
		closures                    []regions.Closure
		ok                          bool
		rule                        string
		offline                     time.Duration
		priority                    int
	}{
		{"gdpr-emea", "eu-west", "eu-west", "", nil, true, regions.RuleHome, 0, 0},
		{"none", "eu-west", "eu-west", "", nil, true, regions.RuleHome, 0, 0},
		{"gdpr-emea", "eu-west", "eu-central", "", nil, true, regions.RuleWithinZone, time.Hour, 0},
		{"gdpr-emea", "eu-west", "eu-central", "request", shut, true, regions.RuleWithinZone, time.Hour, 0},
		{"gdpr-emea", "eu-west", "eu-central", "cache", nil, false, regions.RuleClass, 0, 0},
		{"gdpr-emea", "eu-central", "eu-west", "", nil, false, regions.RulePairClosed, 0, 0}, // the pair wins over within_zone
		{"gdpr-emea", "eu-west", "eu-north", "", nil, false, regions.RuleControlOnly, 0, 0},
		{"gdpr-emea", "eu-north", "eu-west", "", nil, false, regions.RuleControlOnly, 0, 0},
		{"gdpr-emea", "eu-north", "eu-north", "", nil, false, regions.RuleControlOnly, 0, 0},
		{"gdpr-emea", "eu-west", "cn-north", "", nil, false, regions.RulePartition, 0, 0},
		{"gdpr-emea", "eu-west", "uk-south", "cache", nil, true, regions.RulePair, 0, 5},
		{"gdpr-emea", "eu-west", "uk-south", "cache", shut, false, regions.RuleClosure, 0, 0},
		{"gdpr-emea", "eu-west", "uk-south", "", []regions.Closure{{ID: "all"}}, false, regions.RuleClosure, 0, 0},
		{"gdpr-emea", "eu-west", "uk-south", "", []regions.Closure{{ID: "the recovery", Crossing: true}}, false, regions.RuleRecovery, 0, 0},
		{"gdpr-emea", "eu-west", "eu-central", "", []regions.Closure{{ID: "the recovery", Crossing: true}}, true, regions.RuleWithinZone, time.Hour, 0},
		{"gdpr-emea", "uk-south", "eu-west", "", nil, false, regions.RuleForeignHome, 0, 0}, // not symmetric
		{"gdpr-emea", "eu-central", "uk-south", "", nil, false, regions.RuleNoPair, 0, 0},
		{"gdpr-emea", "eu-west", "us-east", "", nil, false, regions.RuleBasisSuspended, 0, 0},
		{"gdpr-emea", "eu-west", "us-west", "", nil, false, regions.RuleBasisExpired, 0, 0}, // expires at this very instant
		{"gdpr-emea", "eu-west", "mars", "", nil, false, regions.RuleUnknownRegion, 0, 0},
		{"gdpr-emea", "mars", "mars", "", nil, false, regions.RuleUnknownRegion, 0, 0},
		{"gdpr-emea", "us-east", "us-east", "", nil, false, regions.RuleForeignHome, 0, 0},
		{"none", "eu-west", "eu-central", "", nil, false, regions.RuleNoPolicy, 0, 0},
		{"us", "us-east", "us-west", "", nil, true, regions.RulePair, time.Minute, 0},
		{"us", "us-west", "us-east", "", nil, false, regions.RuleNoPair, 0, 0},
		{"us", "eu-west", "eu-central", "", nil, false, regions.RuleForeignHome, 0, 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s/%s-%s/%s", tt.policy, tt.home, tt.target, tt.rule), func(t *testing.T) {
			d := s.Permits(tt.policy, tt.home, tt.target, tt.class, now, tt.closures)
			if d.OK != tt.ok || d.Rule != tt.rule || d.OfflineGrant != tt.offline || d.Priority != tt.priority {
				t.Errorf("got %+v, want ok %v rule %s offline %v priority %d", d, tt.ok, tt.rule, tt.offline, tt.priority)
			}
			why := d.Why()
			if !strings.Contains(why, tt.home) || strings.Contains(why, "not permitted") == tt.ok {
				t.Errorf("why: got %q for ok %v", why, tt.ok)
			}
			if tt.rule == regions.RuleClosure && !strings.Contains(why, d.Closure) {
				t.Errorf("why: got %q, want it to name closure %q", why, d.Closure)
			}
		})
	}
	var none *regions.Set
	if d := none.Permits("gdpr-emea", "eu-west", "eu-west", "", now, nil); d.OK {
		t.Error("a nil set permits")
	}
}

func TestSet_TargetsInOrder(t *testing.T) {
	s := compile(t)
	var got []string
	for _, p := range s.Targets("gdpr-emea", "eu-west", "", now, nil) {
		got = append(got, p.To)
	}
	if want := []string{"eu-central", "uk-south"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := s.Targets("gdpr-emea", "eu-west", "cache", now, nil); len(got) != 1 || got[0].To != "uk-south" {
		t.Errorf("for cache data: got %+v, want uk-south alone", got)
	}
	if got := s.Targets("gdpr-emea", "mars", "", now, nil); got != nil {
		t.Errorf("unknown home: got %+v, want none", got)
	}
}

func TestDiff_SaysWhatOpensAndCloses(t *testing.T) {
	regs, _, bases, policies := world()
	before := compile(t)
	policies[0].Pairs[0].Classes = []string{"request"} // closes cache to uk-south
	policies[1].Pairs = append(policies[1].Pairs, regions.Pair{From: "us-west", To: "us-east", Basis: "us-law"})
	after, err := regions.Compile(regs, bases, policies)
	if err != nil {
		t.Fatal(err)
	}
	got := regions.Diff(regions.State{Set: before}, regions.State{Set: after}, now)
	want := []string{
		"opens us-west to us-east for request data in policy us: ",
		"closes eu-west to uk-south for cache data in policy gdpr-emea: ",
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %d changes", got, len(want))
	}
	for i := range want {
		if !strings.HasPrefix(got[i].String(), want[i]) {
			t.Errorf("change %d: got %q, want it to begin %q", i, got[i], want[i])
		}
	}
	if !regions.Loosens(got) || regions.Loosens(got[1:]) {
		t.Error("Loosens: want true with the opening and false without")
	}
	closing := regions.Diff(regions.State{Set: before}, regions.State{Set: before, Closures: []regions.Closure{{ID: "c", Basis: "gdpr"}}}, now)
	if len(closing) != 1 || closing[0].Opens || closing[0].From != "eu-west" || closing[0].To != "eu-central" {
		t.Errorf("a closure on gdpr: got %v, want eu-west to eu-central closed", closing)
	}
}

func TestIntersect_NewRegionServesAtHome(t *testing.T) {
	regs, _, bases, policies := world()
	older := compile(t)
	newer, err := regions.Compile(append(regs, region("eu-south", "emea")), bases, policies)
	if err != nil {
		t.Fatal(err)
	}
	if d := regions.Intersect(older, newer, "gdpr-emea", "eu-south", "eu-south", "", now, nil); !d.OK {
		t.Errorf("home in a new region: got %s, want ok", d.Why())
	}
	if d := regions.Intersect(older, newer, "gdpr-emea", "eu-west", "eu-south", "", now, nil); d.OK {
		t.Error("a relay to a region that only the newer set knows: got ok, want denied")
	}
	if d := regions.Intersect(nil, newer, "gdpr-emea", "eu-west", "eu-central", "", now, nil); d.OK {
		t.Error("nothing older known: got ok, want denied")
	}
}

func BenchmarkSet_Permits(b *testing.B) {
	s := compile(b)
	for _, bb := range []struct {
		name, home, target string
		closures           []regions.Closure
	}{
		{"home", "eu-west", "eu-west", nil},
		{"pair", "eu-west", "uk-south", nil},
		{"within-zone-2-closures", "eu-west", "eu-central", []regions.Closure{{ID: "a", Basis: "dpf"}, {ID: "b", From: "eu-central"}}},
		{"denied", "eu-west", "us-east", nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Permits("gdpr-emea", bb.home, bb.target, "request", now, bb.closures)
			}
		})
	}
}
