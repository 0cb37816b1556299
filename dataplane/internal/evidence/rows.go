package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
)

// An entry among the rows begins with a time that no row has.
const entryMark = 0

// read gives the rows of a segment and the entries between them, in order. Either raw and row are given, or the entry.
func read(path string, each func(raw []byte, r checkpoint.Row, entry *Minute) error) (version uint32, err error) {
	found, _, err := durable.ReadLog(durable.OS(), path, header, func(_ int64, p []byte) error {
		if len(p) > 0 && p[0] == entryMark {
			var m Minute
			if err := json.Unmarshal(p[1:], &m); err != nil {
				return fmt.Errorf("%s: an entry: %w", path, err)
			}
			return each(nil, checkpoint.Row{}, &m)
		}
		r, err := checkpoint.ParseRow(p)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return each(p, r, nil)
	})
	return found.Version, err
}

// Read gives every row of one segment file to each, in order.
func Read(path string, each func(checkpoint.Row) error) error {
	_, err := read(path, func(_ []byte, r checkpoint.Row, entry *Minute) error {
		if entry != nil {
			return nil
		}
		return each(r)
	})
	return err
}

// Rows gives every entry of minutes from one time to another together with its rows, as digests cover them, oldest
// first. What is dropped or damaged is missing, and the digests in the zone's log tell of which minutes. It reads beside
// those that write.
func (l *Log) Rows(ctx context.Context, from, to time.Time, each func(m Minute, rows [][]byte) error) error {
	l.mu.Lock()
	numbers, err := l.segments()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	open := map[under][][]byte{}
	for _, n := range numbers {
		info, err := durable.OS().Stat(l.path(n))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().Before(from) {
			continue
		}
		_, err = read(l.path(n), func(raw []byte, r checkpoint.Row, m *Minute) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if m == nil {
				u := under{r.Grant, r.From, r.To}
				open[u] = append(open[u], bytes.Clone(raw))
				return nil
			}
			u := under{m.Grant, m.From, m.To}
			rows := open[u]
			delete(open, u)
			if m.Start+60 <= from.Unix() || m.Start >= to.Unix() {
				return nil
			}
			return each(*m, rows)
		})
		if err != nil && ctx.Err() == nil && (errors.Is(err, durable.ErrCorrupt) || errors.Is(err, fs.ErrNotExist)) {
			l.cfg.Logger.Error("evidence segment does not read, its rows are missing from what is handed out", "segment", n, "error", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// recount finds what the zone was not told of before the last end: entries that were made, and rows that have none yet,
// which it gives theirs. Entries cover rows of earlier segments too, if one was damaged before its rows had theirs.
func (l *Log) recount(numbers []int) error {
	t := l.tell
	open, order := map[under][][]byte{}, []under{}
	newest := uint32(0)
	for _, n := range numbers {
		info, err := durable.OS().Stat(l.path(n))
		if n != l.number && (n < t.done.Segment || err == nil && info.ModTime().Unix() < t.done.Through) {
			continue
		}
		version, err := read(l.path(n), func(raw []byte, r checkpoint.Row, m *Minute) error {
			switch {
			case m == nil && t.done.Segment == 0 && r.At.Unix()/60*60 <= t.done.Through: // told by the version before this one
			case m == nil:
				u := under{r.Grant, r.From, r.To}
				open[u], order = append(open[u], bytes.Clone(raw)), append(order, u)
			default:
				delete(open, under{m.Grant, m.From, m.To})
				if m.Epoch == t.done.Epoch && m.Seq > t.seq {
					m.segment = n
					t.wait, t.seq, t.last = append(t.wait, *m), m.Seq, m.Digest
				}
			}
			return nil
		})
		if err != nil {
			l.cfg.Logger.Error("evidence segment is damaged; it is kept and a new one begins", "segment", n, "error", err)
			version = 0
		}
		newest = version
	}
	if newest == header.Version {
		log, state, err := durable.OpenLog(durable.OS(), l.path(l.number), header, nil)
		if err != nil {
			return err
		}
		if state.Torn > 0 {
			l.cfg.Logger.Warn("evidence had a torn tail, cut off", "segment", l.number, "bytes", state.Torn)
		}
		l.current, l.began = log, time.Now().Unix()
	} else if err := l.begin(); err != nil {
		return err
	}
	for _, u := range order {
		if rows := open[u]; len(rows) > 0 {
			r, err := checkpoint.ParseRow(rows[0])
			if err != nil {
				return err
			}
			t.add(rows[0], r.At.Unix(), u)
			open[u] = rows[1:]
		}
	}
	return l.seal()
}
