package proxy_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
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

// bounded is a world whose API works on one request at a time and keeps answers as of rules; what cc says in its query is the
// answer's Cache-Control, and /plain/hold takes until release is closed. asked counts the others.
func bounded(t *testing.T, rules table.Cache) (w *world, asked *atomic.Int64, held *atomic.Int64, release chan struct{}) {
	asked, held, release = new(atomic.Int64), new(atomic.Int64), make(chan struct{})
	w = caching(t, rules, false, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/plain/hold" {
			held.Add(1)
			<-release
			held.Add(-1)
			return
		}
		n := asked.Add(1)
		rw.Header().Set("Cache-Control", r.URL.Query().Get("cc"))
		rw.Header().Set("Etag", fmt.Sprintf(`"%d"`, n))
		fmt.Fprintf(rw, "answer %d", n)
	})
	kept := w.west.orders
	w.west.orders = func(a *table.API) {
		kept(a)
		a.Concurrency = &table.Concurrency{Min: 1, Max: 1}
	}
	w.west.tables.Swap(w.view(w.west, false))
	return w, asked, held, release
}

// An API that is short turns requests away; what is kept is given in their place, to those who may have it.
func TestCache_StaleIfTheAPIIsShort(t *testing.T) {
	w, asked, held, release := bounded(t, table.Cache{StaleIfError: time.Hour})
	const free, strict, brief = "/v1/x?cc=max-age=0", "/v1/x?cc=max-age=0,must-revalidate", "/v1/x?cc=max-age=0,stale-if-error=0"
	for _, path := range []string{free, strict, brief} {
		if a := w.send("GET", path, ""); a.status != 200 {
			t.Fatalf("%s: got %+v", path, a)
		}
	}
	other := w.stranger()
	w.west.tables.Swap(w.view(w.west, false))
	before, rows := asked.Load(), w.west.meter.len()
	over := make(chan struct{})
	go func() { defer close(over); w.send("POST", "/plain/hold", "y") }()
	eventually(t, 10*time.Second, "the API is short", func() bool { return held.Load() == 1 })
	a := w.send("GET", free, "")
	if a.status != 200 || a.body != "answer 1" || !strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit; ttl=-") && !strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit; ttl=0") || a.header.Get("Retry-After") != "" {
		t.Errorf("the API is short: got %+v, want what is kept", a)
	}
	if row := w.west.meter.last(); w.west.meter.len() != rows+1 || row.Outcome != usage.OutcomeSuccess || row.Flags&usage.FlagCached == 0 || row.ServedRegion != "" || row.Units != 1 || row.Attempts != 0 {
		t.Errorf("it is counted as %+v, want a hit", row)
	}
	for what, a := range map[string]answer{
		"nothing is kept":           w.send("GET", "/v1/y?cc=max-age=0", ""),
		"a client that wants none":  w.send("GET", free, "", "Cache-Control", "no-cache"),
		"must-revalidate":           w.send("GET", strict, ""),
		"the upstream allows none":  w.send("GET", brief, ""),
		"another customer":          w.send("GET", free, "", "X-Api-Key", "", "X-Api-Key", other),
		"what changes the resource": w.send("POST", free, "y"),
	} {
		if a.status != 503 || !strings.Contains(a.body, gate.ReasonOverloaded) || a.header.Get("Retry-After") != "1" {
			t.Errorf("%s: got %+v, want it turned away", what, a)
		}
	}
	if n := asked.Load() - before; n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
	close(release)
	<-over
	if a := w.send("GET", free, ""); a.status != 200 || a.body == "answer 1" {
		t.Errorf("when there is room again: got %+v, want the upstream's answer", a)
	}
}

// What the edge asks for by itself stands behind all requests: it takes a place at the API's upstreams that is free, and none that
// another waits for.
func TestCache_RenewsWhereThereIsRoom(t *testing.T) {
	w, asked, held, release := bounded(t, table.Cache{StaleWhileRevalidate: time.Hour})
	path := func(i int) string { return fmt.Sprintf("/v1/%d?cc=max-age=0", i) }
	for i := range 4 {
		w.send("GET", path(i), "")
	}
	over := make(chan struct{})
	go func() { defer close(over); w.send("POST", "/plain/hold", "y") }()
	eventually(t, 10*time.Second, "the API is short", func() bool { return held.Load() == 1 })
	for i := range 4 {
		if a := w.send("GET", path(i), ""); a.status != 200 || a.body != fmt.Sprintf("answer %d", i+1) {
			t.Errorf("got %+v, want what is kept", a)
		}
	}
	time.Sleep(100 * time.Millisecond) // for what must not happen
	if n := asked.Load() - 4; n != 0 || held.Load() != 1 {
		t.Errorf("%d answers were asked for anew beside the one request that the API takes at a time", n)
	}
	close(release)
	<-over
	for i := range 4 {
		eventually(t, 10*time.Second, "it is asked for once there is room", func() bool {
			a := w.send("GET", path(i), "")
			return a.status == 200 && a.body != fmt.Sprintf("answer %d", i+1)
		})
	}
	eventually(t, 10*time.Second, "all places are free", func() bool { return proxy.Under(w.west.proxy, w.view(w.west, false).API("orders.test")) == 0 })
}
