package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	theirs "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// client speaks frames by hand.
type client struct {
	t    testing.TB
	conn net.Conn
	*theirs.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
}

func connect(t testing.TB, conn net.Conn, settings ...theirs.Setting) *client {
	t.Helper()
	c := &client{t: t, conn: conn, Framer: theirs.NewFramer(conn, conn)}
	c.enc, c.dec = hpack.NewEncoder(&c.block), hpack.NewDecoder(4096, nil)
	c.AllowIllegalWrites = true
	io.WriteString(conn, theirs.ClientPreface)
	c.WriteSettings(settings...)
	return c
}

func dial(t testing.TB, at net.Addr, settings ...theirs.Setting) *client {
	t.Helper()
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	return connect(t, conn, settings...)
}

var usual = []string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/"}

func (c *client) fields(fields ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

func (c *client) open(id uint32, ends bool, fields ...string) error {
	return c.WriteHeaders(theirs.HeadersFrameParam{StreamID: id, BlockFragment: c.fields(fields...), EndStream: ends, EndHeaders: true})
}

// answer reads until a stream ends: its status and body, or how it was reset, or how the connection ended.
func (c *client) answer(id uint32) (string, error) {
	status, body := "", ""
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "", err
		}
		switch f := f.(type) {
		case *theirs.GoAwayFrame:
			if f.ErrCode != theirs.ErrCodeNo {
				return "", fmt.Errorf("connection: %v", f.ErrCode)
			}
		case *theirs.HeadersFrame:
			fields, err := c.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				return "", err
			}
			if f.StreamID != id {
				continue
			}
			status += fields[0].Value
			if f.StreamEnded() {
				return status + body, nil
			}
		case *theirs.DataFrame:
			if f.StreamID != id {
				continue
			}
			body += string(f.Data())
			if f.StreamEnded() {
				return status + " " + body, nil
			}
		case *theirs.RSTStreamFrame:
			if f.StreamID == id {
				return "", fmt.Errorf("stream: %v", f.ErrCode)
			}
		}
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, body)
}

// Whoever sends frames without end that ask for nothing is told to calm down, and others are served meanwhile.
func TestConn_FloodsEnd(t *testing.T) {
	var running, most atomic.Int64
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		if r.Host == "slow.test" {
			<-r.Context().Done()
			return
		}
		hello(w, r)
	})
	slow := []string{":method", "GET", ":scheme", "https", ":authority", "slow.test", ":path", "/"}
	for name, one := range map[string]func(c *client, i int) error{
		"resets": func(c *client, i int) error {
			c.open(uint32(2*i+1), true, slow...)
			return c.WriteRSTStream(uint32(2*i+1), theirs.ErrCodeCancel)
		},
		"settings":   func(c *client, i int) error { return c.WriteSettings() },
		"pings":      func(c *client, i int) error { return c.WritePing(false, [8]byte{}) },
		"priorities": func(c *client, i int) error { return c.WritePriority(uint32(2*i+1), theirs.PriorityParam{}) },
		"windows":    func(c *client, i int) error { return c.WriteWindowUpdate(0, 1) },
		"unknown":    func(c *client, i int) error { return c.WriteRawFrame(0xfa, 0, 0, nil) },
		"empty data": func(c *client, i int) error {
			if i == 0 {
				c.open(1, false, slow...)
			}
			return c.WriteData(1, false, nil)
		},
		"padding alone": func(c *client, i int) error {
			if i == 0 {
				c.open(1, false, slow...)
			}
			return c.WriteDataPadded(1, false, nil, make([]byte, 255))
		},
		"malformed": func(c *client, i int) error { return c.open(uint32(2*i+1), true, "UPPER", "x") },
		"too many":  func(c *client, i int) error { return c.open(uint32(2*i+1), true, slow...) },
		"continuations": func(c *client, i int) error {
			if i == 0 {
				return c.WriteHeaders(theirs.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(usual...)})
			}
			return c.WriteContinuation(1, false, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, at)
			over := make(chan error, 1)
			go func() {
				_, err := c.answer(1 << 30)
				over <- err
			}()
			for i := 0; i < 200_000; i++ {
				if one(c, i) != nil {
					break
				}
			}
			err := <-over
			if err == nil || !strings.Contains(err.Error(), "ENHANCE_YOUR_CALM") && !strings.Contains(err.Error(), "reset") && !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want ENHANCE_YOUR_CALM", err)
			}
			other := dial(t, at)
			other.open(1, true, usual...)
			if got, err := other.answer(1); err != nil || got != "200 GET a.test " {
				t.Errorf("another client: got %q %v", got, err)
			}
		})
	}
	if n := most.Load(); n > 2*MaxStreams+1 {
		t.Errorf("%d requests of one connection were served at a time", n)
	}
}

// Heads that grow when they are decompressed are refused, and the table that the next rests on is right all the same.
// Whoever reads a long answer in small pieces, after it has come, floods nobody.
func TestConn_ReadingInPiecesIsNoFlood(t *testing.T) {
	const size = 4 << 20
	over := make(chan struct{})
	defer close(over)
	at := serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, size))
		http.NewResponseController(w).Flush()
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})
	c := dial(t, at)
	c.WriteSettings(theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 2 * size})
	c.WriteWindowUpdate(0, 2*size)
	c.open(1, true, usual...)
	for got := 0; got < size; {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*theirs.DataFrame); ok {
			got += len(f.Data())
		}
	}
	for range size / (4 << 10) { // as net/http's client does
		c.WriteWindowUpdate(0, 4<<10)
		c.WriteWindowUpdate(1, 4<<10)
	}
	c.WritePing(false, [8]byte{1})
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *theirs.GoAwayFrame:
			t.Fatalf("got %v", f.ErrCode)
		case *theirs.PingFrame:
			return
		}
	}
}

func TestConn_HeaderBombs(t *testing.T) {
	at := serving(t, hello)
	c := dial(t, at)
	bomb := append([]string(nil), usual...)
	for range 300 {
		bomb = append(bomb, "x-bomb", strings.Repeat("b", 3000))
	}
	c.open(1, true, bomb...) // 300 times one entry of the table: 900 KB from 3
	if got, err := c.answer(1); err != nil || !strings.HasPrefix(got, "431") {
		t.Errorf("got %q %v, want 431", got, err)
	}
	many := append([]string(nil), usual...)
	for i := range 300 {
		many = append(many, fmt.Sprint("x-", i), "1")
	}
	c.open(3, true, many...)
	if got, err := c.answer(3); err != nil || !strings.HasPrefix(got, "431") {
		t.Errorf("300 fields: got %q %v, want 431", got, err)
	}
	c.open(9, false, many...)
	c.WriteData(9, false, []byte("a body")) // as long as it may have said
	if got, err := c.answer(9); err != nil || !strings.HasPrefix(got, "431") {
		t.Errorf("300 fields and a body: got %q %v, want 431", got, err)
	}
	c.open(11, true, append(append([]string(nil), usual...), "x-299", "1")...)
	if got, err := c.answer(11); err != nil || got != "200 GET a.test " {
		t.Errorf("the next: got %q %v", got, err)
	}
	for i := range 5 { // never whole, and longer than any may be
		c.WriteRawFrame(theirs.FrameType(map[bool]byte{true: 1, false: 9}[i == 0]), 0, 13, make([]byte, 16<<10))
	}
	if got, err := c.answer(13); err == nil || !strings.Contains(err.Error(), "ENHANCE_YOUR_CALM") {
		t.Errorf("got %q %v", got, err)
	}
}

// What is malformed is no request, whatever of it a lenient reader could make out.
func TestConn_MalformedRequests(t *testing.T) {
	var served atomic.Int64
	at := serving(t, func(w http.ResponseWriter, r *http.Request) { hello(w, r); served.Add(1) })
	with := func(fields ...string) []string { return append(append([]string(nil), usual...), fields...) }
	for name, c := range map[string]struct {
		fields []string
		data   string
		want   string
	}{
		"usual":                       {usual, "", "200 GET a.test "},
		"upper case":                  {with("X-Up", "1"), "", ""},
		"space in a name":             {with("x y", "1"), "", ""},
		"colon in a name":             {with("x:y", "1"), "", ""},
		"empty name":                  {with("", "1"), "", ""},
		"CR LF in a value":            {with("x", "1\r\nx-api-key: k"), "", ""},
		"LF in a value":               {with("x", "1\n"), "", ""},
		"nul in a value":              {with("x", "\x00"), "", ""},
		"space before a value":        {with("x", " 1"), "", ""},
		"space behind a value":        {with("x", "1 "), "", ""},
		"connection":                  {with("connection", "close"), "", ""},
		"keep-alive":                  {with("keep-alive", "1"), "", ""},
		"proxy-connection":            {with("proxy-connection", "1"), "", ""},
		"upgrade":                     {with("upgrade", "h2c"), "", ""},
		"transfer-encoding":           {with("transfer-encoding", "chunked"), "0\r\n\r\n", ""},
		"te":                          {with("te", "gzip"), "", ""},
		"te: trailers":                {with("te", "trailers"), "", "200 GET a.test "},
		"pseudo behind a field":       {[]string{":method", "GET", ":scheme", "https", "x", "1", ":path", "/"}, "", ""},
		"pseudo twice":                {with(":path", "/other"), "", ""},
		"pseudo unknown":              {with(":x", "1"), "", ""},
		"pseudo of answers":           {with(":status", "200"), "", ""},
		"no path":                     {usual[:6], "", ""},
		"empty path":                  {[]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", ""}, "", ""},
		"path without a slash":        {[]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "x"}, "", ""},
		"absolute path":               {[]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "https://b.test/"}, "", ""},
		"path with a space":           {[]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/ HTTP/1.1"}, "", ""},
		"path with CR LF":             {[]string{":method", "GET", ":scheme", "https", ":authority", "a.test", ":path", "/\r\nx: y"}, "", ""},
		"method with a space":         {[]string{":method", "GET / HTTP/1.1\r\nx:", ":scheme", "https", ":authority", "a.test", ":path", "/"}, "", ""},
		"scheme with a host":          {[]string{":method", "GET", ":scheme", "https://b.test/", ":authority", "a.test", ":path", "/"}, "", ""},
		"connect with a path":         {[]string{":method", "CONNECT", ":authority", "a.test", ":path", "/", ":scheme", "https"}, "", ""},
		"extended connect":            {[]string{":method", "CONNECT", ":protocol", "websocket", ":authority", "a.test", ":path", "/", ":scheme", "https"}, "", ""},
		"host that agrees":            {with("host", "A.test"), "", "200 GET a.test "},
		"host of another":             {with("host", "b.test"), "", ""},
		"two hosts":                   {append(append([]string{}, ":method", "GET", ":scheme", "https", ":path", "/"), "host", "a.test", "host", "a.test"), "", ""},
		"host alone":                  {append(append([]string{}, ":method", "GET", ":scheme", "https", ":path", "/"), "host", "c.test"), "", "200 GET c.test "},
		"length":                      {with("content-length", "3"), "abc", "200 GET a.test abc"},
		"length of less":              {with("content-length", "2"), "abc", ""},
		"length of more":              {with("content-length", "4"), "abc", ""},
		"length without a body":       {with("content-length", "4"), "", ""},
		"two lengths that agree":      {with("content-length", "3", "content-length", "3"), "abc", ""},
		"length with a sign":          {with("content-length", "+3"), "abc", ""},
		"expectation of another kind": {with("expect", "200-ok"), "", "200 GET a.test "},
	} {
		t.Run(name, func(t *testing.T) {
			cl := dial(t, at)
			before := served.Load()
			cl.open(1, c.data == "", c.fields...)
			if c.data != "" {
				cl.WriteData(1, true, []byte(c.data))
			}
			got, err := cl.answer(1)
			if c.want != "" {
				if err != nil || got != c.want {
					t.Errorf("got %q %v, want %q", got, err, c.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "PROTOCOL_ERROR") || strings.Contains(err.Error(), "connection") {
				t.Errorf("got %q %v, want the stream reset", got, err)
			}
			if n := served.Load() - before; n != 0 {
				t.Errorf("it was served")
			}
			// The connection goes on.
			cl.open(3, true, usual...)
			if got, err := cl.answer(3); err != nil || got != "200 GET a.test " {
				t.Errorf("the next: got %q %v", got, err)
			}
		})
	}
}

// pipe is a connection in virtual time.
func pipe(t *testing.T, h http.HandlerFunc, settings ...theirs.Setting) (c *client, conn *Conn, done func()) {
	mine, other := net.Pipe()
	var wg sync.WaitGroup
	v := New(Config{MaxHead: 64 << 10, Go: wg.Go, Panicked: func(p any) { t.Errorf("panic: %v", p) }})
	conn = v.NewConn(other, Peer{}, func(s *Stream) { s.HTTP(h) })
	wg.Go(func() {
		conn.Run()
		other.Close()
		v.Close()
	})
	return connect(t, mine, settings...), conn, func() { mine.Close(); wg.Wait() }
}

// A client that gives no room for an answer is given up after a while, and holds nothing up.
func TestConn_AClientThatTakesNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan time.Duration, 1)
		began := time.Now()
		c, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "a.test" {
				w.Write(make([]byte, 10_000))
				over <- time.Since(began)
			}
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 0})
		defer done()
		c.open(1, true, usual...)
		go c.open(3, true, ":method", "HEAD", ":scheme", "https", ":authority", "b.test", ":path", "/")
		if got, err := c.answer(3); err != nil || got != "200" {
			t.Errorf("beside it: got %q %v", got, err)
		}
		if _, err := c.answer(1); err == nil || !strings.Contains(err.Error(), "stream") {
			t.Errorf("got %v, want the stream reset", err)
		}
		if d := <-over; d != sendTimeout {
			t.Errorf("the handler waited %v, want %v", d, sendTimeout)
		}
	})
}

// Idle connections end, those that never begin sooner, and so do heads that trickle and clients that have gone.
func TestConn_TimesEnd(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(c *client)
		want time.Duration
	}{
		"idle":           {func(c *client) {}, idleTimeout},
		"idle afterward": {func(c *client) { time.Sleep(time.Minute); c.open(1, true, usual...) }, time.Minute + idleTimeout},
		"head trickles": {func(c *client) {
			c.WriteHeaders(theirs.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(usual...)})
			for range 20 {
				time.Sleep(time.Second)
				if c.WriteContinuation(1, false, []byte{0x82}) != nil {
					return
				}
			}
		}, headTimeout},
		"gone with a request under way": {func(c *client) {
			c.open(1, true, ":method", "GET", ":scheme", "https", ":authority", "slow.test", ":path", "/")
		}, quietTimeout + pingTimeout},
		"frames of no request": {func(c *client) {
			for range 100 {
				time.Sleep(time.Second)
				if c.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
		}, idleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl, _, done := pipe(t, func(w http.ResponseWriter, r *http.Request) {
					if r.Host == "slow.test" {
						<-r.Context().Done()
					}
				})
				var wg sync.WaitGroup
				defer wg.Wait()
				defer done()
				began := time.Now()
				wg.Go(func() { c.do(cl) })
				for { // a client that answers no PING
					if _, err := cl.ReadFrame(); err != nil {
						break
					}
				}
				// That a request is over is noticed when the reader looks up.
				if d := time.Since(began); d < c.want || d > c.want+quietTimeout+time.Second {
					t.Errorf("it ended after %v, want %v or a little later", d, c.want)
				}
			})
		})
	}
}
