package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/shared/usage"
)

// smuggler sends one request, field by field, over each protocol.
type smuggler struct {
	t  *testing.T
	w  *world
	at string // of TCP
	pc net.PacketConn
}

func (w *world) smuggler(t *testing.T) *smuggler {
	s, at := w.secure()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.H3.Serve(pc)
	t.Cleanup(func() { s.H3.Close(); pc.Close() })
	return &smuggler{t, w, at, pc}
}

// malformed is the verdict on what is no request, and so nobody's: a bare status over HTTP/1.1, a reset over the others.
const malformed = "malformed"

// judgement is what an answer comes to: 200, a status and a reason, or malformed.
func judgement(status int, body []byte) string {
	var p struct{ Reason string }
	if json.Unmarshal(body, &p); status != 200 && p.Reason == "" {
		return malformed
	}
	return strings.TrimSpace(fmt.Sprint(status, " ", p.Reason))
}

// pick gives the value of a field, and all others.
func pick(fields []string, name string) (value string, rest []string, ok bool) {
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == name && !ok {
			value, ok = fields[i+1], true
		} else {
			rest = append(rest, fields[i], fields[i+1])
		}
	}
	return value, rest, ok
}

func (s *smuggler) one(fields []string, body string, trailer []string) string {
	conn, err := tls.Dial("tcp", s.at, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{"http/1.1"}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	method, fields, _ := pick(fields, ":method")
	_, fields, _ = pick(fields, ":scheme")
	path, fields, ok := pick(fields, ":path")
	host, fields, named := pick(fields, ":authority")
	if !ok {
		path = host
	}
	text := fmt.Sprintf("%s %s HTTP/1.1\r\n", method, path)
	if named {
		text += "host: " + host + "\r\n"
	}
	for i := 0; i < len(fields); i += 2 {
		text += fields[i] + ": " + fields[i+1] + "\r\n"
	}
	if len(trailer) > 0 {
		text += "transfer-encoding: chunked\r\n"
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(body), body)
		for i := 0; i < len(trailer); i += 2 {
			body += trailer[i] + ": " + trailer[i+1] + "\r\n"
		}
		body += "\r\n"
	}
	io.WriteString(conn, text+"connection: close\r\n\r\n"+body)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return malformed
	}
	got, _ := io.ReadAll(resp.Body)
	return judgement(resp.StatusCode, got)
}

func (s *smuggler) two(fields []string, body string, trailer []string) string {
	conn, f := frames(s.t, s.at)
	defer conn.Close()
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: body == "", BlockFragment: headerBlock(fields...)})
	if body != "" {
		f.WriteData(1, len(trailer) == 0, []byte(body))
	}
	if len(trailer) > 0 {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: headerBlock(trailer...)})
	}
	status, got := 0, []byte(nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return malformed
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if status == 0 {
				status, _ = strconv.Atoi(frame.PseudoValue("status"))
			}
		case *http2.DataFrame:
			got = append(got, frame.Data()...)
		case *http2.RSTStreamFrame:
			if frame.ErrCode != http2.ErrCodeNo || status == 0 {
				return malformed
			}
		case *http2.GoAwayFrame:
			return malformed
		}
		if status != 0 && frame.Header().Type != http2.FrameRSTStream && frame.Header().Flags.Has(http2.FlagDataEndStream) && frame.Header().StreamID == 1 {
			return judgement(status, got)
		}
	}
}

func (s *smuggler) three(fields []string, body string, trailer []string) string {
	conn, err := quic.DialAddr(s.t.Context(), s.pc.LocalAddr().String(), &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test", NextProtos: []string{http3.NextProtoH3}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.CloseWithError(0, "")
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return malformed
	}
	stream.SetDeadline(time.Now().Add(30 * time.Second))
	section := func(fields []string) []byte {
		var block bytes.Buffer
		e := qpack.NewEncoder(&block)
		for i := 0; i < len(fields); i += 2 {
			e.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return append(quicvarint.Append([]byte{1}, uint64(block.Len())), block.Bytes()...)
	}
	out := section(fields)
	if body != "" {
		out = append(quicvarint.Append(append(out, 0), uint64(len(body))), body...)
	}
	if len(trailer) > 0 {
		out = append(out, section(trailer)...)
	}
	stream.Write(out)
	stream.Close()
	all, err := io.ReadAll(stream)
	if err != nil {
		return malformed
	}
	status, got := 0, []byte(nil)
	for r := bytes.NewReader(all); r.Len() > 0; {
		kind, err1 := quicvarint.Read(r)
		n, err2 := quicvarint.Read(r)
		if err1 != nil || err2 != nil || int(n) > r.Len() {
			return malformed
		}
		payload := make([]byte, n)
		io.ReadFull(r, payload)
		switch {
		case kind == 0:
			got = append(got, payload...)
		case kind == 1 && status == 0:
			for next := qpack.NewDecoder().Decode(payload); ; {
				f, err := next()
				if err != nil {
					break
				}
				if f.Name == ":status" {
					status, _ = strconv.Atoi(f.Value)
				}
			}
		}
	}
	return judgement(status, got)
}

// What smuggles by its fields has one verdict over all three protocols, by status and reason where it is answered; what is served is
// counted, and the upstream has got the same.
func TestSmuggling_ProtocolsAgree(t *testing.T) {
	w := newWorld(t, nil)
	s := w.smuggler(t)
	usual := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "orders.test", ":path", "/v1/x"}, more...)
	}
	with := func(name, value string, more ...string) []string {
		f := usual()
		for i := 0; i < len(f); i += 2 {
			if f[i] == name {
				f[i+1] = value
			}
		}
		return append(f, more...)
	}
	without := func(name string, more ...string) []string {
		_, f, _ := pick(usual(), name)
		return append(f, more...)
	}
	const served = "200"
	is := func(status int, reason string) string { return fmt.Sprint(status, " ", reason) }
	path, bad := is(400, gate.ReasonPathAmbiguous), is(400, gate.ReasonBadRequest)
	for _, c := range []struct {
		name    string
		fields  []string
		body    string
		trailer []string
		want    string
		one     string // over HTTP/1.1, where that has another rule for it; "-": it would be two requests there
	}{
		{name: "usual", fields: usual(), want: served},
		{name: "length", fields: usual("content-length", "3"), body: "abc", want: served},
		{name: "length and coding", fields: usual("content-length", "3", "transfer-encoding", "chunked"), body: "abc", want: malformed},
		{name: "coding of another kind", fields: usual("transfer-encoding", "xchunked"), want: malformed},
		{name: "two lengths", fields: usual("content-length", "3", "content-length", "4"), body: "abcd", want: malformed},
		{name: "length with a sign", fields: usual("content-length", "+3"), body: "abc", want: malformed},
		{name: "negative length", fields: usual("content-length", "-1"), want: malformed},
		{name: "LF in a value", fields: usual("x", "1\nx-api-key: k"), want: malformed},
		{name: "CR LF in a value", fields: usual("x", "1\r\nhost: b"), want: malformed},
		{name: "nul in a value", fields: usual("x", "1\x00"), want: malformed},
		{name: "space in a name", fields: usual("x y", "1"), want: malformed},
		{name: "nul in a name", fields: usual("x\x00", "1"), want: malformed},
		{name: "empty name", fields: usual("", "1"), want: malformed},
		{name: "capitals in a name", fields: usual("X-Mine", "1"), want: malformed, one: served},

		{name: "host with a path", fields: with(":authority", "orders.test/reports"), want: bad},
		{name: "host with a user", fields: with(":authority", "reports.test@orders.test"), want: bad},
		{name: "host with a backslash", fields: with(":authority", "orders.test\\reports"), want: bad},
		{name: "host with a nul", fields: with(":authority", "orders.test\x00"), want: malformed},
		{name: "host with a port", fields: with(":authority", "orders.test:8443"), want: served},
		{name: "host with the last port", fields: with(":authority", "orders.test:65535"), want: served},
		{name: "host with a colon and no port", fields: with(":authority", "orders.test:"), want: served},
		{name: "host with port 0", fields: with(":authority", "orders.test:0"), want: bad},
		{name: "host with one port too many", fields: with(":authority", "orders.test:65536"), want: bad},
		{name: "host with a port that some cut to 443", fields: with(":authority", "orders.test:4294967739"), want: bad},
		{name: "host with a port beyond all", fields: with(":authority", "orders.test:99999999999"), want: bad},
		{name: "host in brackets", fields: with(":authority", "[orders.test]:443"), want: bad},
		{name: "host of another API", fields: with(":authority", "reports.test"), want: is(421, gate.ReasonSNI)},
		{name: "host of nobody", fields: with(":authority", "nobody.test"), want: is(421, gate.ReasonSNI)},
		{name: "no host", fields: with(":authority", ""), want: bad},
		{name: "an empty authority and a host", fields: with(":authority", "", "host", "orders.test"), want: malformed},
		{name: "an authority and another host", fields: usual("host", "reports.test"), want: malformed},
		{name: "an authority and the same host", fields: usual("host", "orders.test"), want: served, one: malformed},
		{name: "a host alone", fields: without(":authority", "host", "orders.test"), want: served},
		{name: "two hosts", fields: without(":authority", "host", "orders.test", "host", "orders.test"), want: malformed},

		{name: "encoded slash", fields: with(":path", "/v1%2fx"), want: path},
		{name: "encoded dots", fields: with(":path", "/v1/%2e%2e/x"), want: path},
		{name: "dots", fields: with(":path", "/v1/../x"), want: path},
		{name: "dots with a parameter", fields: with(":path", "/v1/..;/x"), want: path},
		{name: "dots with an encoded parameter", fields: with(":path", "/v1/..%3bx"), want: path},
		{name: "empty segment", fields: with(":path", "/v1//x"), want: path},
		{name: "backslash", fields: with(":path", "/v1\\x"), want: path},
		{name: "encoded backslash", fields: with(":path", "/v1/..%5cx"), want: path},
		{name: "encoded nul", fields: with(":path", "/v1/x%00"), want: path},
		{name: "encoded line", fields: with(":path", "/v1/x%0d%0ax"), want: path},
		{name: "a slash in two bytes", fields: with(":path", "/v1/..%c0%afx"), want: path},
		{name: "a slash in three bytes", fields: with(":path", "/v1/..%e0%80%afx"), want: path},
		{name: "dots in two bytes each", fields: with(":path", "/v1/%c0%ae%c0%ae/x"), want: path},
		{name: "dots encoded twice", fields: with(":path", "/v1/%252e%252e/x"), want: path},
		{name: "a slash encoded twice", fields: with(":path", "/v1/..%252fadmin"), want: path},
		{name: "encoded twice and once", fields: with(":path", "/v1/%252e%252e/%41"), want: path},
		{name: "a percent sign", fields: with(":path", "/v1/100%25"), want: served},
		{name: "a percent sign and no number", fields: with(":path", "/v1/%25zz"), want: served},
		{name: "encoded badly", fields: with(":path", "/v1/%zz"), want: malformed},
		{name: "a question mark of another route", fields: with(":path", "/scoped%3fx"), want: path},
		{name: "a number sign of another route", fields: with(":path", "/scoped%23x"), want: path},
		{name: "in capitals", fields: with(":path", "/scoped%3Fx/y"), want: path},
		{name: "a parameter and a question mark of another route", fields: with(":path", "/scoped;a%3fx"), want: path},
		{name: "a number sign and a question mark", fields: with(":path", "/scoped%23%3fx"), want: path},
		{name: "a question mark encoded twice", fields: with(":path", "/scoped%253fx"), want: path},
		{name: "a number sign encoded twice", fields: with(":path", "/scoped%2523x"), want: path},
		{name: "dots with a question mark", fields: with(":path", "/v1/..%3fx"), want: path},
		{name: "dots with a number sign", fields: with(":path", "/v1/..%23"), want: path},
		{name: "a question mark of the same route", fields: with(":path", "/v1/what%3f"), want: served},
		{name: "a number sign of the same route", fields: with(":path", "/v1/c%23/x?y=%23"), want: served},
		{name: "a question mark at a route's end", fields: with(":path", "/scoped%3f"), want: path},
		{name: "nul in the path", fields: with(":path", "/v1/x\x00"), want: malformed},
		{name: "space in the path", fields: with(":path", "/v1/x HTTP/1.1"), want: malformed},
		{name: "fragment", fields: with(":path", "/v1/x#y"), want: malformed},
		{name: "CR LF in the path", fields: with(":path", "/v1/x HTTP/1.1\r\nhost: b\r\n\r\n"), want: malformed, one: "-"},
		{name: "empty path", fields: with(":path", ""), want: malformed},
		{name: "no slash", fields: with(":path", "v1/x"), want: malformed},
		{name: "absolute form", fields: with(":path", "https://orders.test/v1/x"), want: malformed, one: served},
		{name: "absolute form of another host", fields: with(":path", "https://reports.test/v1/x"), want: malformed},
		{name: "asterisk", fields: with(":path", "*"), want: path},
		{name: "asterisk of OPTIONS", fields: []string{":method", "OPTIONS", ":scheme", "https", ":authority", "orders.test", ":path", "*"}, want: path},

		{name: "connect", fields: []string{":method", "CONNECT", ":authority", "orders.test:443"}, want: is(405, gate.ReasonMethod)},
		{name: "connect with a path", fields: with(":method", "CONNECT"), want: malformed, one: is(405, gate.ReasonMethod)},
		{name: "trace", fields: with(":method", "TRACE"), want: is(405, gate.ReasonMethod)},
		{name: "method in small letters", fields: with(":method", "get"), want: is(405, gate.ReasonMethod)},
		{name: "method with a line", fields: with(":method", "GET /a HTTP/1.1\r\nhost: b\r\n\r\nGET"), want: malformed, one: "-"},
		{name: "method with a space", fields: with(":method", "GET x"), want: malformed},

		// What is of the connection is HTTP/1.1's alone: there it is taken, and goes no further.
		{name: "connection", fields: usual("connection", "keep-alive"), want: malformed, one: served},
		{name: "connection that names a key", fields: usual("connection", "x-api-key"), want: malformed, one: is(401, gate.ReasonKeyMissing)},
		{name: "keep-alive", fields: usual("keep-alive", "timeout=5"), want: malformed, one: served},
		{name: "proxy-connection", fields: usual("proxy-connection", "keep-alive"), want: malformed, one: served},
		{name: "upgrade", fields: usual("upgrade", "h2c"), want: malformed, one: served},
		{name: "upgrade to a websocket", fields: usual("upgrade", "websocket"), want: malformed, one: is(501, gate.ReasonUpgrade)},
		{name: "te", fields: usual("te", "trailers"), want: served},
		{name: "te of a coding", fields: usual("te", "gzip"), want: malformed, one: served},
		{name: "expectation of something else", fields: usual("expect", "200-ok"), want: is(417, gate.ReasonExpectation)},

		{name: "two keys", fields: usual("x-api-key", "other"), want: is(401, gate.ReasonKeyConflict)},
		{name: "a key and a bearer's", fields: usual("authorization", "Bearer other"), want: is(401, gate.ReasonKeyConflict)},
		{name: "a key under an alias beside the key", fields: usual("x_api_key", "forged"), want: served},
		{name: "names that alias", fields: usual("x_forwarded_for", "forged", "bailiwick-region", "forged", "bailiwick_customer", "forged", "x_request_id", "forged", "content_length", "forged", "transfer_encoding", "forged",
			"accept_language", "forged", "if_none_match", "forged", "x-request-id", "forged", "x_mine", "kept", "x-mine", "kept"), want: served},
		{name: "names that alias by other bytes", fields: usual("x.api.key", "forged", "bailiwick.customer", "forged", "bailiwick~plan", "forged", "x-forwarded.for", "forged", "content.length", "forged", "transfer|encoding", "forged", "if'none'match", "forged",
			"x.forwarded`ssl", "forged", "x.mine", "kept"), want: served},
		{name: "claims of all kinds", fields: usual("x-forwarded-ssl", "forged", "x-forwarded-client-cert", "forged", "x-original-uri", "forged", "x-original-anything", "forged", "x-host", "forged", "true-client-ip", "forged", "cf-connecting-ip", "forged",
			"ssl-client-cert", "forged", "x-ssl-client-dn", "forged", "front-end-https", "forged", "remote-user", "forged", "proxy", "forged", "x-mine", "kept"), want: served},
		{name: "claims", fields: usual("x-forwarded-for", "forged", "forwarded", "for=forged", "x-real-ip", "forged", "x-original-url", "/forged", "x-http-method-override", "forged", "via", "1.1 before", "cookie", "a=b"), want: served},

		{name: "trailer", fields: with(":method", "POST"), body: "abc", trailer: []string{"x-sum", "1", "x_request_id", "forged", "x-api-key", "forged", "x.request.id", "forged", "x-forwarded-ssl", "forged", "true-client-ip", "forged"}, want: served},
		{name: "trailer with a line", fields: with(":method", "POST"), body: "abc", trailer: []string{"x-sum", "1\r\nx-b: 2"}, want: "refused", one: "-"},
		{name: "trailer with a nul", fields: with(":method", "POST"), body: "abc", trailer: []string{"x-sum", "1\x00"}, want: "refused"},
		{name: "trailer without a name", fields: with(":method", "POST"), body: "abc", trailer: []string{"", "1"}, want: "refused"},
		{name: "trailer with a length", fields: with(":method", "POST"), body: "abc", trailer: []string{"content-length", "3"}, want: "refused"},
		{name: "trailer with a coding", fields: with(":method", "POST"), body: "abc", trailer: []string{"transfer-encoding", "chunked"}, want: "refused"},
		{name: "trailer with a host", fields: with(":method", "POST"), body: "abc", trailer: []string{"host", "reports.test"}, want: "refused"},
		{name: "trailer with a credential", fields: with(":method", "POST"), body: "abc", trailer: []string{"authorization", "Basic dTpw"}, want: "refused"},
		{name: "trailer with te", fields: with(":method", "POST"), body: "abc", trailer: []string{"te", "trailers"}, want: "refused"},
		{name: "trailer with a trailer", fields: with(":method", "POST"), body: "abc", trailer: []string{"trailer", "x"}, want: "refused"},
		{name: "trailer with keep-alive", fields: with(":method", "POST"), body: "abc", trailer: []string{"keep-alive", "x"}, want: "refused"},
		{name: "trailer with proxy-connection", fields: with(":method", "POST"), body: "abc", trailer: []string{"proxy-connection", "x"}, want: "refused"},
		{name: "trailer with a connection", fields: with(":method", "POST"), body: "abc", trailer: []string{"connection", "x"}, want: "refused"},
		{name: "trailer with an upgrade", fields: with(":method", "POST"), body: "abc", trailer: []string{"upgrade", "websocket"}, want: "refused"},
		{name: "trailer with an expectation", fields: with(":method", "POST"), body: "abc", trailer: []string{"expect", "100-continue"}, want: "refused"},
	} {
		fields := append(append([]string(nil), c.fields...), "x-api-key", w.key)
		first := ""
		for _, p := range []struct {
			name string
			send func([]string, string, []string) string
		}{{"HTTP/1.1", s.one}, {"HTTP/2", s.two}, {"HTTP/3", s.three}} {
			want := c.want
			if p.name == "HTTP/1.1" && c.one != "" {
				if want = c.one; want == "-" {
					continue
				}
			}
			before := w.west.up.count.Load()
			got := p.send(fields, c.body, c.trailer)
			if got != want && (want != "refused" || got != malformed && got != is(400, gate.ReasonBodyBroken)) {
				t.Errorf("%s over %s: got %s, want %s", c.name, p.name, got, want)
			}
			if n := w.west.up.count.Load() - before; n != 0 && got != served || n != 1 && got == served {
				t.Errorf("%s over %s: %d requests at the upstream, the client has %s", c.name, p.name, n, got)
			}
			heard, uri := w.west.up.last()
			if strings.ContainsAny(uri, "\r\n ") || strings.Contains(fmt.Sprint(heard), "forged") {
				t.Errorf("%s over %s: the upstream got %q %v", c.name, p.name, uri, heard)
			}
			if got != served || c.one != "" {
				continue
			}
			for _, name := range []string{"X-Request-Id", "Via"} { // each request's own
				heard.Del(name)
			}
			if said := fmt.Sprint(uri, heard); first == "" {
				first = said
			} else if said != first {
				t.Errorf("%s over %s: the upstream got %s, and %s before", c.name, p.name, said, first)
			}
		}
	}
	if n, asked := w.west.meter.finals(t)[usage.OutcomeSuccess], w.west.up.count.Load(); int64(n) != asked || n == 0 {
		t.Errorf("%d counted, %d at the upstream", n, asked)
	}
}
