package http3

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
)

// door is a server of this package on a socket of its own.
type door struct {
	at    string
	conns chan *Conn
	tls   *tls.Config // of clients
}

// serving serves by a handler.
func serving(t testing.TB, handler http.HandlerFunc) *door {
	t.Helper()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	t.Cleanup(web.Close)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	l, err := tr.Listen(&tls.Config{Certificates: web.TLS.Certificates, NextProtos: []string{"h3"}},
		&quic.Config{MaxIncomingStreams: MaxStreams, MaxIncomingUniStreams: MaxControl, RequireStreamCreditRelease: true, MaxIdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	d := &door{at: pc.LocalAddr().String(), conns: make(chan *Conn, 1000), tls: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}}
	var wg sync.WaitGroup
	v := New(Config{MaxHead: 64 << 10, Go: wg.Go, Panicked: func(p any) { t.Errorf("panic: %v", p) }})
	wg.Go(func() {
		for {
			q, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			state := q.ConnectionState().TLS
			c := v.NewConn(q, Peer{Remote: func() string { return q.RemoteAddr().String() }, TLS: &state}, func(s *Stream) {
				if _, whole := s.Body(4 << 10); !whole && s.Gone() {
					return
				}
				s.HTTP(handler)
			})
			select {
			case d.conns <- c:
			default:
			}
			wg.Go(c.Run)
		}
	})
	t.Cleanup(func() {
		tr.Close()
		pc.Close()
		v.Close()
		wg.Wait()
	})
	return d
}

// client speaks frames by hand.
type client struct {
	t testing.TB
	*quic.Conn
}

func (d *door) connect() (*quic.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return quic.DialAddr(ctx, d.at, d.tls, &quic.Config{MaxIdleTimeout: time.Minute})
}

func (d *door) dial(t testing.TB) client {
	t.Helper()
	q, err := d.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.CloseWithError(0, "") })
	return client{t, q}
}

// control opens a stream of one direction.
func (c client) control(b ...byte) *quic.SendStream {
	c.t.Helper()
	s, err := c.OpenUniStreamSync(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	s.Write(b)
	return s
}

var usual = []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/"}

func section(fields ...string) []byte {
	var b bytes.Buffer
	e := qpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return append(appendFrame(nil, frameHeaders, b.Len()), b.Bytes()...)
}

func data(text string) []byte { return append(appendFrame(nil, frameData, len(text)), text...) }

// open begins a request with what is written.
func (c client) open(b []byte, ends bool) *quic.Stream {
	c.t.Helper()
	s, err := c.OpenStreamSync(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(time.Minute))
	s.Write(b)
	if ends {
		s.Close()
	}
	return s
}

// answer is a request's: its statuses and body, or how the stream or the connection ended.
func answer(s *quic.Stream) string {
	d := &reader{buf: make([]byte, 64)}
	status, body := "", ""
	for {
		f, err := d.frame(s)
		if err == io.EOF {
			return strings.TrimSpace(status + " " + body)
		}
		var b []byte
		if err == nil {
			b, err = d.whole(s, int(f.length))
		}
		if err != nil {
			return ending(err)
		}
		switch f.kind {
		case frameHeaders:
			text, err := theirs(b)
			if err != nil {
				return err.Error()
			}
			if at, ok := strings.CutPrefix(text, ":status: "); ok {
				status += at[:3]
			} else {
				status += " [" + strings.TrimSpace(text) + "]"
			}
		case frameData:
			body += string(b)
		}
	}
}

func ending(err error) string {
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		return fmt.Sprintf("stream: %x", uint64(e.ErrorCode))
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return fmt.Sprintf("connection: %x", uint64(e.ErrorCode))
	}
	return err.Error()
}

func hello(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, body)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// What RFC 9114 calls an error of the connection is one, and what it calls none is none.
func TestConn_ErrorsOfAConnection(t *testing.T) {
	d := serving(t, hello)
	head, post := section(usual...), section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/")
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"usual", head, "200 GET a.test"},
		{"a body", join(post, data("ab"), data("c")), "200 POST a.test abc"},
		{"a frame of an unknown type before the head", join([]byte{0x21, 3, 'a', 'b', 'c'}, head), "200 GET a.test"},
		{"one between", join(post, data("a"), []byte{0x21, 0}, data("b")), "200 POST a.test ab"},
		{"one behind a trailer", join(post, section("x", "y"), []byte{0x21, 1, 'x'}), "200 POST a.test"},
		{"a type in a longer spelling", join([]byte{0x40, 0x21, 0}, head), "200 GET a.test"},
		{"data first", data("a"), "connection: 105"},
		{"settings", []byte{4, 0}, "connection: 105"},
		{"settings behind a head", join(head, []byte{4, 0}), "connection: 105"},
		{"goaway", []byte{7, 1, 0}, "connection: 105"},
		{"a push", []byte{5, 1, 0}, "connection: 105"},
		{"max push id", []byte{0xd, 1, 0}, "connection: 105"},
		{"cancel push", []byte{3, 1, 0}, "connection: 105"},
		{"priority of HTTP/2", []byte{2, 0}, "connection: 105"},
		{"ping of HTTP/2", []byte{6, 0}, "connection: 105"},
		{"window update of HTTP/2", join(head, []byte{8, 0}), "connection: 105"},
		{"continuation of HTTP/2", join(head, []byte{9, 0}), "connection: 105"},
		{"data behind a trailer", join(post, data("a"), section("x", "y"), data("b")), "connection: 105"},
		{"a trailer behind a trailer", join(post, data("a"), section("x", "y"), section("x", "y")), "connection: 105"},
		{"a head that is cut off", head[:len(head)-3], "connection: 106"},
		{"a body that is cut off", join(post, []byte{0, 5, 'a'}), "connection: 106"},
		{"a frame's head that is cut off", join(post, []byte{0}), "connection: 106"},
		{"an unknown frame that is cut off", []byte{0x21, 5, 'a'}, "connection: 106"},
		{"no section", []byte{1, 0}, "connection: 200"},
		{"a reference to a table that is not there", []byte{1, 3, 0, 0, 0x80}, "connection: 200"},
		{"insertions needed", []byte{1, 3, 2, 0, 0x80}, "connection: 200"},
		{"a bad trailer section", join(post, data("a"), []byte{1, 3, 0, 0, 0x80}), "connection: 200"},
		{"nothing", nil, "stream: 10d"},
		{"an unknown frame and nothing", []byte{0x21, 0}, "stream: 10d"},
	} {
		if got := answer(d.dial(t).open(c.b, true)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// A malformed request is reset, is not served, and takes nobody else with it.
func TestConn_MalformedRequests(t *testing.T) {
	var asked atomic.Int64
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "other.test" {
			asked.Add(1)
		}
		hello(w, r)
	})
	c := d.dial(t)
	with := func(more ...string) []byte { return section(append(append([]string(nil), usual...), more...)...) }
	const malformed = "stream: 10e"
	for _, x := range []struct {
		name string
		b    []byte
		want string
	}{
		{"no method", section(":scheme", "https", ":authority", "a.test", ":path", "/"), malformed},
		{"no scheme", section(":method", "GET", ":authority", "a.test", ":path", "/"), malformed},
		{"no path", section(":method", "GET", ":scheme", "https", ":authority", "a.test"), malformed},
		{"an empty path", section(":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", ""), malformed},
		{"two paths", with(":path", "/"), malformed},
		{"a pseudo-header field behind another", section(":method", "GET", ":scheme", "https", "x", "y", ":path", "/"), malformed},
		{"one of an answer", with(":status", "200"), malformed},
		{"one that nobody knows", section(":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/", ":x", "y"), malformed},
		{"extended CONNECT", section(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a.test", ":path", "/"), malformed},
		{"CONNECT with a path", section(":method", "CONNECT", ":authority", "a.test", ":path", "/"), malformed},
		{"a name in upper case", with("X", "y"), malformed},
		{"an empty name", with("", "y"), malformed},
		{"connection", with("connection", "close"), malformed},
		{"keep-alive", with("keep-alive", "1"), malformed},
		{"upgrade", with("upgrade", "h2c"), malformed},
		{"te of another kind", with("te", "gzip"), malformed},
		{"transfer-encoding", with("transfer-encoding", "chunked"), malformed},
		{"a line in a value", with("x", "a\nb"), malformed},
		{"white space before a value", with("x", " a"), malformed},
		{"another host", with("host", "b.test"), malformed},
		{"two lengths", with("content-length", "0", "content-length", "0"), malformed},
		{"a length that is none", with("content-length", "1x"), malformed},
		{"a length and no body", with("content-length", "3"), malformed},
		{"a shorter body", join(with("content-length", "3"), data("ab")), malformed},
		{"a longer body", join(with("content-length", "3"), data("abcd")), malformed},
		{"a longer body in pieces", join(with("content-length", "3"), data("ab"), data("cd")), malformed},
		{"a pseudo-header field in a trailer", join(section(usual...), data("a"), section(":path", "/")), malformed},
		{"a length in a trailer", join(section(usual...), data("a"), section("content-length", "1")), malformed},
	} {
		before := asked.Load()
		if got := answer(c.open(x.b, true)); got != x.want {
			t.Errorf("%s: got %q, want %q", x.name, got, x.want)
		}
		if n := asked.Load() - before; n > 0 && !strings.Contains(x.name, "trailer") {
			t.Errorf("%s: it was served", x.name)
		}
		if got := answer(c.open(section(":method", "GET", ":scheme", "https", ":authority", "other.test", ":path", "/"), true)); got != "200 GET other.test" {
			t.Fatalf("%s: the next request gets %q", x.name, got)
		}
	}
}

// Heads and trailers have a limit, and what is beyond it is told.
func TestConn_HeadsAreBounded(t *testing.T) {
	d := serving(t, hello)
	c := d.dial(t)
	many := append([]string(nil), usual...)
	for i := range 300 {
		many = append(many, fmt.Sprint("x-", i), "y")
	}
	for name, b := range map[string][]byte{
		"long":  section(append(append([]string(nil), usual...), "x", strings.Repeat("\x7e~", 40<<10))...),
		"many":  section(many...),
		"bytes": appendFrame(nil, frameHeaders, 1<<20),
		"bomb":  append(appendFrame(nil, frameHeaders, 60_002), append([]byte{0, 0}, bytes.Repeat([]byte{0xff, 20}, 30_000)...)...),
	} {
		if got := answer(c.open(b, false)); !strings.HasPrefix(got, "431 ") {
			t.Errorf("%s: got %q, want 431", name, got)
		}
	}
	if got := answer(c.open(join(section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/"), appendFrame(nil, frameHeaders, 1<<20)), false)); got != "stream: 10e" {
		t.Errorf("a trailer without end: got %q", got)
	}
}

// Control streams: what may be in them, how often, and that they last.
func TestConn_ControlStreams(t *testing.T) {
	d := serving(t, hello)
	for _, c := range []struct {
		name    string
		streams [][]byte
		ends    bool // the first of them
		want    string
	}{
		{"usual", [][]byte{{0, 4, 0}, {2}, {3}}, false, ""},
		{"a setting without a value", [][]byte{{0, 4, 6, 6, 0x40, 64, 0x21, 1, 8}, {2, 0x20}, {3, 0x44}}, false, "connection: 106"},
		{"known settings", [][]byte{{0, 4, 7, 1, 0, 6, 0x40, 64, 7, 0, 0xd, 1, 3, 0xd, 1, 3, 7, 1, 9, 7, 1, 8, 0x21, 1, 0}, {2, 0x20}, {3, 0x44}}, false, ""},
		{"a stream of an unknown type", [][]byte{{0, 4, 0}, {0x21, 1, 2, 3}}, false, ""},
		{"no settings", [][]byte{{0, 7, 1, 0}}, false, "connection: 10a"},
		{"settings twice", [][]byte{{0, 4, 0, 4, 0}}, false, "connection: 105"},
		{"a setting twice", [][]byte{{0, 4, 4, 6, 1, 6, 1}}, false, "connection: 109"},
		{"a setting of HTTP/2", [][]byte{{0, 4, 2, 3, 1}}, false, "connection: 109"},
		{"data", [][]byte{{0, 4, 0, 0, 1, 'a'}}, false, "connection: 105"},
		{"a head", [][]byte{{0, 4, 0, 1, 1, 'a'}}, false, "connection: 105"},
		{"a push", [][]byte{{0, 4, 0, 5, 1, 0}}, false, "connection: 105"},
		{"ping of HTTP/2", [][]byte{{0, 4, 0, 6, 1, 0}}, false, "connection: 105"},
		{"a push that is cancelled", [][]byte{{0, 4, 0, 3, 1, 0}}, false, "connection: 108"},
		{"a later goaway", [][]byte{{0, 4, 0, 7, 1, 0, 7, 1, 1}}, false, "connection: 108"},
		{"a lower max push id", [][]byte{{0, 4, 0, 0xd, 1, 5, 0xd, 1, 4}}, false, "connection: 108"},
		{"a goaway that is none", [][]byte{{0, 4, 0, 7, 2, 0, 0}}, false, "connection: 106"},
		{"an empty goaway", [][]byte{{0, 4, 0, 7, 0}}, false, "connection: 106"},
		{"settings that are cut off", [][]byte{{0, 4, 1, 6}}, false, "connection: 106"},
		{"endless settings", [][]byte{{0, 4, 0x80, 1, 0, 0}}, false, "connection: 107"},
		{"a control stream that ends", [][]byte{{0, 4, 0}}, true, "connection: 104"},
		{"an encoder's that ends", [][]byte{{2}}, true, "connection: 104"},
		{"a decoder's that ends", [][]byte{{3}}, true, "connection: 104"},
		{"two control streams", [][]byte{{0, 4, 0}, {0, 4, 0}}, false, "connection: 103"},
		{"two encoders", [][]byte{{2}, {2}}, false, "connection: 103"},
		{"a push stream", [][]byte{{1, 0}}, false, "connection: 103"},
		{"an insertion", [][]byte{{2, 0x41, 'a', 1, 'b'}}, false, "connection: 201"},
		{"a capacity", [][]byte{{2, 0x21}}, false, "connection: 201"},
		{"an acknowledgement", [][]byte{{3, 0x80}}, false, "connection: 202"},
		{"an increment", [][]byte{{3, 0x01}}, false, "connection: 202"},
	} {
		conn := d.dial(t)
		for i, b := range c.streams {
			s := conn.control(b...)
			if i == 0 && c.ends {
				s.Close()
			}
		}
		got := ""
		if c.want == "" { // it goes on
			for range 3 {
				if got = answer(conn.open(section(usual...), true)); got == "200 GET a.test" {
					got = ""
				}
			}
		} else {
			select {
			case <-conn.Context().Done():
				got = ending(context.Cause(conn.Context()))
			case <-time.After(time.Minute):
				got = "it goes on"
			}
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// Whoever asks for nothing without end is told so, and others are served meanwhile.
func TestConn_FloodsEnd(t *testing.T) {
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "slow.test" {
			<-r.Context().Done()
			return
		}
		hello(w, r)
	})
	slow := section(":method", "GET", ":scheme", "https", ":authority", "slow.test", ":path", "/")
	request := func(c client, b []byte, back bool) {
		s, err := c.OpenStreamSync(t.Context())
		if err != nil { // the connection has ended
			return
		}
		if s.Write(b); back {
			s.CancelWrite(quic.StreamErrorCode(RequestCancelled))
			s.CancelRead(quic.StreamErrorCode(RequestCancelled))
		}
	}
	uni := func(c client, b []byte, end func(*quic.SendStream)) {
		if s, err := c.OpenUniStreamSync(t.Context()); err == nil {
			s.Write(b)
			end(s)
		}
	}
	stays := func(*quic.SendStream) {}
	for name, flood := range map[string]struct {
		once bool
		do   func(c client)
	}{
		"requests taken back":         {false, func(c client) { request(c, slow, true) }},
		"requests that never begin":   {false, func(c client) { request(c, nil, true) }},
		"requests that are malformed": {false, func(c client) { request(c, section(":method", "GET"), false) }},
		"empty data": {true, func(c client) {
			request(c, join(section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/"), bytes.Repeat([]byte{0, 0}, 3000)), false)
		}},
		"unknown frames":              {true, func(c client) { request(c, bytes.Repeat([]byte{0x21, 0}, 3000), false) }},
		"a long unknown frame":        {true, func(c client) { request(c, append(appendVarint([]byte{0x21}, 1<<40), make([]byte, 1<<20)...), false) }},
		"control frames":              {true, func(c client) { uni(c, append([]byte{0, 4, 0}, bytes.Repeat([]byte{0xd, 1, 3}, 3000)...), stays) }},
		"what a control stream skips": {true, func(c client) { uni(c, append([]byte{0, 4, 0, 0x21, 0x80, 0x80, 0, 0}, make([]byte, 1<<20)...), stays) }},
		"an encoder's":                {true, func(c client) { uni(c, append([]byte{2}, bytes.Repeat([]byte{0x20}, 3000)...), stays) }},
		"a decoder's":                 {true, func(c client) { uni(c, append([]byte{3}, bytes.Repeat([]byte{0x44}, 3000)...), stays) }},
		"streams of unknown types":    {false, func(c client) { uni(c, []byte{0x21}, func(s *quic.SendStream) { s.CancelWrite(0) }) }},
		"streams that say nothing":    {false, func(c client) { uni(c, nil, func(s *quic.SendStream) { s.Close() }) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, well := d.dial(t), d.dial(t)
			for i := 0; c.Context().Err() == nil && i < 30_000; i++ {
				if flood.do(c); flood.once {
					select {
					case <-c.Context().Done():
					case <-time.After(time.Minute):
					}
					break
				}
				if i%500 == 0 {
					if got := answer(well.open(section(usual...), true)); got != "200 GET a.test" {
						t.Fatalf("another client gets %q", got)
					}
				}
			}
			if c.Context().Err() == nil {
				t.Fatal("it goes on")
			}
			if got := ending(context.Cause(c.Context())); got != "connection: 107" {
				t.Errorf("got %q, want an end for excessive load", got)
			}
			if got := answer(well.open(section(usual...), true)); got != "200 GET a.test" {
				t.Errorf("another client gets %q", got)
			}
		})
	}
}

// Streams of one direction that are over make room for others: a client may have as many, one after another, as it is ready to
// pay for.
func TestConn_StreamsOfOneDirectionGivePlacesBack(t *testing.T) {
	c := serving(t, hello).dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 4 * MaxControl {
		s, err := c.OpenUniStreamSync(ctx)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		s.Write([]byte{0x21, 'x'})
		s.Close()
	}
	if got := answer(c.open(section(usual...), true)); got != "200 GET a.test" {
		t.Errorf("a request beside them: got %q", got)
	}
}

// What a client takes back while it takes work has its place as long as it does.
func TestConn_WhatIsTakenBackCounts(t *testing.T) {
	var running, most atomic.Int64
	leave := make(chan struct{})
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		<-leave // whatever the client does
	})
	c := d.dial(t)
	v := (<-d.conns).v
	opened := 0
	for opened < 2*MaxStreams {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // no more is given while all are held
		s, err := c.OpenStreamSync(ctx)
		cancel()
		if err != nil {
			break
		}
		s.Write(section(usual...))
		s.Close()
		s.CancelRead(quic.StreamErrorCode(RequestCancelled))
		opened++
	}
	close(leave)
	defer func() {
		var got map[string]int64
		for range 1000 {
			got = map[string]int64{}
			for i, n := range v.Counts().Reset {
				if n > 0 {
					got[Codes[i]] = n
				}
			}
			if got["request_cancelled"] >= int64(opened) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if len(got) != 1 || got["request_cancelled"] != int64(opened) {
			t.Errorf("got resets %v, want %d that are cancelled", got, opened)
		}
	}()
	if n := most.Load(); opened != MaxStreams || n > MaxStreams {
		t.Errorf("%d requests were opened, %d served at a time, want %d", opened, n, MaxStreams)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.OpenStreamSync(ctx); err != nil {
		t.Errorf("after they have ended: %v", err)
	}
}

// A connection that is to end serves what was sent before the client has heard of it, and says what it has not looked at.
func TestConn_DrainLosesNothing(t *testing.T) {
	var asked atomic.Int64
	leave := make(chan struct{})
	let := sync.OnceFunc(func() { close(leave) })
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1); r.URL.Path == "/slow" {
			<-leave
		}
		hello(w, r)
	})
	t.Cleanup(let)
	c := d.dial(t)
	slow := c.open(section(":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/slow"), true)
	in, err := c.AcceptUniStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in.SetReadDeadline(time.Now().Add(time.Minute))
	says := &reader{buf: make([]byte, 64)}
	if kind, err := says.number(in); kind != streamControl || err != nil {
		t.Fatalf("a stream of type %d, %v", kind, err)
	}
	goaway := func() uint64 {
		for {
			f, err := says.frame(in)
			if err != nil {
				t.Fatal(err)
			}
			b, err := says.whole(in, int(f.length))
			if err != nil {
				t.Fatal(err)
			}
			if f.kind == frameGoAway {
				id, _ := varint(b)
				return id
			}
		}
	}
	for asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	conn := <-d.conns
	conn.Drain()
	if id := goaway(); id != 1<<62-4 {
		t.Fatalf("the first goaway names %d, want all that may come", id)
	}
	between := c.open(section(usual...), true)
	if got := answer(between); got != "200 GET a.test" {
		t.Errorf("what was sent meanwhile: got %q", got)
	}
	last := goaway()
	if last <= uint64(between.StreamID()) {
		t.Errorf("the second goaway names %d, and %d was served", last, between.StreamID())
	}
	before := asked.Load()
	late := c.open(section(usual...), true)
	if got := answer(late); got != "stream: 10b" || uint64(late.StreamID()) < last {
		t.Errorf("what came after it: got %q of %d, want it rejected", got, late.StreamID())
	}
	if asked.Load() != before {
		t.Error("and it was served")
	}
	let()
	if got := answer(slow); got != "200 GET a.test" {
		t.Errorf("what was under way: got %q", got)
	}
	select {
	case <-c.Context().Done():
		if got := ending(context.Cause(c.Context())); got != "connection: 100" {
			t.Errorf("it ends with %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}
}

// A connection without requests ends after a while, and gives its place away; one with a request does not.
func TestConn_IdleOnesGo(t *testing.T) {
	leave := make(chan struct{})
	d := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-leave
		}
	})
	c := d.dial(t)
	slow := c.open(section(":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/slow"), true)
	conn := <-d.conns
	for busy := false; !busy; time.Sleep(time.Millisecond) {
		conn.mu.Lock()
		busy = conn.busy > conn.mute
		conn.mu.Unlock()
	}
	if conn.Yield() {
		t.Error("it goes with a request under way")
	}
	for range 5 {
		conn.look()
	}
	close(leave)
	if got := answer(slow); got != "200" {
		t.Fatalf("got %q", got)
	}
	for busy := true; busy; time.Sleep(time.Millisecond) {
		conn.mu.Lock()
		busy = conn.busy > 0
		conn.mu.Unlock()
	}
	for range 4 {
		conn.look()
	}
	select {
	case <-c.Context().Done():
	case <-time.After(time.Minute):
		t.Error("an idle one stays")
	}
	c = d.dial(t)
	conn = <-d.conns
	for !conn.Yield() {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-c.Context().Done():
	case <-time.After(time.Minute):
		t.Error("one that is to give its place away stays")
	}
}
