package proxy_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"bailiwick/shared/table"
)

// In HTTP/2 an answer of no declared length has an end of its own, and whether it came whole is known.
func TestCache_KeepsWhatHTTP2Ends(t *testing.T) {
	var asked atomic.Int64
	w := caching(t, table.Cache{}, false, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		if r.URL.Path == "/v1/trailer" {
			rw.Header().Set("Trailer", "X-Sum")
		}
		fmt.Fprintf(rw, "answer %d", asked.Add(1))
		rw.(http.Flusher).Flush() // no length is declared
		switch r.URL.Path {
		case "/v1/broken":
			panic(http.ErrAbortHandler)
		case "/v1/trailer":
			rw.Header().Set("X-Sum", "abc")
		case "/v1/unannounced":
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "abc")
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: w.west.up, Protocols: &two}
	go srv.Serve(l)
	defer srv.Close()
	url, kept := "http://"+l.Addr().String(), w.west.orders
	w.west.orders = func(a *table.API) {
		kept(a)
		a.Targets, a.Protocols = []string{url}, map[string]string{url: "h2c"}
	}
	w.west.tables.Swap(w.view(w.west, false))
	for path, keeps := range map[string]bool{"/v1/x": true, "/v1/broken": false, "/v1/trailer": false, "/v1/unannounced": false} {
		first := w.send("GET", path, "")
		second := w.send("GET", path, "")
		if first.header.Get("Content-Length") != "" || keeps && (first.err != nil || first.status != 200) {
			t.Errorf("%s: got %+v, want an answer of no declared length", path, first)
		}
		if hit := strings.HasPrefix(second.header.Get("Cache-Status"), "bailiwick; hit"); hit != keeps || keeps && second.body != first.body {
			t.Errorf("%s: got %+v after %+v, want a hit: %v", path, second, first, keeps)
		}
	}
}
