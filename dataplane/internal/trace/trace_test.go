package trace_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/dataplane/internal/trace"
)

func newTracer(t testing.TB, cfg trace.Config) *trace.Tracer {
	t.Helper()
	if cfg.Endpoint == "" {
		cfg.Endpoint = "http://127.0.0.1:1"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tr, err := trace.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// receiver takes OTLP over HTTP as OpenTelemetry's own messages read it, and takes nothing they do not know.
type receiver struct {
	t      testing.TB
	answer func(n int) (status int, reply *collector.ExportTraceServiceResponse)

	mu    sync.Mutex
	asked int
	spans []*otlp.Span
	from  map[string]string
	auth  string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	data, err := io.ReadAll(req.Body)
	var m collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &m)
	}
	if err != nil || req.Method != "POST" || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		r.t.Errorf("no OTLP: %s %s %q, %v", req.Method, req.URL.Path, req.Header.Get("Content-Type"), err)
	}
	known(r.t, m.ProtoReflect())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	status, reply := 200, &collector.ExportTraceServiceResponse{}
	if r.answer != nil {
		status, reply = r.answer(r.asked)
	}
	if status == 200 {
		r.auth, r.from = req.Header.Get("Authorization"), map[string]string{}
		for _, rs := range m.ResourceSpans {
			for _, kv := range rs.Resource.Attributes {
				r.from[kv.Key] = kv.Value.GetStringValue()
			}
			for _, ss := range rs.ScopeSpans {
				r.spans = append(r.spans, ss.Spans...)
			}
		}
	}
	out, _ := proto.Marshal(reply)
	w.WriteHeader(status)
	w.Write(out)
}

// known fails where a message has fields that its definition does not.
func known(t testing.TB, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		t.Errorf("%s has unknown fields", m.Descriptor().FullName())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil {
			return true
		}
		if f.IsList() {
			for i := range v.List().Len() {
				known(t, v.List().Get(i).Message())
			}
		} else {
			known(t, v.Message())
		}
		return true
	})
}

// sends runs a tracer until done returns, and then once more to its end.
func sends(t testing.TB, tr *trace.Tracer, done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { tr.Run(ctx); close(ended) }()
	done()
	cancel()
	<-ended
}

func attributes(s *otlp.Span) map[string]any {
	out := map[string]any{}
	for _, kv := range s.Attributes {
		switch {
		case kv.Value.GetStringValue() != "":
			out[kv.Key] = kv.Value.GetStringValue()
		case kv.Value.GetBoolValue():
			out[kv.Key] = true
		default:
			out[kv.Key] = kv.Value.GetIntValue()
		}
	}
	return out
}

func TestTracer_TellsAReceiver(t *testing.T) {
	r := &receiver{t: t}
	srv := httptest.NewTLSServer(r)
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	tr := newTracer(t, trace.Config{Endpoint: srv.URL, Roots: roots, Header: http.Header{"Authorization": {"Bearer t"}}, Edge: trace.Edge{Name: "e-1", Region: "eu-west", Zone: "emea", Version: "1.2"}})
	c, _ := trace.ReadParent(given)
	sends(t, tr, func() {
		one := tr.Begin(time.Now(), &c, trace.Client)
		one.Carry("a=1")
		a := one.Attempt()
		a.End(trace.Span{Method: "GET", Region: "eu-west", Target: "10.0.0.1:80", Failure: "timeout"})
		one.Attempt().End(trace.Span{Method: "GET", Region: "eu-central", Relayed: true, Status: 200})
		one.End(trace.Span{Method: "GET", Protocol: "2", API: "orders", Route: "all", Plan: "gold", Class: "gold", Outcome: "ok", Region: "eu-central", Request: [16]byte{1, 2}, Status: 200, Attempts: 2, Relayed: true})
		one.End(trace.Span{}) // once is enough
		one.Attempt().End(trace.Span{})
	})
	if len(r.spans) != 3 || r.auth != "Bearer t" || r.from["service.name"] != "bailiwick-edge" || r.from["service.instance.id"] != "e-1" || r.from["bailiwick.region"] != "eu-west" || r.from["bailiwick.zone"] != "emea" || r.from["service.version"] != "1.2" {
		t.Fatalf("got %d spans of %v, by %q", len(r.spans), r.from, r.auth)
	}
	first, second, root := r.spans[0], r.spans[1], r.spans[2]
	for _, s := range r.spans {
		if hex.EncodeToString(s.TraceId) != given[3:35] || s.TraceState != "a=1" || s.Flags != 1 || s.EndTimeUnixNano < s.StartTimeUnixNano || time.Since(time.Unix(0, int64(s.StartTimeUnixNano))) > time.Minute {
			t.Errorf("not of the trace, or of another time: %v", s)
		}
	}
	if hex.EncodeToString(root.ParentSpanId) != given[36:52] || root.Kind != otlp.Span_SPAN_KIND_SERVER || root.Name != "GET orders/all" || root.Status.GetCode() != otlp.Status_STATUS_CODE_UNSET {
		t.Errorf("the request's: %v", root)
	}
	for _, s := range []*otlp.Span{first, second} {
		if !bytes.Equal(s.ParentSpanId, root.SpanId) || s.Kind != otlp.Span_SPAN_KIND_CLIENT || bytes.Equal(s.SpanId, root.SpanId) {
			t.Errorf("an attempt's: %v", s)
		}
	}
	if first.Name != "GET attempt" || second.Name != "GET relay" || first.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || second.Status.GetCode() != otlp.Status_STATUS_CODE_UNSET {
		t.Errorf("attempts: %v, %v", first, second)
	}
	for of, want := range map[*otlp.Span]map[string]any{
		first:  {"http.request.method": "GET", "bailiwick.target": "10.0.0.1:80", "error.type": "timeout", "bailiwick.attempt": int64(1), "bailiwick.served_region": "eu-west"},
		second: {"http.request.method": "GET", "bailiwick.relayed": true, "bailiwick.attempt": int64(2), "bailiwick.served_region": "eu-central", "http.response.status_code": int64(200)},
		root: {"http.request.method": "GET", "network.protocol.version": "2", "bailiwick.api": "orders", "bailiwick.route": "all", "bailiwick.plan": "gold", "bailiwick.class": "gold", "bailiwick.outcome": "ok",
			"bailiwick.served_region": "eu-central", "bailiwick.request_id": "01020000-0000-0000-0000-000000000000", "http.response.status_code": int64(200), "bailiwick.attempts": int64(2), "bailiwick.relayed": true},
	} {
		got := attributes(of)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %v, want %v", of.Name, k, got[k], v)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: got %v, want %v", of.Name, got, want)
		}
	}
	if s := tr.Stats(); s != (trace.Stats{Traces: 1, Sent: 3, Dropped: 1}) {
		t.Errorf("got %+v", s)
	}
}

func TestTracer_ChoosesByCallerThenByChance(t *testing.T) {
	c, _ := trace.ReadParent(given)
	no, _ := trace.ReadParent(given[:54] + "0")
	all, none := newTracer(t, trace.Config{Ratio: 1, PerSecond: 1000}), newTracer(t, trace.Config{PerSecond: 1000})
	now := time.Now()
	if all.Begin(now, &no, trace.Client) != nil || none.Begin(now, &trace.Context{}, trace.Client) != nil {
		t.Error("a request has a trace that its caller, or the ratio, did not want")
	}
	if all.Begin(now, &trace.Context{}, trace.Client) == nil || none.Begin(now, &c, trace.Client) == nil || none.Begin(now, &c, trace.Peer) == nil {
		t.Error("a request has no trace that its caller, or the ratio, wanted")
	}
	some := newTracer(t, trace.Config{Ratio: 0.25, PerSecond: 1_000_000})
	n := 0
	for range 20_000 {
		if some.Begin(now, &trace.Context{}, trace.Client) != nil {
			n++
		}
	}
	if n < 4_000 || n > 6_000 { // 5,000 ± 61: sixteen times that
		t.Errorf("%d of 20,000 at a quarter", n)
	}
}

// A client's word takes half of the traces at most; nobody's takes more than there are.
func TestTracer_HasABoundASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracer(t, trace.Config{Ratio: 1, PerSecond: 10})
		c, _ := trace.ReadParent(given)
		count := func(who trace.Asker, c *trace.Context) (n int) {
			for range 100 {
				if tr.Begin(time.Now(), c, who) != nil {
					n++
				}
			}
			return n
		}
		if n := count(trace.Client, &c); n != 5 {
			t.Errorf("clients get %d of 10", n)
		}
		if n := count(trace.Client, &trace.Context{}); n != 5 {
			t.Errorf("%d are left of 10", n)
		}
		if n := count(trace.Peer, &c); n != 0 {
			t.Errorf("%d beyond the bound", n)
		}
		time.Sleep(time.Second)
		if n := count(trace.Peer, &c); n != 10 {
			t.Errorf("%d in the next second, want 10", n)
		}
		if s := tr.Stats(); s.Traces != 20 || s.Open != 20 || s.Withheld != 380 {
			t.Errorf("got %+v", s)
		}
	})
}

func TestTracer_UnchosenCostsNothing(t *testing.T) {
	tr := newTracer(t, trace.Config{Ratio: 0.0000001})
	no, _ := trace.ReadParent(given[:54] + "0")
	now, none := time.Now(), trace.Context{}
	if n := testing.AllocsPerRun(1000, func() {
		tr.Begin(now, &none, trace.Client)
		tr.Begin(now, &no, trace.Client)
		trace.ReadParent(given)
	}); n >= 1 { // one in ten million may be chosen
		t.Errorf("%v allocations", n)
	}
}

// What finds no room is dropped at once, and counted: nobody waits for a receiver.
func TestTracer_DropsWhatFindsNoRoom(t *testing.T) {
	tr := newTracer(t, trace.Config{Ratio: 1, PerSecond: 1000, Queue: 7})
	for range 5 {
		one := tr.Begin(time.Now(), &trace.Context{}, trace.Client)
		one.Attempt().End(trace.Span{})
		one.End(trace.Span{})
	}
	if s := tr.Stats(); s.Dropped != 4 || s.Sent != 0 { // three whole traces have room
		t.Errorf("got %+v, want 4 spans dropped", s)
	}
}

// A receiver that is short is asked again; one that refuses, or takes a part, is believed.
func TestTracer_HeedsTheReceiver(t *testing.T) {
	for _, c := range []struct {
		what          string
		answer        func(n int) (int, *collector.ExportTraceServiceResponse)
		sent, dropped int64
		asked         int
	}{
		{"short at first", func(n int) (int, *collector.ExportTraceServiceResponse) {
			if n < 3 {
				return 503, nil
			}
			return 200, nil
		}, 1, 0, 3},
		{"always short", func(int) (int, *collector.ExportTraceServiceResponse) { return 429, nil }, 0, 1, 5},
		{"refuses", func(int) (int, *collector.ExportTraceServiceResponse) { return 400, nil }, 0, 1, 1},
		{"leads elsewhere", func(int) (int, *collector.ExportTraceServiceResponse) { return 307, nil }, 0, 1, 1},
		{"takes none of it", func(int) (int, *collector.ExportTraceServiceResponse) {
			return 200, &collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "no"}}
		}, 0, 1, 1},
	} {
		var log bytes.Buffer
		synctest.Test(t, func(t *testing.T) {
			r := &receiver{t: t, answer: c.answer}
			tr := newTracer(t, trace.Config{Ratio: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			trace.Answer(tr, func(req *http.Request) (*http.Response, error) {
				w := httptest.NewRecorder()
				r.ServeHTTP(w, req)
				return w.Result(), nil
			})
			sends(t, tr, func() {
				tr.Begin(time.Now(), &trace.Context{}, trace.Client).End(trace.Span{})
				time.Sleep(2 * time.Minute) // of the bubble's own clock
			})
			if s := tr.Stats(); s.Sent != c.sent || s.Dropped != c.dropped || r.asked != c.asked {
				t.Errorf("%s: asked %d times, %+v", c.what, r.asked, s)
			}
		})
		if n := strings.Count(log.String(), "traces not delivered"); n > 1 {
			t.Errorf("%s: %d lines of it", c.what, n)
		}
	}
}

// A receiver that hangs holds nobody up, and not the end of the edge either.
func TestTracer_EndsBesideAReceiverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		tr := newTracer(t, trace.Config{Ratio: 1})
		trace.Answer(tr, func(req *http.Request) (*http.Response, error) {
			asked.Add(1)
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		tr.Begin(time.Now(), &trace.Context{}, trace.Client).End(trace.Span{})
		began := time.Now()
		sends(t, tr, func() { time.Sleep(1500 * time.Millisecond) })
		if took := time.Since(began); took > 4*time.Second || asked.Load() == 0 {
			t.Errorf("it ended after %v, asked %d times", took, asked.Load())
		}
	})
}

func TestNew_SaysWhatIsWrong(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct {
		endpoint string
		ratio    float64
		says     string
	}{
		{"", 0, "required"}, {"collector:4318", 0, "no URL"}, {"https://user:secret@collector", 0, "no URL"}, {"https://collector/v1/traces?token=secret", 0, "no URL"},
		{"http://collector:4318", 0, "without TLS"}, {"http://192.0.2.1:4318", 0, "without TLS"}, {"https://collector", 1.5, "ratio"}, {"https://collector", -1, "ratio"},
		{"https://collector", 1, ""}, {"http://127.0.0.1:4318", 0.1, ""}, {"http://[::1]:4318/other", 0, ""}, {"http://localhost", 0, ""},
	} {
		_, err := trace.New(trace.Config{Endpoint: c.endpoint, Ratio: c.ratio, Logger: log})
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q at %v: %v, want %q", c.endpoint, c.ratio, err, c.says)
		}
	}
}
