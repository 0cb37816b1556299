package http2

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"time"

	"bailiwick/dataplane/internal/http1"
)

// Stream is a request and its answer. One goroutine serves it.
type Stream struct {
	// Request is what is asked, as HTTP/1.1 would have it, without what belongs to a connection. It is good until serving ends.
	Request http1.Request

	c        *Conn
	id       uint32
	block    block
	declared int64 // the length of the body; -1: none was
	shown    bool  // as net/http's
	rwake    waker // there is more of the body, or its end
	wwake    waker // there is room to write

	// The connection's mu covers the rest.
	body      []byte // that arrived
	read      int    // of body
	got       int64
	ended     bool // the client has sent all
	answered  bool // all of the answer is queued
	done      bool // serving has ended
	gone      error
	trailer   http.Header
	cancel    context.CancelCauseFunc
	inWindow  int64
	outWindow int64
	unread    int64
	readUntil time.Time
	sendUntil time.Time
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
	c.mu.Lock()
	gone := s.gone != nil
	c.mu.Unlock()
	switch {
	case gone: // before anybody looked at it
		return
	case s.block.tooBig:
		s.Plain(http.StatusRequestHeaderFieldsTooLarge, "The request's head is too large.")
	case s.Request.Expects:
		s.Plain(http.StatusExpectationFailed, "The expectation cannot be met.")
	default:
		c.serve(s)
	}
}

// end is what is left to do once nobody serves it.
func (s *Stream) end() {
	c := s.c
	c.mu.Lock()
	s.done = true
	if s.gone == nil {
		switch {
		case !s.answered: // nobody should wait for the rest
			c.fail(s, InternalError)
		case !s.ended: // of a body that nobody wants
			c.fail(s, NoError)
		}
	}
	delete(c.streams, s.id)
	c.took(nil, int64(len(s.body)-s.read))
	if s.answered && s.gone == nil {
		c.tokens = min(c.tokens+allowanceAnswer, allowance)
	}
	if len(c.streams) == 0 && c.gone {
		c.finish()
	}
	c.flush()
	c.idles()
	c.mu.Unlock()
	s.free()
}

// idles says that one of those that work for the connection is done; mu is held.
func (c *Conn) idles() {
	if c.busy--; c.busy == 0 && c.quiet != nil {
		close(c.quiet)
	}
}

// soon has what is queued written by somebody else; mu is held.
func (c *Conn) soon() {
	if c.out != nil && !c.writing && !c.hurried {
		c.hurried = true
		c.busy++
		c.v.do(job{c: c})
	}
}

// whole says that all of the answer is queued; mu is held.
func (s *Stream) whole() {
	s.answered = true
	if s.ended { // the client may open another in its place as soon as it reads that
		delete(s.c.streams, s.id)
	}
}

// lost is the end of a stream before its time.
func (s *Stream) lost(why error) {
	if s.gone == nil {
		s.gone = why
	}
	if s.cancel != nil {
		s.cancel(why)
	}
	s.rwake.wake()
	s.wwake.wake()
}

// fail ends a stream from this side.
func (c *Conn) fail(s *Stream, code Code) {
	if s.gone != nil {
		return
	}
	c.resets(s.id, code)
	if !s.ended {
		c.ignore(s.id)
	}
	delete(c.streams, s.id)
	s.lost(errOver)
}

func (c *Conn) resets(id uint32, code Code) {
	b := c.queue()
	b.b = binary.BigEndian.AppendUint32(appendFrame(b.b, frameReset, 0, id, 4), uint32(code))
}

// Reset breaks the request off: the client sees that it has no whole answer.
func (s *Stream) Reset(code Code) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.answered {
		s.c.fail(s, code)
	}
}

// Body is the request's body if all of it is here and is as long as was said. One of no declared length is a stream: gRPC's.
func (s *Stream) Body() (body []byte, ok bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.ended || s.trailer != nil || s.gone != nil || s.got != s.Request.Length {
		return nil, false
	}
	return s.body[s.read:], true
}

// queue is where frames go that are to be written; mu is held.
func (c *Conn) queue() *buffer {
	if c.out == nil {
		c.out = c.v.get()
	}
	return c.out
}

// flush writes what is queued, and what is queued meanwhile. mu is held, but not while it writes.
func (c *Conn) flush() {
	if c.writing {
		return
	}
	c.writing = true
	for c.out != nil && !c.dead {
		if c.busy > 1 { // whoever else is ready to answer may do so in the same write
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		b := c.out
		c.out = nil
		now := time.Now()
		if left := c.wuntil.Sub(now); left < sendTimeout*2/3 || left > sendTimeout {
			c.wuntil = now.Add(sendTimeout)
			c.rwc.SetWriteDeadline(c.wuntil)
		}
		c.mu.Unlock()
		_, err := c.rwc.Write(b.b)
		c.v.put(b)
		c.mu.Lock()
		if err != nil { // the reader tells the streams
			c.dead, c.ending = true, true
			c.rwc.SetReadDeadline(time.Unix(1, 0))
		}
		c.wake()
	}
	c.writing = false
}

// wake has everybody look again who waits to write.
func (c *Conn) wake() {
	for i, s := range c.waiting {
		s.wwake.wake()
		c.waiting[i] = nil
	}
	c.waiting = c.waiting[:0]
}

// heads queues a header block.
func (c *Conn) heads(id uint32, block []byte, ends bool) {
	b := c.queue()
	kind, flags := byte(frameHeaders), byte(0)
	if ends {
		flags = flagEnd
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= flagHeaders
		}
		b.b = append(appendFrame(b.b, kind, flags, id, n), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return
		}
		kind, flags = frameContinuation, 0
	}
}

// Answer sends a whole answer: its header block, and its body. false: the client does not get it.
func (s *Stream) Answer(block, body []byte) bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.begin(block, len(body) == 0) != nil {
		return false
	}
	return len(body) == 0 || s.send(body, true) == nil
}

// begin queues the head of the answer, or an interim one.
func (s *Stream) begin(block []byte, ends bool) error {
	c := s.c
	if err := s.room(); err != nil {
		return err
	}
	c.heads(s.id, block, ends)
	if ends {
		s.whole()
		c.flush()
	}
	return nil
}

// room waits until something may be queued; mu is held.
func (s *Stream) room() error {
	c := s.c
	var until time.Time
	for {
		switch {
		case s.gone != nil:
			return s.gone
		case c.dead:
			return errGone
		case c.out == nil || len(c.out.b) < queueMost:
			return nil
		}
		if err := s.await(&until); err != nil {
			return err
		}
	}
}

// await waits until there may be room; mu is held, but not while it waits.
func (s *Stream) await(until *time.Time) error {
	c := s.c
	if c.out != nil && !c.writing {
		c.flush()
		return nil
	}
	if until.IsZero() {
		if *until = s.sendUntil; until.IsZero() {
			*until = time.Now().Add(sendTimeout)
		}
	}
	c.waiting = append(c.waiting, s)
	c.mu.Unlock()
	err := s.wwake.wait(*until)
	c.mu.Lock()
	return err
}

// wait until it is told something, or until then.
func (w waker) wait(until time.Time) error {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-w:
		return nil
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

// send queues a part of the body, as there is room for it; mu is held, but not while it waits.
func (s *Stream) send(p []byte, ends bool) error {
	c := s.c
	var until time.Time
	for {
		if s.gone != nil {
			return s.gone
		}
		if c.dead {
			return errGone
		}
		n := int64(len(p))
		if n > 0 {
			room := int64(queueMost)
			if c.out != nil {
				room -= int64(len(c.out.b))
			}
			if n = min(n, maxFrame, s.outWindow, c.outWindow, room); n <= 0 {
				if err := s.await(&until); err != nil {
					return err
				}
				continue
			}
		}
		flags := byte(0)
		if ends && n == int64(len(p)) {
			flags = flagEnd
		}
		b := c.queue()
		b.b = append(appendFrame(b.b, frameData, flags, s.id, int(n)), p[:n]...)
		s.outWindow -= n
		c.outWindow -= n
		c.tokens = min(c.tokens+1+int(n/allowanceBytes), allowance)
		if p = p[n:]; len(p) > 0 {
			until = time.Time{}
			continue
		}
		if ends {
			s.whole()
		}
		c.flush()
		return nil
	}
}

// Plain answers what belongs to nobody with a bare status.
func (s *Stream) Plain(status int, text string) {
	block := AppendField(AppendStatus(nil, status), "content-type", "text/plain; charset=utf-8")
	s.Answer(block, fmt.Appendln(nil, text))
}

const drainPing = "goodbye!"

// goAway says that no stream above last is served; mu is held.
func (c *Conn) goAway(last uint32, code Code) {
	b := c.queue()
	b.b = appendFrame(b.b, frameGoAway, 0, 0, 8)
	b.b = binary.BigEndian.AppendUint32(b.b, last)
	b.b = binary.BigEndian.AppendUint32(b.b, uint32(code))
}

// Drain has the client go elsewhere with what it asks from now on, and ends the connection once all is answered. Call it again
// until Run has returned: a client that does not answer is not waited for for long.
func (c *Conn) Drain() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.dead || c.ending || c.gone:
	case c.going.IsZero(): // what it has sent before it hears this is served
		c.going = now
		c.goAway(1<<31-1, NoError)
		b := c.queue()
		b.b = append(appendFrame(b.b, framePing, 0, 0, 8), drainPing...)
		c.soon()
	case now.Sub(c.going) >= drainTimeout:
		c.leave()
		c.soon()
	}
}

// Idle says whether the connection has no request under way.
func (c *Conn) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) == 0 && c.busy == 0
}

// leave takes no more streams; mu is held.
func (c *Conn) leave() {
	if c.gone {
		return
	}
	c.gone = true
	c.goAway(c.last, NoError)
	if len(c.streams) == 0 && c.busy == 0 && len(c.fresh) == 0 {
		c.finish()
	}
}

// finish has the reader end; mu is held.
func (c *Conn) finish() {
	c.ending = true
	c.rwc.SetReadDeadline(time.Unix(1, 0))
}
