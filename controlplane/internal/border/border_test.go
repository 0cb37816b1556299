package border_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/proto"
)

type world struct {
	t              *testing.T
	catalog, store *raftgroup.Store
	keeper         *border.Keeper
	public         ed25519.PublicKey
	stop           func()

	startKeeper, endKeeper func()
}

// open runs a keeper over real one-node groups with two regions, eu-west and eu-central, an edge in each.
func open(t *testing.T, ttl time.Duration, offline time.Duration) *world {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{t: t}
	var wg sync.WaitGroup
	store := func(name string) *raftgroup.Store {
		s, err := raftgroup.NewStore(raftgroup.Config{Group: name, Node: "n1", Dir: t.TempDir(), Voters: []string{"n1"}, Timing: raftgroup.Local(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = s.Run(ctx) })
		return s
	}
	w.catalog, w.store = store("catalog"), store("store/emea")
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.public = public
	w.startKeeper = func() {
		kctx, end := context.WithCancel(ctx)
		done := make(chan struct{})
		w.keeper, err = border.New(border.Config{Zone: "emea", Catalog: w.catalog, Store: w.store, Signer: private, TTL: ttl, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { defer close(done); _ = w.keeper.Run(kctx) }()
		w.endKeeper = func() { end(); <-done }
	}
	w.put(w.catalog, model.PrefixRegion+"eu-west", model.Region{Name: "eu-west", Zone: "emea", Jurisdiction: "EEA"})
	w.put(w.catalog, model.PrefixRegion+"eu-central", model.Region{Name: "eu-central", Zone: "emea", Jurisdiction: "EEA"})
	w.put(w.catalog, model.PrefixBasis+"gdpr", model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: "active"})
	w.put(w.catalog, model.PrefixPolicy+"gdpr-emea", model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, OfflineGrant: &offline})
	for _, r := range []string{"eu-west", "eu-central"} {
		w.put(w.catalog, model.PrefixNode+r+"-edge", model.Node{Name: r + "-edge", Kind: "edge", Region: r, Zone: "emea", RelayAddr: r + ":1"})
	}
	w.startKeeper()
	w.stop = func() { w.endKeeper(); cancel(); wg.Wait() }
	t.Cleanup(w.stop)
	w.eventually("rules adopted", func() error {
		if _, ok := w.store.Local().Get(model.KeyPermitted); !ok {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	return w
}

func (w *world) put(s group.Store, key string, v any) uint64 {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := s.Txn(ctx, group.Txn{Ops: []group.Op{{Key: key, Value: model.Encode(v)}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Revision.Index
}

func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) position() *syncv1.Position {
	r := w.store.Local().Revision()
	return &syncv1.Position{Epoch: r.Epoch, Index: r.Index}
}

func (w *world) grant(edge, region string, at *syncv1.Position) ([]*syncv1.Grant, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	response, err := w.keeper.Grant(ctx, edge, region, &syncv1.RequestGrantsRequest{Zone: at})
	if err != nil {
		return nil, err
	}
	var out []*syncv1.Grant
	for _, s := range response.Grants {
		if !ed25519.Verify(w.public, append([]byte("bailiwick-grant/1\n"), s.Payload...), s.Signature) {
			w.t.Errorf("grant for %s is not signed by the zone", edge)
		}
		g := &syncv1.Grant{}
		if err := proto.Unmarshal(s.Payload, g); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, g)
	}
	return out, nil
}

// report tells the keeper that an edge is connected and holds the store's current position.
func (w *world) report(edge, region string, at *syncv1.Position) {
	w.t.Helper()
	if err := w.keeper.Report([]*peerv1.EdgeReport{{Edge: edge, Region: region, Control: "n1", Connected: true, Zone: at}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) inForce() (records []model.InForce) {
	for kv := range w.store.Local().List(model.PrefixInForce) {
		r, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			w.t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

func TestKeeper_GrantsOnlyWhatIsPermitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 2*time.Second, time.Hour)
		grants, err := w.grant("eu-west-edge", "eu-west", w.position())
		if err != nil || len(grants) != 1 {
			t.Fatalf("grants = %v, %v, want one", grants, err)
		}
		g := grants[0]
		if g.From != "eu-west" || g.To != "eu-central" || g.Edge != "eu-west-edge" || len(g.Policies) != 1 || g.Policies[0] != "gdpr-emea" {
			t.Errorf("grant = %v", g)
		}
		if g.TtlMs != 2000 || g.OfflineTtlMs != 3600_000 || len(g.Peers) != 1 || g.Peers[0].RelayAddr != "eu-central:1" {
			t.Errorf("grant = %v, want ttl 2000, offline an hour, the pair's edge as peer", g)
		}
		if _, ok := w.store.Local().Get(model.PrefixGrant + "eu-west-edge"); !ok {
			t.Error("the grant is not in the zone's log")
		}
		for _, c := range []struct{ name, edge, region, reason string }{
			{"unknown edge", "eve", "eu-west", "WITHDRAWN"},
			{"an edge that claims another region", "eu-west-edge", "eu-central", "WITHDRAWN"},
		} {
			if _, err := w.grant(c.edge, c.region, w.position()); fault.ReasonOf(err) != c.reason {
				t.Errorf("%s: reason %q, want %s", c.name, fault.ReasonOf(err), c.reason)
			}
		}
		// A stale edge gets nothing but policy.
		old := w.position()
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-central", To: "eu-west"})
		w.eventually("the tightening is noticed", func() error {
			if len(w.inForce()) != 1 {
				return fmt.Errorf("%d records", len(w.inForce()))
			}
			return nil
		})
		if _, err := w.grant("eu-west-edge", "eu-west", old); fault.ReasonOf(err) != "STALE_TABLE" {
			t.Errorf("an edge at %v: reason %q, want STALE_TABLE", old, fault.ReasonOf(err))
		}
		if grants, err := w.grant("eu-central-edge", "eu-central", w.position()); err != nil || len(grants) != 0 {
			t.Errorf("grants over the closed pair = %v, %v, want none", grants, err)
		}
		if grants, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil || len(grants) != 1 {
			t.Errorf("grants over the other direction = %v, %v, want one", grants, err)
		}
	})
}

// Invariant 6: a tightening is in force only when each sender has acknowledged or its grant has ended, or
// each receiver has acknowledged; and never before the time to cut has passed.
func TestKeeper_InForceBarrier(t *testing.T) {
	close := func(w *world) time.Time {
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.eventually("noticed", func() error {
			if len(w.inForce()) == 0 {
				return fmt.Errorf("no record")
			}
			return nil
		})
		return time.Now()
	}
	pending := func(w *world, forAtLeast time.Duration) {
		w.t.Helper()
		for end := time.Now().Add(forAtLeast); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if r := w.inForce(); len(r) != 1 || !r[0].At.IsZero() {
				w.t.Fatalf("in force too early: %+v", r)
			}
		}
	}
	done := func(w *world, by string) model.InForce {
		w.t.Helper()
		w.eventually("in force", func() error {
			if r := w.inForce(); r[0].At.IsZero() {
				return fmt.Errorf("still pending")
			}
			return nil
		})
		r := w.inForce()[0]
		if r.By != by || !border.VerifyInForce(w.public, r) {
			w.t.Errorf("record = %+v, want by %s and signed", r, by)
		}
		altered := r
		altered.To = "us-east"
		if border.VerifyInForce(w.public, altered) {
			w.t.Error("an altered record verifies")
		}
		return r
	}

	t.Run("nobody acknowledges and offline grants last: it stays pending", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := open(t, 200*time.Millisecond, time.Hour)
			if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
				t.Fatal(err)
			}
			close(w)
			pending(w, 2*time.Second)
		})
	})
	t.Run("senders acknowledge", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := open(t, 30*time.Second, time.Hour)
			if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
				t.Fatal(err)
			}
			before := w.position()
			close(w)
			w.report("eu-west-edge", "eu-west", before) // an ack of the old table is no ack
			pending(w, 500*time.Millisecond)
			at := time.Now()
			w.report("eu-west-edge", "eu-west", w.position())
			if r := done(w, "senders"); r.At.Sub(at) < 900*time.Millisecond {
				t.Errorf("in force %s after the ack, want the time to cut to pass first", r.At.Sub(at))
			}
		})
	})
	t.Run("receivers acknowledge while the sender is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := open(t, 30*time.Second, time.Hour)
			close(w)
			w.report("eu-central-edge", "eu-central", w.position())
			done(w, "receivers")
		})
	})
	t.Run("the sender's grant ends, with the leader's slack", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := open(t, 300*time.Millisecond, 0)
			granted := time.Now()
			if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
				t.Fatal(err)
			}
			close(w)
			if r := done(w, "senders"); r.At.Sub(granted) < 1200*time.Millisecond {
				t.Errorf("in force %s after the grant, want at least its 300 ms plus 1 s and 2 %%", r.At.Sub(granted))
			}
		})
	})
	t.Run("an edge that left the registry still counts until its grant ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := open(t, 30*time.Second, time.Hour)
			if _, err := w.grant("eu-west-edge", "eu-west", w.position()); err != nil {
				t.Fatal(err)
			}
			if _, err := w.catalog.Txn(context.Background(), group.Txn{Ops: []group.Op{{Key: model.PrefixNode + "eu-west-edge", Delete: true}}}); err != nil {
				t.Fatal(err)
			}
			close(w)
			pending(w, 1500*time.Millisecond)
		})
	})
}

// A new leader assumes that every edge holds a full grant from the moment it was elected.
func TestKeeper_NewLeaderAssumesGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 4 * time.Second // much longer than the second of slack and a slow machine together
		started := time.Now()       // before the term
		w := open(t, ttl, 0)
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
		w.eventually("in force", func() error {
			if r := w.inForce(); len(r) == 0 || r[0].At.IsZero() {
				return fmt.Errorf("pending")
			}
			return nil
		})
		// No grant was ever given in this term, yet the keeper waited for the one an earlier leader may have given.
		if waited := time.Since(started); waited < ttl {
			t.Errorf("in force after %s, want at least the %s a former leader may have granted", waited, ttl)
		}
	})
}

func TestKeeper_AdoptsTighteningOfTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 200*time.Millisecond, 0)
		w.put(w.catalog, model.PrefixBasis+"gdpr", model.LegalBasis{Name: "gdpr", Kind: "same-law", Status: "suspended"})
		w.eventually("both pairs closed", func() error {
			pairs, err := border.Permitted(w.store.Local(), "emea", time.Now())
			if err != nil || len(pairs) != 0 {
				return fmt.Errorf("%v, %v", pairs, err)
			}
			if n := len(w.inForce()); n != 2 {
				return fmt.Errorf("%d in-force records, want 2", n)
			}
			return nil
		})
	})
}
