package sentinel_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/sentinel"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

var (
	emeaKey = ed25519.NewKeyFromSeed(make([]byte, 32))
	usKey   = ed25519.NewKeyFromSeed(append(make([]byte, 31), 1))
)

// world is what an edge of eu-west knows.
type world struct {
	pairs  []string // from>to of policy gdpr, and the zone of the end after a slash
	policy string   // of the API orders
	epoch  uint64
	target string
}

func (w world) table(t *testing.T) *policy.Table {
	t.Helper()
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: w.epoch, Index: 1}
	var objects []table.Object
	add := func(kind table.Kind, id string, v any) {
		o, err := table.Encode(kind, id, v)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
		if kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	add(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
	add(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Policy: w.policy, Targets: []string{w.target}})
	add(table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: emeaKey.Public().(ed25519.PublicKey)})
	add(table.KindZoneKey, "us", table.ZoneKey{Zone: "us", PublicKey: usKey.Public().(ed25519.PublicKey)})
	for _, p := range w.pairs {
		p, zone, _ := strings.Cut(p, "/")
		from, to, _ := strings.Cut(p, ">")
		add(table.KindPair, table.PairID("gdpr", from, to), table.Pair{Policy: "gdpr", From: from, To: to, FromZone: "emea", ToZone: zone})
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

var good = world{pairs: []string{"eu-west>eu-central/emea"}, policy: "gdpr", epoch: 1, target: "http://orders.internal"}

func grant() *syncv1.Grant {
	return &syncv1.Grant{Id: "g1", Zone: "emea", Edge: "west-1", From: "eu-west", To: "eu-central", Policies: []string{"gdpr"}, CatalogEpoch: 1, CatalogIndex: 9,
		ZoneEpoch: 1, ZoneIndex: 9, GrantedUnixMs: 1, TtlMs: 30_000, OfflineTtlMs: 3_600_000, Peers: []*syncv1.Peer{{Edge: "central-1", RelayAddr: "192.0.2.1:7500"}}}
}

func signed(t *testing.T, key ed25519.PrivateKey, g *syncv1.Grant) []byte {
	t.Helper()
	payload, err := proto.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(key, append([]byte("bailiwick-grant/1\n"), payload...))})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func certificate(name string) *x509.Certificate {
	u, _ := url.Parse(name)
	return &x509.Certificate{URIs: []*url.URL{u}}
}

const central = "spiffe://emea.test/region/eu-central/edge/central-1"

func open(t *testing.T, w world) (*sentinel.Sentinel, *policy.Holder) {
	t.Helper()
	tables := &policy.Holder{}
	tables.Swap(w.table(t))
	s, err := sentinel.New(sentinel.Config{Tables: tables, Zone: "emea", Region: "eu-west", Edge: "west-1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s, tables
}

func TestSentinel_Leaves(t *testing.T) {
	for _, c := range []struct {
		name  string
		world func(*world)
		grant func(*syncv1.Grant)
		key   ed25519.PrivateKey
		cert  string
		api   string
		home  string
		never bool // the grant did not come from the control plane
		ok    bool
	}{
		{name: "all in order", ok: true},
		{name: "no pair", world: func(w *world) { w.pairs = nil }},
		{name: "the pair the other way", world: func(w *world) { w.pairs = []string{"eu-central>eu-west/emea"} }},
		{name: "two pairs that only lead there together", world: func(w *world) { w.pairs = []string{"eu-west>eu-north/emea", "eu-north>eu-central/emea"}[:1] }},
		{name: "the pair ends in another zone", world: func(w *world) { w.pairs = []string{"eu-west>eu-central/us"} }},
		{name: "the API is under another policy now", world: func(w *world) { w.policy = "strict" }},
		{name: "a recovery came after the grant", world: func(w *world) { w.epoch = 2 }},
		{name: "an unknown API", api: "reports"},
		{name: "signed by another zone", key: usKey},
		{name: "for another zone", grant: func(g *syncv1.Grant) { g.Zone = "us" }, key: usKey},
		{name: "for another edge", grant: func(g *syncv1.Grant) { g.Edge = "west-2" }},
		{name: "from another region", grant: func(g *syncv1.Grant) { g.From = "eu-north" }},
		{name: "to another region", grant: func(g *syncv1.Grant) { g.To = "eu-north" }},
		{name: "for another policy", grant: func(g *syncv1.Grant) { g.Policies = []string{"strict"} }},
		{name: "for another peer", grant: func(g *syncv1.Grant) { g.Peers[0].Edge = "central-2" }},
		{name: "no lifetime", grant: func(g *syncv1.Grant) { g.TtlMs, g.OfflineTtlMs = -1, -1; g.TtlMs = 0 }, never: true},
		{name: "well signed, and never given to this edge", never: true},
		{name: "a peer of another region", cert: "spiffe://us.test/region/us-east/edge/us-1"},
		{name: "the peer's name in another region", cert: "spiffe://emea.test/region/eu-north/edge/central-1"},
		{name: "the peer's name in another zone", cert: "spiffe://us.test/region/eu-central/edge/central-1"},
		{name: "a control node", cert: "spiffe://emea.test/region/eu-central/control/central-1"},
		{name: "a second hop", home: "eu-north"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, g, key, cert, api, home := good, grant(), emeaKey, central, "orders", "eu-west"
			if c.world != nil {
				c.world(&w)
			}
			if c.grant != nil {
				c.grant(g)
			}
			if c.key != nil {
				key = c.key
			}
			if c.cert != "" {
				cert = c.cert
			}
			if c.api != "" {
				api = c.api
			}
			if c.home != "" {
				home = c.home
			}
			synctest.Test(t, func(t *testing.T) {
				s, _ := open(t, w)
				raw := signed(t, key, g)
				if !c.never {
					s.Answered(time.Now(), [][]byte{raw})
				}
				time.Sleep(2 * time.Second) // nothing is late any more
				err := s.Leaves(certificate(cert), raw, api, home, s.Now())
				if (err == nil) != c.ok || (s.Violations() == 0) != c.ok || s.Late() != 0 {
					t.Errorf("got %v, %d violations, %d late; want it to leave: %v", err, s.Violations(), s.Late(), c.ok)
				}
			})
		})
	}
}

func TestSentinel_Dialled(t *testing.T) {
	for _, c := range []struct {
		cert string
		ok   bool
	}{
		{central, true},
		{"spiffe://emea.test/region/eu-central/edge/central-2", false},
		{"spiffe://emea.test/region/eu-north/edge/central-1", false},
		{"spiffe://us.test/region/eu-central/edge/central-1", false},
		{"spiffe://emea.test/region/eu-central/control/central-1", false},
		{"https://emea.test/region/eu-central/edge/central-1", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, tables := open(t, good)
			if s.Dialled(certificate(c.cert), s.Now()) == nil {
				t.Errorf("%s: permitted without a grant", c.cert)
			}
			before := s.Violations() + s.Late()
			s.Answered(time.Now(), [][]byte{signed(t, emeaKey, grant())})
			if err := s.Dialled(certificate(c.cert), s.Now()); (err == nil) != c.ok || (s.Violations()+s.Late() == before) != c.ok {
				t.Errorf("%s: got %v, want permitted %v", c.cert, err, c.ok)
			}
			tables.Swap(world{policy: "gdpr", epoch: 1, target: "http://orders.internal"}.table(t))
			if s.Dialled(certificate(c.cert), s.Now()) == nil {
				t.Errorf("%s: permitted without a pair", c.cert)
			}
		})
	}
	if s, _ := open(t, good); s.Dialled(&x509.Certificate{}, s.Now()) == nil {
		t.Error("a certificate without a name is permitted")
	}
}

// A grant ends by the clock of whoever asked; while the zone is silent its offline lifetime counts, and not any
// more once the zone has spoken.
func TestSentinel_GrantsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, good)
		raw := signed(t, emeaKey, grant())
		leaves := func(want bool, when string) {
			t.Helper()
			if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); (err == nil) != want {
				t.Errorf("%s: got %v, want permitted %v", when, err, want)
			}
		}
		s.Answered(time.Now(), [][]byte{raw})
		time.Sleep(29 * time.Second)
		leaves(true, "before its end")
		time.Sleep(3 * time.Second)
		leaves(false, "after its end")
		s.Silent()
		leaves(true, "the zone is silent")
		time.Sleep(50 * time.Minute)
		leaves(true, "and still is")
		s.Answered(time.Now(), nil)
		leaves(true, "it has spoken just now: whoever holds the grant is being told")
		time.Sleep(2 * time.Second)
		leaves(false, "it has spoken")
		s.Silent()
		leaves(false, "silence brings nothing back")
	})
}

// What was permitted a moment ago and is not any more is stopped, and is nobody's fault.
func TestSentinel_TellsLateFromWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tables := open(t, good)
		raw := signed(t, emeaKey, grant())
		s.Answered(time.Now(), [][]byte{raw})
		time.Sleep(time.Minute / 4)
		closed := good
		closed.pairs = nil
		tables.Swap(closed.table(t))
		if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); err == nil || s.Violations() != 0 || s.Late() != 1 {
			t.Errorf("at once: got %v, %d violations, %d late; want it stopped and late", err, s.Violations(), s.Late())
		}
		time.Sleep(2 * time.Second)
		if err := s.Leaves(certificate(central), raw, "orders", "eu-west", s.Now()); err == nil || s.Violations() != 1 {
			t.Errorf("two seconds on: got %v and %d violations, want it stopped and wrong", err, s.Violations())
		}
	})
}

func TestSentinel_Upstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tables := open(t, good)
		for addr, want := range map[string]bool{"orders.internal:80": true, "Orders.Internal:80": true, "orders.internal:443": false, "orders.us:80": false, "192.0.2.1:7500": false} {
			if err := s.Upstream(addr); (err == nil) != want {
				t.Errorf("%s: got %v, want permitted %v", addr, err, want)
			}
		}
		if s.Violations() != 3 {
			t.Errorf("got %d violations, want 3", s.Violations())
		}
		moved := good
		moved.target = "https://[2001:db8::1]"
		tables.Swap(moved.table(t))
		for addr, want := range map[string]bool{"[2001:db8::1]:443": true, "orders.internal:80": true} {
			if err := s.Upstream(addr); (err == nil) != want {
				t.Errorf("just after the move, %s: got %v, want permitted %v", addr, err, want)
			}
		}
		time.Sleep(3 * time.Minute)
		if s.Upstream("orders.internal:80") == nil {
			t.Error("an upstream that left is dialled for ever")
		}
	})
	if s, _ := open(t, good); s.Leaves(certificate(central), []byte{0xff}, "orders", "eu-west", s.Now()) == nil {
		t.Error("bytes that are no grant are permitted")
	}
}

func BenchmarkSentinel_Leaves(b *testing.B) {
	t := &testing.T{}
	s, _ := open(t, good)
	raw, cert := signed(t, emeaKey, grant()), certificate(central)
	s.Answered(time.Now(), [][]byte{raw})
	for b.Loop() {
		if s.Leaves(cert, raw, "orders", "eu-west", s.Now()) != nil {
			b.Fatal("refused")
		}
	}
}
