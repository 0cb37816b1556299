package flood

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

// three is a connection over HTTP/3, by hand.
type three struct {
	*quic.Conn
	e *Edge
	t *Tally
}

// Frames of HTTP/3.
const (
	data3, head3, settings3, unknown3 = 0, 1, 4, 0x21
)

func frame(kind uint64, payload []byte) []byte {
	b := quicvarint.Append(nil, kind)
	return append(quicvarint.Append(b, uint64(len(payload))), payload...)
}

func (c *three) head(method, path, key string) []byte {
	var block bytes.Buffer
	enc := qpack.NewEncoder(&block)
	for _, f := range [...][2]string{{":method", method}, {":scheme", "https"}, {":authority", c.e.Host}, {":path", path}, {"x-api-key", key}} {
		if f[1] == "" {
			continue
		}
		enc.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return frame(head3, block.Bytes())
}

var overHTTP3 = []Flood{
	{Name: "HTTP/3: requests with keys that nobody has", Workers: 16, Answer: "401", do: streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("GET", "/v1/x", c.e.stranger()))
		s.Close()
		return c.answer(ctx, s)
	})},
	{Name: "HTTP/3: requests to paths that no route has", Workers: 16, few: true, Answer: "404", do: atFew(streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("GET", astray(), c.e.Key))
		s.Close()
		return c.answer(ctx, s)
	}))},
	{Name: "HTTP/3: requests to paths that no route has, without a key", Workers: 16, few: true, Answer: "404", do: atFew(streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("GET", astray(), ""))
		s.Close()
		return c.answer(ctx, s)
	}))},
	{Name: "HTTP/3: requests that are taken back", Workers: 8, do: streams(func(_ context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("GET", "/v1/x", c.e.Key))
		s.CancelWrite(0x10c)
		s.CancelRead(0x10c)
		return nil
	})},
	{Name: "HTTP/3: requests that are malformed", Workers: 8, do: streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("GET /", "x", "\x00"))
		s.Close()
		return c.answer(ctx, s)
	})},
	{Name: "HTTP/3: heads that name what no table has", Workers: 8, do: streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(frame(head3, []byte{4, 0, 0x80, 0x81, 0x82})) // a required insert count: who has a table would wait for it
		return c.answer(ctx, s)
	})},
	{Name: "HTTP/3: heads without end", Workers: 8, do: streams(endlessly(append([]byte{head3}, quicvarint.Append(nil, 1<<40)...), make([]byte, 4<<10)))},
	{Name: "HTTP/3: empty DATA", Workers: 8, do: streams(endlessly(nil, bytes.Repeat([]byte{data3, 0}, 2<<10)))},
	{Name: "HTTP/3: frames that nobody knows", Workers: 8, do: streams(endlessly(nil, bytes.Repeat([]byte{unknown3, 0}, 2<<10)))},
	{Name: "HTTP/3: trailers, and none that ends", Workers: 8, do: streams(func(ctx context.Context, c *three, s *quic.Stream) error {
		s.Write(c.head("POST", "/v1/x", c.e.Key))
		return endlessly(nil, bytes.Repeat(frame(head3, []byte{0, 0}), 1<<10))(ctx, c, s)
	})},
	{Name: "HTTP/3: frames of a control stream", Workers: 8, do: connections(func(ctx context.Context, c *three, control *quic.SendStream) {
		many := bytes.Repeat(frame(unknown3, nil), 2<<10)
		for ctx.Err() == nil {
			if _, err := control.Write(many); err != nil {
				return
			}
			c.t.sent.Add(2 << 10)
		}
	})},
	{Name: "HTTP/3: streams one way that nobody knows", Workers: 8, do: connections(func(ctx context.Context, c *three, _ *quic.SendStream) {
		for ctx.Err() == nil {
			s, err := c.OpenUniStreamSync(ctx)
			if err != nil {
				return
			}
			s.Write([]byte{unknown3})
			s.CancelWrite(0)
			c.t.sent.Add(1)
		}
	})},
	{Name: "HTTP/3: connections whose requests' bodies never come", Workers: 50, do: silent3("POST", "/v1/x")},
	{Name: "HTTP/3: connections that take no long answers", Workers: 50, do: silent3("GET", "LONG")},
	{Name: "QUIC: handshakes that nobody ends", Workers: 32, do: func(ctx context.Context, e *Edge, t *Tally) {
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			pause(ctx, 10*time.Millisecond)
			return
		}
		defer udp.Close()
		at, err := net.ResolveUDPAddr("udp", e.H3)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		quic.Dial(ctx, unheard{udp}, at, e.tls("h3"), nil)
		t.sent.Add(1)
	}},
	{Name: "QUIC: packets of nothing", Workers: 4, do: func(ctx context.Context, e *Edge, t *Tally) {
		c, err := net.Dial("udp", e.H3)
		if err != nil {
			pause(ctx, 10*time.Millisecond)
			return
		}
		defer c.Close()
		b := make([]byte, 1200)
		for ctx.Err() == nil {
			rand.Read(b[:64])
			switch b[0] % 3 {
			case 0: // an Initial of a connection that is not there yet
				copy(b, "\xc3\x00\x00\x00\x01\x08")
			case 1: // one of a version that nobody speaks
				copy(b, "\xc3\xfa\xce\xb0\x0c\x08")
			}
			c.Write(b)
			t.sent.Add(1)
		}
	}},
}

// unheard hears nothing.
type unheard struct{ net.PacketConn }

func (u unheard) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if _, _, err := u.PacketConn.ReadFrom(p); err != nil {
			return 0, nil, err
		}
	}
}

// connections has do use one connection after the other.
func connections(do func(ctx context.Context, c *three, control *quic.SendStream)) func(context.Context, *Edge, *Tally) {
	return func(ctx context.Context, e *Edge, t *Tally) {
		c, err := quic.DialAddr(ctx, e.H3, e.tls("h3"), nil)
		if err != nil {
			pause(ctx, 10*time.Millisecond)
			return
		}
		defer c.CloseWithError(0, "")
		control, err := c.OpenUniStreamSync(ctx)
		if err != nil {
			return
		}
		control.Write(append([]byte{0}, frame(settings3, nil)...))
		do(ctx, &three{c, e, t}, control)
		if err := context.Cause(c.Context()); err != nil && ctx.Err() == nil {
			var app *quic.ApplicationError
			if errors.As(err, &app) && app.Remote {
				t.say(fmt.Sprintf("connection closed with %#x", uint64(app.ErrorCode)))
			} else {
				t.say("connection closed")
			}
		}
	}
}

// streams has one use a stream after the other, of one connection as long as it lasts.
func streams(one func(ctx context.Context, c *three, s *quic.Stream) error) func(context.Context, *Edge, *Tally) {
	return connections(func(ctx context.Context, c *three, _ *quic.SendStream) {
		for ctx.Err() == nil {
			s, err := c.OpenStreamSync(ctx)
			if err != nil {
				return
			}
			s.SetDeadline(time.Now().Add(time.Minute))
			stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
			c.t.sent.Add(1)
			err = one(ctx, c, s)
			stop()
			s.CancelRead(0)
			s.CancelWrite(0)
			if err != nil && c.Context().Err() != nil {
				return
			}
		}
	})
}

// answer reads one, and says how it begins or how the stream ends.
func (c *three) answer(ctx context.Context, s *quic.Stream) error {
	b, err := io.ReadAll(io.LimitReader(s, 64<<10))
	var reset *quic.StreamError
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &reset):
		c.t.say(fmt.Sprintf("stream reset with %#x", uint64(reset.ErrorCode)))
	case err != nil:
		return err
	default:
		c.t.say(statusOf(b))
	}
	return nil
}

func statusOf(b []byte) string {
	r := bytes.NewReader(b)
	if kind, err := quicvarint.Read(r); err != nil || kind != head3 {
		return "no head"
	}
	n, err := quicvarint.Read(r)
	if err != nil || n > uint64(r.Len()) {
		return "no head"
	}
	block := b[len(b)-r.Len():][:n]
	status := "no status"
	next := qpack.NewDecoder().Decode(block)
	for {
		f, err := next()
		if err != nil {
			return status
		}
		if f.Name == ":status" {
			status = f.Value
		}
	}
}

// endlessly writes the same again and again.
func endlessly(head, again []byte) func(context.Context, *three, *quic.Stream) error {
	return func(ctx context.Context, c *three, s *quic.Stream) error {
		_, err := s.Write(head)
		for err == nil && ctx.Err() == nil {
			_, err = s.Write(again)
			c.t.sent.Add(int64(len(again)))
		}
		if ctx.Err() != nil {
			return nil
		}
		var reset *quic.StreamError
		if errors.As(err, &reset) {
			c.t.say(fmt.Sprintf("stream refused with %#x", uint64(reset.ErrorCode)))
			return c.answer(ctx, s)
		}
		return err
	}
}

// silent3 begins as many requests as it may, and says and reads nothing more.
func silent3(method, path string) func(context.Context, *Edge, *Tally) {
	return connections(func(ctx context.Context, c *three, _ *quic.SendStream) {
		path := strings.Replace(path, "LONG", c.e.Long, 1)
		c.t.sent.Add(1)
		for range 100 {
			s, err := c.OpenStreamSync(ctx)
			if err != nil {
				return
			}
			s.Write(c.head(method, path, c.e.Key))
			if method == "GET" {
				s.Close()
			}
		}
		select {
		case <-c.Context().Done():
		case <-ctx.Done():
		}
	})
}
