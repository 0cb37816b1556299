package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// Copy gives each entry of the log up to and including a transaction, in order, as Write takes them: what a backup of the
// zone store as of that transaction has beside it. It waits until the log is that far.
func (l *Log) Copy(ctx context.Context, through uint64, each func(entry []byte) error) error {
	for {
		l.mu.Lock()
		at, broken := l.through, l.broken
		l.mu.Unlock()
		if broken != nil {
			return broken
		}
		if at >= through {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("copy evidence log: it has followed the zone store to %d of %d: %w", at, through, ctx.Err())
		}
	}
	l.mu.Lock()
	segments := slices.Clone(l.segments)
	l.mu.Unlock()
	given, over := segments[0].first, false
	err := l.scan(segments, given, func(tag byte, number int64, body []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch tag {
		case tagBegin:
			if number > segments[0].first || number == 0 { // the first of them alone, if something was dropped before it
				return nil
			}
		case tagLeaf:
			r, err := Decode(body)
			if err != nil {
				return err
			}
			if over = over || r.Index > through; over {
				return nil
			}
			given = number + 1
		case tagHead:
			c, err := checkpoint.Open(l.cfg.Zone, l.key, body)
			if err != nil {
				return err
			}
			if c.Size > given {
				return durable.ErrStop
			}
		default:
			return nil
		}
		return each(append([]byte{tag}, body...))
	})
	if err == nil && given == segments[0].first && given > 0 {
		err = fault.New(fault.NotFound, "EVIDENCE_DROPPED", "the evidence log begins after transaction %d: what was before is older than it is kept", through)
	}
	if err != nil {
		return err
	}
	return each(fmt.Appendf([]byte{tagMark}, "%d", through))
}

// Write makes the file of a log in dir, which must hold none, from the entries that Copy gave. The next start takes it over.
func Write(fsys durable.FS, dir string, next func() (entry []byte, err error)) (err error) {
	file, err := create(fsys, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for {
		entry, err := next()
		if errors.Is(err, io.EOF) {
			return file.Sync()
		}
		if err != nil {
			return err
		}
		if err := file.Append(entry); err != nil {
			return fmt.Errorf("write evidence log: %w", err)
		}
	}
}

func create(fsys durable.FS, dir string) (*durable.Log, error) {
	if err := fsys.MkdirAll(dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("write evidence log: %w", err)
	}
	there, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("write evidence log: %w", err)
	}
	for _, e := range there {
		if ok, _ := filepath.Match("evidence*.log", e.Name()); ok {
			return nil, fmt.Errorf("write evidence log: there is %s already: set it aside first", e.Name())
		}
	}
	file, _, err := durable.OpenLog(fsys, filepath.Join(dir, oldName), header, nil)
	if err != nil {
		return nil, fmt.Errorf("write evidence log: %w", err)
	}
	return file, nil
}
