package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// What answers under way hold of what their clients have not taken. Nobody takes much memory by taking nothing: an answer that
// waits, for its upstream or for its client, has a small buffer if any. Large ones cost less a byte, so who takes what comes gets
// one; there are largeMost for all, and where they are out pieces are small.
const (
	smallSpace = 16 << 10
	largeSpace = flowHead + flowPiece + flowTail
	spaceBit   = 4 << 10               // of an exchange's answer that is read at once where little may be there
	spacePiece = 32 << 10              // likewise where there may be more
	largeMost  = 64                    // large ones at an edge: 4.5 MiB
	flowSlow   = 10 * time.Millisecond // to take a piece: who takes longer gets small ones
)

// spaces are the buffers.
type spaces struct {
	bits, small, pieces, large sync.Pool
	larges                     atomic.Int64 // that are taken of the last two
}

type (
	bitOf   [spaceBit]byte
	smallOf [smallSpace]byte
	pieceOf [spacePiece]byte
	largeOf [largeSpace]byte
)

func (s *spaces) init() {
	s.bits.New = func() any { return new(bitOf) }
	s.small.New = func() any { return new(smallOf) }
	s.pieces.New = func() any { return new(pieceOf) }
	s.large.New = func() any { return new(largeOf) }
}

// enlarge says that a large one may be taken.
func (s *spaces) enlarge() bool {
	if s.larges.Add(1) <= largeMost {
		return true
	}
	s.larges.Add(-1)
	return false
}

// space is an exchange's buffer.
type space struct {
	spaces *spaces
	bit    *bitOf
	piece  *pieceOf
}

// take gives a buffer with nothing in it: a large one if there is one and it is wanted.
func (s *space) take(large bool) []byte {
	switch {
	case large && s.piece == nil && s.spaces.enlarge():
		s.free()
		s.piece = s.spaces.pieces.Get().(*pieceOf)
	case s.bit == nil && (!large || s.piece == nil):
		s.free()
		s.bit = s.spaces.bits.Get().(*bitOf)
	}
	if s.piece != nil {
		return s.piece[:]
	}
	return s.bit[:]
}

// free gives it back.
func (s *space) free() {
	if s.piece != nil {
		s.spaces.pieces.Put(s.piece)
		s.spaces.larges.Add(-1)
	}
	if s.bit != nil {
		s.spaces.bits.Put(s.bit)
	}
	s.piece, s.bit = nil, nil
}
