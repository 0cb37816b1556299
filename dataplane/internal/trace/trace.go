// Package trace owns the edge's traces: which requests have one (W3C Trace Context), what is said of them, and how that gets to a
// collector (OTLP over HTTP, protobuf).
//
// A span has names of the catalog, numbers, and words of closed lists, each a field of Span: there is no place for a path, query,
// header, address or customer. A request never waits for it: what finds no room, no collector or no place under the bound a
// second is dropped, and counted; a request that has no trace costs no memory. It decides nothing about requests, and nothing
// survives a crash. Begin and all that a Trace offers may be called by any number of goroutines at once; Run is called once.
package trace

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Limits where Config says nothing.
const (
	DefaultPerSecond = 100  // traces begun in a second
	defaultQueue     = 4096 // spans that wait to be sent
	mostAttempts     = 16   // spans of attempts in one trace; further ones are not kept
)

// Config of a Tracer. Endpoint and Logger are required.
type Config struct {
	Endpoint  string         // URL of an OTLP/HTTP receiver; without a path /v1/traces; http only at loopback
	Ratio     float64        // of requests whose caller has not decided, 0 to 1
	PerSecond int            // traces begun in a second, of which callers' decisions take half at most; 0: DefaultPerSecond
	Queue     int            // spans that wait; 0: 4096
	Header    http.Header    // for the receiver: what it knows this edge by
	Roots     *x509.CertPool // trusted for the receiver; nil: the system's
	Edge      Edge
	Logger    *slog.Logger
}

// Edge is who traces.
type Edge struct{ Name, Region, Zone, Version string }

// Tracer begins traces and sends them.
type Tracer struct {
	cfg       Config
	client    *http.Client
	start     time.Time
	below     uint64 // of a random number: the ratio
	gap       time.Duration
	all       bucket
	clients   bucket
	begun     atomic.Int64
	withheld  atomic.Int64
	ended     atomic.Int64
	sent      atomic.Int64
	dropped   atomic.Int64
	failures  atomic.Int64
	wake      chan struct{}
	mu        sync.Mutex // covers the rest; held for appending spans
	waiting   []span
	spare     []span
	complains bool // Run's alone
}

// Stats are counts since the start.
type Stats struct {
	Traces   int64 // begun
	Withheld int64 // not begun, though chosen: beyond the bound a second
	Sent     int64 // spans that the receiver took
	Dropped  int64 // spans that found no room, or that the receiver did not take
	Failures int64 // sendings that failed
	Open     int64 // traces of requests that are under way now
}

// New makes a tracer; nothing is sent before Run.
func New(cfg Config) (*Tracer, error) {
	u, err := url.Parse(cfg.Endpoint)
	switch {
	case cfg.Endpoint == "" || cfg.Logger == nil:
		return nil, errors.New("traces: Endpoint and Logger are required")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("traces: the endpoint is no URL such as https://collector.example:4318/v1/traces; what it knows this edge by goes into headers")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("traces: %s is reached without TLS; use https, or a collector at a loopback address", u.Host)
	case !(cfg.Ratio >= 0 && cfg.Ratio <= 1):
		return nil, fmt.Errorf("traces: ratio %v is outside 0 to 1", cfg.Ratio)
	case cfg.PerSecond < 0 || cfg.PerSecond > 1_000_000 || cfg.Queue < 0:
		return nil, fmt.Errorf("traces: %d a second, in a queue of %d spans; at most 1000000 a second", cfg.PerSecond, cfg.Queue)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	cfg.Endpoint = u.String()
	if cfg.PerSecond == 0 {
		cfg.PerSecond = DefaultPerSecond
	}
	if cfg.Queue == 0 {
		cfg.Queue = defaultQueue
	}
	t := &Tracer{cfg: cfg, start: time.Now(), gap: time.Second / time.Duration(cfg.PerSecond), wake: make(chan struct{}, 1), client: newClient(cfg.Roots)}
	if t.below = math.MaxUint64; cfg.Ratio < 1 {
		t.below = uint64(cfg.Ratio * (1 << 63) * 2)
	}
	return t, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// Stats of no tracer are none.
func (t *Tracer) Stats() Stats {
	if t == nil {
		return Stats{}
	}
	return Stats{t.begun.Load(), t.withheld.Load(), t.sent.Load(), t.dropped.Load(), t.failures.Load(), t.begun.Load() - t.ended.Load()}
}

// Asker is who brought a request.
type Asker bool

// Whose decision a context carries: a client's can be forged, and takes no more than half of the traces.
const (
	Client Asker = false
	Peer   Asker = true // another edge of the zone
)

// Begin is the trace of a request that came at a time with a context (zero: none), nil if it has none: its caller decided so, or
// chance did, or there are enough in this second.
func (t *Tracer) Begin(at time.Time, c *Context, who Asker) *Trace {
	if c.Given() {
		if !c.sampled() {
			return nil
		}
	} else if t.below == 0 || t.below != math.MaxUint64 && rand.Uint64() >= t.below {
		return nil
	}
	now := at.Sub(t.start)
	if c.Given() && who == Client && !t.clients.take(now, 2*t.gap) || !t.all.take(now, t.gap) {
		t.withheld.Add(1)
		return nil
	}
	t.begun.Add(1)
	tr := &Trace{t: t, context: *c, id: newID(), began: at}
	if !c.Given() {
		tr.context = Context{flags: flagSampled}
		for tr.context.trace == [16]byte{} {
			a, b := newID(), newID()
			copy(tr.context.trace[:8], a[:])
			copy(tr.context.trace[8:], b[:])
		}
	}
	return tr
}

func newID() (id [8]byte) {
	for id == [8]byte{} {
		n := rand.Uint64()
		for i := range id {
			id[i] = byte(n >> (8 * i))
		}
	}
	return id
}

// bucket lets one through each gap, and as many at once as come in a second (GCRA).
type bucket struct{ full atomic.Int64 } // when it is empty again, since the tracer's start

func (b *bucket) take(now, gap time.Duration) bool {
	for {
		was := b.full.Load()
		at := max(was, int64(now))
		if at+int64(gap)-int64(now) > int64(max(time.Second, gap)) {
			return false
		}
		if b.full.CompareAndSwap(was, at+int64(gap)) {
			return true
		}
	}
}

// Trace is that of one request at this edge: the request's own span, and one for each attempt.
type Trace struct {
	t       *Tracer
	context Context // of the request's span: its parent is the caller's
	id      [8]byte // of the request's span
	began   time.Time

	mu       sync.Mutex // covers the rest
	attempts []span
	ended    bool
}

// Carry sets tracestate, as ReadState gave it. Call it before all else.
func (t *Trace) Carry(state string) { t.context.state = state }

// State is tracestate, as it is sent on.
func (t *Trace) State() string { return t.context.state }

// Attempt is one at an upstream or another region.
type Attempt struct {
	t     *Trace
	id    [8]byte
	began time.Time
}

// Attempt begins one, nil of no trace.
func (t *Trace) Attempt() *Attempt {
	if t == nil {
		return nil
	}
	return &Attempt{t, newID(), time.Now()}
}

// Parent is traceparent for whoever is asked.
func (a *Attempt) Parent() string { return a.t.context.child(a.id) }

// End says what became of it.
func (a *Attempt) End(s Span) {
	if a == nil {
		return
	}
	t := a.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || len(t.attempts) == mostAttempts {
		t.t.dropped.Add(1)
		return
	}
	s.Number = len(t.attempts) + 1
	t.attempts = append(t.attempts, span{Span: s, context: t.context, id: a.id, parent: t.id, kind: kindClient, began: a.began, took: time.Since(a.began)})
}

// End says what became of the request, and leaves the trace to be sent. Further calls do nothing.
func (t *Trace) End(s Span) {
	if t == nil {
		return
	}
	t.mu.Lock()
	spans, ended := t.attempts, t.ended
	t.attempts, t.ended = nil, true
	t.mu.Unlock()
	if ended {
		return
	}
	defer t.t.ended.Add(1)
	t.t.put(append(spans, span{Span: s, context: t.context, id: t.id, parent: t.context.parent, kind: kindServer, began: t.began, took: time.Since(t.began)}))
}

// Drop ends a trace of which nothing is to be said.
func (t *Trace) Drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.t.ended.Add(1)
	}
	t.attempts, t.ended = nil, true
}

// put leaves spans to Run. It waits for nobody.
func (t *Tracer) put(spans []span) {
	t.mu.Lock()
	room := t.cfg.Queue - len(t.waiting)
	if len(spans) > room { // half a trace says little
		t.mu.Unlock()
		t.dropped.Add(int64(len(spans)))
		return
	}
	t.waiting = append(t.waiting, spans...)
	wake := len(t.waiting) > t.cfg.Queue/2
	t.mu.Unlock()
	if wake {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}
