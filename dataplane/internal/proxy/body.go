package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/gate"
)

// replayMax bounds what of a body is kept in memory to send it a second time. Never on disk (invariant 12).
const replayMax = 64 << 10

// body is the request's body: none, kept in memory, or a stream that can be sent once.
type body struct {
	src    io.ReadCloser
	length int64 // -1: unknown
	kept   []byte

	in       atomic.Int64 // bytes read from the client
	touched  atomic.Bool  // an attempt has begun to read src
	tooLarge atomic.Bool
	broken   atomic.Bool // the client's end failed

	mu      sync.Mutex // covers current
	current *stream    // the attempt that may read src
}

// open prepares the body. Small bodies of known length are read now, so that an attempt which failed before
// a byte of it left can be made again elsewhere.
func (x *exchange) open(limit int64) gate.Problem {
	r := x.r
	if r.ContentLength > limit {
		return gate.NewProblem(413, gate.ReasonBodyTooLarge, "The route takes smaller bodies.")
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return gate.Problem{}
	}
	b := &body{src: r.Body, length: r.ContentLength}
	x.body = b
	if b.length < 0 {
		b.src = http.MaxBytesReader(x.w, r.Body, limit)
		return gate.Problem{}
	}
	if b.length > replayMax {
		return gate.Problem{}
	}
	rc := http.NewResponseController(x.w)
	rc.SetReadDeadline(time.Now().Add(x.timeout())) // a body that trickles must not hold a connection for ever
	kept := make([]byte, b.length)
	n, err := io.ReadFull(b.src, kept)
	rc.SetReadDeadline(time.Time{})
	b.in.Store(int64(n))
	if err != nil {
		b.broken.Store(true)
		return gate.NewProblem(400, gate.ReasonBodyBroken, "The body ended before its declared length.")
	}
	b.kept = kept
	return gate.Problem{}
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

// reader is the body for one attempt. An earlier attempt reads no further.
func (b *body) reader() io.ReadCloser {
	b.shut()
	s := &stream{b: b}
	if b.kept != nil {
		s.rest = b.kept
		return s
	}
	b.mu.Lock()
	b.current = s
	b.mu.Unlock()
	return s
}

// stream is what a transport reads. It may go on reading a moment after its RoundTrip has returned: over
// stops it, so that it cannot eat what the next attempt needs. Close does not close the client's body.
type stream struct {
	b    *body
	rest []byte
	over atomic.Bool
}

var errOver = errors.New("attempt is over")

func (s *stream) Read(p []byte) (int, error) {
	if s.b.kept != nil {
		if len(s.rest) == 0 {
			return 0, io.EOF
		}
		n := copy(p, s.rest)
		s.rest = s.rest[n:]
		return n, nil
	}
	s.b.touched.Store(true) // before the question: whoever sees it unset after shut knows that nothing is read
	if s.over.Load() {
		return 0, errOver
	}
	n, err := s.b.src.Read(p)
	s.b.in.Add(int64(n))
	if err != nil && err != io.EOF {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			s.b.tooLarge.Store(true)
		} else {
			s.b.broken.Store(true)
		}
	}
	return n, err
}

func (s *stream) Close() error { return nil }
