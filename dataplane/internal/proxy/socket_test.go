package proxy_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/websocket"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// chat is a WebSocket as this test speaks it.
type chat struct {
	net.Conn
	r      *bufio.Reader
	client bool
	head   http.Header
	status int
}

func (c *chat) say(op byte, text string) error {
	b := []byte{0x80 | op}
	flag := byte(0)
	if c.client {
		flag = 0x80
	}
	if len(text) < 126 {
		b = append(b, flag|byte(len(text)))
	} else {
		b = append(b, flag|126, byte(len(text)>>8), byte(len(text)))
	}
	if c.client {
		b = append(b, 0, 0, 0, 0) // a mask all the same
	}
	_, err := c.Write(append(b, text...))
	return err
}

// hear takes the next message, or control frame between messages.
func (c *chat) hear() (op byte, text string, err error) {
	for {
		o, fin, piece, err := c.frame()
		if o != 0 {
			op = o
		}
		if text += piece; fin || err != nil {
			return op, text, err
		}
	}
}

func (c *chat) frame() (op byte, fin bool, text string, err error) {
	var h [2]byte
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err = io.ReadFull(c.r, h[:]); err != nil {
		return 0, false, "", err
	}
	n := int(h[1] & 0x7f)
	if n == 126 {
		var w [2]byte
		io.ReadFull(c.r, w[:])
		n = int(binary.BigEndian.Uint16(w[:]))
	}
	var key [4]byte
	if !c.client {
		io.ReadFull(c.r, key[:])
	}
	data := make([]byte, n)
	_, err = io.ReadFull(c.r, data)
	for i := range data {
		data[i] ^= key[i%4]
	}
	return h[0] & 15, h[0]&0x80 != 0, string(data), err
}

// ask says something, and hears what is no ping.
func (c *chat) ask(say string) (op byte, text string, err error) {
	c.say(1, say)
	for op = 9; op == 9 && err == nil; {
		if op, text, err = c.hear(); op == 9 {
			c.say(10, text)
		}
	}
	return op, text, err
}

// closed hears to the close frame and says its code; 0: there was none.
func (c *chat) closed() int {
	for {
		op, text, err := c.hear()
		if err != nil {
			return 0
		}
		if op == 8 && len(text) >= 2 {
			return int(binary.BigEndian.Uint16([]byte(text)))
		}
	}
}

// echoes makes an upstream speak: it says who it is, then says back what it hears; "bye" makes it break off.
func (u *upstream) echoes(t testing.TB) {
	u.does(func(w http.ResponseWriter, r *http.Request) {
		offer, err := websocket.ReadOffer(r.Header)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		c := &chat{Conn: conn, r: rw.Reader}
		head := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + websocket.Accept(offer.Key) + "\r\nX-From: " + u.region + "\r\nBailiwick-Served: forged\r\n"
		if len(offer.Protocols) > 0 {
			head += "Sec-WebSocket-Protocol: " + offer.Protocols[0] + "\r\n"
		}
		io.WriteString(conn, head+"\r\n")
		c.say(1, "here is "+u.region)
		for {
			op, text, err := c.hear()
			if err != nil || text == "bye" {
				return
			}
			c.say(op, text)
			if op == 8 {
				return
			}
		}
	})
}

// open asks an edge for a WebSocket.
func (w *world) open(r *region, header ...string) *chat {
	w.t.Helper()
	conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	fields := map[string]string{"Host": "orders.test", "X-Api-Key": w.key, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
	path := "/live/x?a=b"
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "path" {
			path = header[i+1]
		} else if fields[header[i]] = header[i+1]; header[i+1] == "" {
			delete(fields, header[i])
		}
	}
	ask := "GET " + path + " HTTP/1.1\r\n"
	for name, value := range fields {
		ask += name + ": " + value + "\r\n"
	}
	io.WriteString(conn, ask+"\r\n")
	c := &chat{Conn: conn, r: bufio.NewReader(conn), client: true}
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	c.status, c.head = resp.StatusCode, resp.Header
	if resp.StatusCode != 101 {
		resp.Body.Close()
	}
	return c
}

func newLive(t testing.TB, mod func(*proxy.Config), route func(*table.Route)) *world {
	w := newWorld(t, mod)
	for _, r := range []*region{w.west, w.central} {
		r.orders = func(a *table.API) {
			live := table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}, Units: &table.Units{PerMessages: 2, Most: 10}}
			if route != nil {
				route(&live)
			}
			a.Routes = append(a.Routes, live)
		}
		r.tables.Swap(w.view(r, true))
		r.up.echoes(t)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.west.proxy.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

// final is the last row of the one connection there was.
func (w *world) final() usage.Row {
	w.t.Helper()
	eventually(w.t, 10*time.Second, "the final row", func() bool { return w.west.meter.len() > 0 && w.west.meter.last().Requests == 1 })
	w.west.meter.finals(w.t)
	return w.west.meter.last()
}

func TestSocket_IsRelayedAndCounted(t *testing.T) {
	for _, place := range []string{"eu-west", "eu-central"} {
		t.Run(place, func(t *testing.T) {
			w := newLive(t, nil, nil)
			if place == "eu-central" {
				w.west.up.kill()
				eventually(t, 10*time.Second, "another region", func() bool { return w.send("GET", "/live/x", "").served == "eu-central" })
			}
			before := w.west.meter.len()
			c := w.open(w.west, "Sec-WebSocket-Protocol", "chat, other", "Sec-WebSocket-Extensions", "permessage-deflate")
			if c.status != 101 || c.head.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || c.head.Get("Sec-Websocket-Protocol") != "chat" || c.head.Get("Sec-Websocket-Extensions") != "" ||
				c.head.Get("Bailiwick-Served") != place || c.head.Get("Bailiwick-Request-Id") == "" {
				t.Fatalf("opened: %d %v", c.status, c.head)
			}
			if _, text, err := c.hear(); text != "here is "+place {
				t.Fatalf("heard %q, %v", text, err)
			}
			long := strings.Repeat("x", 40_000)
			for _, text := range []string{"hello", long, ""} {
				if err := c.say(1, text); err != nil {
					t.Fatal(err)
				}
				if _, got, err := c.hear(); err != nil || got != text {
					t.Fatalf("heard %d bytes back (%v), want %d", len(got), err, len(text))
				}
			}
			c.say(8, "\x03\xe8")
			if code := c.closed(); code != 1000 {
				t.Errorf("closed with %d, want 1000", code)
			}
			row := w.final()
			units, in, out := int64(0), int64(0), int64(0)
			for _, r := range w.west.meter.since(before) {
				units, in, out = units+r.Units, in+r.BytesIn, out+r.BytesOut
			}
			if row.Status != 101 || row.Outcome != usage.OutcomeSuccess || row.ServedRegion != place || row.Route != "live" {
				t.Errorf("row %+v", row)
			}
			if units != 4 || in != 40_005 || out != 40_005+int64(len("here is "+place)) { // 3 up, 4 down, 2 a unit
				t.Errorf("%d units, %d bytes up and %d down; want 4, 40005 and what came back", units, in, out)
			}
			up := w.west.up
			if place == "eu-central" {
				up = w.central.up
			}
			h, uri := up.last()
			if uri != "/live/x?a=b" || h.Get("X-Api-Key") != "" || h.Get("Sec-Websocket-Extensions") != "" || h.Get("Sec-Websocket-Key") == "dGhlIHNhbXBsZSBub25jZQ==" || h.Get("Bailiwick-Customer") != "acme" || h.Get("X-Forwarded-Host") != "orders.test" {
				t.Errorf("the upstream was asked %s with %v", uri, h)
			}
			for name := range h {
				if strings.HasPrefix(name, "Bailiwick-Relay") {
					t.Errorf("the upstream was told %s", name)
				}
			}
			eventually(t, 10*time.Second, "no stream left", func() bool { return w.west.proxy.Streams() == 0 })
		})
	}
}

func TestSocket_OpensOnlyWhereAndHowItMay(t *testing.T) {
	w := newLive(t, nil, nil)
	for name, c := range map[string]struct {
		header []string
		status int
	}{
		"another route":         {[]string{"path", "/plain"}, 501},
		"no key":                {[]string{"X-Api-Key", ""}, 401},
		"a wrong key":           {[]string{"X-Api-Key", "nobody"}, 401},
		"version 8":             {[]string{"Sec-WebSocket-Version", "8"}, 426},
		"no WebSocket key":      {[]string{"Sec-WebSocket-Key", ""}, 400},
		"no connection":         {[]string{"Connection", "keep-alive"}, 400},
		"with h2c":              {[]string{"Upgrade", "websocket, h2c"}, 501},
		"with a body":           {[]string{"Content-Length", "1"}, 400},
		"an ambiguous path":     {[]string{"path", "/live/../x"}, 400},
		"a protocol that is no": {[]string{"Sec-WebSocket-Protocol", "a b"}, 400},
	} {
		before := w.west.up.count.Load()
		got := w.open(w.west, c.header...)
		if got.status != c.status {
			t.Errorf("%s: %d, want %d", name, got.status, c.status)
		}
		if c.status == 426 && (got.head.Get("Upgrade") != "websocket" || !slices.Contains(got.head["Connection"], "Upgrade") || got.head.Get("Sec-WebSocket-Version") != "13") { // RFC 9110, 15.5.22
			t.Errorf("%s: what would be spoken is not said: %v", name, got.head)
		}
		if n := w.west.up.count.Load(); n != before {
			t.Errorf("%s: an upstream was asked", name)
		}
	}
	// An upstream's refusal is its answer; what it answers wrongly opens nothing.
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { http.Error(rw, "not here", 418) })
	if got := w.open(w.west); got.status != 418 {
		t.Errorf("refused by the upstream: %d, want 418", got.status)
	}
	w.central.up.kill()
	for name, head := range map[string]string{
		"another key":      "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
		"another protocol": "Upgrade: h2c\r\nConnection: Upgrade\r\n",
	} {
		w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(rw).Hijack()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n"+head+"\r\n")
			conn.Close()
		})
		if got := w.open(w.west); got.status < 500 {
			t.Errorf("%s: %d, want a failure", name, got.status)
		}
	}
}

// What takes back what a connection rests on ends it.
func TestSocket_EndsWithWhatItRestsOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(w *world, r *region) bool // true: the pair stays
		relay  bool
		code   int
	}{
		"the key is revoked": {func(w *world, r *region) bool { w.objects = w.objects[1:]; return true }, false, 1008},
		"the key is suspended": {func(w *world, r *region) bool {
			w.objects[0] = edited(w.t, w.objects[0], func(k *table.Key) { k.Suspended = true })
			return true
		}, false, 1008},
		"the key ends": {func(w *world, r *region) bool {
			w.objects[0] = edited(w.t, w.objects[0], func(k *table.Key) { k.Ends = time.Now().Unix() })
			return true
		}, false, 1008},
		"the plan sells it no more": {func(w *world, r *region) bool { r.plan = func(p *table.Plan) { p.APIs = nil }; return true }, false, 1008},
		"the route opens none": {func(w *world, r *region) bool {
			r.orders = func(a *table.API) { a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live"}) }
			return true
		}, false, 1008},
		"the pair is closed": {func(w *world, r *region) bool { return false }, true, 1012},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLive(t, nil, nil)
			if c.relay {
				w.west.up.kill()
				eventually(t, 10*time.Second, "another region", func() bool { return w.send("GET", "/live/x", "").served == "eu-central" })
			}
			other := w.open(w.west)
			other.hear()
			ch := w.open(w.west)
			if _, text, err := ch.hear(); err != nil || !strings.HasPrefix(text, "here is") {
				t.Fatal(text, err)
			}
			paired := c.change(w, w.west)
			began := time.Now()
			w.west.tables.Swap(w.view(w.west, paired))
			if c.relay {
				w.west.client.Enforce()
			}
			if code := ch.closed(); code != c.code {
				t.Errorf("closed with %d, want %d", code, c.code)
			}
			if code := other.closed(); code != c.code {
				t.Errorf("the other: closed with %d, want %d", code, c.code)
			}
			t.Logf("after %v", time.Since(began))
			ch.Close()
			other.Close()
			w.final()
		})
	}
}

func edited(t testing.TB, o table.Object, change func(*table.Key)) table.Object {
	var k table.Key
	if err := table.Decode(o, &k); err != nil {
		t.Fatal(err)
	}
	change(&k)
	out, err := table.Encode(table.KindKey, k.ID, &k)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// One that shuts in favour of another process says so when its time is over, and not before: messages pass meanwhile.
func TestSocket_OutlastsTheDoor(t *testing.T) {
	w := newLive(t, nil, nil)
	c := w.open(w.west)
	c.hear()
	door := w.west.server.door
	soon, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := door.Settle(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a door with a connection that lasts settles with %v", err)
	}
	ctx, over := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); door.Outlast(ctx) }()
	for range 3 {
		c.say(1, "still here")
		if op, text, err := c.hear(); err != nil || op != 1 || text != "still here" {
			t.Fatalf("heard %d %q, %v", op, text, err)
		}
	}
	over()
	if code := c.closed(); code != 1001 {
		t.Errorf("closed with %d, want 1001", code)
	}
	c.say(8, "\x03\xe9")
	<-done
}

// A door that shuts says so.
func TestSocket_DrainsWithTheDoor(t *testing.T) {
	w := newLive(t, nil, nil)
	c := w.open(w.west)
	c.hear()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.west.server.door.Shutdown(ctx) }()
	if code := c.closed(); code != 1001 {
		t.Errorf("closed with %d, want 1001", code)
	}
	c.say(8, "\x03\xe9")
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("the door: %v", err)
	}
	if row := w.final(); row.Outcome != usage.OutcomeSuccess {
		t.Errorf("row %+v", row)
	}
}

// An upstream that breaks off is no clean end, and what passed is paid for all the same.
func TestSocket_SaysThatTheUpstreamBrokeOff(t *testing.T) {
	w := newLive(t, nil, nil)
	c := w.open(w.west)
	c.hear()
	c.say(1, "bye")
	if code := c.closed(); code != 1011 {
		t.Errorf("closed with %d, want 1011", code)
	}
	c.Close()
	if row := w.final(); row.Outcome != usage.OutcomeAborted || row.Units != 0 {
		t.Errorf("final row %+v", row)
	}
	units := int64(0)
	for _, r := range w.west.meter.since(0) {
		if r.Outcome == usage.OutcomeSuccess {
			units += r.Units
		}
	}
	if units != 1 {
		t.Errorf("%d units, want 1 for two messages", units)
	}
}

// Connections that last have places of their own.
func TestSocket_HasAPlaceOfItsOwn(t *testing.T) {
	w := newLive(t, func(c *proxy.Config) { c.MaxStreams = 1; c.MaxInFlight = 1 }, nil)
	c := w.open(w.west)
	c.hear()
	if got := w.send("GET", "/plain", ""); got.status != 400 { // what echoes answers to no WebSocket
		t.Errorf("a request beside it: %d", got.status)
	}
	if got := w.open(w.west); got.status != 503 {
		t.Errorf("a second connection: %d, want 503", got.status)
	}
	c.Close()
	eventually(t, 10*time.Second, "the place", func() bool { return w.west.proxy.Streams() == 0 })
	if got := w.open(w.west); got.status != 101 {
		t.Errorf("after it: %d, want 101", got.status)
	}
}

// A strict quota is used up to its last unit and no further, message by message, whichever way they go.
func TestSocket_SpendsAQuotaToItsLastUnit(t *testing.T) {
	w, l := metered(t, 8, func(c *proxy.Config) { c.QuotaGrace = 50 * time.Millisecond })
	w.west.orders = func(a *table.API) {
		a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}, Units: &table.Units{PerMessages: 1, Most: 3}})
	}
	w.west.tables.Swap(w.view(w.west, true))
	w.west.up.echoes(t)
	c := w.open(w.west)
	if c.status != 101 {
		t.Fatal(c.status)
	}
	heard := 0
	for ; ; heard++ {
		op, text, err := c.hear()
		if err != nil {
			t.Fatal(err)
		}
		if op == 8 {
			if text[:2] != "\x03\xf0" { // 1008
				t.Errorf("closed with %x, want 1008", text)
			}
			break
		}
		c.say(1, "more")
	}
	if heard != 4 { // its own word and three echoes: with what was said, eight
		t.Errorf("%d messages came, want 4", heard)
	}
	c.Close()
	w.final()
	units := int64(0)
	for _, r := range w.west.meter.since(0) {
		if units += r.Units; r.Units > 0 && r.Period == 0 {
			t.Errorf("a row of %d units names no period", r.Units)
		}
	}
	if units != 8 {
		t.Errorf("%d units, want 8", units)
	}
	l.said(t, units, 0)
}

// Rows in between leave what a connection has taken of a strict quota taken: each unit that it uses is one of its lease.
func TestSocket_SpendsOfAQuotaWhatItTook(t *testing.T) {
	for name, c := range map[string]struct {
		units table.Units
		limit int64
		say   string
	}{
		"messages, and rows in between": {table.Units{PerMessages: 1, Most: 10}, 20, "more"},
		"bytes, and a unit half used":   {table.Units{PerBytes: 10, Most: 3}, 3, "12345678"},
	} {
		t.Run(name, func(t *testing.T) {
			w, l := metered(t, c.limit, func(p *proxy.Config) { p.QuotaGrace = 50 * time.Millisecond; p.InterimEvery = time.Nanosecond })
			w.west.orders = func(a *table.API) {
				a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{PingEvery: 2 * time.Second}, Units: &c.units})
			}
			w.west.tables.Swap(w.view(w.west, true))
			w.west.up.echoes(t)
			ch := w.open(w.west)
			ch.hear()
			if c.units.PerMessages > 0 {
				eventually(t, 20*time.Second, "a row in between", func() bool { return w.west.meter.len() > 0 })
			}
			for {
				if op, text, err := ch.ask(c.say); err != nil {
					t.Fatal(err)
				} else if op == 8 {
					if text[:2] != "\x03\xf0" {
						t.Errorf("closed with %x, want 1008", text)
					}
					break
				}
			}
			ch.Close()
			w.final()
			units := int64(0)
			for _, r := range w.west.meter.since(0) {
				if units += r.Units; r.Units > 0 && r.Period == 0 {
					t.Errorf("a row of %d units is of no lease", r.Units)
				}
			}
			if units != c.limit {
				t.Errorf("%d units in rows, want %d", units, c.limit)
			}
			l.said(t, units, 0)
		})
	}
}

// A relay takes a place at an API's upstreams as any request does.
func TestRelayed_TakesAPlaceAtTheUpstreams(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute; c.Timeout = time.Minute })
	for _, r := range []*region{w.west, w.central} {
		r.orders = func(a *table.API) { a.Concurrency = &table.Concurrency{Min: 1, Max: 1} }
		r.tables.Swap(w.view(r, true))
	}
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	var now, most atomic.Int64
	w.central.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(20 * time.Millisecond)
		now.Add(-1)
	})
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if a := w.send("GET", "/v1/x", ""); a.status != 200 && a.status != 503 {
				t.Errorf("got %d %s", a.status, a.body)
			}
		})
	}
	all.Wait()
	if n := most.Load(); n != 1 {
		t.Errorf("%d were at the upstream at once, want 1", n)
	}
}

// From the moment on at which a connection is told to end nothing passes, whoever keeps its end from being said.
func TestSocket_NothingPassesOnceItIsToldToEnd(t *testing.T) {
	t.Parallel()
	w := newLive(t, nil, func(r *table.Route) { r.Units = nil })
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		offer, _ := websocket.ReadOffer(r.Header)
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+websocket.Accept(offer.Key)+"\r\n\r\n")
		for c := (&chat{Conn: conn}); c.say(2, strings.Repeat("x", 1000)) == nil; { // without a pause
		}
	})
	c := w.open(w.west)
	if _, _, err := c.hear(); err != nil {
		t.Fatal(err)
	}
	w.objects = w.objects[1:] // the client reads no more, and the edge waits for it when the key is revoked
	w.west.tables.Swap(w.view(w.west, true))
	if row := w.final(); row.Outcome != usage.OutcomeSuccess && row.Outcome != usage.OutcomeAborted {
		t.Errorf("row %+v", row)
	}
	eventually(t, 10*time.Second, "no stream", func() bool { return w.west.proxy.Streams() == 0 })
}

// What passed and could not be put into a row is the last that passes.
func TestSocket_EndsWhenItCannotBeCounted(t *testing.T) {
	w := newLive(t, func(c *proxy.Config) { c.InterimEvery = time.Nanosecond }, func(r *table.Route) { r.WebSocket.PingEvery = 2 * time.Second })
	c := w.open(w.west)
	c.hear()
	w.west.meter.mu.Lock()
	w.west.meter.err = errors.New("disk full")
	w.west.meter.mu.Unlock()
	c.say(1, "one")
	ended := make(chan int, 1)
	go func() { ended <- c.closed() }()
	for range 200 {
		select {
		case code := <-ended:
			if code != websocket.CloseLater {
				t.Errorf("closed with %d, want 1013", code)
			}
			return
		case <-time.After(50 * time.Millisecond):
			c.say(1, "more")
		}
	}
	t.Error("it goes on although nothing of it is counted")
}

// A route rewrites what a WebSocket asks for as it does any request.
func TestSocket_IsRewritten(t *testing.T) {
	w := newLive(t, nil, func(r *table.Route) { r.Rewrite = &table.Rewrite{Strip: "/live", Host: "inside.test"} })
	if c := w.open(w.west); c.status != 101 {
		t.Fatal(c.status)
	}
	if _, uri := w.west.up.last(); uri != "/x?a=b" {
		t.Errorf("the upstream was asked for %s, want /x?a=b", uri)
	}
}

// Upstreams that the zone found are as good as those that the API names: what was opened at one stands.
func TestSocket_StandsAtWhatTheZoneFound(t *testing.T) {
	w := newLive(t, nil, nil)
	o, err := table.Encode(table.KindTargets, "orders", table.Targets{API: "orders", URLs: []string{"http://" + w.west.up.addr}})
	if err != nil {
		t.Fatal(err)
	}
	w.objects = append(w.objects, o)
	orders := w.west.orders
	w.west.orders = func(a *table.API) { orders(a); a.Targets, a.Dispatch.Discovery = nil, "etcd" }
	w.west.tables.Swap(w.view(w.west, true))
	c := w.open(w.west)
	if c.hear(); c.status != 101 {
		t.Fatal(c.status)
	}
	w.west.tables.Swap(w.view(w.west, true)) // it is looked at once more
	for range 3 {
		time.Sleep(judged)
		c.say(1, "still there")
		if op, text, err := c.hear(); op != 1 {
			t.Fatalf("heard %d %q, %v", op, text, err)
		}
	}
}

const judged = 300 * time.Millisecond // a look at what changed comes sooner; a test that waits too little finds nothing, and fails nobody
