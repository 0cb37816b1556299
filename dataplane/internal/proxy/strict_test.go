package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
)

// What net/http may hear of what an upstream says is what our own reader of answers takes, in whatever pieces it comes, and nothing
// behind it; and on a connection that was found out nothing more is asked.
func TestStrictConn_Table(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, c := range []struct {
		name, method, says string
		heard              string // of it
		bad                bool   // an error follows
		more               bool   // the connection may be asked again
	}{
		{"an answer", "GET", ok, ok, false, true},
		{"one of no body", "GET", "HTTP/1.1 304 Not Modified\r\n\r\n", "HTTP/1.1 304 Not Modified\r\n\r\n", false, true},
		{"a second one behind it", "GET", ok + ok, ok, true, false},
		{"one behind 304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n" + ok, "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", true, false},
		{"one behind no content", "GET", "HTTP/1.1 204 No Content\r\n\r\n" + ok, "HTTP/1.1 204 No Content\r\n\r\n", true, false},
		{"one behind an empty one", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + ok, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true, false},
		{"a body for HEAD", "HEAD", ok, ok[:len(ok)-2], true, false},
		{"one behind chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + ok, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true, false},
		{"chunks and a trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", false, true},
		{"hints before it", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, false, true},
		{"two lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "", true, false},
		{"a length and chunks", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", true, false},
		{"bare line feeds", "GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "", true, false},
		{"a chunk's extension", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", true, false},
		{"framing in a trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 2\r\n\r\n", true, false},
		{"the last one", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false, false},
		{"up to the end", "GET", "HTTP/1.1 200 OK\r\n\r\nsome" + ok, "HTTP/1.1 200 OK\r\n\r\nsome" + ok, false, false},
		{"another protocol", "GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\x00\x01", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\x00\x01", false, false},
		{"half an answer", "GET", ok[:len(ok)-1], ok[:len(ok)-1], false, false},
		{"one interim answer after another", "GET", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 9), strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 8), true, false},
		{"an endless head", "GET", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 300<<10), "", true, false},
	} {
		for _, size := range []int{1, 7, 4096, 1 << 20} {
			if len(c.says) > 1<<16 && size < 4096 {
				continue
			}
			near, far := net.Pipe()
			conn := proxy.Strict(near)
			conn.Begin(c.method)
			written := make(chan struct{})
			go func() {
				defer close(written)
				for rest := []byte(c.says); len(rest) > 0; {
					n := min(size, len(rest))
					if _, err := far.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
				far.Close()
			}()
			heard, err := io.ReadAll(conn)
			if bad := err != nil; bad != c.bad {
				t.Errorf("%s, %d bytes at a time: %v, want an error: %v", c.name, size, err, c.bad)
			}
			// Of a head that is bad its first pieces are heard, before anybody knows.
			got, begun := string(heard), c.bad && !strings.Contains(c.heard, " 200 ") && !strings.Contains(c.heard, " 204 ") && !strings.Contains(c.heard, " 304 ")
			if got != c.heard && !(begun && strings.HasPrefix(got, c.heard) && strings.HasPrefix(c.says, got) && len(got) < len(c.says)) {
				t.Errorf("%s, %d bytes at a time: heard %.200q, want %.200q", c.name, size, got, c.heard)
			}
			near.Close()
			<-written
			conn.Begin("GET")
			if _, err := conn.Write([]byte("x")); (err != proxy.ErrSpent) != c.more {
				t.Errorf("%s: asked again: %v, want it to be possible: %v", c.name, err, c.more)
			}
		}
	}
}

// What comes when nothing was asked is heard by nobody, and what is left of a request whose answer has come is written.
func TestStrictConn_OutOfTurn(t *testing.T) {
	near, far := net.Pipe()
	conn := proxy.Strict(near)
	go func(far net.Conn) {
		io.WriteString(far, "HTTP/1.1 408 Request Timeout\r\n\r\n")
		far.Close()
	}(far)
	if b, err := io.ReadAll(conn); len(b) > 0 || err == nil {
		t.Errorf("unasked: heard %q, %v", b, err)
	}
	near, far = net.Pipe()
	conn = proxy.Strict(near)
	conn.Begin("POST")
	go io.WriteString(far, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	if n, err := conn.Read(make([]byte, 1000)); n == 0 || err != nil {
		t.Errorf("heard %d bytes, %v", n, err)
	}
	go io.Copy(io.Discard, far)
	if _, err := conn.Write([]byte("what is left")); err != nil {
		t.Errorf("what was left of the request: %v", err)
	}
}

// On each road, over TLS too, an answer that an upstream sends behind another's is nobody's: whatever comes first is the last that
// is heard on its connection. Clients ask at the same time, so that connections are taken as soon as they are idle.
func TestAnswers_WhatComesBehindOneIsNobodys(t *testing.T) {
	for _, kind := range []struct {
		name, more string
		tls        bool
	}{{"common", "", false}, {"through net/http", "Via: 1.1 else\r\n", false}, {"over TLS", "", true}} {
		t.Run(kind.name, func(t *testing.T) {
			w := newWorld(t, patient)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var ca bytes.Buffer
			if kind.tls {
				cert := httptest.NewUnstartedServer(nil)
				cert.StartTLS()
				defer cert.Close()
				pem.Encode(&ca, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate().Raw})
				l = tls.NewListener(l, &tls.Config{Certificates: cert.TLS.Certificates})
			}
			w.rawAt(l, func(_ net.Conn, head string, _ int) string {
				poison := "HTTP/1.1 202 Accepted\r\nContent-Length: 6\r\n\r\npoison"
				switch {
				case strings.HasPrefix(head, "HEAD "):
					return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + poison
				case strings.Contains(head, "/empty"):
					return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + poison
				case strings.Contains(head, "/304"):
					return "HTTP/1.1 304 Not Modified\r\n\r\n" + poison
				}
				return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison
			})
			if kind.tls {
				at := "https://" + l.Addr().String()
				w.shaped(func(a *table.API) { a.Targets, a.TLS = []string{at}, table.UpstreamTLS{CA: ca.String()} })
				w.west.proxy.Turn()
			}
			var wg sync.WaitGroup
			for range 8 {
				conn, in := w.dial()
				wg.Go(func() {
					for i := range 200 {
						method, path := "GET", [...]string{"/v1/empty", "/v1/304", "/v1/x", "/v1/y"}[i%4]
						if i%4 == 3 {
							method = "HEAD"
						}
						io.WriteString(conn, w.head(method, path, kind.more+"\r\n"))
						if err := unpoisoned(in, method); err != nil {
							t.Errorf("%s %s: %v", method, path, err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func unpoisoned(in *bufio.Reader, method string) error {
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 && resp.StatusCode != 304 || strings.Contains(string(body), "poison")) {
		err = fmt.Errorf("got %d %q", resp.StatusCode, body)
	}
	return err
}
