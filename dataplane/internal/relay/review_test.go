package relay_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/identity"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// A new leader's wall clock may be an hour behind the last one's: its grants are newer all the same, by their
// place in the zone's log.
func TestServer_ANewLeadersClockMayBeBehind(t *testing.T) {
	b := newBorder(t)
	shown := func(id string, index uint64, at int64) string {
		g := b.grant()
		g.Id, g.ZoneIndex, g.GrantedUnixMs = id, index, at
		return b.refusedBy(t, b.westEdge, "eu-west", sign(t, emeaKey, g))
	}
	for _, c := range []struct {
		name  string
		id    string
		index uint64
		at    int64
		want  string
	}{
		{"the former leader's", "a", 10, 7_200_000, ""},
		{"the new leader's, its clock an hour behind", "b", 11, 3_600_000, ""},
		{"the former leader's again, remembered", "a", 10, 7_200_000, ""},
		{"one from before both, never seen", "c", 9, 9_000_000, grant.Expired},
	} {
		if got := shown(c.id, c.index, c.at); got != c.want {
			t.Errorf("%s: refused by %q, want %q", c.name, got, c.want)
		}
	}
}

func (b *border) refusedBy(t *testing.T, who *identity.Source, home string, g *syncv1.SignedGrant) string {
	t.Helper()
	data, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.raw(t, who, http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {home}, relay.HeaderGrant: {b64(data)}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.Header.Get(relay.HeaderRefused)
}

// foreign is the table of eu-central with a pair from us-east under a policy of zone us.
func foreign(t *testing.T, catalogEpoch uint64, pair, key bool) *policy.Table {
	t.Helper()
	var objects []table.Object
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-central"})
	api := &table.API{Name: "orders", Zone: "us", Policy: "us-scc", Targets: []string{"http://127.0.0.1:9"}, Foreign: true, Regions: []string{"eu-central"}}
	add(table.KindAPI, table.APIID(api), api)
	add(table.KindNode, "us-edge-1", table.Node{Name: "us-edge-1", Zone: "us", Region: "us-east"})
	add(table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: emeaKey.Public().(ed25519.PublicKey)})
	if key {
		add(table.KindZoneKey, "us", table.ZoneKey{Zone: "us", PublicKey: usKey.Public().(ed25519.PublicKey)})
	}
	// Something must let the peer's session live, or every case would end in the handshake.
	add(table.KindPair, table.PairID("other", "us-east", "eu-central"), table.Pair{Policy: "other", From: "us-east", To: "eu-central", FromZone: "us", ToZone: "emea"})
	if pair {
		add(table.KindPair, table.PairID("us-scc", "us-east", "eu-central"), table.Pair{Policy: "us-scc", From: "us-east", To: "eu-central", FromZone: "us", ToZone: "emea"})
	}
	c, z := revision.Revision{Epoch: catalogEpoch, Index: 1}, revision.Revision{Epoch: 900, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// A pair across zones: the receiver goes by its own rules, the sending zone's key and grant, and the one
// catalog that both share.
func TestServer_CrossZone(t *testing.T) {
	b := newBorder(t)
	us := b.in.Source(t, "us", "us-east", identity.Edge, "us-edge-1")
	with := func(f func(*syncv1.Grant)) *syncv1.SignedGrant {
		g := b.grant()
		g.Zone, g.Edge, g.From, g.Policies, g.CatalogEpoch = "us", "us-edge-1", "us-east", []string{"us-scc"}, 5
		if f != nil {
			f(g)
		}
		return sign(t, usKey, g)
	}
	for _, c := range []struct {
		name  string
		table *policy.Table
		grant *syncv1.SignedGrant
		want  string
	}{
		{"both ends permit", foreign(t, 5, true, true), with(nil), ""},
		{"the receiving zone has not adopted the pair", foreign(t, 5, false, true), with(nil), relay.RulePair},
		{"the sending zone's key is not here", foreign(t, 5, true, false), with(nil), grant.Zone},
		{"the sending zone did not grant the policy", foreign(t, 5, true, true), with(func(g *syncv1.Grant) { g.Policies = []string{"other"} }), grant.Policy},
		{"from before a recovery of the catalog", foreign(t, 6, true, true), with(nil), grant.Epoch},
	} {
		b.central.Swap(c.table)
		if got := b.refusedBy(t, us, "us-east", c.grant); got != c.want {
			t.Errorf("%s: refused by %q, want %q", c.name, got, c.want)
		}
	}
}

// A grant that is renewed while the evidence of the first is being written: the last row before the first byte
// names the grant that the relay carried.
func TestClient_EvidenceNamesTheGrantThatWasCarried(t *testing.T) {
	b := newBorder(t)
	b.evidence.turn = func() {
		old := b.grants.Live(b.west.Load(), "gdpr", "eu-central").ID
		b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil)) // other pairs: asked anew at once
		eventually(t, 5*time.Second, "a newer grant", func() bool { return b.grants.Live(b.west.Load(), "gdpr", "eu-central").ID != old })
	}
	resp, err := b.do(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	b.local.mu.Lock()
	carried := b.local.seen[0].GrantID
	b.local.mu.Unlock()
	rows := b.evidence.rows
	if want := "id-1 " + carried + " eu-west>eu-central"; rows[len(rows)-1] != want {
		t.Errorf("evidence %q, want the last to be %q", rows, want)
	}
}

// Nothing leaves under a grant of which no row could be written, though one of the grant before was.
func TestClient_TheRenewedGrantNeedsItsRowToo(t *testing.T) {
	b := newBorder(t)
	b.evidence.turn = func() {
		old := b.grants.Live(b.west.Load(), "gdpr", "eu-central").ID
		b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil))
		eventually(t, 5*time.Second, "a newer grant", func() bool { return b.grants.Live(b.west.Load(), "gdpr", "eu-central").ID != old })
		b.evidence.turn = func() { b.evidence.err = errors.New("disk full") }
	}
	if _, err := b.do(context.Background(), nil); rule(err) != relay.RuleEvidence || b.local.count() != 0 || b.client.InFlight() != 0 {
		t.Errorf("got %v, %d served and %d in flight, want rule %s and none", err, b.local.count(), b.client.InFlight(), relay.RuleEvidence)
	}
}

// tightened is a region's table after the API moved to a policy without pairs, while another API keeps the old
// one: the pair is still there, and not for this API.
func tightened(t *testing.T, old *policy.Table, region string, nodes ...table.Node) *policy.Table {
	t.Helper()
	var objects []table.Object
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: region})
	add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: "closed", Targets: []string{"http://127.0.0.1:9"}})
	add(table.KindAPI, "other", table.API{Name: "other", Zone: "emea", Hosts: []string{"other.test"}, Policy: "gdpr", Targets: []string{"http://127.0.0.1:9"}})
	add(table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: emeaKey.Public().(ed25519.PublicKey)})
	add(table.KindPair, table.PairID("gdpr", "eu-west", "eu-central"), table.Pair{Policy: "gdpr", From: "eu-west", To: "eu-central", FromZone: "emea", ToZone: "emea"})
	for _, n := range nodes {
		add(table.KindNode, n.Name, n)
	}
	c, z := old.Catalog(), old.Zone()
	c.Sum, z.Sum = revision.Sum{}, revision.Sum{}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// An API that moves to a narrower policy takes its relays with it, those under way and those that begin with
// what they read before, although the old policy keeps its pair for others.
func TestRelay_AnAPIThatChangesItsPolicyIsCut(t *testing.T) {
	for _, end := range []string{"sender", "receiver"} {
		t.Run(end, func(t *testing.T) {
			b := newBorder(t)
			b.local.wait = make(chan struct{})
			before := b.west.Load().API("orders.test")
			resp, err := b.do(context.Background(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			start := time.Now()
			if end == "sender" {
				b.west.Swap(tightened(t, b.west.Load(), "eu-west"))
			} else {
				b.central.Swap(tightened(t, b.central.Load(), "eu-central", westNode))
			}
			select {
			case <-b.local.cut:
			case <-time.After(30 * time.Second):
				t.Error("not cut within 30 s")
				close(b.local.wait)
			}
			t.Logf("cut after %v", time.Since(start))
			seen := b.local.count()
			_, err = b.client.Do(context.Background(), relay.Forward{API: before, To: "eu-central", RequestID: "id-2", Method: "GET",
				URL: resp.Request.URL, Host: "orders.test", Header: http.Header{}})
			if err == nil || b.local.count() != seen {
				t.Errorf("a request that read the API before: got %v and %d relays, want it refused", err, b.local.count()-seen)
			}
		})
	}
}

// An edge that left the registry is no peer in the next grant: what still runs to it is cut then, not when the
// last grant that named it ends.
func TestClient_APeerThatTheNewestGrantDoesNotNameIsLeft(t *testing.T) {
	b := newBorder(t)
	b.local.wait = make(chan struct{})
	resp, err := b.do(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b.mu.Lock()
	b.mint = func() []*syncv1.SignedGrant {
		g := b.grant()
		g.Peers = []*syncv1.Peer{{Edge: "eu-central-edge-2", RelayAddr: "127.0.0.1:1"}}
		return []*syncv1.SignedGrant{sign(t, emeaKey, g)}
	}
	b.mu.Unlock()
	b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil)) // asked anew at once
	select {
	case <-b.local.cut:
	case <-time.After(30 * time.Second):
		t.Error("the relay to an edge that no grant names any more: not cut within 30 s")
		close(b.local.wait)
	}
}
