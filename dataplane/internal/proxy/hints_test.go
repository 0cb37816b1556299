package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
)

// Early hints reach the client before the answer is there: over each protocol, from upstreams of either road and of both
// protocols, and across a relay. Nothing but Link is in them.
func TestHints_ArriveBeforeTheAnswer(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute }) // else a second attempt gives hints too
	var mu sync.Mutex
	var seen chan struct{} // closed when the client has seen the hint
	hints := func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		wait := seen
		mu.Unlock()
		if r.URL.Path == "/v1/ready" {
			return
		}
		rw.WriteHeader(http.StatusProcessing)
		rw.Header()["Link"] = []string{"</a.css>; rel=preload", "</b.js>; rel=preload"}
		rw.Header().Set("Set-Cookie", "early=1")
		rw.Header().Set("Bailiwick-Served", "forged")
		rw.WriteHeader(http.StatusEarlyHints)
		select {
		case <-wait:
		case <-r.Context().Done():
		}
		clear(rw.Header())
		io.WriteString(rw, "answer")
	}
	w.west.up.does(hints)
	w.central.up.does(hints)
	ask := func(v via, method, body string) {
		t.Helper()
		mu.Lock()
		seen = make(chan struct{})
		done := sync.OnceFunc(func() { close(seen) })
		mu.Unlock()
		var got []string
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, " ", h))
			done()
			return nil
		}})
		var in io.Reader
		if body != "" {
			in = strings.NewReader(body)
		}
		resp, err := v.ask(ctx, w, method, "/v1/x", in)
		if err != nil {
			t.Fatalf("%s over %s: %v", method, v.name, err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(text) != "answer" || err != nil || resp.Header.Get("Link") != "" || resp.Header.Get("Bailiwick-Request-Id") == "" {
			t.Errorf("%s over %s: got %d %q %v %v", method, v.name, resp.StatusCode, text, resp.Header, err)
		}
		if want := []string{"103 map[Link:[</a.css>; rel=preload </b.js>; rel=preload]]"}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s over %s: got the hints %v, want %v", method, v.name, got, want)
		}
	}
	vias := w.vias()
	all := func() {
		for _, v := range vias {
			ask(v, "GET", "")
			ask(v, "POST", strings.Repeat("x", 100<<10))
		}
	}
	all()
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/ready", "").served == "eu-central" })
	all()
}

// Hints are bounded; a client of HTTP/1.0 gets the answer alone, and so do those of a route whose answers have no Link.
func TestHints_AreBounded(t *testing.T) {
	w := newWorld(t, patient)
	w.west.orders = func(a *table.API) {
		a.Routes = append(a.Routes, table.Route{Name: "bare", PathPrefix: "/bare", Rewrite: &table.Rewrite{Response: table.Fields{Remove: []string{"Link"}}}})
	}
	var n atomic.Int64
	w.raw(func(net.Conn, string, int) string {
		return strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", int(n.Load())) + "HTTP/1.1 200 OK\r\nLink: </b>\r\nContent-Length: 2\r\n\r\nok"
	})
	for _, c := range []struct {
		name         string
		said, method string
		path, proto  string
		hints        int
		status       int
	}{
		{"eight", "8", "GET", "/v1/x", "HTTP/1.1", 8, 200},
		{"eight to an exchange", "8", "POST", "/v1/x", "HTTP/1.1", 8, 200},
		{"too many", "20", "POST", "/v1/x", "HTTP/1.1", 8, 502},
		{"HTTP/1.0", "2", "GET", "/v1/x", "HTTP/1.0", 0, 200},
		{"a route without Link", "2", "GET", "/bare/x", "HTTP/1.1", 0, 200},
	} {
		said, _ := strconv.Atoi(c.said)
		n.Store(int64(said))
		conn, in := w.dial()
		body := ""
		if c.method == "POST" {
			body = strings.Repeat("x", 100<<10)
		}
		io.WriteString(conn, strings.Replace(w.head(c.method, c.path, fmt.Sprintf("Content-Length: %d\r\n", len(body)), "\r\n"), "HTTP/1.1", c.proto, 1)+body)
		got := 0
		for {
			resp, err := http.ReadResponse(in, &http.Request{Method: c.method})
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if resp.StatusCode == 103 {
				got++
				continue
			}
			if resp.StatusCode != c.status || got > c.hints || c.status == 200 && got != c.hints {
				t.Errorf("%s: got %d hints and %d, want %d and %d", c.name, got, resp.StatusCode, c.hints, c.status)
			}
			break
		}
		conn.Close()
	}
}
