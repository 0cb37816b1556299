package proxy_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// sendBy is send over one protocol.
func (w *world) sendBy(ctx context.Context, v via, method, path, body string, header ...string) (a answer) {
	began := time.Now()
	resp, err := v.ask(ctx, w, method, path, strings.NewReader(body), header...)
	if err != nil {
		return answer{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("Bailiwick-Served"), resp.Header, string(text), err, time.Since(began)}
}

// The time of a route is up over each protocol: to an answer's head, common or not, and to the end of what flows; and that
// is told as it is.
func TestRoutes_TimesHoldOverEveryProtocol(t *testing.T) {
	t.Parallel() // it waits, mostly
	w := newWorld(t, patient)
	w.west.tables.Swap(w.view(w.west, false))
	var asked atomic.Int64 // how often the upstream was
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/"):
			io.WriteString(rw, "ok")
		case r.URL.Path == "/brief/long":
			for r.Context().Err() == nil {
				if _, err := io.WriteString(rw, "tick\n"); err != nil {
					return
				}
				rw.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		default:
			<-r.Context().Done()
		}
	})
	for _, v := range w.vias() {
		well := func() {
			t.Helper()
			if a := w.sendBy(t.Context(), v, "GET", "/v1/x", ""); a.status != 200 {
				t.Fatalf("between, over %s: got %d %s %v", v.name, a.status, a.body, a.err)
			}
		}
		for _, c := range []struct{ method, path, body string }{{"GET", "/quick/x", ""}, {"POST", "/quick/x", "small"}, {"POST", "/quick/x", strings.Repeat("large", 10_000)}, {"GET", "/brief/late", ""}, {"POST", "/brief/late", "x"}} {
			before, heard := w.west.meter.len(), asked.Load()
			a := w.sendBy(t.Context(), v, c.method, c.path, c.body)
			for tries := 0; a.status != 504 && asked.Load() == heard && tries < 50; tries++ {
				// A machine that is busy may take all the time before the upstream is asked: that is an error of the edge's, and costs nothing.
				eventually(t, 20*time.Second, "a row", func() bool { return w.west.meter.len() > before })
				if row := w.west.meter.last(); a.err != nil || a.status < 400 || int(row.Status) != a.status || row.Units != 0 || row.ServedRegion != "" {
					t.Fatalf("%s %s over %s, not asked of the upstream: got %d %s %v, row %+v", c.method, c.path, v.name, a.status, a.body, a.err, row)
				}
				well()
				before, heard = w.west.meter.len(), asked.Load()
				a = w.sendBy(t.Context(), v, c.method, c.path, c.body)
			}
			if a.status != 504 || a.took < 300*time.Millisecond || !strings.Contains(a.body, gate.ReasonUpstreamLate) {
				t.Errorf("%s %s over %s: got %d after %v %s %v, want 504 after 300 ms", c.method, c.path, v.name, a.status, a.took, a.body, a.err)
			}
			eventually(t, 20*time.Second, "a row", func() bool { return w.west.meter.len() > before })
			if row := w.west.meter.last(); row.Status != 504 || row.Units != 0 || row.Requests != 1 {
				t.Errorf("%s %s over %s: row %+v", c.method, c.path, v.name, row)
			}
			well()
		}
		for tries := 0; ; tries++ {
			before := w.west.meter.len()
			a := w.sendBy(t.Context(), v, "GET", "/brief/long", "")
			if a.err != nil && strings.HasPrefix(a.body, "tick\n") {
				eventually(t, 20*time.Second, "a row", func() bool { return w.west.meter.len() > before && w.west.meter.last().Outcome == usage.OutcomeAborted })
				break
			}
			if a.status != 504 || tries == 50 { // a machine that is busy may take all the time before the first byte
				t.Fatalf("over %s: got %d %v after %.20q, want it broken off in its midst", v.name, a.status, a.err, a.body)
			}
		}
		well()
	}
}

// Where an API's upstreams are short, free yields to platinum over each protocol: of four places two are kept from it, a third free
// request is turned away and costs nothing, and platinum is served.
func TestClasses_YieldOverEveryProtocol(t *testing.T) {
	w := newWorld(t, patient)
	free, o := mint(t, "free-class")
	paid, o2 := mint(t, "platinum-class")
	w.objects = append(w.objects, o, o2)
	w.west.orders = func(a *table.API) { a.Concurrency = &table.Concurrency{Min: 4, Max: 4} }
	w.west.tables.Swap(w.view(w.west, false))
	vias := w.vias()
	for _, v := range vias {
		var there atomic.Int64
		hold := make(chan struct{})
		w.west.up.does(func(http.ResponseWriter, *http.Request) { there.Add(1); <-hold })
		got := make(chan answer, 4)
		from := func(key string) answer { return w.sendBy(t.Context(), v, "POST", "/v1/x", "y", "X-Api-Key", key) }
		for i, key := range []string{free, free, paid, paid} {
			if i == 2 {
				before := w.west.meter.len()
				if a := from(free); a.status != 503 || !strings.Contains(a.body, gate.ReasonOverloaded) || a.header.Get("Retry-After") != "1" {
					t.Errorf("a third free one over %s: got %d %s %v, want it turned away", v.name, a.status, a.body, a.err)
				}
				eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > before })
				if r := w.west.meter.last(); r.Outcome != usage.OutcomeUnserved || r.Units != 0 || r.Plan != "free-class" {
					t.Errorf("over %s: got %+v, want it unserved and free of units", v.name, r)
				}
			}
			go func() { got <- from(key) }()
			eventually(t, 20*time.Second, "requests at the upstream", func() bool { return there.Load() == int64(i+1) })
		}
		close(hold)
		for range 4 {
			if a := <-got; a.status != 200 {
				t.Errorf("over %s: got %d %s %v, want it served", v.name, a.status, a.body, a.err)
			}
		}
		eventually(t, 20*time.Second, "places", func() bool { return from(free).status == 200 })
	}
}
