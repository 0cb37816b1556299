package spool

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"

	"bailiwick/shared/usage"
)

// Append keeps one row. When it returns nil the row survives the death of the
// process, and a power cut a GroupCommit later. It stamps r.EndUnixMS; r is not
// kept. It copies memory and does no I/O, unless the segment that Run allocates
// ahead is not there yet. An error means that the row is not kept: ErrFull for
// want of space, or a row that no ledger would count.
func (s *Spool) Append(r *usage.Row) error {
	if err := r.Check(); err != nil {
		s.count.refused.Add(1)
		return fmt.Errorf("append usage row: %w", err)
	}
	now := s.cfg.Now().UnixMilli()
	n := rowSize(r)
	need := wordSize + (n+7)&^7
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			s.count.refused.Add(1)
			return fmt.Errorf("append usage row: %w", ErrClosed)
		}
		if s.off+need+wordSize <= len(s.cur.data) { // room is left for the end's word
			// Stamped under mu: seal takes its time under mu too, so no row with
			// an earlier stamp comes behind what a seal has seen.
			s.last = max(s.last, now)
			r.EndUnixMS = s.last
			err := s.put(r, n)
			if err == nil {
				s.off += need
				s.rowsEnd = s.cur.at(s.off)
			}
			s.mu.Unlock()
			if err != nil {
				s.count.refused.Add(1)
				return s.note(fmt.Errorf("append usage row: %w", err))
			}
			s.count.rows.Add(1)
			s.count.rowBytes.Add(int64(need))
			return nil
		}
		if s.spare == nil {
			s.mu.Unlock()
			if err := s.provide(); err != nil {
				s.count.refused.Add(1)
				return fmt.Errorf("append usage row: %w", err)
			}
			continue
		}
		err := s.turn()
		s.mu.Unlock()
		if err != nil {
			s.count.refused.Add(1)
			return s.note(fmt.Errorf("append usage row: %w", err))
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// put copies the row to s.off. Under mu. guarded by hand: its closure would
// cost an allocation here.
func (s *Spool) put(r *usage.Row, n int) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			err = faultError(p)
		}
	}()
	putRow(s.cur.data[s.off+wordSize:s.off+wordSize+n], r)
	s.cur.commit(s.off, n)
	return nil
}

// turn goes on to the spare segment. Under mu.
func (s *Spool) turn() error {
	err := guarded(func() error { storeWord(s.cur.data[s.off:], endWord); return nil })
	if err != nil {
		return err
	}
	s.cur, s.off, s.since, s.spare = s.spare, segmentHeader, s.last, nil
	s.segs = append(s.segs, s.cur)
	return nil
}

// provide makes sure that a segment stands ready behind the current one, and its
// first pages and the current one's next in memory.
func (s *Spool) provide() error {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	s.mu.Lock()
	ready, closed := s.spare != nil, s.closed
	cur, off := s.cur, s.off
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if cur != nil {
		ahead(cur, off)
	}
	if ready {
		return nil
	}
	g, err := s.allocate()
	if err != nil {
		return err
	}
	ahead(g, 0)
	s.mu.Lock()
	s.spare = g
	s.mu.Unlock()
	return nil
}

const (
	aheadBytes = 256 << 10 // at least half of it is in memory before the writer
	pageBytes  = 64 << 10  // a multiple of any page size
)

func ahead(g *segment, off int) {
	if off+aheadBytes/2 <= g.populated || g.populated >= len(g.data) {
		return
	}
	from := max(g.populated, off&^(pageBytes-1))
	to := min(len(g.data), off&^(pageBytes-1)+aheadBytes)
	if from < to {
		populate(g.data[from:to])
	}
	g.populated = to
}

// allocate makes the next segment. Under allocMu, or in Open.
func (s *Spool) allocate() (*segment, error) {
	g, err := createSegment(s.cfg.Dir, s.st.epoch, s.nextNo, s.cfg.SegmentBytes, bootID(), s.cfg.Program)
	if err != nil {
		return nil, s.note(fmt.Errorf("allocate usage segment: %w", err))
	}
	s.nextNo++
	s.count.segments.Add(1)
	s.fullErr.Store(nil)
	return g, nil
}

// groupCommit brings the rows appended so far to the disk, and then a record
// that says so: whoever finds a damaged row before it knows that it is damage
// and not a power cut.
func (s *Spool) groupCommit() error {
	s.work.Lock()
	defer s.work.Unlock()
	return s.syncRows()
}

func (s *Spool) syncRows() error {
	s.mu.Lock()
	end := s.rowsEnd
	var dirty []*segment
	for _, g := range s.segs {
		if g.no >= s.synced.seg() && g.no <= end.seg() {
			dirty = append(dirty, g)
		}
	}
	s.mu.Unlock()
	if end <= s.synced {
		return nil
	}
	for _, g := range dirty {
		if err := syncData(g.f); err != nil {
			return s.note(fmt.Errorf("sync usage rows: %w", &os.PathError{Op: "fdatasync", Path: g.path, Err: err}))
		}
	}
	s.synced = end
	s.count.commits.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	const n = 16
	if s.closed || s.off+wordSize+n+wordSize > len(s.cur.data) {
		return nil
	}
	err := guarded(func() error {
		b := s.cur.data[s.off+wordSize : s.off+wordSize+n]
		binary.LittleEndian.PutUint64(b, kindSync)
		binary.LittleEndian.PutUint64(b[8:], uint64(end))
		s.cur.commit(s.off, n)
		return nil
	})
	if err != nil {
		return s.note(err)
	}
	s.off += wordSize + n
	return nil
}
