package rollout_test

import (
	"slices"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

func policyOf(pairs ...model.Pair) model.Policy {
	return model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: pairs}
}

var abroad = model.Pair{From: "eu-west", To: "us-east", Basis: "gdpr", Status: "open"}

const gdprEMEA = model.PrefixPolicy + "gdpr-emea"

// unreached are the pairs of an edge that the roll-out has not reached, in a zone that has adopted the catalog as it is.
func unreached(t *testing.T, s *apitest.Store) (out []string) {
	t.Helper()
	snap := s.Local()
	a := model.Adopted{CatalogEpoch: snap.Revision().Epoch, CatalogIndex: snap.Revision().Index,
		Regions: documents[model.Region](t, snap, model.PrefixRegion), Bases: documents[model.LegalBasis](t, snap, model.PrefixBasis), Policies: documents[model.Policy](t, snap, model.PrefixPolicy)}
	zone := apitest.NewStore("store/emea")
	zone.Put(model.KeyAdopted, model.Encode(a))
	zone.Put(model.KeyCrossing, model.Encode(model.Crossing{CatalogEpoch: a.CatalogEpoch, StoreEpoch: zone.Local().Revision().Epoch}))
	v, err := view.Build(snap, zone.Local(), model.Node{Name: "eu-west-2", Kind: "edge", Region: "eu-west", Zone: "emea"}, table.Current, at)
	if err != nil {
		t.Fatal(err)
	}
	for key := range v.Objects {
		if key.Kind == table.KindPair {
			out = append(out, key.ID)
		}
	}
	slices.Sort(out)
	return out
}

func documents[T any](t *testing.T, snap group.Snapshot, prefix string) (out []T) {
	t.Helper()
	for kv := range snap.List(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// What is tightened while a roll-out is under way is tight everywhere at once. What is loosened again after that is news: it
// goes by rings, also where it is no more than was permitted before the roll-out.
func TestStage_WhatWasTightenedIsLoosenedByRings(t *testing.T) {
	home := []string{"gdpr-emea/eu-central>eu-west", "gdpr-emea/eu-west>eu-central"}
	wide := append(slices.Clone(home), "gdpr-emea/eu-west>us-east")
	gdpr := func(status, expires string) group.Op {
		return op(model.PrefixBasis+"gdpr", model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: status, Expires: expires})
	}
	region := func(name string) group.Op {
		return op(model.PrefixRegion+name, model.Region{Name: name, Zone: "us", Country: "US", Jurisdiction: "us"})
	}
	closed := abroad
	closed.Status = "closed"
	for name, steps := range map[string][]struct {
		op   group.Op
		want []string
	}{
		"a pair goes and comes back":   {{op(gdprEMEA, policyOf()), home}, {op(gdprEMEA, policyOf(abroad)), home}},
		"a pair is closed and opened":  {{op(gdprEMEA, policyOf(closed)), home}, {op(gdprEMEA, policyOf(abroad)), home}, {op(gdprEMEA, policyOf()), home}},
		"the policy goes":              {{group.Op{Key: gdprEMEA, Delete: true}, nil}, {op(gdprEMEA, policyOf(abroad)), nil}},
		"the basis is suspended":       {{gdpr("suspended", ""), nil}, {gdpr("active", ""), nil}},
		"the basis ends, and does not": {{gdpr("active", "2026-11-01"), nil}, {gdpr("active", ""), nil}},
		"a region goes": {{group.Op{Key: model.PrefixRegion + "us-east", Delete: true}, home},
			{region("us-east"), home}},
		"something else changes": {{op(gdprEMEA, model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, TwoPerson: true, Pairs: []model.Pair{abroad}}), wide},
			{op(gdprEMEA, policyOf(abroad)), wide}},
	} {
		t.Run(name, func(t *testing.T) {
			s := installation(t)
			s.Put(gdprEMEA, model.Encode(policyOf(abroad)))
			if got := unreached(t, s); !slices.Equal(got, wide) {
				t.Fatalf("before: got %v, want %v", got, wide)
			}
			change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/v2"))) // a roll-out is under way
			for i, step := range steps {
				change(t, s, rollout.Order{}, step.op)
				if strings.HasPrefix(step.op.Key, model.PrefixRegion) && i == 0 { // no policy names what is not there
					s.Put(gdprEMEA, model.Encode(policyOf()))
				} else if strings.HasPrefix(step.op.Key, model.PrefixRegion) {
					s.Put(gdprEMEA, model.Encode(policyOf(abroad)))
				}
				if got := unreached(t, s); !slices.Equal(got, step.want) {
					t.Errorf("step %d: an edge that is not reached has %v, want %v", i+1, got, step.want)
				}
			}
		})
	}
}

// However often a policy changes while a roll-out is under way, what is held stays small and permits no more.
func TestStage_AManyTimesChangedPolicyIsBounded(t *testing.T) {
	s := installation(t)
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/v2")))
	for i := range 3 * model.HeldThrough {
		p := policyOf(abroad)
		p.Pairs[0].Priority = i
		change(t, s, rollout.Order{}, op(gdprEMEA, p))
		if got := unreached(t, s); slices.Contains(got, "gdpr-emea/eu-west>us-east") {
			t.Fatalf("after %d changes an edge that is not reached has %v", i+1, got)
		}
	}
	h := heldAt(t, s, gdprEMEA)
	if len(h.Through) > model.HeldThrough {
		t.Errorf("%d versions are held, want at most %d", len(h.Through), model.HeldThrough)
	}
}

func heldAt(t *testing.T, s *apitest.Store, key string) model.Held {
	t.Helper()
	kv, ok := s.Local().Get(model.PrefixHeld + key)
	if !ok {
		return model.Held{}
	}
	h, err := model.Decode[model.Held](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// --now sends what it names, and nothing that a roll-out holds back of the same rules.
func TestStage_NowDoesNotSendWhatSomebodyElseOpens(t *testing.T) {
	s := installation(t)
	change(t, s, rollout.Order{}, op(gdprEMEA, policyOf(abroad)))
	next := policyOf(abroad)
	next.OfflineGrant = nil
	next.Pairs = append(next.Pairs, model.Pair{From: "eu-central", To: "us-east", Basis: "gdpr", Status: "open"})
	ops := []group.Op{op(gdprEMEA, next)}
	if _, err := rollout.Stage(s.Local(), ops, rollout.Order{Now: true, Reason: "x", At: at}); fault.ReasonOf(err) != "ROLLOUT_HOLDS_BACK" {
		t.Errorf("got %v, want it refused: eu-west to us-east would open on all edges, and nobody said so", err)
	}
	// Without --now what it closes is closed everywhere, and what is open waits.
	change(t, s, rollout.Order{}, op(gdprEMEA, policyOf()))
	if got := unreached(t, s); slices.Contains(got, "gdpr-emea/eu-west>us-east") {
		t.Errorf("got %v", got)
	}
	// Where the roll-out opens nothing of it, --now is what it says.
	s = installation(t)
	s.Put(gdprEMEA, model.Encode(policyOf(abroad)))
	change(t, s, rollout.Order{}, op(gdprEMEA, policyOf()))
	change(t, s, rollout.Order{Now: true, Reason: "x"}, op(gdprEMEA, policyOf(model.Pair{From: "eu-west", To: "us-west", Basis: "gdpr", Status: "open"})))
	if got := unreached(t, s); !slices.Contains(got, "gdpr-emea/eu-west>us-west") {
		t.Errorf("got %v, want what --now sends", got)
	}
}

// A roll-out that is stopped waits for somebody's decision. A further change is none: no edge gets the stopped part by it,
// what it tightens is tight at once all the same, and putting the old value back is the decision.
func TestStage_AFurtherChangeRevivesNoStoppedRollout(t *testing.T) {
	s := installation(t)
	s.Put(gdprEMEA, model.Encode(policyOf(abroad)))
	was, _ := s.Local().Get(model.APIKey("emea", "orders"))
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/bad")))
	r, _ := current(t, s)
	r.State, r.Why = model.RolloutStopped, rollout.WhyStuck
	s.Put(model.KeyRollout, model.Encode(r))
	staged := change(t, s, rollout.Order{}, op(model.PrefixPlan+"gold", model.Plan{Name: "gold"}), op(gdprEMEA, policyOf()))
	r, _ = current(t, s)
	if r.State != model.RolloutStopped || r.Why != rollout.WhyStuck || len(held(s)) != 3 {
		t.Errorf("got %+v holding back %q, want it stopped as it was", r, held(s))
	}
	if !slices.ContainsFunc(staged.AtOnce, func(s string) bool { return strings.Contains(s, "r1 is stopped") }) {
		t.Errorf("whoever applies is told %q, want that it waits", staged.AtOnce)
	}
	if got := unreached(t, s); slices.Contains(got, "gdpr-emea/eu-west>us-east") {
		t.Errorf("what was tightened waits: %v", got)
	}
	change(t, s, rollout.Order{}, group.Op{Key: model.APIKey("emea", "orders"), Value: was.Value})
	if slices.Contains(held(s), model.APIKey("emea", "orders")) {
		t.Errorf("held back are %q, and the API is as it was", held(s))
	}
	// With nothing left to hold back it has ended.
	s = installation(t)
	was, _ = s.Local().Get(model.APIKey("emea", "orders"))
	change(t, s, rollout.Order{}, op(model.APIKey("emea", "orders"), orders("/bad")))
	change(t, s, rollout.Order{}, group.Op{Key: model.APIKey("emea", "orders"), Value: was.Value})
	if r, there := current(t, s); there {
		t.Errorf("still under way: %+v", r)
	}
	if kv, _ := s.Local().Get(model.Rollout{Number: 1}.Key()); !strings.Contains(string(kv.Value), model.RolloutRolledBack) {
		t.Errorf("on record is %s", kv.Value)
	}
}

// A roll-out is taken back by a control node, with nobody there to approve and nobody to mend. What takes two operators, and
// what would leave others with what is gone, it leaves to people, and has no edge hold it meanwhile.
func TestBack_DoesNotDecideForPeople(t *testing.T) {
	shop := func(apis ...string) group.Op {
		return op(model.PrefixProduct+"shop", model.Product{Name: "shop", APIs: apis})
	}
	for _, c := range []struct {
		name  string
		given func(*apitest.Store)
		then  []group.Op // rolled out
		now   []group.Op // written at once while that is under way
		why   string
	}{
		{"an API that is gone, in a zone where two decide", func(s *apitest.Store) {
			p := policyOf(abroad)
			p.TwoPerson = true
			s.Put(gdprEMEA, model.Encode(p))
		}, []group.Op{{Key: model.APIKey("emea", "orders"), Delete: true}}, nil, rollout.WhyApproval},
		{"the same where one decides", func(*apitest.Store) {}, []group.Op{{Key: model.APIKey("emea", "orders"), Delete: true}}, nil, ""},
		{"a host that is gone, where two decide", func(s *apitest.Store) {
			p := policyOf(abroad)
			p.TwoPerson = true
			s.Put(gdprEMEA, model.Encode(p))
		}, func() []group.Op {
			a := orders("/")
			a.Hosts = []string{}
			return []group.Op{op(model.APIKey("emea", "orders"), a)}
		}(), nil, rollout.WhyApproval},
		{"a product that a plan sells since", func(*apitest.Store) {}, []group.Op{shop("orders")}, []group.Op{op(model.PrefixPlan+"gold", model.Plan{Name: "gold", Products: []string{"shop"}})}, rollout.WhyReferred},
		{"a product that nobody sells", func(s *apitest.Store) { s.Put(model.PrefixPlan+"gold", model.Encode(model.Plan{Name: "gold"})) }, []group.Op{shop("orders")}, nil, ""},
		{"a plan that sold a product which is gone", func(s *apitest.Store) {
			s.Put(model.PrefixProduct+"old", model.Encode(model.Product{Name: "old"}))
			s.Put(model.PrefixPlan+"gold", model.Encode(model.Plan{Name: "gold", Products: []string{"old"}}))
		}, []group.Op{op(model.PrefixPlan+"gold", model.Plan{Name: "gold"})}, []group.Op{{Key: model.PrefixProduct + "old", Delete: true}}, rollout.WhyReferred},
		{"a policy that an API came under stays", func(*apitest.Store) {}, []group.Op{op(model.PrefixPolicy+"new", model.Policy{Name: "new", Zone: "emea"})}, func() []group.Op {
			a := orders("/")
			a.Policy = "new"
			return []group.Op{op(model.APIKey("emea", "orders"), a)}
		}(), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := installation(t)
			s.Put(model.PrefixPlan+"gold", model.Encode(model.Plan{Name: "gold"}))
			c.given(s)
			change(t, s, rollout.Order{}, c.then...)
			if len(c.now) > 0 {
				change(t, s, rollout.Order{Now: true, Reason: "x"}, c.now...)
			}
			r, _ := current(t, s)
			r.Why = rollout.WhyFailing
			end, err := rollout.Back(s.Local(), r, at)
			if err != nil {
				t.Fatal(err)
			}
			commit(t, s, end.Ops, end.Compares)
			now, under := current(t, s)
			if c.why == "" {
				if end.Stopped != nil || under {
					t.Errorf("got %v, %+v; want it taken back", end.Stopped, now)
				}
				for _, a := range documents[model.API](t, s.Local(), model.PrefixAPI) {
					if _, there := s.Local().Get(model.PrefixPolicy + a.Policy); !there {
						t.Errorf("API %s is under policy %s, which is gone", a.Name, a.Policy)
					}
				}
				return
			}
			if fault.ReasonOf(end.Stopped) != c.why || !under || now.State != model.RolloutStopped || now.Why != c.why || len(held(s)) == 0 {
				t.Errorf("got %v, %+v holding back %q; want it stopped for %s", end.Stopped, now, held(s), c.why)
			}
			edge := model.Node{Name: "eu-west-1", Kind: "edge", Region: "eu-west", Zone: "emea"}
			if now.Reaches(edge) {
				t.Error("an edge holds what is stopped")
			}
		})
	}
}
