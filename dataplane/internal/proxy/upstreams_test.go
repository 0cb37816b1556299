package proxy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// several gives the API of w's western region more upstreams, and says more of it.
func several(w *world, change func(*table.API), ups ...*upstream) {
	w.west.orders = func(a *table.API) {
		a.Targets = nil
		for _, u := range ups {
			a.Targets = append(a.Targets, "http://"+u.addr)
		}
		change(a)
	}
	w.west.tables.Swap(w.view(w.west, true))
}

// patient asks upstreams for life and waits as long as a loaded machine may take, so that nobody goes abroad for want of it.
func patient(c *proxy.Config) {
	m, err := failover.New(failover.Config{Tables: c.Tables, Prober: c.Upstreams, Logger: c.Logger, LivenessWait: time.Minute, ProbeTimeout: time.Minute})
	if err != nil {
		panic(err)
	}
	c.Monitor = m
}

func TestUpstreams_SpreadsAndSaysWhenAllAreBusy(t *testing.T) {
	w := newWorld(t, patient)
	second := newUpstream(t, "eu-west")
	several(w, func(a *table.API) { a.Dispatch = table.Dispatch{MaxRequests: 2} }, w.west.up, second)
	release := make(chan struct{})
	hold := func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		rw.WriteHeader(200)
		io.WriteString(rw, "done")
	}
	w.west.up.does(hold)
	second.does(hold)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if resp := w.send("POST", "/v1/x", "hello"); resp.status != 200 {
				t.Errorf("one of four with a place: %d", resp.status)
			}
		})
	}
	eventually(t, 10*time.Second, "two at each", func() bool { return w.west.up.count.Load() == 2 && second.count.Load() == 2 })
	resp := w.send("POST", "/v1/x", "hello")
	var problem struct{ Reason string }
	json.Unmarshal([]byte(resp.body), &problem)
	if resp.status != 503 || problem.Reason != "upstream-busy" || resp.header.Get("Retry-After") == "" {
		t.Errorf("a fifth: got %d %s, want 503 upstream-busy with Retry-After", resp.status, resp.body)
	}
	if n := w.central.up.count.Load(); n != 0 {
		t.Errorf("%d requests went to the other region because this one was busy", n)
	}
	if row := w.west.meter.last(); row.Outcome != usage.OutcomeUnserved || row.Units != 0 {
		t.Errorf("the fifth is counted as %+v, want it unserved and free", row)
	}
	close(release)
	wg.Wait()
	for range 8 { // whatever became of them, their places are free
		if resp := w.send("POST", "/v1/x", "hello"); resp.status != 200 {
			t.Errorf("afterwards: %d", resp.status)
		}
	}
}

// A route that asks for it has a second upstream tried beside a silent first; the first answer counts, and one row is written.
func TestUpstreams_HedgesWhereTheRouteAsks(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute; patient(c) })
	second := newUpstream(t, "eu-west")
	several(w, func(a *table.API) {
		a.Dispatch.Choice = "in-order"
		a.Routes = []table.Route{{Name: "all", HedgeAfter: 20 * time.Millisecond, Timeout: time.Minute}, {Name: "plain", PathPrefix: "/plain"}}
	}, w.west.up, second)
	stuck := make(chan struct{})
	defer close(stuck)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-stuck:
		case <-r.Context().Done():
		}
	})
	resp := w.send("GET", "/v1/x", "")
	if resp.status != 200 || second.count.Load() != 1 || w.central.up.count.Load() != 0 {
		t.Errorf("got %d with %d at the second and %d abroad, want the second's answer", resp.status, second.count.Load(), w.central.up.count.Load())
	}
	if row := w.west.meter.last(); row.Outcome != usage.OutcomeSuccess || row.Requests != 1 || row.Attempts != 2 || row.Units != 1 {
		t.Errorf("got row %+v, want one request of one unit after two tries", row)
	}
	if n := w.west.meter.len(); n != 1 {
		t.Errorf("%d rows, want one", n)
	}
}

// Two tries that are answered at once: whichever counts, its answer comes whole.
func TestUpstreams_AHedgeBreaksOffNoAnswer(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.HedgeAfter = time.Minute; patient(c) })
	second := newUpstream(t, "eu-west")
	several(w, func(a *table.API) {
		a.Dispatch.Choice = "in-order"
		a.Routes = []table.Route{{Name: "all", HedgeAfter: 5 * time.Millisecond, Timeout: time.Minute}, {Name: "plain", PathPrefix: "/plain"}}
	}, w.west.up, second)
	meet := make(chan struct{})
	whole := make([]byte, 200<<10)
	both := func(rw http.ResponseWriter, r *http.Request) {
		select {
		case meet <- struct{}{}:
		case <-meet:
		case <-r.Context().Done():
		}
		rw.Write(whole)
	}
	w.west.up.does(both)
	second.does(both)
	for i := range 100 {
		if a := w.send("GET", "/v1/x", ""); a.err != nil || a.status != 200 || len(a.body) != len(whole) {
			t.Fatalf("request %d: got %d, %d bytes, %v", i, a.status, len(a.body), a.err)
		}
	}
}
