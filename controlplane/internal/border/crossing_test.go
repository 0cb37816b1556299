package border_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Of a catalog that was recovered elsewhere this zone's nodes may keep the copy of before: what crosses zones is closed
// here all the same, once, and not again after a leader that has seen the new epoch.
func TestKeeper_ACatalogLeftBehindClosesWhatCrossesZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		w.abroad("emea", "eu-west", "us-east")
		w.endKeeper()
		ctx, end := context.WithCancel(context.Background())
		done := make(chan struct{})
		k, err := border.New(border.Config{Zone: "emea", Catalog: &distant{w.catalog, w.catalog.Local()}, Store: w.store, Signer: ed25519.NewKeyFromSeed(make([]byte, 32)), Logger: slog.New(slog.DiscardHandler),
			LeftBehind: func() bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		go func() { defer close(done); _ = k.Run(ctx) }()
		w.endKeeper = func() { end(); <-done }
		w.eventually("what crosses zones is closed", func() error { return w.has("eu-west", "us-east", false) })
		if err := w.has("eu-west", "eu-central", true); err != nil {
			t.Error(err)
		}
		if _, ok := w.record("eu-west", "us-east"); !ok {
			t.Error("the closing is no tightening on record")
		}
		kv, _ := w.store.Local().Get(model.KeyAdopted)
		a, err := model.Decode[model.Adopted](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		a.CatalogEpoch += 5 // as another leader, whose node has begun anew, adopts it
		w.put(w.store, model.KeyAdopted, a)
		w.put(w.store, model.KeyCrossing, model.Crossing{CatalogEpoch: a.CatalogEpoch, StoreEpoch: w.store.Local().Revision().Epoch})
		w.eventually("approved under the new epoch, it opens", func() error { return w.has("eu-west", "us-east", true) })
		time.Sleep(500 * time.Millisecond) // two of its looks
		if err := w.has("eu-west", "us-east", true); err != nil {
			t.Errorf("and stays so: %v", err)
		}
	})
}

// A recovery opens an epoch, of the catalog or of the zone's own store, and whatever else it did: pairs that cross
// zones are closed and recorded as such until somebody approves them under that epoch. Pairs inside the zone stay.
func TestKeeper_ARecoveryClosesWhatCrossesZonesUntilApproved(t *testing.T) {
	for _, c := range []struct {
		name  string
		store func(*world) interface {
			group.Store
			OpenEpoch(context.Context) (group.Revision, error)
		}
	}{
		{"of the catalog", func(w *world) interface {
			group.Store
			OpenEpoch(context.Context) (group.Revision, error)
		} {
			return w.catalog
		}},
		{"of the zone's store", func(w *world) interface {
			group.Store
			OpenEpoch(context.Context) (group.Revision, error)
		} {
			return w.store
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := open(t, 30*time.Second, 0)
				w.abroad("emea", "eu-west", "us-east")
				if _, err := c.store(w).OpenEpoch(context.Background()); err != nil {
					t.Fatal(err)
				}
				w.eventually("what crosses zones is closed", func() error { return w.has("eu-west", "us-east", false) })
				if err := w.has("eu-west", "eu-central", true); err != nil {
					t.Error(err)
				}
				if _, ok := w.record("eu-west", "us-east"); !ok {
					t.Error("the closing is no tightening on record")
				}
				w.successor() // a new leader does not take the recovered epoch for the zone's birth
				time.Sleep(300 * time.Millisecond)
				if err := w.has("eu-west", "us-east", false); err != nil {
					t.Fatal(err)
				}
				var a model.Adopted
				w.eventually("the catalog's epoch is adopted", func() error {
					kv, _ := w.store.Local().Get(model.KeyAdopted)
					var err error
					if a, err = model.Decode[model.Adopted](kv.Key, kv.Value); err == nil && a.CatalogEpoch != w.catalog.Local().Revision().Epoch {
						err = context.DeadlineExceeded
					}
					return err
				})
				w.put(w.store, model.KeyCrossing, model.Crossing{CatalogEpoch: a.CatalogEpoch, StoreEpoch: w.store.Local().Revision().Epoch})
				w.eventually("approved, it is open again", func() error { return w.has("eu-west", "us-east", true) })
			})
		})
	}
}

// A store that goes back to before its crossings were first approved tells of a recovery and of no approval: its new epoch
// is no birth, for this leader and the next, and an operator's approval opens it.
func TestKeeper_ARecoveryToBeforeTheBirthIsNoBirth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		w.endKeeper()
		rev, err := w.store.OpenEpoch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.KeyCrossing, Delete: true},
			{Key: model.PrefixRecovery + strconv.FormatUint(rev.Epoch, 10), Value: model.Encode(model.Recovery{Zone: "emea", Operator: "ada", Reason: "the etcd is of yesterday"})}}}); err != nil {
			t.Fatal(err)
		}
		abroad := func() error { return w.has("eu-west", "us-east", true) }
		w.startKeeper()
		w.put(w.catalog, model.PrefixRegion+"us-east", model.Region{Name: "us-east", Zone: "us", Jurisdiction: "US"})
		w.put(w.catalog, model.PrefixBasis+"scc", model.LegalBasis{Name: "scc", Kind: "scc", Status: "active"})
		w.put(w.catalog, model.PrefixPolicy+"abroad", model.Policy{Name: "abroad", Zone: "emea", Pairs: []model.Pair{{From: "eu-west", To: "us-east", Basis: "scc"}}})
		last := w.put(w.catalog, model.PrefixPolicy+"later", model.Policy{Name: "later", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}})
		adopted := func() (a model.Adopted) {
			kv, _ := w.store.Local().Get(model.KeyAdopted)
			if a, err = model.Decode[model.Adopted](kv.Key, kv.Value); err != nil {
				t.Fatal(err)
			}
			return a
		}
		noticed := func() error { // the look that follows what was adopted last has been made
			kv, _ := w.store.Local().Get(model.KeyPermitted)
			p, err := model.Decode[model.Permitted](kv.Key, kv.Value)
			if err != nil {
				return err
			}
			if adopted().CatalogIndex < last || !slices.ContainsFunc(p.Pairs, func(p model.PermittedPair) bool { return p.Policy == "later" }) {
				return errors.New("not yet")
			}
			return nil
		}
		w.eventually("the rules are adopted and looked at", noticed)
		if abroad() == nil {
			t.Fatal("what crosses zones is open after a recovery, and nobody has approved it")
		}
		w.successor()
		w.eventually("it is said that nothing is approved", func() error {
			kv, ok := w.store.Local().Get(model.KeyCrossing)
			if !ok {
				return errors.New("no record")
			}
			c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
			if err == nil && (c.StoreEpoch != 0 || c.CatalogEpoch != 0 || c.Reason == "") {
				t.Fatalf("the record approves: %+v", c)
			}
			return err
		})
		w.put(w.store, model.KeyCrossing, model.Crossing{CatalogEpoch: adopted().CatalogEpoch, StoreEpoch: rev.Epoch})
		w.eventually("approved, it opens", abroad)
	})
}

// A recovery may have lost grants together with the policies that allowed them: until a sender has acknowledged, nobody
// knows what it holds, and no lapse of what the log tells makes a tightening hold.
func TestKeeper_AfterARecoverySendersMustAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 100*time.Millisecond, 0)
		w.endKeeper()
		rev, err := w.store.OpenEpoch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		w.put(w.store, model.PrefixRecovery+strconv.FormatUint(rev.Epoch, 10), model.Recovery{Zone: "emea", Operator: "ada", Reason: "two of three nodes are lost", At: time.Now()})
		w.startKeeper()
		w.eventually("it leads", func() error { _, err := w.keeper.Reports(); return err })
		w.closed()
		w.pendingFor("eu-west", "eu-central", 2*time.Second) // the life of a grant, with slack, is 1.1 s
		w.says("a", w.position())
		w.eventually("the sender has acknowledged", w.done)
	})
}

// What a recovery lost may have opened the pair again: an edge that still holds a table of the lost end, with a higher
// index than the tightening before it, has acknowledged nothing until it holds one of the epoch after.
func TestKeeper_ATableOfTheLostEndAcknowledgesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.ask("a"); err != nil {
			t.Fatal(err)
		}
		w.closed()
		lost := w.position()
		lost.Index += 1000
		w.endKeeper()
		rev, err := w.store.OpenEpoch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		w.put(w.store, model.PrefixRecovery+strconv.FormatUint(rev.Epoch, 10), model.Recovery{Zone: "emea", Operator: "ada", Reason: "two of three nodes are lost", At: time.Now()})
		w.startKeeper()
		w.eventually("it leads", func() error { _, err := w.keeper.Reports(); return err })
		w.says("a", lost)
		w.pendingFor("eu-west", "eu-central", 1500*time.Millisecond)
		w.says("a", w.position())
		w.eventually("acknowledged with a table of this epoch", w.done)
	})
}
