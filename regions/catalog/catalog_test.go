package catalog_test

import (
	"slices"
	"strings"
	"testing"

	"bailiwick/regions"
	"bailiwick/regions/catalog"
)

func TestLookup(t *testing.T) {
	for _, tt := range []struct{ provider, region, country, jurisdiction, partition, pair string }{
		{"azure", "northeurope", "IE", "EEA", "public", "westeurope"},
		{"aws", "eusc-de-east-1", "DE", "EEA-SOV", "eu-sov", ""},
		{"aws", "cn-north-1", "CN", "CN", "cn", ""},
		{"azure", "usgovvirginia", "US", "US-GOV", "us-gov", "usgovtexas"},
		{"azure", "brazilsouth", "BR", "BR", "public", "southcentralus"},
		{"gcp", "us-central1", "US", "US", "public", ""},
	} {
		got, ok := catalog.Lookup(tt.provider, tt.region)
		if !ok || got.Country != tt.country || got.Jurisdiction != tt.jurisdiction || got.Partition != tt.partition || got.PairedWith != tt.pair {
			t.Errorf("%s %s: got %+v %v, want %+v", tt.provider, tt.region, got, ok, tt)
		}
	}
	if _, ok := catalog.Lookup("azure", "us-central1"); ok {
		t.Error("a region of gcp is found under azure")
	}
}

func TestAll_IsWhole(t *testing.T) {
	all := catalog.All()
	if got, want := len(all), 151; got != want {
		t.Errorf("got %d regions, want %d", got, want)
	}
	seen := map[string]bool{}
	for _, e := range all {
		if id := e.Provider + "/" + e.Region; seen[id] {
			t.Errorf("%s is there twice", id)
		} else {
			seen[id] = true
		}
		if len(e.Country) != 2 || e.Jurisdiction == "" || e.City == "" || e.Source == "" {
			t.Errorf("%s %s has blank fields: %+v", e.Provider, e.Region, e)
		}
		if e.PairedWith == "" {
			continue
		}
		if _, ok := catalog.Lookup(e.Provider, e.PairedWith); !ok {
			t.Errorf("%s %s is paired with %s, which is not there", e.Provider, e.Region, e.PairedWith)
		}
	}
}

func TestFillAndCheck(t *testing.T) {
	r := catalog.Fill(regions.Region{Name: "eu-west", Provider: "aws", ProviderRegion: "eu-west-1", Zone: "emea"})
	if r.Country != "IE" || r.Jurisdiction != "EEA" || r.Partition != "public" {
		t.Errorf("filled: got %+v, want IE, EEA, public", r)
	}
	if got := catalog.Check(r); len(got) != 0 {
		t.Errorf("filled: got findings %v, want none", got)
	}
	r.Country = "US"
	if got := catalog.Fill(r); got.Country != "US" {
		t.Errorf("Fill overwrites a country: got %s", got.Country)
	}
	got := catalog.Check(r)
	if len(got) != 1 || got[0].Field != "spec.country" || got[0].Severity != regions.Warning || !strings.Contains(got[0].Message, `"IE"`) {
		t.Errorf("wrong country: got %+v, want one warning about spec.country", got)
	}
	r.ProviderRegion = "eu-wset-1"
	if got := catalog.Check(r); len(got) != 1 || got[0].Field != "spec.provider_region" {
		t.Errorf("mistyped: got %+v, want one warning about spec.provider_region", got)
	}
	r.Provider = "basement"
	if got := catalog.Check(r); len(got) != 0 {
		t.Errorf("own machines: got %+v, want none", got)
	}
}

func TestTemplates(t *testing.T) {
	if got, want := catalog.Templates(), []string{"gdpr-emea", "uk", "us"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for _, name := range catalog.Templates() {
		text, err := catalog.Template(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"kind: LegalBasis\n", "kind: Policy\nname: " + name + "\n", "within_zone:\n", "Not legal advice"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: lacks %q", name, want)
			}
		}
		if strings.Contains(text, "\t") {
			t.Errorf("%s: has a tab, which YAML refuses", name)
		}
	}
	for _, bad := range []string{"", "mars", "../cloud-regions", "x/../uk"} {
		if _, err := catalog.Template(bad); err == nil || !strings.Contains(err.Error(), "gdpr-emea") {
			t.Errorf("template %q: got %v, want an error that lists the templates", bad, err)
		}
	}
}
