package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// attempt is a seal on its way to the journal. Once made it is not changed, and
// no further row is folded before it is known whether it is there: rows must be
// in exactly one block.
type attempt struct {
	blocks  []usage.Block
	covered pos
	rows    uint64 // of the epoch, below covered
	at      int64
	final   bool
}

// seal folds the new rows and, if few enough blocks wait, makes blocks of all
// that is open. Otherwise it bounds what the rows take on disk.
func (s *Spool) seal() error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.attempt == nil {
		at, err := s.fold()
		if err != nil {
			return s.note(fmt.Errorf("fold usage rows: %w", err))
		}
		s.count.openCells.Store(int64(len(s.open.cells)))
		switch {
		case len(s.open.cells) == 0:
			s.setThrough(at)
			return errors.Join(s.age(), s.mend(), s.tidy())
		case s.waiting() >= s.cfg.MaxUnacked:
			return errors.Join(s.mend(), s.shrink())
		}
		if err := s.keepDetail(); err != nil {
			return err
		}
		s.attempt = s.newAttempt(s.folded, at)
	}
	if err := s.writeAttempt(s.attempt); err != nil {
		return s.note(err)
	}
	s.open, s.attempt, s.ckpt = newSums(), nil, s.folded
	s.count.openCells.Store(0)
	s.fullErr.Store(nil)
	s.makeReserve()
	if err := s.removeCheckpoint(); err != nil {
		return s.note(err)
	}
	s.trim(s.folded)
	return s.tidy()
}

// foldNew folds what has come lately: while it is in the processor's cache, and before it is so much that it holds up others.
func (s *Spool) foldNew() error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.attempt != nil {
		return nil
	}
	if _, err := s.fold(); err != nil {
		return s.note(fmt.Errorf("fold usage rows: %w", err))
	}
	s.count.openCells.Store(int64(len(s.open.cells)))
	return nil
}

// fold takes the rows since the last fold into the open cells and returns the
// time before which every row that finished is among them: rows appended from
// now on are stamped at or after it.
func (s *Spool) fold() (at int64, err error) {
	now := s.cfg.Now().UnixMilli()
	s.mu.Lock()
	s.last = max(s.last, now)
	at = s.last
	end, segs := s.rowsEnd, append([]*segment(nil), s.segs...)
	s.wholes.forget() // what is summed up to here may be all that a crash leaves of these rows
	s.mu.Unlock()
	if end <= s.folded {
		return at, nil
	}
	err = guarded(func() error {
		p := s.folded
		for _, g := range segs {
			if g.no < p.seg() {
				continue
			}
			off := segmentHeader
			if g.no == p.seg() {
				off = p.off()
			}
			for g.at(off) < end {
				payload, next, what := g.read(off)
				if what == placeEnd {
					break
				}
				if what != placeRecord {
					return &durable.CorruptError{Path: g.path, Offset: int64(off), What: "a row just written does not check out"}
				}
				if isRow(payload) {
					if err := s.foldRow(g, off, payload); err != nil {
						return &durable.CorruptError{Path: g.path, Offset: int64(off), What: err.Error()}
					}
				}
				off = next
				s.folded = g.at(off) // moves with each row: an error must not fold one twice
			}
		}
		return nil
	})
	return at, err
}

// waiting counts the blocks that hold up sealing. Those of an older epoch that
// the ledger refuses do not: they would hold it up for good.
func (s *Spool) waiting() int {
	s.view.Lock()
	defer s.view.Unlock()
	n := 0
	for _, b := range s.st.blocks {
		if b.epoch == s.st.epoch || !s.parked[b.epoch] {
			n++
		}
	}
	return n
}

func (s *Spool) newAttempt(covered pos, at int64) *attempt {
	a := &attempt{covered: covered, rows: s.rows, at: at}
	seq, head := s.st.seq, s.st.head
	for p := range usage.Payloads(s.open.payload()) {
		seq++
		b := usage.NewBlock(s.cfg.Edge, s.st.epoch, seq, head, p)
		a.blocks, head = append(a.blocks, b), b.Hash
	}
	return a
}

// writeAttempt brings a into the journal, or finds it there, and publishes it.
func (s *Spool) writeAttempt(a *attempt) error {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	if s.j.broken != nil {
		if err := s.reopenJournal(); err != nil {
			return err
		}
	}
	// The write that seemed to fail may have reached the disk, and whoever
	// opened the journal again, here or in Ack, has seen it. The head's hash
	// covers the whole chain, so it cannot be another seal's.
	if s.st.head == a.blocks[len(a.blocks)-1].Hash {
		s.count.sealed.Add(int64(len(a.blocks)))
		s.publish(func() { s.through = Through{s.st.epoch, s.st.seq, time.UnixMilli(a.at)} })
		return nil
	}
	entries := make([]entry, len(a.blocks))
	off := s.j.log.Size()
	recs := make([][]byte, 0, len(a.blocks)+1)
	for i := range a.blocks {
		b := &a.blocks[i]
		rec, at := encodeBlock(b)
		entries[i] = entry{epoch: b.Epoch, seq: b.Seq, prev: b.Prev, hash: b.Hash, file: s.j.files[len(s.j.files)-1], off: off + logRecordHead + int64(at), size: len(b.Payload)}
		recs = append(recs, rec)
		off += int64(len(rec)) + logRecordHead + 4
	}
	if err := s.j.write(append(recs, encodeCommit(a.covered, a.at, a.final, a.rows))...); err != nil {
		return err
	}
	s.count.sealed.Add(int64(len(a.blocks)))
	s.publish(func() {
		s.st.seal(entries, a.covered, a.at, a.final, a.rows)
		s.through = Through{s.st.epoch, s.st.seq, time.UnixMilli(a.at)}
	})
	return nil
}

// publish changes what readers see, and wakes them. Under jmu.
func (s *Spool) publish(change func()) {
	s.view.Lock()
	defer s.view.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Spool) setThrough(at int64) {
	s.view.Lock()
	defer s.view.Unlock()
	s.through = Through{s.st.epoch, s.st.seq, time.UnixMilli(at)}
}

// shrink bounds the row log while nothing is sealed: once a whole segment is
// folded, the open cells go to the checkpoint and the segment can go. So disk
// holds O(open cells), however many rows come.
func (s *Spool) shrink() error {
	full := s.folded.seg() > s.ckpt.seg()
	if full || s.detail.batch.Len() >= usage.MaxDetailRows { // the larger a piece, the smaller
		if err := s.keepDetail(); err != nil {
			return err
		}
	}
	if !full {
		return nil
	}
	if err := s.writeCheckpoint(); err != nil {
		return s.note(fmt.Errorf("checkpoint usage: %w", err))
	}
	s.ckpt = s.folded
	s.fullErr.Store(nil)
	s.count.checkpoints.Add(1)
	s.trim(s.folded)
	return nil
}

// trim lets go of the segments wholly below p. Under work. A file that will not
// go is found again and removed at the next Open.
func (s *Spool) trim(p pos) {
	s.allocMu.Lock() // provide may be touching the pages of one that was current
	defer s.allocMu.Unlock()
	s.mu.Lock()
	var old []*segment
	for len(s.segs) > 1 && s.segs[0].no < p.seg() {
		old, s.segs = append(old, s.segs[0]), s.segs[1:]
	}
	s.mu.Unlock()
	for _, g := range old {
		if err := removeFile(g.path); err != nil {
			s.cfg.Logger.Warn("remove usage segment", "error", err)
		}
		g.close()
		s.count.segments.Add(-1)
	}
}

// tidy begins a new journal file when due and removes old ones.
func (s *Spool) tidy() error {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	if err := s.j.rotate(&s.st); err != nil {
		return s.note(err)
	}
	return nil
}

// reopenJournal learns what is on disk after a write that found no space. Under
// jmu. After any other failure it answers that failure: see durable.Log.
func (s *Spool) reopenJournal() error {
	if s.j.final {
		return s.j.broken
	}
	was := s.j.broken
	if s.reserved { // the little that is needed to seal and to acknowledge, which frees more
		if err := removeFile(s.reservePath()); err == nil {
			s.reserved = false
		}
	}
	s.j.close()
	s.j.log = nil
	j, st, err := loadJournal(&s.cfg)
	if err != nil {
		if j != nil {
			j.close()
		}
		s.j.broken = was
		return fmt.Errorf("open usage journal again: %w", err)
	}
	s.j = j
	s.publish(func() { s.st = st })
	return nil
}

// mend finds out whether a disk that was full has space again, when nothing is to be written that would tell:
// an edge that refuses what it cannot count would else refuse for ever. Under work.
func (s *Spool) mend() error {
	if s.fullErr.Load() == nil {
		return nil
	}
	s.jmu.Lock()
	if s.j.broken != nil {
		if err := s.reopenJournal(); err != nil {
			s.jmu.Unlock()
			return s.note(err)
		}
	}
	s.jmu.Unlock()
	s.makeReserve()
	s.jmu.Lock()
	well := s.reserved
	s.jmu.Unlock()
	s.mu.Lock()
	well = well && s.spare != nil // else provide will tell
	s.mu.Unlock()
	if well {
		s.fullErr.Store(nil)
	}
	return nil
}

const reserveBytes = 1 << 20

func (s *Spool) reservePath() string { return filepath.Join(s.cfg.Dir, "reserve") }

// makeReserve keeps some space for the moment when there is none. Best effort.
func (s *Spool) makeReserve() {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	if s.reserved {
		return
	}
	f, err := os.OpenFile(s.reservePath(), os.O_RDWR|os.O_CREATE, durable.FilePerm)
	if err != nil {
		return
	}
	defer f.Close()
	if err := reserveBlocks(f, reserveBytes); err != nil {
		removeFile(s.reservePath())
		return
	}
	s.reserved = true
}
