package http3

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// PartRoom is how much room there has to be before a part of a body for what frames it.
const PartRoom = 8

// Part sends a part of an answer: its field section first, if there is one, and its trailers behind it, if it is the last. The body is
// buf[at:]; what is before it is room to write to, PartRoom at least. The client has until then to take it, and nothing is sent once
// over says so, which has to be set before Stop is called.
func (s *Stream) Part(section, buf []byte, at int, trailers []byte, last bool, until time.Time, over *atomic.Bool) error {
	if s.reset {
		return errOver
	}
	b, n := buf, len(buf)-at
	if n > 0 {
		at = before(b, at, appendFrame(make([]byte, 0, PartRoom), frameData, n))
	}
	if last && len(trailers) > 0 {
		b = append(appendFrame(b, frameHeaders, len(trailers)), trailers...)
	}
	s.q.SetWriteDeadline(until)
	if over.Load() {
		return errOver
	}
	if len(section) > 0 {
		s.out = append(appendFrame(s.out[:0], frameHeaders, len(section)), section...)
		if at >= len(s.out) {
			at = before(b, at, s.out)
		} else if err := s.put(s.out); err != nil {
			return err
		}
	}
	if at < len(b) {
		if err := s.put(b[at:]); err != nil {
			return err
		}
	}
	if last {
		return s.finish()
	}
	return nil
}

// before writes what before b[at:], and says where it begins.
func before(b []byte, at int, what []byte) int {
	at -= len(what)
	copy(b[at:], what)
	return at
}

func (s *Stream) put(b []byte) error {
	_, err := s.q.Write(b)
	if isReset(err) {
		return errReset
	}
	return err
}

// Stop has sending fail from now on, also of whoever waits with it. The stream is still to be reset.
func (s *Stream) Stop() { s.q.SetWriteDeadline(time.Unix(1, 0)) }

// Notify has lost called once the client wants no answer any more, or the connection has ended; at once, if that is so by now.
func (s *Stream) Notify(lost func(error)) {
	ctx := s.q.Context()
	context.AfterFunc(ctx, func() {
		if why := context.Cause(ctx); why != quic.ErrStreamClosed { // else all of the answer is given
			lost(why)
		}
	})
}
