package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"bailiwick/shared/usage"
)

// Through says how far an epoch is complete: every row that finished before At
// is in a block of Epoch with a number at most Seq, or of an older epoch.
type Through struct {
	Epoch, Seq uint64
	At         time.Time
}

// Epoch is an epoch that has something to ship, or the current one.
type Epoch struct {
	Epoch  uint64
	Oldest uint64   // the first number the ledger has not acknowledged
	Sealed uint64   // the last number there is; 0: none yet
	Head   [32]byte // its hash
	Parked bool
}

// SealedThrough stays put while rows wait unsealed, and moves on with the clock
// when there are none.
func (s *Spool) SealedThrough() Through {
	s.view.Lock()
	defer s.view.Unlock()
	return s.through
}

// Epochs are, oldest first, those with blocks not acknowledged, and the current
// one in any case.
func (s *Spool) Epochs() []Epoch {
	s.view.Lock()
	defer s.view.Unlock()
	out := make([]Epoch, len(s.st.epochs))
	for i, e := range s.st.epochs {
		out[i] = Epoch{Epoch: e.epoch, Oldest: e.acked + 1, Sealed: e.sealed, Head: e.head, Parked: s.parked[e.epoch]}
	}
	return out
}

// Blocks reads the sealed and unacknowledged blocks of an epoch, in order, from
// number from on, up to about limit bytes but at least one if there is one.
// Reading does not remove.
func (s *Spool) Blocks(epoch, from uint64, limit int) ([]usage.Block, error) {
	var out []usage.Block
	for _, e := range s.entries(epoch, from, limit) {
		b, err := s.cfg.readBlock(e, s.cfg.Edge)
		if errors.Is(err, fs.ErrNotExist) && len(s.entries(epoch, e.seq, 0)) == 0 {
			continue // acknowledged meanwhile
		}
		if err != nil {
			return out, fmt.Errorf("read pending usage: %w", err)
		}
		out = append(out, b)
	}
	return out, nil
}

func (s *Spool) entries(epoch, from uint64, limit int) (out []entry) {
	s.view.Lock()
	defer s.view.Unlock()
	for _, b := range s.st.blocks {
		if b.epoch != epoch || b.seq < from {
			continue
		}
		if limit -= b.size; limit < 0 && len(out) > 0 {
			break
		}
		out = append(out, b)
	}
	return out
}

// Changed closes when blocks were sealed or acknowledged. Take the channel
// first, then look.
func (s *Spool) Changed() <-chan struct{} {
	s.view.Lock()
	defer s.view.Unlock()
	return s.changed
}

// Ack says that the ledger has, for good, every block of an epoch up to seq, and
// that head is the hash of that one. It is on disk before the blocks are let go.
// Repeats are harmless. ErrFork: that is not what this spool sealed; nothing is
// let go.
func (s *Spool) Ack(epoch, seq uint64, head [32]byte) error {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	if s.j.broken != nil {
		if err := s.reopenJournal(); err != nil {
			return s.note(err)
		}
	}
	e := s.st.find(epoch)
	if e == nil || seq == 0 || seq < e.acked {
		return nil
	}
	want := s.st.hashOf(epoch, seq)
	switch seq {
	case e.sealed:
		want = e.head // also where a program of before forgot an acknowledgement, and with it that the block is gone
	case e.acked:
		want = e.ackedHead
	}
	unsaid := seq == e.acked && want == [32]byte{} // it was acknowledged to a program that did not write down what
	if !unsaid && (want != head || want == [32]byte{}) {
		return fmt.Errorf("acknowledge usage block %d/%d of %d: %w", epoch, seq, e.sealed, ErrFork)
	}
	if seq == e.acked {
		return nil
	}
	if err := s.j.write(encodeAck(epoch, seq, head)); err != nil {
		return s.note(err)
	}
	s.publish(func() { s.count.acked.Add(int64(s.st.ack(epoch, seq, head))) })
	if err := s.j.rotate(&s.st); err != nil {
		return s.note(err)
	}
	return nil
}

// Park says whether the ledger refuses an epoch for now. Its blocks are kept;
// if it is not the current one they no longer hold up sealing. Not on disk: a
// new process asks the ledger again.
func (s *Spool) Park(epoch uint64, parked bool) {
	s.view.Lock()
	defer s.view.Unlock()
	if parked {
		s.parked[epoch] = true
	} else {
		delete(s.parked, epoch)
	}
}
