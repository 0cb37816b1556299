package evidence

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
)

// Limits of what waits to be told. Beyond it minutes are no longer parted, so that an edge that nobody hears keeps a
// bounded state; no row goes uncounted.
const (
	maxMinutes   = 10_000 // entries that wait
	maxOpen      = 1_000  // grants in one minute; an edge has one a pair in ten seconds
	TellAtOnce   = 200    // entries in one request
	toldName     = "told"
	maxToldBytes = 4 << 10
)

// Minute sums up the rows of one minute under one grant: an entry. Digests form a chain, see package checkpoint.
type Minute struct {
	Epoch  int64  `json:"epoch"` // of this directory: unix ms of its beginning
	Seq    uint64 `json:"seq"`
	Start  int64  `json:"start"` // unix seconds
	Grant  string `json:"grant"`
	From   string `json:"from"`
	To     string `json:"to"`
	Count  int64  `json:"count"`
	Prev   []byte `json:"prev,omitempty"`
	Digest []byte `json:"digest"`

	segment int // that it stands in, with its rows
}

// told is what the zone is known to have, and so where the next start goes on.
type told struct {
	Epoch   int64  `json:"epoch"`
	Seq     uint64 `json:"seq"`
	Digest  []byte `json:"digest,omitempty"`
	Through int64  `json:"through"` // rows of minutes up to this one, unix seconds, are told
	Segment int    `json:"segment"` // what segments before this one have is told; 0: written before segments had entries
}

type under struct{ grant, from, to string }

type sum struct {
	rows  *checkpoint.Digest
	count int64
}

// teller sums up rows by minute. The Log's mu covers it.
type teller struct {
	path   string
	done   told
	seq    uint64 // of the last entry made
	last   []byte
	minute int64 // that is open
	open   map[under]*sum
	wait   []Minute
}

var toldHeader = durable.Header{Magic: "bwtold", Version: 1, Program: "bailiwick-edge"}

func openTeller(dir string) (*teller, error) {
	t := &teller{path: filepath.Join(dir, toldName), open: map[under]*sum{}}
	blob, _, err := durable.ReadSealed(durable.OS(), t.path, toldHeader, maxToldBytes)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.done = told{Epoch: time.Now().UnixMilli(), Segment: 1}
		err = t.save()
	case err == nil:
		err = json.Unmarshal(blob, &t.done)
	}
	if err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	t.seq, t.last, t.minute = t.done.Seq, t.done.Digest, t.done.Through
	return t, nil
}

func (t *teller) save() error {
	blob, err := json.Marshal(t.done)
	if err != nil {
		return err
	}
	return durable.WriteSealed(durable.OS(), t.path, toldHeader, blob)
}

// full says whether the open rows want their entries before one of this second and kind comes to them.
func (t *teller) full(second int64, u under) bool {
	if len(t.open) == 0 {
		return false
	}
	return second/60*60 > t.minute || t.open[u] == nil && len(t.open) >= maxOpen
}

// add counts one row, as it was written.
func (t *teller) add(row []byte, second int64, u under) {
	if len(t.open) == 0 {
		t.minute = max(second/60*60, t.minute)
	}
	s := t.open[u]
	if s == nil {
		s = &sum{rows: checkpoint.NewDigest()}
		t.open[u] = s
	}
	s.count++
	s.rows.Add(row)
}

// seal makes entries of the open rows, in the order of their grants, and writes them behind the rows. The caller holds mu,
// or is alone.
func (l *Log) seal() error {
	t := l.tell
	if len(t.wait) >= maxMinutes && len(t.open) < maxOpen {
		return nil // nobody hears this edge: minutes are parted no longer
	}
	var all []under
	for u := range t.open {
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b under) int {
		return cmp.Or(cmp.Compare(a.grant, b.grant), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	for _, u := range all {
		s := t.open[u]
		m := Minute{Epoch: t.done.Epoch, Seq: t.seq + 1, Start: t.minute, Grant: u.grant, From: u.from, To: u.to, Count: s.count, Prev: t.last, Digest: s.rows.Sum(t.last), segment: l.number}
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if err := l.current.Append(append([]byte{entryMark}, text...)); err != nil {
			return fmt.Errorf("sum up relays: %w", err)
		}
		t.wait, t.last, t.seq = append(t.wait, m), m.Digest, m.Seq
		delete(t.open, u)
		l.dirty.Store(true)
	}
	return nil
}

// Untold gives the entries that the zone is not known to have, oldest first, at most TellAtOnce: of minutes that are
// over.
func (l *Log) Untold(now time.Time) []Minute {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tell.open) > 0 && now.Unix() >= l.tell.minute+60 && l.current != nil {
		if err := l.seal(); err != nil {
			l.cfg.Logger.Error("relays cannot be summed up", "error", err)
		}
	}
	return slices.Clone(l.tell.wait[:min(len(l.tell.wait), TellAtOnce)])
}

// Told says that the zone has these entries in its log. What is not saved is told again, which changes nothing.
func (l *Log) Told(entries []Minute) error {
	if len(entries) == 0 {
		return nil
	}
	last := entries[len(entries)-1]
	l.mu.Lock()
	t := l.tell
	t.wait = slices.DeleteFunc(t.wait, func(m Minute) bool { return m.Seq <= last.Seq })
	// A minute counts as told only when its last entry is: until then it is told anew after a restart.
	if len(t.wait) == 0 || t.wait[0].Start > last.Start {
		t.done.Seq, t.done.Digest, t.done.Through = last.Seq, last.Digest, max(t.done.Through, last.Start)
		if t.done.Segment = l.number; len(t.wait) > 0 {
			t.done.Segment = t.wait[0].segment
		}
	}
	done := *t
	l.mu.Unlock()
	return done.save()
}
