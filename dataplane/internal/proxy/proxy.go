// Package proxy owns the request path of an edge: what comes in over HTTP/1.1, HTTP/2 and HTTP/3, the one
// order in which it is judged, sent on, counted and answered, and the connections to this region's upstreams.
//
// It never decides who may (gate does), never dials another region (relay does) and never calls the control
// plane. A request that must not be repeated is never sent again once a byte of it may have reached an
// upstream. Every finished request with a valid key gets exactly one row, in the spool before the bytes that
// complete the answer leave. Nothing of it survives a crash but those rows. A Proxy serves any number of
// requests at once.
package proxy

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/accesslog"
	"bailiwick/dataplane/internal/attest"
	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/cache"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/trace"
	"bailiwick/shared/revision"
	"bailiwick/shared/usage"
)

// Meter keeps usage rows. Append returns when the row survives the end of this process; Ready says whether it would wait for
// nothing now; Healthy says why new requests could not be counted, nil if they can.
type Meter interface {
	Append(row *usage.Row) error
	Ready() bool
	Healthy() error
}

// Relayer sends a request to another region.
type Relayer interface {
	Do(ctx context.Context, f relay.Forward) (*http.Response, error)
}

// What to do when usage cannot be recorded.
const (
	RefuseNew     = "refuse-new"     // answer 503: no request is served that cannot be counted
	ServeUnbilled = "serve-unbilled" // serve, and count how many were not
)

// Config of a Proxy. Fields without a default are required.
type Config struct {
	Region     string // of this edge
	Tables     *policy.Holder
	Gate       *gate.Gate
	Monitor    *failover.Monitor
	Grants     *failover.Grants // nil: nothing is ever relayed
	Relay      Relayer          // nil: nothing is ever relayed
	Upstreams  *Upstreams
	Meter      Meter
	Logger     *slog.Logger
	Cache      *cache.Cache                      // of answers, where routes ask for it; nil: none. Run renews what is stale in it
	Traces     *trace.Tracer                     // of requests, to a collector; nil: none
	Access     *accesslog.Log                    // of requests, for people; nil: none
	Beat       *beat.Beat                        // is told of pauses; nil: nobody is
	Pseudonyms Pseudonyms                        // of client addresses, in rows; nil: none are kept
	Signer     Signer                            // of who asks, for upstreams that want it signed; nil: nothing is
	TableAge   func(now time.Time) time.Duration // since the control plane last confirmed the table; nil: always fresh

	OnSpoolError    string        // "": RefuseNew
	MaxRequestBytes int64         // 0: 10 MiB, where the route does not say
	Timeout         time.Duration // 0: 30 s to the headers of the answer, and between bytes after, where the route does not say
	HedgeAfter      time.Duration // 0: 100 ms; a repeatable request waits at least so long before a second try beside the first
	InterimEvery    time.Duration // 0: 15 s; how often a long answer writes a row
	MaxInFlight     int           // requests of clients under way, of which each class of plans may take its share; 0: priority.DefaultSeats
	MaxStreams      int           // connections that last: WebSockets, and those of APIs that are tcp; 0: DefaultStreams
	UploadRate      int64         // bytes a second that a client brings of a body, at least; 0: DefaultUploadRate
	UploadWindow    time.Duration // 0: DefaultUploadWindow; of waiting for it, over which that is judged
	UpstreamDrain   time.Duration // 0: DefaultDrain; for how long what lasts goes on at a target that was taken out of the catalog
	QuotaGrace      time.Duration // for which a connection whose units are used up waits for more; nothing passes meanwhile. 0: 5 s
}

// Signer is what *attest.Signer does.
type Signer interface {
	Token(attest.Caller, time.Time) ([]string, error)
	Keys(time.Time) ([]byte, error)
}

// Pseudonyms is what *pseudonym.Keys does.
type Pseudonyms interface {
	Of(address string, now time.Time) uint64
}

// Proxy is the handler for clients (ServeHTTP) and for relays from other edges (ServeRelayed).
type Proxy struct {
	cfg    Config
	start  time.Time
	router *failover.Router // for clients
	local  *failover.Router // for relays: this region's upstreams and nothing else

	counts   *counts
	gratis   gratis
	budgets  budgets
	seats    *priority.Seats
	lives    lives
	turned   atomic.Pointer[revision.Sum]
	alt      atomic.Pointer[string] // where HTTP/3 is, as Alt-Svc has it
	spaces   spaces
	unbilled atomic.Int64
	replays  atomic.Int64   // bytes of bodies kept to be sent again
	copies   atomic.Int64   // bytes of answers that pass and are to be kept
	stale    chan renewal   // what Run is to ask anew
	held     sync.WaitGroup // who waits for upstreams to let go of what was taken back
}

// New makes a Proxy.
func New(cfg Config) (*Proxy, error) {
	if cfg.Region == "" || cfg.Tables == nil || cfg.Gate == nil || cfg.Monitor == nil || cfg.Upstreams == nil || cfg.Meter == nil || cfg.Logger == nil {
		return nil, errors.New("proxy: Region, Tables, Gate, Monitor, Upstreams, Meter and Logger are required")
	}
	if (cfg.Grants == nil) != (cfg.Relay == nil) {
		return nil, errors.New("proxy: Grants and Relay go together")
	}
	switch cfg.OnSpoolError {
	case "":
		cfg.OnSpoolError = RefuseNew
	case RefuseNew, ServeUnbilled:
	default:
		return nil, errors.New("proxy: OnSpoolError is " + RefuseNew + " or " + ServeUnbilled)
	}
	if cfg.Beat == nil {
		cfg.Beat = beat.New()
	}
	if cfg.MaxRequestBytes <= 0 {
		cfg.MaxRequestBytes = 10 << 20
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.HedgeAfter <= 0 {
		cfg.HedgeAfter = 100 * time.Millisecond
	}
	if cfg.InterimEvery <= 0 {
		cfg.InterimEvery = 15 * time.Second
	}
	if cfg.QuotaGrace <= 0 {
		cfg.QuotaGrace = 5 * time.Second
	}
	if cfg.UploadRate <= 0 {
		cfg.UploadRate = DefaultUploadRate
	}
	if cfg.UploadWindow <= 0 {
		cfg.UploadWindow = DefaultUploadWindow
	}
	if cfg.UpstreamDrain <= 0 {
		cfg.UpstreamDrain = DefaultDrain
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = DefaultStreams
	}
	p := &Proxy{cfg: cfg, start: time.Now(), counts: newCounts(), seats: priority.NewSeats(cfg.MaxInFlight),
		router: failover.NewRouter(cfg.Monitor, cfg.Grants, cfg.Region), local: failover.NewRouter(cfg.Monitor, nil, cfg.Region)}
	p.gratis.seed = maphash.MakeSeed()
	p.stale = make(chan renewal, renewalsWaiting)
	p.spaces.init()
	return p, nil
}

// Unbilled is how many requests were served that could not be counted (ServeUnbilled only).
func (p *Proxy) Unbilled() int64 { return p.unbilled.Load() }

// ReplayBytes is how much of requests' bodies is kept now to be sent again, at most 64 MiB.
func (p *Proxy) ReplayBytes() int64 { return p.replays.Load() }

// budget keeps retries from becoming a storm: a fifth of the requests, and ten a second, with room for a
// burst, since an upstream that dies takes all its requests in flight with it at once.
type budget struct {
	zone, name       string       // of its API
	tokens, refilled atomic.Int64 // thousandths; ns since the proxy's start
	now, before      tally
	flow             priority.Limiter // of the API's upstreams in this region
}

const (
	budgetRoom    = 1000 * 1000
	budgetRequest = 200       // a request earns a fifth of a retry
	budgetSecond  = 10 * 1000 // and a second earns ten
)

// budgets are those of APIs by their ids (two zones may use one name), copied when one is added: a request finds its own without a lock and without
// memory.
type budgets struct {
	mu   sync.Mutex // covers writing of m, and shed
	m    atomic.Pointer[map[string]*budget]
	shed [priority.Platinum + 1]int64 // of those that are forgotten, by class
}

func (b *budgets) all() map[string]*budget {
	if m := b.m.Load(); m != nil {
		return *m
	}
	return nil
}

func (p *Proxy) budget(api *policy.API) *budget {
	id := api.ID()
	if b := p.budgets.all()[id]; b != nil {
		return b
	}
	p.budgets.mu.Lock()
	defer p.budgets.mu.Unlock()
	old := p.budgets.all()
	if b := old[id]; b != nil {
		return b
	}
	m, b := maps.Clone(old), &budget{zone: api.Zone, name: api.Name}
	b.tokens.Store(budgetRoom)
	if m == nil {
		m = map[string]*budget{}
	}
	m[id] = b
	p.budgets.m.Store(&m)
	return b
}

// forget drops the budgets of APIs that a table does not have, but those with requests under way or waiting: what is bounded stays so
// if the API comes back.
func (b *budgets) forget(t *policy.Table) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := maps.Clone(b.all())
	for id, old := range m {
		if t.APIOf(old.zone, old.name) != nil {
			continue
		}
		s := old.flow.Stats()
		if s.Under > 0 || s.Waiting > 0 {
			continue
		}
		for c, n := range s.Shed {
			b.shed[c] += n
		}
		delete(m, id)
	}
	b.m.Store(&m)
}

func (b *budget) earn() {
	if b.tokens.Load() < budgetRoom {
		b.tokens.Add(budgetRequest)
	}
}

func (b *budget) take(now time.Duration) bool {
	if last := b.refilled.Load(); now-time.Duration(last) > time.Second && b.refilled.CompareAndSwap(last, int64(now)) {
		add := int64((now - time.Duration(last)).Seconds() * budgetSecond)
		b.tokens.Add(max(0, min(add, budgetRoom-b.tokens.Load())))
	}
	for {
		n := b.tokens.Load()
		if n < 1000 {
			return false
		}
		if b.tokens.CompareAndSwap(n, n-1000) {
			return true
		}
	}
}

// newID is a UUIDv7 (RFC 9562): ordered by time, so that ids found in two logs sort, and random beyond that.
func newID(now time.Time) (id [16]byte) {
	ms := uint64(now.UnixMilli())
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6], id[7] = 0x70|byte(a>>8)&0x0f, byte(a)
	for i := range 8 {
		id[8+i] = byte(b >> (56 - 8*i))
	}
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// appendID writes an id as text, in the usual form of a UUID.
func appendID(b []byte, id [16]byte) []byte {
	const digits = "0123456789abcdef"
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}
