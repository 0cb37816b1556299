// Package evidence keeps the sender's record of every relay: which request left over which pair, under which
// grant, before its first byte did (invariant 21), and what this edge refused.
//
// A row is in the kernel when Relay returns, so it survives the end of the process; a power cut may cost the
// group-commit window. Rows lie in a ring of segments, each of which is whole in itself: it ends with the entries that
// sum up its rows. The oldest is dropped when its rows are older than Keep or the segments outgrow the budget, and the
// latter is counted. What leaves by itself is how many rows there were in a minute under a grant, and a chained digest of
// them; the rows leave only to whom Rows gives them, which are control nodes of the own zone. Refusals are counted by
// minute; those of the last second may be lost with the process. Safe for use by several goroutines at once.
package evidence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
)

// Defaults: 256 MiB hold some two million relays.
const (
	DefaultSegment = 32 << 20
	DefaultBudget  = 256 << 20
	DefaultKeep    = 90 * 24 * time.Hour
	DefaultCommit  = 50 * time.Millisecond
	segmentSpan    = 24 * time.Hour // a segment's rows are no farther apart, so that age can drop it
	tidyEvery      = time.Hour
)

// Config of a Log.
type Config struct {
	Dir     string        // required
	Segment int64         // bytes of a segment; 0: DefaultSegment
	Budget  int64         // bytes of all segments; 0: DefaultBudget
	Keep    time.Duration // how old rows may get; 0: DefaultKeep
	Commit  time.Duration // group commit; 0: DefaultCommit
	Beat    *beat.Beat    // nil: its own
	Logger  *slog.Logger  // required
}

// Log is the edge's evidence.
type Log struct {
	cfg     Config
	dirty   atomic.Bool
	dropped atomic.Uint64
	refused *refusals

	// mu covers all below: one row after another, and no row into a closed segment.
	mu      sync.Mutex
	current *durable.Log
	number  int
	began   int64 // unix seconds of the current segment's first row; 0: it has none
	buf     []byte
	tell    *teller
}

// Version 2 has entries between the rows.
var header = durable.Header{Magic: "bwevid", Version: 2, Program: "bailiwick-edge"}

// Open begins a new segment behind those there are. Rows that the zone was not told of are summed up anew; a damaged
// segment is kept as it is for an auditor.
func Open(cfg Config) (*Log, error) {
	if cfg.Dir == "" || cfg.Logger == nil {
		return nil, errors.New("evidence: Dir and Logger are required")
	}
	if cfg.Segment == 0 {
		cfg.Segment = DefaultSegment
	}
	if cfg.Budget == 0 {
		cfg.Budget = DefaultBudget
	}
	if cfg.Keep == 0 {
		cfg.Keep = DefaultKeep
	}
	if cfg.Commit == 0 {
		cfg.Commit = DefaultCommit
	}
	if err := durable.OS().MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	l := &Log{cfg: cfg}
	var err error
	if l.refused, err = openRefusals(cfg.Dir, cfg.Logger); err != nil {
		return nil, err
	}
	if l.tell, err = openTeller(cfg.Dir); err != nil {
		return nil, err
	}
	numbers, err := l.segments()
	if err != nil {
		return nil, err
	}
	if len(numbers) == 0 {
		return l, l.begin()
	}
	l.number = numbers[len(numbers)-1]
	if err := l.recount(numbers); err != nil {
		return nil, err
	}
	return l, l.tidy(time.Now())
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

// rotate ends the segment with the entries of its rows and begins the next. The caller holds mu.
func (l *Log) rotate(now time.Time) error {
	if err := l.seal(); err != nil {
		return err
	}
	if err := l.current.Sync(); err != nil {
		return err
	}
	if err := l.current.Close(); err != nil {
		return err
	}
	l.current = nil
	if err := l.begin(); err != nil {
		return err
	}
	return l.tidy(now)
}

// begin makes the next segment. The caller holds mu, or is alone.
func (l *Log) begin() error {
	l.number++
	log, _, err := durable.OpenLog(durable.OS(), l.path(l.number), header, nil)
	if err != nil {
		return fmt.Errorf("begin evidence segment: %w", err)
	}
	l.current, l.began = log, 0
	return nil
}

// tidy drops segments that are too old, and the oldest while all of them and a full new one would not fit. The caller
// holds mu, or is alone.
func (l *Log) tidy(now time.Time) error {
	numbers, err := l.segments()
	if err != nil {
		return err
	}
	sum := l.cfg.Segment // what the current one may come to
	for _, n := range slices.Backward(numbers) {
		if n == l.number {
			continue
		}
		info, err := durable.OS().Stat(l.path(n))
		if err != nil {
			return fmt.Errorf("look at evidence segment: %w", err)
		}
		sum += info.Size()
		old := now.Sub(info.ModTime()) > l.cfg.Keep
		if !old && sum <= l.cfg.Budget {
			continue
		}
		if err := durable.OS().Remove(l.path(n)); err != nil {
			return fmt.Errorf("drop evidence segment: %w", err)
		}
		sum -= info.Size()
		if !old {
			l.dropped.Add(1)
			l.cfg.Logger.Warn("evidence segment dropped, the budget is full", "segment", n)
		}
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
	now := time.Now()
	if l.current.Size() >= l.cfg.Segment || l.began > 0 && now.Unix()-l.began > int64(segmentSpan/time.Second) {
		if err := l.rotate(now); err != nil {
			return err
		}
	}
	u := under{grant, from, to}
	if l.tell.full(now.Unix(), u) { // before the row, so that each entry stands behind all of its rows
		if err := l.seal(); err != nil {
			return err
		}
	}
	l.buf = checkpoint.Row{At: now, RequestID: requestID, Grant: grant, From: from, To: to}.Append(l.buf[:0])
	if err := l.current.Append(l.buf); err != nil {
		return fmt.Errorf("record relay of %s: %w", requestID, err)
	}
	if l.began == 0 {
		l.began = now.Unix()
	}
	l.tell.add(l.buf, now.Unix(), u)
	l.dirty.Store(true)
	return nil
}

// Refuse counts a refusal, with the request it befell as a sample. Bounded: see refusals.go.
func (l *Log) Refuse(rule, from, to, requestID string) {
	l.refused.add(time.Now(), rule, from, to, requestID)
}

// Run commits to disk in groups until ctx ends, then closes.
func (l *Log) Run(ctx context.Context) error {
	tick := l.cfg.Beat.Ticker(l.cfg.Commit)
	defer tick.Stop()
	tidied, unsaved := time.Now(), false
	for {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			err := l.refused.save()
			if l.current == nil {
				return err
			}
			err = errors.Join(err, l.current.Sync(), l.current.Close())
			l.current = nil
			return err
		case now := <-tick.C:
			tick.Again()
			if err := l.refused.saveNow(now); err != nil && !unsaved { // counts are no reason to stop serving
				l.cfg.Logger.Error("refusals are counted in memory alone", "error", err)
				unsaved = true
			}
			if now.Sub(tidied) > tidyEvery {
				tidied = now
				l.mu.Lock()
				err := l.tidy(now)
				l.mu.Unlock()
				if err != nil {
					return err
				}
			}
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
