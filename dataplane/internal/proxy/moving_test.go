package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// A client over QUIC may move: upstreams, limits and logs are told where it is, once it has shown that it is there, over both roads.
func TestHTTP3_AClientThatMovesIsWhereItIs(t *testing.T) {
	w := newWorld(t, nil)
	socket := func(address string) *quic.Transport {
		pc, err := net.ListenPacket("udp", address+":0")
		if err != nil {
			t.Skipf("this system has no %s: %v", address, err)
		}
		tr := &quic.Transport{Conn: pc}
		t.Cleanup(func() { tr.Close(); pc.Close() })
		return tr
	}
	first, second := socket("127.0.0.1"), socket("127.0.0.2")
	var conn *quic.Conn
	base := ""
	for _, v := range w.vias() {
		if v.name == "HTTP/3" {
			base = v.base
		}
	}
	tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"},
		Dial: func(ctx context.Context, address string, t *tls.Config, q *quic.Config) (c *quic.Conn, err error) {
			to, err := net.ResolveUDPAddr("udp", address)
			if err != nil {
				return nil, err
			}
			c, err = first.Dial(ctx, to, t, q)
			conn = c
			return c, err
		}}
	t.Cleanup(func() { tr.Close() })
	from := func(method string, body int) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, base+"/v1/x", strings.NewReader(strings.Repeat("x", body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
			t.Fatalf("got %d, %v", resp.StatusCode, err)
		}
		h, _ := w.west.up.last()
		return h.Get("X-Forwarded-For")
	}
	if at := from("GET", 0); at != "127.0.0.1" {
		t.Fatalf("it came from %q", at)
	}
	path, err := conn.AddPath(second)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if at := from("GET", 0); at != "127.0.0.1" {
		t.Errorf("one that has only looked at another path is at %q", at)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "its new address, on the common road", func() bool { return from("GET", 0) == "127.0.0.2" })
	if at := from("POST", 100<<10); at != "127.0.0.2" {
		t.Errorf("a long body came from %q", at)
	}
}
