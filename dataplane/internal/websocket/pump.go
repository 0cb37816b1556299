package websocket

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	smallBuffer = 4 << 10 // of one direction that has little to say
	largeBuffer = 32 << 10

	controlBurst  = 100 // control frames of one side at once,
	controlSecond = 10  // and so many a second beyond
)

var large = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// pump carries what one side says to the other. Frames are rewritten where they lie: what is ready to be sent is
// buf[start:next], what was read and not looked at buf[next:end]. Whole frames go on whole; one that comes in pieces goes on as
// fragments, so that nothing waits here and a control frame has its place between any two writes.
type pump struct {
	j        *joint
	from, to *side
	up       bool // from the client

	buf, small       []byte
	wide             *[largeBuffer]byte // buf, when it is large
	start, next, end int

	rest int64  // bytes of the frame under way that did not come yet
	fin  bool   // it is the message's last
	key  uint32 // it is masked with
	at   int    // bytes of it that came, modulo 4

	message byte  // operation of the message under way; 0: none is
	op      byte  // of the next frame of it that is sent
	size    int64 // bytes of it
	text    text

	controls float64 // control frames that may come now
	counted  time.Duration
	data     bool // some of what is ready is of a message
}

func newPump(j *joint, from, to *side, up bool) *pump {
	p := &pump{j: j, from: from, to: to, up: up, small: make([]byte, smallBuffer), controls: controlBurst}
	p.buf = p.small
	p.start, p.next, p.end = maxHeader, maxHeader, maxHeader
	return p
}

// how a direction ended: with a close frame, or with an error.
type ended struct {
	p      *pump
	code   uint16 // of the close frame; 0: it had none
	reason string
	closed bool
	gone   *side // the side that broke off; nil: none did
	err    error
}

// run carries until either side ends.
func (p *pump) run() ended {
	defer func() {
		if p.wide != nil {
			clear(p.wide[:])
			large.Put(p.wide)
		}
	}()
	for {
		if p.rest > 0 {
			if p.next == p.end {
				if e, ok := p.more(); !ok {
					return e
				}
			}
			n := int(min(p.rest, int64(p.end-p.next)))
			if e, ok := p.piece(p.next, n); !ok {
				return e
			}
			continue
		}
		h, err := parse(p.buf[p.next:p.end], p.up)
		if err == errShort || err == nil && h.op >= opClose && p.end-p.next < h.size+int(h.length) {
			if e, ok := p.more(); !ok {
				return e
			}
			continue
		}
		if err != nil {
			return p.fail(err)
		}
		if h.op >= opClose {
			if e, ok := p.control(&h); !ok {
				return e
			}
			continue
		}
		if err := p.begin(&h); err != nil {
			return p.fail(err)
		}
		at := p.next + h.size
		n := int(min(p.rest, int64(p.end-at)))
		if n == 0 && p.rest > 0 { // its first piece is still on the way
			if err := p.flush(); err != nil {
				return ended{p: p, gone: p.to, err: err}
			}
			p.start, p.next = at, at
			continue
		}
		if e, ok := p.piece(at, n); !ok {
			return e
		}
	}
}

// begin takes the header of a frame of data.
func (p *pump) begin(h *header) error {
	switch {
	case h.op == opContinue && p.message == 0:
		return errNotBegun
	case h.op != opContinue && p.message != 0:
		return errBegun
	case h.op != opContinue:
		p.size = 0
	}
	if p.size += h.length; p.size > p.j.cfg.MaxMessage || p.size < 0 {
		return errTooBig
	}
	if h.op != opContinue {
		if err := p.j.cfg.Meter.Spend(p.up, 1, 0); err != nil {
			return err
		}
		p.message, p.op, p.text = h.op, h.op, text{}
	}
	p.rest, p.fin, p.key, p.at = h.length, h.fin, h.key, 0
	return nil
}

// piece makes a frame of n bytes of payload that lie at at.
func (p *pump) piece(at, n int) (ended, bool) {
	data, last := p.buf[at:at+n], p.fin && int64(n) == p.rest
	if n > 0 {
		if err := p.j.cfg.Meter.Spend(p.up, 0, int64(n)); err != nil {
			return p.fail(err), false
		}
	}
	key := uint32(0)
	if p.to.masked {
		key = rand.Uint32()
	}
	if p.message == opText {
		mask(data, p.key, p.at)
		if !p.text.add(data, last) {
			return p.fail(errText), false
		}
		mask(data, key, 0)
	} else {
		old := p.key
		if k := p.at & 3 * 8; k != 0 {
			old = old>>k | old<<(32-k)
		}
		mask(data, old^key, 0)
	}
	begins := before(p.buf, at, p.op, last, n, p.to.masked, key)
	if begins != p.next { // the header is shorter than the one that was here, or has its place in front of all
		if err := p.flush(); err != nil {
			return ended{p: p, gone: p.to, err: err}, false
		}
		p.start = begins
	}
	p.next = at + n
	p.rest, p.at, p.op = p.rest-int64(n), (p.at+n)&3, opContinue
	if last {
		p.message = 0
	}
	p.data = true
	return ended{}, true
}

// control takes a control frame, which is here whole.
func (p *pump) control(h *header) (ended, bool) {
	now := p.j.since()
	p.controls = min(controlBurst, p.controls+(now-p.counted).Seconds()*controlSecond)
	p.counted = now
	if p.controls--; p.controls < 0 {
		return p.fail(errFlood), false
	}
	at := p.next + h.size
	data := p.buf[at : at+int(h.length)]
	mask(data, h.key, 0)
	e := ended{p: p, closed: true}
	if h.op == opClose {
		var err error
		if e.code, e.reason, err = closing(data); err != nil {
			return p.fail(err), false
		}
	}
	if h.op == opPong && string(data) == string(p.from.nonce[:]) || h.op == opClose && p.j.ordered.Load() { // an answer to this edge
		if err := p.flush(); err != nil {
			return ended{p: p, gone: p.to, err: err}, false
		}
		p.next = at + len(data)
		p.start = p.next
		return e, h.op != opClose
	}
	key := uint32(0)
	if p.to.masked {
		key = rand.Uint32()
	}
	mask(data, key, 0)
	if begins := before(p.buf, at, h.op, true, len(data), p.to.masked, key); begins != p.next {
		if err := p.flush(); err != nil {
			return ended{p: p, gone: p.to, err: err}, false
		}
		p.start = begins
	}
	p.next = at + len(data)
	if h.op != opClose {
		return e, true
	}
	if err := p.send(true); err != nil && err != errClosed {
		e.gone, e.err = p.to, err
	}
	return e, false
}

// fail ends the direction for what its side did or may not do; what was ready before that goes on.
func (p *pump) fail(err error) ended {
	p.flush()
	return ended{p: p, err: err}
}

// flush sends what is ready.
func (p *pump) flush() error {
	if p.start == p.next {
		return nil
	}
	return p.send(false)
}

func (p *pump) send(last bool) error {
	err := p.to.write(p.buf[p.start:p.next], last, p.j.since)
	p.start = p.next
	now := int64(p.j.since())
	p.from.heard.Store(now) // while this side took nothing, nobody listened to that one
	if p.data {
		p.j.spoke.Store(now)
		p.data = false
	}
	return err
}

// more reads further bytes, after all that is ready was sent.
func (p *pump) more() (ended, bool) {
	if err := p.flush(); err != nil {
		return ended{p: p, gone: p.to, err: err}, false
	}
	full := p.end == len(p.buf)
	n := copy(p.buf[maxHeader:], p.buf[p.next:p.end])
	p.start, p.next, p.end = maxHeader, maxHeader, maxHeader+n
	p.fit(full)
	n, err := p.from.leg.Read(p.buf[p.end:])
	p.from.heard.Store(int64(p.j.since()))
	if p.end += n; n > 0 {
		return ended{}, true
	}
	if err == nil {
		return ended{}, true
	}
	return ended{p: p, gone: p.from, err: err}, false
}

// fit takes a large buffer where the last read filled what there was, and gives it back where it did not.
func (p *pump) fit(full bool) {
	switch {
	case full && p.wide == nil:
		p.wide = large.Get().(*[largeBuffer]byte)
		copy(p.wide[:p.end], p.buf[:p.end])
		p.buf = p.wide[:]
	case !full && p.wide != nil && p.end < smallBuffer/2:
		copy(p.small[:p.end], p.buf[:p.end])
		clear(p.wide[:])
		large.Put(p.wide)
		p.wide, p.buf = nil, p.small
	}
}
