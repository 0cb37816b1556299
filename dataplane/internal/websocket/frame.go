package websocket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Operations of frames.
const (
	opContinue = 0
	opText     = 1
	opBinary   = 2
	opClose    = 8
	opPing     = 9
	opPong     = 10
)

// Codes of closing that this edge gives (RFC 6455 §7.4.1, and the registry).
const (
	CloseNormal   = 1000
	CloseAway     = 1001 // the edge drains, nobody spoke for long, or the other side is gone
	CloseProtocol = 1002
	CloseText     = 1007 // a text is not UTF-8
	ClosePolicy   = 1008 // the key, the plan or the quota does not allow it any more
	CloseTooBig   = 1009
	CloseFailed   = 1011 // the upstream broke off
	CloseRestart  = 1012 // the way to the upstream was cut: connect anew
	CloseLater    = 1013
)

const (
	maxHeader  = 14
	maxControl = 125 // bytes of a control frame's payload
)

// header is a frame's.
type header struct {
	op     byte
	fin    bool
	masked bool
	key    uint32 // as it lies in memory, little-endian
	length int64
	size   int // of the header itself
}

// Violation is what one side did that the protocol forbids.
type Violation struct {
	Code uint16
	What string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s (%d)", v.What, v.Code)
}

func forbidden(code uint16, what string) *Violation { return &Violation{code, what} }

var (
	errShort = errors.New("more bytes are needed")

	errReserved  = forbidden(CloseProtocol, "reserved bits are set, and no extension was agreed on")
	errOperation = forbidden(CloseProtocol, "the operation is unknown")
	errLength    = forbidden(CloseProtocol, "the length is not spelt in the fewest bytes, or too large to be one")
	errMask      = forbidden(CloseProtocol, "a client masks its frames and a server does not")
	errControl   = forbidden(CloseProtocol, "a control frame is longer than 125 bytes, or a fragment")
	errBegun     = forbidden(CloseProtocol, "a message begins within a message")
	errNotBegun  = forbidden(CloseProtocol, "a message goes on that never began")
	errClose     = forbidden(CloseProtocol, "the close frame holds no code that may be sent, or a reason that is no text")
	errText      = forbidden(CloseText, "the text is not UTF-8")
	errTooBig    = forbidden(CloseTooBig, "the message is longer than the route lets through")
	errFlood     = forbidden(ClosePolicy, "too many control frames")
	errBehind    = forbidden(CloseProtocol, "something follows the close frame")
)

// parse reads a header from the beginning of b. masked: who sends it has to mask. errShort: it is not all here.
func parse(b []byte, masked bool) (h header, err error) {
	if len(b) < 2 {
		return h, errShort
	}
	h.op, h.fin, h.masked, h.length, h.size = b[0]&15, b[0]&0x80 != 0, b[1]&0x80 != 0, int64(b[1]&0x7f), 2
	switch { // at once, so that nobody waits for the rest of what is wrong already
	case b[0]&0x70 != 0:
		return h, errReserved
	case h.op > opBinary && h.op < opClose, h.op > opPong:
		return h, errOperation
	case h.masked != masked:
		return h, errMask
	case h.op >= opClose && (h.length > maxControl || !h.fin):
		return h, errControl
	}
	switch h.length {
	case 126:
		if h.size += 2; len(b) < h.size {
			return h, errShort
		}
		if h.length = int64(binary.BigEndian.Uint16(b[2:])); h.length < 126 {
			return h, errLength
		}
	case 127:
		if h.size += 8; len(b) < h.size {
			return h, errShort
		}
		n := binary.BigEndian.Uint64(b[2:])
		if n < 1<<16 || n >= 1<<63 {
			return h, errLength
		}
		h.length = int64(n)
	}
	if masked {
		if h.size += 4; len(b) < h.size {
			return h, errShort
		}
		h.key = binary.LittleEndian.Uint32(b[h.size-4:])
	}
	return h, nil
}

// before writes the header of a frame in front of its payload, which begins at b[at], and says where the frame begins. There
// must be room: what fits where a header was read fits where one is written, since both are spelt in the fewest bytes.
func before(b []byte, at int, op byte, fin bool, n int, masked bool, key uint32) int {
	flag := byte(0)
	if masked {
		at -= 4
		binary.LittleEndian.PutUint32(b[at:], key)
		flag = 0x80
	}
	switch {
	case n < 126:
		at--
		b[at] = byte(n) | flag
	case n < 1<<16:
		at -= 3
		b[at] = 126 | flag
		binary.BigEndian.PutUint16(b[at+1:], uint16(n))
	default:
		at -= 9
		b[at] = 127 | flag
		binary.BigEndian.PutUint64(b[at+1:], uint64(n))
	}
	at--
	if b[at] = op; fin {
		b[at] |= 0x80
	}
	return at
}

// mask is its own inverse. at is how many bytes of the frame's payload lie before p.
func mask(p []byte, key uint32, at int) {
	if key == 0 {
		return
	}
	if n := at & 3 * 8; n != 0 {
		key = key>>n | key<<(32-n)
	}
	wide := uint64(key)<<32 | uint64(key)
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)^wide)
		p = p[8:]
	}
	for i := range p {
		p[i] ^= byte(key >> (i & 3 * 8))
	}
}

// text checks UTF-8 that comes in pieces.
type text struct {
	held [utf8.UTFMax]byte // of a character that goes on in the next piece
	n    int
}

// add takes the next piece; false: it is no text. last: there is no next.
func (t *text) add(p []byte, last bool) bool {
	for t.n > 0 && len(p) > 0 {
		t.held[t.n] = p[0]
		t.n, p = t.n+1, p[1:]
		if utf8.FullRune(t.held[:t.n]) {
			if r, size := utf8.DecodeRune(t.held[:t.n]); r == utf8.RuneError && size <= 1 {
				return false
			}
			t.n = 0
		}
	}
	if utf8.Valid(p) {
		return t.n == 0 || !last
	}
	for k := 1; k < utf8.UTFMax && k <= len(p); k++ {
		if tail := p[len(p)-k:]; utf8.RuneStart(tail[0]) {
			if last || utf8.FullRune(tail) || !utf8.Valid(p[:len(p)-k]) {
				return false
			}
			t.n = copy(t.held[:], tail)
			return true
		}
	}
	return false
}

// closing reads the payload of a close frame; code 0: it has none.
func closing(p []byte) (code uint16, reason string, err error) {
	if len(p) == 0 {
		return 0, "", nil
	}
	if len(p) < 2 {
		return 0, "", errClose
	}
	code = binary.BigEndian.Uint16(p)
	switch { // 1004 to 1006 and 1015 are for what was never sent
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
	default:
		return 0, "", errClose
	}
	if !utf8.Valid(p[2:]) {
		return 0, "", errClose
	}
	return code, string(p[2:]), nil
}
