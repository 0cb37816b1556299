package syncserver_test

import (
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/table"
)

// Edges of a region share a view only as long as they may hold the same: the canary of a roll-out holds what its neighbours
// may not hold yet, an opened pair among it, whichever of them is looked at first.
func TestRebuild_ACanaryAndItsNeighboursShareNoView(t *testing.T) {
	const opened = "new/eu-west>eu-central"
	w := newWorld(t, nil)
	edges := map[string]*edge{}
	for _, name := range []string{"w1", "w2", "w3", "w4"} {
		w.catalog.put("nodes/"+name, model.Node{Name: name, Kind: "edge", Region: "eu-west", Zone: "emea"})
		edges[name] = w.edge(name).connect()
	}
	for _, e := range edges {
		eventually(t, "the first table", func() bool { return e.at() && e.has(table.KindPair, pairOut) })
	}
	policy := model.Policy{Name: "new", Zone: "emea", WithinZone: &model.WithinZone{Basis: "law"}}
	basis := model.LegalBasis{Name: "law", Kind: "same-law", Status: "active"}
	gdpr := model.Policy{Name: "gdpr", Zone: "emea", WithinZone: policy.WithinZone}
	record := model.Rollout{Number: 1, Round: 1, State: model.RolloutRunning}
	at := w.catalog.put(model.PrefixBasis+"law", basis, model.PrefixPolicy+"gdpr", gdpr, model.PrefixPolicy+"new", policy, model.PrefixPlan+"gold", model.Plan{Name: "gold"},
		model.PrefixHeld+model.PrefixPolicy+"new", model.Held{Absent: true}, model.PrefixHeld+model.PrefixPlan+"gold", model.Held{Absent: true}, model.KeyRollout, record)
	kv, _ := w.zone.Local().Get(model.KeyAdopted)
	adopted, err := model.Decode[model.Adopted](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	adopted.Policies, adopted.CatalogEpoch, adopted.CatalogIndex = append(adopted.Policies, policy), at.Epoch, at.Index
	w.zone.put(model.KeyAdopted, adopted)
	for _, canary := range []string{"w1", "w4"} { // whichever a map gives first
		record.Round++
		record.Zones = []model.RolloutZone{{Zone: "emea", Canary: canary}}
		w.catalog.put(model.KeyRollout, record)
		for name, e := range edges {
			eventually(t, "the newest position", e.at)
			if plan, pair := e.has(table.KindPlan, "gold"), e.has(table.KindPair, opened); plan != (name == canary) || pair != (name == canary) {
				t.Errorf("%s is the canary: %s holds the new plan: %v, the opened pair: %v", canary, name, plan, pair)
			}
		}
	}
	w.catalog.put(model.KeyRollout, nil, model.PrefixHeld+model.PrefixPolicy+"new", nil, model.PrefixHeld+model.PrefixPlan+"gold", nil)
	for name, e := range edges {
		eventually(t, "the newest position", e.at)
		if !e.has(table.KindPlan, "gold") || !e.has(table.KindPair, opened) {
			t.Errorf("the roll-out is done, and %s lacks what it brought", name)
		}
	}
}
