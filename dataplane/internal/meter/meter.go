// Package meter owns the making of usage rows: exactly one final row for each
// request that was begun, and interim rows for those that go on for long.
//
// It never decides whether a request is admitted or what it costs, and keeps
// nothing on disk: a row is safe once the Recorder took it. A crash before that
// leaves the request unbilled, never billed twice. A Meter may be used from any
// number of goroutines; a Request belongs to the one that serves it, except its
// Add methods, which any may call.
package meter

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/usage"
)

// Recorder keeps rows. *spool.Spool is one.
type Recorder interface {
	Append(*usage.Row) error
}

// Config describes a Meter. Zero values mean the default in the comment.
type Config struct {
	Recorder Recorder         // required
	Interim  time.Duration    // a request that lasts gets an interim row this often; 0: 15 s
	Tick     time.Duration    // how often they are looked for; 0: Interim/15
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: none
}

// Meter makes rows.
type Meter struct {
	cfg    Config
	pool   sync.Pool
	shards [shards]shard
	next   atomic.Uint32 // spreads requests over shards

	begun, finished, aborted, interim, failed atomic.Int64
}

// Stats are counters since New.
type Stats struct {
	Begun    int64
	Finished int64 // aborted ones included
	Aborted  int64 // by Close, without a Finish
	Interim  int64 // rows
	Failed   int64 // rows that the Recorder refused: usage that is lost
}

// New makes a Meter. Run must run for interim rows.
func New(cfg Config) (*Meter, error) {
	if cfg.Recorder == nil {
		return nil, errors.New("meter config: Recorder is required")
	}
	if cfg.Interim < 0 || cfg.Tick < 0 {
		return nil, errors.New("meter config: a duration is negative")
	}
	if cfg.Interim == 0 {
		cfg.Interim = 15 * time.Second
	}
	if cfg.Tick == 0 {
		cfg.Tick = max(cfg.Interim/15, time.Millisecond)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Meter{cfg: cfg}
	m.pool.New = func() any { return new(Request) }
	for i := range m.shards {
		m.shards[i].init()
	}
	return m, nil
}

// Stats may be called at any time.
func (m *Meter) Stats() Stats {
	return Stats{m.begun.Load(), m.finished.Load(), m.aborted.Load(), m.interim.Load(), m.failed.Load()}
}

// Account is what a request was admitted under. The strings are kept until Close.
type Account struct {
	Customer, Subscription, Plan string
	PlanRev                      uint64
	Product, API, Route          string
}

// Final is how a request ended.
type Final struct {
	Outcome usage.Outcome
	Served  string // region whose upstream answered; "": as Answered said, or none
	Units   int64
}

// Request is one request on its way. The order of calls is
//
//	r := m.Begin(account)
//	defer r.Close()
//	r.AddIn(…), r.Answered(…), r.AddOut(…)
//	r.Finish(…) // before the Write that completes the answer
type Request struct {
	m     *Meter
	shard *shard
	// In shard's list, ordered by due; under shard.mu.
	prev, next *Request
	due        time.Time
	listed     bool

	in, out atomic.Int64 // bytes of the bodies so far

	// mu lets Run write interim rows beside the goroutine that serves.
	mu              sync.Mutex
	generation      uint64 // of this struct's reuse
	account         Account
	id              [16]byte
	start           time.Time
	served          string
	outcome         usage.Outcome // so far; 0: no answer yet
	finished        bool
	inRows, outRows int64     // bytes already in rows
	row             usage.Row // scratch: a row on the stack would escape into the Recorder
}

// Begin starts a request that will be counted, whatever becomes of it.
func (m *Meter) Begin(a *Account) *Request {
	r := m.pool.Get().(*Request)
	now := m.cfg.Now()
	r.mu.Lock()
	r.m, r.account, r.start = m, *a, now
	r.id = NewID(now)
	r.served, r.outcome, r.finished, r.inRows, r.outRows = "", 0, false, 0, 0
	r.in.Store(0)
	r.out.Store(0)
	r.mu.Unlock()
	m.begun.Add(1)
	r.shard = &m.shards[m.next.Add(1)%shards]
	r.shard.push(r, now.Add(m.cfg.Interim))
	return r
}

// ID is the request's, a UUID of version 7.
func (r *Request) ID() [16]byte { return r.id }

// AddIn and AddOut count bytes of the bodies as they pass.
func (r *Request) AddIn(n int64)  { r.in.Add(n) }
func (r *Request) AddOut(n int64) { r.out.Add(n) }

// Answered says whose upstream answers, and what it looks like from the header.
// Interim rows are written from here on: before it nothing was served.
func (r *Request) Answered(served string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served, r.outcome = served, usage.OutcomeOf(status)
}

// Finish writes the final row. Only the first call does anything. When it
// returns nil the row survives a kill of the process; an error says that the
// request will not be counted, for the caller to decide what that means.
func (r *Request) Finish(f Final) error {
	return r.finish(f, false)
}

func (r *Request) finish(f Final, aborted bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.finished {
		return nil
	}
	r.finished = true
	m := r.m
	m.finished.Add(1)
	if aborted {
		m.aborted.Add(1)
	}
	if f.Served == "" {
		f.Served = r.served
	}
	err := r.append(f.Outcome, f.Served, 1, f.Units)
	if err != nil {
		m.failed.Add(1)
	}
	return err
}

// append writes a row with the bytes since the one before. Under mu.
func (r *Request) append(o usage.Outcome, served string, requests, units int64) error {
	in, out := r.in.Load(), r.out.Load()
	a := &r.account
	r.row = usage.Row{RequestID: r.id, Customer: a.Customer, Subscription: a.Subscription, Plan: a.Plan, PlanRev: a.PlanRev,
		Product: a.Product, API: a.API, Route: a.Route, Outcome: o, ServedRegion: served, Requests: requests, Units: units,
		BytesIn: in - r.inRows, BytesOut: out - r.outRows, LatencyUS: max(0, r.m.cfg.Now().Sub(r.start).Microseconds())}
	if err := r.m.cfg.Recorder.Append(&r.row); err != nil {
		return err
	}
	r.inRows, r.outRows = in, out
	return nil
}

// Close ends the request as aborted, without units, if nobody finished it: the
// client went away, the upstream died, a handler panicked. The Request must not
// be used after it.
func (r *Request) Close() {
	if err := r.finish(Final{Outcome: usage.OutcomeAborted}, true); err != nil {
		r.m.cfg.Logger.Error("usage of an aborted request is lost", "error", err)
	}
	r.shard.remove(r)
	r.mu.Lock()
	r.generation++
	m := r.m
	r.account = Account{}
	r.mu.Unlock()
	m.pool.Put(r)
}

// Run writes interim rows until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	t := time.NewTicker(m.cfg.Tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			m.sweep(m.cfg.Now())
		}
	}
}

func (m *Meter) sweep(now time.Time) {
	var due []late
	for i := range m.shards {
		due = m.shards[i].late(due[:0], now, m.cfg.Interim)
		for _, l := range due {
			if err := l.r.interim(l.generation); err != nil {
				m.failed.Add(1)
				m.cfg.Logger.Error("interim usage is not kept; the next row carries it", "error", err)
			}
		}
	}
}

// interim writes the bytes so far, if it is still the request that was due.
func (r *Request) interim(generation uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.generation != generation || r.finished || r.outcome == 0 || r.in.Load() == r.inRows && r.out.Load() == r.outRows {
		return nil
	}
	if err := r.append(r.outcome, r.served, 0, 0); err != nil {
		return err
	}
	r.m.interim.Add(1)
	return nil
}

const shards = 16

// shard is a list of requests in the order in which their interim rows are due.
type shard struct {
	mu   sync.Mutex // covers root and the links of all in the list
	root Request    // a ring: root.next is due first
	_    [64]byte
}

type late struct {
	r          *Request
	generation uint64
}

func (s *shard) init() { s.root.next, s.root.prev = &s.root, &s.root }

// push takes a due time that is not before those already there, or nearly so:
// a late row a moment later harms nobody.
func (s *shard) push(r *Request, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link(r, due)
}

func (s *shard) link(r *Request, due time.Time) {
	r.due, r.listed = due, true
	r.prev, r.next = s.root.prev, &s.root
	r.prev.next, s.root.prev = r, r
}

func (s *shard) remove(r *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.listed {
		r.prev.next, r.next.prev = r.next, r.prev
		r.prev, r.next, r.listed = nil, nil, false
	}
}

// late takes those that are due, and puts them back at the end.
func (s *shard) late(out []late, now time.Time, every time.Duration) []late {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := s.root.next; r != &s.root && !r.due.After(now); r = s.root.next {
		// generation is changed only after remove, so it stands still here.
		out = append(out, late{r, r.generation})
		s.root.next, r.next.prev = r.next, &s.root
		s.link(r, now.Add(every))
	}
	return out
}

// NewID is a UUID of version 7, for requests that are not counted too: 48 bits of milliseconds, then randomness. The
// runtime's generator is seeded by the system and costs nanoseconds.
func NewID(now time.Time) (id [16]byte) {
	ms := uint64(now.UnixMilli())
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6], id[7] = 0x70|byte(a)&0x0f, byte(a>>8)
	for i := range 8 {
		id[8+i] = byte(b >> (8 * i))
	}
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// IDText is the usual text of an id.
func IDText(id [16]byte) string {
	const hex = "0123456789abcdef"
	b := make([]byte, 0, 36)
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hex[c>>4], hex[c&15])
	}
	return string(b)
}
