// Package detail owns a control node's store of detail: the rows, one a request, that edges shipped to this
// node, as Parquet files in its region. It proves the ledger's cells by the requests behind them.
//
// It never bills, and nothing it holds leaves the zone or is replicated: a row rests on the one node that took
// it. A piece that was acknowledged survives any crash: it is in a synced log until a Parquet file that the
// catalog names holds it. Rows end by age, by the disk budget (oldest first, counted) or by erasure, and
// nothing else. Every exported method may be called at once; Run is called once, and Append needs it.
package detail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Reasons of errors.
const (
	ReasonBehind  = "DETAIL_BEHIND"  // kind Unavailable: Parquet is written more slowly than rows arrive
	ReasonDisk    = "DETAIL_DISK"    // kind Unavailable: the disk does not take more
	ReasonStopped = "DETAIL_STOPPED" // kind Unavailable
)

// Config describes a Store.
type Config struct {
	Dir string     // required; made if it is not there
	FS  durable.FS // nil: the real one

	// Erased says whether a customer was erased: his rows come to rest no more, whenever they arrive. Required;
	// called often and at once, and must not block.
	Erased func(customer string) bool

	Retention time.Duration    // of a row, by when its request ended; 0: 35 days
	Budget    int64            // bytes on disk; 0: 20 GiB
	RollBytes int              // of logged pieces that make one Parquet file; 0: 16 MiB, the largest
	RollEvery time.Duration    // at least one file in this time, if there were rows; 0: 1 h
	Now       func() time.Time // nil: time.Now
	Program   string           // in file headers; "": bailiwick-control
	Logger    *slog.Logger     // nil is silent
}

// maxRoll bounds what one roll holds in memory: some 1.6 million rows as pieces.
const maxRoll = 16 << 20

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.Dir == "" || c.Erased == nil:
		return errors.New("detail config: Dir and Erased are required")
	case c.Retention < 0 || c.Budget < 0 || c.RollBytes < 0 || c.RollEvery < 0:
		return errors.New("detail config: a limit is negative")
	case c.RollBytes > maxRoll:
		return fmt.Errorf("detail config: RollBytes is %d, at most %d", c.RollBytes, maxRoll)
	}
	return nil
}

// Piece is one detail block of an edge, read and found good.
type Piece struct {
	Edge, Region       string
	Epoch, Number, Seq uint64
	Payload            []byte // shared/usage's detail part
	Customers          []string
	rows               int64
	min, max           int64 // unix ms of its rows' ends
}

// NewPiece reads a payload. edge and region are as the certificate says; number counts from 1; seq is the
// ledger block in which the rows are summed. The piece keeps payload.
func NewPiece(edge, region string, epoch, number, seq uint64, payload []byte) (Piece, error) {
	p := Piece{Edge: edge, Region: region, Epoch: epoch, Number: number, Seq: seq, Payload: payload, min: math.MaxInt64, max: math.MinInt64}
	if epoch == 0 || number == 0 || number == math.MaxUint64 {
		return p, errors.New("epoch and number of a piece of detail count from 1")
	}
	rows, err := usage.DecodeDetail(payload)
	if err != nil {
		return p, err
	}
	seen := map[string]bool{}
	for i := range rows {
		r := &rows[i]
		p.min, p.max = min(p.min, r.EndUnixMS), max(p.max, r.EndUnixMS)
		if !seen[r.Customer] {
			seen[r.Customer] = true
			p.Customers = append(p.Customers, r.Customer)
		}
	}
	p.rows = int64(len(rows))
	return p, nil
}

// Lost says that an edge gave up pieces From to To for want of space.
type Lost struct {
	Edge  string    `json:"edge"`
	Epoch uint64    `json:"epoch"`
	From  uint64    `json:"from"`
	To    uint64    `json:"to"`
	Rows  int64     `json:"rows"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// Entry is one thing to store: a piece, or the word that some were lost. Floor is the oldest number that the
// edge still has: what is below it rests elsewhere, so the first number here need not be 1.
type Entry struct {
	Piece *Piece
	Lost  *Lost
	Floor uint64
}

// Answer is what became of an entry. Stored: every number up to it is on this node's disk, was said to be lost,
// or was stored elsewhere. Gap: the entry was refused, Stored+1 or the floor comes next.
type Answer struct {
	Stored   uint64
	Gap      bool
	Expected uint64
}

type epochKey struct {
	edge  string
	epoch uint64
}

// Store is one node's detail.
type Store struct {
	cfg    Config
	fs     durable.FS
	log    *slog.Logger
	append chan *appending // to the writer
	rotate chan chan error // to the writer: freeze the table
	orders chan order      // to the keeper
	frozen chan struct{}   // to the keeper: a table waits; capacity 1
	done   chan struct{}   // closed when Run has ended
	cur    *table          // the writer's alone, but for what readers see of it under mu
	old    bool            // its log has a header of before

	// mu covers what readers see: tables (the last one is open), the catalog, marks, the counters. Values in
	// them are only ever added to or replaced, so a reader copies headers and leaves. Never held across I/O.
	mu     sync.Mutex
	tables []*table
	cat    catalog
	marks  map[epochKey]uint64
	sound  map[string]error // files whose checksum was verified since the start
	stats  Stats
}

// Stats counts since the start.
type Stats struct {
	Pieces, Rows  int64 // taken, repeats not counted
	Bytes         int64 // of them
	Repeats       int64
	ErasedRows    int64 // of erased customers, dropped on arrival or when rolled
	Files         int   // now
	FileBytes     int64 // now
	FileRows      int64 // now
	Expired       int64 // files removed by age
	OverBudget    int64 // files removed by the budget
	Damaged       int   // files that do not check out
	WaitingTables int   // logs not yet rolled, the open one included
}

// table is what one log holds: pieces wait in it to be rolled. The writer changes the open one, under Store.mu
// but for log.
type table struct {
	number uint64
	log    *durable.Log // nil: it failed
	opened time.Time
	bytes  int
	pieces []Piece
	lost   []Lost
	marks  map[epochKey]uint64
}

// Open reads what is there. A log whose tail is torn is cut, and that is said; anything else that does not
// check out is an error.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Retention = or(cfg.Retention, 35*24*time.Hour)
	cfg.Budget = or(cfg.Budget, 20<<30)
	cfg.RollBytes = or(cfg.RollBytes, maxRoll)
	cfg.RollEvery = or(cfg.RollEvery, time.Hour)
	cfg.Program = or(cfg.Program, "bailiwick-control")
	s := &Store{cfg: cfg, fs: cfg.FS, log: cfg.Logger, append: make(chan *appending), rotate: make(chan chan error),
		orders: make(chan order), frozen: make(chan struct{}, 1), done: make(chan struct{}),
		marks: map[epochKey]uint64{}, sound: map[string]error{}}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("open detail in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Run writes, rolls and removes until ctx ends. The caller must not call it twice.
func (s *Store) Run(ctx context.Context) error {
	defer close(s.done)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.write(ctx) })
	g.Go(func() error { return s.keep(ctx) })
	err := g.Wait()
	s.mu.Lock()
	tables := slices.Clone(s.tables)
	s.mu.Unlock()
	for _, t := range tables {
		if t.log != nil {
			err = errors.Join(err, t.log.Close())
		}
	}
	return err
}

// Mark is what this node has of an epoch.
func (s *Store) Mark(edge string, epoch uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks[epochKey{edge, epoch}]
}

// Stats is a copy of the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.WaitingTables = len(s.tables)
	out.Files = len(s.cat.Files)
	for _, f := range s.cat.Files {
		out.FileBytes += f.Bytes
		out.FileRows += f.Rows
	}
	for _, err := range s.sound {
		if err != nil {
			out.Damaged++
		}
	}
	return out
}

func (s *Store) count(f func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.stats)
}

func (s *Store) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

func (s *Store) stopped() error {
	return fault.New(fault.Unavailable, ReasonStopped, "the detail of this node is closed: ask another node")
}

// Append stores the entries of one edge, in order, and returns once what it says is on disk for good. An error
// means that nobody knows: ask Mark, and send again.
func (s *Store) Append(ctx context.Context, edge string, epoch uint64, entries ...Entry) ([]Answer, error) {
	a := &appending{key: epochKey{edge, epoch}, entries: entries, done: make(chan error, 1)}
	select {
	case s.append <- a:
	case <-s.done:
		return nil, s.stopped()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case err := <-a.done:
		return a.answers, err
	case <-s.done:
		return nil, s.stopped()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// clean takes the rows of erased customers out of a piece. It returns how many it took; the piece is left
// alone if none.
func (s *Store) clean(p Piece) (Piece, int64, error) {
	if !slices.ContainsFunc(p.Customers, s.cfg.Erased) {
		return p, 0, nil
	}
	rows, err := usage.DecodeDetail(p.Payload)
	if err != nil {
		return p, 0, err
	}
	kept := slices.DeleteFunc(rows, func(r usage.Row) bool { return s.cfg.Erased(r.Customer) })
	gone := p.rows - int64(len(kept))
	out, err := NewPiece(p.Edge, p.Region, p.Epoch, p.Number, p.Seq, usage.EncodeDetail(kept))
	return out, gone, err
}

// Last is when the last of its rows ended; the zero time if it has none.
func (p *Piece) Last() time.Time {
	if p.rows == 0 {
		return time.Time{}
	}
	return time.UnixMilli(p.max)
}
