package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// scrubEvery is how often one segment is looked at, and mended if it is damaged: a disk fails long before somebody asks.
const scrubEvery = time.Minute

// Checked is what a look at a node's whole copy found.
type Checked struct {
	First   int64
	Records int64
	Heads   int64    // that fit
	Mended  []string // what was damaged and is whole again
	Damaged []string // what still is, and why
}

// scrub looks at one segment after the other, and drops what is too old while nothing is written.
func (l *Log) scrub(ctx context.Context) error {
	tick := time.NewTicker(scrubEvery)
	defer tick.Stop()
	var next int64
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			l.mu.Lock()
			err := l.trim(now)
			segments := slices.Clone(l.segments)
			l.mu.Unlock()
			if err != nil {
				l.cfg.Logger.Error("evidence: old segments cannot be dropped", "error", err)
			}
			i := slices.IndexFunc(segments[:len(segments)-1], func(s segment) bool { return s.first >= next })
			if i < 0 {
				next = 0
				continue
			}
			next = segments[i].first + 1
			var c Checked
			if err := l.check(ctx, segments, i, &c); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Error("evidence segment is damaged and cannot be mended now", "segment", segments[i].name(), "error", err)
			}
			for _, what := range c.Mended {
				l.cfg.Logger.Warn("evidence: what was damaged is whole again", "segment", what)
			}
		}
	}
}

// Check reads the whole copy: every record's hash, every signed head, every stored hash. What is damaged is fetched from
// another node, whose word counts only if it comes to the same hashes.
func (l *Log) Check(ctx context.Context) (Checked, error) {
	l.mu.Lock()
	segments, broken := slices.Clone(l.segments), l.broken
	l.mu.Unlock()
	c := Checked{First: segments[0].first}
	if broken != nil {
		c.Damaged = append(c.Damaged, broken.Error())
	}
	for i := range segments {
		if err := l.check(ctx, segments, i, &c); err != nil {
			if ctx.Err() != nil {
				return c, ctx.Err()
			}
			c.Damaged = append(c.Damaged, fmt.Sprintf("%s: %v", segments[i].name(), err))
		}
	}
	return c, nil
}

// check looks at one segment and mends it, unless it is the newest, which the next start mends.
func (l *Log) check(ctx context.Context, segments []segment, i int, c *Checked) error {
	s := segments[i]
	newest := i == len(segments)-1
	err := l.look(ctx, segments, i, c)
	if err == nil || errors.Is(err, fs.ErrNotExist) && l.dropped(s) {
		return nil
	}
	if newest || ctx.Err() != nil {
		return err
	}
	if merr := l.mend(ctx, s, segments[i+1]); merr != nil {
		return fmt.Errorf("%w; it cannot be fetched: %w", err, merr)
	}
	c.Mended = append(c.Mended, s.name())
	return l.look(ctx, segments, i, c)
}

func (l *Log) dropped(s segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.first < l.segments[0].first
}

// look reads one segment. Stored hashes that are not its own are written anew from it.
func (l *Log) look(ctx context.Context, segments []segment, i int, c *Checked) error {
	s, newest := segments[i], i == len(segments)-1
	l.mu.Lock()
	end := l.tree.size
	own := &tree{size: s.first, base: tlog.StoredHashCount(s.first), file: l.tree.file}
	l.mu.Unlock()
	if !newest {
		end = segments[i+1].first
	}
	climb, err := newClimber(s.first, s.frontier)
	if err != nil {
		return err
	}
	var records, heads int64
	err = l.scan(segments[i:i+1], s.first, func(tag byte, number int64, body []byte) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case tag == tagLeaf && number < end:
			if _, err := Decode(body); err != nil {
				return &durable.CorruptError{Path: l.path(s), What: fmt.Sprintf("record %d: %v", number, err)}
			}
			climb.add(body)
			records++
			return own.add(body)
		case tag == tagHead:
			h, err := checkpoint.Open(l.cfg.Zone, l.key, body)
			if err != nil {
				return err
			}
			if h.Size == climb.size { // one of fewer records is checked by the root after it
				if root := climb.root(); root != h.Root {
					return fmt.Errorf("the zone signed %s for %d records, these come to %s", h.Root, h.Size, root)
				}
				heads++
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case climb.size != end:
		return &durable.CorruptError{Path: l.path(s), What: fmt.Sprintf("it ends at record %d, %d were expected", climb.size, end)}
	case !newest && !slices.Equal(climb.stack, segments[i+1].frontier):
		return &durable.CorruptError{Path: l.path(s), What: "its records do not come to what the next segment begins with"}
	}
	c.Records += records
	c.Heads += heads
	if newest {
		return l.compare(end, climb.root())
	}
	stored := make([]byte, len(own.recent)*tlog.HashSize)
	_, err = own.file.ReadAt(stored, own.base*tlog.HashSize)
	for j, h := range own.recent {
		if err != nil || [tlog.HashSize]byte(stored[j*tlog.HashSize:]) != h {
			l.mu.Lock()
			err := errors.Join(own.put(own.base, own.recent), own.file.Sync())
			l.mu.Unlock()
			c.Mended = append(c.Mended, "hashes of "+s.name())
			return err
		}
	}
	return nil
}

// mend fetches a segment from another node.
func (l *Log) mend(ctx context.Context, s, next segment) error {
	mend := l.path(s) + ".mend"
	_ = l.cfg.FS.Remove(mend)
	out, _, err := durable.OpenLog(l.cfg.FS, mend, header, nil)
	if err != nil {
		return err
	}
	defer out.Close()
	climb, err := newClimber(s.first, s.frontier)
	if err != nil {
		return err
	}
	text, err := json.Marshal(beginning{First: s.first, At: s.at, Frontier: texts(s.frontier)})
	if err == nil {
		err = out.Append(append([]byte{tagBegin}, text...))
	}
	for err == nil && climb.size < next.first {
		var theirs Piece
		if theirs, err = l.cfg.Peers(ctx, climb.size); err != nil {
			break
		}
		if theirs.First > climb.size || len(theirs.Leaves) == 0 {
			return fault.New(fault.Unavailable, "EVIDENCE_LOST", "no other node has record %d any more: bundles must begin after record %d", climb.size, next.first)
		}
		for _, leaf := range theirs.Leaves {
			if climb.size == next.first {
				break
			}
			climb.add(leaf)
			if err = out.Append(append([]byte{tagLeaf}, leaf...)); err != nil {
				break
			}
		}
	}
	if err == nil && !slices.Equal(climb.stack, next.frontier) {
		err = errors.New("what the other node has does not come to the same hashes")
	}
	if err != nil {
		return err
	}
	// Heads before the damage are kept; those behind it are lost, and the next one proves as much.
	_, _, herr := durable.ReadLog(l.cfg.FS, l.path(s), header, func(_ int64, p []byte) error {
		if len(p) > 0 && p[0] == tagHead {
			return out.Append(p)
		}
		return nil
	})
	if herr != nil && !errors.Is(herr, durable.ErrCorrupt) && !errors.Is(herr, fs.ErrNotExist) {
		return herr
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return errors.Join(l.cfg.FS.Rename(mend, l.path(s)), l.cfg.FS.SyncDir(l.cfg.Dir))
}

func texts(frontier []tlog.Hash) []string {
	out := []string{}
	for _, h := range frontier {
		out = append(out, h.String())
	}
	return out
}

func (l *Log) compare(size int64, root tlog.Hash) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if got, err := l.tree.root(size); err != nil || got != root {
		return fault.New(fault.Internal, "EVIDENCE_HASHES", "the stored hashes of %d records do not come to their root: %v; restart the node, which makes them anew", size, err)
	}
	return nil
}
