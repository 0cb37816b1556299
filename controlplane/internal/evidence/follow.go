package evidence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/fault"
)

// pause is how long the log waits after something failed before it tries again.
const pause = time.Second

// Run follows the zone store and, while this node leads it, signs heads, until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return l.cfg.Store.RunLeader(ctx, l.lead) })
	parts.Go(func() error { return l.follow(ctx) })
	parts.Go(func() error { return l.scrub(ctx) })
	if l.cfg.Catalog != nil {
		parts.Go(func() error { return l.cfg.Store.RunLeader(ctx, l.witness) })
	}
	return errors.Join(parts.Wait(), l.close())
}

func (l *Log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.write(tagMark, fmt.Appendf(nil, "%d", l.through))
	return errors.Join(err, l.file.Sync(), l.file.Close(), l.tree.file.Close())
}

func (l *Log) follow(ctx context.Context) error {
	said := false
	for ctx.Err() == nil {
		err := l.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var disk *diskError
		if errors.As(err, &disk) {
			return err
		}
		if fault.ReasonOf(err) == group.ReasonCompacted {
			if err = l.setBack(ctx); errors.As(err, &disk) {
				return err
			}
			err = errors.Join(err, l.catchUp(ctx))
		}
		if err != nil && !said {
			l.cfg.Logger.Error("evidence log stands still", "zone", l.cfg.Zone, "error", err)
		}
		said = err != nil
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// diskError ends the node: a log that cannot be written must not look as if nothing happened.
type diskError struct{ err error }

func (e *diskError) Error() string { return "write evidence log: " + e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

func (l *Log) watch(ctx context.Context) error {
	if err := l.setBack(ctx); err != nil { // a store that is set back ends all watches first
		return err
	}
	l.mu.Lock()
	from := l.through + 1
	l.mu.Unlock()
	w, err := l.cfg.Store.Watch(from, "")
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		events, rev, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for len(events) > 0 {
			n := 1
			for n < len(events) && events[n].Index == events[0].Index {
				n++
			}
			if err := l.transaction(events[:n], rev.Epoch); err != nil {
				return &diskError{err}
			}
			events = events[n:]
		}
		if err := l.lookedAt(rev.Index); err != nil {
			return &diskError{err}
		}
		if err := l.file.Sync(); err != nil {
			return &diskError{err}
		}
	}
}

// catchUp takes from another node what the own store no longer tells. Alone, it may go on only if a signed head or a
// mere change of epoch says that nothing is missing.
func (l *Log) catchUp(ctx context.Context) error {
	now := l.cfg.Store.Local()
	l.mu.Lock()
	size, through := l.tree.size, l.through
	l.mu.Unlock()
	if rev := now.Revision(); rev.Index == through+1 && rev.Epoch > l.epoch() && !wrote(now, rev.Index) {
		return l.lookedAt(rev.Index) // a recovery: it opened an epoch and changed nothing
	}
	if kv, ok := now.Get(model.KeyCheckpoint); ok {
		if c, err := model.Decode[model.Checkpoint](kv.Key, kv.Value); err == nil && c.Size == size && c.Through > through {
			if h, err := checkpoint.Open(l.cfg.Zone, l.key, []byte(c.Note)); err == nil && l.same(h) {
				return l.lookedAt(c.Through)
			}
		}
	}
	theirs, err := l.cfg.Peers(ctx, size)
	if err != nil {
		return fmt.Errorf("fetch leaves from %d on: %w", size, err)
	}
	if theirs.First > size {
		l.cfg.Logger.Warn("evidence: this node's copy ends before those of others begin; it begins anew", "records", size, "number", theirs.First)
		if err := l.restart(theirs.First, theirs.Frontier); err != nil {
			return &diskError{err}
		}
	}
	for _, leaf := range theirs.Leaves {
		r, err := Decode(leaf)
		if err != nil {
			return err
		}
		l.mu.Lock()
		err = l.put(r, leaf)
		l.mu.Unlock()
		if err != nil {
			return &diskError{err}
		}
	}
	if theirs.Through > through {
		err = l.lookedAt(theirs.Through)
	}
	if err == nil && len(theirs.Leaves) == 0 && theirs.Through <= through {
		err = fault.New(fault.Unavailable, "EVIDENCE_BEHIND", "this node's copy ends at transaction %d, its store begins after that, and no other node has more", through)
	}
	return errors.Join(err, l.file.Sync())
}

// wrote says whether a transaction, the latest, left something behind: an epoch may begin with a record, which is a leaf.
func wrote(now group.Snapshot, index uint64) bool {
	for kv := range now.List("") {
		if kv.ModIndex == index {
			return true
		}
	}
	return false
}

func (l *Log) epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replay.epoch
}

func (l *Log) same(h checkpoint.Checkpoint) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	root, err := l.tree.root(h.Size)
	return err == nil && root == h.Root
}

// lead signs the head of a log that has grown, and commits it so that every node compares it with its own.
func (l *Log) lead(ctx context.Context) {
	tick := time.NewTicker(l.cfg.Every)
	defer tick.Stop()
	for {
		if err := l.sign(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("sign the evidence log", "zone", l.cfg.Zone, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *Log) sign(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Every)
	defer cancel()
	if _, ahead, err := l.kept(); ahead || err != nil { // it is about to be cut: no head may say otherwise
		return err
	}
	kv, ok := l.cfg.Store.Local().Get(model.KeyCheckpoint)
	before := model.Checkpoint{}
	if ok {
		var err error
		if before, err = model.Decode[model.Checkpoint](kv.Key, kv.Value); err != nil {
			return err
		}
	}
	l.mu.Lock()
	size, through, broken := l.tree.size, l.through, l.broken
	root, err := l.tree.root(size)
	l.mu.Unlock()
	if err != nil || broken != nil || size <= before.Size {
		return errors.Join(err, broken)
	}
	if ok && !l.holds(before) { // never sign a second history
		return fault.New(fault.Internal, "EVIDENCE_SPLIT", "this node's log does not begin with the %d records that the zone has signed", before.Size)
	}
	note, err := checkpoint.Sign(l.cfg.Signer, checkpoint.Checkpoint{Zone: l.cfg.Zone, Size: size, Root: root, At: time.Now()})
	if err != nil {
		return err
	}
	_, err = l.cfg.Store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: model.KeyCheckpoint, ModIndex: kv.ModIndex}},
		Ops:      []group.Op{{Key: model.KeyCheckpoint, Value: model.Encode(model.Checkpoint{Note: string(note), Size: size, Through: through})}},
	})
	return err
}

func (l *Log) holds(c model.Checkpoint) bool {
	h, err := checkpoint.Open(l.cfg.Zone, l.key, []byte(c.Note))
	return err == nil && l.same(h)
}
