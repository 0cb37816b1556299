package view_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/table"
)

func pairsOf(v *view.View) (out []string) {
	for k := range v.Objects {
		if k.Kind == table.KindPair {
			out = append(out, k.ID)
		}
	}
	slices.Sort(out)
	return out
}

// A node whose clock is behind must not keep a pair in tables of a place in the log from which the zone's
// leader counts it as closed: an acknowledgement of that place would be a lie.
func TestBuild_WhatTheLeaderNoticedAsClosedIsClosedByAnyClock(t *testing.T) {
	catalog, zone := world()
	zone[model.KeyPermitted] = model.Permitted{Pairs: []model.PermittedPair{{Policy: "gdpr-emea", From: "eu-central", To: "eu-west", Basis: "gdpr"}, {Policy: "gdpr-emea", From: "eu-west", To: "eu-central", Basis: "other"}}}
	v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now.Add(-1000*time.Hour))
	if got, want := pairsOf(v), []string{"gdpr-emea/eu-central>eu-west", "gdpr-emea/eu-west>eu-central"}; !slices.Equal(got, want) {
		t.Errorf("pairs: got %v, want %v", got, want)
	}
	if _, ok := v.Objects[table.ObjectKey{Kind: table.KindZoneKey, ID: "uk"}]; ok {
		t.Error("the view holds the key of a zone from which nothing may come")
	}
	if !view.Depends(model.KeyPermitted) {
		t.Error("a change of what is permitted does not rebuild views")
	}
}

func TestBuild_PairsThatCarryNoRequestsAreNoPairs(t *testing.T) {
	catalog, zone := world()
	a := zone[model.KeyAdopted].(model.Adopted)
	a.Policies = []model.Policy{
		{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr", Classes: []string{"metrics"}}, Pairs: []model.Pair{{From: "eu-west", To: "uk-south", Basis: "uk-adequacy", Classes: []string{"metrics", "request"}}}},
		{Name: "uk", Zone: "uk", Pairs: []model.Pair{{From: "uk-south", To: "eu-west", Basis: "uk-adequacy", Classes: []string{"backup"}}}},
	}
	zone[model.KeyAdopted] = a
	v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	if got, want := pairsOf(v), []string{"gdpr-emea/eu-west>uk-south"}; !slices.Equal(got, want) {
		t.Errorf("pairs: got %v, want %v", got, want)
	}
}

// With a policy pair emea → us the us edge gets what a receiver needs and nothing more; without one, nothing
// of emea but the directory.
func TestBuild_CrossZonePairAtTheReceiver(t *testing.T) {
	catalog, zone := world()
	us := edge("us1", "us-east", "us")
	a := zone[model.KeyAdopted].(model.Adopted)
	for id := range build(t, catalog, snap{model.KeyAdopted: a}, us, now).Objects {
		if strings.Contains(id.ID, "eu-") || strings.Contains(id.ID, "emea") && id.Kind != table.KindDirectory || strings.HasPrefix(id.ID, "w1") {
			t.Errorf("no pair leads to us-east, and its edge holds %s %s", id.Kind, id.ID)
		}
	}
	a.Bases = append(a.Bases, model.LegalBasis{Name: "scc", Kind: "scc", Status: "active"})
	a.Policies = slices.Clone(a.Policies)
	a.Policies[0].Pairs = append(slices.Clone(a.Policies[0].Pairs), model.Pair{From: "eu-west", To: "us-east", Basis: "scc"})
	orders := catalog[model.PrefixAPI+"emea.orders"].(model.API)
	orders.Upstreams = append(slices.Clone(orders.Upstreams), model.Upstream{Region: "us-east", URL: "http://us-east"})
	catalog[model.PrefixAPI+"emea.orders"] = orders
	v := build(t, catalog, snap{model.KeyAdopted: a}, us, now)
	want := []string{"api emea/orders", "api orders", "directory emea/far", "directory emea/orders", "directory uk/orders", "directory uk/secret",
		"doors us1", "node w1", "pair gdpr-emea/eu-west>us-east", "plan gold", "region us-east", "settings settings", "zone-key emea", "zone-key us"}
	if got := ids(v); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if api := get[table.API](t, v, table.KindAPI, "emea/orders"); !api.Foreign || len(api.Hosts) != 0 || !slices.Equal(api.Targets, []string{"http://us-east"}) {
		t.Errorf("foreign api: %+v", api)
	}
}

func TestView_Closed(t *testing.T) {
	catalog, zone := world()
	v := build(t, catalog, zone, edge("w1", "eu-west", "emea"), now)
	c := v.Closed()
	if got := pairsOf(c); len(got) != 0 || len(pairsOf(v)) == 0 {
		t.Errorf("pairs: got %v, want none, and those of the view itself untouched", got)
	}
	if want := len(v.Objects) - len(pairsOf(v)); len(c.Objects) != want || !c.PairSum.IsZero() || c.CatalogSum != v.CatalogSum {
		t.Errorf("closed view: %d objects, sums %v %v; want %d, none and %v", len(c.Objects), c.PairSum, c.CatalogSum, want, v.CatalogSum)
	}
}
