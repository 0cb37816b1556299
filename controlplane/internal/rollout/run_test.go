package rollout_test

import (
	"log/slog"
	"strings"
	"testing"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
)

// failing is an installation whose roll-out of ops a zone has found to fail.
func failing(t *testing.T, twoPerson bool, ops ...group.Op) (*apitest.Store, model.Rollout) {
	t.Helper()
	s := installation(t)
	p := policyOf(abroad)
	p.TwoPerson = twoPerson
	s.Put(gdprEMEA, model.Encode(p))
	change(t, s, rollout.Order{}, ops...)
	r, _ := current(t, s)
	s.Put(model.PrefixWord+"emea", model.Encode(model.RolloutWord{Zone: "emea", Number: r.Number, Round: r.Round, Verdict: rollout.Bad, Why: rollout.WhyFailing, Edge: "eu-west-1", API: "orders"}))
	return s, r
}

// What a zone finds bad is taken back once, by whoever leads the catalog: one who led before and does not know it yet, or one
// who looks at what is past, changes nothing.
func TestConductor_TakesBackOnce(t *testing.T) {
	s, r := failing(t, false, op(model.APIKey("emea", "orders"), orders("/bad")))
	before := s.Local()
	for i := range 3 {
		c := &rollout.Conductor{Catalog: s, Logger: slog.New(slog.DiscardHandler)}
		if err := c.Step(t.Context(), before, r); err != nil {
			t.Fatalf("leader %d: %v", i+1, err)
		}
	}
	if now, under := current(t, s); under {
		t.Errorf("still under way: %+v", now)
	}
	entries := 0
	for kv := range s.Local().List(model.PrefixRevision) {
		if strings.Contains(string(kv.Value), "rollout/"+r.Name()) {
			entries++
		}
	}
	if entries != 1 {
		t.Errorf("the history tells %d times of it, want once", entries)
	}
	// A word that comes when a change has been folded in is of the round before, and ends nothing.
	s, _ = failing(t, false, op(model.APIKey("emea", "orders"), orders("/bad")))
	change(t, s, rollout.Order{}, op(model.PrefixPlan+"gold", model.Plan{Name: "gold"}))
	r, _ = current(t, s)
	c := &rollout.Conductor{Catalog: s, Logger: slog.New(slog.DiscardHandler)}
	if err := c.Step(t.Context(), s.Local(), r); err != nil {
		t.Fatal(err)
	}
	if now, under := current(t, s); !under || now.State != model.RolloutRunning {
		t.Errorf("ended by a word of an earlier round: %+v", now)
	}
}

func TestConductor_StopsWhatPeopleDecide(t *testing.T) {
	s, r := failing(t, true, group.Op{Key: model.APIKey("emea", "orders"), Delete: true})
	c := &rollout.Conductor{Catalog: s, Logger: slog.New(slog.DiscardHandler)}
	for range 2 { // and then waits
		if err := c.Step(t.Context(), s.Local(), r); err != nil {
			t.Fatal(err)
		}
		var under bool
		if r, under = current(t, s); !under || r.State != model.RolloutStopped || r.Why != rollout.WhyApproval || r.Edge != "eu-west-1" {
			t.Fatalf("got %+v, want it stopped, with the edge that failed on record", r)
		}
	}
	if _, there := s.Local().Get(model.APIKey("emea", "orders")); there || len(held(s)) != 1 {
		t.Errorf("the API is there: %v, held back %q", there, held(s))
	}
}
