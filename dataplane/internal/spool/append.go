package spool

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// Append keeps one row. When it returns nil the row survives the death of the
// process, and a power cut a GroupCommit later. It stamps r.EndUnixMS; r is not
// kept. It copies memory and does no I/O, unless the places that Run prepares
// ahead are not there yet. An error means that the row is not kept: ErrFull for
// want of space, or a row that no ledger would count.
func (s *Spool) Append(r *usage.Row) error {
	if err := r.Check(); err != nil {
		s.count.refused.Add(1)
		return fmt.Errorf("append usage row: %w", err)
	}
	now := s.cfg.Now().UnixMilli()
	room := recordSize(rowSize(r))
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			s.count.refused.Add(1)
			return fmt.Errorf("append usage row: %w", ErrClosed)
		}
		// Stamped under mu: seal takes its time under mu too, so no row with
		// an earlier stamp comes behind what a seal has seen.
		s.last = max(s.last, now)
		r.EndUnixMS = s.last
		ready := s.cur.ready
		if s.off+room+wordSize <= ready { // room is left for the end's word
			need, err := s.put(r)
			low := false
			if err == nil {
				s.off += need
				s.rowsEnd = s.cur.at(s.off)
				left := ready - s.off
				low = left < aheadBytes/2 && left+need >= aheadBytes/2 && ready < len(s.cur.data)
				if left < slack && s.short() && !s.tight.Load() {
					s.tight.Store(true)
				}
			}
			s.mu.Unlock()
			if low {
				s.rouse()
			}
			if err != nil {
				s.count.refused.Add(1)
				return s.note(fmt.Errorf("append usage row: %w", err))
			}
			s.count.rows.Add(1)
			s.count.rowBytes.Add(int64(need))
			return nil
		}
		if ready < len(s.cur.data) { // Run has fallen behind
			s.mu.Unlock()
			if err := s.widen(); err != nil {
				s.count.refused.Add(1)
				return fmt.Errorf("append usage row: %w", err)
			}
			continue
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
		s.rouse()
	}
}

// rouse has Run provide.
func (s *Spool) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// slack is room in the current segment for whoever appends between Ready and its own row: it need not be exact, since who comes
// beyond it waits, and loses nothing.
const slack = 16 * maxRecord

// Ready says whether Append would do no I/O now. Where Run is not ahead of the rows (a slow disk, or a full one), whoever serves
// others beside leaves its row to somebody who may wait.
func (s *Spool) Ready() bool { return !s.tight.Load() }

// short says whether little room is left, and none stands ready behind it. Under mu.
func (s *Spool) short() bool {
	return s.cur != nil && s.cur.ready-s.off < slack && (s.cur.ready < len(s.cur.data) || s.spare == nil)
}

// put copies the row to s.off and says how much it takes there: no more than if it were whole. Under mu. guarded by hand: its closure
// would cost an allocation here.
func (s *Spool) put(r *usage.Row) (need int, err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			err = faultError(p)
		}
	}()
	start := usage.CellStart(r.EndUnixMS)
	place := slot(r, start)
	on := s.wholes.at(place)
	if on != 0 && fitsShort(r) && s.cur.bears(on, r, start) {
		n := shortSize(r)
		putShort(s.cur.data[s.off+wordSize:s.off+wordSize+n], r, on)
		s.cur.commit(s.off, n)
		return recordSize(n), nil
	}
	n := rowSize(r)
	putRow(s.cur.data[s.off+wordSize:s.off+wordSize+n], r)
	s.cur.commit(s.off, n)
	s.wholes.keep(place, s.off) // now: at a fault it is not there
	return recordSize(n), nil
}

// turn goes on to the spare segment. Under mu.
func (s *Spool) turn() error {
	err := guarded(func() error { storeWord(s.cur.data[s.off:], endWord); return nil })
	if err != nil {
		return err
	}
	s.cur, s.off, s.since, s.spare = s.spare, segmentHeader, s.last, nil
	s.wholes.forget()
	s.tight.Store(s.short())
	s.segs = append(s.segs, s.cur)
	return nil
}

// provide makes sure that a segment stands ready behind the current one, and that
// there is room in the current one.
func (s *Spool) provide() error {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	if err := s.extendCurrent(); err != nil {
		return err
	}
	s.mu.Lock()
	ready := s.spare != nil
	s.mu.Unlock()
	if ready {
		return nil
	}
	g, err := s.allocate()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.spare = g
	s.tight.Store(s.short())
	s.mu.Unlock()
	return nil
}

// widen is provide for whoever finds the current segment not ready yet.
func (s *Spool) widen() error {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	return s.extendCurrent()
}

// extendCurrent is extend of the current segment. Under allocMu.
func (s *Spool) extendCurrent() error {
	s.mu.Lock()
	cur, off, closed := s.cur, s.off, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case cur == nil:
		return nil
	}
	return s.extend(cur, off)
}

const (
	aheadBytes = 512 << 10 // of a segment are ready before the writer, at least half of it
	pageBytes  = 64 << 10  // a multiple of any page size
)

// extend makes places of a segment ready for rows: zeros are written there, as a file, which costs a third of what pages cost
// that are first touched in memory. Nobody may write there before, or the zeros would wipe out a row: so rows go below ready
// alone, which moves when all is done. Under allocMu.
func (s *Spool) extend(g *segment, off int) error {
	from, to := g.ready, min(len(g.data), (off+aheadBytes+pageBytes-1)&^(pageBytes-1))
	if from == len(g.data) || off+aheadBytes/2 <= from {
		return nil
	}
	if err := prepare(g.f, from, to); err != nil {
		return s.note(fmt.Errorf("prepare %s for usage rows: %w", g.path, err))
	}
	s.mu.Lock()
	g.ready = to
	s.tight.Store(s.short())
	s.mu.Unlock()
	return nil
}

// allocate makes the next segment. Under allocMu, or in Open.
func (s *Spool) allocate() (*segment, error) {
	g, err := createSegment(s.cfg.Dir, s.st.epoch, s.nextNo, s.cfg.SegmentBytes, bootID(), s.cfg.Program)
	if err != nil {
		return nil, s.note(fmt.Errorf("allocate usage segment: %w", err))
	}
	if err := s.extend(g, segmentHeader); err != nil {
		g.close()
		removeFile(g.path) // best effort: its number is given again
		return nil, err
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
	var room []byte // of the current one, if no other is dirty
	for _, g := range s.segs {
		if g.no >= s.synced.seg() && g.no <= end.seg() {
			dirty = append(dirty, g)
		}
	}
	if len(dirty) == 1 && dirty[0] == s.cur {
		room = s.cur.data[:s.cur.ready]
	}
	s.mu.Unlock()
	if end <= s.synced {
		return nil
	}
	for _, g := range dirty {
		from, to := segmentHeader, len(g.data)
		if g.no == s.synced.seg() {
			from = s.synced.off()
		}
		if g.no == end.seg() {
			to = end.off()
		}
		unmap(g.data, from, to)
		if err := durable.SyncData(g.f); err != nil {
			return s.note(fmt.Errorf("sync usage rows: %w", err))
		}
	}
	n := end.off() - s.synced.off()
	touch(room, end.off(), n+n/4) // the next rows are about as many as these
	s.synced = end
	s.count.commits.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	const mark = 16
	if s.closed || s.off+wordSize+mark+wordSize > s.cur.ready {
		return nil
	}
	err := guarded(func() error {
		b := s.cur.data[s.off+wordSize : s.off+wordSize+mark]
		binary.LittleEndian.PutUint64(b, kindSync)
		binary.LittleEndian.PutUint64(b[8:], uint64(end))
		s.cur.commit(s.off, mark)
		return nil
	})
	if err != nil {
		return s.note(err)
	}
	s.off += wordSize + mark
	return nil
}
