package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// dial opens a connection to the edge's door, to write and read as no library would.
func (w *world) dial() (net.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	return conn, bufio.NewReader(conn)
}

func (w *world) head(method, path string, more ...string) string {
	return method + " " + path + " HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: " + w.key + "\r\n" + strings.Join(more, "")
}

func read(t *testing.T, in *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// Both roads let the same headers through, in both directions: the lists are one, and are read as one.
func TestCommon_StripsWhatAnExchangeStrips(t *testing.T) {
	names := append(proxy.Names(), "Bailiwick-Edge", "Bailiwick-Relay-Api", "Bailiwick-", "Bailiwic", "Accept", "Cookie", "X-Mine", "User-Agent", "Date", "Server", "Alt-Svc", "Content-Type", "Etag", "X-Request-Id", "Set-Cookie", "Content-Encoding")
	for _, name := range names {
		for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if exchanged, common := proxy.Forwarded(spelt); exchanged != common {
				t.Errorf("%s goes upstream: %v in an exchange, %v in a common request", spelt, exchanged, common)
			}
			if exchanged, common := proxy.Answered(spelt); exchanged != common {
				t.Errorf("%s goes to the client: %v in an exchange, %v in a common request", spelt, exchanged, common)
			}
		}
	}
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{"Bailiwick-Served": "us", "Bailiwick-Refused": "x", "Alt-Svc": "h3", "X-Mine": "kept", "Keep-Alive": "x", "X-Api-Key": "kept"} {
			rw.Header().Set(name, value)
		}
		rw.WriteHeader(201)
		io.WriteString(rw, "made")
	})
	conn, in := w.dial()
	claims := "X-Request-Id: mine\r\nX-Forwarded-For: 9.9.9.9\r\nBAILIWICK-HOME: us\r\nbailiwick-customer: other\r\nforwarded: for=9\r\nx-real-ip: 9.9.9.9\r\nTe: trailers\r\nKeep-Alive: x\r\nProxy-Authorization: x\r\nX-Original-Url: /admin\r\nX-Mine: kept\r\nAuthorization: Basic dTpw\r\n"
	io.WriteString(conn, w.head("PUT", "/v1/a;b=c?x=%2F&y", claims, "Content-Length: 5\r\n\r\nhello"))
	resp, body := read(t, in, "PUT")
	if resp.StatusCode != 201 || body != "made" || resp.Header.Get("Bailiwick-Served") != "eu-west" || resp.Header.Get("Bailiwick-Refused") != "" || resp.Header.Get("Alt-Svc") != "" ||
		resp.Header.Get("X-Mine") != "kept" || resp.Header.Get("X-Api-Key") != "kept" || resp.Header.Get("Keep-Alive") != "" || len(resp.Header["Date"]) != 1 {
		t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
	}
	got, uri := w.west.up.last()
	want := http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"orders.test"}, "X-Request-Id": {resp.Header.Get("Bailiwick-Request-Id")},
		"Via": {"1.1 bailiwick"}, "X-Mine": {"kept"}, "Authorization": {"Basic dTpw"}, "Content-Length": {"5"},
		"Bailiwick-Customer": {"acme"}, "Bailiwick-Subscription": {"main"}, "Bailiwick-Plan": {"gold"}, "Bailiwick-Key": {w.west.meter.last().KeyID}}
	if uri != "/v1/a;b=c?x=%2F&y" || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the upstream got %s %v, want %v", uri, got, want)
	}
	if row := w.west.meter.last(); row.BytesIn != 5 || row.BytesOut != 4 || row.Status != 201 || row.Attempts != 1 || row.Outcome != usage.OutcomeSuccess {
		t.Errorf("got the row %+v", row)
	}
}

// answersAlways puts an upstream in eu-west that answers whatever it gets, and allocates nothing either.
func (w *world) answersAlways(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf, answer := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok")
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					c.Write(answer)
				}
			}()
		}
	}()
	w.west.up.addr = l.Addr().String()
	w.west.tables.Swap(w.view(w.west, true))
	w.west.proxy.Turn()
}

// A request of the common kind costs no memory, from the client's bytes to the client's bytes, once all is warm.
func TestCommon_AllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools forget")
	}
	w := newWorld(t, tracesOthers(t))
	w.answersAlways(t)
	conn, _ := w.dial()
	request, answer := []byte(w.head("GET", "/v1/items/1?page=2", "Traceparent: "+unchosen+"\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n")), make([]byte, 4096)
	ok := []byte("HTTP/1.1 200 OK\r\n")
	once := func() {
		conn.Write(request)
		if n, err := conn.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], ok) {
			t.Fatalf("got %q %v", answer[:n], err)
		}
	}
	// What the rest of the world does meanwhile is somewhere in it: a short round that it left alone says what a request costs.
	const requests = 200
	least := uint64(1 << 62)
	for n := 0; n < 5 || n < 200 && float64(least)/requests > 0.1; n++ {
		for range 200 {
			once()
		}
		w.west.meter.mu.Lock()
		w.west.meter.rows = make([]usage.Row, 0, requests+100)
		w.west.meter.mu.Unlock()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range requests {
			once()
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	if each := float64(least) / requests; each > 0.1 {
		t.Errorf("got %.2f allocations a request, want none", each)
	}
}

// Trailers pass both ways, a body is asked for before it is sent, and long bodies stream.
func TestConn_StreamsAsTheyCome(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-Sum")
		for range 3 {
			io.WriteString(rw, "part.")
			http.NewResponseController(rw).Flush()
		}
		rw.Header().Set("X-Sum", "15")
	})
	conn, in := w.dial()
	io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"))
	if resp, _ := read(t, in, "POST"); resp.StatusCode != 100 {
		t.Fatalf("got %d, want to be asked for the body", resp.StatusCode)
	}
	io.WriteString(conn, "5\r\nhello\r\n6\r\n, edge\r\n0\r\nX-Sum: 11\r\n\r\n")
	resp, body := read(t, in, "POST")
	if resp.StatusCode != 200 || body != "part.part.part." || resp.Trailer.Get("X-Sum") != "15" {
		t.Errorf("got %d %q, trailer %v", resp.StatusCode, body, resp.Trailer)
	}
	w.west.up.mu.Lock()
	came := w.west.up.bodies["hello, edge"]
	w.west.up.mu.Unlock()
	if came != 1 {
		t.Errorf("the body came %d times", came)
	}
	// The connection goes on.
	w.west.up.does(nil)
	io.WriteString(conn, w.head("GET", "/v1/y", "\r\n"))
	if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
		t.Errorf("after it: got %d", resp.StatusCode)
	}
	io.WriteString(conn, w.head("HEAD", "/v1/y", "\r\n")+w.head("GET", "/v1/z", "\r\n"))
	if resp, _ := read(t, in, "HEAD"); resp.StatusCode != 200 || resp.ContentLength <= 0 {
		t.Errorf("HEAD: got %d, length %d", resp.StatusCode, resp.ContentLength)
	}
	if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || body != "eu-west GET /v1/z" {
		t.Errorf("behind HEAD: got %d %q", resp.StatusCode, body)
	}
}

// An upstream that closes a connection while it is idle costs nobody an answer, not even one that must not be sent twice.
func TestCommon_AnUpstreamMayCloseIdleConnections(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	var conns []net.Conn
	w.west.up.mu.Lock()
	w.west.up.state = func(c net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if s == http.StateIdle {
			conns = append(conns, c)
		}
	}
	w.west.up.mu.Unlock()
	conn, in := w.dial()
	for _, method := range []string{"GET", "POST", "GET", "POST", "POST"} {
		for _, more := range []string{"\r\n", "Content-Length: 1\r\n\r\nx"} {
			io.WriteString(conn, w.head(method, "/v1/x", more))
			if resp, body := read(t, in, method); resp.StatusCode != 200 || resp.Header.Get("Bailiwick-Served") != "eu-west" {
				t.Errorf("%s: got %d %s", method, resp.StatusCode, body)
			}
			eventually(t, 5*time.Second, "the connection is idle", func() bool { mu.Lock(); defer mu.Unlock(); return len(conns) > 0 })
			mu.Lock()
			for _, c := range conns {
				c.Close()
			}
			conns = nil
			mu.Unlock()
			time.Sleep(5 * time.Millisecond)
		}
	}
	if n := w.west.meter.finals(t)[usage.OutcomeSuccess]; n != 10 {
		t.Errorf("%d counted, want 10", n)
	}
}

// pipe is a door's listener in virtual time: connections are pipes.
type pipe struct {
	ch   chan net.Conn
	over chan struct{}
	once sync.Once
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.ch:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}
func (p *pipe) Close() error   { p.once.Do(func() { close(p.over) }); return nil }
func (p *pipe) Addr() net.Addr { return &net.TCPAddr{} }

// Slow clients are given up: one that says nothing, one whose head trickles, whatever it sends meanwhile.
func TestDoor_GivesSlowClientsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler),
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })})
		l := &pipe{ch: make(chan net.Conn), over: make(chan struct{})}
		var wg sync.WaitGroup
		defer wg.Wait() // time stands still once this function has returned
		wg.Go(func() { servers.HTTP.Serve(l) })
		defer servers.HTTP.Close()
		open := func() net.Conn {
			mine, theirs := net.Pipe()
			l.ch <- theirs
			return mine
		}
		began := time.Now()
		silent := open()
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) < 85*time.Second || time.Since(began) > 95*time.Second {
			t.Errorf("a silent client: got %v after %v, want the end after 90 s", err, time.Since(began))
		}
		rests := open() // for longer than it keeps its buffer, again and again
		in := bufio.NewReader(rests)
		for _, pause := range []time.Duration{0, 4 * time.Second, 6 * time.Second, 80 * time.Second, 0} {
			time.Sleep(pause)
			io.WriteString(rests, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("after %v of rest: %v", pause, err)
			} else if body, _ := io.ReadAll(resp.Body); string(body) != "ok" {
				t.Fatalf("after %v of rest: got %q", pause, body)
			}
		}
		began = time.Now()
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) || time.Since(began) < 85*time.Second || time.Since(began) > 95*time.Second {
			t.Errorf("a client that rests: got %v after %v, want the end after 90 s", err, time.Since(began))
		}
		began = time.Now()
		slow := open()
		defer slow.Close()
		wg.Go(func() {
			for range 100 { // a byte a second
				if _, err := slow.Write([]byte("G")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		data, _ := io.ReadAll(slow)
		if !strings.HasPrefix(string(data), "HTTP/1.1 408 ") || time.Since(began) > 12*time.Second {
			t.Errorf("a head that trickles: got %q after %v, want 408 after 10 s", data, time.Since(began))
		}
	})
}

// A door that shuts lets requests under way end, and takes no more on connections that wait.
func TestDoor_Drains(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	servers := proxy.NewServers(proxy.ServersConfig{TLS: &tls.Config{}, Logger: slog.New(slog.DiscardHandler),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				close(arrived)
				<-leave
			}
			io.WriteString(w, "ok")
		})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- servers.HTTP.Serve(l) }()
	open := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(60 * time.Second))
		return c, bufio.NewReader(c)
	}
	idle, idleIn := open()
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	read(t, idleIn, "GET")
	busy, busyIn := open()
	io.WriteString(busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	shut := make(chan error, 1)
	go func() { shut <- servers.HTTP.Shutdown(context.Background()) }()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: got %v", err)
	}
	if _, err := idleIn.ReadByte(); err == nil {
		t.Error("an idle connection is open after the door was shut")
	}
	select {
	case err := <-shut:
		t.Errorf("shut with a request under way: %v", err)
	default:
	}
	close(leave)
	resp, body := read(t, busyIn, "GET")
	if body != "ok" || !resp.Close {
		t.Errorf("the request under way: got %q, close %v", body, resp.Close)
	}
	if err := <-shut; err != nil {
		t.Errorf("Shutdown: got %v", err)
	}
}
