package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"bailiwick/shared/usage"
)

// What smuggles by its fields is served over all three protocols or over none, and what is served is counted.
func TestSmuggling_ProtocolsAgree(t *testing.T) {
	w := newWorld(t, nil)
	s, at := w.secure()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.H3.Serve(pc)
	defer pc.Close()
	defer s.H3.Close()
	overQUIC := func() *quic.Conn {
		conn, err := quic.DialAddr(t.Context(), pc.LocalAddr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{http3.NextProtoH3}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	usual := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "orders.test", ":path", "/v1/x"}, more...)
	}
	with := func(name, value string) []string {
		f := usual()
		for i := 0; i < len(f); i += 2 {
			if f[i] == name {
				f[i+1] = value
			}
		}
		return f
	}
	for _, c := range []struct {
		name   string
		fields []string
		body   string
		served bool
	}{
		{"usual", usual(), "", true},
		{"length", usual("content-length", "3"), "abc", true},
		{"length and coding", usual("content-length", "3", "transfer-encoding", "chunked"), "abc", false},
		{"coding of another kind", usual("transfer-encoding", "xchunked"), "", false},
		{"two lengths", usual("content-length", "3", "content-length", "4"), "abcd", false},
		{"length with a sign", usual("content-length", "+3"), "abc", false},
		{"negative length", usual("content-length", "-1"), "", false},
		{"LF in a value", usual("x", "1\nx-api-key: k"), "", false},
		{"CR LF in a value", usual("x", "1\r\nhost: b"), "", false},
		{"nul in a value", usual("x", "1\x00"), "", false},
		{"space in a name", usual("x y", "1"), "", false},
		{"empty name", usual("", "1"), "", false},
		{"host with a path", with(":authority", "orders.test/reports"), "", false},
		{"host with a user", with(":authority", "reports.test@orders.test"), "", false},
		{"host of another API", with(":authority", "reports.test"), "", false},
		{"no host", with(":authority", ""), "", false},
		{"encoded slash", with(":path", "/v1%2fx"), "", false},
		{"encoded dots", with(":path", "/v1/%2e%2e/x"), "", false},
		{"dots", with(":path", "/v1/../x"), "", false},
		{"empty segment", with(":path", "/v1//x"), "", false},
		{"encoded badly", with(":path", "/v1/%zz"), "", false},
		{"space in the path", with(":path", "/v1/x HTTP/1.1"), "", false},
		{"CR LF in the path", with(":path", "/v1/x HTTP/1.1\r\nhost: b\r\n\r\n"), "", false},
		{"asterisk", with(":path", "*"), "", false},
		{"trace", with(":method", "TRACE"), "", false},
		{"method with a line", with(":method", "GET /a HTTP/1.1\r\nhost: b\r\n\r\nGET"), "", false},
		{"names that alias", usual("x_forwarded_for", "192.0.2.1", "bailiwick-region", "x"), "", true},
		{"expectation of something else", usual("expect", "200-ok"), "", false},
	} {
		fields := append(append([]string(nil), c.fields...), "x-api-key", w.key)
		for name, send := range map[string]func() bool{
			"HTTP/1.1": func() bool {
				conn, err := tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"http/1.1"}})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				text := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: %s\r\n", fields[1], fields[7], fields[5])
				for i := 8; i < len(fields); i += 2 {
					text += fields[i] + ": " + fields[i+1] + "\r\n"
				}
				io.WriteString(conn, text+"connection: close\r\n\r\n"+c.body)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				return err == nil && resp.StatusCode == 200
			},
			"HTTP/2": func() bool {
				conn, f := frames(t, at)
				defer conn.Close()
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: c.body == "", BlockFragment: headerBlock(fields...)})
				if c.body != "" {
					f.WriteData(1, true, []byte(c.body))
				}
				for {
					got, err := f.ReadFrame()
					if err != nil {
						return false
					}
					switch got := got.(type) {
					case *http2.HeadersFrame:
						return got.HeaderBlockFragment()[0] == 0x88
					case *http2.RSTStreamFrame, *http2.GoAwayFrame:
						return false
					}
				}
			},
			"HTTP/3": func() bool {
				conn := overQUIC()
				defer conn.CloseWithError(0, "")
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				stream, err := conn.OpenStreamSync(ctx)
				if err != nil {
					return false
				}
				stream.SetDeadline(time.Now().Add(30 * time.Second))
				var block bytes.Buffer
				e := qpack.NewEncoder(&block)
				for i := 0; i < len(fields); i += 2 {
					e.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]})
				}
				stream.Write(append([]byte{1, 0x40 | byte(block.Len()>>8), byte(block.Len())}, block.Bytes()...))
				if c.body != "" {
					stream.Write(append([]byte{0, byte(len(c.body))}, c.body...))
				}
				stream.Close()
				got, _ := io.ReadAll(stream)
				if len(got) < 3 || got[0] != 1 {
					return false
				}
				got = got[1:]
				if got[0] >= 0x40 {
					got = got[1:]
				}
				return len(got) > 3 && got[3] == 0xd9 // :status 200 of the static table
			},
		} {
			if name == "HTTP/1.1" && strings.Contains(fields[1], "\n") { // two requests there, and no smuggling
				continue
			}
			before := w.west.up.count.Load()
			got := send()
			if got != c.served {
				t.Errorf("%s over %s: served %v, want %v", c.name, name, got, c.served)
			}
			if n := w.west.up.count.Load() - before; (n > 0) != got {
				t.Errorf("%s over %s: %d requests at the upstream, served %v", c.name, name, n, got)
			}
			if _, uri := w.west.up.last(); strings.ContainsAny(uri, "\r\n ") {
				t.Errorf("%s over %s: the upstream got %q", c.name, name, uri)
			}
		}
	}
	if n, asked := w.west.meter.finals(t)[usage.OutcomeSuccess], w.west.up.count.Load(); int64(n) != asked || n == 0 {
		t.Errorf("%d counted, %d at the upstream", n, asked)
	}
}
