package border_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
)

// hooked is a store in which something happens at a chosen moment.
type hooked struct {
	group.Store
	verify      error
	beforeGrant func()
	grantFails  error
	beforeLook  func() // once, before a look at what is permitted is written
}

func (h *hooked) VerifyLeader(ctx context.Context) error {
	if h.verify != nil {
		return h.verify
	}
	return h.Store.VerifyLeader(ctx)
}

func (h *hooked) Txn(ctx context.Context, txn group.Txn) (group.Result, error) {
	if f := h.beforeGrant; f != nil && strings.HasPrefix(txn.Ops[0].Key, model.PrefixGrant) {
		f()
	}
	if h.grantFails != nil && strings.HasPrefix(txn.Ops[0].Key, model.PrefixGrant) {
		return group.Result{}, h.grantFails
	}
	if f := h.beforeLook; f != nil && txn.Ops[0].Key == model.KeyPermitted {
		h.beforeLook = nil
		f()
	}
	return h.Store.Txn(ctx, txn)
}

// over replaces the world's keeper by one that sees the store through h.
func (w *world) over(h *hooked) {
	w.t.Helper()
	w.endKeeper()
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	k, err := border.New(border.Config{Zone: "emea", Catalog: w.catalog, Store: h, Signer: ed25519.NewKeyFromSeed(make([]byte, 32)), TTL: 30 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.keeper, w.public = k, ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	go func() { defer close(done); _ = k.Run(ctx) }()
	w.endKeeper = func() { end(); <-done }
	w.eventually("it leads", func() error { _, err := k.Reports(); return err })
}

// Invariant 31: a leader that cannot confirm that it still leads hands out nothing, whatever it logged.
func TestKeeper_ADeposedLeaderHandsOutNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil || len(grants) != 1 {
			t.Fatalf("while it leads: grants = %v, %v, want one", grants, err)
		}
		h.verify = errors.New("not the leader any more")
		if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); err == nil {
			t.Errorf("after it was deposed: grants = %v, want an error", grants)
		}
	})
}

// What could not be logged is not granted: the next leader would not know of it.
func TestKeeper_WhatIsNotLoggedIsNotGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		h.grantFails = errors.New("no quorum")
		if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); err == nil || len(grants) != 0 {
			t.Errorf("grants = %v, %v, want an error", grants, err)
		}
	})
}

// A grant counts as given from before it is logged. Otherwise a tightening could come into force between the log and the
// answer, for want of anybody who holds a grant, and the answer would bring one. In virtual time, after what a new leader
// takes for granted has ended.
func TestKeeper_AGrantCountsFromBeforeItIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		time.Sleep(2 * grant.Slack(30*time.Second))
		h.beforeGrant = func() {
			h.beforeGrant = nil
			w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
			w.pendingFor("eu-west", "eu-central", 20*time.Second)
		}
		if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); len(grants) != 0 || err == nil {
			t.Errorf("grants = %v, %v, want none", grants, err)
		}
	})
}

// Two leaders may look at once, one of them deposed and not aware of it. Whoever writes second has looked at what is no
// longer so: it writes nothing, or a tightening would be recorded twice, and a pair that is shut would be open again in
// the look that all tables rest on.
func TestKeeper_ALookIsWrittenOnlyOverTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		h.beforeLook = func() { // the other leader has seen the same closure
			revision := w.store.Local().Revision()
			record := model.InForce{Policy: "gdpr-emea", From: "eu-west", To: "eu-central", Why: "no longer permitted", ZoneEpoch: revision.Epoch, ZoneIndex: revision.Index + 1, CommittedAt: time.Now().UTC()}
			_, err := w.store.Txn(t.Context(), group.Txn{Ops: []group.Op{
				{Key: model.KeyPermitted, Value: model.Encode(model.Permitted{Pairs: []model.PermittedPair{{Policy: "gdpr-emea", From: "eu-central", To: "eu-west", Basis: "gdpr"}}})},
				{Key: model.PrefixInForce + "0/gdpr-emea/eu-west>eu-central", Value: model.Encode(record)},
			}})
			if err != nil {
				t.Error(err)
			}
		}
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.pendingFor("eu-west", "eu-central", 500*time.Millisecond) // two looks more
		if records := w.inForce(); len(records) != 1 {
			t.Errorf("%d records of one tightening, want 1: %+v", len(records), records)
		}
	})
}

// A tightening that is noticed while a grant is on its way into the log wins.
func TestKeeper_AGrantDoesNotSlipPastATightening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		h := &hooked{Store: w.store}
		w.over(h)
		at := w.position()
		h.beforeGrant = func() {
			w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
			w.pendingFor("eu-west", "eu-central", 0)
		}
		if grants, err := w.grant("eu-west-edge", "eu-west", at); len(grants) != 0 || fault.ReasonOf(err) != "RULES_CHANGED" {
			t.Errorf("grants = %v, %v, want RULES_CHANGED", grants, err)
		}
	})
}

// Invariant 9, to the index: only a table at the tightening's own place in the log, or later, is fresh.
func TestKeeper_TheTableBeforeTheTighteningIsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-central", To: "eu-west"})
		w.pendingFor("eu-central", "eu-west", 0)
		kv, _ := w.store.Local().Get(model.KeyPermitted)
		at := w.position()
		for _, c := range []struct {
			index uint64
			want  string
		}{{kv.ModIndex - 1, "STALE_TABLE"}, {kv.ModIndex, ""}} {
			at.Index = c.index
			if _, err := w.grant("eu-west-edge", "eu-west", at); fault.ReasonOf(err) != c.want {
				t.Errorf("at %d, tightened at %d: %v, want %q", c.index, kv.ModIndex, err, c.want)
			}
		}
	})
}

// Invariant 5: an edge whose table went backwards (a cloned or restored disk) has acknowledged nothing: the time
// to cut begins anew with its next word. In virtual time: a leader that kept the first acknowledgement would have its
// record at most two looks (tick) after the time to cut, 400 ms before the time to cut of the second begins to matter.
func TestKeeper_AnEdgeThatWentBackwardsAcknowledgesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
			t.Fatal(err)
		}
		before := w.position()
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.pendingFor("eu-west", "eu-central", 0)
		w.report("eu-west-edge", "eu-west", w.position())
		time.Sleep(grant.Cut - 100*time.Millisecond)
		w.report("eu-west-edge", "eu-west", before)
		w.report("eu-west-edge", "eu-west", w.position())
		w.pendingFor("eu-west", "eu-central", grant.Cut-100*time.Millisecond)
		w.eventually("in force", func() error {
			if r, _ := w.record("eu-west", "eu-central"); r.By != "senders" {
				return fmt.Errorf("%+v, want it by senders", r)
			}
			return nil
		})
	})
}
