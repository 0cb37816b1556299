package proxy_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// Many handshakes from addresses that nobody has proven are made to prove them; a few are not.
func TestServers_ACrowdProvesItsAddresses(t *testing.T) {
	for _, c := range []struct {
		most int
		want bool
	}{{0, false}, {1, true}} {
		d := newCrowdedDoors(t, nil, c.most)
		at := d.quic(t, "127.0.0.1:0")
		asked := false
		for range 6 { // more than one of them within a second, whenever it turns
			conn, err := quic.DialAddr(t.Context(), at.LocalAddr().String(), &tls.Config{RootCAs: d.roots, ServerName: "example.com", NextProtos: []string{http3.NextProtoH3}}, nil)
			if err != nil {
				t.Fatalf("at most %d: %v", c.most, err)
			}
			conn.CloseWithError(0, "")
			asked = <-d.proven || asked
		}
		if asked != c.want {
			t.Errorf("at most %d unproven a second: asked for a proof %v, want %v", c.most, asked, c.want)
		}
	}
}

// A connection that was made with one edge and whose packets then come to another, as of a client that moves or of an
// address that does, is nothing there: no request of it is read.
func TestServers_AConnectionDoesNotMoveToAnotherEdge(t *testing.T) {
	a, b := newDoors(t, nil), newDoors(t, nil)
	there, elsewhere := a.quic(t, "127.0.0.1:0").LocalAddr(), b.quic(t, "127.0.0.1:0").LocalAddr()
	middle, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer middle.Close()
	var to, client atomic.Pointer[net.Addr]
	to.Store(&there)
	var passed atomic.Int64 // to the other edge
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := middle.ReadFrom(buf)
			if err != nil {
				return
			}
			if from.String() == there.String() || from.String() == elsewhere.String() {
				middle.WriteTo(buf[:n], *client.Load())
				continue
			}
			client.Store(&from)
			if middle.WriteTo(buf[:n], *to.Load()); *to.Load() == elsewhere {
				passed.Add(1)
			}
		}
	}()
	tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: a.roots, ServerName: "example.com"}}
	defer tr.Close()
	get := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+middle.LocalAddr().String()+"/", nil)
		if err != nil {
			return err
		}
		resp, err := tr.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(30 * time.Second); err != nil || a.requests.Load() != 1 {
		t.Fatalf("before: %v, %d requests", err, a.requests.Load())
	}
	to.Store(&elsewhere)
	if err := get(time.Second); err == nil || b.requests.Load() != 0 || passed.Load() == 0 {
		t.Errorf("after: got %v, %d requests at the other edge and %d packets, want an error, none and some", err, b.requests.Load(), passed.Load())
	}
}
