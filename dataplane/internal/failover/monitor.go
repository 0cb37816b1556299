package failover

import (
	"context"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/table"
)

// Monitor knows the health of this region's upstreams.
type Monitor struct {
	cfg   Config
	start time.Time

	mu      sync.RWMutex // covers targets
	targets map[targetKey]*Target

	added  chan struct{}  // wakes Run: a target was asked for that has no prober yet
	probes sync.WaitGroup // probes under way
}

type targetKey struct{ zone, api, url string }

// New makes a Monitor; Run it.
func New(cfg Config) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Monitor{cfg: cfg, start: time.Now(), targets: map[targetKey]*Target{}, added: make(chan struct{}, 1)}, nil
}

func (m *Monitor) now() time.Duration { return time.Since(m.start) }

// Target is one upstream of this region, as one API uses it.
type Target struct {
	URL  string   // base URL, no trailing slash
	Base *url.URL // URL parsed; nil if it is none, and then nothing can be sent
	API  string

	m        *Monitor
	health   string // URL of the health page
	interval time.Duration
	kick     chan struct{} // wakes the prober

	outstanding atomic.Int64
	busySince   atomic.Int64 // when outstanding rose from 0
	lastByte    atomic.Int64 // the last time anything came back
	ewma        atomic.Int64 // of the time to response headers, ns; 0 = none yet

	mu     sync.Mutex // covers state and flight; held for no I/O
	state  State
	flight *flight
}

// flight is one probe under way: everybody who wants to know waits for the same one.
type flight struct {
	began time.Duration
	done  chan struct{}
	err   error
}

// target finds or makes the target.
func (m *Monitor) target(api *policy.API, text string) *Target {
	key := targetKey{api.Zone, api.Name, text}
	m.mu.RLock()
	t := m.targets[key]
	m.mu.RUnlock()
	if t != nil {
		return t
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t = m.targets[key]; t == nil {
		t = m.make(&api.API, text)
		m.targets[key] = t
		select {
		case m.added <- struct{}{}:
		default:
		}
	}
	return t
}

func (m *Monitor) make(api *table.API, text string) *Target {
	base := strings.TrimRight(text, "/")
	parsed, err := url.Parse(base)
	if err != nil || parsed.Host == "" {
		parsed = nil
	}
	path := api.HealthPath
	if path == "" {
		path = "/healthz"
	}
	interval := api.HealthInterval
	if interval <= 0 {
		interval = m.cfg.ProbeInterval
	}
	t := &Target{URL: base, Base: parsed, API: api.Name, m: m, health: base + "/" + strings.TrimLeft(path, "/"), interval: interval, kick: make(chan struct{}, 1)}
	t.lastByte.Store(-int64(time.Hour))
	return t
}

// Run probes until ctx ends: each target of the table by its interval, faster while one is in doubt.
func (m *Monitor) Run(ctx context.Context) error {
	type prober struct{ stop context.CancelFunc }
	running := map[targetKey]prober{}
	var wg sync.WaitGroup
	defer func() {
		for _, p := range running {
			p.stop()
		}
		wg.Wait()
		m.probes.Wait()
	}()
	for {
		changed := m.cfg.Tables.Changed()
		table := m.cfg.Tables.Load()
		want := map[targetKey]*policy.API{}
		for _, host := range table.Hosts() {
			api := table.API(host)
			for _, text := range api.Targets {
				want[targetKey{api.Zone, api.Name, text}] = api
			}
		}
		m.mu.Lock()
		for key, t := range m.targets {
			// APIs of other zones are known here only once a relay for them has come.
			api := table.APIOf(key.zone, key.api)
			if api != nil && slices.Contains(api.Targets, key.url) {
				want[key] = api
			}
			// A changed health page is a new target: what was learnt of the old one was learnt from it.
			if want[key] == nil || m.make(&want[key].API, key.url).health != t.health {
				delete(m.targets, key)
				if p, ok := running[key]; ok {
					p.stop()
					delete(running, key)
				}
			}
		}
		m.mu.Unlock()
		for key, api := range want {
			if _, ok := running[key]; !ok {
				t := m.target(api, key.url)
				pctx, stop := context.WithCancel(ctx)
				running[key] = prober{stop}
				wg.Go(func() { t.probe(pctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-m.added:
		}
	}
}

// probe is the prober of one target.
func (t *Target) probe(ctx context.Context) {
	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-t.kick:
			timer.Stop()
			wait = 0
		}
		now := t.m.now()
		state := t.State()
		// Traffic that is answered is a better probe than ours.
		if state.Phase == Healthy && state.Fails == 0 && now-time.Duration(t.lastByte.Load()) < t.interval {
			wait = t.interval
			continue
		}
		f := t.fly()
		select {
		case <-ctx.Done():
			return
		case <-f.done:
		}
		switch t.State().Phase {
		case Healthy:
			wait = t.interval
		default:
			// 100 ms at first, then slower, but often enough that the way back fits in 15 s.
			wait = min(max(100*time.Millisecond, wait*3/2), t.interval, 500*time.Millisecond)
		}
	}
}

// fly joins the probe under way or starts one.
func (t *Target) fly() *flight {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flight != nil {
		return t.flight
	}
	f := &flight{began: t.m.now(), done: make(chan struct{})}
	t.flight = f
	t.m.probes.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), t.m.cfg.ProbeTimeout)
		defer cancel()
		f.err = t.m.cfg.Prober.Probe(ctx, t.health)
		if f.err == nil {
			t.heard()
		}
		t.mu.Lock()
		t.flight = nil
		t.mu.Unlock()
		if f.err == nil {
			t.note(ProbeGood)
		} else {
			t.note(ProbeBad)
		}
		close(f.done)
	})
	return f
}

// alive asks the target for a sign of life and waits for at most wait since the question was first put.
func (t *Target) alive(ctx context.Context, wait time.Duration) bool {
	f := t.fly()
	left := wait - (t.m.now() - f.began)
	if left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-f.done:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	select {
	case <-f.done:
		return f.err == nil
	default:
	}
	if ctx.Err() == nil {
		t.note(NotAlive)
	}
	return false
}

func (t *Target) heard() { t.lastByte.Store(int64(t.m.now())) }

// note takes an event into the state, and tells people when the phase changes.
func (t *Target) note(e Event) {
	now := t.m.now()
	t.mu.Lock()
	old := t.state
	t.state = Step(old, e, now, t.m.cfg.timing())
	next := t.state
	t.mu.Unlock()
	if next.Phase == old.Phase {
		return
	}
	t.m.cfg.Logger.Info("upstream health changed", "api", t.API, "target", t.URL, "from", old.Phase.String(), "to", next.Phase.String(), "fails", next.Fails)
	if next.Phase != Healthy {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// State is the present state.
func (t *Target) State() State {
	now := t.m.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = Step(t.state, Tick, now, t.m.cfg.timing())
	return t.state
}

// takes says whether a new request may go here as a first choice.
func (t *Target) takes(now time.Duration) bool {
	t.mu.Lock()
	t.state = Step(t.state, Tick, now, t.m.cfg.timing())
	s := t.state
	t.mu.Unlock()
	switch share := s.Share(now, t.m.cfg.timing()); share {
	case 0, 1:
		return share == 1
	default:
		return rand.Float64() < share
	}
}

// usable says whether it may be tried when nothing better is left.
func (t *Target) usable() bool {
	s := t.State()
	return s.Phase != Ejected || s.Good
}

// silence is for how long something has been asked of the target and nothing came back.
func (t *Target) silence(now time.Duration) time.Duration {
	if t.outstanding.Load() <= 0 {
		return 0
	}
	return now - time.Duration(max(t.lastByte.Load(), t.busySince.Load()))
}

// stalled is a silence that is long for this target: new requests should not join the queue.
func (t *Target) stalled(now, routeTimeout time.Duration) bool {
	limit := t.StallAfter(t.m.cfg.StallFloor)
	if routeTimeout > 0 {
		limit = min(limit, routeTimeout)
	}
	return t.silence(now) > limit
}

// StallAfter is how long the first byte of an answer may take before something looks wrong: four times the
// usual, and never less than floor.
func (t *Target) StallAfter(floor time.Duration) time.Duration {
	return max(floor, 4*time.Duration(t.ewma.Load()))
}

// unproven says that a request which must not be repeated needs a sign of life first. A process that was
// paused still accepts connections and bytes: what it swallows is lost. So the window in which one can be
// sent into silence is the few milliseconds the target usually takes.
func (t *Target) unproven(now time.Duration) bool {
	proof := t.m.cfg.ProofFor
	if now-time.Duration(t.lastByte.Load()) > proof {
		return true
	}
	return t.silence(now) > min(proof, t.StallAfter(3*time.Millisecond))
}

// Alive asks for a sign of life and waits some milliseconds for it: false says to look elsewhere.
func (t *Target) Alive(ctx context.Context) bool { return t.alive(ctx, t.m.cfg.LivenessWait) }

// Begin tells that a request is about to be sent; call End exactly once.
func (t *Target) Begin() Sent {
	now := t.m.now()
	if t.outstanding.Add(1) == 1 {
		t.busySince.Store(int64(now))
	}
	return Sent{t, now}
}

// Sent is a request under way to a target.
type Sent struct {
	t     *Target
	began time.Duration
}

// Heard tells that bytes came back.
func (s Sent) Heard() { s.t.heard() }

// End tells how it ended, when the answer's headers are there or never will be. Give Tick for what says
// nothing about the target: a client that went away, a hedge that lost.
func (s Sent) End(e Event) {
	s.t.outstanding.Add(-1)
	if e == Answered || e == Unavailable {
		now := s.t.m.now()
		s.t.lastByte.Store(int64(now))
		took := int64(now - s.began)
		for {
			old := s.t.ewma.Load()
			next := took
			if old > 0 {
				next = old + (took-old)/8
			}
			if s.t.ewma.CompareAndSwap(old, max(1, next)) {
				break
			}
		}
		if e == Answered && (s.t.calm() || s.t.past(s.began)) {
			return
		}
	}
	if e != Tick {
		s.t.note(e)
	}
}

// calm is the common case, in which an answer changes nothing.
func (t *Target) calm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Phase == Healthy && t.state.Fails == 0
}

// past says that an ejected target answers what was sent before its good probes began: that was no last resort, and a
// service that refuses all that is new may still be finishing what it had.
func (t *Target) past(began time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Phase == Ejected && began < t.state.GoodFor
}

// Report is a target's health for people.
type Report struct {
	API, URL string
	Phase    string
	Latency  time.Duration
}

// Reports are all targets.
func (m *Monitor) Reports() []Report {
	m.mu.RLock()
	targets := make([]*Target, 0, len(m.targets))
	for _, t := range m.targets {
		targets = append(targets, t)
	}
	m.mu.RUnlock()
	out := make([]Report, 0, len(targets))
	for _, t := range targets {
		out = append(out, Report{t.API, t.URL, t.State().Phase.String(), time.Duration(t.ewma.Load())})
	}
	return out
}
