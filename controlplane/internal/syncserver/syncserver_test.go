package syncserver_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/syncserver"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

func TestSubscribe_SnapshotThenDeltas(t *testing.T) {
	w := newWorld(t, nil)
	w.key("k1", "active")
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	if s, d := e.counts(); s != 1 || d != 0 || !e.has(table.KindKey, "k1") || !e.has(table.KindAPI, "orders") {
		t.Fatalf("got %d snapshots, %d deltas", s, d)
	}
	w.key("k2", "active")
	eventually(t, "the new key", func() bool { return e.has(table.KindKey, "k2") })
	w.key("k1", "revoked")
	eventually(t, "the revocation", func() bool { return !e.has(table.KindKey, "k1") })
	w.zone.put("closures/x", model.Closure{Name: "x", Zone: "emea", From: "eu-west"})
	eventually(t, "the closure", func() bool { return !e.has(table.KindPair, "gdpr/eu-west>eu-central") })
	if !e.has(table.KindPair, "gdpr/eu-central>eu-west") {
		t.Error("the other direction is gone too")
	}
	w.catalog.put("apis/orders", nil)
	eventually(t, "the removed API", func() bool { return !e.has(table.KindAPI, "orders") })
	w.zone.put("grants/w1", model.GrantRecord{Edge: "w1"})
	eventually(t, "a revision that changes no object", e.at)
	if s, _ := e.counts(); s != 1 {
		t.Errorf("got %d snapshots, want 1", s)
	}
	eventually(t, "the ack", func() bool {
		r := w.server.Reports()
		return len(r) == 1 && r[0].Connected && r[0].Zone.Index == r[0].ZoneWant.Index && string(r[0].Zone.Sum) == string(r[0].ZoneWant.Sum) && r[0].Version == "test"
	})
	if _, z, ok := w.server.Acked("w1"); !ok || z.Index != w.zone.Local().Revision().Index {
		t.Errorf("acked: got %v %v", z, ok)
	}
}

func TestSubscribe_ReturningEdgeGetsTheDifference(t *testing.T) {
	w := newWorld(t, nil)
	w.key("k1", "active")
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	e.disconnect()
	e.connect()
	eventually(t, "the second stream", func() bool { return w.server.Stats().Accepted.Load() == 2 })
	e.disconnect()
	for i := range 20 {
		w.key(fmt.Sprintf("n%02d", i), "active")
	}
	w.key("k1", "revoked")
	w.catalog.put("plans/gold", model.Plan{Name: "gold"})
	e.connect()
	eventually(t, "all changes", e.at)
	if s, d := e.counts(); s != 1 || d != 1 || e.has(table.KindKey, "k1") || !e.has(table.KindPlan, "gold") {
		t.Errorf("got %d snapshots, %d deltas, want 1 and 1", s, d)
	}
	eventually(t, "the old stream's end", func() bool { return w.server.Stats().Streams.Load() == 1 })

	// Another node that has never seen the edge: equal sums need nothing but positions, others a snapshot.
	other := newWorld(t, func(c *syncserver.Config) { c.Catalog, c.Zone = w.catalog, w.zone })
	f := other.edge("w1")
	f.objects, f.catalog, f.zone = e.objects, e.catalog, e.zone
	f.connect()
	eventually(t, "the stream", func() bool { return other.server.Stats().Accepted.Load() == 1 })
	other.key("x", "active") // not of this zone's store: nothing follows
	w.key("k9", "active")
	eventually(t, "the key", func() bool { return f.has(table.KindKey, "k9") })
	if s, d := f.counts(); s != 0 || d == 0 {
		t.Errorf("equal sums: got %d snapshots %d deltas, want deltas only", s, d)
	}
}

func TestSubscribe_BigSnapshotComesInParts(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) { c.PartBytes = 4096 })
	for i := range 200 {
		w.key(fmt.Sprintf("k%03d", i), "active")
	}
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	if s, d := e.counts(); s != 1 || d != 0 || !e.has(table.KindKey, "k199") {
		t.Errorf("got %d snapshots, %d deltas", s, d)
	}
}

func TestSubscribe_LostDeltaIsNoticedAndHealed(t *testing.T) {
	var drop atomic.Bool
	w := newWorld(t, func(c *syncserver.Config) { c.DropDelta = func() bool { return drop.Swap(false) } })
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	drop.Store(true)
	w.key("k1", "active")
	eventually(t, "the healing", func() bool { return e.has(table.KindKey, "k1") })
	if s, _ := e.counts(); s != 2 || w.server.Stats().Dropped.Load() != 1 || w.server.Stats().Nacks.Load() != 1 {
		t.Errorf("got %d snapshots, %d dropped, %d nacks, want 2, 1, 1", s, w.server.Stats().Dropped.Load(), w.server.Stats().Nacks.Load())
	}
	eventually(t, "a report without a refusal", func() bool { return w.server.Reports()[0].NackReason == "" })
}

func TestSubscribe_WithdrawnEdgeIsOffWithinASecond(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	f := w.edge("w2").connect()
	eventually(t, "both snapshots", func() bool { return e.at() && f.at() })
	begin := time.Now()
	w.catalog.put("nodes/w1", nil)
	e.err()
	if took := e.withdrawn.Sub(begin); e.withdrawn.IsZero() || took > 8*time.Second || time.Since(begin) > 8*time.Second { // as below
		t.Errorf("withdrawn after %v, stream ended after %v, want both within 1 s", took, time.Since(begin))
	}
	e.withdrawn = time.Time{}
	e.connect()
	if e.err(); e.withdrawn.IsZero() {
		t.Error("a withdrawn edge that comes back is not told so")
	}
	if _, err := w.client(e.peer).RequestGrants(t.Context(), &syncv1.RequestGrantsRequest{}); fault.ReasonOf(err) != "EDGE_WITHDRAWN" {
		t.Errorf("grants: got %v, want EDGE_WITHDRAWN", err)
	}
	w.key("k1", "active")
	eventually(t, "the neighbour's key", func() bool { return f.has(table.KindKey, "k1") })
	w.catalog.put("nodes/w1", model.Node{Name: "w1", Kind: "edge", Region: "eu-west", Zone: "emea"})
	e.connect()
	eventually(t, "the edge that was let in again", func() bool { return e.has(table.KindKey, "k1") })
}

// An edge that reads nothing must not hold up its own withdrawal, nor anybody else. Nothing but the withdrawal ends its
// stream: an update may take an hour to be answered here.
func TestSubscribe_EdgeThatReadsNothing(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) { c.AckTimeout, c.SyncTimeout = time.Hour, time.Minute })
	t.Cleanup(w.http.CloseClientConnections) // a test that fails must end as well
	big := make([]string, 20_000)
	for i := range big {
		big[i] = fmt.Sprintf("h%030d.test", i)
	}
	w.catalog.put("apis/big", model.API{Name: "big", Zone: "us", Hosts: big})
	// It takes a window's worth of a table that is several.
	narrow := w.http.Client().Transport.(*http.Transport).Clone()
	narrow.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 64 << 10}
	st, err := syncv1connect.NewSyncServiceClient(&http.Client{Transport: peered{"emea/eu-west/edge/w1", narrow}}, w.http.URL).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1, Hashed: true}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the snapshot under way", func() bool { return w.server.Stats().Bytes.Load() > 0 })
	f := w.edge("w2").connect()
	eventually(t, "the neighbour", f.at)
	w.catalog.put("nodes/w1", nil)
	eventually(t, "the end of the stream", func() bool { return w.server.Stats().Streams.Load() == 1 })
}

// A program of the release before is served what it can verify, whole and by differences.
func TestSubscribe_AnEdgeOfTheReleaseBefore(t *testing.T) {
	w := newWorld(t, nil)
	w.key("k1", "active")
	e, f := w.edge("w1"), w.edge("w2")
	e.before = true
	e.connect()
	f.connect()
	eventually(t, "the snapshots", func() bool { return e.at() && f.at() })
	w.key("k2", "active")
	w.key("k1", "revoked")
	eventually(t, "the changes", func() bool { return e.at() && f.at() })
	for _, e := range []*edge{e, f} {
		if s, d := e.counts(); s != 1 || d == 0 || e.has(table.KindKey, "k1") || !e.has(table.KindKey, "k2") {
			t.Errorf("edge %s: %d snapshots, %d deltas, want one and some", e.name, s, d)
		}
	}
}

// Edges that hold the same are sent the same bytes, each under a signature of its own; one that is to hold something else is
// sent its own.
func TestSubscribe_EdgesThatGoTheSameWayShareADifference(t *testing.T) {
	w := newWorld(t, nil)
	w.catalog.put("nodes/w3", model.Node{Name: "w3", Kind: "edge", Region: "eu-central", Zone: "emea"})
	w.key("k1", "active")
	next := func(name, region string) func(ack bool) *syncv1.Signed {
		st, err := w.client("emea/" + region + "/edge/" + name).Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.CloseRequest() })
		if err := st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1, Hashed: true}}}); err != nil {
			t.Fatal(err)
		}
		var last *syncv1.TableUpdate
		return func(ack bool) *syncv1.Signed {
			t.Helper()
			if ack {
				if err := st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: &syncv1.Ack{Catalog: last.CatalogTo, Zone: last.ZoneTo}}}); err != nil {
					t.Fatal(err)
				}
			}
			for {
				m, err := st.Receive()
				if err != nil {
					t.Fatal(err)
				}
				if signed := m.GetTable(); signed != nil {
					if !ed25519.Verify(w.pub, table.SignedBytes(name, sha256.Sum256(signed.Payload)), signed.Signature) {
						t.Errorf("edge %s: bad signature", name)
					}
					last = new(syncv1.TableUpdate)
					if err := proto.Unmarshal(signed.Payload, last); err != nil || last.Region != region {
						t.Errorf("edge %s: an update for %q, %v", name, last.Region, err)
					}
					return signed
				}
			}
		}
	}
	edges := []func(bool) *syncv1.Signed{next("w1", "eu-west"), next("w2", "eu-west"), next("w3", "eu-central")}
	for _, e := range edges {
		e(false)
	}
	for _, status := range []string{"active", "revoked"} { // each is made while the last is unanswered
		w.key("k2", status)
		w.zone.put("closures/"+status, model.Closure{Name: status, Zone: "emea", From: "eu-west"})
		eventually(t, "the node", func() bool {
			for _, r := range w.server.Reports() {
				if r.ZoneWant.Index != w.zone.Local().Revision().Index {
					return false
				}
			}
			return true
		})
		var got []*syncv1.Signed
		for _, e := range edges {
			got = append(got, e(true))
		}
		if string(got[0].Payload) != string(got[1].Payload) || string(got[0].Signature) == string(got[1].Signature) {
			t.Errorf("%s: two edges of a region: the same payload %v, the same signature %v", status, string(got[0].Payload) == string(got[1].Payload), string(got[0].Signature) == string(got[1].Signature))
		}
		if string(got[0].Payload) == string(got[2].Payload) {
			t.Errorf("%s: an edge of another region is sent the same payload", status)
		}
	}
}

func TestSubscribe_Refuses(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		peer string
		kind fault.Kind
	}{
		{"us/us-east/edge/w1", fault.Denied}, {"emea/eu-west/control/w1", fault.Denied}, {"nobody", fault.Unauthenticated},
	} {
		e := w.edge("w1")
		e.peer = c.peer
		e.connect()
		if err := e.err(); fault.KindOf(err) != c.kind {
			t.Errorf("%s: got %v, want kind %v", c.peer, err, c.kind)
		}
		if _, err := w.client(c.peer).RequestGrants(t.Context(), &syncv1.RequestGrantsRequest{}); fault.KindOf(err) != c.kind {
			t.Errorf("%s: grants: got %v, want kind %v", c.peer, err, c.kind)
		}
	}
	for name, peer := range map[string]string{"unregistered": "emea/eu-west/edge/w9", "another region than registered": "emea/eu-central/edge/w1"} {
		e := w.edge("w1")
		e.peer = peer
		e.connect()
		eventually(t, name+": a withdrawal", func() bool {
			e.mu.Lock()
			defer e.mu.Unlock()
			if e.zone != nil {
				t.Fatalf("%s: got a table", name)
			}
			return !e.withdrawn.IsZero()
		})
	}
	st, err := w.client("emea/eu-west/edge/w1").Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: &syncv1.Ack{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Receive(); fault.ReasonOf(err) != "HELLO_MISSING" {
		t.Errorf("no hello: got %v, want HELLO_MISSING", err)
	}
}

func TestSubscribe_Quorums(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)

	// Without the catalog's quorum all goes on, keys too.
	w.catalog.setDown(true)
	e.disconnect()
	e.connect()
	w.key("k1", "active")
	eventually(t, "a key without the catalog", func() bool { return e.has(table.KindKey, "k1") })
	fresh := w.edge("w9").connect() // may be registered by now: nobody here can know
	if err := fresh.err(); fault.ReasonOf(err) != "CATALOG_BEHIND" || !fresh.withdrawn.IsZero() {
		t.Errorf("unknown edge without the catalog: got %v, want CATALOG_BEHIND", err)
	}

	// Without the zone's a node must not vouch for its view: the stream ends, the table stays.
	w.zone.setDown(true)
	if err := e.err(); fault.ReasonOf(err) != "ZONE_QUORUM" {
		t.Errorf("open stream: got %v, want ZONE_QUORUM", err)
	}
	e.connect()
	if err := e.err(); fault.ReasonOf(err) != "ZONE_QUORUM" || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("new stream: got %v, want ZONE_QUORUM", err)
	}
	if !e.has(table.KindKey, "k1") {
		t.Error("the edge lost its table")
	}
	w.zone.setDown(false)
	w.catalog.setDown(false)

	// An edge that has seen more than this node is sent elsewhere.
	e.zone.Index += 5
	e.connect()
	if err := e.err(); fault.ReasonOf(err) != "NODE_BEHIND" {
		t.Errorf("edge ahead: got %v, want NODE_BEHIND", err)
	}
	e.zone.Index -= 5
	e.zone.Epoch++
	e.connect()
	if err := e.err(); fault.ReasonOf(err) != "NODE_BEHIND" {
		t.Errorf("edge in a later epoch: got %v, want NODE_BEHIND", err)
	}
}

func TestSubscribe_EmptyNodeSendsNoTable(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) {
		c.Catalog, c.Zone = newStore("catalog"), newStore("store/emea")
		c.Catalog.(*store).setDown(true)
	})
	e := w.edge("w1").connect()
	if err := e.err(); fault.KindOf(err) != fault.Unavailable || e.zone != nil || !e.withdrawn.IsZero() {
		t.Errorf("got %v, want unavailable and no table", err)
	}
}

func TestSubscribe_RefusedUpdateIsRetriedSlowly(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	e.mu.Lock()
	e.refuse = "OBJECT_MALFORMED"
	e.mu.Unlock()
	w.key("k1", "active")
	eventually(t, "the refusal in the report", func() bool { return w.server.Reports()[0].NackReason == "OBJECT_MALFORMED" })
	time.Sleep(300 * time.Millisecond)
	if n := w.server.Stats().Nacks.Load(); n > 3 {
		t.Errorf("got %d refusals in 300 ms, want a pause between them", n)
	}
	e.mu.Lock()
	e.refuse = ""
	e.mu.Unlock()
	eventually(t, "the healing", func() bool { return e.has(table.KindKey, "k1") })
}

func TestRun_RestoredStoreStartsOver(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	eventually(t, "the snapshot", e.at)
	w.zone.mu.Lock()
	kvs := map[string]bool{}
	for k := range w.zone.kvs {
		kvs[k] = true
	}
	w.zone.rev.Epoch++
	w.zone.mu.Unlock()
	w.zone.compact()
	w.key("k1", "active")
	eventually(t, "a key of the new epoch", func() bool { return e.has(table.KindKey, "k1") && e.zone.Epoch == 2 })
	w.zone.compact()
	eventually(t, "the index after history was forgotten", e.at)
	if s, _ := e.counts(); s != 1 {
		t.Errorf("got %d snapshots, want the difference only", s)
	}
}

func TestRun_LegalBasisEndsByTime(t *testing.T) {
	end := time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)
	var now atomic.Int64
	now.Store(end.Add(-300 * time.Millisecond).UnixNano())
	w := newWorld(t, func(c *syncserver.Config) { c.Now = func() time.Time { return time.Unix(0, now.Load()).UTC() } })
	w.zone.put(model.KeyAdopted, model.Adopted{Regions: []model.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}},
		Bases:    []model.LegalBasis{{Name: "law", Kind: "same-law", Status: "active", Expires: "2026-12-01"}},
		Policies: []model.Policy{{Name: "gdpr", Zone: "emea", WithinZone: &model.WithinZone{Basis: "law"}}}})
	e := w.edge("w1").connect()
	eventually(t, "the pair", func() bool { return e.has(table.KindPair, "gdpr/eu-west>eu-central") })
	now.Store(end.UnixNano())
	eventually(t, "the end of the pair", func() bool { return !e.has(table.KindPair, "gdpr/eu-west>eu-central") })
}

type granter struct{ asked chan string }

func (g granter) Grant(_ context.Context, edge, region string, _ *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	g.asked <- edge + "@" + region
	return &syncv1.RequestGrantsResponse{Grants: []*syncv1.SignedGrant{{Payload: []byte("g")}}}, nil
}

func TestRequestGrants_PassesTheAuthenticatedName(t *testing.T) {
	g := granter{make(chan string, 1)}
	w := newWorld(t, func(c *syncserver.Config) { c.Granter = g })
	r, err := w.client("emea/eu-west/edge/w1").RequestGrants(t.Context(), &syncv1.RequestGrantsRequest{})
	if err != nil || len(r.Grants) != 1 {
		t.Fatalf("got %v %v, want one grant", r, err)
	}
	if got := <-g.asked; got != "w1@eu-west" {
		t.Errorf("got %s, want w1@eu-west", got)
	}
}

func TestReports_FollowStatusAndStreams(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := w.client("emea/eu-west/edge/w1").Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1}}})
	st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Status{Status: &syncv1.Status{Ready: true, RelayAddr: "r:1"}}})
	report := func(ok func(*peerv1.EdgeReport) bool) func() bool {
		return func() bool { r := w.server.Reports(); return len(r) == 1 && ok(r[0]) }
	}
	eventually(t, "the status", report(func(r *peerv1.EdgeReport) bool { return r.Connected && r.Status.GetRelayAddr() == "r:1" }))
	changed := w.server.ReportsChanged()
	cancel()
	st.CloseRequest()
	st.CloseResponse()
	<-changed
	eventually(t, "the disconnection", report(func(r *peerv1.EdgeReport) bool { return !r.Connected }))
}

// An edge that comes back with less than it had acknowledged has acknowledged no more than that, from its first word on.
func TestReports_AnEdgeThatReturnsWithLessHasAckedLess(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1").connect()
	eventually(t, "the table", e.at)
	eventually(t, "its acknowledgement", func() bool { _, _, ok := w.server.Acked("w1"); return ok })
	e.disconnect()
	e.mu.Lock()
	old, catalog, zone := e.objects, e.catalog, e.zone
	e.mu.Unlock()
	w.zone.put("unrelated", "x", model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west", To: "eu-central"})
	e.connect()
	eventually(t, "the closure", e.at)
	// An acknowledgement that the stream's end overtook was never made: then the older disk is none.
	eventually(t, "its acknowledgement", func() bool {
		_, z, ok := w.server.Acked("w1")
		return ok && z.Index == w.zone.Local().Revision().Index
	})
	e.disconnect()
	for _, disk := range []string{"an older disk", "no disk"} {
		e.mu.Lock()
		e.refuse = "NO_ROOM" // it does not get any further
		e.objects, e.catalog, e.zone = old, catalog, zone
		if disk == "no disk" {
			e.objects, e.catalog, e.zone = map[table.ObjectKey]string{}, nil, nil
		}
		e.mu.Unlock()
		back := w.server.Stats().WentBack.Load()
		e.connect()
		eventually(t, "its return with "+disk, func() bool { return w.server.Stats().WentBack.Load() > back })
		_, acked, ok := w.server.Acked("w1")
		if want := disk == "an older disk"; ok != want || ok && acked.Index != zone.Index {
			t.Errorf("with %s: acknowledged %s (%v), want what it holds", disk, acked, ok)
		}
		e.disconnect()
		e.mu.Lock()
		e.refuse = ""
		e.mu.Unlock()
		e.connect()
		eventually(t, "it has caught up", e.at)
		eventually(t, "and said so", func() bool { _, z, ok := w.server.Acked("w1"); return ok && z.Index == w.zone.Local().Revision().Index })
		e.disconnect()
	}
}

// Ten thousand changes while streams break, deltas vanish and edges refuse: at the end all sums are equal.
func TestSubscribe_ManyChangesUnderFaults(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	var losing atomic.Bool
	var n atomic.Uint64
	losing.Store(true)
	w := newWorld(t, func(c *syncserver.Config) {
		c.Heartbeat = 10 * time.Millisecond
		c.DropDelta = func() bool { return losing.Load() && n.Add(1)%7 == 0 }
	})
	edges := []*edge{w.edge("w1"), w.edge("w2")}
	for i, e := range edges {
		var m atomic.Uint64
		e.lose = func() bool { return losing.Load() && m.Add(1)%uint64(11+i) == 0 }
		e.connect()
	}
	held := map[string]bool{}
	for i := range 10_000 {
		id := fmt.Sprintf("k%03d", r.IntN(300))
		switch {
		case r.IntN(400) == 0:
			w.catalog.put("plans/gold", model.Plan{Name: "gold", Price: fmt.Sprint(i)})
		case r.IntN(400) == 0:
			w.zone.put("closures/x", model.Closure{Name: "x", Zone: "emea", From: "eu-west"})
		case r.IntN(400) == 0:
			w.zone.put("closures/x", nil)
		case r.IntN(500) == 0:
			w.zone.compact()
		case r.IntN(3) == 0:
			w.key(id, "revoked")
			delete(held, id)
		default:
			w.key(id, "active")
			held[id] = true
		}
		if r.IntN(300) == 0 {
			e := edges[r.IntN(2)]
			e.disconnect()
			e.connect()
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // lets streams take part; changes alone are done in a blink
		}
	}
	losing.Store(false)
	for _, e := range edges {
		e.disconnect()
		e.connect()
		eventually(t, e.name+" at the newest revision", e.at)
		e.mu.Lock()
		var keys int
		for k := range e.objects {
			if k.Kind == table.KindKey {
				keys++
				if !held[k.ID] {
					t.Errorf("edge %s has key %s that was revoked", e.name, k.ID)
				}
			}
		}
		if keys != len(held) {
			t.Errorf("edge %s has %d keys, want %d", e.name, keys, len(held))
		}
		t.Logf("%s: %d snapshots, %d deltas", e.name, e.snapshots, e.deltas)
		e.mu.Unlock()
	}
	if w.server.Stats().Dropped.Load() == 0 || w.server.Stats().Nacks.Load() == 0 {
		t.Error("no fault happened: the test proves nothing")
	}
}
