package main

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// A drain is the zone's own and needs no catalog; its end takes back what a manifest said as well, and no other field.
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
	drained := func() string {
		kv, there := d.in.Zones["emea"].Store.Local().Get(model.PrefixDrain + "eu-west")
		if !there {
			return ""
		}
		v, err := model.Decode[model.Drain](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		return v.Reason
	}
	// The catalog is away: that is no matter of the zone's.
	d.in.Catalog.SetDown(true)
	d.must(nil, "region", "drain", "eu-west", "--reason", "work on the building")
	if drained() != "work on the building" || region().Drain != "" {
		t.Errorf("drained: %q by the zone, %+v", drained(), region())
	}
	d.must(nil, "region", "undrain", "eu-west")
	if drained() != "" {
		t.Errorf("still drained: %q", drained())
	}
	d.in.Catalog.SetDown(false)
	d.must(nil, "region", "drain", "eu-west", "--reason", "a second time")
	byManifest := before
	byManifest.Drain = "as the manifest says"
	d.in.Catalog.Put(model.PrefixRegion+"eu-west", model.Encode(byManifest))
	if code, _, errs := d.run("", "region", "drain", "eu-west"); code != exitUsage || !strings.Contains(errs, "--reason") {
		t.Errorf("a drain without a reason: exit %d, %s", code, errs)
	}
	if code, _, _ := d.run("", "region", "drain", "eu-wast", "--reason", "x"); code == 0 {
		t.Error("a region that is not there is drained")
	}
	d.must(nil, "region", "undrain", "eu-west")
	if after := region(); drained() != "" || after.Drain != "" || after.Country != before.Country || after.Zone != before.Zone || after.Provider != before.Provider {
		t.Errorf("%+v became %+v", before, after)
	}
}

// A drain is done when every edge that is alive knows and none names the region; its end when all do again.
func TestProgress_Look(t *testing.T) {
	state := func(drain string, acked, naming int32, accepted int64) *adminv1.RegionState {
		return &adminv1.RegionState{Name: "eu-west", Drain: drain, EdgesAlive: 2, EdgesAcked: acked, Names: 2, Naming: naming, Accepted: accepted, RelaysOut: 3}
	}
	share := func(r *adminv1.RegionState, percent int32) *adminv1.RegionState { r.Share = percent; return r }
	for _, c := range []struct {
		name string
		r    *adminv1.RegionState
		done bool
	}{
		{"nobody knows", state("work", 0, 2, 0), false},
		{"all know, one names it since nothing else is well", state("work", 2, 1, 0), false},
		{"drained", state("work", 2, 0, 0), true},
		{"the end of it, not heard everywhere", state("", 1, 2, 0), false},
		{"the end of it, not named everywhere yet", state("", 2, 1, 0), false},
		{"back, with a part of its share", share(state("", 2, 2, 0), 40), false},
		{"back", state("", 2, 2, 0), true},
	} {
		if got := (&progress{out: io.Discard}).look(c.r, 0); got != c.done {
			t.Errorf("%s: done = %t, want %t", c.name, got, c.done)
		}
	}
	var out strings.Builder
	p := &progress{out: &out}
	p.look(state("work", 0, 2, 100), 400)
	p.look(state("work", 2, 1, 110), 500) // ten of the hundred since
	p.look(state("work", 2, 1, 110), 500) // nothing new: no line
	p.look(share(state("", 2, 2, 110), 40), 500)
	want := "eu-west: 0 of 2 edges know, DNS of 0 of 2 follows; relays: 3 out, 0 in\n" +
		"eu-west: 2 of 2 edges know, DNS of 1 of 2 follows; 10% of the zone's requests still come here; relays: 3 out, 0 in\n" +
		"eu-west: 2 of 2 edges know, DNS of 1 of 2 follows; relays: 3 out, 0 in\n" +
		"eu-west: 2 of 2 edges know, DNS of 2 of 2 follows (40% of the answers, and more by and by); relays: 3 out, 0 in\n"
	if out.String() != want {
		t.Errorf("said:\n%swant:\n%s", out.String(), want)
	}
}

func TestRegion_ListAndGet(t *testing.T) {
	d := seeded(t)
	var states []map[string]any
	d.must(&states, "region", "list", "-o", "json")
	if len(states) == 0 {
		t.Fatal("no region is listed")
	}
	// The form is interface: a field that is renamed breaks whoever reads it.
	want := []string{"accepted", "control_only", "dns_edges", "dns_naming", "dns_share", "drain", "edges", "edges_connected", "edges_in_sync", "edges_reporting", "name", "relays_in", "relays_out", "verdict", "views", "zone"}
	if got := slices.Sorted(maps.Keys(states[0])); !slices.Equal(got, want) {
		t.Errorf("fields of a region: got %v, want %v", got, want)
	}
	name, _ := states[0]["name"].(string)
	if d.must(&states, "region", "list", "-o", "json", "--filter", "name="+name); len(states) != 1 {
		t.Errorf("one region is asked for, %d listed", len(states))
	}
	if code, out, errs := d.run("", "region", "get", name); code != 0 || !strings.Contains(out, name+" of zone") {
		t.Errorf("get: exit %d, %s%s", code, out, errs)
	}
	if code, _, _ := d.run("", "region", "get", "nowhere"); code != exitNotFound {
		t.Errorf("a region that is not there: exit %d, want %d", code, exitNotFound)
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
