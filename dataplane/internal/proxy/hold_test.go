package proxy_test

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

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
		at   string // "": the region's own upstream
	}{
		"a plan's, by way of another region":                      {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"GET", "/v1/x", ""}, "eu-central"},
		"a plan's, by way of another region, a body that streams": {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"POST", "/v1/x", strings.Repeat("x", 100<<10)}, "eu-central"},
		"a plan's, over the common road":                          {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"POST", "/v1/x", "do"}, ""},
		"a plan's, with a body that streams":                      {func(p *table.Plan) { p.MaxConcurrent = bound }, nil, []string{"POST", "/v1/x", strings.Repeat("x", 100<<10)}, ""},
		"a target's":                                              {nil, func(a *table.API) { a.Dispatch = table.Dispatch{MaxRequests: bound, MaxWaiting: 1} }, []string{"GET", "/v1/x", ""}, ""},
		"an API's":                                                {nil, func(a *table.API) { a.Concurrency = &table.Concurrency{Min: bound, Max: bound} }, []string{"GET", "/v1/x", ""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var decided atomic.Int64 // requests that an edge has read: one that is taken back before has no row
			w := newWorld(t, func(cfg *proxy.Config) {
				patient(cfg)
				cfg.HedgeAfter = time.Minute
				cfg.TableAge = func(time.Time) time.Duration { decided.Add(1); return 0 }
			})
			w.west.plan, w.west.orders = c.plan, c.api
			w.west.tables.Swap(w.view(w.west, true))
			serves, up := cmp.Or(c.at, "eu-west"), w.west.up
			if c.at != "" {
				up = w.central.up
				w.west.up.kill()
				eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == serves })
			}
			var now, most, came atomic.Int64
			letGo := make(chan struct{})
			up.does(func(http.ResponseWriter, *http.Request) { // it does not ask whether somebody still wants it
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
				before, asked, answered := came.Load(), decided.Load(), make(chan struct{})
				go func() {
					defer close(answered)
					if resp, err := w.west.server.Client().Do(req); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}()
				eventually(t, 20*time.Second, "the edge reads the request", func() bool { return decided.Load() > asked })
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
			up.does(nil)
			eventually(t, 20*time.Second, "the places", func() bool {
				a := w.send("GET", "/v1/x", "")
				return a.status == 200 && a.served == serves
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

// Over HTTP/2 an upstream is told by the stream's reset: the places are taken until it has read that.
func TestHold_OverHTTP2UntilItIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	came, read := make(chan struct{}, 100), make(chan struct{})
	var answers atomic.Bool
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
				fr := http2.NewFramer(conn, conn)
				fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
				fr.WriteSettings()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					switch f := f.(type) {
					case *http2.PingFrame:
						fr.WritePing(true, f.Data)
					case *http2.MetaHeadersFrame:
						if f.PseudoValue("path") != "/v1/x" || answers.Load() { // a probe's
							var head bytes.Buffer
							hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
							fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
							break
						}
						came <- struct{}{}
						<-read // nothing more meanwhile
					}
				}
			})
		}
	})
	w := newWorld(t, func(cfg *proxy.Config) { patient(cfg); cfg.HedgeAfter = time.Minute })
	w.west.plan = func(p *table.Plan) { p.MaxConcurrent = 1 }
	url := "http://" + l.Addr().String()
	w.west.orders = func(a *table.API) {
		a.Targets, a.Protocols, a.HealthTimeout = []string{url}, map[string]string{url: "h2c"}, time.Minute
	}
	w.west.tables.Swap(w.view(w.west, true))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", w.west.server.URL+"/v1/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	var asks sync.WaitGroup
	asks.Go(func() {
		if resp, err := w.west.server.Client().Do(req); err == nil {
			resp.Body.Close()
		}
	})
	<-came
	cancel()
	asks.Wait()
	eventually(t, 20*time.Second, "a row of what was taken back", func() bool { return w.west.meter.finals(t)[usage.OutcomeAborted] == 1 })
	if a := w.send("GET", "/v1/x", ""); a.status != 429 {
		t.Errorf("another, before the upstream knows that it was taken back: %d, want 429", a.status)
	}
	answers.Store(true)
	close(read)
	eventually(t, 20*time.Second, "the place", func() bool { return w.send("GET", "/v1/x", "").status == 200 })
}

// Over each protocol: also where it is known that the client has left before the request leaves the common road, on which nobody
// watches for that.
func TestHold_TakingBackOverEveryProtocol(t *testing.T) {
	t.Parallel() // it waits, mostly
	const bound = 2
	w := newWorld(t, func(cfg *proxy.Config) { patient(cfg); cfg.HedgeAfter = time.Minute })
	w.west.plan = func(p *table.Plan) { p.MaxConcurrent = bound }
	w.west.tables.Swap(w.view(w.west, false))
	for _, v := range w.vias() {
		var now, most atomic.Int64
		there, letGo := make(chan struct{}, 64), make(chan struct{})
		w.west.up.does(func(http.ResponseWriter, *http.Request) { // it does not ask whether somebody still wants it
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			there <- struct{}{}
			<-letGo
			now.Add(-1)
		})
		rows := w.west.meter.len()
		for i := range 8 {
			ctx, cancel := context.WithCancel(t.Context())
			answered := make(chan int, 1)
			go func() {
				resp, err := v.ask(ctx, w, "GET", "/v1/x", nil)
				if err != nil {
					answered <- 0
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				answered <- resp.StatusCode
			}()
			select {
			case <-there:
				cancel()
				<-answered
			case got := <-answered:
				if got != http.StatusTooManyRequests {
					t.Errorf("request %d over %s: got %d", i, v.name, got)
				}
			case <-time.After(time.Minute):
				t.Fatalf("request %d over %s is not at the upstream, and nobody says why", i, v.name)
			}
			cancel()
			eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows+i }) // then it is known what it holds
		}
		if n := most.Load(); n != bound {
			t.Errorf("over %s %d were worked on at once, want %d", v.name, n, bound)
		}
		close(letGo)
		w.west.up.does(nil)
		eventually(t, 20*time.Second, "the places", func() bool { return w.send("GET", "/v1/x", "").status == 200 })
	}
}
