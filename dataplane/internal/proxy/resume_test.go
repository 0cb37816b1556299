package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
)

// doors are an edge's doors whose TLS policy gives a host its own ticket keys, as edgetls does.
type doors struct {
	servers  proxy.Servers
	roots    *x509.CertPool
	policy   *tls.Config
	requests atomic.Int64
	proven   chan bool // whether QUIC took a client's address for proven
}

func newDoors(t *testing.T, reset []byte) *doors { return newCrowdedDoors(t, reset, 0) }

func newCrowdedDoors(t *testing.T, reset []byte, unproven int) *doors {
	t.Helper()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	d := &doors{roots: x509.NewCertPool(), proven: make(chan bool, 8)}
	d.roots.AddCert(web.Certificate())
	var key [32]byte
	rand.Read(key[:])
	host := &tls.Config{Certificates: web.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	host.SetSessionTicketKeys([][32]byte{key})
	d.policy = &tls.Config{Certificates: web.TLS.Certificates, SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return host, nil }}
	d.servers = proxy.NewServers(proxy.ServersConfig{TLS: d.policy, ResetKey: reset, UnprovenASecond: unproven, Logger: slog.New(slog.DiscardHandler),
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { d.requests.Add(1) })})
	own := d.servers.H3.QUIC.Clone()
	d.servers.H3.QUIC.GetConfigForClient = func(i *quic.ClientInfo) (*quic.Config, error) {
		d.proven <- i.AddrVerified
		return own, nil
	}
	return d
}

// quic opens the HTTP/3 door and says where.
func (d *doors) quic(t *testing.T, at string) net.PacketConn {
	t.Helper()
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.servers.H3.Serve(u) }()
	t.Cleanup(func() {
		d.servers.H3.Close()
		u.Close()
		<-ended
	})
	return u
}

type tickets struct {
	s atomic.Pointer[tls.ClientSessionState]
}

func (c *tickets) Get(string) (*tls.ClientSessionState, bool) {
	s := c.s.Load()
	return s, s != nil
}

func (c *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.s.Store(s)
	}
}

// early dials and says whether the server took early data, and whether it resumed.
func (d *doors) early(t *testing.T, addr string, cache *tickets) (took, resumed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	before := cache.s.Load()
	c, err := quic.DialAddrEarly(ctx, addr, &tls.Config{RootCAs: d.roots, ServerName: "example.com", NextProtos: []string{http3.NextProtoH3}, ClientSessionCache: cache}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseWithError(0, "")
	if s, err := c.OpenUniStream(); err == nil { // in the first flight, if the client may
		s.Write([]byte{0})
	}
	select {
	case <-c.HandshakeComplete():
	case <-ctx.Done():
		t.Fatal("no handshake within 10 s")
	}
	eventually(t, 5*time.Second, "a ticket", func() bool { return cache.s.Load() != before })
	return c.ConnectionState().Used0RTT, c.ConnectionState().TLS.DidResume
}

// A replayed request would be counted and acted on twice: early data is not taken, not even from a client whose
// ticket was given by a server that would have.
func TestServers_TakeNoEarlyDataOverQUIC(t *testing.T) {
	d := newDoors(t, nil)
	generous := &http3.Server{Handler: http.NotFoundHandler(), TLSConfig: http3.ConfigureTLSConfig(d.policy), QUICConfig: &quic.Config{Allow0RTT: true}}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go generous.Serve(u)
	defer generous.Close()
	var cache tickets
	d.early(t, u.LocalAddr().String(), &cache)
	if took, _ := d.early(t, u.LocalAddr().String(), &cache); !took {
		t.Fatal("the client offers no early data to a server that takes it: the test would prove nothing")
	}
	own := d.quic(t, "127.0.0.1:0")
	took, resumed := d.early(t, own.LocalAddr().String(), &cache)
	if took || !resumed {
		t.Errorf("early data taken %v, resumed %v; want it refused and the ticket good", took, resumed)
	}
	if took, _ := d.early(t, own.LocalAddr().String(), &cache); took {
		t.Error("early data taken with a ticket of our own")
	}
}

// hello changes a client's first flight: it offers early data and sends a request as such.
type hello struct {
	net.Conn
	done bool
}

func (h *hello) Write(p []byte) (int, error) {
	if h.done {
		return h.Conn.Write(p)
	}
	h.done = true
	ext := 5 + 4 + 2 + 32
	ext += 1 + int(p[ext])                           // session id
	ext += 2 + int(binary.BigEndian.Uint16(p[ext:])) // cipher suites
	ext += 1 + int(p[ext])                           // compression
	at := ext + 2                                    // of the extension that comes next
	for binary.BigEndian.Uint16(p[at:]) != 41 {      // pre_shared_key, always the last
		at += 4 + int(binary.BigEndian.Uint16(p[at+2:])) //
	}
	q := slices.Concat(p[:at], []byte{0, 42, 0, 0}, p[at:]) // early_data
	for _, length := range []int{3, 7, ext} {               // of the record, the message (its lower two bytes), the extensions
		binary.BigEndian.PutUint16(q[length:], binary.BigEndian.Uint16(q[length:])+4)
	}
	request := []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	q = slices.Concat(q, []byte{23, 3, 3, 0, byte(len(request))}, request)
	_, err := h.Conn.Write(q)
	return len(p), err
}

func TestServers_TakeNoEarlyDataOverTCP(t *testing.T) {
	d := newDoors(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go d.servers.HTTPS.Serve(l)
	defer d.servers.HTTPS.Close()
	var cache tickets
	dial := func(change bool) error {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(5 * time.Second))
		conn := raw
		if change {
			conn = &hello{Conn: raw}
		}
		c := tls.Client(conn, &tls.Config{RootCAs: d.roots, ServerName: "example.com", ClientSessionCache: &cache, NextProtos: []string{"http/1.1"}})
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		all, err := io.ReadAll(c)
		if err == nil && !bytes.HasPrefix(all, []byte("HTTP/1.1 200")) {
			return errors.New("no answer")
		}
		return err
	}
	for range 2 {
		if err := dial(false); err != nil {
			t.Fatal(err)
		}
	}
	before := d.requests.Load()
	if cache.s.Load() == nil || before != 2 {
		t.Fatalf("got %d requests and ticket %v; without a ticket the test would prove nothing", before, cache.s.Load())
	}
	err = dial(true)
	if d.requests.Load() != before {
		t.Errorf("the handler got %d requests out of early data, want none", d.requests.Load()-before)
	}
	if err == nil {
		t.Error("a client that offers early data was served, want its handshake refused")
	}
}

// told tells when a token has come, which is some time after a handshake.
type told struct {
	quic.TokenStore
	put chan struct{}
}

func (s told) Put(key string, token *quic.ClientToken) {
	s.TokenStore.Put(key, token)
	s.put <- struct{}{}
}

func TestServers_AddressTokensAndResetsAreOneEdges(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	a, b := newDoors(t, key), newDoors(t, nil)
	at, elsewhere := a.quic(t, porttest.Addr(t)), b.quic(t, "127.0.0.1:0")
	store := told{quic.NewLRUTokenStore(4, 4), make(chan struct{}, 100)}
	dial := func(d *doors, addr string) (*quic.Conn, bool) {
		t.Helper()
		c, err := quic.DialAddr(t.Context(), addr, &tls.Config{RootCAs: d.roots, ServerName: "example.com", NextProtos: []string{http3.NextProtoH3}},
			&quic.Config{TokenStore: store, MaxIdleTimeout: 2 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-store.put:
		case <-time.After(time.Minute):
			t.Fatal("no token comes")
		}
		return c, <-d.proven
	}
	c, _ := dial(a, at.LocalAddr().String())
	c.CloseWithError(0, "")
	c, proven := dial(a, at.LocalAddr().String())
	if !proven {
		t.Fatal("an edge does not know its own token again: the rest would prove nothing")
	}
	if x, proven := dial(b, elsewhere.LocalAddr().String()); proven {
		t.Error("an edge takes another edge's token")
	} else {
		x.CloseWithError(0, "")
	}

	// The process of a dies, and another begins in its place.
	at.Close()
	again := newDoors(t, key)
	again.quic(t, at.LocalAddr().String())
	deadline := time.Now().Add(time.Minute)
	for c.Context().Err() == nil && time.Now().Before(deadline) {
		if s, err := c.OpenUniStream(); err == nil {
			s.Write(bytes.Repeat([]byte{0}, 200))
		}
		time.Sleep(20 * time.Millisecond)
	}
	var reset *quic.StatelessResetError
	if err := context.Cause(c.Context()); !errors.As(err, &reset) {
		t.Errorf("after a restart: got %v, want the client told at once by a stateless reset", err)
	}
}
