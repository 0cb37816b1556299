package view_test

import (
	"slices"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/table"
)

// staged puts what a roll-out holds back into a catalog. values are by key; nil: there was nothing.
func staged(catalog snap, old map[string]any, zones ...model.RolloutZone) {
	for key, v := range old {
		h := model.Held{Absent: v == nil, ModIndex: 3}
		if v != nil {
			h.Value = model.Encode(v)
		}
		catalog[model.PrefixHeld+key] = h
	}
	catalog[model.KeyRollout] = model.Rollout{Number: 1, Round: 1, State: model.RolloutRunning, Zones: zones}
}

func TestBuild_ACanaryDiffersFromItsNeighbours(t *testing.T) {
	catalog, zone := world()
	key := model.PrefixAPI + "emea.orders"
	old := catalog[key].(model.API)
	api := old
	api.Routes = []model.Route{{Name: "v2", PathPrefix: "/v2"}}
	catalog[key] = api
	catalog[model.PrefixPlan+"gold"] = model.Plan{Name: "gold", Products: []string{"core"}, RateLimit: &model.RateLimit{RequestsPerSecond: 1}}
	catalog[model.PrefixPlan+"new"] = model.Plan{Name: "new"}
	goldBefore := model.Plan{Name: "gold", Products: []string{"core"}, RateLimit: &model.RateLimit{RequestsPerSecond: 5}}
	far := model.PrefixAPI + "emea.gone"
	gone := model.API{Name: "gone", Zone: "emea", Hosts: []string{"gone.emea.test"}, Upstreams: old.Upstreams}
	staged(catalog, map[string]any{key: old, model.PrefixPlan + "gold": goldBefore, model.PrefixPlan + "new": nil, far: gone}, model.RolloutZone{Zone: "emea", Canary: "w1", Rings: []model.RegionRing{{Regions: []string{"eu-central"}}}})
	canary := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	neighbour := build(t, catalog, zone, edge("w2", "eu-west", "emea"), now)
	get := func(v *view.View, kind table.Kind, id string) string {
		return string(v.Objects[table.ObjectKey{Kind: kind, ID: id}].Data)
	}
	if a, b := get(canary, table.KindAPI, "orders"), get(neighbour, table.KindAPI, "orders"); !strings.Contains(a, "/v2") || strings.Contains(b, "/v2") || b == "" {
		t.Errorf("API: the canary has %s, its neighbour %s", a, b)
	}
	if a, b := get(canary, table.KindPlan, "gold"), get(neighbour, table.KindPlan, "gold"); !strings.Contains(a, `"rps":1`) || !strings.Contains(b, `"rps":5`) || !strings.Contains(b, `"rev":3`) {
		t.Errorf("plan: the canary has %s, its neighbour %s, of revision 3", a, b)
	}
	if get(canary, table.KindPlan, "new") == "" || get(neighbour, table.KindPlan, "new") != "" {
		t.Error("a new plan is with the neighbour, or not with the canary")
	}
	if get(canary, table.KindAPI, "gone") != "" || get(neighbour, table.KindAPI, "gone") == "" {
		t.Error("a deleted API is with the canary, or not with its neighbour")
	}
	// The ring goes on to another region, then the roll-out ends.
	r := catalog[model.KeyRollout].(model.Rollout)
	r.Zones[0].Ring = 1
	catalog[model.KeyRollout] = r
	if v := build(t, catalog, zone, edge("c1", "eu-central", "emea"), now); !strings.Contains(get(v, table.KindAPI, "orders"), "/v2") {
		t.Error("a region that is reached has what was")
	}
	r.State = model.RolloutStopped
	catalog[model.KeyRollout] = r
	if v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now); strings.Contains(get(v, table.KindAPI, "orders"), "/v2") {
		t.Error("a canary holds what was stopped")
	}
}

// What loosens goes by rings; what tightens is missing everywhere at once, whatever else the change holds back. This is what
// in-force records rest on: a table of a later place lacks a pair that was taken away, whichever ring its edge is in.
func TestBuild_ARolloutHoldsBackNoTightening(t *testing.T) {
	catalog, zone := world()
	old := catalog // the rules of the catalog are those of the zone's record in this world
	for _, b := range []model.LegalBasis{{Name: "gdpr", Kind: "same-law", Status: "active"}, {Name: "uk-adequacy", Kind: "adequacy", Status: "active", Expires: "2026-12-27"}} {
		old[model.PrefixBasis+b.Name] = b
	}
	was := model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: []model.Pair{{From: "eu-west", To: "uk-south", Basis: "uk-adequacy"}}}
	is := model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: []model.Pair{{From: "eu-west", To: "us-east", Basis: "uk-adequacy"}}}
	catalog[model.PrefixPolicy+"gdpr-emea"] = is
	a := zone[model.KeyAdopted].(model.Adopted)
	a.Policies = []model.Policy{is}
	zone[model.KeyAdopted] = a
	api := catalog[model.PrefixAPI+"emea.orders"].(model.API)
	staged(catalog, map[string]any{model.PrefixPolicy + "gdpr-emea": was, model.PrefixAPI + "emea.orders": api}, model.RolloutZone{Zone: "emea", Canary: "w1"})
	within := []string{"gdpr-emea/eu-central>eu-west", "gdpr-emea/eu-west>eu-central"}
	if got, want := pairsOf(build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)), append(slices.Clone(within), "gdpr-emea/eu-west>us-east"); !slices.Equal(got, want) {
		t.Errorf("the canary: got %v, want %v", got, want)
	}
	if got := pairsOf(build(t, catalog, zone, edge("w2", "eu-west", "emea"), now)); !slices.Equal(got, within) {
		t.Errorf("its neighbour: got %v, want %v", got, within)
	}
}

// What an old policy rests on may be gone everywhere: deleted with --now, or a region. Then that policy permits nothing, and
// an edge that is not reached has a view all the same, with the pairs of all others.
func TestBuild_AnOldPolicyThatRestsOnWhatIsGonePermitsNothing(t *testing.T) {
	catalog, zone := world()
	catalog[model.PrefixBasis+"gdpr"] = model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: "active"}
	within, other := &model.WithinZone{Basis: "gdpr"}, "other"
	policies := []model.Policy{{Name: "gdpr-emea", Zone: "emea", WithinZone: within}, {Name: other, Zone: "emea", WithinZone: within}}
	for _, p := range policies {
		catalog[model.PrefixPolicy+p.Name] = p
	}
	a := zone[model.KeyAdopted].(model.Adopted)
	a.Policies = policies
	zone[model.KeyAdopted] = a
	staged(catalog, map[string]any{model.PrefixPolicy + other: model.Policy{Name: other, Zone: "emea", WithinZone: &model.WithinZone{Basis: "gone"}}}, model.RolloutZone{Zone: "emea", Canary: "w1"})
	if got, want := pairsOf(build(t, catalog, zone, edge("w2", "eu-west", "emea"), now)), []string{"gdpr-emea/eu-central>eu-west", "gdpr-emea/eu-west>eu-central"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// An API comes under a new policy on all edges at once, and its host under no two policies.
func TestBuild_ANewPolicyOfAnAPIIsNotHeldBack(t *testing.T) {
	catalog, zone := world()
	key := model.PrefixAPI + "emea.orders"
	old := catalog[key].(model.API)
	api := old
	api.Policy, api.Hosts = "", []string{"new.emea.test"}
	catalog[key] = api
	staged(catalog, map[string]any{key: old}, model.RolloutZone{Zone: "emea", Canary: "w1"})
	data := string(build(t, catalog, zone, edge("w2", "eu-west", "emea"), now).Objects[table.ObjectKey{Kind: table.KindAPI, ID: "orders"}].Data)
	if strings.Contains(data, "gdpr-emea") || !strings.Contains(data, "orders.emea.test") {
		t.Errorf("an edge that is not reached has %s; want the old host, under no policy", data)
	}
}

func TestBuild_Switches(t *testing.T) {
	catalog, zone := world()
	for _, s := range []model.Switch{{Name: "a", Feature: "http3", Off: true, Reason: "x"}, {Name: "b", Feature: "detail", Region: "eu-central", Off: true, Reason: "x"}, {Name: "c", Feature: "dns", Reason: "x"},
		{Name: "d", Feature: "relay", API: "emea/orders", Off: true, Reason: "x"}} {
		catalog[model.PrefixSwitch+s.Name] = s
	}
	for region, want := range map[string][]string{"eu-west": {"switch http3", "switch relay/emea/orders"}, "eu-central": {"switch detail", "switch http3", "switch relay/emea/orders"}} {
		got := slices.DeleteFunc(ids(build(t, catalog, zone, edge("x", region, "emea"), now)), func(id string) bool { return !strings.HasPrefix(id, "switch") })
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", region, got, want)
		}
	}
}

// Labels are for operators: no edge gets one, so that neither a table nor another region's disk tells of them.
func TestBuild_NoLabelReachesAnEdge(t *testing.T) {
	catalog, zone := world()
	plain := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	for key, v := range catalog {
		switch v := v.(type) {
		case model.API:
			v.Labels = []string{"team=planted"}
			catalog[key] = v
		case model.Region:
			v.Labels = []string{"site=planted"}
			catalog[key] = v
		}
	}
	labelled := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	if plain.CatalogSum != labelled.CatalogSum || plain.PairSum != labelled.PairSum {
		t.Error("a label changes what an edge holds")
	}
	for key, o := range labelled.Objects {
		if strings.Contains(string(o.Data), "planted") {
			t.Errorf("%v: %s", key, o.Data)
		}
	}
}
