//go:build linux

package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

var (
	strangeAnswers = flag.Int("answers", 40, "mutated answers of an upstream, to each road")
	answersSeed    = flag.Uint64("answers-seed", 0, "of the mutations; 0: a new one")
)

// answerSeeds are by the letter.
var answerSeeds = [][]byte{
	[]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello"),
	[]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n"),
	[]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\nx\r\n0\r\nX-T: 1\r\n\r\n"),
	[]byte("HTTP/1.1 204 No Content\r\n\r\n"),
	[]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"),
	[]byte("HTTP/1.1 200 OK\r\n\r\nup to the end"),
	[]byte("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"),
	[]byte("HTTP/1.1 404 Not Found\r\nConnection: X-A, close\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nno"),
	[]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
	[]byte("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
	append([]byte("HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n"), bytes.Repeat([]byte("y"), 20000)...),
}

// verdict is what a client has of an answer. One that was broken off in its midst, and one in whose place the edge answers, are
// the same: which it is says how much had come when.
type verdict struct {
	whole  bool
	status int
	body   string
}

// What an upstream says, whatever it is and however it comes, is the same answer to a client of a loop, of one over TLS, and of a
// goroutine; one that reaches a client whole is what net/http reads in those bytes; and each request has one row.
func TestAnswers_RoadsAgree(t *testing.T) {
	seed := *answersSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-answers %d -answers-seed %d", *strangeAnswers, seed)
	w := newWorld(t, patient)
	var mu sync.Mutex // covers text and cut
	var text []byte
	cut := 0
	w.raw(func(c net.Conn, head string, _ int) string {
		if !strings.HasPrefix(head, "POST ") {
			return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}
		mu.Lock()
		b, at := text, cut
		mu.Unlock()
		c.Write(b[:at])
		time.Sleep(300 * time.Microsecond) // what has come is looked at by itself
		c.Write(b[at:])
		c.Close()
		return ""
	})
	looped, at := w.securely(func(*proxy.Door) {})
	_, manned := w.securely((*proxy.Door).Unloop)
	secure := func(at string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			return tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"})
		}
	}
	roads := []*answerRoad{
		{name: "loop", door: w.west.server.door, dial: func() (net.Conn, error) { return net.Dial("tcp", w.west.server.Listener.Addr().String()) }},
		{name: "loop over TLS", door: looped.HTTPS, dial: secure(at)},
		{name: "goroutine", dial: secure(manned)},
		{name: "goroutine, through net/http", dial: secure(manned), more: "Via: 1.1 else\r\n"},
	}
	asked := 0
	for n := range *strangeAnswers {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		b := mutant(r, answerSeeds)
		mu.Lock()
		text, cut = b, r.IntN(len(b)+1)
		mu.Unlock()
		var first verdict
		for i, road := range roads {
			road.rest(t, w, &asked)
			got := road.ask(t, w, "POST", road.more+"Content-Length: 0\r\n\r\n")
			asked++
			if i == 0 {
				first = got
			} else if got != first {
				t.Errorf("answer %d, cut at %d: %.300q\nto a client of a %s: %+v, of a %s: %+v", n, cut, b, roads[0].name, first, road.name, got)
			}
		}
		if want, err := theirAnswer(b); first.whole && (err != nil || want != first) {
			t.Errorf("answer %d: %.300q\ngot %+v, net/http reads %+v, %v", n, b, first, want, err)
		}
	}
	eventually(t, time.Minute, "a row for each request", func() bool {
		rows := 0
		for _, n := range w.west.meter.finals(t) {
			rows += n
		}
		return rows == asked
	})
}

// answerRoad is a client's way to an upstream.
type answerRoad struct {
	name string
	door *proxy.Door // of loops; nil: it has none
	dial func() (net.Conn, error)
	more string // in the head of its requests

	conn net.Conn
	in   *bufio.Reader
}

// rest has the upstream answer well, so that one strange answer looks like no failure of it, and has the connection rest in its loop.
func (a *answerRoad) rest(t *testing.T, w *world, asked *int) {
	t.Helper()
	eventually(t, time.Minute, "a good answer", func() bool {
		got := a.ask(t, w, "GET", "\r\n")
		*asked++
		return got.status == 200
	})
	for range 200 { // else a goroutine has it: the next answer is judged all the same
		if a.door == nil || a.conn == nil || a.door.Resting() == 1 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (a *answerRoad) ask(t *testing.T, w *world, method, more string) (v verdict) {
	t.Helper()
	if a.conn == nil {
		conn, err := a.dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		a.conn, a.in = conn, bufio.NewReader(conn)
	}
	a.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(a.conn, w.head(method, "/v1/x", more)); err != nil {
		t.Fatal(err)
	}
	end := func() {
		a.conn.Close()
		a.conn = nil
	}
	for {
		resp, err := http.ReadResponse(a.in, &http.Request{Method: method})
		if err != nil {
			end()
			return verdict{}
		}
		if resp.StatusCode < 200 {
			continue // hints
		}
		body, err := io.ReadAll(resp.Body)
		if resp.Close || err != nil {
			end()
		}
		if err != nil || resp.Header.Get("Bailiwick-Served") == "" {
			return verdict{}
		}
		return verdict{true, resp.StatusCode, string(body)}
	}
}

// theirAnswer is what net/http reads, past interim answers.
func theirAnswer(b []byte) (v verdict, err error) {
	in := bufio.NewReader(bytes.NewReader(b))
	for range 16 {
		resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
		if err != nil {
			return v, err
		}
		if resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != 101 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return v, fmt.Errorf("status %s: %w", strconv.Itoa(resp.StatusCode), err)
		}
		return verdict{true, resp.StatusCode, string(body)}, nil
	}
	return v, errors.New("one interim answer after another")
}

// An answer of no length that its connection ends is whole when that ends, also where it ends by itself, while it is waited for.
func TestFlow_AConnectionEndsItsAnswer(t *testing.T) {
	w := newWorld(t, nil)
	heard := make(chan struct{})
	w.raw(func(c net.Conn, head string, _ int) string {
		if !strings.Contains(head, "/v1/ends") {
			return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nsome")
		<-heard
		time.Sleep(20 * time.Millisecond) // by then it is waited for
		c.Close()
		return ""
	})
	for _, p := range w.protocols(t) {
		before := w.west.meter.len()
		req, err := http.NewRequestWithContext(t.Context(), "GET", p.base+"/v1/ends", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		rt := p.rt
		if rt == nil {
			rt = &http.Transport{DisableKeepAlives: true}
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		some := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, some); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		heard <- struct{}{}
		if rest, err := io.ReadAll(resp.Body); err != nil || string(some)+string(rest) != "some" {
			t.Errorf("%s: got %q and %q, %v, want all of it", p.name, some, rest, err)
		}
		resp.Body.Close()
		eventually(t, time.Minute, "a row", func() bool { return w.west.meter.len() > before })
		if row := w.west.meter.last(); row.Outcome != usage.OutcomeSuccess || row.BytesOut != 4 || row.Requests != 1 {
			t.Errorf("%s: the row %+v", p.name, row)
		}
	}
}
