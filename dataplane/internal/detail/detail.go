// Package detail owns an edge's detail, one row a request, between the fold of
// the usage spool and the control node that stores it: encoded pieces, numbered
// from 1 in each epoch without a hole, in checksummed files within a budget of
// disk.
//
// It never decides what is billed and never holds that up: Keep has no error,
// and what could not be kept, or had to make room for newer detail, is counted
// and stands in the row of numbers as a Lost. It never talks to the network.
// What Keep has taken survives a crash of the machine; what it had not taken yet
// is in the spool's row log and comes again. While Run works, what a control node
// has is gone from here within two TurnEvery. DESIGN.md has the reasons. All
// methods may be called at once, except Close: call it last, after Run.
package detail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// Config describes a Spool. Zero values mean the default in the comment.
type Config struct {
	Dir  string // required; of this spool alone
	Edge string // required; the name in this edge's certificate

	Budget    int64 // bytes on disk, beyond which the oldest pieces are given up; 0: 3 GiB; at least 64 KiB
	FileBytes int64 // a file longer than this is followed by a new one; 0: 8 MiB, at most a quarter of Budget

	TurnEvery time.Duration // so is one that holds what a control node has, at the next turn: see Run; 0: 1 min

	FS      durable.FS   // nil: the disk
	Program string       // name and version, for files; "": "bailiwick-edge"
	Logger  *slog.Logger // nil: none
}

// Validate says what is missing or absurd.
func (c Config) Validate() error {
	switch {
	case c.Dir == "" || c.Edge == "":
		return errors.New("detail config: Dir and Edge are required")
	case c.Budget != 0 && c.Budget < 64<<10:
		return fmt.Errorf("detail config: Budget %d: want at least 64 KiB", c.Budget)
	case c.FileBytes < 0 || c.TurnEvery < 0:
		return errors.New("detail config: FileBytes or TurnEvery is negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Budget == 0 {
		c.Budget = 3 << 30
	}
	if c.FileBytes == 0 {
		c.FileBytes = 8 << 20
	}
	c.FileBytes = min(c.FileBytes, c.Budget/4)
	if c.TurnEvery == 0 {
		c.TurnEvery = time.Minute
	}
	if c.FS == nil {
		c.FS = durable.OS()
	}
	if c.Program == "" {
		c.Program = "bailiwick-edge"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Lost stands in the place of pieces that are no more.
type Lost struct {
	From, To         uint64 // their numbers
	Rows             int64
	SinceMS, UntilMS int64  // when the first and the last of the rows finished, as far as known
	through          uint64 // rows of the epoch up to and with these
}

// Item is a piece, or what stands in its place.
type Item struct {
	Piece usage.Detail
	Lost  *Lost // if not nil, there is no piece
}

// Epoch is an epoch with something to send, or the newest.
type Epoch struct {
	Epoch   uint64
	Oldest  uint64 // the first number that is not stored
	Written uint64 // the last number there is; 0: none yet
}

// Stats are counters since Open and sizes now.
type Stats struct {
	RowsKept, RowsLost     int64
	PiecesKept, PiecesSent int64 // sent: marked as stored
	BytesKept              int64 // of payloads
	Failures               int64 // writes that failed; their rows are lost unless a crash brings them again
	Pieces, Disk           int64 // waiting, and bytes of all files
}

// Spool keeps one edge's detail.
type Spool struct {
	cfg Config

	// work is whoever writes: held across I/O, and nothing on the request path
	// takes it. Order of locks: work, mu.
	work  sync.Mutex
	log   *durable.Log // nil after a failed write, until a new file is begun
	files []file       // oldest first; the last is log's
	stale bool         // log's file holds pieces that were stored or given up
	told  string       // the failure that was logged last

	mu      sync.Mutex // covers what readers see; never held across I/O
	epochs  []*epoch   // oldest first
	changed chan struct{}
	sizes   int64

	rowsKept, rowsLost, piecesKept, sent, bytesKept, failures atomic.Int64
}

type file struct {
	no   uint64
	size int64
}

// epoch is what is known of one. Its pieces and losses are in order, and together
// hold every number from stored+1 to next-1 once.
type epoch struct {
	epoch, next        uint64
	rows               uint64 // of the epoch, kept, lost or stored
	stored, storedRows uint64
	until              int64 // ms, of the newest row
	pieces             []piece
	lost               []Lost
}

type piece struct {
	number, seq  uint64
	through      uint64 // rows of the epoch up to and with these
	rows         int64
	since, until int64
	file         uint64
	off          int64 // of the record in it
	head, size   int   // of the record: before the payload, and all
}

// Keep takes rows of an epoch: the last of them is the one with the number
// through, counted from 1 in the epoch's row log, and all are summed in the block
// seq or those after it of the same seal. Rows that it has are passed over, so a
// caller that folds its log again after a crash need not know which. Rows between
// those it has and those it is given are lost, and so is what cannot be written.
func (s *Spool) Keep(epochNo, seq, through uint64, rows *usage.Batch) {
	s.work.Lock()
	defer s.work.Unlock()
	e := s.take(epochNo)
	if through <= e.rows {
		return
	}
	missing := through - e.rows
	from, end := 0, rows.Len()
	if uint64(end) > missing {
		from = end - int(missing)
	}
	var b batch
	if gap := missing - uint64(end-from); gap > 0 {
		l := Lost{From: e.next, To: e.next, Rows: int64(gap), SinceMS: e.until, UntilMS: e.until, through: e.rows + gap}
		if from < end {
			l.UntilMS = rows.End(from)
		}
		b.lose(e, l)
	}
	for from < end {
		to := rows.Piece(from)
		b.keep(e, seq, rows, from, to)
		from = to
	}
	if err := s.write(&b); err != nil {
		s.failures.Add(1)
		if s.told != err.Error() { // once, not at every seal of an outage
			s.told = err.Error()
			s.cfg.Logger.Error("keep usage detail: these rows are counted, but their detail may be lost", "rows", missing, "error", err)
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			s.giveUp()
		}
		return
	}
	if s.told != "" {
		s.told = ""
		s.cfg.Logger.Info("usage detail is kept again", "rows_lost", b.counts.lost)
	}
	s.bound()
}

// take finds or makes the epoch. Under work.
func (s *Spool) take(no uint64) *epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(no); e != nil {
		return e
	}
	e := &epoch{epoch: no, next: 1}
	s.epochs = append(s.epochs, e)
	s.forget()
	return e
}

func (s *Spool) find(no uint64) *epoch {
	for _, e := range s.epochs {
		if e.epoch == no {
			return e
		}
	}
	return nil
}

// forget drops epochs of which all is stored, but the newest. Under mu.
func (s *Spool) forget() {
	left := s.epochs[:0]
	for i, e := range s.epochs {
		if i == len(s.epochs)-1 || e.stored+1 < e.next {
			left = append(left, e)
		}
	}
	s.epochs = left
}

// Epochs are, oldest first, those with something to send, and the newest.
func (s *Spool) Epochs() []Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Epoch, len(s.epochs))
	for i, e := range s.epochs {
		out[i] = Epoch{Epoch: e.epoch, Oldest: e.stored + 1, Written: e.next - 1}
	}
	return out
}

// Changed closes when something was kept, lost or marked. Take the channel
// first, then look.
func (s *Spool) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// publish changes what readers see, and wakes them.
func (s *Spool) publish(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Next is what stands at number from of an epoch, or the loss that covers it; ok
// is false if there is nothing yet. Reading does not remove. A piece whose bytes
// do not check out any more becomes a loss.
func (s *Spool) Next(epochNo, from uint64) (it Item, ok bool, err error) {
	for range 2 {
		s.mu.Lock()
		var p piece
		e := s.find(epochNo)
		if e != nil {
			for i := range e.lost {
				if l := e.lost[i]; from >= l.From && from <= l.To {
					s.mu.Unlock()
					return Item{Lost: &l}, true, nil
				}
			}
			if i, found := e.search(from); found {
				p = e.pieces[i]
			}
		}
		s.mu.Unlock()
		if p.number == 0 {
			return Item{}, false, nil
		}
		payload, err := s.read(&p)
		if err == nil {
			d := usage.Detail{Edge: s.cfg.Edge, Epoch: epochNo, Number: p.number, Seq: p.seq, Payload: payload}
			d.Hash = usage.HashDetail(d.Edge, d.Epoch, d.Number, d.Seq, d.Payload)
			return Item{Piece: d}, true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrCorrupt) { // given up meanwhile, or damaged
			return Item{}, false, err
		}
		s.cfg.Logger.Error("read usage detail: the piece is given up", "epoch", epochNo, "number", from, "error", err)
		if err := s.GiveUp(epochNo, from); err != nil {
			return Item{}, false, err
		}
	}
	return Item{}, false, nil
}

// Mark says that a control node has every number of an epoch up to stored for
// good. Repeats are harmless. It is not synced: what is forgotten is sent again,
// and marked again.
func (s *Spool) Mark(epochNo, stored uint64) error {
	s.work.Lock()
	defer s.work.Unlock()
	s.mu.Lock()
	e := s.find(epochNo)
	if e == nil || stored <= e.stored {
		s.mu.Unlock()
		return nil
	}
	next := e.next
	s.mu.Unlock()
	switch {
	case stored >= math.MaxInt64: // what is said lost behind it has a number, and so has what comes behind that
		return fmt.Errorf("mark usage detail of epoch %d as stored: nobody has written as many as %d", epochNo, stored)
	case stored >= next:
		return s.outrun(e, stored)
	}
	if s.log != nil {
		if err := s.log.Append(encodeMark(epochNo, stored)); err != nil {
			s.broken()
		}
	}
	s.stale = true
	s.publish(func() {
		s.sent.Add(int64(e.mark(stored)))
		s.forget()
	})
	s.bound()
	return nil
}

// outrun takes a mark beyond what is known here: the file that knew was damaged
// or removed. The control node has other rows under those numbers, so what is
// here is lost, and said so under the next one; some of it may be what is stored,
// since nobody can tell. Refusing would hold up all detail that comes behind it.
func (s *Spool) outrun(e *epoch, stored uint64) error {
	var b batch
	s.mu.Lock()
	next, l := e.next, Lost{From: stored + 1, To: stored + 1, SinceMS: e.until, UntilMS: e.until, through: e.rows}
	for i := range e.lost {
		l.Rows, l.SinceMS = l.Rows+e.lost[i].Rows, min(l.SinceMS, e.lost[i].SinceMS)
	}
	for i := range e.pieces {
		l.Rows, l.SinceMS = l.Rows+e.pieces[i].rows, min(l.SinceMS, e.pieces[i].since)
		b.counts.lost += e.pieces[i].rows
	}
	s.mu.Unlock()
	b.recs = append(b.recs, encodeMark(e.epoch, stored), encodeLost(e.epoch, &l))
	b.apply = append(b.apply, func(uint64, int64) { e.mark(stored) }, func(uint64, int64) { e.lose(l) })
	s.stale = true
	s.cfg.Logger.Error("a control node has usage detail of which nothing is known here: detail files were damaged or removed, or another edge uses this name; what was kept is lost",
		"epoch", e.epoch, "stored", stored, "written", next-1, "rows", l.Rows)
	if err := s.write(&b); err != nil {
		return err
	}
	s.bound()
	return nil
}

// Run lets go of what is stored, until ctx ends: rows must not outlive their
// erasure on a control node, or their retention, in a file here that is not full
// for days.
func (s *Spool) Run(ctx context.Context) error {
	t := time.NewTicker(s.cfg.TurnEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := s.turn(); err != nil {
				s.cfg.Logger.Warn("begin a new file of usage detail: rows that are stored stay here meanwhile", "error", err)
			}
		}
	}
}

// turn begins a new file where the current one holds what is not wanted any
// more. While nothing is stored, as in an outage, there are no more files for it.
func (s *Spool) turn() error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.stale {
		if err := s.create(s.files[len(s.files)-1].no + 1); err != nil {
			return err
		}
	}
	s.bound()
	return nil
}

// GiveUp makes a piece that nobody will store a loss.
func (s *Spool) GiveUp(epochNo, number uint64) error {
	s.work.Lock()
	defer s.work.Unlock()
	s.mu.Lock()
	e := s.find(epochNo)
	var p piece
	if e != nil {
		if i, found := e.search(number); found {
			p = e.pieces[i]
		}
	}
	s.mu.Unlock()
	if p.number == 0 {
		return nil
	}
	var b batch
	b.lose(e, p.asLost())
	s.stale = true
	return s.write(&b)
}

// Stats may be called at any time.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{RowsKept: s.rowsKept.Load(), RowsLost: s.rowsLost.Load(), PiecesKept: s.piecesKept.Load(), PiecesSent: s.sent.Load(),
		BytesKept: s.bytesKept.Load(), Failures: s.failures.Load(), Disk: s.sizes}
	for _, e := range s.epochs {
		st.Pieces += int64(len(e.pieces))
	}
	return st
}
