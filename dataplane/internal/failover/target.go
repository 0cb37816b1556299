package failover

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
)

// Target is one upstream of this region, as one API uses it.
type Target struct {
	At   upstream.Place
	Base *url.URL // At.Base parsed; nil if it is none, and then nothing can be sent
	API  string
	zone string // the API's

	m        *Monitor
	health   string // URL of the health page
	settings atomic.Pointer[settings]
	line     *line         // of the API: who waits for a place
	kick     chan struct{} // wakes the prober

	busy        atomic.Int64 // requests that hold a place, to the end of their answers
	joined      atomic.Int64 // when a slow start began; 0: none did
	good, bad   atomic.Int64 // answers since targets were last compared
	out         atomic.Bool  // it fails more than the others do
	outstanding atomic.Int64
	busySince   atomic.Int64 // when outstanding rose from 0
	lastByte    atomic.Int64 // the last time anything came back
	answered    atomic.Int64 // the last time a request was answered
	ewma        atomic.Int64 // of the time to response headers, ns; 0 = none yet

	mu     sync.Mutex // covers what follows; held for no I/O
	state  State
	flight *flight
	hopes  chan struct{}  // closed by the next answer; nil: nobody waits for one
	why    error          // of the last probe: why it was bad; nil: it was good, or there was none
	hoping map[string]int // by customer: requests that wait for it though it has fallen silent
	hopers int            // all of them
	mute   bool           // the last probe ran out of time: it said nothing, and refused nothing
}

// settings are what the API says of its targets now.
type settings struct {
	interval, timeout time.Duration
	timing            Timing
	dispatch          table.Dispatch
}

// flight is one probe under way: everybody who wants to know waits for the same one.
type flight struct {
	began time.Duration
	done  chan struct{}
	err   error

	excused bool // err is no word against the target
}

// name is what people call it.
func (t *Target) name() string {
	if t.At.Pin.IsValid() {
		return t.At.Base + " at " + t.At.Pin.String()
	}
	return t.At.Base
}

// lateBy is by how much a clock of this edge has to be late for what it has not heard to be its own fault: it has more to do than it
// can, and everybody's bytes wait here.
const lateBy = 50 * time.Millisecond

// hopeFor is for how long one that has fallen silent may speak again, counted from the last thing that it said: for so long who has
// nowhere else to go waits for it. More would be a long time to hold a request for one that has died, less shorter than what a crowd
// on its machine or on this one has been seen to take it for.
const hopeFor = 5 * time.Second

// hopeMost is how many requests wait so for one upstream at a time, and a sixteenth of this edge's places where that is less: a place
// in it is others' too, and a request that waits has one.
const hopeMost = 1024

// warmEvery is shorter than many a server keeps an idle connection (5 s).
const warmEvery = 4 * time.Second

// probe is the prober of one target.
func (t *Target) probe(ctx context.Context) {
	wait, last := time.Duration(0), time.Duration(0)
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
		if state.Phase == Healthy && state.Fails == 0 && now-time.Duration(t.lastByte.Load()) < t.settings.Load().interval {
			if now-last >= warmEvery {
				t.warm(ctx)
				last = t.m.now()
			}
			wait = t.settings.Load().interval
			continue
		}
		f := t.fly()
		select {
		case <-ctx.Done():
			return
		case <-f.done:
		}
		last = t.m.now()
		switch {
		case t.State().Phase == Healthy && !f.excused:
			wait = t.settings.Load().interval
		default:
			// 100 ms at first, then slower, but often enough that the way back fits in 15 s.
			wait = min(max(100*time.Millisecond, wait*3/2), t.settings.Load().interval, 500*time.Millisecond)
		}
	}
}

// warm asks beside traffic, so that the prober's connection is still there when it is needed: a new one would then be opened in the
// crowd that makes the question necessary. What comes of it is nothing to go by, since traffic is answered.
func (t *Target) warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, t.settings.Load().timeout)
	defer cancel()
	_ = t.m.cfg.Prober.Probe(ctx, t.At, t.health)
}

// late says that a probe which ran out of time is no word against the target, since requests were answered there in the second
// half of it: the way to its health page is crowded, or this machine is. A paused or dead one answers none.
func (t *Target) late() bool {
	return t.usable() && t.m.now()-time.Duration(t.answered.Load()) < t.settings.Load().timeout/2
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
		ctx, cancel := context.WithTimeout(context.Background(), t.settings.Load().timeout)
		defer cancel()
		f.err = t.m.cfg.Prober.Probe(ctx, t.At, t.health)
		if f.err == nil {
			t.heard()
		}
		f.excused = f.err != nil && ctx.Err() != nil && (t.late() || t.m.now()-f.began > t.settings.Load().timeout+lateBy && t.usable())
		t.mu.Lock()
		t.flight, t.why, t.mute = nil, f.err, f.err != nil && ctx.Err() != nil
		t.mu.Unlock()
		if f.err == nil {
			t.note(ProbeGood)
		} else if !f.excused {
			t.note(ProbeBad)
		}
		close(f.done)
	})
	return f
}

// alive asks the target for a sign of life and waits for it: for at most wait since the question was first put, and where the target
// has answered somebody since then as long from now, for who joins a question that is late would else have no time at all; without
// wait until the health page has spoken, or its time is over. others: what it answers them meanwhile, and what it has since the moment
// that it was found silent (never: math.MaxInt64), is such a sign too; what must not be lost wants the page's word.
func (t *Target) alive(ctx context.Context, since, wait time.Duration, others bool) bool {
	asked, answer := t.m.now(), t.answer()
	if others && time.Duration(t.answered.Load()) >= since {
		return true // a question could wait in vain for the next
	}
	for {
		f := t.fly()
		from := f.began
		if time.Duration(t.answered.Load()) >= from {
			from = asked
		}
		over, answered, late := f.wait(ctx, answer, others, wait > 0, wait-(t.m.now()-from))
		switch {
		case over && f.err == nil:
			return true
		case over && !f.excused || ctx.Err() != nil:
			return false
		case others && (over || answered):
			return true
		case !over && !answered && !late:
			t.note(NotAlive)
			return false
		case !over || t.m.now()-asked >= max(wait, t.settings.Load().timeout):
			return false
		}
	}
}

// answer is closed when the target answers somebody.
func (t *Target) answer() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hopes == nil {
		t.hopes = make(chan struct{})
	}
	return t.hopes
}

// wait waits for the end of the probe, if bounded for so long, or if it may end it for an answer, and says which there was. late: this
// edge has come to look so late that it may be its own doing that there was none.
func (f *flight) wait(ctx context.Context, answer <-chan struct{}, ends, bounded bool, long time.Duration) (over, answered, late bool) {
	var sooner <-chan struct{}
	if ends {
		sooner = answer
	}
	var end <-chan time.Time
	if bounded {
		timer := time.NewTimer(max(long, 0))
		defer timer.Stop()
		end = timer.C
	}
	began := time.Now()
	select {
	case <-f.done:
	case <-sooner:
	case <-end:
		late = time.Since(began) > max(long, 0)+lateBy
	case <-ctx.Done():
	}
	return closed(f.done), closed(answer), late
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (t *Target) heard() { t.lastByte.Store(int64(t.m.now())) }

// errRequests is why an upstream takes no traffic whose probes were good.
var errRequests = errors.New("requests in a row failed there, or were answered 502, 503 or 504")

// note takes an event into the state, and tells people when the phase changes.
func (t *Target) note(e Event) {
	now := t.m.now()
	t.mu.Lock()
	old := t.state
	t.state = Step(old, e, now, t.settings.Load().timing)
	next, why := t.state, t.why
	if t.hopes != nil && (e == Answered || e == Unavailable) {
		close(t.hopes)
		t.hopes = nil
	}
	t.mu.Unlock()
	if next.Phase == old.Phase {
		return
	}
	if next.Phase == Returning && t.settings.Load().dispatch.SlowStart > 0 {
		t.joined.Store(int64(now))
	}
	switch from, to := old.Phase.String(), next.Phase.String(); {
	case next.Phase == Ejected && e == ProbeBad:
		t.m.cfg.Logger.Warn("upstream health changed", "api", t.API, "target", t.name(), "from", from, "to", to, "fails", next.Fails, "error", why)
	case next.Phase == Ejected:
		t.m.cfg.Logger.Warn("upstream health changed", "api", t.API, "target", t.name(), "from", from, "to", to, "fails", next.Fails, "error", errRequests)
	default:
		t.m.cfg.Logger.Info("upstream health changed", "api", t.API, "target", t.name(), "from", from, "to", to, "fails", next.Fails)
	}
	if next.Phase != Healthy {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// said is why the last probe was bad.
func (t *Target) said() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.why == nil {
		return ""
	}
	return t.why.Error()
}

// State is the present state.
func (t *Target) State() State {
	now := t.m.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = Step(t.state, Tick, now, t.settings.Load().timing)
	return t.state
}

// takes says whether a new request may go here as a first choice.
func (t *Target) takes(now time.Duration) bool {
	t.mu.Lock()
	t.state = Step(t.state, Tick, now, t.settings.Load().timing)
	s := t.state
	t.mu.Unlock()
	switch share := s.Share(now, t.settings.Load().timing); share {
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

// hopeful says whether one that gave no sign of life just now may give one in a moment: it was heard a moment ago, and its page has
// refused nothing since. A request that failed there is no word against the page: whoever came then would be refused until it is asked
// again, and can ask it himself.
func (t *Target) hopeful() bool {
	usable := t.usable()
	t.mu.Lock()
	unsaid := t.mute || t.why == nil
	t.mu.Unlock()
	return (usable || unsaid) && t.m.now()-time.Duration(t.lastByte.Load()) < hopeFor
}

// admits takes a place among those who wait for one that has fallen silent, of which a customer may have as many as are free: one
// alone has half of them at most, two have a third each, and there is room for who comes with a single request. These are the dynamic
// thresholds of Choudhury and Hahne (IEEE/ACM Transactions on Networking 6(2), 1998) for queues that share a memory, with alpha = 1.
func (t *Target) admits(customer string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hoping[customer] >= t.m.cfg.hopeMost()-t.hopers {
		return false
	}
	if t.hoping == nil {
		t.hoping = map[string]int{}
	}
	t.hoping[customer]++
	t.hopers++
	return true
}

// dismisses gives the place back.
func (t *Target) dismisses(customer string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hopers--
	if t.hoping[customer]--; t.hoping[customer] == 0 {
		delete(t.hoping, customer)
	}
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

// Alive asks for a sign of life, also for one that others get, and waits some milliseconds for it: false says to look elsewhere.
func (t *Target) Alive(ctx context.Context) bool {
	return t.alive(ctx, math.MaxInt64, t.m.cfg.LivenessWait, true)
}

// Begin tells that a request is about to be sent; call End exactly once.
func (t *Target) Begin() Sent { return t.BeginAt(time.Now()) }

// BeginAt is Begin by who has just read the clock.
func (t *Target) BeginAt(at time.Time) Sent {
	now := at.Sub(t.m.start)
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
func (s Sent) End(e Event) { s.EndAt(time.Now(), e) }

// EndAt is End by who has just read the clock.
func (s Sent) EndAt(at time.Time, e Event) {
	s.t.outstanding.Add(-1)
	s.end(at, e, true)
}

// end is End without the first line; timed: how long it took is the target's doing.
func (s Sent) end(at time.Time, e Event, timed bool) {
	switch e {
	case Answered:
		s.t.good.Add(1)
	case Erred, Failed, Unavailable, Late:
		s.t.bad.Add(1)
	}
	if e == Late { // slow work, where others were answered meanwhile, takes the target from nobody
		if e = Failed; time.Duration(s.t.answered.Load()) > s.began {
			return
		}
	}
	if e == Erred { // an answer all the same: it lives
		e = Answered
	}
	if e == Answered || e == Unavailable {
		now := at.Sub(s.t.m.start)
		s.t.lastByte.Store(int64(now))
		s.t.answered.Store(int64(now))
		took := int64(now - s.began)
		for timed {
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

// Regret tells that an answer which was taken for good ended in an error of the target's own.
func (t *Target) Regret() { t.bad.Add(1) }

// calm is the common case, in which an answer changes nothing and nobody waits for one.
func (t *Target) calm() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Phase == Healthy && t.state.Fails == 0 && t.hopes == nil
}

// past says that an ejected target answers what was sent before its good probes began: that was no last resort, and a
// service that refuses all that is new may still be finishing what it had.
func (t *Target) past(began time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Phase == Ejected && began < t.state.GoodFor
}
