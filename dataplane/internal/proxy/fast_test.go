package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	reach "bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// raw puts an upstream in eu-west that answers each request by hand: with what answer says to the n-th on its connection.
func (w *world) raw(answer func(c net.Conn, head string, n int) string) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.rawAt(l, answer)
}

// rawAt is raw on a listener, which it closes in the end.
func (w *world) rawAt(l net.Listener, answer func(c net.Conn, head string, n int) string) {
	w.t.Helper()
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for n := 1; ; n++ {
					var head strings.Builder
					for !strings.HasSuffix(head.String(), "\r\n\r\n") {
						line, err := in.ReadString('\n')
						if err != nil {
							return
						}
						head.WriteString(line)
					}
					text := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
					if strings.Contains(head.String(), "bailiwick-probe") {
						n--
					} else {
						text = answer(c, head.String(), n)
					}
					io.WriteString(c, text)
				}
			}()
		}
	}()
	w.west.up.addr = l.Addr().String()
	w.west.tables.Swap(w.view(w.west, false)) // nobody else is asked beside a slow answer
	w.west.proxy.Turn()
}

// What an upstream says on an idle connection, that nobody asked for, is nobody's answer: of the next request it could be
// another customer's.
func TestCommon_AnswersThatNobodyAskedForReachNobody(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	var conns []net.Conn
	w.raw(func(c net.Conn, _ string, n int) string {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	conn, in := w.dial()
	for i, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "GET"} {
		io.WriteString(conn, w.head(method, "/v1/x", "\r\n"))
		if resp, body := read(t, in, method); resp.StatusCode != 200 || method != "HEAD" && body != "ok" {
			t.Errorf("%d, %s: got %d %q", i, method, resp.StatusCode, body)
		}
		mu.Lock()
		for _, c := range conns { // HEAD's has sent a body that was none already
			io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 6\r\n\r\npoison")
		}
		conns = nil
		mu.Unlock()
	}
}

// Answers without a length, and long ones, leave their connection to the next request as short ones do: a connection for each
// would use up the ports between an edge and its upstream.
func TestCommon_StreamsLeaveTheirConnection(t *testing.T) {
	w := newWorld(t, nil)
	var conns atomic.Int64
	long := strings.Repeat("x", 40<<10)
	w.raw(func(_ net.Conn, head string, n int) string {
		if n == 1 {
			conns.Add(1)
		}
		if strings.HasPrefix(head, "GET /v1/long ") {
			return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long)
		}
		return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n"
	})
	conn, in := w.dial()
	for range 10 {
		io.WriteString(conn, w.head("GET", "/v1/chunked", "\r\n"))
		if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || body != "ok" || fmt.Sprint(resp.Trailer) != "map[X-Sum:[2]]" {
			t.Errorf("got %d %q, trailer %v", resp.StatusCode, body, resp.Trailer)
		}
		io.WriteString(conn, w.head("GET", "/v1/long", "\r\n"))
		if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || body != long {
			t.Errorf("got %d and %d bytes", resp.StatusCode, len(body))
		}
	}
	// A slow moment makes an attempt an exchange's, which may ask on a connection of its own: some, but not one each.
	if n := conns.Load(); n > 10 {
		t.Errorf("20 answers took %d connections, want one or a few", n)
	}
}

// A small body that trickles ends with the route's time, and gives its seat back, however many of its bytes come.
func TestCommon_ABodyThatTricklesIsGivenUp(t *testing.T) {
	w := newWorld(t, nil)
	conn, in := w.dial()
	const length = 400
	io.WriteString(conn, w.head("POST", "/quick/x", fmt.Sprintf("Content-Length: %d\r\n\r\n", length)))
	go func() {
		for range length - 1 { // 20 s, against 300 ms of the route
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		conn.Write([]byte("x"))
	}()
	resp, body := read(t, in, "POST")
	if resp.StatusCode != 408 || !strings.Contains(body, "body") {
		t.Errorf("got %d %s, want 408", resp.StatusCode, body)
	}
	if row := w.west.meter.last(); row.Outcome != usage.OutcomeRefused || row.Units != 0 {
		t.Errorf("got the row %+v", row)
	}
}

// What goes upstream says how long it is where an upstream may insist on it.
func TestCommon_SaysTheLengthOfNothing(t *testing.T) {
	w := newWorld(t, nil)
	heads := make(chan string, 1)
	w.raw(func(_ net.Conn, head string, _ int) string {
		heads <- head
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	conn, in := w.dial()
	for method, want := range map[string]bool{"PUT": true, "POST": true, "PATCH": true, "GET": false, "DELETE": false} {
		io.WriteString(conn, w.head(method, "/v1/x", "\r\n"))
		read(t, in, method)
		if got := strings.Contains(<-heads, "\r\nContent-Length: 0\r\n"); got != want {
			t.Errorf("%s: says the length of nothing: %v, want %v", method, got, want)
		}
	}
}

// Who leaves while he waits in the line for a place at a target gives his turn up at once.
func TestCommon_WhoLeavesTheLineIsNotWaitedFor(t *testing.T) {
	w := newWorld(t, nil)
	arrived, leave := make(chan struct{}), make(chan struct{})
	w.west.orders = func(a *table.API) {
		a.Dispatch = table.Dispatch{MaxRequests: 1, MaxWaiting: 1, MaxWait: 25 * time.Second}
	}
	var once sync.Once
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(arrived); <-leave })
		io.WriteString(rw, "ok")
	})
	w.west.tables.Swap(w.view(w.west, false)) // nobody else is asked beside a slow answer
	w.west.proxy.Turn()
	first, firstIn := w.dial()
	io.WriteString(first, w.head("POST", "/v1/x", "\r\n"))
	<-arrived
	gone, _ := w.dial()
	io.WriteString(gone, w.head("POST", "/v1/gone", "\r\n"))
	time.Sleep(100 * time.Millisecond) // it is in the line, perhaps
	gone.Close()
	eventually(t, 15*time.Second, "who left is counted, before his time is over", func() bool {
		return w.west.meter.finals(t)[usage.OutcomeAborted] == 1
	})
	close(leave)
	if resp, body := read(t, firstIn, "POST"); resp.StatusCode != 200 || body != "ok" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// A client that leaves is noticed, however long the upstream usually takes.
func TestCommon_WhoLeavesASlowUpstreamIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			time.Sleep(3 * time.Second) // so that 12 s would be no surprise
			return
		}
		<-r.Context().Done()
	})
	conn, in := w.dial()
	io.WriteString(conn, w.head("POST", "/v1/x", "\r\n"))
	read(t, in, "POST")
	io.WriteString(conn, w.head("PUT", "/v1/x", "\r\n"))
	conn.Close()
	eventually(t, 9*time.Second, "who left is counted", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] == 1 })
}

func TestHostPort(t *testing.T) {
	for base, want := range map[string]string{"http://a.test": "a.test:80", "http://a.test:": "a.test:80", "http://a.test:8080": "a.test:8080", "HTTP://a.test": "a.test:80",
		"http://[2001:db8::1]": "[2001:db8::1]:80", "http://[2001:db8::1]:81": "[2001:db8::1]:81", "http://192.0.2.1": "192.0.2.1:80",
		"https://a.test": "", "http://bücher.test": "", "http://": ""} {
		if got := proxy.HostPort(base); got != want {
			t.Errorf("%s: got %q, want %q", base, got, want)
		}
	}
}

// That it took long to connect, or this machine to get there, is not taken for an upstream that may have got the request.
func TestCommon_WhatNobodyWasAskedHasNotFailed(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) {
		c.HedgeAfter = 100 * time.Microsecond // and a half: often it is over before anything is written
		slow := func(string) error { time.Sleep(20 * time.Millisecond); return nil }
		c.Upstreams = proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: reach.NewDialer(reach.Config{Allow: reach.Loopback(), AllowForeign: reach.Loopback(), Permit: slow})})
	})
	var asked atomic.Int64
	w.raw(func(net.Conn, string, int) string {
		asked.Add(1)
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	conn, in := w.dial()
	const n = 50
	for i := range n {
		io.WriteString(conn, w.head("POST", "/v1/x", "Content-Length: 2\r\n\r\nhi"))
		if resp, body := read(t, in, "POST"); resp.StatusCode != 200 {
			t.Fatalf("%d: got %d %q", i, resp.StatusCode, body)
		}
	}
	if got := asked.Load(); got != n {
		t.Errorf("the upstream was asked %d times by %d requests", got, n)
	}
}
