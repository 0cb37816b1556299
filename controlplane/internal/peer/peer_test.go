package peer_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bailiwick/controlplane/internal/peer"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry is an Allow that can be told to withdraw a node.
type registry struct {
	mu   sync.Mutex
	gone map[string]bool
}

func (r *registry) allow(n identity.Name) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone[n.Node] {
		return fault.New(fault.Denied, "NODE_WITHDRAWN", "node %s is not in the registry", n.Node)
	}
	return nil
}

func (r *registry) withdraw(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[node] = true
}

type world struct {
	in    *identitytest.Installation
	reg   *registry
	addrs map[string]string
}

func newWorld(t *testing.T) *world {
	return &world{identitytest.New(t, "test.example", "emea", "us"), &registry{gone: map[string]bool{}}, map[string]string{}}
}

func (w *world) start(t *testing.T, zone, node string, change func(*peer.Config)) *peer.Mux {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addrs[node] = ln.Addr().String()
	cfg := peer.Config{
		Listener: ln, Source: w.in.Source(t, zone, "r", identity.Control, node), Allow: w.reg.allow,
		Resolve: func(n string) (string, bool) { a, ok := w.addrs[n]; return a, ok },
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			n, _ := peer.NameFrom(r.Context())
			io.WriteString(rw, r.Proto+" "+n.Node)
			if r.URL.Path == "/hold" {
				rw.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		}),
	}
	if change != nil {
		change(&cfg)
	}
	m, err := peer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
	})
	return m
}

func onlyZone(zone string) func(identity.Name) error {
	return func(n identity.Name) error {
		if n.Zone != zone {
			return fault.New(fault.Denied, identity.ReasonWrongPeer, "%s is not of zone %s", n, zone)
		}
		return nil
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func get(t *testing.T, c *http.Client, url string) (string, error) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestMux_HTTPKnowsThePeer(t *testing.T) {
	w := newWorld(t)
	a := w.start(t, "emea", "emea-1", nil)
	w.start(t, "us", "us-1", nil)
	for range 2 {
		if got, err := get(t, a.Client("us-1"), peer.URL("us-1")); err != nil || got != "HTTP/2.0 emea-1" {
			t.Fatalf("got %q %v, want HTTP/2.0 emea-1", got, err)
		}
	}
	// Another node at the address is found out by its name.
	w.addrs["emea-2"] = w.addrs["us-1"]
	if _, err := get(t, a.Client("emea-2"), peer.URL("emea-2")); fault.ReasonOf(err) != peer.ReasonUnreachable {
		t.Errorf("another node's address: got %v, want %s", err, peer.ReasonUnreachable)
	}
	if _, err := get(t, a.Client("nobody"), peer.URL("nobody")); fault.ReasonOf(err) != peer.ReasonUnresolved {
		t.Errorf("unknown node: got %v, want %s", err, peer.ReasonUnresolved)
	}
}

func TestMux_StreamOfAGroup(t *testing.T) {
	w := newWorld(t)
	a, b, us := w.start(t, "emea", "emea-1", nil), w.start(t, "emea", "emea-2", nil), w.start(t, "us", "us-1", nil)
	sa, sb := a.Stream("store/emea", onlyZone("emea")), b.Stream("store/emea", onlyZone("emea"))
	su := us.Stream("store/emea", nil) // a us node that would like to be a member
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	got := make(chan string, 1)
	go func() {
		c, err := sb.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		b := make([]byte, 4)
		io.ReadFull(c, b)
		got <- string(b)
	}()
	c, err := sa.Dial(ctx, "emea-2")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("raft"))
	if s := <-got; s != "raft" {
		t.Fatalf("got %q, want raft", s)
	}

	// A us certificate at an emea raft door: refused in the handshake. In TLS 1.3 the
	// dialler learns it when it first reads.
	if c, err := su.Dial(ctx, "emea-1"); err == nil {
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Error("us node at an emea group: got a byte, want refused")
		} else if !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("us node at an emea group: got %v, want a certificate alert", err)
		}
		c.Close()
	}
	if _, err := sa.Dial(ctx, "us-1"); err == nil {
		t.Error("emea node dials a us node for an emea group: got connected, want refused")
	}
	if _, err := a.Stream("ledger/emea", nil).Dial(ctx, "emea-2"); err == nil {
		t.Error("a group the peer does not serve: got connected, want refused")
	}
	eventually(t, "refusals are counted", func() bool { return a.Refused() > 0 && b.Refused() > 0 })
	sb.Close()
	if _, err := sb.Accept(); err == nil {
		t.Error("accept after close: got a connection")
	}
}

func TestMux_WithdrawnNodeIsCutOff(t *testing.T) {
	w := newWorld(t)
	a, b := w.start(t, "emea", "emea-1", nil), w.start(t, "emea", "emea-2", nil)
	resp, err := a.Client("emea-2").Get(peer.URL("emea-2") + "/hold")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	gone := make(chan error, 1)
	go func() { _, err := io.ReadAll(resp.Body); gone <- err }()

	w.reg.withdraw("emea-1")
	if n := b.Recheck(); n != 1 {
		t.Errorf("recheck: got %d connections closed, want 1", n)
	}
	select {
	case err := <-gone:
		if err == nil {
			t.Error("stream of a withdrawn node: got a clean end, want cut")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("stream of a withdrawn node still stands")
	}
	if _, err := get(t, a.Client("emea-2"), peer.URL("emea-2")); err == nil {
		t.Error("withdrawn node: got an answer, want refused")
	}
	if n := b.CloseNode(w.in.Node("emea", "r", identity.Control, "emea-1")); n != 0 {
		t.Errorf("got %d connections left, want 0", n)
	}
}

func TestMux_HalfOpenHandshakesDoNotBlock(t *testing.T) {
	w := newWorld(t)
	a := w.start(t, "emea", "emea-1", nil)
	w.start(t, "emea", "emea-2", func(c *peer.Config) { c.MaxHandshakes = 4; c.HandshakeTimeout = 4 * time.Second })
	var idle []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", w.addrs["emea-2"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	if got, err := get(t, a.Client("emea-2"), peer.URL("emea-2")); err != nil || !strings.HasSuffix(got, "emea-1") {
		t.Fatalf("beside 20 silent connections: got %q %v", got, err)
	}
	for i, c := range idle {
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("silent connection %d: got a byte", i)
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("silent connection %d still stands after the deadline", i)
		}
	}
	// No certificate, and no protocol.
	tc, err := tls.Dial("tcp", w.addrs["emea-2"], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		tc.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := tc.Read(make([]byte, 1)); err == nil {
			t.Error("no client certificate: got a byte, want refused")
		}
		tc.Close()
	}
	if tc, err := tls.Dial("tcp", w.addrs["emea-2"], &tls.Config{InsecureSkipVerify: true}); err == nil {
		tc.Close()
		t.Error("no protocol: got connected, want refused")
	}
}
