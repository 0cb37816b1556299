package proxy_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/quic-go/qpack"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/websocket"
	"bailiwick/shared/table"
)

// tortured is an API some of whose routes are read more closely than others.
func tortured(a *table.API) {
	a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}, Units: &table.Units{PerMessages: 2, Most: 10}},
		table.Route{Name: "graphql", PathPrefix: "/graphql", GraphQL: &table.GraphQL{Depth: 5, Aliases: 5, RootFields: 5, Cost: 100, Batch: 3}, Units: &table.Units{GraphQL: "fields", Most: 100}},
		table.Route{Name: "calls", PathPrefix: "/calls", Units: &table.Units{PerMessages: 2, Most: 10}})
}

// seed is a request that is well formed, whatever it is sent over.
type seed struct {
	method, path string
	fields       [][2]string
	body         []string // in pieces; none: it has no body
	trailer      [][2]string
}

// message is one of gRPC, gRPC-Web and Connect alike.
func message(flag byte, text string) string {
	return string([]byte{flag, 0, 0, byte(len(text) >> 8), byte(len(text))}) + text
}

const (
	upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	ended   = "grpc-status:0\r\n"
)

// calls are requests of the protocols that are spoken over HTTP of any version.
func calls() []seed {
	kind := func(s string) [2]string { return [2]string{"content-type", s} }
	te := [2]string{"te", "trailers"}
	web := message(0, "hello") + message(0, "again")
	return []seed{
		{"POST", "/v1/S/Unary", [][2]string{kind("application/grpc"), te, {"grpc-timeout", "5S"}}, []string{message(0, "hello")}, nil},
		{"POST", "/calls/S/Both", [][2]string{kind("application/grpc+proto"), te}, []string{message(0, "hello")[:3], message(0, "hello")[3:] + message(0, ""), message(0, "more")}, nil},
		{"POST", "/calls/S/Web", [][2]string{kind("application/grpc-web+proto"), {"x-grpc-web", "1"}}, []string{web[:7], web[7:]}, nil},
		{"POST", "/v1/S/Text", [][2]string{kind("application/grpc-web-text")}, []string{base64.StdEncoding.EncodeToString([]byte(message(0, "hello")))}, nil},
		{"POST", "/v1/S/Unary", [][2]string{kind("application/proto"), {"connect-protocol-version", "1"}, {"connect-timeout-ms", "5000"}}, []string{"\x08\x01"}, nil},
		{"POST", "/calls/S/Both", [][2]string{kind("application/connect+proto"), {"connect-protocol-version", "1"}}, []string{message(0, "hello"), message(0, "more")}, nil},
		{"GET", "/v1/S/Look?connect=v1&encoding=json&message=%7B%7D", nil, nil, nil},
		{"POST", "/graphql", [][2]string{kind("application/json")}, []string{`{"query":"query Q($a:Int){me(id:$a){name friends`, `{name}}}","variables":{"a":1}}`}, nil},
		{"POST", "/graphql", [][2]string{kind("application/graphql")}, []string{`mutation{a:add(x:1){id} b:add(x:2){id}}`}, nil},
		{"POST", "/graphql", [][2]string{kind("application/json")}, []string{`[{"query":"{a}"},{"query":"{b{c}}"}]`}, nil},
		{"GET", "/graphql?query=%7Bme%7Bname%7D%7D", nil, nil, nil},
		{"POST", "/v1/x", [][2]string{{"trailer", "x-sum"}, te}, []string{"hello", "again"}, [][2]string{{"x-sum", "1"}, {"x-more", "2"}}},
	}
}

// http1 is the request as HTTP/1.1 has it: with a length, or in chunks where it has trailers or says how long it takes.
func (s *seed) http1(key string) []byte {
	b := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n", s.method, s.path, key)
	for _, f := range s.fields {
		b = fmt.Appendf(b, "%s: %s\r\n", f[0], f[1])
	}
	switch all := strings.Join(s.body, ""); {
	case len(s.body) == 0:
		return append(b, "\r\n"...)
	case len(s.body) == 1 && s.trailer == nil:
		return fmt.Appendf(b, "Content-Length: %d\r\n\r\n%s", len(all), all)
	}
	b = append(b, "Transfer-Encoding: chunked\r\n\r\n"...)
	for _, piece := range s.body {
		b = fmt.Appendf(b, "%x\r\n%s\r\n", len(piece), piece)
	}
	b = append(b, "0\r\n"...)
	for _, f := range s.trailer {
		b = fmt.Appendf(b, "%s: %s\r\n", f[0], f[1])
	}
	return append(b, "\r\n"...)
}

func (s *seed) head(key string) [][2]string {
	return append([][2]string{{":method", s.method}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", s.path}, {"x-api-key", key}}, s.fields...)
}

// http2 appends the request's frames, on a connection whose fields e compresses into block.
func (s *seed) http2(fr *http2.Framer, id uint32, e *hpack.Encoder, block *bytes.Buffer, key string) {
	section := func(fields [][2]string, last bool) {
		block.Reset()
		for _, f := range fields {
			e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: last})
	}
	section(s.head(key), len(s.body) == 0)
	for i, piece := range s.body {
		fr.WriteData(id, i == len(s.body)-1 && s.trailer == nil, []byte(piece))
	}
	if s.trailer != nil {
		section(s.trailer, true)
	}
}

// http3 is the request on a stream of its own.
func (s *seed) http3(key string) (b []byte) {
	frame := func(kind byte, text []byte) {
		b = append(append(b, kind, 0x40|byte(len(text)>>8), byte(len(text))), text...)
	}
	section := func(fields [][2]string) {
		var block bytes.Buffer
		e := qpack.NewEncoder(&block)
		for _, f := range fields {
			e.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
		}
		frame(1, block.Bytes())
	}
	section(s.head(key))
	for _, piece := range s.body {
		frame(0, []byte(piece))
	}
	if s.trailer != nil {
		section(s.trailer)
	}
	return b
}

// callsOfHTTP1 are those, some behind another on a connection, and WebSockets with what their clients say.
func callsOfHTTP1(key string) (out [][]byte) {
	all := calls()
	for i := range all {
		out = append(out, all[i].http1(key))
	}
	out = append(out, bytes.Join(out[len(out)-6:], nil))
	open := "GET /live/x HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: " + key + "\r\n" + upgrade
	masked := func(first byte, text string) string {
		b := []byte{first, 0x80 | byte(len(text)), 1, 2, 3, 4}
		for i := range len(text) {
			b = append(b, text[i]^b[2+i%4])
		}
		return string(b)
	}
	for _, frames := range []string{
		masked(0x81, "hello") + masked(0x88, "\x03\xe8"),
		masked(1, "hel") + masked(0x89, "ping") + masked(0x80, "lo") + masked(0x82, "\x00\xff") + masked(0x88, ""),
		masked(0x82, strings.Repeat("x", 100)), // and nothing more
		"\x81\xfe\x01\x00\x01\x02\x03\x04" + strings.Repeat("y", 256) + masked(0x88, "\x03\xe9bye"),
	} {
		out = append(out, []byte(open+"Sec-WebSocket-Protocol: chat\r\n\r\n"+frames))
	}
	return append(out, append(bytes.Clone(all[0].http1(key)), open+"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"+masked(0x81, "hello")...))
}

func callsOfHTTP2(key string) (out [][]byte) {
	all := calls()
	for first := range all {
		var b, block bytes.Buffer
		fr, e := http2.NewFramer(&b, nil), hpack.NewEncoder(&block)
		fr.WriteSettings()
		for i := range 1 + first%3 { // some beside others
			all[(first+i)%len(all)].http2(fr, uint32(2*i+1), e, &block, key)
		}
		out = append(out, b.Bytes())
	}
	return out
}

func callsOfHTTP3(key string) (out [][]byte) {
	all := calls()
	for i := range all {
		out = append(out, all[i].http3(key))
	}
	return out
}

// serve answers at an upstream in the protocol that is spoken, once the request is marked.
func (m *marks) serve(w http.ResponseWriter, r *http.Request) {
	kind := r.Header.Get("Content-Type")
	h := w.Header()
	h.Set("Content-Type", kind)
	switch offer, err := websocket.ReadOffer(r.Header); {
	case err == nil && r.Header.Get("Upgrade") != "":
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		m.heard("WebSocket")
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+websocket.Accept(offer.Key)+"\r\n\r\n")
		c := &chat{Conn: conn, r: rw.Reader}
		c.say(1, "hello")
		for {
			op, text, err := c.hear()
			conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if err != nil || len(text) < 1<<16 && c.say(op, text) != nil || op == 8 {
				return
			}
		}
	case strings.HasPrefix(kind, "application/grpc-web-text"):
		m.heard("gRPC-Web in text")
		io.WriteString(w, base64.StdEncoding.EncodeToString([]byte(message(0, "ok")+message(0x80, ended))))
	case strings.HasPrefix(kind, "application/grpc-web"):
		m.heard("gRPC-Web")
		io.WriteString(w, message(0, "ok")+message(0x80, ended))
	case strings.HasPrefix(kind, "application/grpc"):
		m.heard("gRPC")
		h.Set("Trailer", "Grpc-Status")
		io.WriteString(w, message(0, "ok"))
		h.Set("Grpc-Status", "0")
	case strings.HasPrefix(kind, "application/connect+"):
		m.heard("Connect")
		io.WriteString(w, message(0, "ok")+message(2, "{}"))
	case strings.HasPrefix(r.URL.Path, "/graphql"):
		m.heard("GraphQL")
		io.WriteString(w, `{"data":{}}`)
	case len(r.Trailer) > 0:
		m.heard("trailers")
		h.Set("Trailer", "X-Sum")
		io.WriteString(w, "ok")
		h.Set("X-Sum", "1")
	default:
		h.Set("Content-Type", "text/plain")
		io.WriteString(w, "ok")
	}
}

// spoken are the protocols that have to come through.
var spoken = []string{"WebSocket", "gRPC", "gRPC-Web", "gRPC-Web in text", "Connect", "GraphQL", "trailers"}

func (m *marks) heard(protocol string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spoke[protocol]++
}
