package proxy_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// Whoever takes his requests back has no more of them worked on at once than who waits: an upstream that goes on with them holds
// the places that they have, until it has let go.
func TestHold_TakingBackEvadesNoBound(t *testing.T) {
	t.Parallel()
	const bound = 2
	for name, c := range map[string]struct {
		plan func(*table.Plan)
		api  func(*table.API)
		ask  []string
	}{
		"a plan's, over the common road":     {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"POST", "/v1/x", "do"}},
		"a plan's, with a body that streams": {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"POST", "/v1/x", strings.Repeat("x", 100<<10)}},
		"a target's":                         {nil, func(a *table.API) { a.Dispatch = table.Dispatch{MaxRequests: bound, MaxWaiting: 1} }, []string{"GET", "/v1/x", ""}},
		"an API's":                           {nil, func(a *table.API) { a.Concurrency = &table.Concurrency{Min: bound, Max: bound} }, []string{"GET", "/v1/x", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(cfg *proxy.Config) { patient(cfg); cfg.HedgeAfter = time.Minute })
			w.west.plan, w.west.orders = c.plan, c.api
			w.west.tables.Swap(w.view(w.west, true))
			var now, most, came atomic.Int64
			letGo := make(chan struct{})
			w.west.up.does(func(http.ResponseWriter, *http.Request) { // it does not ask whether somebody still wants it
				came.Add(1)
				if n := now.Add(1); n > most.Load() {
					most.Store(n)
				}
				<-letGo
				now.Add(-1)
			})
			takeBack := func() {
				ctx, cancel := context.WithCancel(t.Context())
				req, err := http.NewRequestWithContext(ctx, c.ask[0], w.west.server.URL+c.ask[1], strings.NewReader(c.ask[2]))
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "orders.test"
				req.Header.Set("X-Api-Key", w.key)
				before, answered := came.Load(), make(chan struct{})
				go func() {
					defer close(answered)
					if resp, err := w.west.server.Client().Do(req); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}()
				for end := time.Now().Add(200 * time.Millisecond); came.Load() == before && time.Now().Before(end); time.Sleep(time.Millisecond) {
					select {
					case <-answered:
						end = time.Now()
					default:
					}
				}
				cancel()
				<-answered
			}
			for range 6 {
				takeBack()
			}
			reached := int(came.Load())
			eventually(t, 20*time.Second, "a row of each that was taken back at the upstream", func() bool {
				return w.west.meter.finals(t)[usage.OutcomeAborted] >= reached
			})
			for range 4 {
				takeBack()
			}
			if n := most.Load(); n < 1 || n > bound {
				t.Errorf("%d were worked on at once, want %d at most", n, bound)
			}
			close(letGo)
			w.west.up.does(nil)
			eventually(t, 20*time.Second, "the places", func() bool {
				a := w.send("GET", "/v1/x", "")
				return a.status == 200 && a.served == "eu-west"
			})
			eventually(t, 20*time.Second, "a row of each", func() bool {
				rows := 0
				for _, n := range w.west.meter.finals(t) {
					rows += n
				}
				return rows >= 11
			})
		})
	}
}
