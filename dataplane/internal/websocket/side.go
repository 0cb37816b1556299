package websocket

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Leg is a connection to one side. Break makes its Read and Write return soon, those under way and those to come; it may be
// called from any goroutine, more than once.
type Leg interface {
	io.Reader
	io.Writer
	Break()
}

// side is one of the two, as this edge writes to it.
type side struct {
	leg    Leg
	name   string
	masked bool    // what goes to it is masked: it is a server
	nonce  [8]byte // of pings of this edge's own: their pongs concern nobody else

	heard   atomic.Int64 // when something last came from it, or could have: since the beginning
	writing atomic.Int64 // since when a write to it goes on; 0: none does

	mu     sync.Mutex // covers closed, and writing to leg
	closed bool       // a close frame was sent: nothing follows
}

var errClosed = errors.New("a close frame was sent already")

// write sends whole frames. Last: a close frame ends them.
func (s *side) write(b []byte, last bool, since func() time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(b, last, since)
}

func (s *side) put(b []byte, last bool, since func() time.Duration) error {
	if s.closed {
		return errClosed
	}
	s.closed = last
	s.writing.Store(int64(since()) | 1)
	_, err := s.leg.Write(b)
	s.writing.Store(0)
	return err
}

// control sends a control frame if nothing is being written just now. false: something is.
func (s *side) control(op byte, payload []byte, since func() time.Duration) bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	var b [maxHeader + maxControl]byte
	payload = payload[:min(len(payload), maxControl)]
	patience := writeWait
	if op == opClose {
		patience = closeWait
	}
	// Whoever is here watches over the connection: a side that takes nothing must not hold him for ever.
	defer time.AfterFunc(patience, s.leg.Break).Stop()
	end := maxHeader + copy(b[maxHeader:], payload)
	key := uint32(0)
	if s.masked {
		key = rand.Uint32()
		mask(b[maxHeader:end], key, 0)
	}
	s.put(b[before(b[:], maxHeader, op, true, len(payload), s.masked, key):end], op == opClose, since)
	return true
}

// close sends a close frame, unless one was sent; false: it could not be written now.
func (s *side) close(code uint16, reason string, since func() time.Duration) bool {
	return s.control(opClose, append(binary.BigEndian.AppendUint16(nil, code), reason[:min(len(reason), maxControl-2)]...), since)
}

func (s *side) done() bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	return s.closed
}
