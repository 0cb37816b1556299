package dns_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// world is a server without sockets, on a table and an outlook that tests change.
type world struct {
	*dns.Server
	tables  policy.Holder
	outlook observe.Outlook
}

var (
	nobody = netip.MustParseAddr("203.0.113.200")
	emea   = []table.Object{
		object(table.KindAPI, "deep", table.API{Name: "deep", Zone: "emea", Hosts: []string{"a.deep.emea.example.test"}, Regions: []string{"eu-west"}}),
		object(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"}),
		object(table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.example.test"}, Regions: []string{"eu-central", "eu-west", "us-east"}}),
		object(table.KindAPI, "alone", table.API{Name: "alone", Zone: "emea", Hosts: []string{"alone.example.org"}, Regions: []string{"eu-west"}}),
		object(table.KindAPI, "nowhere", table.API{Name: "nowhere", Zone: "emea", Hosts: []string{"nowhere.emea.example.test"}, Regions: []string{"eu-south"}}),
		object(table.KindDirectory, "us/orders", table.Directory{API: "orders", Zone: "us", Hosts: []string{"orders.us.example.test", "us.emea.example.test"}}),
		object(table.KindRegion, "eu-west", table.Region{Name: "eu-west", Zone: "emea", Clients: []string{"10.1.0.0/16", "2001:db8:1::/48"}}),
		object(table.KindRegion, "eu-central", table.Region{Name: "eu-central", Zone: "emea", Clients: []string{"10.2.0.0/16"}}),
		object(table.KindRegion, "eu-south", table.Region{Name: "eu-south", Zone: "emea"}),
		doors("w1", "eu-west", "emea", 443, "192.0.2.1", "2001:db8::1"),
		doors("c1", "eu-central", "emea", 8443, "192.0.2.2"),
		// What must never be there; if it is, it must not come out.
		doors("u1", "us-east", "us", 443, "198.51.100.1"),
		doors("x1", "us-east", "emea", 443, "198.51.100.2"),
	}
)

func object(kind table.Kind, id string, v any) table.Object {
	o, err := table.Encode(kind, id, v)
	if err != nil {
		panic(err)
	}
	return o
}

func doors(name, region, zone string, port int, addresses ...string) table.Object {
	return object(table.KindDoors, name, table.Doors{Edge: name, Region: region, Zone: zone, Addresses: addresses, HTTPSPort: port, DNS: true})
}

func newTable(t testing.TB, objects []table.Object) *policy.Table {
	t.Helper()
	catalog, zone := revision.Revision{Epoch: 1, Index: 7}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			zone.Sum = zone.Sum.Add(o.Sum())
		} else {
			catalog.Sum = catalog.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, catalog, zone)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func newWorld(t testing.TB, change func(*dns.Config)) *world {
	t.Helper()
	w := &world{}
	w.tables.Swap(newTable(t, emea))
	cfg := dns.Config{Zone: "emea", Tables: &w.tables, Outlook: func() *observe.Outlook { return &w.outlook },
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Apexes: []string{"EMEA.example.test."}, CAA: "ca.example.net", RatePerSecond: 1_000_000, Burst: 1_000_000}
	if change != nil {
		change(&cfg)
	}
	s, err := dns.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Server = s
	return w
}

func question(name string, qtype uint16) *mdns.Msg {
	q := new(mdns.Msg)
	q.SetQuestion(name, qtype)
	return q
}

func withSubnet(q *mdns.Msg, subnet string) *mdns.Msg {
	p := netip.MustParsePrefix(subnet)
	q.SetEdns0(1232, false)
	family := uint16(1)
	if p.Addr().Is6() {
		family = 2
	}
	q.IsEdns0().Option = append(q.IsEdns0().Option, &mdns.EDNS0_SUBNET{Code: mdns.EDNS0SUBNET, Family: family, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()})
	return q
}

// ask packs, handles and unpacks. nil: no answer.
func (w *world) ask(t testing.TB, q *mdns.Msg, tcp bool) *mdns.Msg {
	t.Helper()
	query, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := w.Handle(query, nobody, tcp)
	if out == nil {
		return nil
	}
	if !tcp && len(out) > 8*len(query) {
		t.Errorf("%d bytes answer %d", len(out), len(query))
	}
	m := new(mdns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("answer does not unpack: %v", err)
	}
	if m.Id != q.Id || !m.Response || m.RecursionAvailable {
		t.Errorf("answer's header: %+v", m.MsgHdr)
	}
	return m
}

// text is the answer in short: code, then the data of the records by section.
func text(m *mdns.Msg) string {
	if m == nil {
		return "none"
	}
	var b strings.Builder
	b.WriteString(mdns.RcodeToString[m.Rcode])
	if m.Truncated {
		b.WriteString(" TC")
	}
	section := func(name string, rrs []mdns.RR) {
		for _, rr := range rrs {
			if rr.Header().Rrtype == mdns.TypeOPT {
				continue
			}
			fmt.Fprintf(&b, " %s:%s %d %s", name, mdns.TypeToString[rr.Header().Rrtype], rr.Header().Ttl, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	section("an", m.Answer)
	section("ns", m.Ns)
	section("ar", m.Extra)
	return b.String()
}
