package http2

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/http1"
)

// Stream is a request and its answer. One goroutine serves it.
type Stream struct {
	// Request is what is asked, as HTTP/1.1 would have it, without what belongs to a connection. It is good until serving ends.
	Request http1.Request

	c        *Conn
	id       uint32
	block    head.Block
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
	held      int   // of the connection's
	promised  int64 // room that is kept for its next part, in the windows and in the queue
	lined     bool  // it stands in the connection's line
	readUntil time.Time
	sendUntil time.Time
	stopped   bool // who waits to send, waits no more
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
	case s.block.TooBig:
		s.Plain(http.StatusRequestHeaderFieldsTooLarge, "The request's head is too large.")
	default:
		c.serve(s)
	}
}

// end is what is left to do once nobody serves it.
func (s *Stream) end() {
	c := s.c
	c.mu.Lock()
	s.done = true
	s.waive()
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
	c.held -= s.held
	c.flush(false)
	c.idles()
	c.mu.Unlock()
	s.free()
}

// idles says that one of those that work for the connection is done; mu is held.
func (c *Conn) idles() {
	if c.busy--; c.busy > 0 {
		return
	}
	c.leaves()
	if c.quiet != nil {
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
	count(&c.v.counts.resets, code)
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

// flush writes what is queued, and what is queued meanwhile: all of it, or until it has had its turn, and others go on. Who
// passes an upstream's answer on must not be kept from it by those who fill the queue without end. mu is held, but not while it
// writes.
func (c *Conn) flush(all bool) {
	if c.writing {
		return
	}
	c.writing = true
	var turn time.Time
	for c.out != nil && !c.dead {
		if c.busy > 1 { // whoever else is ready to answer may do so in the same write
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		now := time.Now()
		if turn.IsZero() {
			turn = now.Add(writeTurn)
		} else if !all && !now.Before(turn) {
			c.writing = false
			c.soon()
			return
		}
		b := c.out
		c.out = nil
		c.call()
		if left := c.wuntil.Sub(now); left < sendTimeout*2/3 || left > sendTimeout {
			c.wuntil = now.Add(sendTimeout)
			c.rwc.SetWriteDeadline(c.wuntil)
		}
		c.mu.Unlock()
		n, err := c.rwc.Write(b.b)
		c.v.put(b)
		c.mu.Lock()
		if n >= maxFrame {
			c.moved = time.Now()
		}
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
	for _, s := range c.line {
		s.wwake.wake()
	}
}

// call wakes who stands first in the line: there is room for it.
func (c *Conn) call() {
	if len(c.line) > 0 {
		c.line[0].wwake.wake()
	}
}

// turn says whether the stream may queue something: there is room, and nobody has waited for longer. mu is held.
func (s *Stream) turn() bool {
	c := s.c
	return c.queued() < queueMost && (len(c.line) == 0 || c.line[0] == s)
}

// queued is how much waits to be written, or is about to; mu is held.
func (c *Conn) queued() int {
	if c.out == nil {
		return c.promised
	}
	return c.promised + len(c.out.b)
}

// Room is how much of a body the client and the connection's queue take now, at most so much. The next Part has that room, and does
// not wait for any: whoever asks first need hold nothing while a client takes nothing. 0: there is none yet, by until, which may be
// zero. What is not used goes back with the next Room, Part or Waive.
func (s *Stream) Room(most int, until time.Time) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.waive()
	s.sendUntil = until
	defer s.unline()
	for {
		switch {
		case s.gone != nil:
			return 0, s.gone
		case c.dead || s.stopped:
			return 0, errGone
		}
		n := min(int64(most), s.outWindow, c.outWindow)
		if n > 0 && s.turn() {
			n = min(n, int64(max(maxFrame, queueMost-c.queued())))
			s.promised = n
			s.outWindow -= n
			c.outWindow -= n
			c.promised += int(n)
			return int(n), nil
		}
		if until.IsZero() {
			return 0, nil
		}
		if err := s.await(&until, n > 0); err != nil {
			return 0, err
		}
	}
}

// Waive gives back what Room has kept for a part that does not come yet.
func (s *Stream) Waive() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.waive()
}

func (s *Stream) waive() {
	if s.promised == 0 {
		return
	}
	c, n := s.c, s.promised
	shut := c.outWindow <= 0
	s.promised = 0
	s.outWindow += n
	c.outWindow += n
	c.promised -= int(n)
	if c.call(); shut {
		c.wake()
	}
}

// unline has the stream stand in the line no more, and calls the next; mu is held.
func (s *Stream) unline() {
	if !s.lined {
		return
	}
	s.lined = false
	c := s.c
	at := slices.Index(c.line, s)
	c.line = slices.Delete(c.line, at, at+1)
	c.call()
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
	return len(body) == 0 || s.send(body, true, 0) == nil
}

// Part sends a part of an answer: its head first, if there is one, and its trailers behind it, if it is the last. The client has
// until then to give room for it.
func (s *Stream) Part(head, body, trailers []byte, last bool, until time.Time) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sendUntil = until
	sure := s.promised // nobody can take it before this returns, since mu is held
	s.waive()
	ends := last && len(trailers) == 0
	if len(head) > 0 {
		if sure > 0 && s.gone == nil {
			c.heads(s.id, head, false)
		} else if err := s.begin(head, ends && len(body) == 0); err != nil || s.answered {
			return err
		}
	}
	if len(body) > 0 || ends {
		if err := s.send(body, ends, sure); err != nil || !last || ends {
			return err
		}
	}
	if last {
		return s.begin(trailers, true)
	}
	c.flush(false)
	return nil
}

// Stop has sending fail from now on, also of whoever waits with it. The stream is still to be answered or reset.
func (s *Stream) Stop() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.stopped = true
	s.wwake.wake()
}

// Notify has lost called once the client has left or the stream has failed, if it has by now at once.
func (s *Stream) Notify(lost context.CancelCauseFunc) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.cancel = lost; s.gone != nil {
		lost(s.gone)
	}
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
		c.flush(false)
	}
	return nil
}

// room waits until something may be queued; mu is held.
func (s *Stream) room() error {
	c := s.c
	var until time.Time
	defer s.unline()
	for {
		switch {
		case s.gone != nil:
			return s.gone
		case c.dead || s.stopped:
			return errGone
		case s.turn():
			return nil
		}
		if err := s.await(&until, true); err != nil {
			return err
		}
	}
}

// await waits until there may be room in the queue, or else in a window; mu is held, but not while it waits. For the queue
// streams stand in a line: whoever takes much would fill it before those wake who wait, and they would be given up.
func (s *Stream) await(until *time.Time, queue bool) error {
	c := s.c
	if !queue {
		s.unline()
	} else if !s.lined {
		s.lined = true
		c.line = append(c.line, s)
	}
	if c.out != nil && !c.writing && !c.hurried {
		c.flush(false)
		return nil
	}
	if until.IsZero() {
		if *until = s.sendUntil; until.IsZero() {
			*until = time.Now().Add(sendTimeout)
		}
	} else if !s.sendUntil.IsZero() && s.sendUntil.Before(*until) { // somebody else ends it
		*until = s.sendUntil
	}
	if !queue {
		c.waiting = append(c.waiting, s)
	}
	c.mu.Unlock()
	err := s.wwake.wait(*until)
	c.mu.Lock()
	if err != nil && queue && s.sendUntil.IsZero() && time.Since(c.moved) < sendTimeout { // the client takes what is before it in the line
		*until = time.Time{}
		return nil
	}
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

// send queues a part of the body, as there is room for it, of which it has sure in the queue; mu is held, but not while it waits.
func (s *Stream) send(p []byte, ends bool, sure int64) error {
	c := s.c
	var until time.Time
	moved := int64(0) // since until was set
	defer s.unline()
	for {
		if s.gone != nil {
			return s.gone
		}
		if c.dead || s.stopped {
			return errGone
		}
		n := int64(len(p))
		if n > 0 {
			n = min(n, maxFrame, s.outWindow, c.outWindow)
			if n <= 0 || sure <= 0 && !s.turn() {
				if err := s.await(&until, n > 0); err != nil {
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
		sure -= n
		s.outWindow -= n
		c.outWindow -= n
		c.owed += 2 * n
		earned := int(n / allowanceBytes)
		if n == int64(len(p)) { // what a window has cut is the client's own doing
			earned += allowancePart
		}
		c.tokens = min(c.tokens+earned, allowance)
		if p = p[n:]; len(p) > 0 {
			if moved += n; moved >= maxFrame { // a client that gives room for a byte now and then has no more time for it
				until, moved = time.Time{}, 0
			}
			s.unline()
			continue
		}
		if ends {
			s.whole()
		}
		c.flush(false)
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
	count(&c.v.counts.away, code)
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

// leave takes no more streams; mu is held.
func (c *Conn) leave() {
	if c.gone {
		return
	}
	c.gone = true
	c.goAway(c.last, NoError)
	c.leaves()
}

// leaves ends the connection if it takes no more and nothing is under way; mu is held.
func (c *Conn) leaves() {
	if c.gone && len(c.streams) == 0 && c.busy == 0 && len(c.fresh) == 0 {
		c.finish()
	}
}

// Yield ends the connection if no request of it is under way, so that another may have its place. false: one is, or it ends
// already.
func (c *Conn) Yield() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.ending || c.gone || len(c.streams) > 0 || c.busy > 0 || len(c.fresh) > 0 {
		return false
	}
	c.leave()
	return true
}

// finish has the reader end; mu is held.
func (c *Conn) finish() {
	c.ending = true
	c.rwc.SetReadDeadline(time.Unix(1, 0))
}
