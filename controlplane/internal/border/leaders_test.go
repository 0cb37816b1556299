package border_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// What is closed may have been granted before: a new leader reckons with the rules as they were without closures, also
// for an edge of which the log says nothing.
func TestKeeper_ANewLeaderReckonsWithWhatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, time.Hour)
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.pendingFor("eu-west", "eu-central", 0)
		w.successor()
		w.pendingFor("eu-west", "eu-central", 2*time.Second)
	})
}

// distant is a store whose node follows it at a distance.
type distant struct {
	group.Store
	at group.Snapshot
}

func (d *distant) Local() group.Snapshot { return d.at }

// A new leader that has less of the catalog than the zone has adopted keeps what the zone has.
func TestKeeper_NeverAdoptsBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		before := w.catalog.Local()
		w.put(w.catalog, model.PrefixBasis+"gdpr", model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: "suspended"})
		w.eventually("the suspension is adopted", func() error { return w.has("eu-west", "eu-central", false) })
		w.endKeeper()
		ctx, end := context.WithCancel(context.Background())
		done := make(chan struct{})
		k, err := border.New(border.Config{Zone: "emea", Catalog: &distant{w.catalog, before}, Store: w.store, Signer: ed25519.NewKeyFromSeed(make([]byte, 32)), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { defer close(done); _ = k.Run(ctx) }()
		w.endKeeper = func() { end(); <-done }
		w.eventually("it leads", func() error { _, err := k.Reports(); return err })
		time.Sleep(500 * time.Millisecond) // two of its looks
		if err := w.has("eu-west", "eu-central", false); err != nil {
			t.Errorf("after a leader with an older catalog: %v", err)
		}
	})
}

// overtaken is a store in which another leader is faster, once.
type overtaken struct {
	group.Store
	by func()
}

func (o *overtaken) Txn(ctx context.Context, txn group.Txn) (group.Result, error) {
	if f := o.by; f != nil && strings.HasPrefix(txn.Ops[0].Key, model.PrefixInForce) {
		o.by = nil
		f()
	}
	return o.Store.Txn(ctx, txn)
}

// A leader that finds a tightening in force, and does not know yet that another one has taken it back since, records
// nothing.
func TestKeeper_WhatWasTakenBackMeanwhileIsNotInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, 0)
		w.endKeeper()
		back := make(chan string, 1)
		o := &overtaken{Store: w.store}
		o.by = func() {
			for kv := range w.store.Local().List(model.PrefixInForce) {
				if _, err := w.store.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: kv.Key, Delete: true}}}); err == nil {
					back <- kv.Key
				}
			}
		}
		ctx, end := context.WithCancel(context.Background())
		done := make(chan struct{})
		k, err := border.New(border.Config{Zone: "emea", Catalog: w.catalog, Store: o, Signer: ed25519.NewKeyFromSeed(make([]byte, 32)), TTL: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { defer close(done); _ = k.Run(ctx) }()
		w.endKeeper = func() { end(); <-done }
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		var key string
		select {
		case key = <-back:
		case <-time.After(10 * time.Second):
			t.Fatal("the tightening was never about to be in force")
		}
		at := w.store.Local().Revision().Index
		w.put(w.store, "unrelated", "x") // a later place in the log: the overtaken transaction lies before it or fails
		w.eventually("the look after it", func() error {
			if w.store.Local().Revision().Index <= at {
				return errors.New("not yet")
			}
			return nil
		})
		time.Sleep(300 * time.Millisecond)
		if kv, ok := w.store.Local().Get(key); ok {
			t.Errorf("%s is recorded all the same: %s", key, kv.Value)
		}
	})
}
