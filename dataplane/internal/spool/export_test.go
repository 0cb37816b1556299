package spool

import (
	"encoding/binary"
	"hash/crc32"
)

// What Run does, one step at a time, so that tests need no clock.

func (s *Spool) Seal() error        { return s.seal() }
func (s *Spool) GroupCommit() error { return s.groupCommit() }
func (s *Spool) Provide() error     { return s.provide() }

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
