package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/proxy"
)

// shore is a process of two with one UDP socket.
type shore struct {
	*proxy.Door3
	conn  *ferry.Conn
	asked atomic.Int64
	letGo chan struct{}
	ended chan error
}

// shores are a process that serves HTTP/3 and one that is to take its place, which does not yet.
func shores(t *testing.T) (before, after *shore) {
	t.Helper()
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	cert.Close()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	makes := func(name string, socket net.PacketConn, others ...ferry.Mark) *shore {
		s := &shore{letGo: make(chan struct{}), ended: make(chan error, 1)}
		if s.conn, err = ferry.New(socket.(*net.UDPConn), others...); err != nil {
			t.Fatal(err)
		}
		s.Door3 = proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler), ResetKey: bytes.Repeat([]byte{1}, 32),
			MaxConnections: 1000, MaxPerAddress: 1000,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				s.asked.Add(1)
				if r.URL.Path == "/slow" {
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
					<-s.letGo
				}
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Errorf("a body: %v", err)
				}
				w.Write(b)
				io.WriteString(w, name)
			})}).H3
		t.Cleanup(func() { s.Close(); s.conn.Close() })
		return s
	}
	before = makes("before", l)
	return before, makes("after", same, before.conn.Mark())
}

func (s *shore) open() { go func() { s.ended <- s.Serve(s.conn) }() }

// takeOver has the other serve.
func (s *shore) takeOver(t *testing.T, from *shore) {
	t.Helper()
	if err := from.conn.Detach(); err != nil {
		t.Fatal(err)
	}
	s.conn.Divert(from.conn.Mark(), func(frame []byte) { from.conn.Deliver(frame) })
	s.open()
}

func (s *shore) client(t *testing.T, at string) *http.Client {
	t.Helper()
	tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "example.com"}, QUICConfig: &quic.Config{HandshakeIdleTimeout: 20 * time.Second},
		Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, at, t, q)
		}}
	t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func echoes(t *testing.T, c *http.Client, body, want string) {
	t.Helper()
	if got, err := echoed(c, body); got != body+want || err != nil {
		t.Fatalf("got %d bytes, %v, want those sent and %s", len(got), err, want)
	}
}

func echoed(c *http.Client, body string) (string, error) {
	resp, err := c.Post("https://example.com/", "text/plain", io.NopCloser(bytes.NewReader([]byte(body))))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// A door whose socket another process reads goes on with what is under way, bodies both ways, has all others go elsewhere, and may be
// shut twice.
func TestHTTP3_GoesOnWhileAnotherServes(t *testing.T) {
	before, after := shores(t)
	before.open()
	at := before.conn.LocalAddr().String()
	busy, idle, fresh := before.client(t, at), before.client(t, at), before.client(t, at)
	echoes(t, idle, "", "before")
	body, in := io.Pipe()
	resp, err := busy.Post("https://example.com/slow", "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	after.takeOver(t, before)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := before.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it does not wait: %v", err)
	}
	select {
	case err := <-before.ended:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve says %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve waits for handshakes, and there are none")
	}
	echoes(t, fresh, "", "after")
	echoes(t, idle, "", "after")
	over := make(chan struct{})
	go func() {
		long, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		before.End(long)
		close(over)
	}()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	close(before.letGo)
	go func() { in.Write(big); in.Close() }()
	echoes(t, fresh, "x", "after")
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got[min(len(got), len(big)):]) != "before" || !bytes.Equal(got[:len(big)], big) {
		t.Errorf("what was under way: %d bytes, %v", len(got), err)
	}
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	before.conn.Close()
	after.conn.Divert(before.conn.Mark(), nil)
	echoes(t, busy, "", "after")
	if n := before.asked.Load(); n != 2 {
		t.Errorf("%d requests at the one before, want 2", n)
	}
}

// holding is a NAT that keeps back what a client sends once a process has answered it.
type holding struct {
	at   string
	has  chan struct{} // something
	pass func()        // what it has, and all that comes
}

func newHolding(t *testing.T, to *shore) *holding {
	t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.DialUDP("udp", nil, to.conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	passes := make(chan struct{})
	h := &holding{near.LocalAddr().String(), make(chan struct{}, 100), sync.OnceFunc(func() { close(passes) })}
	var wg sync.WaitGroup
	t.Cleanup(func() { h.pass(); near.Close(); far.Close(); wg.Wait() })
	var from atomic.Pointer[net.UDPAddr]
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, client, err := near.ReadFromUDP(b)
			if err != nil {
				return
			}
			from.Store(client)
			if b[0] >= 0x80 && b[5] == ferry.IDLen && ferry.Mark(binary.BigEndian.Uint32(b[6:])) == to.conn.Mark() {
				select {
				case h.has <- struct{}{}:
				default:
				}
				<-passes
			}
			far.Write(b[:n])
		}
	})
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := far.Read(b)
			if err != nil {
				return
			}
			near.WriteToUDP(b[:n], from.Load())
		}
	})
	return h
}

// A client whose handshake is under way when another process takes the socket has it, and its first request, served where it began;
// the door waits for it, and then for nobody.
func TestHTTP3_AHandshakeUnderWayIsServed(t *testing.T) {
	before, after := shores(t)
	before.open()
	h := newHolding(t, before)
	c := before.client(t, h.at)
	type said struct {
		text string
		err  error
	}
	got := make(chan said, 1)
	go func() { s, err := echoed(c, "x"); got <- said{s, err} }()
	<-h.has
	after.takeOver(t, before)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := before.Shutdown(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it does not wait: %v", err)
	}
	h.pass()
	if s := <-got; s.text != "xbefore" || s.err != nil {
		t.Errorf("got %q, %v", s.text, s.err)
	}
	<-before.ended
	// It is told to go elsewhere, though nobody shuts the door at the moment.
	eventually(t, 30*time.Second, "it to go elsewhere", func() bool { text, err := echoed(c, ""); return text == "after" && err == nil })
	long, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if before.End(long); long.Err() != nil {
		t.Error("it does not end before its time is over")
	}
}

// A door that is closed waits for no handshake, and the client is told.
func TestHTTP3_CloseRefusesHandshakesUnderWay(t *testing.T) {
	before, after := shores(t)
	before.open()
	h := newHolding(t, before)
	c := before.client(t, h.at)
	got := make(chan error, 1)
	go func() { _, err := echoed(c, "x"); got <- err }()
	<-h.has
	after.takeOver(t, before)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	before.End(ctx)
	var refused *quic.TransportError
	if err := <-got; !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
		t.Errorf("the client is told %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	echoes(t, after.client(t, after.conn.LocalAddr().String()), "", "after")
}
