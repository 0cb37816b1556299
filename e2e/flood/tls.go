package flood

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

var overTLS = []Flood{
	{Name: "TLS: bytes that are no TLS", Workers: 8, do: garbage},
	{Name: "TLS: handshakes for names that nobody has", Workers: 8, do: unknown},
	{Name: "TLS: handshakes, whole ones", Workers: 8, do: func(ctx context.Context, e *Edge, t *Tally) {
		if _, end, err := e.secure(ctx, "http/1.1"); err == nil {
			t.sent.Add(1)
			end()
		}
	}},
	{Name: "TLS: handshakes that stop halfway", Workers: 1, do: func(ctx context.Context, e *Edge, t *Tally) {
		hello := greeting(e)
		hold(ctx, t, func() (net.Conn, func(), error) { return dial(ctx, e.HTTPS) }, hello[:len(hello)/2], "")
	}},
	{Name: "TLS: handshakes that nobody ends", Workers: 1, do: func(ctx context.Context, e *Edge, t *Tally) {
		hold(ctx, t, func() (net.Conn, func(), error) { return dial(ctx, e.HTTPS) }, greeting(e), "")
	}},
	{Name: "TCP over TLS: slow first lines", Workers: 1, lines: true, do: func(ctx context.Context, e *Edge, t *Tally) {
		hold(ctx, t, e.line(ctx), "BAILIWICK/1 ", "x")
	}},
	{Name: "TCP over TLS: first lines without end", Workers: 8, lines: true, do: func(ctx context.Context, e *Edge, t *Tally) {
		c, end, err := e.line(ctx)()
		if err != nil {
			return
		}
		defer end()
		c.SetDeadline(time.Now().Add(time.Minute))
		n, _ := io.WriteString(c, "BAILIWICK/1 "+strings.Repeat("x", 64<<10))
		t.sent.Add(int64(n))
		answer, _ := io.ReadAll(io.LimitReader(c, 64))
		t.say(strings.TrimSpace(string(answer)))
	}},
}

func (e *Edge) line(ctx context.Context) func() (net.Conn, func(), error) {
	return func() (net.Conn, func(), error) {
		raw, end, err := dial(ctx, e.HTTPS)
		if err != nil {
			return nil, nil, err
		}
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: e.Lines})
		if err := c.HandshakeContext(ctx); err != nil {
			end()
			pause(ctx, 10*time.Millisecond)
			return nil, nil, err
		}
		return c, end, nil
	}
}

// garbage begins like a record, or like nothing.
func garbage(ctx context.Context, e *Edge, t *Tally) {
	c, end, err := dial(ctx, e.HTTPS)
	if err != nil {
		return
	}
	defer end()
	b := make([]byte, 512)
	rand.Read(b)
	if b[0]&1 == 0 {
		copy(b, "\x16\x03\x01\x01\xf0\x01\x00\x01\xec")
	}
	c.Write(b)
	t.sent.Add(1)
	c.SetReadDeadline(time.Now().Add(time.Minute))
	io.Copy(io.Discard, c)
}

func unknown(ctx context.Context, e *Edge, t *Tally) {
	raw, end, err := dial(ctx, e.HTTPS)
	if err != nil {
		return
	}
	defer end()
	err = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: fmt.Sprintf("n%d.nobody.test", t.sent.Add(1))}).HandshakeContext(ctx)
	var alert tls.AlertError
	switch {
	case ctx.Err() != nil:
	case errors.As(err, &alert):
		t.say(strings.TrimPrefix(alert.Error(), "tls: "))
	case err == nil:
		t.say("a handshake")
	default:
		t.say("closed")
	}
}

// greeting is what a client says first.
func greeting(e *Edge) string {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, e.tls("http/1.1")).Handshake()
	buf := make([]byte, 16<<10)
	n, _ := b.Read(buf)
	return string(buf[:n])
}
