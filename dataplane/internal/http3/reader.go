package http3

import (
	"errors"
	"io"

	"github.com/quic-go/quic-go"
)

// source is what frames are read from: a stream of QUIC's.
type source interface {
	Read(p []byte) (int, error)
}

// reader takes frames apart.
type reader struct {
	buf  []byte // what arrived and was not taken yet is in buf[r:w]
	r, w int
	most int  // the most that w has been
	eof  bool // nothing follows what is in buf
}

// frame is the head of one.
type frame struct {
	kind, length uint64
}

// fill reads more behind what is there, for which there is room for so many bytes from r on. io.EOF: nothing comes any more.
func (d *reader) fill(from source, room int) error {
	if d.eof {
		return io.EOF
	}
	if d.r == d.w {
		d.r, d.w = 0, 0
	}
	if d.r > 0 && len(d.buf)-d.r < room {
		copy(d.buf, d.buf[d.r:d.w])
		d.r, d.w = 0, d.w-d.r
	}
	if len(d.buf) < room {
		grown := make([]byte, max(room, 2*len(d.buf)))
		copy(grown, d.buf[:d.w])
		d.buf = grown
	}
	n, err := from.Read(d.buf[d.w:])
	d.w += n
	d.most = max(d.most, d.w)
	if err == io.EOF {
		d.eof = true
		if n > 0 {
			return nil
		}
	}
	if err == nil && n == 0 {
		err = io.ErrNoProgress
	}
	if n > 0 && err != nil && err != io.EOF { // it comes again
		err = nil
	}
	return err
}

// frame reads the head of one. io.EOF: there is none, and nothing behind it; io.ErrUnexpectedEOF: it is cut off.
func (d *reader) frame(from source) (f frame, err error) {
	for {
		kind, n := varint(d.buf[d.r:d.w])
		length, m := uint64(0), 0
		if n > 0 {
			length, m = varint(d.buf[d.r+n : d.w])
		}
		if m > 0 {
			d.r += n + m
			return frame{kind, length}, nil
		}
		if err := d.fill(from, 16); err != nil {
			if err == io.EOF && d.r < d.w {
				err = io.ErrUnexpectedEOF
			}
			return f, err
		}
	}
}

// number reads one. io.EOF: there is none.
func (d *reader) number(from source) (v uint64, err error) {
	for {
		v, n := varint(d.buf[d.r:d.w])
		if n > 0 {
			d.r += n
			return v, nil
		}
		if err := d.fill(from, 8); err != nil {
			return 0, err
		}
	}
}

// whole reads n bytes of a frame. They are good until the next is read.
func (d *reader) whole(from source, n int) ([]byte, error) {
	for d.w-d.r < n {
		if err := d.fill(from, n); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	d.r += n
	return d.buf[d.r-n : d.r], nil
}

// shed gives back what was grown for a section that has been read.
func (d *reader) shed() {
	if len(d.buf) <= keptText {
		return
	}
	rest := d.buf[d.r:d.w]
	buf := make([]byte, max(readBuffer, len(rest)))
	n := copy(buf, rest)
	clear(d.buf[:d.most])
	d.buf, d.r, d.w, d.most = buf, 0, n, n
}

// skip passes over n bytes of a frame.
func (d *reader) skip(from source, n uint64) error {
	for {
		have := min(n, uint64(d.w-d.r))
		d.r += int(have)
		if n -= have; n == 0 {
			return nil
		}
		if err := d.fill(from, 1); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// isReset says whether the client has taken the stream back.
func isReset(err error) bool {
	e, ok := errors.AsType[*quic.StreamError](err)
	return ok && e.Remote
}
