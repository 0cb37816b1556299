package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
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

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
)

// bare is an upstream that costs little: a goroutine and a few KiB for each connection. What it does a path says.
type bare struct {
	net.Listener
	under atomic.Int64 // answers that have begun, and uploads
}

func newBare(t *testing.T) *bare {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &bare{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go u.serve(c)
		}
	}()
	return u
}

var filler = make([]byte, 64<<10)

func (u *bare) serve(c net.Conn) {
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(16 << 10)
	in := bufio.NewReaderSize(c, 1<<10)
	for {
		path, key := "", ""
		for n := 0; ; n++ {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				break
			}
			if n == 0 {
				path = strings.Fields(string(line))[1]
			} else if name, value, _ := bytes.Cut(line, []byte(": ")); strings.EqualFold(string(name), "Sec-WebSocket-Key") {
				key = strings.TrimSpace(string(value))
			}
		}
		switch _, does, _ := strings.Cut(path[1:], "/"); does {
		case "long":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
			u.under.Add(1)
			in = nil
			for {
				if _, err := c.Write(filler); err != nil {
					return
				}
			}
		case "silent":
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n")
			u.under.Add(1)
			c.Read(make([]byte, 1))
			return
		case "unread":
			u.under.Add(1)
			<-time.After(5 * time.Minute)
			return
		case "socket":
			sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
			u.under.Add(1)
			c.Read(make([]byte, 1))
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// waiters opens n requests that wait, and ends them.
type waiters func(t *testing.T, w *world, s proxy.Servers, clear, secure, udp, path string, n int) (end func())

// overClear opens them over HTTP/1.1 in the clear, each on a connection of its own.
func overClear(method string, more string) waiters {
	return func(t *testing.T, w *world, s proxy.Servers, clear, secure, udp, path string, n int) func() {
		var all []net.Conn
		for range n {
			c, err := net.Dial("tcp", clear)
			if err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).SetReadBuffer(4 << 10)
			io.WriteString(c, w.head(method, path, more))
			if method == "POST" {
				c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				for range 1000 { // as much as it takes
					if _, err := c.Write(filler); err != nil {
						break
					}
				}
			}
			all = append(all, c)
		}
		return func() {
			for _, c := range all {
				c.Close()
			}
		}
	}
}

// overTLS is overClear over TLS; of the clients nothing is left but their sockets.
func overTLS(t *testing.T, w *world, s proxy.Servers, clear, secure, udp, path string, n int) func() {
	var fds []int
	for range n {
		c, err := tls.Dial("tcp", secure, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		tcp := c.NetConn().(*net.TCPConn)
		tcp.SetReadBuffer(4 << 10)
		io.WriteString(c, w.head("GET", path, "\r\n"))
		raw, err := tcp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if fd, err := syscall.Dup(int(fd)); err == nil {
				fds = append(fds, fd)
			}
		})
		tcp.Close()
	}
	return func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}
}

// overTwo opens them over HTTP/2, a hundred on a connection. window is what each stream takes; deaf: nothing is read either.
func overTwo(method string, window uint32, deaf bool, each int) waiters {
	return func(t *testing.T, w *world, s proxy.Servers, clear, secure, udp, path string, n int) func() {
		var all []*tls.Conn
		for n > 0 {
			c, f := frames(t, secure)
			c.SetDeadline(time.Time{})
			f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
			f.WriteWindowUpdate(0, 1<<30)
			block := headerBlock(":method", method, ":scheme", "https", ":authority", "orders.test", ":path", path, "x-api-key", w.key)
			var ids []uint32
			for i := range min(each, n) {
				id := uint32(2*i + 1)
				ids = append(ids, id)
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: method == "GET"})
			}
			n -= len(ids)
			if !deaf {
				go io.CopyBuffer(io.Discard, struct{ io.Reader }{c.NetConn()}, make([]byte, 512))
			}
			if method == "POST" { // all that a connection takes
				for range 1 << 20 / 100 / (8 << 10) {
					for _, id := range ids {
						f.WriteData(id, false, filler[:8<<10])
					}
				}
			}
			all = append(all, c)
		}
		return func() {
			for _, c := range all {
				c.NetConn().Close()
			}
		}
	}
}

// overThree opens them over HTTP/3; the client gives a KiB of room for each.
func overThree(t *testing.T, w *world, s proxy.Servers, clear, secure, udp, path string, n int) func() {
	var all []*quic.Conn
	for n > 0 {
		q, err := quic.DialAddr(t.Context(), udp, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"h3"}},
			&quic.Config{InitialStreamReceiveWindow: 1 << 10, MaxStreamReceiveWindow: 1 << 10})
		if err != nil {
			t.Fatal(err)
		}
		control, err := q.OpenUniStream()
		if err != nil {
			t.Fatal(err)
		}
		control.Write([]byte{0, 4, 0})
		var block bytes.Buffer
		e := qpack.NewEncoder(&block)
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", path}, {"x-api-key", w.key}} {
			e.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
		}
		head := append(quicvarint.Append([]byte{1}, uint64(block.Len())), block.Bytes()...)
		for range min(100, n) {
			s, err := q.OpenStreamSync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Write(head)
			s.Close()
			n--
		}
		all = append(all, q)
	}
	return func() {
		for _, q := range all {
			q.CloseWithError(0, "")
		}
	}
}

// TestWaiting_HoldsLittle: what each kind of request holds that waits for its client, or for its upstream, of memory that the
// collector knows and of stacks. An edge takes some 16,000 of them at once, an eighth of which may be one customer's; the collector
// has as much again. DESIGN.md has the table. What is measured has the upstream's connections in it, which are some 4 KiB each.
func TestWaiting_HoldsLittle(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has memory of its own")
	}
	socket := "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	upload := "Transfer-Encoding: chunked\r\n\r\nffffff\r\n"
	for _, k := range []struct {
		name, path string
		open       waiters
		relayed    bool
		n          int
		most       int64 // bytes each
	}{
		{"a long answer over HTTP/1.1 that is not read", "/waiting/long", overClear("GET", "\r\n"), false, 400, 80 << 10},
		{"likewise over TLS", "/waiting/long", overTLS, false, 300, 112 << 10},
		{"likewise of an exchange", "/weighing/long", overClear("GET", "\r\n"), false, 400, 104 << 10},
		{"a long answer over HTTP-2 without a window", "/waiting/long", overTwo("GET", 0, false, 100), false, 400, 36 << 10},
		{"likewise whose window is used up", "/waiting/long", overTwo("GET", 65535, false, 100), false, 400, 36 << 10},
		{"likewise of an exchange", "/weighing/long", overTwo("GET", 65535, false, 100), false, 400, 76 << 10},
		{"likewise on a connection that is not read", "/waiting/long", overTwo("GET", 1<<30, true, 100), false, 400, 36 << 10},
		{"likewise one on each connection", "/waiting/long", overTwo("GET", 1<<30, true, 1), false, 100, 300 << 10},
		{"a long answer over HTTP-3 that is not read", "/waiting/long", overThree, false, 400, 80 << 10},
		{"a long answer of another region over HTTP-2", "/waiting/long", overTwo("GET", 0, false, 100), true, 200, 480 << 10},
		{"an upload over HTTP-1.1 that the upstream does not read", "/waiting/unread", overClear("POST", upload), false, 200, 110 << 10},
		{"likewise over HTTP-2", "/waiting/unread", overTwo("POST", 65535, false, 100), false, 400, 130 << 10},
		{"silent events over HTTP-1.1", "/waiting/silent", overClear("GET", "\r\n"), false, 400, 36 << 10},
		{"silent events over HTTP-2", "/waiting/silent", overTwo("GET", 65535, false, 100), false, 400, 36 << 10},
		{"silent events over HTTP-3", "/waiting/silent", overThree, false, 400, 44 << 10},
		{"silent events of an exchange", "/weighing/silent", overTwo("GET", 65535, false, 100), false, 400, 60 << 10},
		{"a WebSocket that is silent", "/waiting/socket", overClear("GET", socket), false, 400, 64 << 10},
	} {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, patient)
			up := newBare(t)
			r := w.west
			if k.relayed {
				r = w.central
			}
			for _, at := range []*region{w.west, w.central} {
				at.orders = func(a *table.API) {
					if at == r {
						a.Targets = []string{"http://" + up.Addr().String()}
					}
					a.Routes = append(a.Routes, table.Route{Name: "waiting", PathPrefix: "/waiting", Timeout: 5 * time.Minute, WebSocket: &table.WebSocket{}},
						table.Route{Name: "weighing", PathPrefix: "/weighing", Timeout: 5 * time.Minute, MaxResponseBytes: 1 << 40})
				}
				at.tables.Swap(w.view(at, true))
			}
			vias := w.vias()
			if k.relayed {
				w.west.up.kill()
				eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
			}
			for _, v := range vias { // and all that is made once is there
				resp, err := v.ask(t.Context(), w, "GET", "/waiting/x", nil)
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("over %s: %v %v", v.name, resp, err)
				}
				resp.Body.Close()
			}
			held := func() int64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc + m.StackInuse)
			}
			measure := func() int64 {
				goroutines := runtime.NumGoroutine()
				before := held()
				for range 50 { // what is of tests before this one goes
					time.Sleep(100 * time.Millisecond)
					now := held()
					if before-now < 64<<10 {
						break
					}
					before = now
				}
				up.under.Store(0)
				end := k.open(t, w, proxy.Servers{}, w.west.server.Listener.Addr().String(), strings.TrimPrefix(vias[0].base, "https://"), strings.TrimPrefix(vias[2].base, "https://"), k.path, k.n)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				for up.under.Load() < int64(k.n) && ctx.Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				if got := up.under.Load(); got != int64(k.n) {
					t.Errorf("%d of %d are under way", got, k.n)
				}
				with := held()
				for range 50 { // until it grows no more
					time.Sleep(200 * time.Millisecond)
					now := held()
					if with, now = now, now-with; max(now, -now) < int64(k.n)*100 {
						break
					}
				}
				end()
				each := (with - before) / int64(k.n)
				if each > k.most {
					eventually(t, time.Minute, "they are over", func() bool { return runtime.NumGoroutine() < goroutines+k.n/4 })
				}
				return each
			}
			// The first of a kind also makes what later ones find: stacks and structures that the runtime keeps. Who holds too
			// much does so every time.
			each := measure()
			for range 2 {
				if each > k.most && !t.Failed() {
					t.Logf("%d bytes, and once more", each)
					each = min(each, measure())
				}
			}
			t.Logf("| %s | %d KiB |", k.name, each>>10)
			if each > k.most {
				t.Errorf("%s holds %d bytes, want %d at most", k.name, each, k.most)
			}
		})
	}
}
