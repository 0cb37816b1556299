package evidence

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

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

// Minute sums up the rows of one minute under one grant. Digests form a chain: Digest is SHA-256 over Prev and the rows.
type Minute struct {
	Epoch  int64 // of this directory: unix ms of its beginning
	Seq    uint64
	Start  int64 // unix seconds
	Grant  string
	From   string
	To     string
	Count  int64
	Prev   []byte
	Digest []byte
}

// told is what the zone is known to have, and so where the next start goes on.
type told struct {
	Epoch   int64  `json:"epoch"`
	Seq     uint64 `json:"seq"`
	Digest  []byte `json:"digest,omitempty"`
	Through int64  `json:"through"` // rows of minutes up to this one, unix seconds, are told
}

type under struct{ grant, from, to string }

type sum struct {
	rows  hash.Hash
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
		t.done = told{Epoch: time.Now().UnixMilli()}
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

// add counts one row, as it was written.
func (t *teller) add(row []byte, micros int64, u under) {
	minute := micros / 60e6 * 60
	if minute > t.minute && len(t.open) > 0 {
		t.seal()
	}
	if len(t.open) == 0 {
		t.minute = max(minute, t.minute)
	}
	s := t.open[u]
	if s == nil {
		if len(t.open) >= maxOpen {
			t.seal()
		}
		s = &sum{rows: sha256.New()}
		t.open[u] = s
	}
	s.count++
	var size [4]byte
	size[0], size[1], size[2], size[3] = byte(len(row)>>24), byte(len(row)>>16), byte(len(row)>>8), byte(len(row))
	s.rows.Write(size[:])
	s.rows.Write(row)
}

// seal makes entries of the open minute, in the order of their grants.
func (t *teller) seal() {
	if len(t.wait) >= maxMinutes {
		return
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
		d := sha256.New()
		d.Write(t.last)
		d.Write(s.rows.Sum(nil))
		t.seq++
		m := Minute{Epoch: t.done.Epoch, Seq: t.seq, Start: t.minute, Grant: u.grant, From: u.from, To: u.to, Count: s.count, Prev: t.last, Digest: d.Sum(nil)}
		t.wait, t.last = append(t.wait, m), m.Digest
	}
	clear(t.open)
}

// Untold gives the entries that the zone is not known to have, oldest first, at most TellAtOnce: of minutes that are
// over.
func (l *Log) Untold(now time.Time) []Minute {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tell.open) > 0 && now.Unix() >= l.tell.minute+60 {
		l.tell.seal()
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
	// A minute counts as told only when its last entry is: until then it is summed up anew after a restart.
	if len(t.wait) == 0 || t.wait[0].Start > last.Start {
		t.done.Seq, t.done.Digest, t.done.Through = last.Seq, last.Digest, max(t.done.Through, last.Start)
	}
	done := *t
	l.mu.Unlock()
	return done.save()
}
