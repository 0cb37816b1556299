package rpc_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"bailiwick/dataplane/internal/rpc"
)

// Messages are counted alike however the stream is cut, and as whoever reads it frame by frame would count them; one that is too
// long is found at its head.
func FuzzCounter(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x03abc\x01\x00\x00\x00\x00\x80\x00\x00\x00\x01x"), uint8(2), uint16(0))
	f.Add([]byte("\x00\xff\xff\xff\xffabc"), uint8(1), uint16(100))
	f.Add([]byte("\x02\x00\x00\x00\x02{}"), uint8(7), uint16(9))
	f.Fuzz(func(t *testing.T, data []byte, size uint8, most uint16) {
		want, tooLong := int64(0), false
		for b := data; len(b) >= 5; {
			n := uint64(binary.BigEndian.Uint32(b[1:]))
			if tooLong = most > 0 && n > uint64(most); tooLong {
				break
			}
			if b[0]&0x82 == 0 {
				want++
			}
			b = b[min(uint64(len(b)), 5+n):]
		}
		c := &rpc.Counter{Max: int64(most)}
		var err error
		for b := data; len(b) > 0 && err == nil; {
			n := min(len(b), 1+int(size))
			err = c.Take(b[:n])
			b = b[n:]
		}
		if c.N() != want || errors.Is(err, rpc.ErrMessage) != tooLong || err != nil && !tooLong {
			t.Fatalf("got %d messages, %v, want %d, too long: %v", c.N(), err, want, tooLong)
		}
		r := rpc.Reader{ReadCloser: io.NopCloser(iotest.OneByteReader(bytes.NewReader(data))), Counter: &rpc.Counter{Max: int64(most)}}
		got, err := io.ReadAll(r)
		if !bytes.HasPrefix(data, got) || (err == nil) != (!tooLong) || err == nil && len(got) != len(data) {
			t.Fatalf("of %d bytes %d passed, %v", len(data), len(got), err)
		}
	})
}

// gRPC-Web's text is what the library reads of each padded piece, however it arrives; what is no base64 is an error, not less text.
func FuzzText(f *testing.F) {
	f.Add("AAAAAAA=AAAA", uint8(1))
	f.Add("YQ==Yg==", uint8(3))
	f.Add("YQ=", uint8(9))
	f.Add("YQ==\n", uint8(2))
	f.Fuzz(func(t *testing.T, text string, size uint8) {
		var want []byte
		bad := len(text)%4 != 0
		for b := text; len(b) >= 4; b = b[4:] {
			var q [3]byte
			n, err := base64.StdEncoding.Decode(q[:], []byte(b[:4]))
			if err != nil {
				bad = true
				break
			}
			want = append(want, q[:n]...)
		}
		got, err := io.ReadAll(rpc.FromText(io.NopCloser(&cut{text, int(size) + 1})))
		if (err != nil) != bad || err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(want, got) {
			t.Fatalf("%q: got %q, %v, want %q, bad: %v", text, got, err, want, bad)
		}
	})
}

type cut struct {
	text string
	size int
}

func (c *cut) Read(p []byte) (int, error) {
	if c.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.text)
	c.text = c.text[n:]
	return n, nil
}

// An answer of gRPC becomes one of gRPC-Web of which a reader gets the same bytes, and one last frame of trailers.
func FuzzWeb(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x01x"), "0", "", true, uint8(3))
	f.Add([]byte{}, "13", "a: b", false, uint8(1))
	f.Fuzz(func(t *testing.T, body []byte, status, message string, text bool, size uint8) {
		kind := rpc.Web
		if text {
			kind = rpc.WebText
		}
		if strings.ContainsAny(status+message, "\r\n") { // no trailer that was read has any
			return
		}
		r := kind.ToWeb(io.NopCloser(&cut{string(body), int(size) + 1}), func() http.Header {
			return http.Header{"Grpc-Status": {status}, "Grpc-Message": {message}}
		})
		if text {
			r = rpc.FromText(r)
		}
		got, err := io.ReadAll(r)
		rest, ok := bytes.CutPrefix(got, body)
		if err != nil || !ok || len(rest) < 5 || rest[0] != 0x80 || int(binary.BigEndian.Uint32(rest[1:])) != len(rest)-5 {
			t.Fatalf("%q became %q, %v", body, got, err)
		}
		lines := strings.Split(string(rest[5:]), "\r\n")
		if len(lines) != 3 || lines[2] != "" {
			t.Fatalf("trailers %q", lines)
		}
		for _, l := range lines[:2] {
			if l != "grpc-status: "+status && l != "grpc-message: "+message {
				t.Fatalf("trailer %q", l)
			}
		}
	})
}

// A timeout that is read is none that is negative or without end, and what is told the next hop is not less, and at most a second
// and a millisecond more.
func FuzzTimeout(f *testing.F) {
	for _, s := range []string{"1S", "99999999H", "0n", "100000000m", "-1S", "9999999999", "1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, kind := range []rpc.Kind{rpc.GRPC, rpc.Web, rpc.ConnectUnary} {
			h := http.Header{"Grpc-Timeout": {s}, "Connect-Timeout-Ms": {s}}
			d, ok := kind.Timeout(h)
			if !ok {
				continue
			}
			if d < 0 || d > 24*366*time.Hour {
				t.Fatalf("%q is %v", s, d)
			}
			next := http.Header{}
			kind.SetTimeout(next, d)
			if again, ok := kind.Timeout(next); !ok || again > d+time.Second+time.Millisecond || again < d-time.Second {
				t.Fatalf("%q: %v became %v, %v", s, d, again, ok)
			}
		}
	})
}

// A status is read as one of those that there are, and its words have no control byte.
func FuzzStatus(f *testing.F) {
	f.Add("14", "no\nmore %")
	f.Add("-1", "\x00\xff")
	f.Fuzz(func(t *testing.T, status, message string) {
		if c, ok := rpc.Said(http.Header{"Grpc-Status": {status}}); ok && (c > rpc.Unauthenticated || c.HTTP() < 200 || c.HTTP() > 599) {
			t.Fatalf("%q is %v", status, c)
		}
		said := rpc.Message(message)
		for _, c := range []byte(said) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q became %q", message, said)
			}
		}
		if back, err := unescaped(said); err != nil || back != message {
			t.Fatalf("%q became %q, which reads %q", message, said, back)
		}
	})
}

func unescaped(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", io.ErrUnexpectedEOF
		}
		n := strings.IndexByte("0123456789ABCDEF", s[i+1])<<4 | strings.IndexByte("0123456789ABCDEF", s[i+2])
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), nil
}
