package controlplane

import (
	"os"
	"path/filepath"
	"testing"

	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/fault"
)

// What would put a zone's customers elsewhere, a catalog in two places, or either in the clear is refused.
func TestStores_Resolve(t *testing.T) {
	one := &pki.Installation{Name: "acme", PrimaryZone: "emea", Zones: []pki.Zone{{Name: "emea"}}}
	two := &pki.Installation{Name: "acme", PrimaryZone: "emea", Zones: []pki.Zone{{Name: "emea"}, {Name: "us"}}}
	at := func(urls ...string) Etcd { return Etcd{Endpoints: urls} }
	const a, b, local = "https://a:2379", "https://b:2379", "http://127.0.0.1:2379"
	for _, c := range []struct {
		name   string
		in     *pki.Installation
		zone   string
		stores Stores
		reason string
	}{
		{"raft", two, "emea", Stores{}, ""},
		{"raft by name", two, "emea", Stores{Engine: "raft"}, ""},
		{"raft with endpoints", two, "emea", Stores{Zone: at(a)}, "ETCD_NOT_ASKED_FOR"},
		{"unknown", two, "emea", Stores{Engine: "consul"}, "STORE_UNKNOWN"},
		{"one zone, one cluster", one, "emea", Stores{Engine: "etcd", Zone: at(a)}, ""},
		{"no cluster", one, "emea", Stores{Engine: "etcd"}, "ETCD_ENDPOINTS_REQUIRED"},
		{"a catalog's user and no cluster of it", one, "emea", Stores{Engine: "etcd", Zone: at(a), Catalog: Etcd{Username: "x", PasswordFile: "y"}}, "ETCD_ENDPOINTS_REQUIRED"},
		{"two zones, no catalog", two, "emea", Stores{Engine: "etcd", Zone: at(a)}, "ETCD_CATALOG_REQUIRED"},
		{"two clusters", two, "us", Stores{Engine: "etcd", Zone: at(a), Catalog: at(b)}, ""},
		{"the primary zone's own", two, "emea", Stores{Engine: "etcd", Zone: at(a, b), Catalog: at(b)}, ""},
		{"another zone's store in it", two, "us", Stores{Engine: "etcd", Zone: at(a, b), Catalog: at(b)}, "STORE_LEAVES_ITS_ZONE"},
		{"in the clear", one, "emea", Stores{Engine: "etcd", Zone: at("http://a:2379")}, "ETCD_IN_THE_CLEAR"},
		{"the catalog in the clear", two, "emea", Stores{Engine: "etcd", Zone: at(a), Catalog: at("http://b:2379")}, "ETCD_IN_THE_CLEAR"},
		{"loopback", one, "emea", Stores{Engine: "etcd", Zone: at(local, "http://[::1]:2379", "http://localhost:2379")}, ""},
		{"no URL", one, "emea", Stores{Engine: "etcd", Zone: at("a:2379")}, "ETCD_ENDPOINT"},
		{"half a certificate", one, "emea", Stores{Engine: "etcd", Zone: Etcd{Endpoints: []string{a}, CertFile: "c"}}, "ETCD_CERTIFICATE"},
		{"half a password", one, "emea", Stores{Engine: "etcd", Zone: Etcd{Endpoints: []string{a}, Username: "u"}}, "ETCD_PASSWORD"},
	} {
		got, err := c.stores.resolve(c.in, c.zone)
		if (err == nil) != (c.reason == "") || err != nil && fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want reason %q", c.name, err, c.reason)
		}
		if err == nil && got.Engine == EngineEtcd && (got.Zone.Prefix != "bailiwick/acme/" || got.Catalog.Prefix != "bailiwick/acme/" || len(got.Catalog.Endpoints) == 0) {
			t.Errorf("%s: resolves to %+v", c.name, got)
		}
	}
}

// Where another cluster is, this one's password does not go.
func TestStores_TheCatalogsClusterGetsNoPasswordOfTheZones(t *testing.T) {
	in := &pki.Installation{Name: "acme", PrimaryZone: "emea", Zones: []pki.Zone{{Name: "emea"}, {Name: "us"}}}
	zone := Etcd{Endpoints: []string{"https://a:2379"}, Username: "zone", PasswordFile: "secret", CertFile: "c", KeyFile: "k"}
	got, err := Stores{Engine: "etcd", Zone: zone, Catalog: Etcd{Endpoints: []string{"https://b:2379"}}}.resolve(in, "us")
	if err != nil || got.Catalog.Username+got.Catalog.PasswordFile+got.Catalog.CertFile+got.Catalog.KeyFile != "" {
		t.Errorf("the catalog's cluster is reached with %+v, %v", got.Catalog, err)
	}
}

// A node that was started with one engine is refused with the other: it would begin empty.
func TestStores_AnEngineIsForEver(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		engine string
		ok     bool
	}{{"etcd", true}, {"etcd", true}, {"", false}, {"raft", false}, {"etcd", true}} {
		if err := settled(dir, step.engine); (err == nil) != step.ok || err != nil && fault.ReasonOf(err) != "STORE_ENGINE_CHANGED" {
			t.Errorf("start with %q: %v", step.engine, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, fileStores), []byte(`{"engine":"paper"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := settled(dir, "etcd"); fault.ReasonOf(err) != "STORES_UNREADABLE" {
		t.Errorf("a mark of a newer program: %v", err)
	}

	old := t.TempDir() // of a release that had no choice
	if err := os.MkdirAll(filepath.Join(old, "catalog"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "catalog", "raft.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := settled(old, "etcd"); fault.ReasonOf(err) != "STORE_ENGINE_CHANGED" {
		t.Errorf("etcd on a node of an older release: %v", err)
	}
	if err := settled(old, ""); err != nil {
		t.Errorf("raft on it: %v", err)
	}
}
