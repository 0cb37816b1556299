package regions_test

import (
	"slices"
	"testing"
	"time"

	"bailiwick/regions"
)

// A course names a region only if Permits does, and leaves none unexplained.
func TestSet_Course(t *testing.T) {
	set, err := regions.Compile(
		[]regions.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}, {Name: "eu-south", Zone: "emea"}, {Name: "us-east", Zone: "us"}},
		[]regions.LegalBasis{{Name: "gdpr", Kind: regions.SameLaw}, {Name: "scc", Kind: regions.SCC}},
		[]regions.Policy{{Name: "p", Zone: "emea", WithinZone: true, WithinZoneBasis: "gdpr", Pairs: []regions.Pair{{From: "eu-west", To: "eu-south", Basis: "gdpr", Priority: 5}}}})
	if err != nil {
		t.Fatal(err)
	}
	deployed := []string{"eu-west", "eu-central", "eu-south", "us-east"}
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		down     []string
		closures []regions.Closure
		serves   string
		rule     string
	}{
		{nil, nil, "eu-west", regions.RuleHome},
		{[]string{"eu-west"}, nil, "eu-central", regions.RuleWithinZone},
		{[]string{"eu-west", "eu-central"}, nil, "eu-south", regions.RulePair},
		{[]string{"eu-west", "eu-central", "eu-south"}, nil, "", ""}, // us-east is up, and no pair leads there
		{[]string{"eu-west"}, []regions.Closure{{ID: "c", From: "eu-west", To: "eu-central"}}, "eu-south", regions.RulePair},
		{[]string{"eu-west"}, []regions.Closure{{ID: "c", Basis: "gdpr"}}, "", ""},
	} {
		down := map[string]bool{}
		for _, r := range c.down {
			down[r] = true
		}
		got := set.Course("p", "eu-west", "", deployed, down, now, c.closures)
		if got.Serves != c.serves || got.By.Rule != c.rule {
			t.Errorf("down %v: %q by %q serves, want %q by %q", c.down, got.Serves, got.By.Rule, c.serves, c.rule)
		}
		seen := []string{}
		if got.Serves != "" {
			seen = append(seen, got.Serves)
		}
		for _, p := range got.Passed {
			seen = append(seen, p.Region)
			if p.Decision != set.Permits("p", "eu-west", p.Region, "", now, c.closures) || p.Down != down[p.Region] {
				t.Errorf("down %v: %s is told otherwise than Permits says: %+v", c.down, p.Region, p)
			}
			if p.Region == "us-east" && p.Decision.OK {
				t.Error("us-east is permitted")
			}
		}
		slices.Sort(seen)
		if want := []string{"eu-central", "eu-south", "eu-west", "us-east"}; !slices.Equal(seen, want) {
			t.Errorf("down %v: told of %v, want %v", c.down, seen, want)
		}
	}
}
