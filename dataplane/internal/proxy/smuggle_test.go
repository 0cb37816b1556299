package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bailiwick/shared/usage"
)

// Byte streams that smuggle, by name: each is answered as it must be, the connection ends where nobody can know any more what
// comes next, and upstreams see as many requests as were counted.
func TestSmuggling_WhatIsAnsweredIsCounted(t *testing.T) {
	w := newWorld(t, nil)
	key := "X-Api-Key: " + w.key + "\r\n"
	post := "POST /v1/x HTTP/1.1\r\nHost: orders.test\r\n" + key
	get := "GET /v1/x HTTP/1.1\r\nHost: orders.test\r\n" + key
	inner := "GET /smuggled HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n"
	for _, c := range []struct {
		name, text string
		answers    []int // in this order; then the connection is closed, unless open
		open       bool
	}{
		{"cl.te", post + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", len(inner)+5, inner), []int{400}, false},
		{"te.cl", post + fmt.Sprintf("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(inner), inner), []int{400}, false},
		{"te.0", post + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"0.cl", get + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + inner, []int{400}, false},
		{"te of another coding", post + "Transfer-Encoding: xchunked\r\n\r\n" + inner, []int{501}, false},
		{"te in a list", post + "Transfer-Encoding: identity, chunked\r\n\r\n" + inner, []int{501}, false},
		{"te twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"te with a vertical tab", post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"te behind a space", post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"te by another name", post + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", []int{200}, true},
		{"te in HTTP/1.0", strings.Replace(post, "1.1", "1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"two lengths", post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", []int{400}, false},
		{"two lengths that agree", post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", []int{400}, false},
		{"negative length", post + "Content-Length: -1\r\n\r\n", []int{400}, false},
		{"signed length", post + "Content-Length: +3\r\n\r\nabc", []int{400}, false},
		{"length with a space", post + "Content-Length: 3 3\r\n\r\nabc", []int{400}, false},
		{"space in a name", get + "Content-Length : 3\r\n\r\nabc", []int{400}, false},
		{"folded header", get + "X-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n", []int{400}, false},
		{"bare LF between headers", get + "X-A: 1\nContent-Length: 3\r\n\r\nabc", []int{400}, false},
		{"bare CR in a header", get + "X-A: 1\rContent-Length: 3\r\n\r\nabc", []int{400}, false},
		{"nul in a header", get + "X-A: 1\x00\r\n\r\n", []int{400}, false},
		{"blank line first", "\r\n" + get + "\r\n", []int{400}, false},
		{"chunk extension", post + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"bare LF in a chunk's size", post + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"bare LF in a chunk extension", post + "Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"chunk longer than said", post + "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"chunk size with a sign", post + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"chunk size beyond all", post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n" + inner, []int{400}, false},
		{"framing in a trailer", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 5\r\n\r\n" + inner, []int{400}, false},
		{"two hosts", "GET /v1/x HTTP/1.1\r\nHost: orders.test\r\nHost: reports.test\r\n" + key + "\r\n", []int{400}, false},
		{"no host", "GET /v1/x HTTP/1.1\r\n" + key + "\r\n", []int{400}, false},
		{"host with a path", "GET /v1/x HTTP/1.1\r\nHost: orders.test/reports\r\n" + key + "\r\n", []int{400}, true},
		{"host with a user", "GET /v1/x HTTP/1.1\r\nHost: reports.test@orders.test\r\n" + key + "\r\n", []int{400}, true},
		{"absolute form of another host", "GET http://reports.test/v1/x HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, false},
		{"absolute form of another host in HTTP/1.0", "GET http://orders.test/v1/x HTTP/1.0\r\nHost: reports.test\r\n" + key + "\r\n" + inner, []int{400}, false},
		{"absolute form in HTTP/1.0, the other way round", "GET http://reports.test/v1/x HTTP/1.0\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, false},
		{"absolute form in HTTP/1.0", "GET http://orders.test/v1/x HTTP/1.0\r\nHost: orders.test\r\n" + key + "\r\n", []int{200}, false},
		{"absolute form in HTTP/1.0 without a host", "GET http://orders.test/v1/x HTTP/1.0\r\n" + key + "\r\n", []int{200}, false},
		{"a port that is none", "GET /v1/x HTTP/1.1\r\nHost: orders.test:99999999999\r\n" + key + "\r\n", []int{400}, true},
		{"absolute form", "GET http://orders.test/v1/x HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{200}, true},
		{"connect", "CONNECT orders.test:443 HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{405}, true},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, true},
		{"expectation of something else", post + "Content-Length: 3\r\nExpect: 200-ok\r\n\r\nabc", []int{417}, false},
		{"expectation twice", post + "Content-Length: 3\r\nExpect: 100-continue\r\nExpect: x\r\n\r\nabc", []int{417}, false},
		{"expectation that is refused", "POST /v1/x HTTP/1.1\r\nHost: orders.test\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n" + inner, []int{401}, false},
		{"expectation that is met", post + "Content-Length: 3\r\nExpect: 100-continue\r\n\r\nabc" + get + "\r\n", []int{100, 200, 200}, true},
		{"get with a body", get + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(inner), inner) + get + "\r\n", []int{200, 200}, true},
		{"refused with a body", "POST /v1/x HTTP/1.1\r\nHost: orders.test\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(inner), inner) + get + "\r\n", []int{401, 200}, true},
		{"one behind the other", get + "\r\n" + get + "\r\n" + post + "Content-Length: 1\r\n\r\nx" + get + "\r\n", []int{200, 200, 200, 200}, true},
		{"connection close", get + "Connection: close\r\n\r\n" + inner, []int{200}, false},
		{"upgrade to h2c", get + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + get + "\r\n", []int{200, 200}, true},
		{"upgrade to a websocket", get + "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n", []int{501}, true},
		{"prior knowledge of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505}, false},
		{"version of no HTTP", "GET /v1/x HTTP/1.9\r\nHost: orders.test\r\n\r\n", []int{505}, false},
		{"encoded slash", "GET /v1%2fx HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, true},
		{"encoded badly", "GET /v1/%zz HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, false},
		{"space in the target", "GET /v1/x HTTP/1.1 /y HTTP/1.1\r\nHost: orders.test\r\n" + key + "\r\n", []int{400}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.west.up.count.Load()
			conn, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(60 * time.Second))
			if c.open { // whoever reads to the end says when that is
				c.text, c.answers = c.text+"GET /last HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n", append(c.answers, 421)
			}
			if _, err := io.WriteString(conn, c.text); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			var got []int
			served := int64(0)
			for range len(c.answers) + 1 {
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					break
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Errorf("answer %d ends early: %v", len(got), err)
				}
				if strings.Contains(string(body), "/smuggled") {
					t.Errorf("the inner request was answered: %s", body)
				}
				if got = append(got, resp.StatusCode); resp.Header.Get("Bailiwick-Served") != "" {
					served++
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.answers) {
				t.Errorf("got %v, want %v and the end", got, c.answers)
			}
			if n := w.west.up.count.Load() - before; n != served {
				t.Errorf("%d requests at the upstream, %d answers of it", n, served)
			}
		})
	}
	if n, at := w.west.meter.finals(t)[usage.OutcomeSuccess], w.west.up.count.Load(); int64(n) != at || n == 0 {
		t.Errorf("%d counted, %d at the upstream", n, at)
	}
}
