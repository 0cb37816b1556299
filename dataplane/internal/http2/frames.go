package http2

import (
	"encoding/binary"
	"time"

	"bailiwick/dataplane/internal/head"
)

func appendFrame(b []byte, kind, flags byte, id uint32, n int) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// next takes the next frame, if it is whole. A code ends the connection.
func (c *Conn) next() (more bool, code Code) {
	b := c.buf[c.r:c.w]
	if len(b) < 9 {
		return false, none
	}
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if n > maxFrame {
		return false, FrameSizeError
	}
	if len(b) < 9+n {
		return false, none
	}
	kind, flags, id := b[3], b[4], binary.BigEndian.Uint32(b[5:])&(1<<31-1)
	b = b[9 : 9+n]
	c.r += 9 + n
	if !c.settled {
		if kind != frameSettings || flags&flagEnd != 0 {
			return false, ProtocolError
		}
		c.settled = true
	}
	if (c.partOf != 0 || kind == frameContinuation) && (kind != frameContinuation || c.partOf == 0 || id != c.partOf) {
		return false, ProtocolError
	}
	switch kind {
	case frameData:
		code = c.data(flags, id, b)
	case frameHeaders:
		code = c.headers(flags, id, b)
	case frameContinuation:
		code = c.continued(flags, b)
	case framePriority:
		code = c.priority(id, b)
	case frameReset:
		code = c.reset(id, b)
	case frameSettings:
		code = c.settings(flags, id, b)
	case framePush:
		code = ProtocolError
	case framePing:
		code = c.ping(flags, id, b)
	case frameGoAway:
		if id != 0 {
			return false, ProtocolError
		}
		if len(b) < 8 {
			return false, FrameSizeError
		}
		code = c.spend()
	case frameWindow:
		code = c.window(id, b)
	default:
		code = c.spend()
	}
	return true, code
}

// spend takes one of the allowance.
func (c *Conn) spend() Code {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spent()
}

func (c *Conn) spent() Code {
	if c.tokens--; c.tokens >= 0 {
		return none
	}
	now := time.Now()
	if c.refilled.IsZero() {
		c.refilled = now.Add(-time.Second)
	}
	c.tokens = int(min(now.Sub(c.refilled).Seconds()*allowanceSecond, allowance)) - 1
	c.refilled = now
	if c.tokens < 0 {
		return EnhanceYourCalm
	}
	return none
}

// unpadded takes the padding off.
func unpadded(flags byte, b []byte) (data []byte, code Code) {
	if flags&flagPadded == 0 {
		return b, none
	}
	if len(b) == 0 {
		return nil, FrameSizeError
	}
	pad := int(b[0])
	if b = b[1:]; pad > len(b) {
		return nil, ProtocolError
	}
	return b[:len(b)-pad], none
}

func (c *Conn) data(flags byte, id uint32, b []byte) Code {
	if id == 0 {
		return ProtocolError
	}
	n := int64(len(b)) // flow control counts the padding too
	b, code := unpadded(flags, b)
	if code != none {
		return code
	}
	ends := flags&flagEnd != 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inWindow -= n; c.inWindow < 0 {
		return FlowControlError
	}
	if len(b) == 0 && !ends {
		if code := c.spent(); code != none {
			return code
		}
	}
	s := c.streams[id]
	if s == nil {
		c.took(nil, n)
		return c.stray(id, StreamClosed)
	}
	if s.ended {
		c.took(nil, n)
		c.fail(s, StreamClosed)
		return c.spent() // who makes this side reset streams pays as if he did
	}
	s.inWindow -= n
	s.got += int64(len(b))
	switch {
	case s.inWindow < 0:
		c.took(nil, n)
		c.fail(s, FlowControlError)
		return c.spent()
	case s.declared >= 0 && (s.got > s.declared || ends && s.got < s.declared):
		c.took(nil, n)
		c.fail(s, ProtocolError)
		return c.spent()
	}
	if s.done { // nobody reads it any more
		c.took(s, n)
	} else {
		c.took(s, n-int64(len(b)))
		if len(s.body)+len(b) > cap(s.body) {
			s.body = append(s.body[:0], s.body[s.read:]...)
			s.read = 0
		}
		s.body = append(s.body, b...)
	}
	if ends {
		s.ended = true
	}
	s.rwake.wake()
	return none
}

// stray is a frame of a stream that is not there.
func (c *Conn) stray(id uint32, closed Code) Code {
	if id > c.last {
		if c.gone {
			return none
		}
		return ProtocolError
	}
	for _, i := range c.ignored {
		if i == id {
			return none
		}
	}
	if closed == none {
		return none
	}
	c.resets(id, closed)
	return c.spent()
}

// ignore says that frames of a stream may still come.
func (c *Conn) ignore(id uint32) {
	c.ignored[c.ignoring%ignoredMost] = id
	c.ignoring++
}

// took says that n bytes were read, or thrown away, so that the client may send as many.
func (c *Conn) took(s *Stream, n int64) {
	if n == 0 {
		return
	}
	if c.unread += n; c.unread >= connWindow/4 {
		c.told(0, c.unread)
		c.inWindow += c.unread
		c.unread = 0
	}
	if s == nil || s.ended || s.gone != nil {
		return
	}
	if s.unread += n; s.unread >= streamWindow/4 {
		c.told(s.id, s.unread)
		s.inWindow += s.unread
		s.unread = 0
	}
}

func (c *Conn) told(id uint32, n int64) {
	b := c.queue()
	b.b = binary.BigEndian.AppendUint32(appendFrame(b.b, frameWindow, 0, id, 4), uint32(n))
}

func (c *Conn) headers(flags byte, id uint32, b []byte) Code {
	if id == 0 || id&1 == 0 {
		return ProtocolError
	}
	b, code := unpadded(flags, b)
	if code != none {
		return code
	}
	c.partLoops = false
	if flags&flagPriority != 0 {
		if len(b) < 5 {
			return FrameSizeError
		}
		c.partLoops = binary.BigEndian.Uint32(b)&(1<<31-1) == id
		b = b[5:]
	}
	c.partEnds = flags&flagEnd != 0
	if flags&flagHeaders != 0 {
		return c.block(id, b)
	}
	c.partOf, c.parts, c.began = id, 0, time.Now()
	c.part = append(c.part[:0], b...)
	return none
}

func (c *Conn) continued(flags byte, b []byte) Code {
	if c.parts++; c.parts > fragments || len(c.part)+len(b) > c.maxHead {
		return EnhanceYourCalm
	}
	c.part = append(c.part, b...)
	if flags&flagHeaders == 0 {
		return none
	}
	id := c.partOf
	c.partOf = 0
	code := c.block(id, c.part)
	if c.part = c.part[:0]; cap(c.part) > keptText {
		c.part = nil
	}
	return code
}

// block takes a whole header block. It is decompressed whatever becomes of it: the next rests on it.
func (c *Conn) block(id uint32, b []byte) Code {
	c.mu.Lock()
	s, last, gone := c.streams[id], c.last, c.gone
	c.mu.Unlock()
	if id <= last || gone {
		c.spare = head.Block{Text: c.spare.Text[:0], Fields: c.spare.Fields[:0], Most: c.maxHead}
		if c.table.decode(b, &c.spare) != nil {
			return CompressionError
		}
		code := none // the client was told to go elsewhere with it
		if id <= last {
			code = c.behind(s, id)
		}
		if max(cap(c.spare.Text), cap(c.spare.Fields)*head.FieldExtra) > keptText { // a connection may be idle for long
			c.spare = head.Block{}
		}
		return code
	}
	s = c.v.stream(c, id)
	if c.table.decode(b, &s.block) != nil {
		s.free()
		return CompressionError
	}
	s.declared = -1 // of a head that is too large it is not known, and its body is no breach of what it may have said
	wellFormed := s.block.TooBig
	if !wellFormed {
		s.declared, wellFormed = s.block.Parse(&s.Request, c.partEnds)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		s.free()
		return none
	}
	c.last = id
	s.ended, s.inWindow, s.outWindow = c.partEnds, streamWindow, c.initial
	switch {
	case !wellFormed, c.partLoops:
		c.refuse(s, ProtocolError)
	case c.held > 0 && c.held+s.block.Kept() > headsMost: // a few bytes of a block may be many of a head
		c.refuse(s, RefusedStream)
	case len(c.streams) >= MaxStreams, c.busy+len(c.fresh) >= 2*MaxStreams: // also those that it has reset count as long as they take work
		c.refuse(s, RefusedStream)
	default:
		s.held = s.block.Kept()
		c.held += s.held
		c.streams[id] = s
		c.fresh = append(c.fresh, s)
		c.idle = time.Time{} // it may be answered before anybody looks
		return none
	}
	s.free()
	return c.spent()
}

func (c *Conn) refuse(s *Stream, code Code) {
	c.resets(s.id, code)
	if !s.ended {
		c.ignore(s.id)
	}
}

// behind is a block of a stream that is there already: what follows its body.
func (c *Conn) behind(s *Stream, id uint32) Code {
	t, ok := c.spare.Trailer()
	clear(c.spare.Text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s = c.streams[id]; s == nil { // it may have ended meanwhile
		for _, i := range c.ignored {
			if i == id {
				return none
			}
		}
		return StreamClosed
	}
	n := c.spare.Kept()
	switch {
	case s.ended:
		c.fail(s, StreamClosed)
	case c.held+n > headsMost:
		c.fail(s, EnhanceYourCalm)
	case !ok || !c.partEnds || c.partLoops || c.spare.TooBig || s.declared >= 0 && s.got != s.declared:
		c.fail(s, ProtocolError)
	default:
		s.ended = true
		if len(t) > 0 {
			s.trailer = t
			s.held += n
			c.held += n
		}
		s.rwake.wake()
		return none
	}
	return c.spent()
}

func (c *Conn) priority(id uint32, b []byte) Code {
	if id == 0 {
		return ProtocolError
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	bad := none
	switch {
	case len(b) != 5:
		bad = FrameSizeError
	case binary.BigEndian.Uint32(b)&(1<<31-1) == id:
		bad = ProtocolError
	}
	if bad != none {
		if s := c.streams[id]; s != nil {
			c.fail(s, bad)
		} else {
			c.resets(id, bad)
		}
	}
	return c.spent()
}

func (c *Conn) reset(id uint32, b []byte) Code {
	if len(b) != 4 {
		return FrameSizeError
	}
	if id == 0 {
		return ProtocolError
	}
	c.mu.Lock()
	s := c.streams[id]
	if s == nil && id > c.last && !c.gone {
		c.mu.Unlock()
		return ProtocolError
	}
	defer c.mu.Unlock()
	if s != nil {
		c.v.counts.theirs.Add(1)
		delete(c.streams, id)
		s.lost(errReset)
	}
	return c.spent()
}

func (c *Conn) settings(flags byte, id uint32, b []byte) Code {
	if id != 0 {
		return ProtocolError
	}
	if len(b)%6 != 0 || flags&flagEnd != 0 && len(b) != 0 {
		return FrameSizeError
	}
	if flags&flagEnd != 0 {
		return c.spend()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	window := c.initial
	for ; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case settingPush:
			if v > 1 {
				return ProtocolError
			}
		case settingWindow:
			if v > 1<<31-1 {
				return FlowControlError
			}
			window = int64(v)
		case settingFrame:
			if v < 16<<10 || v > 1<<24-1 {
				return ProtocolError
			}
		}
	}
	if by := window - c.initial; by != 0 { // once a frame, however often it says another
		c.initial = window
		for _, s := range c.streams {
			if s.outWindow += by; s.outWindow > 1<<31-1 {
				return FlowControlError
			}
		}
		c.wake()
	}
	q := c.queue()
	q.b = appendFrame(q.b, frameSettings, flagEnd, 0, 0)
	return c.asked(q)
}

// asked is a frame that has to be answered, with what is queued in q.
func (c *Conn) asked(q *buffer) Code {
	if len(q.b) > queueControl {
		return EnhanceYourCalm
	}
	return c.spent()
}

func (c *Conn) ping(flags byte, id uint32, b []byte) Code {
	if len(b) != 8 {
		return FrameSizeError
	}
	if id != 0 {
		return ProtocolError
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if flags&flagEnd != 0 {
		if string(b) == drainPing && !c.going.IsZero() {
			c.leave()
		}
		return c.spent()
	}
	q := c.queue()
	q.b = append(appendFrame(q.b, framePing, flagEnd, 0, 8), b...)
	return c.asked(q)
}

func (c *Conn) window(id uint32, b []byte) Code {
	if len(b) != 4 {
		return FrameSizeError
	}
	n := int64(binary.BigEndian.Uint32(b) & (1<<31 - 1))
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if n == 0 {
			return ProtocolError
		}
		if c.outWindow += n; c.outWindow > 1<<31-1 {
			return FlowControlError
		}
		c.wake()
		return c.gave(n)
	}
	s := c.streams[id]
	if s == nil {
		if code := c.stray(id, none); code != none {
			return code
		}
		return c.gave(n)
	}
	if n == 0 {
		c.fail(s, ProtocolError)
		return c.spent()
	}
	if s.outWindow += n; s.outWindow > 1<<31-1 {
		c.fail(s, FlowControlError)
		return c.spent()
	}
	s.wwake.wake()
	return c.gave(n)
}

// gave takes room for n more bytes. Whoever reads what he was sent gives it in pieces, which may all come at once and be more than
// the allowance: what is given anew for bytes that were sent costs nothing, if it is no crumb.
func (c *Conn) gave(n int64) Code {
	if n >= windowLeast && n <= c.owed {
		c.owed -= n
		return none
	}
	return c.spent()
}
