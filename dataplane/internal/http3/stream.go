package http3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/http1"
)

// Stream is a request and its answer. One goroutine serves it; another may read its body.
type Stream struct {
	// Request is what is asked, as HTTP/1.1 would have it, without what belongs to a connection. It is good until serving ends.
	Request http1.Request

	c     *Conn
	q     *quic.Stream
	shown bool // as net/http's

	// What was read.
	reader
	block    head.Block
	declared int64 // the length of the body; -1: none was
	left     uint64
	got      int64
	passing  uint64 // of a frame of an extension's, what is still to be passed over
	trailed  bool   // a trailer has come
	trails   uint64 // its length and one, until all of it is here
	trailer  http.Header
	body     []byte // of the body, what was read ahead and is behind read
	read     int
	held     int  // of the connection's
	heard    bool // its head has come
	failed   error

	// What was written.
	out      []byte
	answered bool // all of the answer was given to QUIC
	reset    bool
}

// run serves the stream.
func (s *Stream) run() {
	c := s.c
	defer func() {
		if p := recover(); p != nil {
			c.v.cfg.Panicked(p)
			s.Reset(InternalError)
		}
		s.end()
	}()
	if !s.head() {
		return
	}
	switch {
	case s.block.TooBig:
		s.Plain(http.StatusRequestHeaderFieldsTooLarge, "The request's head is too large.")
	default:
		c.serve(s)
	}
}

// end is what is left to do once nobody serves it.
func (s *Stream) end() {
	c := s.c
	if !s.answered { // nobody should wait for the rest
		if isReset(context.Cause(s.q.Context())) {
			c.spent(1)
		}
		s.Reset(InternalError) // unless the client has taken it back
	}
	if !s.eof || s.r < s.w {
		s.q.CancelRead(quic.StreamErrorCode(NoError)) // of a body that nobody wants
	}
	s.q.ReleaseStreamCredit()
	held, heard, answered := s.held, s.heard, s.answered
	c.v.free(s)
	c.ended(held, heard, answered)
}

// Reset breaks the request off: the client sees that it has no whole answer.
func (s *Stream) Reset(code Code) {
	if s.answered || s.reset {
		return
	}
	s.reset = true
	if code == InternalError && isReset(context.Cause(s.q.Context())) { // no fault of this side's, and nothing that anybody should look for
		code = RequestCancelled
	}
	count(&s.c.v.counts.resets, code)
	s.q.CancelWrite(quic.StreamErrorCode(code))
}

// refuse breaks off what is malformed, or never becomes whole.
func (s *Stream) refuse(code Code) {
	s.Reset(code)
	s.q.CancelRead(quic.StreamErrorCode(code))
	s.c.spent(1)
}

// head reads the request's. false: there is none that could be served.
func (s *Stream) head() bool {
	s.q.SetReadDeadline(time.Now().Add(headTimeout))
	for {
		f, err := s.reader.frame(s.q)
		if err != nil {
			s.cut(err)
			return false
		}
		switch {
		case f.kind == frameHeaders:
			return s.section(f.length)
		case known(f.kind):
			s.c.end(FrameUnexpected)
			return false
		case !s.pass(f):
			return false
		}
	}
}

// known says whether it is clear what a frame of that type is, and so that another had to come.
func known(kind uint64) bool {
	switch kind {
	case frameData, frameHeaders, frameCancel, frameSettings, framePush, frameGoAway, frameMaxPush:
		return true
	}
	return reserved(kind)
}

// pass passes over a frame of an extension.
func (s *Stream) pass(f frame) bool {
	for n := f.length; ; {
		if !s.c.spent(1) {
			return false
		}
		part := min(n, allowanceBytes)
		if err := s.reader.skip(s.q, part); err != nil {
			s.cut(err)
			return false
		}
		if n -= part; n == 0 {
			return true
		}
	}
}

// cut is the end of a stream before its time.
func (s *Stream) cut(err error) {
	switch {
	case err == io.ErrUnexpectedEOF:
		s.c.end(FrameError)
	case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
		s.refuse(RequestIncomplete)
	case isReset(err):
		s.refuse(RequestCancelled)
	default:
		s.Reset(InternalError)
	}
}

// section reads the field section of the head.
func (s *Stream) section(length uint64) bool {
	if length > uint64(s.block.Most) {
		s.block.TooBig = true
		return true
	}
	if length > keptText && !s.hold(int(length)) { // whose room is taken before it comes
		s.refuse(RequestRejected)
		return false
	}
	b, err := s.whole(s.q, int(length))
	if err != nil {
		s.cut(err)
		return false
	}
	if decode(b, &s.block) != nil {
		s.c.end(DecompressionFailed)
		return false
	}
	s.shed()
	s.heard = true
	if !s.c.heard(s.held, s.block.Kept()-s.held) {
		s.refuse(RequestRejected)
		return false
	}
	s.held = s.block.Kept()
	if s.block.TooBig {
		return true
	}
	ended := s.eof && s.r == s.w
	var ok bool
	if s.declared, ok = s.block.Parse(&s.Request, ended); !ok {
		s.refuse(MessageError)
		return false
	}
	return true
}

// piece is what is here of the body, waited for if there is nothing; take says how much of it is taken. io.EOF: that was all.
func (s *Stream) piece() ([]byte, error) {
	if s.failed != nil {
		return nil, s.failed
	}
	for s.left == 0 {
		if s.passing > 0 || s.trails > 0 { // whoever was out of time may go on
			if err := s.aside(); err != nil {
				return nil, err
			}
			continue
		}
		f, err := s.reader.frame(s.q)
		if err != nil {
			return nil, s.stopped(err)
		}
		switch {
		case s.trailed && known(f.kind): // nothing may follow it
			return nil, s.broken(FrameUnexpected)
		case f.kind == frameData:
			if s.declared >= 0 && f.length > uint64(s.declared-s.got) {
				return nil, s.malformed(MessageError)
			}
			if f.length == 0 && !s.c.spent(1) {
				s.failed = errBroken
				return nil, s.failed
			}
			s.left = f.length
		case f.kind == frameHeaders:
			if f.length > uint64(s.block.Most) {
				return nil, s.malformed(MessageError)
			}
			if f.length > keptText && !s.hold(int(f.length)) {
				return nil, s.malformed(ExcessiveLoad)
			}
			s.trailed, s.trails = true, f.length+1
		case known(f.kind):
			return nil, s.broken(FrameUnexpected)
		case !s.c.spent(1):
			s.failed = errBroken
			return nil, s.failed
		default:
			s.passing = f.length
		}
	}
	if s.r == s.w {
		if err := s.fill(s.q, 1); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, s.stopped(err)
		}
	}
	return s.buf[s.r : s.r+int(min(s.left, uint64(s.w-s.r)))], nil
}

// take takes so much of a piece.
func (s *Stream) take(n int) {
	s.r += n
	s.left -= uint64(n)
	s.got += int64(n)
}

// stopped is why there is no more of the body. A time that is over may be followed by another.
func (s *Stream) stopped(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err == io.EOF:
		if s.declared >= 0 && s.got != s.declared {
			return s.malformed(MessageError)
		}
	case err == io.ErrUnexpectedEOF:
		return s.broken(FrameError)
	case isReset(err):
		s.c.spent(1)
		err = errReset
	}
	s.failed = err
	return err
}

func (s *Stream) malformed(code Code) error {
	count(&s.c.v.counts.resets, code)
	s.q.CancelRead(quic.StreamErrorCode(code))
	s.q.CancelWrite(quic.StreamErrorCode(code)) // whoever reads the body may not be who answers: it finds out
	s.c.spent(1)
	s.failed = errMalformed
	return s.failed
}

func (s *Stream) broken(code Code) error {
	s.c.end(code)
	s.failed = errBroken
	return s.failed
}

// hold counts so much more of the request's into what its connection holds. false: there is no room for it.
func (s *Stream) hold(n int) bool {
	if !s.c.hold(s.held, n) {
		return false
	}
	s.held += n
	return true
}

// aside reads on in what is between a body and its end: a frame of an extension's, or the trailer.
func (s *Stream) aside() error {
	for s.passing > 0 {
		if s.r == s.w {
			if err := s.fill(s.q, 1); err == io.EOF {
				return s.stopped(io.ErrUnexpectedEOF)
			} else if err != nil {
				return s.stopped(err)
			}
		}
		n := min(s.passing, uint64(s.w-s.r), allowanceBytes)
		s.r += int(n)
		if s.passing -= n; !s.c.spent(1) {
			s.failed = errBroken
			return s.failed
		}
	}
	if s.trails > 0 {
		return s.trailers(int(s.trails - 1))
	}
	return nil
}

// trailers reads the field section behind a body.
func (s *Stream) trailers(length int) error {
	b, err := s.whole(s.q, length)
	if err != nil {
		return s.stopped(err)
	}
	s.trails = 0
	h := head.Block{Most: s.block.Most}
	if decode(b, &h) != nil {
		return s.broken(DecompressionFailed)
	}
	s.shed()
	t, ok := h.Trailer()
	if !ok || h.TooBig {
		return s.malformed(MessageError)
	}
	more := h.Kept()
	if length > keptText { // it was counted as it came
		more -= length
	}
	if !s.hold(more) {
		return s.malformed(ExcessiveLoad)
	}
	if len(t) > 0 {
		s.trailer = t
	}
	return nil
}

// Body is the request's body if it is no longer than room, and all of it is here or comes at once. One of no declared length
// is a stream, gRPC's mostly, unless its end is here or the method rarely has one.
func (s *Stream) Body(room int) (body []byte, ok bool) {
	r := &s.Request
	switch {
	case s.declared > int64(room):
		return nil, false
	case s.eof && s.r == s.w && s.left == 0: // it has none
	case s.declared >= 0, s.eof, r.Method == http.MethodGet, r.Method == http.MethodHead, r.Method == http.MethodDelete:
		if r.Continue {
			return nil, false
		}
		s.q.SetReadDeadline(time.Now().Add(bodyPatience))
	default:
		return nil, false
	}
	for {
		p, err := s.piece()
		if err == io.EOF {
			break
		}
		if err != nil || len(s.body)+len(p) > room {
			return nil, false
		}
		s.body = append(s.body, p...)
		s.take(len(p))
	}
	if s.trailer != nil {
		return nil, false
	}
	r.Length = int64(len(s.body))
	return s.body, true
}

// Gone says whether what was read of the body ends the request: nobody should look at it.
func (s *Stream) Gone() bool { return s.failed != nil && s.failed != io.EOF }

// Answer sends a whole answer: its field section, and its body. false: the client does not get it.
func (s *Stream) Answer(section, body []byte) bool {
	if s.reset {
		return false
	}
	b := append(appendFrame(s.out[:0], frameHeaders, len(section)), section...)
	if len(body) > 0 {
		b = append(appendFrame(b, frameData, len(body)), body...)
	}
	s.out = b
	if err := s.q.TryWriteAll(b); err == quic.ErrWouldBlock {
		if s.write(b, nil) != nil {
			return false
		}
	} else if err != nil {
		return false
	}
	return s.finish() == nil
}

// finish says that the answer is whole.
func (s *Stream) finish() error {
	if s.reset {
		return errOver
	}
	err := s.q.Close()
	if err == nil {
		s.answered = true
	}
	return err
}

// heed sets the deadline that until holds (ns of Unix time; nil or 0: in a while). Somebody may store another one meanwhile, and
// set it before what was read here is: that would give a caller who has just been revoked all the time there is.
func heed(until *atomic.Int64, set func(time.Time) error) {
	if until == nil {
		set(time.Now().Add(sendTimeout))
		return
	}
	for {
		at := until.Load()
		if at == 0 {
			set(time.Now().Add(sendTimeout))
		} else {
			set(time.Unix(0, at))
		}
		if until.Load() == at {
			return
		}
	}
}

// write writes what fits into one frame; until is when the client must have taken it, as in heed.
func (s *Stream) write(b []byte, until *atomic.Int64) error {
	heed(until, s.q.SetWriteDeadline)
	return s.put(b)
}

// Plain answers what belongs to nobody with a bare status.
func (s *Stream) Plain(status int, text string) {
	section := AppendField(AppendStatus(nil, status), "content-type", "text/plain; charset=utf-8")
	s.Answer(section, fmt.Appendln(nil, text))
}
