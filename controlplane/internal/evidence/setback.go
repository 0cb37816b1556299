package evidence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// A store in etcd can be set back beneath the nodes that follow it: its operator restores a snapshot. The record with
// which its new epoch begins says up to which transaction its history still holds. A log that has more would tell things
// that, by the store, never were, and then miss what comes after: it is cut back to that transaction, and goes on from there
// as all logs of the zone do. The longer one is set aside, for people.

// ReasonSetBack is the reason of the error with which Run ends when the log was cut; it goes on at the next start.
const ReasonSetBack = "EVIDENCE_SET_BACK"

// kept is the transaction up to which this log may go on, if the store was set back beneath it: the least of all that the
// store was set back to since, since what came between two of them, this log has of neither.
func (l *Log) kept() (index uint64, ahead bool, err error) {
	now := l.cfg.Store.Local()
	l.mu.Lock()
	defer l.mu.Unlock()
	index = l.through
	for kv := range now.List(model.PrefixRecovery) {
		r, err := model.Decode[model.Recovery](kv.Key, kv.Value)
		if err != nil {
			return 0, false, err
		}
		for _, g := range r.Groups {
			if g.Group == l.cfg.Store.Name() && g.Kept != nil && l.replay.epoch < g.Incarnation {
				index = min(index, *g.Kept)
			}
		}
	}
	return index, index < l.through, nil
}

// setBack cuts the log, if it must be, and returns the error that ends this node.
func (l *Log) setBack(ctx context.Context) error {
	kept, ahead, err := l.kept()
	if err != nil || !ahead {
		return err
	}
	if err := l.cut(ctx, kept); err != nil {
		return err
	}
	return &diskError{fault.New(fault.Conflict, ReasonSetBack, "the zone's store was set back to transaction %d beneath this node: start it again, and its log of evidence goes on from there", kept)}
}

// cut writes the log up to a transaction beside it. It takes its place at the next start.
func (l *Log) cut(ctx context.Context, through uint64) error {
	making := l.cfg.Dir + ".cut.part"
	if err := remove(l.cfg.FS, making); err != nil {
		return err
	}
	file, err := create(l.cfg.FS, making)
	if err != nil {
		return err
	}
	err = l.Copy(ctx, through, file.Append)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := remove(l.cfg.FS, l.cfg.Dir+".cut"); err != nil {
		return err
	}
	if err := l.cfg.FS.Rename(making, l.cfg.Dir+".cut"); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(filepath.Dir(l.cfg.Dir))
}

// takeCut puts a log that was cut in the place of the one that it was cut from. Broken off at any point, it is done again.
func takeCut(fsys durable.FS, dir string, now time.Time) error {
	if _, err := fsys.Stat(dir + ".cut"); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	err := fsys.Rename(dir, dir+".aside-"+now.UTC().Format("20060102T150405"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fsys.Rename(dir+".cut", dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

// remove takes a flat directory away; one that is not there is no error.
func remove(fsys durable.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := fsys.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove what a former cut left: %w", err)
		}
	}
	return fsys.Remove(dir)
}
