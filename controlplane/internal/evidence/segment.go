package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/durable"
)

// Segments hold a beginning, leaves, heads as they were committed, and marks of how far the store was looked through.
const (
	tagBegin = 'B'
	tagLeaf  = 'L'
	tagHead  = 'H'
	tagMark  = 'M'
	markEach = 1000 // transactions without a leaf between two marks

	segmentRecords = 4 * StateEvery // at least; a segment begins with a state
	oldName        = "evidence.log" // before there were segments, and of a backup
	damagedSuffix  = ".damaged"
)

// Version 2 is parted into segments.
var header = durable.Header{Magic: "bwtlog", Version: 2, Program: "bailiwick-control"}

// beginning is a segment's first entry: all that is needed to go on from it without those before.
type beginning struct {
	First    int64     `json:"first"` // number of the first record: a state, or 0
	At       time.Time `json:"at"`    // of that record; zero: it is the log's first
	Frontier []string  `json:"frontier"`
	Head     string    `json:"head,omitempty"` // the newest at that time
}

// segment is one of the log's files.
type segment struct {
	first    int64
	at       time.Time
	frontier []tlog.Hash
	bytes    int64
}

func (s segment) name() string { return fmt.Sprintf("evidence-%016d.log", s.first) }

func (l *Log) path(s segment) string { return filepath.Join(l.cfg.Dir, s.name()) }

// current is the newest segment. The caller holds mu, or is alone.
func (l *Log) current() segment { return l.segments[len(l.segments)-1] }

// open reads the newest segment that has a beginning, and makes the first if there is none.
func (l *Log) open() error {
	if err := l.list(); err != nil {
		return err
	}
	if err := l.migrate(); err != nil || l.file != nil {
		return err
	}
	for len(l.segments) > 0 {
		opened, err := l.reopen()
		if err != nil || opened {
			return err
		}
		l.segments = l.segments[:len(l.segments)-1]
	}
	return l.restart(0, nil)
}

// list finds the segments. One whose beginning does not read is set aside: the one before it goes on in its place.
func (l *Log) list() error {
	entries, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.segments = nil
	for _, e := range entries {
		var s segment
		if !strings.HasSuffix(e.Name(), ".log") || e.Name() == oldName {
			continue
		}
		if _, err := fmt.Sscanf(e.Name(), "evidence-%d.log", &s.first); err != nil {
			continue
		}
		found, err := l.begins(s)
		switch {
		case errors.Is(err, durable.ErrNewer):
			return err
		case errors.Is(err, errNoBeginning): // of a crash while it was made; nothing was in it
			if err := l.cfg.FS.Remove(l.path(s)); err != nil {
				return err
			}
			continue
		case err != nil:
			if err := l.aside(s, err); err != nil {
				return err
			}
			continue
		}
		l.segments = append(l.segments, found)
	}
	slices.SortFunc(l.segments, func(a, b segment) int { return int(a.first - b.first) })
	return nil
}

var errNoBeginning = errors.New("it has no beginning")

func (l *Log) begins(s segment) (segment, error) {
	any := false
	_, _, err := durable.ReadLog(l.cfg.FS, l.path(s), header, func(_ int64, p []byte) error {
		any = true
		b, err := parseBeginning(p)
		if err != nil || b.First != s.first {
			return &durable.CorruptError{Path: l.path(s), What: fmt.Sprintf("its beginning is not that of record %d (%v)", s.first, err)}
		}
		s.at = b.At
		if s.frontier, err = parseHashes(b.Frontier); err != nil {
			return err
		}
		return durable.ErrStop
	})
	if err == nil && !any {
		err = errNoBeginning
	}
	if info, serr := l.cfg.FS.Stat(l.path(s)); serr == nil {
		s.bytes = info.Size()
	}
	return s, err
}

func parseBeginning(p []byte) (b beginning, err error) {
	if len(p) == 0 || p[0] != tagBegin {
		return b, errors.New("another entry stands there")
	}
	return b, json.Unmarshal(p[1:], &b)
}

// aside renames what is damaged, for who wants to look at it; the newest such file of a name is kept.
func (l *Log) aside(s segment, why error) error {
	l.cfg.Logger.Error("evidence segment is damaged; it is set aside, and its records come again from the store or another node", "segment", s.name(), "error", why)
	return errors.Join(l.cfg.FS.Rename(l.path(s), l.path(s)+damagedSuffix), l.cfg.FS.SyncDir(l.cfg.Dir))
}

// reopen reads the newest segment and goes on with it. What is whole of a damaged one is kept. false: nothing is.
func (l *Log) reopen() (bool, error) {
	s := l.current()
	if !l.tree.at(s.first, s.frontier) {
		if err := l.regrow(); err != nil {
			return false, err
		}
	}
	again := func() (durable.LogState, error) {
		if !l.tree.at(s.first, s.frontier) {
			return durable.LogState{}, fmt.Errorf("the hashes of the evidence log do not come to the beginning of %s", s.name())
		}
		l.replay, l.state, l.newest = newReplay(l.cfg.Zone, l.key), s.first, head{}
		l.through, l.last, l.of = 0, 0, 0
		var st durable.LogState
		var err error
		l.file, st, err = durable.OpenLog(l.cfg.FS, l.path(s), header, l.load)
		return st, err
	}
	st, err := again()
	if errors.Is(err, durable.ErrCorrupt) {
		if err := l.salvage(s, err); err != nil {
			return false, err
		}
		st, err = again()
	}
	if err != nil {
		return false, err
	}
	if st.Torn > 0 {
		l.cfg.Logger.Warn("evidence log had a torn tail, cut off", "bytes", st.Torn)
	}
	return st.Records > 0, nil
}

// salvage puts the whole entries before the damage in the place of a segment.
func (l *Log) salvage(s segment, why error) error {
	mend := l.path(s) + ".mend"
	_ = l.cfg.FS.Remove(mend)
	out, _, err := durable.OpenLog(l.cfg.FS, mend, header, nil)
	if err != nil {
		return err
	}
	_, _, err = durable.ReadLog(l.cfg.FS, l.path(s), header, func(_ int64, p []byte) error { return out.Append(p) })
	if errors.Is(err, durable.ErrCorrupt) {
		err = nil
	}
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := l.aside(s, why); err != nil {
		return err
	}
	return errors.Join(l.cfg.FS.Rename(mend, l.path(s)), l.cfg.FS.SyncDir(l.cfg.Dir))
}

// regrow makes the file of hashes anew from the segments. Where one is missing or damaged only what follows it is known.
func (l *Log) regrow() error {
	l.cfg.Logger.Warn("evidence: the hashes of the log are made anew", "records", l.current().first)
	if err := l.tree.restart(l.segments[0].first, l.segments[0].frontier); err != nil {
		return err
	}
	for i, s := range l.segments {
		if own, err := l.tree.frontier(s.first); l.tree.size != s.first || err != nil || !slices.Equal(own, s.frontier) {
			if err := l.tree.restart(s.first, s.frontier); err != nil {
				return err
			}
		}
		if i == len(l.segments)-1 {
			break
		}
		err := l.scan(l.segments[i:i+1], s.first, func(tag byte, _ int64, body []byte) error {
			if tag != tagLeaf {
				return nil
			}
			return l.tree.add(body)
		})
		if err != nil && !errors.Is(err, durable.ErrCorrupt) {
			return err
		}
		if err := l.tree.flush(); err != nil {
			return err
		}
	}
	return nil
}

// restart begins the copy anew at a record whose frontier is known. The caller does not hold mu.
func (l *Log) restart(first int64, frontier []tlog.Hash) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if err := l.cfg.FS.Remove(l.path(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			return err
		}
	}
	if err := l.tree.restart(first, frontier); err != nil {
		return err
	}
	l.replay, l.state, l.newest, l.segments = newReplay(l.cfg.Zone, l.key), first, head{}, nil
	l.through, l.last, l.of = 0, 0, 0
	return l.begin(time.Time{})
}

// begin makes the segment of what follows. The caller holds mu, or is alone.
func (l *Log) begin(at time.Time) error {
	s := segment{first: l.tree.size, at: at}
	var err error
	if s.frontier, err = l.tree.frontier(s.first); err != nil {
		return err
	}
	text, err := json.Marshal(beginning{First: s.first, At: at, Frontier: texts(s.frontier), Head: string(l.newest.note)})
	if err != nil {
		return err
	}
	_ = l.cfg.FS.Remove(l.path(s)) // one without a beginning, of a crash at this place
	if l.file, _, err = durable.OpenLog(l.cfg.FS, l.path(s), header, nil); err != nil {
		return err
	}
	l.segments = append(l.segments, s)
	return errors.Join(l.write(tagBegin, text), l.file.Sync())
}

// roll ends the segment and begins the next, then drops what is too old. All of the old one is on disk before. The caller
// holds mu.
func (l *Log) roll(at time.Time) error {
	if err := errors.Join(l.tree.flush(), l.file.Sync()); err != nil {
		return err
	}
	l.segments[len(l.segments)-1].bytes = l.file.Size()
	if err := l.file.Close(); err != nil {
		return err
	}
	if err := l.begin(at); err != nil {
		return err
	}
	return l.trim(at)
}

// trim drops the oldest segments: those all of whose records are older than Keep, and more while the budget is exceeded.
// The hashes stay, 64 bytes a record: proofs from any head that anybody holds go on. The caller holds mu.
func (l *Log) trim(now time.Time) error {
	var sum int64
	for _, s := range l.segments {
		sum += s.bytes
	}
	for len(l.segments) > 1 {
		s, next := l.segments[0], l.segments[1]
		old := now.Sub(next.at) > l.cfg.Keep
		if !old && sum <= l.cfg.Budget {
			return nil
		}
		if !old {
			l.cfg.Logger.Warn("evidence log is over its budget of disk: records go before their time", "bytes", sum)
		}
		if err := l.cfg.FS.Remove(l.path(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sum -= s.bytes
		l.segments = slices.Delete(l.segments, 0, 1)
	}
	return nil
}

// scan gives the entries of the segments that have records from number on, in order. number is of the leaf, or for another
// entry of the next leaf. It reads beside the writer, and ends without an error at durable.ErrStop.
func (l *Log) scan(segments []segment, from int64, each func(tag byte, number int64, body []byte) error) error {
	i := 0
	for i+1 < len(segments) && segments[i+1].first <= from {
		i++
	}
	for ; i < len(segments); i++ {
		number, stopped := segments[i].first, false
		_, _, err := durable.ReadLog(l.cfg.FS, l.path(segments[i]), header, func(off int64, p []byte) error {
			if len(p) == 0 {
				return &durable.CorruptError{Path: l.path(segments[i]), Offset: off, What: "an empty entry"}
			}
			err := each(p[0], number, p[1:])
			if p[0] == tagLeaf {
				number++
			}
			stopped = errors.Is(err, durable.ErrStop)
			return err
		})
		if err != nil || stopped {
			return err
		}
		if i+1 < len(segments) && number != segments[i+1].first {
			return &durable.CorruptError{Path: l.path(segments[i]), What: fmt.Sprintf("it ends at record %d, the next segment begins at %d", number, segments[i+1].first)}
		}
	}
	return nil
}

// migrate takes over the one file that was the log before there were segments, or that Write made of a backup.
func (l *Log) migrate() error {
	old := filepath.Join(l.cfg.Dir, oldName)
	if _, err := l.cfg.FS.Stat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := l.restart(0, nil); err != nil { // also what an earlier try left
		return err
	}
	_, _, err := durable.ReadLog(l.cfg.FS, old, header, func(_ int64, p []byte) error {
		switch {
		case len(p) > 0 && p[0] == tagLeaf:
			r, err := Decode(p[1:])
			if err != nil {
				return err
			}
			return l.put(r, bytes.Clone(p[1:]))
		case len(p) > 0 && p[0] == tagBegin: // of a backup
			b, err := parseBeginning(p)
			if err != nil {
				return err
			}
			frontier, err := parseHashes(b.Frontier)
			if err != nil {
				return err
			}
			return l.restart(b.First, frontier)
		}
		if err := l.load(0, p); err != nil {
			return err
		}
		return l.file.Append(p)
	})
	if errors.Is(err, durable.ErrCorrupt) {
		l.cfg.Logger.Error("evidence log of an earlier version is damaged; what is behind the damage comes again from the store or another node", "error", err)
		err = errors.Join(l.file.Sync(), l.cfg.FS.Rename(old, old+damagedSuffix))
	} else if err == nil {
		err = errors.Join(l.file.Sync(), l.cfg.FS.Remove(old))
	}
	return errors.Join(err, l.cfg.FS.SyncDir(l.cfg.Dir))
}
