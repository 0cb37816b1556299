package http3

import (
	"context"
	"io"

	"github.com/quic-go/quic-go"

	"bailiwick/dataplane/internal/head"
)

// controls takes the client's streams of one direction.
func (c *Conn) controls() {
	for {
		q, err := c.q.AcceptUniStream(context.Background())
		if err != nil {
			return
		}
		c.wg.Go(func() { c.control(q) })
	}
}

// control reads one of them until it ends, which most of them must not before the connection does.
func (c *Conn) control(q *quic.ReceiveStream) {
	defer q.ReleaseStreamCredit()
	d := &reader{buf: make([]byte, 64)}
	kind, err := d.number(q)
	if err != nil { // it ends before it says what it is
		if c.spent(1) {
			q.CancelRead(quic.StreamErrorCode(NoError))
		}
		return
	}
	if kind == streamPush {
		c.end(StreamCreationError)
		return
	}
	if kind > streamDecoder { // what nobody knows nobody reads
		if c.spent(1) {
			q.CancelRead(quic.StreamErrorCode(StreamCreationError))
		}
		return
	}
	c.mu.Lock()
	twice := c.opened[kind]
	c.opened[kind] = true
	c.mu.Unlock()
	if twice {
		c.end(StreamCreationError)
		return
	}
	code := NoError
	switch kind {
	case streamControl:
		code = c.frames(d, q)
	case streamEncoder:
		code = c.encoder(d, q)
	case streamDecoder:
		code = c.decoder(d, q)
	}
	if code == NoError { // it has ended
		code = ClosedCriticalStream
	}
	if c.q.Context().Err() == nil {
		c.end(code)
	}
}

// frames reads a control stream. NoError: it has ended.
func (c *Conn) frames(d *reader, q source) Code {
	for first := true; ; first = false {
		f, err := d.frame(q)
		switch {
		case err == io.ErrUnexpectedEOF:
			return FrameError
		case err != nil:
			return NoError
		case first && f.kind != frameSettings:
			return MissingSettings
		case f.kind == frameData, f.kind == frameHeaders, f.kind == framePush, reserved(f.kind), f.kind == frameSettings && !first:
			return FrameUnexpected
		case !first && !c.spent(1):
			return ExcessiveLoad
		}
		switch f.kind {
		case frameSettings, frameGoAway, frameMaxPush, frameCancel:
			most := uint64(8)
			if f.kind == frameSettings {
				most = settingsMost
			}
			if f.length > most {
				if f.kind == frameSettings {
					return ExcessiveLoad
				}
				return FrameError
			}
			b, err := d.whole(q, int(f.length))
			if err == io.ErrUnexpectedEOF {
				return FrameError
			} else if err != nil {
				return NoError
			}
			if code := c.says(f.kind, b); code != NoError {
				return code
			}
			if cap(d.buf) > 512 && d.r == d.w { // it lasts as long as the connection does
				d.buf, d.r, d.w = make([]byte, 64), 0, 0
			}
		default: // an extension's
			if code := c.passed(d, q, f.length); code != NoError {
				return code
			}
		}
	}
}

// passed passes over what an extension says on a control stream.
func (c *Conn) passed(d *reader, q source, n uint64) Code {
	for n > 0 {
		part := min(n, allowanceBytes)
		if err := d.skip(q, part); err == io.ErrUnexpectedEOF {
			return FrameError
		} else if err != nil {
			return NoError
		}
		if n -= part; !c.spent(1) {
			return ExcessiveLoad
		}
	}
	return NoError
}

// says takes a frame of a control stream.
func (c *Conn) says(kind uint64, b []byte) Code {
	if kind == frameSettings {
		return settings(b)
	}
	id, n := varint(b)
	if n == 0 || n != len(b) {
		return FrameError
	}
	switch kind {
	case frameGoAway: // of pushes, of which there are none
		if c.goaway > 0 && id >= c.goaway {
			return IDError
		}
		c.goaway = id + 1
	case frameMaxPush:
		if id+1 < c.pushes {
			return IDError
		}
		c.pushes = id + 1
	case frameCancel: // nothing was promised
		return IDError
	}
	return NoError
}

// settings looks at what a client has set. This side rests on none of it: no field is kept for a table, and nothing is pushed.
func settings(b []byte) Code {
	var known [5]bool
	for len(b) > 0 {
		id, n := varint(b)
		_, m := varint(b[n:])
		if n == 0 || m == 0 {
			return FrameError
		}
		b = b[n+m:]
		if id >= 0x2 && id <= 0x5 { // HTTP/2's
			return SettingsError
		}
		at := -1
		switch id {
		case 0x1, 0x6, 0x7, 0x8, 0x33: // what RFC 9204, 9114, 9220 and 9297 know
			at = map[uint64]int{0x1: 0, 0x6: 1, 0x7: 2, 0x8: 3, 0x33: 4}[id]
		}
		if at >= 0 {
			if known[at] {
				return SettingsError
			}
			known[at] = true
		}
	}
	return NoError
}

// encoder reads what the client would put into a table of this side's, which has no room: nothing but that it sees it.
func (c *Conn) encoder(d *reader, q source) Code {
	for {
		b, err := d.whole(q, 1)
		if err != nil {
			return NoError
		}
		if b[0] != 0x20 { // a capacity of 0
			return EncoderStreamError
		}
		if !c.spent(1) {
			return ExcessiveLoad
		}
	}
}

// decoder reads what the client says of a table of its own, into which nothing was put: that it looks at a stream no more, at
// most.
func (c *Conn) decoder(d *reader, q source) Code {
	for {
		b, err := d.whole(q, 1)
		if err != nil {
			return NoError
		}
		if b[0]&0xc0 != 0x40 {
			return DecoderStreamError
		}
		if _, rest, ok := head.Integer(b, 6); !ok && len(rest) == 0 { // the number has more bytes
			for n := 0; ; n++ {
				if b, err = d.whole(q, 1); err != nil {
					return NoError
				}
				if b[0] < 0x80 {
					break
				}
				if n == 9 {
					return DecoderStreamError
				}
			}
		}
		if !c.spent(1) {
			return ExcessiveLoad
		}
	}
}
