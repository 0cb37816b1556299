// Package spool owns an edge's usage between the moment a request finishes and
// the moment the zone ledger has it for good: an mmapped log of rows, the sealed
// blocks made of them, and the numbers that let each block be counted once.
//
// It never decides what is billed, never talks to the network, and never drops a
// row whose Append returned nil; what it cannot keep it refuses aloud. A kill of
// the process loses nothing appended, a power cut at most the group-commit
// window. DESIGN.md has the files and the reasons. All exported methods may be
// called at once, except Close, which waits for nobody: call it after Run.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

var (
	// ErrFull is in the chain of errors for want of disk space.
	ErrFull = errors.New("no space for usage")
	// ErrClosed answers everything after Close.
	ErrClosed = errors.New("spool is closed")
	// ErrFork means that the ledger says something of a block that is not what
	// this spool made: another edge, or a copy of this disk, uses the same name.
	ErrFork = errors.New("ledger and spool disagree on a block")
)

// Config describes a Spool. Zero values mean the default in the comment.
type Config struct {
	Dir  string // required; of this spool alone
	Edge string // required; the name in this edge's certificate

	SegmentBytes int           // of one row segment; 0: 8 MiB; at least 64 KiB
	SegmentAge   time.Duration // a segment with rows is followed by a new one after it, though it is not full; 0: 1 h
	GroupCommit  time.Duration // rows are on disk after it; what a power cut may cost; 0: 50 ms
	SealEvery    time.Duration // 0: 250 ms
	SealMost     time.Duration // under load, to seal fewer and larger blocks; 0: 1.5 s
	MaxUnacked   int           // blocks; while that many wait, none is sealed; 0: 64
	JournalBytes int64         // a journal file longer than this is followed by a new one; 0: 4 MiB

	Detail Detail // takes every row on its way into a block; nil: nobody does

	FS      durable.FS       // of the journal and the checkpoint (segments are mapped, so they are always real files); nil: the disk
	Now     func() time.Time // nil: time.Now
	Beat    *beat.Beat       // nil: its own
	Program string           // name and version, for files; "": "bailiwick-edge"
	Logger  *slog.Logger     // nil: none
}

// Detail keeps rows one by one. The spool calls it from one goroutine, before the
// rows are sealed, and again with the same rows after a crash.
type Detail interface {
	// Keep takes rows that follow each other in an epoch, the last of them the
	// one with the number through, which are summed in block seq (or those
	// behind it of the same seal). It passes over rows it has, and counts as lost
	// those between that it was not given. The rows are valid only during the call.
	Keep(epoch, seq, through uint64, rows *usage.Batch)
}

// Validate says what is missing or absurd.
func (c Config) Validate() error {
	switch {
	case c.Dir == "" || c.Edge == "":
		return errors.New("spool config: Dir and Edge are required")
	case c.SegmentBytes != 0 && (c.SegmentBytes < 64<<10 || c.SegmentBytes > 1<<30):
		return fmt.Errorf("spool config: SegmentBytes %d: want 64 KiB to 1 GiB", c.SegmentBytes)
	case c.GroupCommit < 0 || c.SealEvery < 0 || c.SealMost < 0 || c.MaxUnacked < 0 || c.JournalBytes < 0 || c.SegmentAge < 0:
		return errors.New("spool config: a duration or limit is negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.SegmentBytes = or(c.SegmentBytes, 8<<20) &^ 4095
	c.SegmentAge = or(c.SegmentAge, time.Hour)
	c.GroupCommit = or(c.GroupCommit, 50*time.Millisecond)
	c.SealEvery = or(c.SealEvery, 250*time.Millisecond)
	c.SealMost = or(c.SealMost, 1500*time.Millisecond)
	c.MaxUnacked = or(c.MaxUnacked, 64)
	c.JournalBytes = or(c.JournalBytes, 4<<20)
	c.Program = or(c.Program, "bailiwick-edge")
	if c.Beat == nil {
		c.Beat = beat.New()
	}
	if c.FS == nil {
		c.FS = durable.OS()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Spool keeps one edge's usage. Open makes one; Run must run for rows to reach
// the disk's platters and become blocks.
type Spool struct {
	cfg  Config
	lock *os.File // held: two processes in one directory would count twice

	// mu is the request path's: it covers the place of the next row and is never
	// held across I/O. last keeps stamps from going back: a row appended after a
	// seal took its time must not carry an earlier one (SealedThrough).
	mu      sync.Mutex
	closed  bool
	cur     *segment
	off     int        // of the next record in cur
	since   int64      // unix ms, when cur became it
	rowsEnd pos        // where the last row ends; markers lie beyond
	last    int64      // unix ms, of the newest stamp handed out
	spare   *segment   // allocated one ahead, nil while there is none
	segs    []*segment // mapped, oldest first, cur last
	wholes  wholes     // of cur

	tight atomic.Bool // what short says; set with mu held

	allocMu sync.Mutex // one allocation at a time; held across I/O, taken before mu
	nextNo  uint64     // of the next segment to allocate; under allocMu

	// What follows belongs to whoever holds work: Run, or a test in its place.
	// Held across I/O; nothing on the request path takes it.
	work     sync.Mutex
	synced   pos // rows below it are on disk
	folded   pos // rows below it are in open, or in blocks
	ckpt     pos // rows below it are in the checkpoint file
	open     sums
	rows     uint64 // of the epoch, below folded
	reader   reader
	detail   detailRows
	attempt  *attempt // a seal whose writing failed: it is retried as it is
	reserved bool     // the reserve file exists

	// j is the one writer's view of the journal; jmu is held across its I/O.
	// Order of locks: work, jmu, view, mu.
	jmu sync.Mutex
	j   *journal

	view    sync.Mutex // covers what readers see, never held across I/O
	st      state
	through Through
	parked  map[uint64]bool
	changed chan struct{}

	ioErr   atomic.Pointer[error] // for good: a failed fsync cannot be repaired by another
	fullErr atomic.Pointer[error] // until space is there again

	wake  chan struct{}
	count counters
}

type counters struct {
	rows, rowBytes, refused, commits, sealed, acked, checkpoints, recovered, torn atomic.Int64
	segments, openCells                                                           atomic.Int64
}

// Stats are counters since Open and sizes now.
type Stats struct {
	Rows, RowBytes int64 // appended
	Refused        int64 // Append answered an error
	GroupCommits   int64
	BlocksSealed   int64 // those that finished the epoch before included
	BlocksAcked    int64
	Checkpoints    int64
	RowsRecovered  int64 // found by Open behind the last block
	BytesTorn      int64 // cut off by Open
	Unacked        int   // blocks
	Parked         int   // epochs that the ledger refused
	OpenCells      int64 // in memory, not in a block
	Segments       int64 // row segments on disk, the spare included
	Epoch, Seq     uint64
}

// Stats may be called at any time.
func (s *Spool) Stats() Stats {
	s.view.Lock()
	defer s.view.Unlock()
	c := &s.count
	return Stats{Rows: c.rows.Load(), RowBytes: c.rowBytes.Load(), Refused: c.refused.Load(), GroupCommits: c.commits.Load(), BlocksSealed: c.sealed.Load(),
		BlocksAcked: c.acked.Load(), Checkpoints: c.checkpoints.Load(), RowsRecovered: c.recovered.Load(), BytesTorn: c.torn.Load(),
		Unacked: len(s.st.blocks), Parked: len(s.parked), OpenCells: c.openCells.Load(), Segments: c.segments.Load(), Epoch: s.st.epoch, Seq: s.st.seq}
}

// Open reads what the process before left, makes its rows the last blocks of
// its epoch, and begins a new epoch. Damage of bytes that were once on disk is
// durable.ErrCorrupt and refuses; a torn tail is cut and logged.
func Open(cfg Config) (s *Spool, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s = &Spool{cfg: cfg, open: newSums(), parked: map[uint64]bool{}, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			s.release()
			err = fmt.Errorf("open spool %s: %w", cfg.Dir, err)
		}
	}()
	// Segments are real files whatever FS is.
	if err := durable.OS().MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return s, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return s, err
	}
	if err := s.lockDir(); err != nil {
		return s, err
	}
	if s.j, s.st, err = loadJournal(&s.cfg); err != nil {
		return s, err
	}
	if err := s.finishEpoch(); err != nil {
		return s, err
	}
	s.makeReserve()
	return s, s.beginEpoch()
}

func (s *Spool) lockDir() error {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, durable.FilePerm)
	if err != nil {
		return err
	}
	s.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process holds it: %w", err)
	}
	return nil
}

// beginEpoch opens a new epoch: its number is on disk before it is used. It is
// taken from the clock where that is higher than the last one plus one: an edge
// whose disk was lost must not begin again at a number that the ledger has seen,
// or its blocks would be taken for repeats and never be counted.
func (s *Spool) beginEpoch() error {
	now := s.cfg.Now().UnixMilli()
	epoch := max(s.st.epoch+1, uint64(max(now, 1)))
	if err := s.j.write(encodeEpoch(epoch)); err != nil {
		return err
	}
	// A clock that went back a little since the process before must not make
	// rows that seem to have finished before they were promised complete. One
	// that went back a lot was wrong before.
	s.last = now // also if it goes back in the first moment: through is said below
	if d := s.st.at - now; d > 0 && d < time.Hour.Milliseconds() {
		s.last = s.st.at
	}
	s.st.begin(epoch)
	s.nextNo, s.rows = 1, 0
	if err := s.removeOld(); err != nil {
		return err
	}
	seg, err := s.allocate()
	if err != nil {
		return err
	}
	s.cur, s.off, s.since, s.segs = seg, segmentHeader, s.last, []*segment{seg}
	s.wholes.turn = 1
	s.rowsEnd = seg.at(segmentHeader)
	s.synced, s.folded, s.ckpt = s.rowsEnd, s.rowsEnd, s.rowsEnd
	s.through = Through{Epoch: epoch, At: time.UnixMilli(s.last)}
	if err := s.provide(); err != nil { // not fatal: this segment has room
		s.cfg.Logger.Warn("allocate spare usage segment", "error", err)
	}
	return nil
}

// Run commits rows to disk, seals blocks and keeps a segment ahead until ctx
// ends. What goes wrong shows in Healthy and is retried where that can help; it
// returns only what went wrong with the last commit and seal, after ctx ended.
func (s *Spool) Run(ctx context.Context) error {
	seal, commit := s.cfg.Beat.Patient(s.cfg.SealEvery), s.cfg.Beat.Alarm()
	defer seal.Stop()
	defer commit.Stop()
	s.expect(commit)
	busy := pace{most: s.cfg.SealMost - s.cfg.SealEvery/2, sealed: s.cfg.Now()}
	var told string
	for {
		var err error
		select {
		case <-ctx.Done():
			return errors.Join(s.groupCommit(), s.seal())
		case <-s.wake:
			err = s.provide()
		case <-commit.C:
			err = s.commit(commit)
		case <-seal.C:
			seal.Again()
			if !busy.wait(s.count.rows.Load(), s.cfg.Now()) {
				err = s.seal()
			}
		}
		switch {
		case err == nil && told != "" && s.Healthy() == nil:
			told = ""
			s.cfg.Logger.Info("usage spool is well again")
		case err != nil && err.Error() != told:
			told = err.Error()
			s.cfg.Logger.Error("usage spool", "error", err)
		}
	}
}

// commit folds the rows and brings them to the disk, and has next tick a GroupCommit later.
func (s *Spool) commit(next *beat.Alarm) error {
	s.expect(next)
	return errors.Join(s.foldNew(), s.groupCommit(), s.provide())
}

// expect has the next commit come a GroupCommit from now, or at a pause in the last fifth of that: so it is over, or nearly, when the next
// request comes. It takes a processor for some 0.4 ms, and who comes meanwhile waits for it.
func (s *Spool) expect(commit *beat.Alarm) {
	commit.Set(time.Now().Add(s.cfg.GroupCommit), s.cfg.GroupCommit/5, 0)
}

// pace decides when to seal. A block says each of its customers, routes and
// regions once, so under load larger blocks cost fewer bytes a request; while it
// is quiet, nobody need wait.
type pace struct {
	most   time.Duration
	rows   int64 // at the last look
	sealed time.Time
}

const busyRows = 64 // in one SealEvery

func (p *pace) wait(rows int64, now time.Time) bool {
	fresh := rows - p.rows
	p.rows = rows
	if fresh >= busyRows && now.Sub(p.sealed) < p.most {
		return true
	}
	p.sealed = now
	return false
}

// Healthy says why rows may soon be refused, or may not survive a power cut:
// whether to serve on without usage is the proxy's decision. nil: all is well.
func (s *Spool) Healthy() error {
	if p := s.ioErr.Load(); p != nil {
		return *p
	}
	if p := s.fullErr.Load(); p != nil {
		return *p
	}
	return nil
}

// note remembers err for Healthy and returns it.
func (s *Spool) note(err error) error {
	if isFull(err) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
		s.fullErr.Store(&err)
	} else {
		s.ioErr.CompareAndSwap(nil, &err)
	}
	return err
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, ErrFull)
}

// Close syncs the rows and lets go of the files. Blocks are made of what is left
// by the next Open.
func (s *Spool) Close() error {
	err := s.groupCommit()
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return ErrClosed
	}
	s.release()
	return err
}

func (s *Spool) release() {
	s.work.Lock()
	defer s.work.Unlock()
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	s.jmu.Lock()
	defer s.jmu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, g := range s.segs {
		g.close()
	}
	if s.spare != nil {
		s.spare.close()
	}
	s.segs, s.spare, s.cur = nil, nil, nil
	if s.j != nil {
		s.j.close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

var _ interface{ Append(*usage.Row) error } = (*Spool)(nil)
