package proxy

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/http3"
	"bailiwick/shared/usage"
)

// Long answers to common requests, and those of a length that nobody knows, flow: what has arrived from the upstream is passed
// on with one write, and nothing is read while the client takes nothing. A buffer is held only as long as there is something in
// it, so that streams that are silent cost none, and over HTTP/2 none while the client gives no room either: elsewhere nobody says
// how much it has, and what waits for it is a small piece (space.go). One that is still there after a second lasts: it is asked again
// like others that do, and from then on somebody watches for its client to leave.

const (
	flowPiece = 64 << 10                         // of an answer's body that is passed on at once
	flowHead  = 4 << 10                          // before it: for the head, and what frames a chunk
	flowTail  = 256                              // behind it: for what ends a chunk, and a body
	flowTurn  = 32 << 10                         // bytes that a client has the route's time for
	flowBit   = smallSpace - flowHead - flowTail // of a body that is passed on at once in a small buffer
)

// sink is what takes an answer in pieces.
type sink interface {
	// room is how much of the body the client takes now, at most so much; zero: it is to be waited for, until then if that is not
	// zero. The next piece has that room.
	room(most int, until time.Time) (int, error)
	// waive gives it back: the next piece comes later.
	waive()
	// piece sends the next n bytes of the body, which are at f.buf[flowHead:], and with the first k.out. Nothing follows the last
	// but the trailer.
	piece(k *work, f *flow, n int, last bool) error
	// watch has lost called if the client leaves.
	watch(lost context.CancelCauseFunc)
	// stop ends whoever waits to send; it is followed by nothing.
	stop()
}

// flow is a long answer on its way.
type flow struct {
	body    *http1.Body
	chunked bool     // of a length that nobody knows
	open    bool     // it ends with its connection
	begun   bool     // the head has left
	buf     []byte   // nil while nothing is in it
	small   *smallOf // in which it is
	large   *largeOf // likewise
	spaces  *spaces
	slow    bool          // the client was, with the last piece
	left    time.Duration // of waiting for the client to make room
	until   time.Time     // the client has for the next piece
	trailer []http1.Field
	lasts   bool // somebody watches the client: once over has been called
	over    func()

	gone  atomic.Bool // the client has left
	taken atomic.Bool // what the decision rested on was taken back

	mu     sync.Mutex // covers the rest
	l      *link      // nil: it is given back
	ending bool       // somebody ends it before its time
}

// flow passes a long answer on. false: the client's connection ends.
func (k *work) flow(l *link, at *failover.Target, to sink) bool {
	x, a := &k.call, &l.answer
	x.served, x.status, x.lastRow = x.p.cfg.Region, a.Status, time.Now()
	k.from.head(k, a)
	clear(k.body) // nobody will send it again
	if c, ok := k.from.(*conn); ok {
		c.lately = false
		c.r += int(c.req.Length) // what is behind it may be another request
	}
	f := &flow{l: l, chunked: a.Length < 0, open: a.Length == http1.UntilClose, body: http1.NewBody(l, a.Length, answerHead), spaces: &x.p.spaces, left: x.timeout()}
	f.over = x.outlasts(at, func() *gate.Request { return k.lasting(f, to) }, func(error) {
		f.taken.Store(true)
		f.end()
		to.stop()
	})
	defer f.close() // a panic passes
	outcome := usage.OutcomeOf(a.Status)
	for {
		n, room, err := k.gather(f, l, to)
		last := err == io.EOF
		x.out += int64(n)
		if err != nil && !last { // half an answer must not look whole
			mine := !f.gone.Load() && !f.taken.Load() && err != errTakes
			if mine && !f.begun {
				return k.dead(f)
			}
			x.broken = mine
			return k.breakOff(f)
		}
		if last {
			f.trailer = f.body.Trailer()
			if !f.give(time.Now()) {
				return k.breakOff(f)
			}
			if !x.count(outcome) {
				return k.unflown(f)
			}
		}
		now := time.Now()
		f.until = now.Add(x.timeout() * time.Duration(1+(max(n, 1)-1)/flowTurn))
		if err := to.piece(k, f, n, last); err != nil {
			return k.breakOff(f)
		}
		f.begun = true
		if last {
			return k.flown(f)
		}
		after := time.Now()
		f.slow = after.Sub(now) > flowSlow
		if f.earn(n, x.timeout()); n < room { // the client would have taken more
			f.left = max(f.left, x.timeout())
		}
		if after.Sub(x.lastRow) >= x.p.cfg.InterimEvery {
			x.interim()
		}
	}
}

// earn gives a client that has taken n bytes time to make room for more: at a byte now and then it comes to no end.
func (f *flow) earn(n int, timeout time.Duration) {
	f.left = min(f.left+timeout/flowTurn*time.Duration(n), flowPiece/flowTurn*timeout)
}

var errTakes = errors.New("the client takes nothing")

// gather reads what has arrived, as far as the client has room for it, and waits until something has and there is some. io.EOF comes
// with the last bytes, or behind them.
func (k *work) gather(f *flow, l *link, to sink) (n, room int, err error) {
	patience := k.call.timeout()
	for {
		if room, err = to.room(flowPiece, time.Time{}); err != nil {
			return 0, 0, errTakes
		}
		if room == 0 {
			if room, err = k.await(f, l, to); err != nil {
				return 0, 0, err
			}
		}
		f.take(room)
		most := min(room, len(f.buf)-flowHead-flowTail)
		l.still = true
		for n < most && err == nil {
			var m int
			m, err = f.body.Read(f.buf[flowHead+n : flowHead+most])
			n += m
		}
		l.still = false
		if err != http1.ErrWait {
			return n, room, err
		}
		if n > 0 || f.chunked && !f.begun { // whoever waits for events sees at once that they will come
			return n, room, nil
		}
		f.free()
		to.waive()
		l.patience(time.Now(), patience)
		if f.gone.Load() || f.taken.Load() { // after the deadline, which else would take the place of the one that ends this
			return 0, 0, errGone
		}
		if _, err = l.Peek(); err != nil {
			if err == io.EOF && !f.open { // with which an open one is whole
				err = io.ErrUnexpectedEOF
			}
			return 0, 0, err
		}
	}
}

// await waits for a client that has no room, once there is something for it. Nothing of the body is held meanwhile, and an end
// of it needs no room. The head does not wait: it may be what the client makes room for.
func (k *work) await(f *flow, l *link, to sink) (room int, err error) {
	f.free()
	timeout := k.call.timeout()
	if !f.begun {
		f.until = time.Now().Add(timeout)
		if err := to.piece(k, f, 0, false); err != nil {
			return 0, errTakes
		}
		f.begun = true
	}
	l.patience(time.Now(), timeout)
	if f.gone.Load() || f.taken.Load() {
		return 0, errGone
	}
	if err := f.body.Ahead(); err != nil {
		return 0, err
	}
	began := time.Now()
	room, err = to.room(flowPiece, began.Add(max(f.left, time.Nanosecond)))
	f.left -= time.Since(began)
	if err != nil {
		return 0, errTakes
	}
	return room, nil
}

// take takes a buffer for so much: a large one if that is worth it. There is nothing in the one that it has.
func (f *flow) take(n int) {
	switch large := n > flowBit && !f.slow; {
	case large && f.large == nil && f.spaces.enlarge():
		f.free()
		f.large = f.spaces.large.Get().(*largeOf)
		f.buf = f.large[:]
	case f.small == nil && (!large || f.large == nil):
		f.free()
		f.small = f.spaces.small.Get().(*smallOf)
		f.buf = f.small[:]
	}
}

// free gives the buffer back, if there is one.
func (f *flow) free() {
	switch {
	case f.large != nil:
		f.spaces.large.Put(f.large)
		f.spaces.larges.Add(-1)
	case f.small != nil:
		f.spaces.small.Put(f.small)
	}
	f.buf, f.large, f.small = nil, nil, nil
}

// give gives the upstream's connection back: its answer was read to its end. false: somebody has ended the flow.
func (f *flow) give(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ending {
		return false
	}
	if f.body.Done() {
		f.l.o.put(f.l, now)
	} else {
		f.l.conn.Close()
	}
	f.l = nil
	return true
}

// end ends it, whoever waits for the upstream.
func (f *flow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ending = true; f.l != nil {
		f.l.conn.SetDeadline(past)
	}
}

// close frees what it holds.
func (f *flow) close() {
	f.over()
	f.free()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ending = true; f.l != nil {
		f.l.conn.Close()
		f.l = nil
	}
}

// lasting is called once the answer has been under way for a while: it has the client watched, and says what was asked.
func (k *work) lasting(f *flow, to sink) *gate.Request {
	f.lasts = true
	to.watch(func(error) {
		f.gone.Store(true)
		f.end()
	})
	a := k.ask.Request // in text that outlives the connection's buffer
	a.Host, a.Method, a.Path, a.Remote = strings.Clone(a.Host), strings.Clone(a.Method), strings.Clone(a.Path), strings.Clone(a.Remote)
	a.Authorization, a.APIKey = nil, nil
	return &a
}

// flown is the end of an answer that has left whole. false: the connection ends.
func (k *work) flown(f *flow) bool {
	f.over()
	switch from := k.from.(type) {
	case *conn:
		from.unwatch(f)
		if f.taken.Load() { // too late for this one, and its deadline is not the next one's
			from.wuntil = time.Time{}
		}
		from.finish()
		return !from.last
	case *front2:
		from.active = false
		k.call.close()
	case *front3:
		from.active = false
		k.call.close()
	}
	return true
}

// breakOff ends an answer of which the client must see that it is not whole. The row is written first.
func (k *work) breakOff(f *flow) bool {
	f.over()
	k.call.count(usage.OutcomeAborted)
	if c, ok := k.from.(*conn); ok {
		c.abort()
		c.unwatch(f)
	}
	return k.from.send(k, false)
}

// unflown ends an answer that could not be counted.
func (k *work) unflown(f *flow) bool {
	f.over()
	if f.begun || f.lasts {
		return k.breakOff(f)
	}
	k.from.(sink).waive()
	if c, ok := k.from.(*conn); ok {
		c.r -= int(c.req.Length)
	}
	return k.from.exchange(k, func(e *exchange) { e.uncounted(e.w.Header()) })
}

// dead answers in the place of an upstream that died when nothing of its answer had left.
func (k *work) dead(f *flow) bool {
	f.over()
	k.from.(sink).waive()
	if c, ok := k.from.(*conn); ok {
		c.unwatch(f)
		c.req.Length = 0 // its body is read, and where that was may be the next request by now
	}
	x := &k.call
	x.served, x.status, x.out = "", 0, 0
	return k.from.exchange(k, func(e *exchange) { e.refuse(died) })
}

var died = gate.NewProblem(502, gate.ReasonUpstream, "The upstream failed within its answer, of which nothing was passed on; it may have acted on the request.")

// piece implements sink.
func (c *conn) piece(k *work, f *flow, n int, last bool) error {
	if f.buf == nil { // what frames an empty piece needs one too
		f.take(0)
	}
	start, b := flowHead, f.buf[:flowHead+n]
	if f.chunked && n > 0 {
		var size [16]byte
		digits := strconv.AppendInt(size[:0], int64(n), 16)
		start -= 2
		copy(b[start:], "\r\n")
		start -= len(digits)
		copy(b[start:], digits)
		b = append(b, '\r', '\n')
	}
	if f.chunked && last {
		b = append(b, '0')
		for i := range f.trailer {
			if t := &f.trailer[i]; classOf(t.Name) != stays {
				b = field(b, t.Name, t.Value)
			}
		}
		b = append(b, "\r\n\r\n"...)
	}
	c.wuntil = f.until
	c.rwc.SetWriteDeadline(f.until)
	if f.taken.Load() {
		return errTaken
	}
	if !f.begun {
		if start >= len(k.out) {
			start -= len(k.out)
			copy(b[start:], k.out)
		} else if _, err := c.rwc.Write(k.out); err != nil {
			return err
		}
	}
	_, err := c.rwc.Write(b[start:])
	return err
}

// room implements sink. What a socket has room for is not asked: a piece that waits is a small one.
func (c *conn) room(most int, _ time.Time) (int, error) { return most, nil }

// waive implements sink.
func (c *conn) waive() {}

// watch implements sink.
func (c *conn) watch(lost context.CancelCauseFunc) { c.ahead.start(c, lost) }

// unwatch ends it.
func (c *conn) unwatch(f *flow) {
	if f.lasts {
		c.ahead.stop(c)
		c.until = time.Time{}
		c.rwc.SetReadDeadline(c.until)
	}
}

// stop implements sink.
func (c *conn) stop() { c.rwc.SetWriteDeadline(past) }

// piece implements sink.
func (f2 *front2) piece(k *work, f *flow, n int, last bool) error {
	var head, tail []byte
	if !f.begun {
		head = k.out
	}
	for i := range f.trailer {
		if t := &f.trailer[i]; classOf(t.Name) != stays {
			tail = http2.AppendField(tail, t.Name, t.Value)
		}
	}
	var body []byte
	if n > 0 {
		body = f.buf[flowHead : flowHead+n]
	}
	return f2.s.Part(head, body, tail, last, f.until)
}

// room implements sink.
func (f2 *front2) room(most int, until time.Time) (int, error) { return f2.s.Room(most, until) }

// waive implements sink.
func (f2 *front2) waive() { f2.s.Waive() }

// watch implements sink.
func (f2 *front2) watch(lost context.CancelCauseFunc) { f2.s.Notify(lost) }

// stop implements sink.
func (f2 *front2) stop() { f2.s.Stop() }

// piece implements sink.
func (f3 *front3) piece(k *work, f *flow, n int, last bool) error {
	var head, tail []byte
	if !f.begun {
		head = k.out
	}
	for i := range f.trailer {
		if t := &f.trailer[i]; classOf(t.Name) != stays {
			if tail == nil {
				tail = http3.AppendTrailer(nil)
			}
			tail = http3.AppendField(tail, t.Name, t.Value)
		}
	}
	if f.buf == nil { // what frames an empty piece needs one too
		f.take(0)
	}
	return f3.s.Part(head, f.buf[:flowHead+n], flowHead, tail, last, f.until, &f.taken)
}

// room implements sink. What QUIC has room for it does not say: a piece that waits is a small one.
func (f3 *front3) room(most int, _ time.Time) (int, error) { return most, nil }

// waive implements sink.
func (f3 *front3) waive() {}

// watch implements sink.
func (f3 *front3) watch(lost context.CancelCauseFunc) { f3.s.Notify(lost) }

// stop implements sink.
func (f3 *front3) stop() { f3.s.Stop() }
