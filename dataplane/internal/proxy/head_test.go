package proxy_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"bailiwick/shared/table"
)

// An upstream over HTTP/2 says how large a head it takes. Whoever sends a larger one is told so, and takes it from nobody.
func TestUpstreams_AHeadThatOneOverHTTP2DoesNotTake(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: w.west.up, Protocols: &two, MaxHeaderBytes: 4 << 10}
	go srv.Serve(l)
	defer srv.Close()
	url := "http://" + l.Addr().String()
	w.west.orders = func(a *table.API) { a.Targets, a.Protocols = []string{url}, map[string]string{url: "h2c"} }
	w.west.tables.Swap(w.view(w.west, true))
	if got := w.send("POST", "/v1/x", "x"); got.served != "eu-west" {
		t.Fatalf("served by %q", got.served)
	}
	for _, v := range w.vias() {
		for range 10 {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", v.base+"/v1/x", nil)
			req.Host = "orders.test"
			req.Header.Set("X-Api-Key", w.key)
			req.Header.Set("X-Large", strings.Repeat("x", 12<<10))
			resp, err := v.rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("over %s: got %d of %q, want 431", v.name, resp.StatusCode, resp.Header.Get("Bailiwick-Served"))
			}
		}
	}
	for range 10 { // behind a body: it may have acted
		conn, in := w.dial()
		io.WriteString(conn, w.head("POST", "/v1/x", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", "\r\n")+"3\r\nabc\r\n0\r\nX-Sum: "+strings.Repeat("x", 12<<10)+"\r\n\r\n")
		if resp, _ := read(t, in, "POST"); resp.StatusCode != 502 {
			t.Errorf("behind a body: got %d of %q, want 502", resp.StatusCode, resp.Header.Get("Bailiwick-Served"))
		}
	}
	if got := w.send("POST", "/v1/x", "x"); got.served != "eu-west" {
		t.Errorf("another client was served by %q", got.served)
	}
}
