package border_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// abroad adds region us-east of zone us, an edge in it, and one explicit pair on a legal basis of its own.
func (w *world) abroad(policyZone, from, to string) {
	w.t.Helper()
	w.put(w.catalog, model.PrefixRegion+"us-east", model.Region{Name: "us-east", Zone: "us", Jurisdiction: "US"})
	w.put(w.catalog, model.PrefixNode+"us-east-edge", model.Node{Name: "us-east-edge", Kind: "edge", Region: "us-east", Zone: "us", RelayAddr: "us-east:1"})
	w.put(w.catalog, model.PrefixBasis+"scc", model.LegalBasis{Name: "scc", Kind: "scc", Status: "active"})
	w.put(w.catalog, model.PrefixPolicy+"abroad", model.Policy{Name: "abroad", Zone: policyZone, Pairs: []model.Pair{{From: from, To: to, Basis: "scc"}}})
	w.eventually("the pair is permitted", func() error { return w.has(from, to, true) })
}

// has says whether the baseline that grants and views rest on has a pair.
func (w *world) has(from, to string, want bool) error {
	kv, _ := w.store.Local().Get(model.KeyPermitted)
	p, err := model.Decode[model.Permitted](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	got := false
	for _, x := range p.Pairs {
		got = got || x.From == from && x.To == to
	}
	if got != want {
		return fmt.Errorf("permitted pairs %v: %s>%s is %t, want %t", p.Pairs, from, to, got, want)
	}
	return nil
}

// successor ends the keeper and starts another over the same log, as a change of leader does.
func (w *world) successor() {
	w.t.Helper()
	w.endKeeper()
	w.startKeeper()
	w.eventually("the successor leads", func() error { _, err := w.keeper.Reports(); return err })
}

func (w *world) record(from, to string) (model.InForce, bool) {
	for _, r := range w.inForce() {
		if r.From == from && r.To == to {
			return r, true
		}
	}
	return model.InForce{}, false
}

func (w *world) pendingFor(from, to string, d time.Duration) {
	w.t.Helper()
	w.eventually("noticed", func() error {
		if _, ok := w.record(from, to); !ok {
			return fmt.Errorf("no record of %s>%s", from, to)
		}
		return nil
	})
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if r, _ := w.record(from, to); !r.At.IsZero() {
			w.t.Fatalf("in force too early: %+v", r)
		}
	}
}

// The zone of the receivers knows nothing of another zone's senders and their grants: that it has none on its
// own books says nothing, only its receivers' acknowledgements do.
func TestKeeper_ForeignSendersAreNotTakenForSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 100*time.Millisecond, 0)
		w.abroad("us", "us-east", "eu-west")
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "us-east", To: "eu-west"})
		w.pendingFor("us-east", "eu-west", 1500*time.Millisecond)
		w.report("eu-west-edge", "eu-west", w.position())
		w.eventually("in force", func() error {
			if r, _ := w.record("us-east", "eu-west"); r.By != "receivers" {
				return fmt.Errorf("%+v, want it by receivers", r)
			}
			return nil
		})
	})
}

// A node that follows the catalog at a distance may not have the receivers in its registry: none known is not
// all acknowledged.
func TestKeeper_NoReceiverKnownIsNotAllAcknowledged(t *testing.T) {
	for _, c := range []struct{ name, edge, from, to string }{
		{"inside the zone", "eu-central-edge", "eu-west", "eu-central"},
		{"into another zone", "us-east-edge", "eu-west", "us-east"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := open(t, 30*time.Second, 0)
				w.abroad("emea", "eu-west", "us-east")
				if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil || len(grants) != 2 {
					t.Fatalf("grants = %v, %v, want two", grants, err)
				}
				if _, err := w.catalog.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.PrefixNode + c.edge, Delete: true}}}); err != nil {
					t.Fatal(err)
				}
				w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: c.from, To: c.to})
				w.pendingFor(c.from, c.to, time.Second)
			})
		})
	}
}

// Explicit pairs into another zone: granted with the foreign edges as peers, for no longer than the ordinary
// lifetime, and in force again by the senders alone.
func TestKeeper_CrossZonePair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 300*time.Millisecond, time.Hour)
		w.abroad("emea", "eu-west", "us-east")
		grants, err := w.grant("eu-west-edge", "eu-west", w.position())
		if err != nil || len(grants) != 2 {
			t.Fatalf("grants = %v, %v, want two", grants, err)
		}
		g := grants[0]
		if g.To != "us-east" {
			g = grants[1]
		}
		if g.To != "us-east" || len(g.Peers) != 1 || g.Peers[0].Edge != "us-east-edge" || g.OfflineTtlMs != g.TtlMs || g.CatalogIndex == 0 {
			t.Errorf("grant = %v, want one to us-east-edge without an offline lifetime", g)
		}
		w.put(w.catalog, model.PrefixBasis+"scc", model.LegalBasis{Name: "scc", Kind: "scc", Status: "suspended"})
		w.eventually("in force", func() error {
			if r, _ := w.record("eu-west", "us-east"); r.By != "senders" {
				return fmt.Errorf("%+v, want it by senders", r)
			}
			return nil
		})
	})
}

// A pair that is opened again before its closing was in force has never been shut everywhere: an edge that
// only saw the later table acknowledges nothing.
func TestKeeper_ReopenedBeforeInForceIsNoInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
			t.Fatal(err)
		}
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.pendingFor("eu-west", "eu-central", 0)
		if _, err := w.store.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.PrefixClosure + "c", Delete: true}}}); err != nil {
			t.Fatal(err)
		}
		w.eventually("open again", func() error { return w.has("eu-west", "eu-central", true) })
		w.report("eu-west-edge", "eu-west", w.position())
		w.report("eu-central-edge", "eu-central", w.position())
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if r, ok := w.record("eu-west", "eu-central"); ok && !r.At.IsZero() {
				t.Fatalf("recorded as in force although the pair is open: %+v", r)
			}
		}
	})
}

// Other writes may lie between the look at the rules and the record: an acknowledgement of those is none.
func TestKeeper_AckBeforeTheRecordIsNoAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, time.Hour)
		if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
			t.Fatal(err)
		}
		// As if written by a leader that looked long before: ZoneIndex far below the record's own place in the log.
		placed := w.put(w.store, model.PrefixInForce+"00000000000000000001/gdpr-emea/eu-west>eu-central",
			model.InForce{Policy: "gdpr-emea", From: "eu-west", To: "eu-central", ZoneEpoch: w.position().Epoch, ZoneIndex: 1, CommittedAt: time.Now()})
		at := w.position()
		at.Index = placed - 1 // the keeper may have written since
		w.report("eu-west-edge", "eu-west", at)
		w.report("eu-central-edge", "eu-central", at)
		w.pendingFor("eu-west", "eu-central", 1500*time.Millisecond)
	})
}

// A pair that carries other classes of data does not carry requests.
func TestPermitted_ClassesWithoutRequestsCarryNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		w.put(w.catalog, model.PrefixPolicy+"gdpr-emea", model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr", Classes: []string{"metrics"}}})
		w.eventually("not permitted", func() error { return w.has("eu-west", "eu-central", false) })
		if pairs, err := border.Permitted(w.store.Local(), "emea", time.Now()); err != nil || len(pairs) != 0 {
			t.Errorf("permitted = %v, %v, want none: class metrics only", pairs, err)
		}
	})
}

// What an edge may still hold must not be forgotten with the record of its next, shorter grant: the answer
// that brought it may be lost, and then a new leader would take the longer one for ended.
func TestKeeper_NewLeaderKnowsTheLongerGrantBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, time.Hour)
		if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
			t.Fatal(err)
		}
		none := time.Duration(0)
		w.put(w.catalog, model.PrefixPolicy+"gdpr-emea", model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, OfflineGrant: &none})
		w.eventually("a grant without offline lifetime", func() error {
			grants, err := w.grant("eu-west-edge", "eu-west", w.position())
			if err == nil && (len(grants) != 1 || grants[0].OfflineTtlMs != grants[0].TtlMs) {
				err = fmt.Errorf("%v", grants)
			}
			return err
		})
		w.successor()
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.pendingFor("eu-west", "eu-central", 2500*time.Millisecond)
	})
}

// A recovery of the catalog opens an epoch in which the rules may read the same: they are adopted anew, or
// no grant would ever be of that epoch.
func TestKeeper_AdoptsANewEpochOfTheSameRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		r, err := w.catalog.OpenEpoch(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		w.eventually("a grant of the new epoch", func() error {
			grants, err := w.grant("eu-west-edge", "eu-west", w.position())
			if err == nil && (len(grants) != 1 || grants[0].CatalogEpoch != r.Epoch) {
				err = fmt.Errorf("%v, want catalog epoch %d", grants, r.Epoch)
			}
			return err
		})
	})
}

// A leader that follows the catalog at a distance cannot say that an edge is withdrawn which has seen more.
func TestKeeper_ALaggingCatalogWithdrawsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 30*time.Second, 0)
		c := w.catalog.Local().Revision()
		for _, x := range []struct {
			name   string
			at     *syncv1.Position
			reason string
		}{
			{"the edge has seen more", &syncv1.Position{Epoch: c.Epoch, Index: c.Index + 1}, "CATALOG_BEHIND"},
			{"the edge has seen as much", &syncv1.Position{Epoch: c.Epoch, Index: c.Index}, "WITHDRAWN"},
			{"the edge says nothing", nil, "WITHDRAWN"},
		} {
			_, err := w.keeper.Grant(context.Background(), "new-edge", "eu-west", &syncv1.RequestGrantsRequest{Zone: w.position(), Catalog: x.at})
			if fault.ReasonOf(err) != x.reason {
				t.Errorf("%s: reason %q, want %s", x.name, fault.ReasonOf(err), x.reason)
			}
		}
	})
}

// Rules of the catalog that do not compile are not adopted, and hold up nothing that the zone decides alone.
func TestKeeper_UnreadableCatalogHoldsUpNoClosure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, 0)
		w.put(w.catalog, model.PrefixPolicy+"broken", model.Policy{Name: "broken", Zone: "emea", Pairs: []model.Pair{{From: "eu-west", To: "nowhere", Basis: "gdpr"}}})
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.eventually("in force", func() error {
			if r, _ := w.record("eu-west", "eu-central"); r.At.IsZero() {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	})
}

// A foreign region that leaves the catalog with its edges and policy was still foreign.
func TestKeeper_AForeignRegionThatIsGoneWasForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 100*time.Millisecond, 0)
		w.abroad("us", "us-east", "eu-west")
		if _, err := w.catalog.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.PrefixPolicy + "abroad", Delete: true},
			{Key: model.PrefixRegion + "us-east", Delete: true}, {Key: model.PrefixNode + "us-east-edge", Delete: true}}}); err != nil {
			t.Fatal(err)
		}
		w.pendingFor("us-east", "eu-west", 500*time.Millisecond)
		w.report("eu-west-edge", "eu-west", w.position())
		w.eventually("in force", func() error {
			if r, _ := w.record("us-east", "eu-west"); r.By != "receivers" {
				return fmt.Errorf("%+v, want it by receivers", r)
			}
			return nil
		})
	})
}
