package upstream_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
)

// A region says where its upstreams are. Whatever a name means, nothing else is dialled, from the moment that it says so; and
// what another zone's API names is trusted with less than the own zone's.
func TestDialer_StaysWithinTheRegionsNetworks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	var bound []netip.Prefix
	d := upstream.NewDialer(upstream.Config{Allow: upstream.Loopback(), Networks: func() []netip.Prefix { return bound }})
	for _, c := range []struct {
		name   string
		bound  string
		at     upstream.Place
		to     string
		passes bool
	}{
		{"no bound", "", upstream.Place{}, "127.0.0.1", true},
		{"within", "127.0.0.0/24", upstream.Place{}, "127.0.0.1", true},
		{"another network", "10.0.0.0/8", upstream.Place{}, "127.0.0.1", false},
		{"a public one outside", "10.0.0.0/8", upstream.Place{}, "192.0.2.1", false},
		{"what a name means", "10.0.0.0/8", upstream.Place{Pin: netip.MustParseAddr("127.0.0.1")}, "public.example", false},
		{"a name that is resolved at the dial", "10.0.0.0/8", upstream.Place{}, "localhost", false},
		{"another zone's, of what this zone alone may", "", upstream.Place{Zone: "us"}, "127.0.0.1", false},
		{"another zone's, within the networks", "127.0.0.0/24", upstream.Place{Zone: "us"}, "127.0.0.1", false},
	} {
		bound = nil
		if c.bound != "" {
			bound = []netip.Prefix{netip.MustParsePrefix(c.bound)}
		}
		conn, err := d.Dial(t.Context(), c.at, net.JoinHostPort(c.to, port))
		if (err == nil) != c.passes || !c.passes && !errors.Is(err, upstream.ErrAddress) {
			t.Errorf("%s: got %v, want it to pass: %v", c.name, err, c.passes)
		}
		if conn != nil {
			conn.Close()
		}
	}
	foreign := upstream.NewDialer(upstream.Config{AllowForeign: upstream.Loopback()})
	for zone, passes := range map[string]bool{"us": true, "": false} {
		conn, err := foreign.Dial(t.Context(), upstream.Place{Zone: zone}, net.JoinHostPort("127.0.0.1", port))
		if (err == nil) != passes {
			t.Errorf("zone %q: got %v, want it to pass: %v", zone, err, passes)
		}
		if conn != nil {
			conn.Close()
		}
	}
}

// A certificate that an API of another zone names is one that lies here for that zone.
func TestDialer_ShowsAnotherZoneItsOwnCertificateAlone(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{Certs: upstream.NewCerts(t.TempDir())})
	for zone, want := range map[string]string{"": "certificate orders for", "us": "certificate us/orders for"} {
		cfg, err := d.TLS(upstream.Place{Base: "https://h", Zone: zone, TLS: table.UpstreamTLS{ClientCertificate: "orders"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cfg.GetClientCertificate(&tls.CertificateRequestInfo{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("zone %q: got %v, want %q", zone, err, want)
		}
	}
}

// Nor does it get at another's by a name that leads there.
func TestDialer_TakesNoPathForACertificate(t *testing.T) {
	d := upstream.NewDialer(upstream.Config{Certs: upstream.NewCerts(t.TempDir())})
	for _, name := range []string{"../orders", "x/../../orders", `..\orders`} {
		if _, err := d.TLS(upstream.Place{Base: "https://h", Zone: "us", TLS: table.UpstreamTLS{ClientCertificate: name}}); err == nil {
			t.Errorf("%s of another zone's API is taken for a name", name)
		}
	}
}

func TestNames_MeanNothingOutsideTheRegionsNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		bound := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}
		n, err := upstream.NewNames(upstream.NamesConfig{Logger: slog.New(slog.DiscardHandler), Networks: func() []netip.Prefix { mu.Lock(); defer mu.Unlock(); return bound },
			Lookup: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.1")}, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		defer func() { cancel(); <-done }()
		n.Want([]string{"orders.internal"})
		time.Sleep(time.Second)
		if got := n.Addrs("orders.internal"); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
			t.Errorf("got %v, want what is within", got)
		}
		mu.Lock()
		bound = nil
		mu.Unlock()
		time.Sleep(time.Minute)
		if got := n.Addrs("orders.internal"); len(got) != 3 {
			t.Errorf("without a bound: got %v", got)
		}
	})
}
