package proxy_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
)

// A target that leaves the list gets nobody new; who is under way there is answered, and its idle connections close.
func TestUpstreams_ATargetThatLeavesIsDrained(t *testing.T) {
	w := newWorld(t, nil)
	second := newUpstream(t, "eu-west")
	var open atomic.Int64
	w.west.up.mu.Lock()
	w.west.up.state = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	w.west.up.mu.Unlock()
	for range 3 { // idle connections of both roads
		if a := w.send("GET", "/v1/x", ""); a.status != 200 {
			t.Fatalf("got %+v", a)
		}
	}
	arrived, over := make(chan struct{}), make(chan struct{})
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-over
		rw.Write([]byte("to its end"))
	})
	got := make(chan answer, 1)
	go func() { got <- w.send("POST", "/v1/slow", "x") }()
	<-arrived
	w.west.orders = func(a *table.API) { a.Targets = []string{"http://" + second.addr} }
	w.west.tables.Swap(w.view(w.west, true))
	others := 0
	eventually(t, 30*time.Second, "requests at the other", func() bool {
		others++
		return w.send("GET", "/v1/y", "").status == 200 && second.count.Load() > 2
	})
	if n := w.west.up.count.Load(); n != 4 {
		t.Errorf("the one that left got %d requests, want the 4 of before (of %d others none)", n, others)
	}
	close(over)
	if a := <-got; a.status != 200 || a.body != "to its end" {
		t.Errorf("who was under way got %d %q %v", a.status, a.body, a.err)
	}
	// APIs that still name it keep their probes' connections: the others go.
	eventually(t, 90*time.Second, "its connections close", func() bool { return open.Load() <= 2 })
}

// What the zone found for an API is asked beside what the API names, and nothing that it found for others.
func TestUpstreams_WhatTheZoneFoundIsAsked(t *testing.T) {
	w := newWorld(t, nil)
	found, other := newUpstream(t, "eu-west"), newUpstream(t, "eu-west")
	say := func(discovery string, urls ...string) {
		t.Helper()
		o, err := table.Encode(table.KindTargets, "orders", table.Targets{API: "orders", URLs: urls})
		if err != nil {
			t.Fatal(err)
		}
		o2, err := table.Encode(table.KindTargets, "reports", table.Targets{API: "reports", URLs: []string{"http://" + other.addr}})
		if err != nil {
			t.Fatal(err)
		}
		w.objects = append(slices.DeleteFunc(w.objects, func(o table.Object) bool { return o.Kind == table.KindTargets }), o, o2)
		w.west.orders = func(a *table.API) { a.Targets, a.Dispatch.Discovery = nil, discovery }
		w.west.tables.Swap(w.view(w.west, false))
	}
	say("etcd", "http://"+found.addr)
	for range 20 {
		if a := w.send("GET", "/v1/x", ""); a.status != 200 {
			t.Fatalf("got %d %s", a.status, a.body)
		}
	}
	if found.count.Load() != 20 || other.count.Load() != 0 {
		t.Errorf("%d and %d requests, want all at what was found", found.count.Load(), other.count.Load())
	}
	say("", "http://"+found.addr)
	if a := w.send("GET", "/v1/x", ""); a.status != 421 || found.count.Load() != 20 {
		t.Errorf("of an API that looks for none: got %d %s", a.status, a.body)
	}
}

// What was found speaks what the API says of what is found, where its URL goes with that.
func TestUpstreams_WhatTheZoneFoundSpeaksHTTP2(t *testing.T) {
	for protocol, want := range map[string]int{"h2c": 2, "h2": 1, "": 1} {
		w := newWorld(t, nil)
		var major atomic.Int64
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
				major.Store(int64(r.ProtoMajor))
			}
		}))
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetHTTP1(true)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		srv.Start()
		t.Cleanup(srv.Close)
		o, err := table.Encode(table.KindTargets, "orders", table.Targets{API: "orders", URLs: []string{srv.URL}})
		if err != nil {
			t.Fatal(err)
		}
		w.objects = append(w.objects, o)
		w.west.orders = func(a *table.API) {
			a.Targets, a.Dispatch.Discovery = nil, "etcd"
			a.Protocols = map[string]string{table.FoundTargets: protocol}
		}
		w.west.tables.Swap(w.view(w.west, false))
		if a := w.send("GET", "/v1/x", ""); a.status != 200 || int(major.Load()) != want {
			t.Errorf("%q: got %d %s over HTTP/%d, want HTTP/%d", protocol, a.status, a.body, major.Load(), want)
		}
	}
}

// An API whose upstreams are all found is as much at home as another: its WebSockets stay open, and pages may ask.
func TestUpstreams_WhatTheZoneFoundIsAHome(t *testing.T) {
	w := newLive(t, nil, nil)
	found := newUpstream(t, "eu-west")
	found.echoes(t)
	o, err := table.Encode(table.KindTargets, "orders", table.Targets{API: "orders", URLs: []string{"http://" + found.addr}})
	if err != nil {
		t.Fatal(err)
	}
	w.objects = append(w.objects, o)
	usual := w.west.orders
	w.west.orders = func(a *table.API) {
		usual(a)
		a.Targets, a.Dispatch.Discovery = nil, "etcd"
		a.CORS = &table.CORS{Origins: []string{"https://page.test"}}
	}
	w.west.tables.Swap(w.view(w.west, false))
	c := w.open(w.west)
	if c.status != 101 {
		t.Fatalf("a WebSocket: got %d", c.status)
	}
	c.hear() // who the upstream is
	c.say(1, "hello")
	if op, text, err := c.hear(); op != 1 || err != nil {
		t.Errorf("it is ended with %d %q, %v", op, text, err)
	}
	if a := w.send("OPTIONS", "/live/x", "", "X-Api-Key", "", "Origin", "https://page.test", "Access-Control-Request-Method", "GET"); a.status != 204 {
		t.Errorf("a preflight: got %d %s", a.status, a.body)
	}
}

// Retries do not become a storm: a burst, ten a second, and a fifth of the requests.
func TestProxy_RetriesAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	api, p := w.west.tables.Load().APIOf("emea", "orders"), w.west.proxy
	now := time.Hour
	p.Retries(api, 0, now)
	for _, c := range []struct {
		after    time.Duration
		requests int
		want     int
	}{{0, 0, 0}, {0, 100, 20}, {0, 4, 0}, {0, 1, 1}, {10 * time.Second, 0, 100}, {time.Hour, 0, 1000}, {0, 1_000_000, 1000}} {
		now += c.after
		if got := p.Retries(api, c.requests, now); got != c.want {
			t.Errorf("after %v and %d requests: %d retries, want %d", c.after, c.requests, got, c.want)
		}
	}
}
