package main

import (
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
)

// A drain changes that one field and no other.
func TestRegion_Drain(t *testing.T) {
	d := seeded(t)
	region := func() model.Region {
		kv, _ := d.in.Catalog.Local().Get(model.PrefixRegion + "eu-west")
		r, err := model.Decode[model.Region](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	before := region()
	d.must(nil, "region", "drain", "eu-west", "--reason", "work on the building")
	drained := region()
	if drained.Drain != "work on the building" {
		t.Errorf("drained: %+v", drained)
	}
	if code, _, errs := d.run("", "region", "drain", "eu-west"); code != exitUsage || !strings.Contains(errs, "--reason") {
		t.Errorf("a drain without a reason: exit %d, %s", code, errs)
	}
	if code, _, _ := d.run("", "region", "drain", "eu-wast", "--reason", "x"); code == 0 {
		t.Error("a region that is not there is drained")
	}
	d.must(nil, "region", "undrain", "eu-west")
	if after := region(); after.Drain != "" || after.Country != before.Country || after.Zone != before.Zone || after.Provider != before.Provider {
		t.Errorf("%+v became %+v", before, after)
	}
}

func TestExplain_TakesAKeyAndSendsItsID(t *testing.T) {
	d := seeded(t)
	var key struct{ ID, Key string }
	d.must(&key, "key", "create", "--customer", "acme", "--plan", "gold", "-o", "json")
	var courses []course
	d.must(&courses, "explain", "--host", "orders.emea.example.test", "--key", key.Key, "--from", "us-east", "-o", "json")
	if len(courses) != 1 || courses[0].Outcome != "not-home" || strings.Contains(courses[0].KeyWhy, key.Key) {
		t.Errorf("%+v", courses)
	}
	if code, _, errs := d.run("", "explain", "--host", "orders.emea.example.test", "--key", key.Key+"x"); code != exitUsage || strings.Contains(errs, key.Key) {
		t.Errorf("a key that is none: exit %d, %s", code, errs)
	}
	// Nothing is adopted here: home is served all the same, and nobody takes over.
	courses = nil
	d.must(&courses, "policy", "simulate", "--down", "eu-west", "-o", "json")
	outcomes := map[string]string{}
	for _, c := range courses {
		outcomes[c.Host+"@"+c.Home] = c.Outcome
	}
	for at, want := range map[string]string{"orders.emea.example.test@eu-west": "no-region", "orders.emea.example.test@eu-central": "home", "orders.us.example.test@us-east": "home"} {
		if outcomes[at] != want {
			t.Errorf("%s: %q, want %s", at, outcomes[at], want)
		}
	}
	if out := d.must(nil, "dns", "orders.emea.example.test"); !strings.Contains(out, "no edge of zone emea answers DNS") {
		t.Errorf("dns shows %s", out)
	}
}
