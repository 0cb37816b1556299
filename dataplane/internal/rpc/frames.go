package rpc

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
)

const (
	endStream = 0x02 // of Connect: what follows says how the stream ended
	trailers  = 0x80 // of gRPC-Web, likewise
	headLen   = 5
)

// ErrMessage is a message longer than may be.
var ErrMessage = errors.New("message is longer than the route takes")

// ErrText is what should be base64 and is not: what another would read there is not known.
var ErrText = errors.New("body is not base64")

// Counter counts messages in a stream of bytes by their frames' heads. One goroutine writes; N may be asked by any.
type Counter struct {
	Max  int64 // bytes of one message; 0: no bound
	Text bool  // the stream is base64, of which each piece may have its own padding

	text [4]byte
	said int // of text
	head [headLen]byte
	have int
	left int64 // of the message that began
	n    atomic.Int64
}

// N is how many messages have begun.
func (c *Counter) N() int64 { return c.n.Load() }

// Whole says whether what was seen ends between two messages.
func (c *Counter) Whole() bool { return c.said == 0 && c.have == 0 && c.left == 0 }

// Take looks at the next bytes.
func (c *Counter) Take(p []byte) error {
	if !c.Text {
		return c.take(p)
	}
	for len(p) > 0 {
		n := copy(c.text[c.said:], p)
		c.said += n
		p = p[n:]
		if c.said < len(c.text) {
			return nil
		}
		c.said = 0
		var b [3]byte
		n, err := base64.StdEncoding.Decode(b[:], c.text[:])
		if err != nil {
			return ErrText
		}
		if err := c.take(b[:n]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Counter) take(p []byte) error {
	for len(p) > 0 {
		if c.left > 0 {
			n := min(c.left, int64(len(p)))
			c.left -= n
			p = p[n:]
			continue
		}
		n := copy(c.head[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have < headLen {
			return nil
		}
		c.have, c.left = 0, int64(binary.BigEndian.Uint32(c.head[1:]))
		if c.Max > 0 && c.left > c.Max {
			return ErrMessage
		}
		if c.head[0]&(endStream|trailers) == 0 {
			c.n.Add(1)
		}
	}
	return nil
}

// Reader passes on a body and counts what is in it.
type Reader struct {
	io.ReadCloser
	*Counter
}

func (r Reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if bad := r.Take(p[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}
