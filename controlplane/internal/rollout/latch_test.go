package rollout_test

import (
	"log/slog"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
)

// What was found bad stays so for the round: the catalog may take no word for as long as the soak lasts, and by then the same
// numbers are no news any more.
func TestJudge_ABadRoundStaysBad(t *testing.T) {
	r := model.Rollout{Number: 1, Round: 1, State: model.RolloutRunning, Zones: []model.RolloutZone{{Zone: "z", Canary: "a"}}}
	at := func(o rollout.Outcome) []rollout.Report {
		o.API = "orders"
		return []rollout.Report{{Edge: "a", Region: "r", Connected: true, Ready: true, Holds: true, Judged: true, Outcomes: []rollout.Outcome{o}}}
	}
	j := &rollout.Judge{Zone: "z", Soak: soak}
	j.Look(r, at(rollout.Outcome{}), 0)
	found := j.Look(r, at(rollout.Outcome{Requests: 100, Failed: 50, BeforeRequests: 1000}), time.Second)
	if found.Verdict != rollout.Bad {
		t.Fatalf("half of the requests fail: %+v", found)
	}
	for i := range 5 { // the word is not spoken: nobody takes it
		w := j.Look(r, at(rollout.Outcome{Requests: 101, Failed: 50, BeforeRequests: 1000}), time.Duration(i+1)*time.Hour)
		if w.Verdict != rollout.Bad || w.Why != found.Why || w.Edge != found.Edge || w.API != found.API {
			t.Fatalf("later, with nothing new: %+v, was %+v", w, found)
		}
	}
	r.Round++
	if w := j.Look(r, at(rollout.Outcome{}), 6*time.Hour); w.Verdict == rollout.Bad {
		t.Errorf("in the next round: %+v", w)
	}
}

// A leader of a zone that has just begun knows nothing of what the one before it found, and says nothing in its place.
func TestWatch_ABadWordIsNotTakenBackByTheNextLeader(t *testing.T) {
	s, r := failing(t, false, op(model.APIKey("emea", "orders"), orders("/bad")))
	w := &rollout.Watch{Zone: "emea", Catalog: s, Soak: soak, Logger: slog.New(slog.DiscardHandler), Reports: func() ([]rollout.EdgeReport, error) {
		return []rollout.EdgeReport{{Report: rollout.Report{Edge: "eu-west-1", Region: "eu-west", Connected: true, Ready: true}, Newest: true, Epoch: s.Local().Revision().Epoch, Index: 1 << 40}}, nil
	}}
	word := func() model.RolloutWord {
		kv, _ := s.Local().Get(model.PrefixWord + "emea")
		v, err := model.Decode[model.RolloutWord](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	was := word()
	next := &rollout.Judge{Zone: "emea", Soak: soak}
	for i := range 3 {
		if err := w.Look(t.Context(), next, s.Local(), r, time.Duration(i)*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if now := word(); now != was {
		t.Errorf("the word is %+v, and was %+v", now, was)
	}
	// Of another round it is what it always was: replaced.
	r.Round++
	if err := w.Look(t.Context(), next, s.Local(), r, 4*time.Hour); err != nil {
		t.Fatal(err)
	}
	if now := word(); now.Verdict == rollout.Bad || now.Round != r.Round {
		t.Errorf("in the next round the word is %+v", now)
	}
}
