package border_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// ask is a question for grants of one run of eu-west's edge.
func (w *world) ask(incarnation string, dead ...string) (*syncv1.RequestGrantsResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return w.keeper.Grant(ctx, "eu-west-edge", "eu-west", &syncv1.RequestGrantsRequest{Zone: w.position(), Incarnation: incarnation, Dead: dead})
}

// says is the word of a run of eu-west's edge, at whatever position it holds.
func (w *world) says(incarnation string, at *syncv1.Position, dead ...string) {
	w.t.Helper()
	if err := w.keeper.Report([]*peerv1.EdgeReport{{Edge: "eu-west-edge", Region: "eu-west", Control: "n" + incarnation, Connected: true, Zone: at,
		Incarnation: incarnation, Dead: dead, LastSeen: timestamppb.Now()}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) closed() {
	w.t.Helper()
	w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
	w.pendingFor("eu-west", "eu-central", 0)
}

func (w *world) done() error {
	if r, _ := w.record("eu-west", "eu-central"); r.At.IsZero() {
		return errors.New("pending")
	}
	return nil
}

// Invariant 6, with a clone: the acknowledgement of the one does not stand for the other, which may be cut off; and a
// new leader knows of both.
func TestKeeper_TwoRunsOfAnEdgeAreTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, time.Second, 0)
		for _, run := range []string{"0a", "0b"} {
			if r, err := w.ask(run); err != nil || len(r.Grants) != 1 || r.TakesMs != 1000 {
				t.Fatalf("run %s: %v, %v, want a grant and leave for a second", run, r, err)
			}
		}
		kv, _ := w.store.Local().Get(model.PrefixGrant + "eu-west-edge")
		record, err := model.Decode[model.GrantRecord](kv.Key, kv.Value)
		if err != nil || record.Incarnation != "0b" || record.TakesMS != 1000 || record.Others["0a"]["eu-central"] == 0 || record.Others["0a"]["eu-west"] == 0 {
			t.Errorf("the record in the log is %+v, %v; want 0b's grants, and what 0a holds", record, err)
		}
		began := time.Now() // before the term
		w.successor()
		w.closed()
		w.says("0b", w.position())
		w.pendingFor("eu-west", "eu-central", 1500*time.Millisecond)
		w.eventually("in force when 0a's grant has ended", w.done)
		if d := time.Since(began); d < 2*time.Second {
			t.Errorf("in force after %v, with 0a silent; its grant of a second ends 2.02 s after the term began", d)
		}
	})
}

// A restart does not make a tightening wait for the run before.
func TestKeeper_ARestartEndsTheRunBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.ask("0a"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ask("0b", "0a"); err != nil {
			t.Fatal(err)
		}
		w.closed()
		w.says("0b", w.position(), "0a")
		w.eventually("in force", w.done)
	})
}

func TestKeeper_ASecondMachineGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		w.says("0a", w.position())
		if _, err := w.ask("0a"); err != nil {
			t.Fatal(err)
		}
		if r, err := w.ask("0b"); fault.ReasonOf(err) != "TWIN" {
			t.Errorf("a second machine while the first speaks: %v, %v, want TWIN", r, err)
		}
		if _, err := w.ask("0a"); err != nil {
			t.Errorf("the first machine: %v, want its grants", err)
		}
		if _, err := w.ask("0b", "0a"); err != nil {
			t.Errorf("a restart on the first machine: %v, want its grants", err)
		}
		for _, run := range []string{"*", "not hex"} {
			if _, err := w.ask(run); fault.ReasonOf(err) != "INCARNATION_MALFORMED" {
				t.Errorf("run %q: %v, want INCARNATION_MALFORMED", run, err)
			}
		}
	})
}

// Two questions at once must not write over each other's record: a new leader would know of one alone.
func TestKeeper_RecordsOfTwoRunsDoNotCross(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		if _, err := w.ask("0a"); err != nil {
			t.Fatal(err)
		}
		h.beforeGrant = func() {
			if _, err := w.store.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.PrefixGrant + "eu-west-edge", Value: model.Encode(model.GrantRecord{Edge: "eu-west-edge", Region: "eu-west", Incarnation: "0b"})}}}); err != nil {
				t.Error(err)
			}
		}
		if r, err := w.ask("0a"); fault.ReasonOf(err) != "RULES_CHANGED" {
			t.Errorf("a grant over another run's newer record: %v, %v, want RULES_CHANGED", r, err)
		}
	})
}

// A run that has ended is buried also by a question that gets nothing: the last pair may be the one that is being closed, and the edge
// says so once.
func TestKeeper_WhoGetsNothingNamesTheDeadAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.ask("0a"); err != nil {
			t.Fatal(err)
		}
		w.put(w.store, model.PrefixClosure+"d", model.Closure{Name: "d", Zone: "emea", From: "eu-central", To: "eu-west"})
		w.pendingFor("eu-central", "eu-west", 0)
		w.closed()
		w.says("0b", w.position())
		if r, err := w.ask("0b"); err != nil || len(r.Grants) != 0 || r.TakesMs != 0 {
			t.Fatalf("the edge gets %v, %v; want nothing", r, err)
		}
		w.pendingFor("eu-west", "eu-central", 3*time.Second)
		if r, err := w.ask("0b", "0a"); err != nil || len(r.Grants) != 0 || r.TakesMs != 0 {
			t.Fatalf("the edge gets %v, %v; want nothing", r, err)
		}
		w.eventually("in force", w.done)
	})
}
