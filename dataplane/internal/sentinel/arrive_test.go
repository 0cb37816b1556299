package sentinel_test

import (
	"crypto/ed25519"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/sentinel"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

const westCert = "spiffe://emea.test/region/eu-west/edge/west-1"

// receiving is what an edge of us-east knows, to which eu-west may relay the reports of emea.
func receiving(t *testing.T, change func(*table.API, *table.Pair, *table.Node), epoch uint64) *policy.Table {
	t.Helper()
	api := table.API{Name: "reports", Zone: "emea", Policy: "scc", Foreign: true, Targets: []string{"http://reports.internal"}}
	pair := table.Pair{Policy: "scc", From: "eu-west", To: "us-east", FromZone: "emea", ToZone: "us"}
	node := table.Node{Name: "west-1", Zone: "emea", Region: "eu-west"}
	if change != nil {
		change(&api, &pair, &node)
	}
	at := [2]revision.Revision{{Epoch: epoch, Index: 1}, {Epoch: 1, Index: 1}}
	var objects []table.Object
	for _, o := range []struct {
		kind  table.Kind
		id    string
		value any
	}{
		{table.KindSettings, table.SettingsID, table.Settings{Zone: "us", Region: "us-east"}},
		{table.KindAPI, table.APIID(&api), api},
		{table.KindPair, table.PairID(pair.Policy, pair.From, pair.To), pair},
		{table.KindNode, node.Name, node},
		{table.KindZoneKey, "emea", table.ZoneKey{Zone: "emea", PublicKey: emeaKey.Public().(ed25519.PublicKey)}},
		{table.KindZoneKey, "us", table.ZoneKey{Zone: "us", PublicKey: usKey.Public().(ed25519.PublicKey)}},
	} {
		object, err := table.Encode(o.kind, o.id, o.value)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, object)
		at[o.kind.Scope()].Sum = at[o.kind.Scope()].Sum.Add(object.Sum())
	}
	tab, err := policy.NewTable(objects, at[table.ScopeCatalog], at[table.ScopeZone])
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func arriving() *syncv1.Grant {
	g := grant()
	g.To, g.Policies, g.OfflineTtlMs = "us-east", []string{"scc"}, 0
	return g
}

func receiver(t *testing.T, tab *policy.Table) (*sentinel.Sentinel, *policy.Holder) {
	t.Helper()
	tables := &policy.Holder{}
	tables.Swap(tab)
	s, err := sentinel.New(sentinel.Config{Tables: tables, Zone: "us", Region: "us-east", Edge: "east-1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s, tables
}

func TestSentinel_Arrives(t *testing.T) {
	for _, c := range []struct {
		name  string
		table func(*table.API, *table.Pair, *table.Node)
		epoch uint64
		grant func(*syncv1.Grant)
		key   ed25519.PrivateKey
		cert  string
		zone  string
		api   string
		ok    bool
	}{
		{name: "all in order", ok: true},
		{name: "no such pair", table: func(_ *table.API, p *table.Pair, _ *table.Node) { p.From = "eu-central" }},
		{name: "the pair the other way", table: func(_ *table.API, p *table.Pair, _ *table.Node) {
			p.From, p.To, p.FromZone, p.ToZone = p.To, p.From, p.ToZone, p.FromZone
		}},
		{name: "the pair begins in another zone", table: func(_ *table.API, p *table.Pair, _ *table.Node) { p.FromZone = "us" }},
		{name: "the API is under another policy here", table: func(a *table.API, _ *table.Pair, _ *table.Node) { a.Policy = "strict" }},
		{name: "an API that is not here", api: "orders"},
		{name: "an API of the own zone", zone: "us"},
		{name: "the sender is of another region", table: func(_ *table.API, _ *table.Pair, n *table.Node) { n.Region = "eu-central" }},
		{name: "the sender has left the registry", table: func(_ *table.API, _ *table.Pair, n *table.Node) { n.Name = "west-2" }},
		{name: "a recovery came after the grant", epoch: 2},
		{name: "signed by another zone", key: usKey},
		{name: "for another zone", grant: func(g *syncv1.Grant) { g.Zone = "us" }, key: usKey},
		{name: "for another edge", grant: func(g *syncv1.Grant) { g.Edge = "west-2" }},
		{name: "from another region", grant: func(g *syncv1.Grant) { g.From = "eu-central" }},
		{name: "to another region", grant: func(g *syncv1.Grant) { g.To = "us-west" }},
		{name: "for another policy", grant: func(g *syncv1.Grant) { g.Policies = []string{"strict"} }},
		{name: "a control node's certificate", cert: "spiffe://emea.test/region/eu-west/control/west-1"},
		{name: "the sender's name in another zone", cert: "spiffe://us.test/region/eu-west/edge/west-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, key, cert, zone, api := arriving(), emeaKey, westCert, "emea", "reports"
			if c.grant != nil {
				c.grant(g)
			}
			if c.key != nil {
				key = c.key
			}
			if c.cert != "" {
				cert = c.cert
			}
			if c.zone != "" {
				zone = c.zone
			}
			if c.api != "" {
				api = c.api
			}
			s, _ := receiver(t, receiving(t, c.table, max(1, c.epoch)))
			err := s.Arrives(certificate(cert), signed(t, key, g), zone, api, s.Now())
			if (err == nil) != c.ok || (s.Violations() == 0) != c.ok {
				t.Errorf("got %v and %d violations, want ok %v", err, s.Violations(), c.ok)
			}
		})
	}
}

func TestSentinel_AGrantShownTooLongIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tables := receiver(t, receiving(t, nil, 1))
		raw := signed(t, emeaKey, arriving())
		show := func() error { return s.Arrives(certificate(westCert), raw, "emea", "reports", s.Now()) }
		if err := show(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if err := show(); err != nil {
			t.Errorf("within its lifetime and the slack: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := show(); err == nil || s.Violations() != 1 {
			t.Errorf("after its end: got %v and %d violations", err, s.Violations())
		}
		changed := arriving() // a grant of the same id that says something else
		changed.TtlMs = 3_600_000
		if err := s.Arrives(certificate(westCert), signed(t, emeaKey, changed), "emea", "reports", s.Now()); err == nil {
			t.Error("an ended grant under the same id, longer: let pass")
		}
		fresh := arriving()
		fresh.Id = "g2"
		raw = signed(t, emeaKey, fresh)
		tables.Swap(receiving(t, func(_ *table.API, p *table.Pair, _ *table.Node) { p.From = "eu-central" }, 1))
		if err := show(); err == nil || s.Late() != 1 {
			t.Errorf("at once after the pair went: got %v and %d late, want it stopped as late", err, s.Late())
		}
	})
}

func TestSentinel_UsageGoesToControlNodesOfTheZone(t *testing.T) {
	s, _ := receiver(t, receiving(t, nil, 1))
	if err := s.Control(certificate("spiffe://us.test/region/us-west/control/us-2")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"spiffe://emea.test/region/eu-west/control/emea-1", "spiffe://us.test/region/us-west/edge/us-2", "https://us.test/region/us-west/control/us-2", "spiffe://us.test/region/us-west/control"} {
		if s.Control(certificate(name)) == nil {
			t.Errorf("%s: usage may go there", name)
		}
	}
	if s.Control(nil) == nil || s.Violations() != 5 {
		t.Errorf("%d violations counted, want 5", s.Violations())
	}
}
