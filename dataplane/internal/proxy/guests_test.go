package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
)

// elsewhere makes a door believe that its clients come from an address.
type elsewhere struct {
	net.Listener
	from func() string
}

type seenFrom struct {
	net.Conn
	addr net.Addr
}

func (c seenFrom) RemoteAddr() net.Addr { return c.addr }

func (l elsewhere) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return seenFrom{c, &net.TCPAddr{IP: net.ParseIP(l.from()), Port: 1}}, nil
}

// The connections of all clients together are bounded, and those of each address.
func TestDoor_BoundsConnections(t *testing.T) {
	from := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler), MaxConnections: 3, MaxPerAddress: 2,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				w.(http.ResponseWriter).WriteHeader(200)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		})}).HTTP
	ended := make(chan error, 1)
	go func() { ended <- door.Serve(elsewhere{l, func() string { return <-from }}) }()
	defer func() { door.Close(); <-ended }()
	open := func(addr, path string) (net.Conn, bool) {
		t.Helper()
		from <- addr
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		return c, err == nil && resp.StatusCode == 200
	}
	idle, ok := open("192.0.2.1", "/")
	if !ok {
		t.Fatal("the first is refused")
	}
	if _, ok := open("192.0.2.1", "/hold"); !ok {
		t.Fatal("the second is refused")
	}
	if _, ok := open("192.0.2.1", "/"); ok {
		t.Error("a third of one address is taken")
	}
	third, ok := open("2001:db8::1", "/hold")
	if !ok {
		t.Fatal("another address is refused")
	}
	// All places are taken. One that waits for its next request goes.
	eventually(t, 20*time.Second, "the place of one that does nothing", func() bool { _, ok := open("2001:db8::2", "/hold"); return ok })
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("the one that did nothing is still there")
	}
	if _, ok := open("2001:db8:0:0:ffff::3", "/hold"); ok {
		t.Error("a third of one /64 is taken")
	}
	if _, ok := open("192.0.2.9", "/hold"); ok {
		t.Error("one more than there may be is taken although all are busy")
	}
	third.Close()
	eventually(t, 20*time.Second, "a place", func() bool { _, ok := open("192.0.2.9", "/hold"); return ok })
}

// A client that sends half a head does not hold up a door that shuts.
func TestDoor_ShutsOnHalfAHead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler), Handler: http.NotFoundHandler()}).HTTP
	ended := make(chan error, 1)
	go func() { ended <- door.Serve(l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// One request first, so that the connection is known to be served; then half of another.
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := door.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	<-ended
	if took := time.Since(began); took > 9*time.Second { // a second, and half a one of lingering
		t.Errorf("the door took %v to shut", took)
	}
}

// Over HTTP/2 too one that does nothing goes for another client, and one that does something does not.
func TestDoor_IdleOverHTTP2GoesFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := selfSigned(t, "orders.test")
	door := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}}, Logger: slog.New(slog.DiscardHandler), MaxConnections: 2,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				w.WriteHeader(200)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		})}).HTTPS
	ended := make(chan error, 1)
	go func() { ended <- door.Serve(l) }()
	defer func() { door.Close(); <-ended }()
	ask := func(path string) bool { // over a connection of its own, which stays
		var protocols http.Protocols
		protocols.SetHTTP2(true)
		tr := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"}}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		t.Cleanup(func() { cancel(); tr.CloseIdleConnections() })
		r, err := http.NewRequestWithContext(ctx, "GET", "https://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(r)
		return err == nil && resp.StatusCode == 200 && resp.ProtoMajor == 2
	}
	for i := range 4 {
		if !ask("/") {
			t.Fatalf("client %d is refused although others do nothing", i)
		}
	}
	for range 2 {
		eventually(t, 20*time.Second, "a place of one that does nothing", func() bool { return ask("/hold") })
	}
	if ask("/") {
		t.Error("one that does something goes for another")
	}
}

// The doors share their places: one that does nothing at one of them goes for a client of another.
func TestDoors_IdleAtOneGoesForAnother(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	s := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler), MaxConnections: 2, Handler: http.NotFoundHandler()})
	at := map[*proxy.Door]string{}
	for _, d := range []*proxy.Door{s.HTTP, s.HTTPS} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- d.Serve(l) }()
		defer func() { d.Close(); <-ended }()
		at[d] = l.Addr().String()
	}
	for range 2 {
		c, err := net.Dial("tcp", at[s.HTTP])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, 20*time.Second, "two connections", func() bool { return s.Connections().Open == 2 })
	c, err := tls.Dial("tcp", at[s.HTTPS], &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("a client of the other door is refused: %v", err)
	}
	c.Close()
	if got := s.Connections(); got.Yielded != 1 || got.Full != 0 || got.Taken != 3 {
		t.Errorf("got %+v", got)
	}
}
