package http1

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

func indexByte(b []byte, c byte) int { return bytes.IndexByte(b, c) }

// Source is where a body comes from: bytes that are there already, then the connection. Peek gives what is buffered, and
// reads until there is at least one byte; Discard takes from its front. Read takes likewise, and may pass the buffer by.
type Source interface {
	Peek() ([]byte, error)
	Discard(n int)
	io.Reader
}

// ErrWait is what a Source says that would have to wait, and should not: Read says it too, and goes on from there when it is
// called again.
var ErrWait = errors.New("there is nothing to read just now")

// Body reads a body by its framing and not a byte beyond. An end that comes early is io.ErrUnexpectedEOF.
type Body struct {
	src     Source
	left    int64 // of the body, or of the chunk
	chunked bool
	open    bool // until the connection ends
	state   uint8
	line    int // bytes of the line that is being read

	// Request: it is one's, so its trailer may hold only what Trails says. Of an answer whoever passes it on drops the rest.
	Request bool

	max     int // of a trailer
	tail    []byte
	trailer []Field
	err     error
	waits   bool // its source did not wait
}

// States of a chunked body.
const (
	atSize uint8 = iota
	inChunk
	afterChunk
	atTrailer
)

const maxSize = 15 // digits of a chunk's size: beyond it a length would overflow

// NewBody begins a body of so many bytes, or Chunked or UntilClose. maxTrailer bounds the bytes of a trailer.
func NewBody(src Source, length int64, maxTrailer int) *Body {
	b := &Body{src: src, left: max(length, 0), chunked: length == Chunked, open: length == UntilClose, max: maxTrailer}
	if length == 0 {
		b.err = io.EOF
	}
	return b
}

// Done says whether all of it was read, so that the next message begins where it ended.
func (b *Body) Done() bool { return b.err == io.EOF && !b.open }

// Trailer is what came behind a chunked body that is done.
func (b *Body) Trailer() []Field { return b.trailer }

// Read reads the body's bytes.
func (b *Body) Read(p []byte) (n int, err error) {
	for n == 0 && b.err == nil && len(p) > 0 {
		if n = b.step(p); b.waits {
			b.waits = false
			return 0, ErrWait
		}
	}
	if n > 0 && b.left == 0 && b.err == nil && !b.chunked && !b.open {
		b.err = io.EOF
	}
	if n > 0 && b.err != io.EOF {
		return n, nil
	}
	return n, b.err
}

// Ahead waits for the body's next byte, and takes nothing of the body: io.EOF says that there is none. What is before that byte is
// read, so that whoever has no room for the body hears of its end all the same.
func (b *Body) Ahead() error {
	for b.err == nil {
		if b.chunked && b.state != inChunk {
			b.between()
		} else if _, err := b.src.Peek(); err != nil {
			b.fail(err)
		} else {
			return nil
		}
		if b.waits {
			b.waits = false
			return ErrWait
		}
	}
	return b.err
}

// Pass is for who has no Source, and is handed what has come: it says how much of p is of the body, which is followed and kept
// nothing of. io.EOF: the body has ended with that.
func (b *Body) Pass(p []byte) (n int, err error) {
	for n < len(p) && b.err == nil {
		switch {
		case b.open:
			n = len(p)
		case b.chunked && b.state != inChunk:
			b.take(p[n])
			n++
		default:
			k := min(int64(len(p)-n), b.left)
			n += int(k)
			switch b.left -= k; {
			case b.left > 0:
			case b.chunked:
				b.state, b.line = afterChunk, 0
			default:
				b.err = io.EOF
			}
		}
	}
	return n, b.err
}

func (b *Body) step(p []byte) int {
	if b.chunked && b.state != inChunk {
		b.between()
		return 0
	}
	if !b.open && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.src.Read(p)
	if n == 0 && err != nil {
		b.fail(err)
		return 0
	}
	if !b.open {
		b.left -= int64(n)
	}
	if b.chunked && b.left == 0 {
		b.state, b.line = afterChunk, 0
	}
	return n
}

func (b *Body) fail(err error) {
	if err == ErrWait {
		b.waits = true
		return
	}
	if err == io.EOF && !b.open {
		err = io.ErrUnexpectedEOF
	}
	b.err = err
}

// between reads what is between chunks, byte by byte: it is little.
func (b *Body) between() {
	have, err := b.src.Peek()
	if err != nil {
		b.fail(err)
		return
	}
	used := 0
	for used < len(have) && b.err == nil && b.state != inChunk {
		b.take(have[used])
		used++
	}
	b.src.Discard(used)
}

func (b *Body) take(c byte) {
	switch b.state {
	case atSize:
		b.size(c)
	case afterChunk:
		if c != "\r\n"[b.line] {
			b.err = ErrChunk
			return
		}
		if b.line++; b.line == 2 {
			b.state, b.line, b.left = atSize, 0, 0
		}
	case atTrailer:
		if len(b.tail) == b.max {
			b.err = ErrTooLarge
			return
		}
		b.tail = append(b.tail, c)
		if c != '\n' {
			return
		}
		if n := len(b.tail); n < 2 || b.tail[n-2] != '\r' {
			b.err = ErrLine
		} else if n == 2 || b.tail[n-3] == '\n' {
			b.end()
		}
	}
}

// size reads hexadecimal digits, then CR LF: no sign, no space, no extension, since those are where parsers differ.
func (b *Body) size(c byte) {
	const ended = 1 << 8 // in line: CR was seen
	switch {
	case b.line&ended != 0:
		if c != '\n' {
			b.err = ErrChunk
			return
		}
		if b.line = 0; b.left == 0 {
			b.state = atTrailer
		} else {
			b.state = inChunk
		}
	case c == '\r' && b.line > 0:
		b.line |= ended
	default:
		d, ok := hex(c)
		if !ok || b.line >= maxSize {
			b.err = ErrChunk
			return
		}
		b.left = b.left<<4 | int64(d)
		b.line++
	}
}

func hex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func (b *Body) end() {
	b.err = io.EOF
	all, err := fields(string(b.tail), nil)
	if err != nil {
		b.err = err
		return
	}
	for _, f := range all {
		if f.Kind != Other || b.Request && !Trails(f.Name) { // what frames or routes a message cannot come behind it
			b.err = ErrField
			return
		}
	}
	b.trailer = all
}

// Trails says whether a field may stand behind a request's body, in any protocol: what is of a connection, frames, routes or shows
// a key may not.
func Trails(name string) bool {
	if kindOf(name) != Other {
		return false
	}
	for _, never := range [...]string{"Proxy-Connection", "Keep-Alive", "TE", "Authorization", "Trailer"} {
		if strings.EqualFold(name, never) {
			return false
		}
	}
	return true
}
