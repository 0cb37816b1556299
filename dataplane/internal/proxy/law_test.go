package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// books are what upstreams saw, by request.
type books struct {
	mu      sync.Mutex // covers asked
	asked   map[string]int
	reached chan struct{} // one for each that waits, or has said half of its answer
	active  chan struct{} // one when one came, perhaps without its body
}

// act is an upstream that does as the path's last part says.
func (b *books) act(w http.ResponseWriter, r *http.Request) {
	select {
	case b.active <- struct{}{}:
	default:
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	b.mu.Lock()
	b.asked[r.Header.Get("X-Request-Id")]++
	b.mu.Unlock()
	rc := http.NewResponseController(w)
	some := func() {
		io.WriteString(w, "some of it")
		rc.Flush()
	}
	switch do := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; do {
	case "204", "304", "404", "500", "502", "503":
		var status int
		fmt.Sscan(do, &status)
		w.WriteHeader(status)
	case "early":
		w.WriteHeader(103)
		io.WriteString(w, "whole")
	case "chunked":
		some()
		some()
	case "long":
		w.Write(make([]byte, 100<<10))
	case "die":
		panic(http.ErrAbortHandler)
	case "die-in-it":
		w.Header().Set("Content-Length", "100")
		some()
		panic(http.ErrAbortHandler)
	case "die-in-a-chunk":
		some()
		panic(http.ErrAbortHandler)
	case "wait":
		b.reached <- struct{}{}
		<-r.Context().Done()
	case "stop":
		some()
		b.reached <- struct{}{}
		<-r.Context().Done()
	default:
		io.WriteString(w, "whole")
	}
}

// The law of the books: a request with a valid key has one final row, however it ends; it has units if, and only if, an upstream
// answered it; what must not be repeated reaches an upstream once at most; no unit stays in hand; and nothing reaches an upstream
// that has no row. Here are the ways in which a request ends, over each protocol and each road.
func TestLaw_HoldsHoweverARequestEnds(t *testing.T) {
	ends := []struct {
		name   string // what the upstream does
		method string // "": GET, and POST
		do     string // "": the client takes the answer; "leave": it leaves when the upstream has the request; "half": in its body; "cut": the pair is closed
		header [2]string
	}{
		{name: "200"}, {name: "204"}, {name: "304"}, {name: "404"}, {name: "500"}, {name: "502"}, {name: "503"}, {name: "early"}, {name: "chunked"}, {name: "long"},
		{name: "200", method: "HEAD"}, {name: "long", method: "HEAD"}, {name: "200", method: "PUT"}, {name: "200", method: "OPTIONS"},
		{name: "die"}, {name: "die-in-it"}, {name: "die-in-a-chunk"},
		{name: "wait", do: "leave"}, {name: "stop", do: "leave"}, {name: "200", method: "POST", do: "half"},
		{name: "stop", method: "POST", do: "cut"},
		{name: "200", method: "CONNECT"}, {name: "200", method: "TRACE"}, {name: "200", header: [2]string{"Upgrade", "websocket"}}, {name: "200", header: [2]string{"Expect", "100-continue"}},
		{name: "200", header: [2]string{"X-Api-Key", "nobody"}}, {name: "200", header: [2]string{"Host", "nobody.test"}},
	}
	for _, road := range []string{"common", "exchange", "relay"} {
		t.Run(road, func(t *testing.T) {
			t.Parallel()
			b := &books{asked: map[string]int{}, reached: make(chan struct{}, 64), active: make(chan struct{}, 1)}
			w, l := metered(t, 1_000_000, func(c *proxy.Config) { c.HedgeAfter = time.Minute })
			path := "/v1/"
			if road == "exchange" {
				path = "/exchange/"
			}
			for _, r := range []*region{w.west, w.central} {
				r.orders = func(a *table.API) {
					a.HealthTimeout = time.Minute
					a.Routes = append(a.Routes, table.Route{Name: "exchange", PathPrefix: "/exchange", Deadline: time.Minute})
				}
				r.up.does(b.act)
				r.up.mu.Lock()
				r.up.reads = true // not at each connection's first byte: that may be a probe's, and who leaves then was not served
				r.up.mu.Unlock()
				r.tables.Swap(w.view(r, true))
			}
			if road == "relay" {
				w.west.up.kill()
				eventually(t, time.Minute, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
			}
			for _, p := range w.protocols(t) {
				for _, e := range ends {
					if e.do == "cut" && road != "relay" {
						continue
					}
					methods := []string{e.method}
					if e.method == "" {
						methods = []string{"GET", "POST"}
					}
					for _, method := range methods {
						name := p.name + " " + method + " " + e.name + " " + e.do + e.header[0]
						eventually(t, time.Minute, name+": who serves is well", func() bool {
							a := w.send("GET", path+"200", "")
							return a.status == 200 && (a.served == "eu-west") == (road != "relay")
						})
						before := w.west.meter.len()

						got := p.end(t, w, b, method, path+e.name, e.do, e.header)
						if e.do == "cut" {
							w.west.tables.Swap(w.view(w.west, true))
						}
						known := e.header[0] != "X-Api-Key" && e.header[0] != "Host" && method != "CONNECT" && method != "TRACE" && e.header[0] != "Upgrade"
						if known {
							eventually(t, time.Minute, name+": a final row", func() bool {
								return slices.ContainsFunc(w.west.meter.since(before), func(r usage.Row) bool { return r.Requests == 1 })
							})
						}
						finals, units, served := 0, int64(0), false
						for _, r := range w.west.meter.since(before) {
							finals, units, served = finals+int(r.Requests), units+r.Units, served || r.ServedRegion != ""
						}
						want := int64(0)
						if served && method != "OPTIONS" {
							want = 1
						}
						switch {
						case known && finals != 1, !known && (finals > 1 || units != 0 && e.header[0] != "Upgrade"): // which some clients leave out
							t.Errorf("%s: %d final rows, %d units", name, finals, units)
						case units != want:
							t.Errorf("%s: %d units, want %d: %+v", name, units, want, w.west.meter.last())
						case got.whole && got.served != "" && !served, got.served == "" && got.whole && served:
							t.Errorf("%s: the client was served by %q, the row says %+v", name, got.served, w.west.meter.last())
						case got.whole && got.served != "" && w.west.meter.last().Outcome == usage.OutcomeAborted:
							t.Errorf("%s: the client has a whole answer, the row says that it was broken off", name)
						}
						b.mu.Lock()
						for id, n := range b.asked {
							if n > 1 && method == "POST" {
								t.Errorf("%s: request %s reached an upstream %d times", name, id, n)
							}
						}
						b.mu.Unlock()
						w.settle(t, b, name)
					}
				}
			}
			units := w.west.meter.paid()
			l.said(t, units, 0)
		})
	}
}

// settle holds what upstreams saw so far to the rows.
func (w *world) settle(t *testing.T, b *books, name string) {
	finals := map[string]int{}
	for _, r := range w.west.meter.since(0) {
		if r.Requests > 0 {
			id := hex.EncodeToString(r.RequestID[:])
			if finals[id]++; finals[id] > 1 {
				t.Errorf("%s: request %s has %d final rows", name, id, finals[id])
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.asked {
		if finals[strings.ReplaceAll(id, "-", "")] == 0 {
			t.Errorf("%s: an upstream saw request %s, of which there is no row", name, id)
		}
	}
	clear(b.asked)
}

// protocol is a client that speaks one.
type protocol struct {
	name string
	base string
	rt   http.RoundTripper // nil: one for each request
}

// protocols are clients of the western edge, over each protocol.
func (w *world) protocols(t *testing.T) []protocol {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	t.Cleanup(cert.Close)
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { servers.HTTPS.Serve(l) })
	all.Go(func() { servers.H3.Serve(u) })
	t.Cleanup(func() { servers.HTTPS.Close(); servers.H3.Close(); u.Close(); all.Wait() })
	insecure := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"} }
	var two http.Protocols
	two.SetHTTP2(true)
	h2, h3 := &http.Transport{Protocols: &two, TLSClientConfig: insecure()}, &http3.Transport{TLSClientConfig: insecure()}
	t.Cleanup(func() { h2.CloseIdleConnections(); h3.Close() })
	return []protocol{{"HTTP/1.1", w.west.server.URL, nil}, {"HTTP/2", "https://" + l.Addr().String(), h2}, {"HTTP/3", "https://" + l.Addr().String(), h3}}
}

// ending is what a client came to.
type ending struct {
	whole  bool // it has a whole answer
	served string
}

// end makes a request and ends it.
func (p *protocol) end(t *testing.T, w *world, b *books, method, path, do string, header [2]string) (out ending) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var body io.Reader
	if method == "POST" || method == "PUT" {
		body = strings.NewReader("what is asked")
	}
	if p.name == "HTTP/1.1" && (method == "CONNECT" || header[0] == "Upgrade") { // the library has its own mind there
		c, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if method == "CONNECT" {
			path = "orders.test:443"
		}
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n", method, path, w.key)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return out
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return ending{err == nil, resp.Header.Get("Bailiwick-Served")}
	}
	var half *io.PipeWriter
	if do == "half" {
		body, half = io.Pipe()
		defer half.Close()
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	switch header[0] {
	case "":
	case "Host":
		req.Host = header[1]
	default:
		req.Header.Set(header[0], header[1])
	}
	var doing sync.WaitGroup
	over := make(chan struct{})
	defer doing.Wait()
	defer close(over)
	switch do {
	case "leave":
		doing.Go(func() {
			select {
			case <-b.reached:
			case <-over:
			}
			cancel()
		})
	case "cut":
		doing.Go(func() {
			select {
			case <-b.reached:
			case <-over:
			}
			w.west.tables.Swap(w.view(w.west, false))
		})
	case "half":
		req.ContentLength = 200 << 10 // too long to be kept
		select {
		case <-b.active:
		default:
		}
		doing.Go(func() {
			half.Write(make([]byte, 64<<10))
			select {
			case <-b.active:
			case <-over:
			}
			half.CloseWithError(context.Canceled)
		})
	}
	rt := p.rt
	if rt == nil { // a connection of its own: on another the library repeats what was not answered
		own := &http.Transport{}
		defer own.CloseIdleConnections()
		rt = own
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return out
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return ending{err == nil, resp.Header.Get("Bailiwick-Served")}
}
