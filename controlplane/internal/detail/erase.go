package detail

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// Erasure is what the erasure of a customer changed on this node.
type Erasure struct {
	Files  int64
	Rows   int64
	Before []string // SHA-256 of each file that changed, hex
	After  []string // of what took its place; "" where nothing did
}

// Erase removes a customer's rows: pieces that wait in logs are rolled without them, files that hold some are
// written anew, and the old ones are unlinked before it returns. Config.Erased must say so of him already: what
// arrives from then on is dropped. A file that is damaged cannot be shown to be free of him and goes as a whole.
// It may be repeated; the second time there is nothing to do.
func (s *Store) Erase(ctx context.Context, customer string) (Erasure, error) {
	if !s.cfg.Erased(customer) {
		return Erasure{}, fault.New(fault.Conflict, "NOT_ERASED", "detail of customer %q: this node does not know that he was erased", customer)
	}
	var out *Erasure // written by the keeper, which may still be at it when ctx has ended here
	err := s.order(ctx, func(ctx context.Context) error {
		result, err := s.eraseNow(ctx, customer)
		out = &result
		return err
	})
	if err != nil {
		return Erasure{}, err
	}
	return *out, nil
}

// eraseNow is the keeper's.
func (s *Store) eraseNow(ctx context.Context, customer string) (out Erasure, err error) {
	// What the writer committed before this answer lies in tables that are frozen now; what it commits after it
	// was asked about the erased customers later than the caller was.
	if err := s.rotateLog(ctx); err != nil {
		return out, fault.New(fault.Unavailable, ReasonDisk, "erase detail: begin a new log: %w", err)
	}
	for {
		s.mu.Lock()
		var t *table
		if len(s.tables) > 1 {
			t = s.tables[0]
		}
		s.mu.Unlock()
		if t == nil {
			break
		}
		holds := slices.ContainsFunc(t.pieces, func(p Piece) bool { return slices.Contains(p.Customers, customer) })
		sum := ""
		if holds {
			if sum, err = s.sumOf(logName(t.number)); err != nil {
				return out, err
			}
		}
		rows, err := s.roll(ctx, t, customer)
		if err != nil {
			return out, fmt.Errorf("erase detail: %w", err)
		}
		if holds {
			out.add(sum, "", rows)
		}
	}
	for _, f := range s.clone().Files {
		if err := s.eraseFrom(ctx, f, customer, &out); err != nil {
			return out, fmt.Errorf("erase detail: %w", err)
		}
	}
	return out, nil
}

func (e *Erasure) add(before, after string, rows int64) {
	e.Files, e.Rows = e.Files+1, e.Rows+rows
	e.Before, e.After = append(e.Before, before), append(e.After, after)
}

var errFound = errors.New("found")

func (s *Store) eraseFrom(ctx context.Context, f info, customer string, out *Erasure) error {
	err := s.scan(ctx, f, customer, math.MinInt64, math.MaxInt64, func(*record) error { return errFound })
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.Is(err, errFound) && !s.ruined(f):
		return err // of the machine, not of the file, which holds others' rows too: it is tried again
	}
	next := s.clone()
	i := slices.IndexFunc(next.Files, func(o info) bool { return o.Name == f.Name })
	if !errors.Is(err, errFound) {
		s.log.Error("a damaged file of detail goes with an erasure", "file", f.Name, "rows", f.Rows, "error", err)
		next.Files = slices.Delete(next.Files, i, i+1)
		if err := s.commitCatalog(next, func() {}); err != nil {
			return err
		}
		out.add(f.SHA256, "", 0)
		return s.remove(f.Name)
	}
	w, err := s.create(f.Number)
	if err != nil {
		return err
	}
	var his int64
	chunk := make([]record, 0, 4096)
	err = s.scan(ctx, f, "", math.MinInt64, math.MaxInt64, func(r *record) error {
		if r.Customer == customer {
			his++
			return nil
		}
		if chunk = append(chunk, *r); len(chunk) < groupRows {
			return nil
		}
		err := w.group(chunk)
		chunk = chunk[:0]
		return err
	})
	if err == nil {
		err = w.group(chunk)
	}
	if err != nil {
		return errors.Join(err, w.discard())
	}
	made, err := w.finish()
	if err != nil {
		return err
	}
	if made.Name == "" {
		next.Files = slices.Delete(next.Files, i, i+1)
	} else {
		next.Files[i] = made
	}
	if err := s.commitCatalog(next, func() {}); err != nil {
		return err
	}
	out.add(f.SHA256, made.SHA256, his)
	return s.remove(f.Name)
}

// ruined says whether a file that could not be read is damaged or gone for certain.
func (s *Store) ruined(f info) bool {
	s.mu.Lock()
	if s.sound[f.Name] == nil {
		delete(s.sound, f.Name) // it may have been sound at first
	}
	s.mu.Unlock()
	h, err := s.fs.Open(s.path(f.Name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer h.Close()
	_, corrupt := errors.AsType[*durable.CorruptError](s.verify(f, h))
	return corrupt
}

func (s *Store) sumOf(name string) (string, error) {
	f, err := s.fs.Open(s.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
