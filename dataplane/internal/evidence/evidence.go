// Package evidence keeps the sender's record of every relay: which request left over which pair, under which
// grant, before its first byte did (invariant 21).
//
// A row is in the kernel when Relay returns, so it survives the end of the process; a power cut may cost the
// group-commit window. The log is a ring of segments of a fixed size: the oldest is dropped when a new one
// would exceed the budget, and the number of rows dropped so is counted. Rows never leave the edge by this
// package; what leaves is how many there were in a minute under a grant, and a chained digest of them. Safe for use by several goroutines at once.
package evidence

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/durable"
)

// Defaults: 8 segments of 32 MiB hold some two million relays.
const (
	DefaultSegment  = 32 << 20
	DefaultSegments = 8
	DefaultCommit   = 50 * time.Millisecond
)

// Config of a Log.
type Config struct {
	Dir      string        // required
	Segment  int64         // bytes of a segment; 0: DefaultSegment
	Segments int           // how many are kept; 0: DefaultSegments
	Commit   time.Duration // group commit; 0: DefaultCommit
	Logger   *slog.Logger  // required
}

// Row is one relay attempt.
type Row struct {
	At        time.Time
	RequestID string
	Grant     string
	From, To  string
}

// Log is the edge's evidence.
type Log struct {
	cfg     Config
	dirty   atomic.Bool
	dropped atomic.Uint64

	// mu covers all below: one row after another, and no row into a closed segment.
	mu      sync.Mutex
	current *durable.Log
	number  int
	buf     []byte
	tell    *teller
}

var header = durable.Header{Magic: "bwevid", Version: 1, Program: "bailiwick-edge"}

// Open continues the newest segment. A torn last row is cut off and said so; a damaged segment is kept as it
// is for an auditor and a new one is begun.
func Open(cfg Config) (*Log, error) {
	if cfg.Dir == "" || cfg.Logger == nil {
		return nil, fmt.Errorf("evidence: Dir and Logger are required")
	}
	if cfg.Segment == 0 {
		cfg.Segment = DefaultSegment
	}
	if cfg.Segments == 0 {
		cfg.Segments = DefaultSegments
	}
	if cfg.Commit == 0 {
		cfg.Commit = DefaultCommit
	}
	if err := durable.OS().MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	l := &Log{cfg: cfg}
	var err error
	if l.tell, err = openTeller(cfg.Dir); err != nil {
		return nil, err
	}
	numbers, err := l.segments()
	if err != nil {
		return nil, err
	}
	l.recount(numbers)
	if len(numbers) > 0 {
		l.number = numbers[len(numbers)-1]
		log, state, err := durable.OpenLog(durable.OS(), l.path(l.number), header, func(int64, []byte) error { return nil })
		if err == nil {
			if state.Torn > 0 {
				cfg.Logger.Warn("evidence had a torn tail, cut off", "segment", l.path(l.number), "bytes", state.Torn)
			}
			l.current = log
			return l, nil
		}
		cfg.Logger.Error("evidence segment is damaged; it is kept and a new one begins", "segment", l.path(l.number), "error", err)
	}
	return l, l.rotate()
}

func (l *Log) path(n int) string {
	return filepath.Join(l.cfg.Dir, fmt.Sprintf("evidence-%08d.log", n))
}

func (l *Log) segments() ([]int, error) {
	entries, err := durable.OS().ReadDir(l.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list evidence: %w", err)
	}
	var numbers []int
	for _, e := range entries {
		var n int
		if strings.HasSuffix(e.Name(), ".log") {
			if _, err := fmt.Sscanf(e.Name(), "evidence-%d.log", &n); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// rotate begins the next segment and drops the oldest beyond the budget. The caller holds mu, or is alone.
func (l *Log) rotate() error {
	if l.current != nil {
		if err := l.current.Sync(); err != nil {
			return err
		}
		if err := l.current.Close(); err != nil {
			return err
		}
		l.current = nil
	}
	l.number++
	log, _, err := durable.OpenLog(durable.OS(), l.path(l.number), header, func(int64, []byte) error { return nil })
	if err != nil {
		return fmt.Errorf("begin evidence segment: %w", err)
	}
	l.current = log
	numbers, err := l.segments()
	if err != nil {
		return err
	}
	for _, n := range numbers[:max(0, len(numbers)-l.cfg.Segments)] {
		if err := durable.OS().Remove(l.path(n)); err != nil {
			return fmt.Errorf("drop evidence segment: %w", err)
		}
		l.dropped.Add(1)
		l.cfg.Logger.Warn("evidence segment dropped, the budget is full", "segment", n)
	}
	return nil
}

// Relay records that a request is about to leave over a pair. An error means that it must not.
func (l *Log) Relay(requestID, grant, from, to string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return fmt.Errorf("record relay of %s: evidence is closed", requestID)
	}
	if l.current.Size() >= l.cfg.Segment {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	l.buf = binary.AppendVarint(l.buf[:0], time.Now().UnixMicro())
	for _, s := range [...]string{requestID, grant, from, to} {
		l.buf = binary.AppendUvarint(l.buf, uint64(len(s)))
		l.buf = append(l.buf, s...)
	}
	if err := l.current.Append(l.buf); err != nil {
		return fmt.Errorf("record relay of %s: %w", requestID, err)
	}
	at, _ := binary.Varint(l.buf)
	l.tell.add(l.buf, at, under{grant, from, to})
	l.dirty.Store(true)
	return nil
}

// recount sums up the rows that the zone was not told of before the last end.
func (l *Log) recount(numbers []int) {
	for _, n := range numbers {
		if info, err := durable.OS().Stat(l.path(n)); err == nil && info.ModTime().Unix() < l.tell.done.Through {
			continue
		}
		err := read(l.path(n), func(row []byte, r Row) error {
			if micros := r.At.UnixMicro(); micros/60e6*60 > l.tell.done.Through {
				l.tell.add(row, micros, under{r.Grant, r.From, r.To})
			}
			return nil
		})
		if err != nil {
			l.cfg.Logger.Error("evidence that was not told yet does not read", "segment", l.path(n), "error", err)
		}
	}
}

// Run commits to disk in groups until ctx ends, then closes.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(l.cfg.Commit)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.current == nil {
				return nil
			}
			err := l.current.Sync()
			if cerr := l.current.Close(); err == nil {
				err = cerr
			}
			l.current = nil
			return err
		case <-tick.C:
			if !l.dirty.Swap(false) {
				continue
			}
			l.mu.Lock()
			current := l.current
			l.mu.Unlock()
			if err := current.Sync(); err != nil && ctx.Err() == nil {
				l.mu.Lock()
				same := current == l.current
				l.mu.Unlock()
				if same { // rotation syncs and closes by itself
					return fmt.Errorf("commit evidence: %w", err)
				}
			}
		}
	}
}

// DroppedSegments counts segments that the budget has cost.
func (l *Log) DroppedSegments() uint64 { return l.dropped.Load() }

// Read gives every row of one segment file to each, in order.
func Read(path string, each func(Row) error) error {
	return read(path, func(_ []byte, r Row) error { return each(r) })
}

func read(path string, each func(row []byte, r Row) error) error {
	log, _, err := durable.OpenLog(durable.OS(), path, header, func(_ int64, p []byte) error {
		row := p
		micros, n := binary.Varint(p)
		if n <= 0 {
			return fmt.Errorf("%s: a row has no time", path)
		}
		p = p[n:]
		var s [4]string
		for i := range s {
			size, n := binary.Uvarint(p)
			if n <= 0 || uint64(len(p)-n) < size {
				return fmt.Errorf("%s: a row is cut short", path)
			}
			s[i], p = string(p[n:n+int(size)]), p[n+int(size):]
		}
		return each(row, Row{At: time.UnixMicro(micros).UTC(), RequestID: s[0], Grant: s[1], From: s[2], To: s[3]})
	})
	if err != nil {
		return err
	}
	return log.Close()
}
