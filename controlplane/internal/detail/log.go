package detail

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

const (
	maxFrozen  = 4       // logs that wait to be rolled; beyond it edges are asked to wait
	batchBytes = 4 << 20 // of pieces that share one fsync
)

// appending is one call of Append on its way through the writer.
type appending struct {
	key     epochKey
	entries []Entry
	answers []Answer
	done    chan error
}

// write owns the open log: appends share an fsync with all that wait at the time (group commit).
func (s *Store) write(ctx context.Context) error {
	tick := time.NewTicker(min(s.cfg.RollEvery, 10*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if len(s.cur.pieces) > 0 && s.cfg.Now().Sub(s.cur.opened) >= s.cfg.RollEvery {
				if err := s.freeze(); err != nil {
					s.log.Error("detail log is not rotated", "error", err)
				}
			}
		case ask := <-s.rotate:
			ask <- s.freeze()
		case a := <-s.append:
			batch, size := []*appending{a}, a.size()
		gather:
			for size < batchBytes {
				select {
				case more := <-s.append:
					batch, size = append(batch, more), size+more.size()
				default:
					break gather
				}
			}
			err := s.commit(batch)
			for _, a := range batch {
				a.done <- err
			}
		}
	}
}

func (a *appending) size() (n int) {
	for _, e := range a.entries {
		if e.Piece != nil {
			n += len(e.Piece.Payload)
		}
	}
	return n
}

// commit logs a batch and syncs once. What readers see and the marks change only after the sync.
func (s *Store) commit(batch []*appending) error {
	if s.cur.log == nil { // the last one failed; its disk may have space again
		if err := s.open(s.cur.number + 1); err != nil {
			return fault.New(fault.Unavailable, ReasonDisk, "detail: no new log can be opened: %w", err)
		}
	}
	if len(s.tables) > maxFrozen {
		return fault.New(fault.Unavailable, ReasonBehind, "detail: %d logs wait to be written as Parquet: send again later", len(s.tables)-1)
	}
	marks := map[epochKey]uint64{}
	var pieces []Piece
	var lost []Lost
	var repeats, dropped int64
	for _, a := range batch {
		mark, known := marks[a.key]
		if !known {
			mark = s.Mark(a.key.edge, a.key.epoch)
		}
		a.answers = a.answers[:0]
		for _, e := range a.entries {
			first, last := e.span()
			next := max(mark+1, e.Floor)
			switch {
			case last <= mark:
				repeats++
			case first > next:
				a.answers = append(a.answers, Answer{Stored: mark, Gap: true, Expected: next})
				continue
			case e.Piece != nil:
				p, gone, err := s.clean(*e.Piece)
				if err != nil {
					return fmt.Errorf("detail: take erased rows out of a piece: %w", err)
				}
				if err := s.cur.log.Append(encodePiece(&p)); err != nil {
					return s.failed(err)
				}
				dropped += gone
				pieces = append(pieces, p)
			default:
				l := *e.Lost
				l.From = max(l.From, mark+1)
				if err := s.cur.log.Append(encodeLost(&l)); err != nil {
					return s.failed(err)
				}
				lost = append(lost, l)
			}
			mark = max(mark, last)
			a.answers = append(a.answers, Answer{Stored: mark})
		}
		marks[a.key] = mark
	}
	if len(pieces)+len(lost) > 0 {
		if err := s.cur.log.Sync(); err != nil {
			return s.failed(err)
		}
	}
	s.mu.Lock()
	for k, m := range marks {
		if m > 0 {
			s.marks[k], s.cur.marks[k] = m, m
		}
	}
	s.cur.pieces = append(s.cur.pieces, pieces...)
	for i := range pieces {
		s.cur.bytes += len(pieces[i].Payload)
		s.stats.Rows += pieces[i].rows
		s.stats.Bytes += int64(len(pieces[i].Payload))
	}
	s.stats.Pieces += int64(len(pieces))
	s.stats.Repeats += repeats
	s.stats.ErasedRows += dropped
	s.cur.lost = append(s.cur.lost, lost...)
	full := s.cur.bytes >= s.cfg.RollBytes
	s.mu.Unlock()
	if full {
		if err := s.freeze(); err != nil {
			s.log.Error("detail log is not rotated", "error", err) // it goes on growing; the next batch tries again
		}
	}
	return nil
}

func (e Entry) span() (first, last uint64) {
	if e.Piece != nil {
		return e.Piece.Number, e.Piece.Number
	}
	return e.Lost.From, e.Lost.To
}

// failed gives up a log after an error of its disk: what was not acknowledged may or may not be in it, and a
// sync that succeeds later would prove nothing. What was acknowledged is in memory and is rolled from there;
// after a crash replay tells repeats by their numbers.
func (s *Store) failed(err error) error {
	s.log.Error("detail log fails; another is begun", "log", s.cur.log.Path(), "error", err)
	_ = s.cur.log.Close()
	s.cur.log = nil
	return fault.New(fault.Unavailable, ReasonDisk, "detail: the disk does not take it: %w", err)
}

// freeze ends the open table and begins another; one without pieces stays.
func (s *Store) freeze() error {
	if s.cur.log != nil && len(s.cur.pieces) == 0 {
		return nil
	}
	return s.open(s.cur.number + 1)
}

// rotateLog has the writer freeze its table.
func (s *Store) rotateLog(ctx context.Context) error {
	ask := make(chan error, 1)
	select {
	case s.rotate <- ask:
		return <-ask // the writer answers before anything else
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) wake() {
	select {
	case s.frozen <- struct{}{}:
	default:
	}
}

func logName(number uint64) string { return fmt.Sprintf("log-%016d", number) }

// logVersion 2 came on 2026-11-26: payloads of version 2, which the program of before takes for damage.
const logVersion = 2

func (s *Store) logHeader() durable.Header {
	return durable.Header{Magic: "bwdtllog", Version: logVersion, Program: s.cfg.Program}
}

// open makes the log that comes next, and its table the open one.
func (s *Store) open(number uint64) error {
	l, _, err := durable.OpenLog(s.fs, s.path(logName(number)), s.logHeader(), nil)
	if err != nil {
		return err
	}
	t := &table{number: number, log: l, opened: s.cfg.Now(), marks: map[epochKey]uint64{}}
	s.mu.Lock()
	s.tables = append(s.tables, t)
	s.mu.Unlock()
	s.cur = t
	s.wake()
	return nil
}

// replay reads one log into a table. Numbers at or below the marks are repeats.
func (s *Store) replay(number uint64) error {
	t := &table{number: number, opened: s.cfg.Now(), marks: map[epochKey]uint64{}}
	l, state, err := durable.OpenLog(s.fs, s.path(logName(number)), s.logHeader(), func(_ int64, b []byte) error {
		p, lost, err := decodeEntry(b)
		if err != nil {
			return err
		}
		if lost != nil {
			k := epochKey{lost.Edge, lost.Epoch}
			if lost.To > s.marks[k] {
				s.marks[k], t.marks[k] = lost.To, lost.To
				t.lost = append(t.lost, *lost)
			}
			return nil
		}
		k := epochKey{p.Edge, p.Epoch}
		if p.Number <= s.marks[k] {
			return nil
		}
		s.marks[k], t.marks[k] = p.Number, p.Number
		t.pieces = append(t.pieces, *p)
		t.bytes += len(p.Payload)
		return nil
	})
	if err != nil {
		return err
	}
	t.log = l
	s.old = state.Header.Version < logVersion
	if state.Torn > 0 {
		s.log.Warn("the torn tail of a detail log was cut; nothing acknowledged was in it", "log", l.Path(), "bytes", state.Torn)
	}
	s.tables = append(s.tables, t)
	s.cur = t
	return nil
}

const (
	kindPiece = 1
	kindLost  = 2
)

func encodePiece(p *Piece) []byte {
	b := make([]byte, 0, 64+len(p.Edge)+len(p.Region)+len(p.Payload))
	b = append(b, kindPiece)
	b = appendText(appendText(b, p.Edge), p.Region)
	for _, v := range [...]uint64{p.Epoch, p.Number, p.Seq} {
		b = binary.AppendUvarint(b, v)
	}
	return append(b, p.Payload...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// encodeLost is JSON: they are rare.
func encodeLost(l *Lost) []byte {
	b, _ := json.Marshal(l) // a struct of texts, numbers and times of this century
	return append([]byte{kindLost}, b...)
}

func decodeEntry(b []byte) (*Piece, *Lost, error) {
	malformed := errors.New("an entry of the detail log is malformed")
	if len(b) == 0 {
		return nil, nil, malformed
	}
	kind, rest := b[0], b[1:]
	switch kind {
	case kindLost:
		l := new(Lost)
		if err := json.Unmarshal(rest, l); err != nil {
			return nil, nil, malformed
		}
		return nil, l, nil
	case kindPiece:
	default:
		return nil, nil, fmt.Errorf("an entry of the detail log is of kind %d, which this program does not know", kind)
	}
	ok := true
	number := func() uint64 {
		v, n := binary.Uvarint(rest)
		if ok = ok && n > 0; !ok {
			return 0
		}
		rest = rest[n:]
		return v
	}
	text := func() string {
		n := number()
		if ok = ok && n <= uint64(len(rest)); !ok {
			return ""
		}
		out := string(rest[:n])
		rest = rest[n:]
		return out
	}
	edge, region := text(), text()
	epoch, num, seq := number(), number(), number()
	if !ok {
		return nil, nil, malformed
	}
	p, err := NewPiece(edge, region, epoch, num, seq, slices.Clone(rest))
	return &p, nil, err
}

// maxLost bounds the facts kept; beyond it the oldest are folded into one that names no edge.
const maxLost = 4096

// addLost keeps them few: what follows on is one fact.
func addLost(to []Lost, more ...Lost) []Lost {
	to = slices.Clone(to) // readers may hold the old one
	for _, l := range more {
		if i := len(to) - 1; i >= 0 && to[i].Edge == l.Edge && to[i].Epoch == l.Epoch && to[i].To+1 == l.From {
			to[i].To, to[i].Rows = l.To, to[i].Rows+l.Rows
			to[i].Since, to[i].Until = earlier(to[i].Since, l.Since), later(to[i].Until, l.Until)
			continue
		}
		to = append(to, l)
	}
	for len(to) > maxLost {
		a, b := to[0], to[1]
		to[1] = Lost{Rows: a.Rows + b.Rows, Since: earlier(a.Since, b.Since), Until: later(a.Until, b.Until)}
		to = to[1:]
	}
	return to
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
