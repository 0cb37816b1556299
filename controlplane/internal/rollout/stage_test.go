package rollout_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
)

var at = time.Date(2026, 11, 26, 2, 0, 0, 0, time.UTC)

// installation is two zones of two serving regions each, with two edges in each region but us-west.
func installation(t *testing.T) *apitest.Store {
	t.Helper()
	s := apitest.NewStore("catalog")
	put := func(key string, v any) { s.Put(key, model.Encode(v)) }
	for region, zone := range map[string]string{"eu-west": "emea", "eu-central": "emea", "us-east": "us", "us-west": "us"} {
		put(model.PrefixRegion+region, model.Region{Name: region, Zone: zone, Country: map[string]string{"emea": "IE", "us": "US"}[zone], Jurisdiction: map[string]string{"emea": "eu", "us": "us"}[zone]})
		for i := range 2 {
			if region == "us-west" && i == 1 {
				continue
			}
			name := region + "-" + string(rune('1'+i))
			put(model.PrefixNode+name, model.Node{Name: name, Kind: "edge", Region: region, Zone: zone})
		}
	}
	put(model.PrefixBasis+"gdpr", model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: "active"})
	put(model.PrefixPolicy+"gdpr-emea", model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}})
	put(model.APIKey("emea", "orders"), orders("/"))
	put(model.PrefixPlan+"gold", model.Plan{Name: "gold", Products: []string{"shop"}})
	return s
}

func orders(prefix string) model.API {
	return model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.example.test"}, Policy: "gdpr-emea", Routes: []model.Route{{Name: "all", PathPrefix: prefix}},
		Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://10.0.0.1"}, {Region: "eu-central", URL: "http://10.0.0.2"}}}
}

func commit(t *testing.T, s *apitest.Store, ops []group.Op, compares []group.Compare) {
	t.Helper()
	res, err := s.Txn(context.Background(), group.Txn{Ops: ops, Compares: compares})
	if err != nil || !res.Succeeded {
		t.Fatalf("commit %d operations: %+v, %v", len(ops), res, err)
	}
}

// change applies operations as an operator's call would.
func change(t *testing.T, s *apitest.Store, o rollout.Order, ops ...group.Op) rollout.Staged {
	t.Helper()
	o.At = at
	staged, err := rollout.Stage(s.Local(), ops, o)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, append(slices.Clone(ops), staged.Ops...), staged.Compares)
	return staged
}

func op(key string, v any) group.Op { return group.Op{Key: key, Value: model.Encode(v)} }

func current(t *testing.T, s *apitest.Store) (model.Rollout, bool) {
	t.Helper()
	kv, ok := s.Local().Get(model.KeyRollout)
	if !ok {
		return model.Rollout{}, false
	}
	r, err := model.Decode[model.Rollout](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	return r, true
}

func held(s *apitest.Store) (keys []string) {
	for kv := range s.Local().List(model.PrefixHeld) {
		keys = append(keys, strings.TrimPrefix(kv.Key, model.PrefixHeld))
	}
	return keys
}

func TestStage_HoldsBackWhatWas(t *testing.T) {
	s := installation(t)
	was, _ := s.Local().Get(model.APIKey("emea", "orders"))
	staged := change(t, s, rollout.Order{By: "emea/x"}, op(model.APIKey("emea", "orders"), orders("/v2")))
	r, ok := current(t, s)
	if !ok || staged.Name != "r1" || r.State != model.RolloutRunning || r.Base != was.ModIndex && r.Base == 0 || len(r.Changes) != 1 {
		t.Fatalf("got %+v, %q", r, staged.Name)
	}
	kv, _ := s.Local().Get(model.PrefixHeld + model.APIKey("emea", "orders"))
	h, err := model.Decode[model.Held](kv.Key, kv.Value)
	if err != nil || string(h.Value) != string(was.Value) || h.ModIndex != was.ModIndex {
		t.Errorf("held: got %+v, %v; want what was there, at %d", h, err, was.ModIndex)
	}
	// A second change is folded in: the first one's old value stays, and zones begin anew.
	r.Zones = []model.RolloutZone{{Zone: "emea", Canary: "eu-west-1"}}
	s.Put(model.KeyRollout, model.Encode(r))
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/v3")), op(model.PrefixPlan+"gold", model.Plan{Name: "gold", Products: []string{"shop"}, RateLimit: &model.RateLimit{RequestsPerSecond: 1}}))
	r, _ = current(t, s)
	if r.Number != 1 || r.Round != 2 || len(r.Zones) != 0 || len(held(s)) != 2 {
		t.Errorf("after a second change: got %+v holding back %q", r, held(s))
	}
	if kv, _ := s.Local().Get(model.PrefixHeld + model.APIKey("emea", "orders")); !strings.Contains(string(kv.Value), string(was.Value)) {
		t.Errorf("the first value is not kept: %s", kv.Value)
	}
}

func TestStage_WhatSkipsTheRings(t *testing.T) {
	t.Run("drain", func(t *testing.T) {
		s := installation(t)
		r := model.Region{Name: "eu-west", Zone: "emea", Country: "IE", Jurisdiction: "eu", Drain: "maintenance"}
		if staged := change(t, s, rollout.Order{}, op(model.PrefixRegion+"eu-west", r)); staged.Name != "" || len(held(s)) != 0 {
			t.Errorf("a drain waits for roll-out %q", staged.Name)
		}
	})
	t.Run("now", func(t *testing.T) {
		s := installation(t)
		change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/v2")))
		staged := change(t, s, rollout.Order{Now: true, Reason: "outage"}, op(model.APIKey("emea", "orders"), orders("/v3")))
		if staged.Name != "" || len(held(s)) != 0 {
			t.Errorf("with --now: roll-out %q holds back %q", staged.Name, held(s))
		}
	})
	t.Run("no edges", func(t *testing.T) {
		s := apitest.NewStore("catalog")
		if staged := change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/"))); staged.Name != "" {
			t.Errorf("nobody could be a canary, and roll-out %q begins", staged.Name)
		}
	})
	t.Run("a host that changes its zone", func(t *testing.T) {
		s := installation(t)
		emea, us := orders("/"), model.API{Name: "orders", Zone: "us", Hosts: orders("/").Hosts, Upstreams: []model.Upstream{{Region: "us-east", URL: "http://10.0.1.1"}}}
		emea.Hosts = []string{"other.emea.example.test"}
		staged := change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), emea), op(model.APIKey("us", "orders"), us))
		if len(held(s)) != 0 || len(staged.AtOnce) == 0 {
			t.Errorf("one host is in two zones: held back %q, said %q", held(s), staged.AtOnce)
		}
	})
	t.Run("a host that comes under another policy with another API", func(t *testing.T) {
		for _, gone := range []bool{true, false} { // the API that it had
			s := installation(t)
			s.Put(model.PrefixPolicy+"narrow", model.Encode(model.Policy{Name: "narrow", Zone: "emea"}))
			other := orders("/")
			other.Name, other.Policy = "shop", "narrow"
			bare := orders("/")
			bare.Hosts = nil
			was := op(model.APIKey("emea", "orders"), bare)
			if gone {
				was = group.Op{Key: was.Key, Delete: true}
			}
			staged := change(t, s, rollout.Order{}, was, op(model.APIKey("emea", "shop"), other))
			if len(held(s)) != 0 || len(staged.AtOnce) == 0 {
				t.Errorf("the narrower policy waits for rings, and would be taken back: held back %q, said %q", held(s), staged.AtOnce)
			}
			// Under the same policy it may wait.
			s = installation(t)
			other.Policy = orders("/").Policy
			if change(t, s, rollout.Order{}, was, op(model.APIKey("emea", "shop"), other)); len(held(s)) != 2 {
				t.Errorf("a host that moves under one policy goes at once: held back %q", held(s))
			}
		}
	})
	t.Run("a host that another API takes at once", func(t *testing.T) {
		s := installation(t)
		gone := orders("/")
		gone.Hosts = []string{"old.emea.example.test"}
		change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), gone))
		other := orders("/")
		other.Name = "shop"
		change(t, s, rollout.Order{Now: true, Reason: "x"}, op(model.APIKey("emea", "shop"), other))
		if len(held(s)) != 0 {
			t.Errorf("an edge that is not reached would have one host twice: held back %q", held(s))
		}
	})
}

func TestStage_AFurtherChangeDoesNotWaitForZonesThatAreAway(t *testing.T) {
	s := installation(t)
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/v2")))
	r, _ := current(t, s)
	r.Zones = []model.RolloutZone{{Zone: "emea", Canary: "eu-west-1", Done: true}, {Zone: "us", Away: true}}
	s.Put(model.KeyRollout, model.Encode(r))
	staged := change(t, s, rollout.Order{}, op(model.PrefixPlan+"gold", model.Plan{Name: "gold", Products: []string{"other"}}))
	if want := []string{model.PrefixPlan + "gold"}; staged.Name != "r2" || !slices.Equal(held(s), want) {
		t.Errorf("roll-out %q holds back %q, want r2 and %q: what emea had would be taken from it", staged.Name, held(s), want)
	}
	kv, ok := s.Local().Get(r.Key())
	if !ok || !strings.Contains(string(kv.Value), rollout.WhySkipped) {
		t.Errorf("the first one's end: %s", kv.Value)
	}
}

func TestBack_PutsBackWhatWasAndOpensNothing(t *testing.T) {
	policy := func(pairs ...model.Pair) model.Policy {
		return model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: pairs}
	}
	wide := policy(model.Pair{From: "eu-west", To: "us-east", Basis: "gdpr", Status: "open"})
	for _, c := range []struct {
		name         string
		before, then model.Policy
		want         model.Policy
		kept         int
	}{
		{"a loosening is taken back", policy(), wide, policy(), 0},
		{"a tightening stays", wide, policy(), policy(), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := installation(t)
			s.Put(model.PrefixPolicy+"gdpr-emea", model.Encode(c.before))
			was, _ := s.Local().Get(model.APIKey("emea", "orders"))
			change(t, s, rollout.Order{}, op(model.PrefixPolicy+"gdpr-emea", c.then), op(model.APIKey("emea", "orders"), orders("/bad")), op(model.PrefixPlan+"new", model.Plan{Name: "new"}))
			r, _ := current(t, s)
			end, err := rollout.Back(s.Local(), r, at)
			if err != nil {
				t.Fatal(err)
			}
			commit(t, s, end.Ops, end.Compares)
			if kv, _ := s.Local().Get(model.APIKey("emea", "orders")); string(kv.Value) != string(was.Value) {
				t.Errorf("the API is %s, want %s", kv.Value, was.Value)
			}
			if _, there := s.Local().Get(model.PrefixPlan + "new"); there {
				t.Error("the plan that was made is still there")
			}
			if kv, _ := s.Local().Get(model.PrefixPolicy + "gdpr-emea"); string(kv.Value) != string(model.Encode(c.want)) || len(end.Kept) != c.kept {
				t.Errorf("the policy is %s and %q are kept, want %s", kv.Value, end.Kept, model.Encode(c.want))
			}
			if _, there := current(t, s); there || len(held(s)) != 0 {
				t.Errorf("a roll-out is under way still, and holds back %q", held(s))
			}
			if kv, _ := s.Local().Get(r.Key()); !strings.Contains(string(kv.Value), model.RolloutRolledBack) {
				t.Errorf("on record is %s", kv.Value)
			}
		})
	}
}

// A policy that an API came under is on all edges at once. When the API is deleted while that roll-out is under way, edges
// that are not reached keep the API as it was, but never under the policy before.
func TestStage_ADeletedAPIKeepsTheNarrowerPolicy(t *testing.T) {
	s := installation(t)
	narrow := orders("/")
	narrow.Policy = "narrow"
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), narrow))
	change(t, s, rollout.Order{}, group.Op{Key: model.APIKey("emea", "orders"), Delete: true})
	kv, _ := s.Local().Get(model.PrefixHeld + model.APIKey("emea", "orders"))
	if !strings.Contains(string(kv.Value), `"narrow"`) || strings.Contains(string(kv.Value), "gdpr-emea") {
		t.Errorf("edges that are not reached would have %s, and so would all once it is taken back", kv.Value)
	}
}
