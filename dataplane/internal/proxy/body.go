package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
)

// What of bodies is kept to send them a second time: in memory alone, never on disk, and no longer than the
// request lasts, however it ends (invariant 12).
const (
	replayMax   = 64 << 10 // of one body; a larger one is sent once
	replayTotal = 64 << 20 // of all bodies at a time; beyond it they are sent once too
)

// body is the request's body: none, kept in memory, or a stream that can be sent once.
type body struct {
	src    io.ReadCloser
	length int64  // -1: unknown
	kept   []byte // read by others than the walk's goroutine with mu held

	in       atomic.Int64 // bytes read from the client
	touched  atomic.Bool  // an attempt has begun to read src
	tooLarge atomic.Bool
	broken   atomic.Bool  // the client's end failed
	waits    atomic.Int32 // how many wait for what the client sends next
	slow     atomic.Bool  // the client was given up
	idle     atomic.Bool  // it was waited for when an attempt's time was over
	pace     pace
	waited   atomic.Int64 // ns of waiting for it
	dues     atomic.Pointer[dues]

	mu      sync.Mutex // covers current, and the end of kept
	current *stream    // the attempt that may read src
}

// open prepares the body. Small bodies of known length are read now, so that an attempt which failed before
// a byte of it left can be made again elsewhere.
func (x *exchange) open(limit int64) gate.Problem {
	r := x.r
	if r.ContentLength > limit {
		return bodyTooLarge(limit)
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return gate.Problem{}
	}
	b := &body{src: x.within(r.Body, limit, r.ContentLength >= 0), length: r.ContentLength}
	if x.speech != nil && x.speech.decodes() {
		b.length = -1
	}
	x.body = b
	if b.length < 0 {
		return gate.Problem{}
	}
	if b.length > replayMax {
		return gate.Problem{}
	}
	if x.p.replays.Add(b.length) > replayTotal {
		x.p.replays.Add(-b.length)
		return gate.Problem{}
	}
	rc := http.NewResponseController(x.w)
	rc.SetReadDeadline(time.Now().Add(x.left(x.timeout()))) // a body that trickles must not hold a connection for ever
	kept := make([]byte, b.length)
	n, err := io.ReadFull(b.src, kept)
	rc.SetReadDeadline(time.Time{})
	b.in.Store(int64(n))
	b.kept = kept
	if err != nil {
		return b.incomplete(err)
	}
	return gate.Problem{}
}

// incomplete is what there is to say of a body that was read to be kept, and did not come whole.
func (b *body) incomplete(err error) gate.Problem {
	b.broken.Store(true)
	if isTimeout(err) {
		return bodySlow
	}
	return bodyBroken
}

func bodyTooLarge(limit int64) gate.Problem {
	return gate.NewProblem(413, gate.ReasonBodyTooLarge, "The route takes at most "+strconv.FormatInt(limit, 10)+" bytes.")
}

var bodyBroken = gate.NewProblem(400, gate.ReasonBodyBroken, "The body ended early, or its chunks or its trailer are malformed.")

// wipe overwrites what was kept and gives its room back. Whatever transport still reads gets nothing more. Call
// it once no attempt will follow; it may be called twice.
func (b *body) wipe(room *atomic.Int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept != nil {
		clear(b.kept)
		b.kept = nil
		room.Add(-b.length)
	}
}

func (b *body) bytes() int64 {
	if b == nil {
		return 0
	}
	return b.in.Load()
}

// fresh says whether a further attempt would send the body whole. Ask only after the last attempt is shut.
func (b *body) fresh() bool {
	return b == nil || b.kept != nil || !b.touched.Load()
}

// repeatable says whether it could be sent twice at once.
func (b *body) repeatable() bool { return b == nil || b.kept != nil }

// shut ends reading by whatever attempt still does.
func (b *body) shut() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil {
		b.current.over.Store(true)
		b.current = nil
	}
}

// reader is the body for one attempt, which up hears of; nil: nobody does. An earlier attempt reads no further.
func (b *body) reader(up *failover.Upload) *stream {
	b.shut()
	s := &stream{b: b, up: up}
	if b.kept != nil {
		s.rest, s.replay = b.kept, true
		return s
	}
	b.mu.Lock()
	b.current = s
	b.mu.Unlock()
	return s
}

// interrupt ends waiting for the client's body when ctx ends, until done is called. A transport waits for whoever reads its
// request's body, for as long as the client would have it, and holds what the request holds: a seat, and a place at a target.
func (x *exchange) interrupt(ctx context.Context) (done func()) {
	b := x.body
	if b == nil || b.kept != nil {
		return func() {}
	}
	rc, over := http.NewResponseController(x.w), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		if b.shut(); b.waits.Load() > 0 {
			rc.SetReadDeadline(time.Unix(1, 0))
		}
	})
	return func() {
		if !stop() {
			<-over
			rc.SetReadDeadline(time.Time{})
		}
	}
}

// tooSlow says that the client was, and that it ended what became of its request.
func (b *body) tooSlow() bool { return b != nil && b.slow.Load() }

// unsent says of an attempt whose time is over that it was the client who had not sent its body.
func (b *body) unsent() bool {
	return b != nil && (b.broken.Load() || b.tooLarge.Load() || b.slow.Load() || b.waiting())
}

// waiting says whether what the client sends next is waited for, or was when that was ended.
func (b *body) waiting() bool { return b.idle.Load() || b.kept == nil && b.waits.Load() > 0 }

// stalled notes that an attempt whose time is over was waiting for the client: until it is known here, another goroutine may be
// told so any time.
func (x *exchange) stalled(why error) {
	if b := x.body; errors.Is(why, errLate) && b != nil && b.waiting() {
		b.idle.Store(true)
	}
}

// stream is what a transport reads. It may go on reading a moment after its RoundTrip has returned: over
// stops it, so that it cannot eat what the next attempt needs. Close does not close the client's body.
type stream struct {
	b      *body
	up     *failover.Upload
	replay bool   // of what was kept
	rest   []byte // likewise, what is left of it
	over   atomic.Bool
	ended  func() // is called with the end of the client's body; nil: nobody asks
}

var errOver = errors.New("attempt is over")

func (s *stream) Read(p []byte) (int, error) {
	if s.replay {
		s.b.mu.Lock()
		defer s.b.mu.Unlock()
		if len(s.rest) == 0 {
			return 0, io.EOF
		}
		if s.b.kept == nil { // wiped
			return 0, errOver
		}
		n := copy(p, s.rest)
		s.rest = s.rest[n:]
		return n, nil
	}
	s.b.touched.Store(true) // before the question: whoever sees it unset after shut knows that nothing is read
	s.b.waits.Add(1)        // likewise, for interrupt
	defer s.b.waits.Add(-1)
	if s.over.Load() {
		return 0, errOver
	}
	n, err := s.wait(p)
	s.b.in.Add(int64(n))
	if n > 0 && !s.b.dues.Load().pay(0) { // before it passes
		return 0, errUnpaid
	}
	if err == io.EOF && s.ended != nil {
		s.ended()
	}
	if err != nil && err != io.EOF {
		switch _, tooLarge := errors.AsType[*http.MaxBytesError](err); {
		case tooLarge:
			s.b.tooLarge.Store(true)
		case isTimeout(err): // interrupt's
			s.b.idle.Store(true)
		default:
			s.b.broken.Store(true)
		}
	}
	return n, err
}

// wait takes what the client sends next: as long as it does, nobody else is to blame.
func (s *stream) wait(p []byte) (int, error) {
	if s.up != nil {
		s.up.Wait()
		defer s.up.Go()
	}
	since := time.Now()
	s.b.pace.begin(since)
	n, err := s.b.src.Read(p)
	now := time.Now()
	s.b.pace.end(now, n)
	if err != nil {
		s.b.pace.stop()
	}
	s.b.waited.Add(int64(now.Sub(since)))
	return n, err
}

// lag is how long the client was waited for while it sent its body.
func (b *body) lag() time.Duration {
	if b == nil {
		return 0
	}
	return time.Duration(b.waited.Load())
}

func (s *stream) Close() error { return nil }
