package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/observe"
)

// listening is a server on loopback. It ends, with all it started, before the test does.
func listening(t *testing.T, change func(*dns.Config)) *server {
	t.Helper()
	w := newWorld(t, nil)
	cfg := dns.Config{Zone: "emea", Tables: &w.tables, Outlook: func() *observe.Outlook { return &w.outlook }, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	s, err := dns.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	udp, tcp, err := dns.Listen(sockets{}, "127.0.0.1:0")
	for range 9 { // the number that UDP was given may be taken in TCP
		if err == nil {
			break
		}
		udp, tcp, err = dns.Listen(sockets{}, "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Serve does not return")
		}
		goleak.VerifyNone(t, goleak.IgnoreCurrent())
	})
	return &server{s, udp.LocalAddr().String()}
}

type server struct {
	*dns.Server
	addr string
}

func TestServer_UDPAndTCP(t *testing.T) {
	s := listening(t, nil)
	for _, network := range []string{"udp", "tcp"} {
		q := question("Orders.EMEA.example.test.", mdns.TypeA)
		m, _, err := (&mdns.Client{Net: network, Timeout: 2 * time.Second}).Exchange(q, s.addr)
		if err != nil || len(m.Answer) != 2 || m.Question[0].Name != "Orders.EMEA.example.test." {
			t.Errorf("%s: %v, %v", network, m, err)
		}
	}
}

// Queries that are sent together are answered one by one in order; a connection ends after a hundred.
func TestServer_Pipelining(t *testing.T) {
	s := listening(t, nil)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var all []byte
	for id := range uint16(101) {
		q := question("orders.emea.example.test.", mdns.TypeA)
		q.Id = id
		b, _ := q.Pack()
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(b))), b...)
	}
	if _, err := conn.Write(all); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for id := range uint16(100) {
		var head [4]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			t.Fatalf("answer %d: %v", id, err)
		}
		if got := binary.BigEndian.Uint16(head[2:]); got != id {
			t.Fatalf("answer %d has id %d", id, got)
		}
		_, _ = io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint16(head[:]))-2)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes more after a hundred answers", n)
	}
}

// One client prefix holds an eighth of the connections; who holds one silent loses it.
func TestServer_ConnectionsAreBounded(t *testing.T) {
	s := listening(t, func(c *dns.Config) { c.Conns = 16 })
	var held []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	deadline := time.Now().Add(30 * time.Second)
	for s.Stats().Conns.Load() < 2 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("the third connection of a prefix is kept open: %v", err)
	}
	if s.Stats().ConnsOver.Load() != 1 {
		t.Errorf("%d connections counted as too many", s.Stats().ConnsOver.Load())
	}
	began := time.Now()
	_ = held[0].SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := held[0].Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a silent connection is kept: %v", err)
	} else if d := time.Since(began); d > 30*time.Second {
		t.Errorf("a silent connection lives %v", d)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestListen_PortTaken(t *testing.T) {
	s := listening(t, nil)
	if _, _, err := dns.Listen(sockets{}, s.addr); err == nil {
		t.Error("two servers on one port")
	}
}

// sockets are new ones, whatever their names.
type sockets struct{}

func (sockets) Listen(_, address string) (net.Listener, error) { return net.Listen("tcp", address) }
func (sockets) ListenPacket(_, address string) (net.PacketConn, error) {
	return net.ListenPacket("udp", address)
}
