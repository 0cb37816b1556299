package flood

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// two is a connection over HTTP/2, by hand.
type two struct {
	*http2.Framer
	*buffered
	e     *Edge
	block bytes.Buffer
	enc   *hpack.Encoder
	n     uint32 // requests that were begun
}

var overHTTP2 = []Flood{
	{Name: "HTTP/2: requests with keys that nobody has", Workers: 8, Answer: "401", do: frames(func(c *two) error { return c.ask("GET", "/v1/x", c.e.stranger(), true) }, true)},
	{Name: "HTTP/2: requests to paths that no route has", Workers: 8, few: true, Answer: "404", do: atFew(frames(func(c *two) error { return c.ask("GET", astray(), c.e.Key, true) }, true))},
	{Name: "HTTP/2: requests to paths that no route has, without a key", Workers: 8, few: true, Answer: "404", do: atFew(frames(func(c *two) error { return c.ask("GET", astray(), "", true) }, true))},
	{Name: "HTTP/2: requests that are taken back", Workers: 8, Served: true, do: frames(func(c *two) error {
		if err := c.ask("GET", "/v1/x", c.e.Key, true); err != nil {
			return err
		}
		return c.WriteRSTStream(c.id(), http2.ErrCodeCancel)
	}, false)},
	{Name: "HTTP/2: requests that the edge is made to reset", Workers: 8, Served: true, do: frames(func(c *two) error {
		if err := c.ask("POST", "/v1/x", c.e.Key, false); err != nil {
			return err
		}
		return c.WriteWindowUpdate(c.id(), 0)
	}, false)},
	{Name: "HTTP/2: requests that are malformed", Workers: 8, do: frames(func(c *two) error { return c.ask("GET /", "x", "\x00", true) }, false)},
	{Name: "HTTP/2: SETTINGS", Workers: 8, do: frames(func(c *two) error {
		return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(time.Now().Nanosecond())})
	}, false)},
	{Name: "HTTP/2: PING", Workers: 8, do: frames(func(c *two) error { return c.WritePing(false, [8]byte{}) }, false)},
	{Name: "HTTP/2: PRIORITY", Workers: 8, do: frames(func(c *two) error { c.n++; return c.WritePriority(c.id(), http2.PriorityParam{Weight: 1}) }, false)},
	{Name: "HTTP/2: WINDOW_UPDATE", Workers: 8, do: frames(func(c *two) error { return c.WriteWindowUpdate(0, 1) }, false)},
	{Name: "HTTP/2: empty DATA", Workers: 8, Served: true, do: frames(func(c *two) error {
		if c.n == 0 {
			return c.ask("POST", "/v1/x", c.e.Key, false)
		}
		return c.WriteData(1, false, nil)
	}, false)},
	{Name: "HTTP/2: CONTINUATION, empty", Workers: 8, do: frames(continued(nil), false)},
	{Name: "HTTP/2: CONTINUATION, full", Workers: 8, do: frames(continued(make([]byte, 16<<10)), false)},
	{Name: "HTTP/2: frames that nobody knows", Workers: 8, do: frames(func(c *two) error { return c.WriteRawFrame(0xfa, 0, 0, nil) }, false)},
	{Name: "HTTP/2: heads that grow when they are decompressed", Workers: 8, do: frames(bomb, true)},
	{Name: "HTTP/2: trailers, and none that ends", Workers: 8, Served: true, do: frames(func(c *two) error {
		if c.n == 0 {
			return c.ask("POST", "/v1/x", c.e.Key, false)
		}
		c.block.Reset()
		c.enc.WriteField(hpack.HeaderField{Name: "x-more", Value: "1"})
		return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block.Bytes(), EndHeaders: true})
	}, false)},
	{Name: "HTTP/2: connections whose requests' bodies never come", Workers: idlers / 5, Served: true, do: silent("POST", "/v1/x", 1<<16, 100)},
	{Name: "HTTP/2: connections that give no room for long answers", Workers: idlers / 5, Served: true, do: silent("GET", "LONG", 0, 100)},
	{Name: "HTTP/2: connections that say nothing", Workers: idlers / 5, do: silent("GET", "", 1<<16, 0)},
}

func (c *two) id() uint32 { return 2*c.n - 1 }

func (c *two) ask(method, path, key string, whole bool) error {
	c.n++
	c.block.Reset()
	for _, f := range [...][2]string{{":method", method}, {":scheme", "https"}, {":authority", c.e.Host}, {":path", path}, {"x-api-key", key}} {
		if f[1] == "" {
			continue
		}
		c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id(), BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: whole})
}

func continued(b []byte) func(*two) error {
	return func(c *two) error {
		if c.n == 0 {
			c.n++
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil})
		}
		return c.WriteContinuation(1, false, b)
	}
}

// bomb names one long entry of the table again and again.
func bomb(c *two) error {
	c.n++
	c.block.Reset()
	for _, f := range [...][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", c.e.Host}, {":path", "/v1/x"}} {
		c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	f := hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 3000)}
	for range 2000 {
		c.enc.WriteField(f)
	}
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id(), BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: true})
}

// over2 opens a connection and hears what the edge says until it ends, which over says.
func (e *Edge) over2(ctx context.Context, t *Tally, window uint32, answered func(id uint32)) (c *two, over <-chan struct{}, end func()) {
	conn, stop, err := e.secure(ctx, "h2")
	if err != nil {
		return nil, nil, nil
	}
	out := &buffered{w: conn}
	c = &two{Framer: http2.NewFramer(out, conn), buffered: out, e: e}
	c.AllowIllegalWrites = true
	c.enc = hpack.NewEncoder(&c.block)
	io.WriteString(out, http2.ClientPreface)
	c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		statuses := hpack.NewDecoder(4096, nil)
		for {
			f, err := c.ReadFrame()
			if err != nil {
				if ctx.Err() == nil {
					t.say("closed")
				}
				stop()
				return
			}
			switch f := f.(type) {
			case *http2.GoAwayFrame:
				t.say("GOAWAY " + f.ErrCode.String())
			case *http2.RSTStreamFrame:
				t.say("RST_STREAM " + f.ErrCode.String())
				answered(f.StreamID)
			case *http2.HeadersFrame:
				if fields, err := statuses.DecodeFull(f.HeaderBlockFragment()); err == nil && len(fields) > 0 && fields[0].Name == ":status" {
					t.say(fields[0].Value)
				}
				if f.StreamEnded() {
					answered(f.StreamID)
				}
			case *http2.DataFrame:
				if f.StreamEnded() {
					answered(f.StreamID)
				}
			}
		}
	}()
	return c, gone, func() { stop(); <-gone }
}

// buffered gathers frames, until they are a few KiB or are flushed.
type buffered struct {
	w io.Writer
	b []byte
}

func (b *buffered) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	if len(b.b) < 4<<10 {
		return len(p), nil
	}
	return len(p), b.flush()
}

func (b *buffered) flush() error {
	_, err := b.w.Write(b.b)
	b.b = b.b[:0]
	return err
}

// frames sends one after the other. answers: at most 100 are under way, as many as a client that behaves might have.
func frames(one func(*two) error, answers bool) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		room := make(chan struct{}, 100)
		c, gone, end := e.over2(ctx, t, 1<<20, func(uint32) {
			if answers {
				select {
				case <-room:
				default:
				}
			}
		})
		if c == nil {
			return
		}
		defer end()
		if answers { // whose bodies would fill the connection's 64 KiB, and then the flood would be none
			c.WriteWindowUpdate(0, 1<<31-1-1<<16)
		}
		for ctx.Err() == nil {
			if answers {
				select {
				case room <- struct{}{}:
				case <-gone:
					return
				default: // all are under way: what is gathered has to leave first
					if c.flush() != nil {
						return
					}
					select {
					case room <- struct{}{}:
					case <-gone:
						return
					}
				}
			}
			if one(c) != nil {
				return
			}
			t.sent.Add(1)
		}
	}
}

// silent begins requests, and then says nothing more.
func silent(method, path string, window uint32, requests int) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		c, gone, end := e.over2(ctx, t, window, func(uint32) {})
		if c == nil {
			return
		}
		defer end()
		for range requests {
			c.ask(method, strings.Replace(path, "LONG", e.Long, 1), e.Key, method == "GET")
		}
		if c.flush() != nil {
			return
		}
		t.sent.Add(1)
		select {
		case <-gone:
		case <-ctx.Done():
		}
	}
}
