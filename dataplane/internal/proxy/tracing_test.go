package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/trace"
	"bailiwick/shared/table"
)

const (
	traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	unchosen    = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
)

// traces takes what edges of all regions say of their requests: an OTLP receiver.
type traces struct {
	t    testing.TB
	mu   sync.Mutex
	raw  bytes.Buffer // all that came
	of   map[string][]*otlp.Span
	errs []error
}

func (r *traces) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	data, err := io.ReadAll(req.Body)
	var m collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &m)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errs = append(r.errs, err)
		return
	}
	r.raw.Write(data)
	for _, rs := range m.ResourceSpans {
		region := ""
		for _, kv := range rs.Resource.Attributes {
			if kv.Key == "bailiwick.region" {
				region = kv.Value.GetStringValue()
			}
		}
		for _, ss := range rs.ScopeSpans {
			r.of[region] = append(r.of[region], ss.Spans...)
		}
	}
}

// tracing is a world whose edges trace as ratio says, and who hears of it. take stops them and gives all spans by region.
func tracing(t *testing.T, ratio float64) (w *world, r *traces, take func() map[string][]*otlp.Span) {
	r = &traces{t: t, of: map[string][]*otlp.Span{}}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var tracers []*trace.Tracer
	w = newWorld(t, func(cfg *proxy.Config) {
		var err error
		cfg.Traces, err = trace.New(trace.Config{Endpoint: srv.URL, Ratio: ratio, PerSecond: 10_000, Edge: trace.Edge{Region: cfg.Region}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { cfg.Traces.Run(ctx) })
		tracers = append(tracers, cfg.Traces)
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w, r, func() map[string][]*otlp.Span {
		for _, tr := range tracers { // a client may have its answer before the request is over
			eventually(t, 10*time.Second, "an end of all requests", func() bool { return tr.Stats().Open == 0 })
		}
		cancel()
		wg.Wait()
		for _, err := range r.errs {
			t.Error(err)
		}
		return r.of
	}
}

// split are the spans of requests, and those of attempts.
func split(spans []*otlp.Span) (requests, attempts []*otlp.Span) {
	for _, s := range spans {
		if s.Kind == otlp.Span_SPAN_KIND_SERVER {
			requests = append(requests, s)
		} else {
			attempts = append(attempts, s)
		}
	}
	return requests, attempts
}

func said(s *otlp.Span, key string) string {
	for _, kv := range s.Attributes {
		if kv.Key == key {
			return kv.Value.GetStringValue()
		}
	}
	return ""
}

// A request, its attempts, the region that takes it, and the attempt there are one trace, each the parent of the next; the
// upstream is told of the attempt that reached it.
func TestTraces_JoinARelay(t *testing.T) {
	w, r, take := tracing(t, 0)
	w.west.up.kill()
	a := w.send("GET", "/v1/secret-path?secret=query", "", "Traceparent", traceparent, "Tracestate", "a=1, b=2", "Baggage", "mine=1", "X-Secret", "header")
	if a.status != 200 || a.served != "eu-central" {
		t.Fatalf("got %d of %q: %s", a.status, a.served, a.body)
	}
	got, _ := w.central.up.last()
	spans := take()
	west, tries := split(spans["eu-west"])
	central, there := split(spans["eu-central"])
	if len(west) != 1 || len(tries) < 1 || len(central) != 1 || len(there) != 1 {
		t.Fatalf("got %d + %d and %d + %d spans", len(west), len(tries), len(central), len(there))
	}
	for _, s := range append(append(append(tries, there...), west...), central...) {
		if hex.EncodeToString(s.TraceId) != traceparent[3:35] || s.TraceState != "a=1,b=2" {
			t.Errorf("of another trace: %v", s)
		}
	}
	relayed := tries[len(tries)-1]
	if hex.EncodeToString(west[0].ParentSpanId) != traceparent[36:52] || !bytes.Equal(relayed.ParentSpanId, west[0].SpanId) ||
		!bytes.Equal(central[0].ParentSpanId, relayed.SpanId) || !bytes.Equal(there[0].ParentSpanId, central[0].SpanId) {
		t.Errorf("not joined: %v, %v, %v, %v", west[0], relayed, central[0], there[0])
	}
	if want := "00-" + traceparent[3:35] + "-" + hex.EncodeToString(there[0].SpanId) + "-01"; got.Get("Traceparent") != want || got.Get("Tracestate") != "a=1,b=2" || got.Get("Baggage") != "mine=1" {
		t.Errorf("the upstream is told %q, %q; want %q", got.Get("Traceparent"), got.Get("Tracestate"), want)
	}
	if said(west[0], "bailiwick.served_region") != "eu-central" || said(west[0], "bailiwick.api") != "orders" || said(west[0], "bailiwick.plan") != "gold" || said(west[0], "bailiwick.request_id") != a.header.Get("Bailiwick-Request-Id") || relayed.Name != "GET relay" {
		t.Errorf("got %v, %v", west[0], relayed)
	}
	for _, secret := range []string{"secret", "query", "header", "acme", w.key, w.key[len(w.key)-20:], "127.0.0.1:" + strings.Split(w.west.server.URL, ":")[2]} {
		if strings.Contains(r.raw.String(), secret) {
			t.Errorf("spans say %q", secret)
		}
	}
}

// What every protocol and road has in common: one span for the request, one for its attempt, whatever the ratio's doing.
func TestTraces_OfEveryRoad(t *testing.T) {
	w, _, take := tracing(t, 1)
	_, at := w.secure()
	for _, c := range []struct {
		method, path, body string
		header             []string
		status             int
	}{
		{"GET", "/v1/x", "", nil, 200},
		{"POST", "/v1/x", "body", nil, 200},
		{"GET", "/v1/x", "", []string{"X-Api-Key", ""}, 401},
		{"GET", "/v1/x", "", []string{"Traceparent", unchosen}, 200}, // the caller has decided
		{"GET", "/v1/x", "", []string{"Host", "nobody.test"}, 421},   // no API's
	} {
		if a := w.send(c.method, c.path, c.body, c.header...); a.status != c.status && !(c.status == 421 && a.status/100 == 4) {
			t.Errorf("%v: got %d %s", c, a.status, a.body)
		}
	}
	if status := overHTTP2(t, at, w.key); status != 200 {
		t.Errorf("over HTTP/2: got %d", status)
	}
	requests, attempts := split(take()["eu-west"])
	if len(requests) != 4 || len(attempts) != 3 {
		t.Fatalf("got %d requests and %d attempts, want 4 and 3", len(requests), len(attempts))
	}
	protocols := map[string]int{}
	for _, s := range requests {
		if len(s.ParentSpanId) != 0 {
			t.Errorf("a parent from nowhere: %v", s)
		}
		if protocols[said(s, "network.protocol.version")]++; said(s, "bailiwick.reason") == "key-missing" != (said(s, "bailiwick.outcome") == "") {
			t.Errorf("of the refusal: %v", s)
		}
	}
	if protocols["1.1"] != 3 || protocols["2"] != 1 {
		t.Errorf("by protocol: %v", protocols)
	}
}

func overHTTP2(t *testing.T, at, key string) int {
	var h2 http.Protocols
	h2.SetHTTP2(true)
	transport := &http.Transport{Protocols: &h2, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "orders.test"}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	req, _ := http.NewRequest("GET", "https://"+at+"/v1/x", nil)
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", key)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Errorf("spoke %s", resp.Proto)
	}
	return resp.StatusCode
}

// What cannot be read, or could be read in two ways, is passed to nobody; what can be passes as it came where it is not traced.
func TestTraces_ReadsStrictly(t *testing.T) {
	w, _, take := tracing(t, 0)
	for _, c := range []struct {
		header        []string
		parent, state string
	}{
		{[]string{"Traceparent", unchosen, "Tracestate", "a=1"}, unchosen, "a=1"},
		{[]string{"Traceparent", "00-zz", "Tracestate", "a=1"}, "", ""},
		{[]string{"traceparent", strings.ToUpper(unchosen)}, "", ""},
		{[]string{"Traceparent", unchosen, "Traceparent", unchosen}, "", ""},
		{[]string{"Tracestate", "a=1"}, "", ""},
		{nil, "", ""},
	} {
		for _, method := range []string{"GET", "POST"} {
			body := ""
			if method == "POST" {
				body = strings.Repeat("x", 64<<10) // not of the common kind
			}
			if a := w.send(method, "/v1/x", body, c.header...); a.status != 200 {
				t.Errorf("%q: got %d", c.header, a.status)
			}
			h, _ := w.west.up.last()
			if strings.Join(h["Traceparent"], "|") != c.parent || strings.Join(h["Tracestate"], "|") != c.state {
				t.Errorf("%s %q: the upstream got %q, %q", method, c.header, h["Traceparent"], h["Tracestate"])
			}
		}
	}
	if n := len(take()["eu-west"]); n != 0 {
		t.Errorf("%d spans", n)
	}
}

// A trace of another zone ends at the border, also where its edge sends it on.
func TestTraces_AnotherZonesEnds(t *testing.T) {
	for _, ratio := range []float64{0, 1} {
		w, _, take := tracing(t, ratio)
		o, err := table.Encode(table.KindAPI, "us/orders", table.API{Name: "orders", Zone: "us", Foreign: true, Policy: "gdpr", Targets: []string{"http://" + w.west.up.addr}})
		if err != nil {
			t.Fatal(err)
		}
		w.objects = append(w.objects, o)
		v := w.view(w.west, true)
		w.west.tables.Swap(v)
		eventually(t, 10*time.Second, "an answer", func() bool { // once the edge knows the target
			r := httptest.NewRequest("GET", "/v1/x", nil)
			r.Header = http.Header{"Traceparent": {traceparent}, "Tracestate": {"a=1"}, "Baggage": {"mine=1"}}
			rec := httptest.NewRecorder()
			w.west.proxy.ServeRelayed(rec, r, relay.Inbound{API: v.APIOf("us", "orders"), From: "us-east", RequestID: "0192-1"})
			return rec.Code == 200
		})
		h, _ := w.west.up.last()
		if strings.Contains(h.Get("Traceparent"), traceparent[3:35]) || h.Get("Tracestate") != "" || h.Get("Baggage") != "" || (h.Get("Traceparent") != "") != (ratio == 1) {
			t.Errorf("at %v the upstream got %q, %q, %q", ratio, h["Traceparent"], h["Tracestate"], h["Baggage"])
		}
		requests, attempts := split(take()["eu-west"])
		requests = slices.DeleteFunc(requests, func(s *otlp.Span) bool { return said(s, "bailiwick.reason") != "" })
		if n := int(ratio); len(requests) != n || len(attempts) != n {
			t.Fatalf("at %v: %d and %d spans", ratio, len(requests), len(attempts))
		}
		for _, s := range requests {
			if len(s.ParentSpanId) > 0 || hex.EncodeToString(s.TraceId) == traceparent[3:35] || said(s, "bailiwick.request_id") != "" {
				t.Errorf("it goes on here: %v", s)
			}
		}
	}
}

// tracesOthers has an edge trace other requests than are made.
func tracesOthers(t testing.TB) func(*proxy.Config) {
	return func(cfg *proxy.Config) {
		var err error
		if cfg.Traces, err = trace.New(trace.Config{Endpoint: "http://127.0.0.1:1", Ratio: 1, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
	}
}
