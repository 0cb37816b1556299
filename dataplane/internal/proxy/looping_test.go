//go:build linux

package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// doors are a cleartext door and one with TLS that speaks HTTP/1.1, both with loops, and how to connect to them.
func (w *world) doors() map[string]struct {
	door *proxy.Door
	dial func(t testing.TB) net.Conn
} {
	return w.doorsOf(w.west.server, func(*proxy.Door) {})
}

// restless are doors of their own of which nobody is parked, so that a loop has what nobody else has.
func (w *world) restless() map[string]struct {
	door *proxy.Door
	dial func(t testing.TB) net.Conn
} {
	set := func(d *proxy.Door) { d.ParkAfter(time.Hour) }
	clear := newFrontOf(w.t, w.west.proxy, set)
	w.t.Cleanup(clear.Close)
	return w.doorsOf(clear, set)
}

func (w *world) doorsOf(clear *front, set func(*proxy.Door)) map[string]struct {
	door *proxy.Door
	dial func(t testing.TB) net.Conn
} {
	servers, at := w.securely(set)
	return map[string]struct {
		door *proxy.Door
		dial func(t testing.TB) net.Conn
	}{
		"cleartext": {clear.door, func(t testing.TB) net.Conn {
			c, err := net.Dial("tcp", clear.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(time.Minute))
			return c
		}},
		"TLS": {servers.HTTPS, func(t testing.TB) net.Conn {
			c, err := tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(time.Minute))
			return c
		}},
	}
}

// rest has connections to a door ask until so many rest in its loops: on a machine that is busy any request may have been slow, and
// whose last one was stays on a goroutine.
func rest(t *testing.T, d *proxy.Door, n int, ask func()) {
	t.Helper()
	for range 400 {
		ask()
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if d.Resting() == n {
				return
			}
		}
	}
	t.Fatalf("%d rest in loops, want %d", d.Resting(), n)
}

// usual asks what is common on each connection.
func (w *world) usual(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		io.WriteString(c, w.head("GET", "/v1/x", "\r\n"))
		if resp, body := read(t, bufio.NewReader(c), "GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
	}
}

// slowly has the upstream take its time for /slow.
func (w *world) slowly(d time.Duration) {
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			time.Sleep(d)
		}
		io.Copy(io.Discard, r.Body)
	})
}

// Common requests are a loop's, at either door: between them nobody else has the connection. Whatever else is asked in between is
// answered too, in order, and counted once.
func TestLoops_HaveWhatIsCommon(t *testing.T) {
	w := newWorld(t, nil)
	w.slowly(700 * time.Millisecond)
	want := 0
	for name, d := range w.doors() {
		t.Run(name, func(t *testing.T) {
			conn := d.dial(t)
			in := bufio.NewReader(conn)
			ask := func(method, path, more string, status int) {
				t.Helper()
				io.WriteString(conn, w.head(method, path, more))
				if resp, body := read(t, in, method); resp.StatusCode != status {
					t.Errorf("%s %s: got %d %s", method, path, resp.StatusCode, body)
				}
				want++
			}
			rests := func() {
				t.Helper()
				rest(t, d.door, 1, func() {
					for range 3 { // one may have needed a new connection to the upstream, and a goroutine for that
						ask("GET", "/v1/x", "\r\n", 200)
					}
				})
			}
			rests()
			ask("POST", "/v1/x", "Content-Length: 3\r\n\r\nabc", 200)
			ask("POST", "/v1/x", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200) // an exchange
			rests()
			ask("POST", "/slow", "Content-Length: 0\r\n\r\n", 200) // longer than is waited for here, and not to be asked again
			rests()
			io.WriteString(conn, strings.Repeat(w.head("GET", "/v1/x", "\r\n"), 5)) // all at once
			for range 5 {
				if resp, body := read(t, in, "GET"); resp.StatusCode != 200 {
					t.Errorf("pipelined: got %d %s", resp.StatusCode, body)
				}
				want++
			}
			rests()
			for _, piece := range strings.SplitAfter(w.head("POST", "/v1/x", "Content-Length: 3\r\n\r\nabc"), "\n") { // bit by bit
				io.WriteString(conn, piece)
				time.Sleep(time.Millisecond)
			}
			if resp, body := read(t, in, "POST"); resp.StatusCode != 200 {
				t.Errorf("in pieces: got %d %s", resp.StatusCode, body)
			}
			want++
			rests()
			// The end of what a client sends is not the end of what it gets.
			io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
			conn.(interface{ CloseWrite() error }).CloseWrite()
			if resp, body := read(t, in, "GET"); resp.StatusCode != 200 {
				t.Errorf("half closed: got %d %s", resp.StatusCode, body)
			}
			want++
			if n, err := in.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("behind the last answer: %d bytes, %v", n, err)
			}
			eventually(t, 20*time.Second, "it to be gone", func() bool { return d.door.Guests() == 0 })
		})
	}
	if got := w.west.meter.finals(t)[usage.OutcomeSuccess]; got != want {
		t.Errorf("%d rows of %d requests", got, want)
	}
}

// Where requests come one at a time a loop looks for their upstream's answer before it sleeps, over TLS too, if the door is told to.
func TestLoops_LookForAnAnswer(t *testing.T) {
	w := newWorld(t, nil)
	clear := newFrontOf(t, w.west.proxy, func(d *proxy.Door) { d.BusyPoll(time.Second) })
	t.Cleanup(clear.Close)
	for name, d := range w.doorsOf(clear, func(d *proxy.Door) { d.BusyPoll(time.Second) }) {
		t.Run(name, func(t *testing.T) {
			conn := d.dial(t)
			eventually(t, 30*time.Second, "an answer that was looked for", func() bool {
				w.usual(t, conn)
				came, _ := d.door.Sought()
				return came > 0
			})
		})
	}
	for name, d := range w.doors() {
		t.Run(name+", not told to", func(t *testing.T) {
			conn := d.dial(t)
			for range 100 {
				w.usual(t, conn)
			}
			if came, vain := d.door.Sought(); came+vain != 0 {
				t.Errorf("%d were looked for, and %d in vain", came, vain)
			}
		})
	}
}

// Where several are under way it looks for none of them: whose answer comes first is not known, and looking is dearer than sleeping.
func TestLoops_LookForOneAnswer(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute })
	asked, answers := make(chan struct{}, 1), make(chan struct{}, 1)
	w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			asked <- struct{}{}
			<-answers
		}
	})
	set := func(d *proxy.Door) { d.UseLoops(1); d.BusyPoll(20 * time.Millisecond) }
	clear := newFrontOf(t, w.west.proxy, set)
	t.Cleanup(clear.Close)
	d := w.doorsOf(clear, set)["cleartext"]
	conn, other := d.dial(t), d.dial(t)
	looked := func() int64 { came, vain := d.door.Sought(); return came + vain }
	for try := 0; ; try++ { // what is awaited for half a second is a goroutine's
		eventually(t, 30*time.Second, "a loop that looks for answers, and has two connections to the upstream", func() bool {
			rest(t, d.door, 2, func() { w.usual(t, conn, other) })
			before := looked()
			w.usual(t, other)
			return looked() > before
		})
		io.WriteString(conn, w.head("GET", "/held", "\r\n"))
		<-asked
		began := time.Now()
		w.usual(t, other) // it ends whatever was looked for
		before := looked()
		for range 5 {
			w.usual(t, other)
		}
		after, took := looked(), time.Since(began)
		answers <- struct{}{}
		if resp, body := read(t, bufio.NewReader(conn), "GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
		switch {
		case took > 200*time.Millisecond && try < 50:
			continue
		case took > 200*time.Millisecond:
			t.Fatalf("six requests took %v, fifty times", took)
		case after != before:
			t.Errorf("it looked for %d answers while another was awaited", after-before)
		}
		return
	}
}

// The edge's beat hears of a pause when a loop has answered all that it was asked, and not while it waits for an answer.
func TestLoops_TellOfPauses(t *testing.T) {
	b := beat.New()
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter, c.Beat = time.Minute, b })
	asked, answers := make(chan struct{}, 1), make(chan struct{}, 1)
	w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			asked <- struct{}{}
			<-answers
		}
	})
	one := func(d *proxy.Door) { d.UseLoops(1) }
	clear := newFrontOf(t, w.west.proxy, one)
	t.Cleanup(clear.Close)
	d := w.doorsOf(clear, one)["cleartext"]
	conn, other := d.dial(t), d.dial(t)
	alarm := b.Alarm()
	defer alarm.Stop()
	listen := func() { alarm.Set(time.Now().Add(time.Hour), time.Hour, 0) } // any pause rings it
	rang := func() bool {
		select {
		case <-alarm.C:
			return true
		default:
			return false
		}
	}
	paused := func(c net.Conn) func() bool {
		return func() bool {
			listen()
			w.usual(t, c)
			return rang()
		}
	}
	for range 3 { // until the loop has two connections to the upstream
		rest(t, d.door, 2, func() {
			io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
			w.usual(t, other)
			if resp, body := read(t, bufio.NewReader(conn), "GET"); resp.StatusCode != 200 {
				t.Fatalf("got %d %s", resp.StatusCode, body)
			}
		})
	}
	eventually(t, 30*time.Second, "a pause behind a request of one", paused(conn))
	eventually(t, 30*time.Second, "a pause behind a request of the other", paused(other))
	for try := 0; ; try++ { // what is awaited for half a second is a goroutine's, and no loop waits for it
		rest(t, d.door, 2, func() { w.usual(t, conn, other) })
		io.WriteString(conn, w.head("GET", "/held", "\r\n"))
		<-asked
		began := time.Now()
		listen()
		for range 5 {
			w.usual(t, other)
		}
		heard, took := rang(), time.Since(began)
		answers <- struct{}{}
		if resp, body := read(t, bufio.NewReader(conn), "GET"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
		switch {
		case took > 200*time.Millisecond && try < 50:
			continue
		case took > 200*time.Millisecond:
			t.Fatalf("five requests took %v, fifty times", took)
		case heard:
			t.Error("a pause while an answer was awaited")
		}
		return
	}
}

// torn is a connection that hands on what is written in two pieces, a moment apart.
type torn struct{ net.Conn }

func (c torn) Write(b []byte) (int, error) {
	at := rand.IntN(len(b) + 1)
	n, err := c.Conn.Write(b[:at])
	if err != nil {
		return n, err
	}
	time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
	m, err := c.Conn.Write(b[at:])
	return n + m, err
}

// Records of TLS that come in pieces, and several that come at once, are put together as they were.
func TestLoops_TLSInPieces(t *testing.T) {
	w := newWorld(t, nil)
	_, at := w.securely(func(*proxy.Door) {})
	const clients, each = 6, 60
	var wg sync.WaitGroup
	for range clients {
		raw, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(time.Minute))
		conn := tls.Client(torn{raw}, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"})
		in := bufio.NewReader(conn)
		wg.Go(func() {
			for i := range each {
				text := w.head("POST", "/v1/x", fmt.Sprintf("Content-Length: 5\r\n\r\n%05d", i))
				for len(text) > 0 { // of several records
					n := min(len(text), 1+rand.IntN(400))
					io.WriteString(conn, text[:n])
					text = text[n:]
				}
				resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("request %d: %v", i, err)
					return
				}
				io.Copy(io.Discard, resp.Body)
			}
		})
	}
	wg.Wait()
	if got := w.west.meter.finals(t)[usage.OutcomeSuccess]; got != clients*each {
		t.Errorf("%d rows of %d requests", got, clients*each)
	}
}

// A door that shuts lets what a loop awaits be answered, and ends what rests; what is broken off is gone at once.
func TestLoops_ADoorShuts(t *testing.T) {
	for _, breaks := range []bool{false, true} {
		w := newWorld(t, nil)
		w.slowly(80 * time.Millisecond)
		for name, d := range w.doors() {
			t.Run(fmt.Sprintf("%s, broken off: %v", name, breaks), func(t *testing.T) {
				idle, busy := d.dial(t), d.dial(t)
				for _, c := range []net.Conn{idle, busy} {
					in := bufio.NewReader(c)
					for range 4 {
						io.WriteString(c, w.head("GET", "/v1/x", "\r\n"))
						read(t, in, "GET")
					}
				}
				rest(t, d.door, 2, func() { w.usual(t, idle, busy) })
				io.WriteString(busy, w.head("GET", "/slow", "\r\n"))
				eventually(t, 20*time.Second, "one to be served", func() bool { return d.door.Resting() == 1 })
				if breaks {
					d.door.Close()
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				over := make(chan error, 1)
				go func() { over <- d.door.Shutdown(ctx) }()
				if !breaks {
					if resp, _ := read(t, bufio.NewReader(busy), "GET"); resp.StatusCode != 200 {
						t.Errorf("got %d", resp.StatusCode)
					}
				}
				if n, err := idle.Read(make([]byte, 64)); n != 0 || err == nil {
					t.Errorf("what rested got %d bytes, %v", n, err)
				}
				busy.Close()
				if err := <-over; err != nil {
					t.Error(err)
				}
				if n := d.door.Guests(); n != 0 {
					t.Errorf("%d are counted", n)
				}
			})
		}
	}
}

// A client that takes no answers holds nobody up, and what it does not take is written when it does.
func TestLoops_ASlowReader(t *testing.T) {
	w := newWorld(t, nil)
	big := strings.Repeat("x", 15<<10)
	w.raw(func(net.Conn, string, int) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(big), big)
	})
	for name, d := range w.doors() {
		t.Run(name, func(t *testing.T) {
			slow, quick := d.dial(t), d.dial(t)
			const each = 600 // 9 MB: more than is on the way
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				for range each {
					io.WriteString(slow, w.head("GET", "/v1/x", "\r\n"))
				}
			}()
			in := bufio.NewReader(quick)
			for range 50 {
				io.WriteString(quick, w.head("GET", "/v1/x", "\r\n"))
				if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
					t.Fatalf("got %d", resp.StatusCode)
				}
			}
			in = bufio.NewReader(slow)
			for i := range each {
				if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || body != big {
					t.Fatalf("answer %d: got %d and %d bytes", i, resp.StatusCode, len(body))
				}
			}
			<-wrote
		})
	}
}

// A request whose code panics, when it is decided or when its answer is here, ends its connection and no other, and has its row.
func TestLoops_APanicEndsOneConnection(t *testing.T) {
	t.Run("as it is decided", func(t *testing.T) {
		panicsOnce(t, func(m *meter) { m.panics.Store(true) })
	})
	t.Run("as it is answered", func(t *testing.T) {
		panicsOnce(t, func(m *meter) {
			do := func() {
				m.after.Store(nil)
				panic("for a test")
			}
			m.after.Store(&do)
		})
	})
}

func panicsOnce(t *testing.T, set func(m *meter)) {
	w := newWorld(t, nil)
	for name, d := range w.doors() {
		t.Run(name, func(t *testing.T) {
			one, other := d.dial(t), d.dial(t)
			in := bufio.NewReader(other)
			for _, c := range []net.Conn{one, other} {
				from := bufio.NewReader(c)
				for range 4 {
					io.WriteString(c, w.head("GET", "/v1/x", "\r\n"))
					read(t, from, "GET")
				}
			}
			rest(t, d.door, 2, func() { w.usual(t, one, other) })
			before := w.west.meter.len()
			set(w.west.meter)
			io.WriteString(one, w.head("GET", "/v1/x", "\r\n"))
			if n, err := one.Read(make([]byte, 64)); n != 0 || err == nil {
				t.Errorf("got %d bytes, %v", n, err)
			}
			if got := w.west.meter.len() - before; got != 1 {
				t.Errorf("%d rows, want 1", got)
			}
			io.WriteString(other, w.head("GET", "/v1/x", "\r\n"))
			if resp, _ := read(t, in, "GET"); resp.StatusCode != 200 {
				t.Errorf("got %d", resp.StatusCode)
			}
		})
	}
}

// Where there are no loops, goroutines serve the same.
func TestLoops_AreNotNeeded(t *testing.T) {
	w := newWorld(t, nil)
	_, at := w.securely((*proxy.Door).Unloop)
	c := newClient(t, at, w.key, "http/1.1")
	for i := range 20 {
		if err := c.ask(); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
}

// What an upstream says behind an answer that nobody has asked for is nobody's answer, also where the answer itself takes all the
// room there was for reading, so that the rest waits in the system and is told of no more.
func TestLoops_WhatNobodyAskedForIsNobodys(t *testing.T) {
	w := newWorld(t, nil)
	head := "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
	w.raw(func(_ net.Conn, ask string, _ int) string {
		if !strings.Contains(ask, "/v1/twice") {
			return fmt.Sprintf(head, 2) + "ok"
		}
		n := 4<<10 - len(fmt.Sprintf(head, 1000))
		return fmt.Sprintf(head, n) + strings.Repeat("x", n) + fmt.Sprintf(head, 7) + "unasked"
	})
	conn, _ := w.dial()
	in := bufio.NewReader(conn)
	ask := func(path, want string) {
		t.Helper()
		io.WriteString(conn, w.head("GET", path, "\r\n"))
		if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || !strings.HasPrefix(body, want) {
			t.Errorf("GET %s: got %d %q, want %q", path, resp.StatusCode, body, want)
		}
	}
	for range 3 {
		for range 3 { // until the loop has a connection to the upstream
			rest(t, w.west.server.door, 1, func() { ask("/v1/x", "ok") })
		}
		ask("/v1/twice", "xxx")
	}
	ask("/v1/x", "ok")
}

// A row that has to wait for the disk waits without its loop: others are served meanwhile, and it comes before its answer's last byte.
func TestLoops_WaitForNoRow(t *testing.T) {
	w := newWorld(t, nil)
	for name, d := range w.doors() {
		t.Run(name, func(t *testing.T) {
			const others = 6 // some of them in the same loop
			conns, ins := make([]net.Conn, 1+others), make([]*bufio.Reader, 1+others)
			for i := range conns {
				conns[i] = d.dial(t)
				ins[i] = bufio.NewReader(conns[i])
			}
			rest(t, d.door, len(conns), func() {
				for i := range conns {
					io.WriteString(conns[i], w.head("GET", "/v1/x", "\r\n"))
					read(t, ins[i], "GET")
				}
			})
			before := w.west.meter.len()
			until := make(chan struct{})
			over := sync.OnceFunc(func() { close(until) })
			defer over()
			w.west.meter.stalls.Store(&until)
			io.WriteString(conns[0], w.head("GET", "/v1/x", "\r\n"))
			eventually(t, 20*time.Second, "its row to wait", w.west.meter.Ready)
			for i := 1; i < len(conns); i++ {
				io.WriteString(conns[i], w.head("GET", "/v1/x", "\r\n"))
				if resp, _ := read(t, ins[i], "GET"); resp.StatusCode != 200 {
					t.Errorf("beside a row that waits: got %d", resp.StatusCode)
				}
			}
			if got := w.west.meter.len() - before; got != others {
				t.Errorf("%d rows, want %d", got, others)
			}
			over()
			if resp, _ := read(t, ins[0], "GET"); resp.StatusCode != 200 {
				t.Errorf("got %d", resp.StatusCode)
			}
			if got := w.west.meter.len() - before; got != 1+others {
				t.Errorf("%d rows, want %d", got, 1+others)
			}
		})
	}
}

// What an upstream says on a connection that is idle, while its loop is busy with what came in the same round, is nobody's answer.
func TestLoops_LookAtWhatWasIdle(t *testing.T) {
	var busy atomic.Pointer[func()]
	w := newWorld(t, func(c *proxy.Config) {
		c.TableAge = func(time.Time) time.Duration { // what a loop asks before it decides
			if do := busy.Swap(nil); do != nil {
				(*do)()
			}
			return 0
		}
	})
	var last atomic.Pointer[net.Conn]
	w.raw(func(c net.Conn, _ string, _ int) string {
		last.Store(&c)
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	conn, _ := w.dial()
	in := bufio.NewReader(conn)
	for range 4 {
		for range 3 { // until the loop has a connection to the upstream
			rest(t, w.west.server.door, 1, func() {
				io.WriteString(conn, w.head("GET", "/v1/x", "\r\n"))
				if resp, body := read(t, in, "GET"); resp.StatusCode != 200 || body != "ok" {
					t.Errorf("got %d %q", resp.StatusCode, body)
				}
			})
		}
		do := func() {
			io.WriteString(*last.Load(), "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nlate")
			time.Sleep(3 * time.Millisecond)
		}
		busy.Store(&do)
	}
}

// However an upstream's interim answers are spread over time, there may be so many of them and no more.
func TestLoops_BoundInterimAnswers(t *testing.T) {
	w := newWorld(t, nil)
	w.raw(func(c net.Conn, head string, _ int) string {
		if strings.Contains(head, "/v1/many") {
			for range 30 {
				io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n")
				time.Sleep(500 * time.Microsecond)
			}
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	conn, _ := w.dial()
	in := bufio.NewReader(conn)
	ask := func(path string, want int) {
		t.Helper()
		io.WriteString(conn, w.head("GET", path, "\r\n"))
		if resp, body := read(t, in, "GET"); resp.StatusCode != want {
			t.Errorf("GET %s: got %d %q, want %d", path, resp.StatusCode, body, want)
		}
	}
	for range 3 { // until the loop has a connection to the upstream
		rest(t, w.west.server.door, 1, func() { ask("/v1/x", 200) })
	}
	ask("/v1/many", 503) // it was tried again, and is the only one there is
}
