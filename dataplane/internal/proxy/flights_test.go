//go:build linux

package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
)

// lastWord writes what is said and ends what is sent in one packet, so that its other end hears of both at once.
func lastWord(t *testing.T, c net.Conn, text string) {
	t.Helper()
	raw := c
	over, secure := c.(*tls.Conn)
	if secure {
		raw = over.NetConn()
	}
	tcp := raw.(*net.TCPConn)
	at, err := tcp.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	at.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, 1) })
	if err != nil {
		t.Error(err)
	}
	io.WriteString(c, text)
	if secure {
		over.CloseWrite()
	}
	tcp.CloseWrite()
}

// settled is a client whose connection rests in a loop that has a connection to the upstream.
func (w *world) settled(t *testing.T, d *proxy.Door, conn net.Conn) *bufio.Reader {
	t.Helper()
	in := bufio.NewReader(conn)
	for range 3 {
		io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
		if resp, body := read(t, in, "GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
	}
	rest(t, d, 1, func() { w.usual(t, conn) })
	return in
}

// What a client sends while its answer is awaited, and its end beside its last request, a loop is told of once: it does not forget it.
func TestLoops_RememberWhatTheyWereTold(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
	came, answers := make(chan struct{}, 1), make(chan struct{})
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/wait" {
			came <- struct{}{}
			<-answers
		}
	})
	for name, d := range w.restless() {
		t.Run(name, func(t *testing.T) {
			conn := d.dial(t)
			in := w.settled(t, d.door, conn)
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, w.head("GET", "/v1/wait", "\r\n"))
			<-came
			io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
			time.Sleep(20 * time.Millisecond) // for the loop to be told; one that is not has nothing to forget
			answers <- struct{}{}
			for _, what := range []string{"what was awaited", "what was sent meanwhile"} {
				if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
					t.Errorf("%s: got %d", what, resp.StatusCode)
				}
			}
			conn.Close()
			conn = d.dial(t)
			in = w.settled(t, d.door, conn)
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			lastWord(t, conn, w.head("GET", "/v1/x", "\r\n"))
			if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
				t.Errorf("beside its end: got %d", resp.StatusCode)
			}
			if n, err := in.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("behind the last answer: %d bytes, %v", n, err)
			}
			eventually(t, 20*time.Second, "it to be gone", func() bool { return d.door.Guests() == 0 })
		})
	}
}

// An upstream that ends its connection with its answer has this side's end closed, and is not asked on it again.
func TestLoops_AnEndBesideAnAnswer(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
	over := make(chan error, 1)
	w.raw(func(c net.Conn, head string, _ int) string {
		const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if !strings.HasPrefix(head, "GET /v1/last ") {
			return ok
		}
		lastWord(t, c, ok)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err := c.Read(make([]byte, 1))
		over <- err
		return ""
	})
	for name, d := range w.restless() {
		t.Run(name, func(t *testing.T) {
			conn := d.dial(t)
			in := w.settled(t, d.door, conn)
			io.WriteString(conn, w.head("GET", "/v1/last", "\r\n"))
			if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
				t.Errorf("got %d", resp.StatusCode)
			}
			if err := <-over; err != io.EOF {
				t.Errorf("the upstream's connection: %v, want its end", err)
			}
			conn.Close()
			eventually(t, 20*time.Second, "it to be gone", func() bool { return d.door.Guests() == 0 })
		})
	}
}

// An answer that comes in pieces is put together, wherever it is cut, and not asked for twice.
func TestLoops_AnswersInPieces(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
	const text = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npieces"
	var cut atomic.Int32
	w.raw(func(c net.Conn, head string, _ int) string {
		if !strings.HasPrefix(head, "POST ") {
			return text
		}
		io.WriteString(c, text[:cut.Load()])
		time.Sleep(5 * time.Millisecond) // for the loop to see the first alone, mostly
		return text[cut.Load():]
	})
	for name, d := range w.restless() {
		t.Run(name, func(t *testing.T) {
			conn := d.dial(t)
			in := w.settled(t, d.door, conn)
			for _, at := range []int{1, 12, 17, len(text) - 7, len(text) - 6, len(text) - 5, len(text) - 1} {
				cut.Store(int32(at))
				io.WriteString(conn, w.head("POST", "/v1/x", "Content-Length: 0\r\n\r\n"))
				if resp, body := read(t, in, "POST"); resp.StatusCode != 200 || body != "pieces" {
					t.Errorf("cut at %d: got %d %q", at, resp.StatusCode, body)
				}
				rest(t, d.door, 1, func() { w.usual(t, conn) })
			}
			conn.Close()
			eventually(t, 20*time.Second, "it to be gone", func() bool { return d.door.Guests() == 0 })
		})
	}
}

// What a goroutine does for one connection a loop does not take for another's: one that is refused, and one that takes no answers.
func TestLoops_WhatAGoroutineDoesIsOfOneConnection(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c); c.HedgeAfter = time.Minute })
	big := strings.Repeat("x", 15<<10)
	w.raw(func(_ net.Conn, head string, _ int) string {
		body := strings.Fields(head)[1] // each has its own
		if strings.HasSuffix(body, "/big") {
			body = big
		}
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	for name, d := range w.restless() {
		t.Run(name, func(t *testing.T) {
			n := runtime.GOMAXPROCS(0) // so many loops: each has some of these
			var conns []net.Conn
			var ins []*bufio.Reader
			for i := range 2 * n {
				conns = append(conns, d.dial(t))
				ins = append(ins, bufio.NewReader(conns[i]))
			}
			ask := func(i int, path string) {
				t.Helper()
				io.WriteString(conns[i], w.head("GET", path, "\r\n"))
				if resp, body := read(t, ins[i], "GET"); resp.StatusCode != 200 || body != path {
					t.Fatalf("connection %d: got %d %q, want %s", i, resp.StatusCode, body, path)
				}
			}
			all := func() {
				t.Helper()
				for round := range 3 {
					for i := range conns {
						ask(i, fmt.Sprintf("/v1/%d/%d", round, i))
					}
				}
				rest(t, d.door, len(conns), func() { w.usual(t, conns...) })
			}
			all()
			for i := range conns {
				io.WriteString(conns[i], "GET /v1/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: none\r\n\r\n")
				if resp, _ := read(t, ins[i], "GET"); resp.StatusCode != 401 {
					t.Errorf("without a key: got %d", resp.StatusCode)
				}
			}
			all()
			// One that asks on and takes nothing: one request at a time, so that the loop serves each until there is no room.
			rows, asked := w.west.meter.len(), 0
			for full := false; !full && asked < 2000; {
				io.WriteString(conns[0], w.head("GET", "/v1/big", "\r\n"))
				asked++
				for end := time.Now().Add(time.Second); ; time.Sleep(50 * time.Microsecond) {
					if w.west.meter.len() == rows+asked && d.door.Resting() == len(conns) {
						break
					}
					if full = time.Now().After(end); full {
						break
					}
				}
			}
			for round := range 3 {
				for i := range conns[1:] {
					ask(1+i, fmt.Sprintf("/v1/meanwhile/%d/%d", round, i))
				}
			}
			for i := range asked {
				if resp, body := read(t, ins[0], "GET"); resp.StatusCode != 200 || body != big {
					t.Fatalf("answer %d of %d: got %d and %d bytes", i, asked, resp.StatusCode, len(body))
				}
			}
			all()
			for _, c := range conns {
				c.Close()
			}
			eventually(t, 20*time.Second, "all to be gone", func() bool { return d.door.Guests() == 0 })
		})
	}
}
