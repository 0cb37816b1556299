package spool

import "fmt"

// age lets an old segment go though it is not full: a row lies in it with its
// key and pseudonyms, and where few requests come that would be for weeks. It is
// called while all rows are in blocks. The current segment ends, and a commit
// without blocks says that whoever opens the log begins behind it. Under work.
func (s *Spool) age() error {
	s.mu.Lock()
	idle, held := s.rowsEnd <= s.folded, s.rowsEnd.seg() == s.cur.no && s.rowsEnd.off() > segmentHeader
	if idle && held && s.spare != nil && s.last-s.since >= s.cfg.SegmentAge.Milliseconds() {
		if err := s.turn(); err != nil {
			s.mu.Unlock()
			return s.note(fmt.Errorf("end a segment of usage rows: %w", err))
		}
	}
	at, over := s.cur.at(segmentHeader), idle && s.folded.seg() < s.cur.no
	s.mu.Unlock()
	if !over {
		return nil
	}
	if done, err := s.commitPlace(at); err != nil || !done {
		return err
	}
	s.folded, s.ckpt = at, at
	s.trim(at)
	return nil
}

// commitPlace says that all rows below at are in blocks. If it fails they are
// folded on from where they were, which is as true.
func (s *Spool) commitPlace(at pos) (done bool, err error) {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	if s.j.broken != nil { // the next seal, or mend, opens it again
		return false, nil
	}
	if err := s.j.write(encodeCommit(at, s.st.at, false, s.rows)); err != nil {
		return false, s.note(err)
	}
	s.publish(func() { s.st.seal(nil, at, s.st.at, false, s.rows) })
	return true, nil
}
