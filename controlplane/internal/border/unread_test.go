package border_test

import (
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// A record that a newer release wrote may tell of lifetimes that this one does not know: a leader that cannot read it
// does not take the edge for one that holds nothing.
func TestKeeper_AnUnreadRecordOfGrantsIsTheWorst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, 0)
		w.endKeeper()
		w.put(w.store, model.PrefixGrant+"eu-west-edge", json.RawMessage(`{"edge":"eu-west-edge","region":"eu-west","later":1}`))
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.startKeeper()
		w.pendingFor("eu-west", "eu-central", 2*time.Second) // 1.2 s after the start a grant of 200 ms has ended for certain
		w.report("eu-west-edge", "eu-west", w.position())
		w.eventually("its acknowledgement counts all the same", w.done)
	})
}

// A node that does not read may be a receiver that nobody waits for.
func TestKeeper_AnUnreadRegistryHoldsEverythingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, 0)
		w.put(w.catalog, model.PrefixNode+"eu-central-new", json.RawMessage(`{"name":"eu-central-new","kind":"edge","region":"eu-central","zone":"emea","later":1}`))
		if _, err := w.grant("eu-west-edge", "eu-west", w.position()); fault.ReasonOf(err) != "RECORD_MALFORMED" {
			t.Errorf("granted beside a node that does not read: %v", err)
		}
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.report("eu-central-edge", "eu-central", w.position())
		w.pendingFor("eu-west", "eu-central", 1500*time.Millisecond)
		w.endKeeper()
		w.startKeeper()
		if _, err := w.keeper.Reports(); fault.ReasonOf(err) != "NOT_LEADER" {
			t.Errorf("a new leader keeps the border without knowing its edges: %v", err)
		}
		w.put(w.catalog, model.PrefixNode+"eu-central-new", model.Node{Name: "eu-central-new", Kind: "edge", Region: "eu-central", Zone: "emea"})
		w.eventually("it does when they read", func() error { _, err := w.keeper.Reports(); return err })
		w.eventually("and in force", func() error {
			w.report("eu-west-edge", "eu-west", w.position())
			if r, _ := w.record("eu-west", "eu-central"); r.At.IsZero() {
				return errors.New("pending")
			}
			return nil
		})
	})
}
