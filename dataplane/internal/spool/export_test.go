package spool

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

// What Run does, one step at a time, so that tests need no clock.

func (s *Spool) Seal() error { return s.seal() }

func (s *Spool) GroupCommit() error { return s.groupCommit() }
func (s *Spool) Provide() error     { return s.provide() }

// Prepared is how many bytes of its segments are ready for rows.
func (s *Spool) Prepared() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segs {
		n += g.ready
	}
	if s.spare != nil {
		n += s.spare.ready
	}
	return n
}

// Abandon lets go of everything as a kill of the process does: no sync, no seal.
func (s *Spool) Abandon() { s.release() }

const SegmentHeader = segmentHeader

// RowEnd is where the last row ends in its segment, and that segment's file.
func (s *Spool) RowEnd() (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.path, s.rowsEnd.off()
}

// SumHeader makes a changed header check out.
func SumHeader(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// Pace decides when Run seals.
type Pace struct{ pace }

func NewPace(now time.Time) *Pace { return &Pace{pace{most: 1375 * time.Millisecond, sealed: now}} }

func (p *Pace) Wait(rows int64, now time.Time) bool { return p.wait(rows, now) }
