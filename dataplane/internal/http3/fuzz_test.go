package http3

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// FuzzControl has a client's control streams of any bytes: they end with a code, or with the stream, and keep little.
func FuzzControl(f *testing.F) {
	for _, b := range [][]byte{{0, 4, 0}, {0, 4, 7, 1, 0, 6, 0x40, 64, 7, 0, 0xd, 1, 3, 7, 1, 9, 3, 1, 0}, {0, 4, 4, 6, 1, 6, 1}, {0, 0x21, 3, 1, 2, 3}, {2, 0x20, 0x20, 0x3f}, {3, 0x44, 0x7f, 0x80, 1, 0x80}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		ended := Code(0)
		c := &Conn{tokens: allowance, refilled: time.Now(), end: func(code Code) { ended = code }}
		d, from := &reader{buf: make([]byte, 64)}, pieces{bytes.NewReader(b[1:])}
		var code Code
		switch b[0] % 3 {
		case 0:
			code = c.frames(d, from)
		case 1:
			code = c.encoder(d, from)
		case 2:
			code = c.decoder(d, from)
		}
		if code < NoError || code > DecoderStreamError {
			t.Errorf("it ends with %x", code)
		}
		if ended != 0 && ended != code {
			t.Errorf("the connection ends with %x, and the stream with %x", ended, code)
		}
		if len(d.buf) > 3*settingsMost {
			t.Errorf("%d bytes are kept of %d", len(d.buf), len(b))
		}
	})
}

// pieces gives a byte or a few at a time.
type pieces struct{ r *bytes.Reader }

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), 3)]) }

// FuzzRequest has a client's stream of any bytes: it has an answer or a code, is served once at most, and takes no other client
// with it.
func FuzzRequest(f *testing.F) {
	post := section(":method", "POST", ":scheme", "https", ":authority", "a.test", ":path", "/", "content-length", "3")
	for _, b := range [][]byte{section(usual...), join(post, data("abc")), join(post, data("a"), []byte{0x21, 2, 1, 2}, data("bc"), section("x", "y")),
		join(section(usual...), data("a"), section(":path", "/")), {1, 3, 0, 0, 0x80}, {0, 1, 'a'}, {4, 0}, join(post, data("abcd")), {0x21, 0x40, 1, 0}, nil} {
		f.Add(b)
	}
	var served atomic.Int64
	d := serving(f, func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "well.test" {
			return
		}
		served.Add(1)
		hello(w, r)
	})
	well := d.dial(f)
	c, err := d.connect()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c.Context().Err() != nil {
			if c, err = d.connect(); err != nil {
				t.Fatal(err)
			}
		}
		before := served.Load()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s, err := c.OpenStreamSync(ctx)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			<-c.Context().Done() // what came before has ended it
			return
		}
		s.SetDeadline(time.Now().Add(time.Minute))
		s.Write(b)
		s.Close()
		got := answer(s)
		if !strings.HasPrefix(got, "stream: ") && !strings.HasPrefix(got, "connection: ") && (len(got) < 3 || got[0] < '2' || got[0] > '5') {
			t.Errorf("%x: got %q", b, got)
		}
		if n := served.Load() - before; n > 1 || n == 0 && strings.HasPrefix(got, "200") && !strings.Contains(got, "well.test") {
			t.Errorf("%x: served %d times, got %q", b, n, got)
		}
		if got := answer(client{t, well.Conn}.open(section(":method", "GET", ":scheme", "https", ":authority", "well.test", ":path", "/"), true)); got != "200" {
			t.Fatalf("another client gets %q", got)
		}
	})
}
