package dns_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"pgregory.net/rapid"

	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/observe"
	"bailiwick/shared/table"
)

const soa = "ns:SOA 30 ns-c1.emea.example.test. hostmaster.emea.example.test. 16777223 7200 900 1209600 30"

func TestHandle_Answers(t *testing.T) {
	w := newWorld(t, nil)
	w.outlook.Down = map[string]string{"eu-central": "a test"}
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"orders.emea.example.test.", mdns.TypeA, "NOERROR an:A 20 192.0.2.1"},
		{"orders.emea.example.test.", mdns.TypeAAAA, "NOERROR an:AAAA 20 2001:db8::1"},
		{"orders.emea.example.test.", mdns.TypeHTTPS, `NOERROR an:HTTPS 20 1 . alpn="h2,h3" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"`},
		{"orders.emea.example.test.", mdns.TypeCAA, `NOERROR an:CAA 20 0 issue "ca.example.net"`},
		{"orders.emea.example.test.", mdns.TypeMX, "NOERROR " + soa},
		{"orders.emea.example.test.", mdns.TypeSOA, "NOERROR " + soa}, // no apex: its domain has the SOA
		{"orders.emea.example.test.", mdns.TypeANY, `NOERROR an:HINFO 20 "RFC8482" ""`},
		{"emea.example.test.", mdns.TypeSOA, strings.Replace("NOERROR an"+strings.TrimPrefix(soa, "ns"), "SOA 30", "SOA 20", 1)},
		{"emea.example.test.", mdns.TypeA, "NOERROR " + soa},
		{"nothing.emea.example.test.", mdns.TypeA, "NXDOMAIN " + soa},
		{"a.orders.emea.example.test.", mdns.TypeA, "NXDOMAIN " + soa},
		{"deep.emea.example.test.", mdns.TypeA, "NOERROR " + soa}, // nothing there, but something below
		{"ns-w1.emea.example.test.", mdns.TypeA, "NOERROR an:A 20 192.0.2.1"},
		{"ns-c1.emea.example.test.", mdns.TypeAAAA, "NOERROR " + soa},
		{"ns-u1.emea.example.test.", mdns.TypeA, "NXDOMAIN " + soa}, // of another zone
		{"nowhere.emea.example.test.", mdns.TypeA, "SERVFAIL"},      // exists, and no edge is known: not "there is none"
		{"alone.example.org.", mdns.TypeSOA, "NOERROR an:SOA 20 ns-c1.alone.example.org. hostmaster.alone.example.org. 16777223 7200 900 1209600 30"},
		// Not ours.
		{"orders.us.example.test.", mdns.TypeA, "REFUSED"},
		{"us.emea.example.test.", mdns.TypeA, "REFUSED"}, // below our domain, and another zone's
		{"a.us.emea.example.test.", mdns.TypeA, "REFUSED"},
		{"example.test.", mdns.TypeA, "REFUSED"},
		{".", mdns.TypeNS, "REFUSED"},
		{"example.com.", mdns.TypeA, "REFUSED"},
		{"orders.emea.example.test.", mdns.TypeAXFR, "REFUSED"},
		{"emea.example.test.", mdns.TypeAXFR, "REFUSED"},
	} {
		if got := text(w.ask(t, question(c.name, c.qtype), false)); got != c.want {
			t.Errorf("%s %s: %s\nwant %s", c.name, mdns.TypeToString[c.qtype], got, c.want)
		}
	}
	if got, want := text(w.ask(t, question("emea.example.test.", mdns.TypeNS), true)), "NOERROR an:NS 20 ns-c1.emea.example.test. an:NS 20 ns-w1.emea.example.test. ar:"; !strings.HasPrefix(got, want) || !strings.Contains(got, "ar:A 20 192.0.2.1") {
		t.Errorf("NS: %s", got)
	}
}

// Whatever looks dead, and however it is asked: an answer holds addresses of the zone's own regions, and some.
func TestHandle_NeverForeignNeverEmpty(t *testing.T) {
	w := newWorld(t, nil)
	allowed := []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}
	all := []string{"eu-west", "eu-central", "eu-south", "us-east"}
	rapid.Check(t, func(rt *rapid.T) {
		w.outlook = observe.Outlook{Down: map[string]string{}, Silent: map[string]bool{}}
		for _, r := range rapid.SliceOf(rapid.SampledFrom(all)).Draw(rt, "down") {
			w.outlook.Down[r] = "a test"
		}
		for _, e := range rapid.SliceOf(rapid.SampledFrom([]string{"w1", "c1", "u1", "x1"})).Draw(rt, "silent") {
			w.outlook.Silent[e] = true
		}
		q := question(rapid.SampledFrom([]string{"orders.emea.example.test.", "ORDERS.emea.Example.TEST.", "alone.example.org."}).Draw(rt, "name"),
			rapid.SampledFrom([]uint16{mdns.TypeA, mdns.TypeHTTPS}).Draw(rt, "type"))
		if s := rapid.SampledFrom([]string{"", "10.1.2.0/24", "10.2.2.0/24", "0.0.0.0/0", "2001:db8:1:2::/64"}).Draw(rt, "subnet"); s != "" {
			withSubnet(q, s)
		}
		m := w.ask(t, q, true)
		if len(m.Answer) == 0 {
			rt.Fatalf("empty: %s", text(m))
		}
		for _, rr := range m.Answer {
			var got []string
			switch rr := rr.(type) {
			case *mdns.A:
				got = append(got, rr.A.String())
			case *mdns.HTTPS:
				for _, v := range rr.Value {
					switch v := v.(type) {
					case *mdns.SVCBIPv4Hint:
						for _, ip := range v.Hint {
							got = append(got, ip.String())
						}
					case *mdns.SVCBIPv6Hint:
						for _, ip := range v.Hint {
							got = append(got, ip.String())
						}
					}
				}
			}
			for _, a := range got {
				if !slices.Contains(allowed, a) {
					rt.Fatalf("%s is named: %s", a, text(m))
				}
			}
			if rr.Header().Name != q.Question[0].Name {
				rt.Fatalf("asked for %s, answered %s: the case is lost", q.Question[0].Name, rr.Header().Name)
			}
		}
	})
}

func TestHandle_ClientSubnets(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct{ subnet, address, echo string }{
		{"10.1.2.0/24", "192.0.2.1", "10.1.2.0/24/16"},
		{"10.2.2.0/24", "192.0.2.2", "10.2.2.0/24/16"},
		{"10.3.0.0/16", "", "10.3.0.0/16/16"},
		{"10.0.0.0/8", "", "10.0.0.0/8/16"}, // wider than what decides
		{"0.0.0.0/0", "", "0.0.0.0/0/0"},    // does not want to be led
	} {
		seen := map[string]bool{}
		for range 4 {
			m := w.ask(t, withSubnet(question("orders.emea.example.test.", mdns.TypeA), c.subnet), false)
			seen[m.Answer[0].(*mdns.A).A.String()] = true
			e := m.IsEdns0().Option[0].(*mdns.EDNS0_SUBNET)
			if got := fmt.Sprintf("%s/%d/%d", e.Address, e.SourceNetmask, e.SourceScope); got != c.echo {
				t.Errorf("%s: echoed %s, want %s", c.subnet, got, c.echo)
			}
		}
		if c.address != "" && (len(seen) != 1 || !seen[c.address]) || c.address == "" && len(seen) != 2 {
			t.Errorf("%s is led to %v first, want %q", c.subnet, seen, c.address)
		}
	}
	// The client's own region is dead: the others.
	w.outlook.Down = map[string]string{"eu-west": "a test"}
	if got := text(w.ask(t, withSubnet(question("orders.emea.example.test.", mdns.TypeA), "10.1.2.0/24"), false)); got != "NOERROR an:A 20 192.0.2.2" {
		t.Errorf("with its region dead: %s", got)
	}
	query, _ := withSubnet(question("orders.emea.example.test.", mdns.TypeA), "10.1.3.0/24").Pack()
	at := bytes.Index(query, []byte{0, 1, 24, 0, 10, 1, 3})
	for what, spoil := range map[string][]byte{
		"a scope in the query": {0, 1, 24, 24}, "bits beyond the length": {0, 1, 23, 0}, "a family unknown": {0, 3, 24, 0}, "too long a length": {0, 1, 33, 0},
	} {
		bad := bytes.Clone(query)
		copy(bad[at:], spoil)
		if out := w.Handle(bad, nobody, false); len(out) < 12 || out[3]&0xf != mdns.RcodeFormatError {
			t.Errorf("%s: %x, want FORMERR", what, out)
		}
	}
}

func TestHandle_BadQueries(t *testing.T) {
	w := newWorld(t, nil)
	pack := func(change func(*mdns.Msg)) []byte {
		q := question("orders.emea.example.test.", mdns.TypeA)
		change(q)
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, c := range map[string]struct {
		query []byte
		want  int // -1: no answer
	}{
		"nothing":       {nil, -1},
		"eleven bytes":  {make([]byte, 11), -1},
		"an answer":     {pack(func(q *mdns.Msg) { q.Response = true }), -1},
		"no question":   {pack(func(q *mdns.Msg) { q.Question = nil }), mdns.RcodeFormatError},
		"two questions": {pack(func(q *mdns.Msg) { q.Question = append(q.Question, q.Question[0]) }), mdns.RcodeFormatError},
		"NOTIFY":        {pack(func(q *mdns.Msg) { q.Opcode = mdns.OpcodeNotify }), mdns.RcodeNotImplemented},
		"UPDATE":        {pack(func(q *mdns.Msg) { q.Opcode = mdns.OpcodeUpdate }), mdns.RcodeNotImplemented},
		"CHAOS":         {pack(func(q *mdns.Msg) { q.Question[0].Qclass = mdns.ClassCHAOS }), mdns.RcodeRefused},
		"IXFR":          {pack(func(q *mdns.Msg) { q.SetIxfr("emea.example.test.", 1, "a.", "b.") }), mdns.RcodeRefused},
		"an answer section": {pack(func(q *mdns.Msg) {
			q.Answer = []mdns.RR{&mdns.NULL{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeNULL}}}
		}), mdns.RcodeFormatError},
		"EDNS 1":           {pack(func(q *mdns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), mdns.RcodeBadVers & 0xf},
		"two OPT":          {pack(func(q *mdns.Msg) { q.SetEdns0(1232, false); q.Extra = append(q.Extra, q.Extra[0]) }), mdns.RcodeFormatError},
		"cut short":        {pack(func(*mdns.Msg) {})[:20], mdns.RcodeFormatError},
		"a name in a loop": {append(pack(func(q *mdns.Msg) { q.Question = nil })[:4], 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1), mdns.RcodeFormatError},
		"too long":         {append(pack(func(*mdns.Msg) {}), make([]byte, 1300)...), mdns.RcodeFormatError},
	} {
		out := w.Handle(c.query, nobody, false)
		switch {
		case c.want < 0 && out != nil:
			t.Errorf("%s is answered: %x", what, out)
		case c.want < 0:
		case len(out) < 12 || int(out[3]&0xf) != c.want:
			t.Errorf("%s: answer %x, want code %d", what, out, c.want)
		case len(out) > len(c.query)+11: // an OPT of ours
			t.Errorf("%s: %d bytes answer %d", what, len(out), len(c.query))
		}
	}
}

func TestHandle_SizeAndTruncation(t *testing.T) {
	w := newWorld(t, nil)
	objects := slices.Clone(emea)
	for i := range 40 {
		objects = append(objects, doors(fmt.Sprintf("w-with-a-long-name-%02d", i), "eu-west", "emea", 443, fmt.Sprintf("192.0.2.%d", 100+i), fmt.Sprintf("2001:db8::%d", 100+i)))
	}
	w.tables.Swap(newTable(t, objects))
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeHTTPS, mdns.TypeNS} {
		for _, size := range []uint16{0, 100, 512, 1232, 65535} {
			q := question("emea.example.test.", qtype)
			if qtype != mdns.TypeNS {
				q = question("orders.emea.example.test.", qtype)
			}
			limit := 512
			if size > 0 {
				q.SetEdns0(size, false)
				limit = min(max(512, int(size)), 1232)
			}
			query, _ := q.Pack()
			udp, tcp := w.Handle(query, nobody, false), w.ask(t, q, true)
			if len(udp) > limit || len(udp) > 8*len(query) {
				t.Errorf("%s with a size of %d: %d bytes", mdns.TypeToString[qtype], size, len(udp))
			}
			m := new(mdns.Msg)
			if err := m.Unpack(udp); err != nil {
				t.Fatal(err)
			}
			if m.Truncated != (len(m.Answer) == 0) || tcp.Truncated || len(tcp.Answer) == 0 {
				t.Errorf("%s with a size of %d: UDP %s; TCP %d records", mdns.TypeToString[qtype], size, text(m), len(tcp.Answer))
			}
		}
	}
	if w.Stats().Truncated.Load() == 0 {
		t.Error("nothing was too large: the test tests nothing")
	}
}

func TestHandle_RateOfAPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *dns.Config) { c.RatePerSecond, c.Burst = 10, 20 })
		query, _ := question("orders.emea.example.test.", mdns.TypeA).Pack()
		count := func(n int, from string, tcp bool) (answered, slipped, dropped int) {
			for i := range n {
				a := netip.MustParseAddr(from)
				if a.Is4() { // every address of the prefix
					b := a.As4()
					b[3] = byte(i)
					a = netip.AddrFrom4(b)
				}
				switch out := w.Handle(query, a, tcp); {
				case out == nil:
					dropped++
				case out[2]&2 != 0:
					if len(out) > len(query) {
						t.Errorf("a slip of %d bytes for %d", len(out), len(query))
					}
					slipped++
				default:
					answered++
				}
			}
			return answered, slipped, dropped
		}
		if a, s, d := count(120, "198.51.100.0", false); a != 20 || s != 50 || d != 50 {
			t.Errorf("of 120 at once %d answered, %d slipped, %d dropped; want 20, 50, 50", a, s, d)
		}
		if a, _, _ := count(10, "198.51.101.0", false); a != 10 {
			t.Errorf("a neighbour's 10: %d answered", a)
		}
		if a, _, _ := count(100, "198.51.100.0", true); a != 100 {
			t.Errorf("over TCP %d of 100 answered", a)
		}
		time.Sleep(time.Second)
		if a, _, _ := count(50, "198.51.100.0", false); a != 10 {
			t.Errorf("a second later %d answered, want 10", a)
		}
		if a, _, _ := count(50, "2001:db8:0:100::1", false); a != 20 {
			t.Errorf("of IPv6 %d answered", a)
		}
		if a, _, _ := count(50, "2001:db8:0:1ff::1", false); a != 0 {
			t.Errorf("the same /56: %d answered", a)
		}
	})
}

func TestServer_NoTableNoAnswer(t *testing.T) {
	w := newWorld(t, nil)
	w.tables.Swap(nil)
	if m := w.ask(t, question("orders.emea.example.test.", mdns.TypeA), false); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("without a table: %s", text(m))
	}
}

func TestConfig_Validate(t *testing.T) {
	w := newWorld(t, nil)
	good := dns.Config{Zone: "emea", Tables: &w.tables, Outlook: func() *observe.Outlook { return nil }, Logger: slog.New(slog.DiscardHandler)}
	for what, spoil := range map[string]func(*dns.Config){
		"TTL over a grant": func(c *dns.Config) { c.TTL = 31 * time.Second },
		"negative TTL":     func(c *dns.Config) { c.NegativeTTL = time.Hour },
		"root as apex":     func(c *dns.Config) { c.Apexes = []string{"."} },
		"no zone":          func(c *dns.Config) { c.Zone = "" },
		"negative limit":   func(c *dns.Config) { c.Conns = -1 },
	} {
		bad := good
		spoil(&bad)
		if _, err := bad.Validate(); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	if c, err := good.Validate(); err != nil || c.TTL != 20*time.Second {
		t.Errorf("%v, TTL %v", err, c.TTL)
	}
}

// FuzzHandle: no query, however broken, draws a panic, a long answer, or an address that is not this zone's.
func FuzzHandle(f *testing.F) {
	w := newWorld(f, nil)
	for _, name := range []string{"orders.emea.example.test.", "emea.example.test.", "x.emea.example.test.", "orders.us.example.test.", "alone.example.org."} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeHTTPS, mdns.TypeNS, mdns.TypeSOA, mdns.TypeANY, mdns.TypeAXFR, mdns.TypeCAA} {
			b, _ := question(name, qtype).Pack()
			f.Add(b)
			b, _ = withSubnet(question(name, qtype), "10.1.2.0/24").Pack()
			f.Add(b)
		}
	}
	f.Add([]byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, query []byte) {
		for _, tcp := range []bool{false, true} {
			out := w.Handle(query, nobody, tcp)
			if out == nil {
				continue
			}
			if len(out) < 12 || out[0] != query[0] || out[1] != query[1] || out[2]&0x80 == 0 || out[3]&0x80 != 0 {
				t.Fatalf("%x is answered %x", query, out)
			}
			if !tcp && len(out) > min(8*len(query), 1232) {
				t.Fatalf("%d bytes answer %d", len(out), len(query))
			}
			m := new(mdns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatalf("%x is answered with what does not unpack: %v", query, err)
			}
			if strings.Contains(text(m), "198.51.100.") {
				t.Fatalf("a foreign address: %s", text(m))
			}
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	w := newWorld(b, nil)
	for _, qtype := range []uint16{mdns.TypeA, mdns.TypeHTTPS} {
		query, _ := withSubnet(question("orders.emea.example.test.", qtype), "10.1.2.0/24").Pack()
		b.Run(mdns.TypeToString[qtype], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if w.Handle(query, nobody, false) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// A zone's own drain is in force as one of the catalog's, and ends when it is taken away.
func TestHandle_ADrainOfTheZone(t *testing.T) {
	w := newWorld(t, nil)
	ask := func() string { return text(w.ask(t, question("orders.emea.example.test.", mdns.TypeA), false)) }
	both := ask()
	w.tables.Swap(newTable(t, append(slices.Clone(emea), object(table.KindDrain, "eu-west", table.Drain{Region: "eu-west", Reason: "work"}))))
	if got := ask(); got == both || strings.Contains(got, "192.0.2.1") || !strings.Contains(got, "192.0.2.2") {
		t.Errorf("eu-west is drained: %s", got)
	}
	w.tables.Swap(newTable(t, emea))
	if got := ask(); !strings.Contains(got, "192.0.2.1") {
		t.Errorf("eu-west is no longer drained: %s", got)
	}
}
