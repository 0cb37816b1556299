// Package catalog owns what ships about the world: the public clouds' regions
// by jurisdiction, and policy templates that an operator may adopt.
//
// All of it is data embedded in the program and read-only; it never changes a
// decision by itself and parses no YAML. The table is parsed at first use; all
// functions may be called at once. A template is a starting point and not legal
// advice.
package catalog

import (
	"embed"
	"encoding/csv"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"bailiwick/regions"
)

//go:embed cloud-regions.csv templates/*.yaml
var files embed.FS

// Entry is one region of a public cloud.
type Entry struct {
	Provider     string // "aws", "azure", "gcp"
	Region       string // the provider's name of it
	City         string
	Country      string // ISO 3166-1 alpha-2
	Jurisdiction string
	Partition    string // as regions.Region.Partition
	PairedWith   string // the provider's own pair, often one-way; blank: none
	Source       string // where it was read
}

type key struct{ provider, region string }

type table struct {
	entries []Entry
	index   map[key]int
}

var load = sync.OnceValues(func() (table, error) {
	t := table{index: map[key]int{}}
	f, err := files.Open("cloud-regions.csv")
	if err != nil {
		return t, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return t, fmt.Errorf("parse cloud-regions.csv: %w", err)
	}
	for _, r := range rows[1:] {
		e := Entry{Provider: r[0], Region: r[1], City: r[2], Country: r[3], Jurisdiction: r[4], PairedWith: r[5], Source: r[6]}
		e.Partition = partition(e.Jurisdiction)
		t.index[key{e.Provider, e.Region}] = len(t.entries)
		t.entries = append(t.entries, e)
	}
	return t, nil
})

// data cannot fail: the file is part of the program and a test parses it.
func data() table {
	t, err := load()
	if err != nil {
		panic(err)
	}
	return t
}

// partition follows the jurisdiction: in this table the two coincide, since the
// walled-off clouds have a jurisdiction code of their own.
func partition(jurisdiction string) string {
	switch jurisdiction {
	case "CN", "US-GOV", "US-DOD":
		return strings.ToLower(jurisdiction)
	case "EEA-SOV":
		return "eu-sov"
	}
	return "public"
}

// Lookup finds a region by its provider's names.
func Lookup(provider, region string) (Entry, bool) {
	t := data()
	i, ok := t.index[key{provider, region}]
	if !ok {
		return Entry{}, false
	}
	return t.entries[i], true
}

// All lists every region, by provider and then as the table has them.
func All() []Entry { return slices.Clone(data().entries) }

// Known says whether the catalogue has regions of a provider at all.
func Known(provider string) bool {
	return slices.ContainsFunc(data().entries, func(e Entry) bool { return e.Provider == provider })
}

// Fill completes the blank fields of r (partition, country, jurisdiction) from
// the catalogue. What is written stays as it is; Check judges it.
func Fill(r regions.Region) regions.Region {
	e, ok := Lookup(r.Provider, r.ProviderRegion)
	if !ok {
		return r
	}
	for _, f := range []struct {
		to   *string
		from string
	}{{&r.Partition, e.Partition}, {&r.Country, e.Country}, {&r.Jurisdiction, e.Jurisdiction}} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
	return r
}

// Check warns where r says something else than the catalogue. Only warns: the
// catalogue is a copy of what providers published and may be late or wrong.
func Check(r regions.Region) []regions.Finding {
	var out []regions.Finding
	warn := func(field, reason, format string, args ...any) {
		out = append(out, regions.Finding{Severity: regions.Warning, Kind: regions.KindRegion, Name: r.Name,
			Field: "spec." + field, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	e, ok := Lookup(r.Provider, r.ProviderRegion)
	if !ok {
		if Known(r.Provider) {
			warn("provider_region", "PROVIDER_REGION_UNKNOWN", "region %s: the catalogue knows no region %q of %s", r.Name, r.ProviderRegion, r.Provider)
		}
		return out // one's own machines are nobody's business
	}
	for _, f := range []struct{ field, got, want string }{
		{"country", r.Country, e.Country},
		{"jurisdiction", r.Jurisdiction, e.Jurisdiction},
		{"partition", r.Partition, e.Partition},
	} {
		if f.got != "" && f.got != f.want {
			warn(f.field, "CATALOGUE_DIFFERS", "region %s says %s %q; by the catalogue %s %s has %q", r.Name, f.field, f.got, r.Provider, r.ProviderRegion, f.want)
		}
	}
	return out
}

// Templates lists the names of the policy templates, sorted.
func Templates() []string {
	entries, err := fs.ReadDir(files, "templates")
	if err != nil {
		panic(err) // part of the program
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Template is the manifest text of a template: YAML documents, ready to apply
// once read and adopted.
func Template(name string) (string, error) {
	b, err := files.ReadFile("templates/" + name + ".yaml")
	if err != nil || strings.ContainsAny(name, "/\\") {
		return "", fmt.Errorf("find template %q: there are %s", name, strings.Join(Templates(), ", "))
	}
	return string(b), nil
}
