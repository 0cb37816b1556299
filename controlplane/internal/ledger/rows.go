package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/usage"
)

// plus adds numbers of either sign and saturates at both ends. Unlike that of
// usage.Sums its order matters there, so it is for reports and never for the
// state.
func plus(a, b int64) int64 {
	s := a + b
	switch {
	case b > 0 && s < a:
		return math.MaxInt64
	case b < 0 && s > a:
		return math.MinInt64
	}
	return s
}

func sum(a, b usage.Sums) usage.Sums {
	return usage.Sums{Requests: plus(a.Requests, b.Requests), Units: plus(a.Units, b.Units), BytesIn: plus(a.BytesIn, b.BytesIn), BytesOut: plus(a.BytesOut, b.BytesOut)}
}

// appendBooked and decodeBooked are the value of dc/ and dt/.
func appendBooked(b []byte, s usage.Sums) []byte {
	return appendVarint(appendVarint(b, s.Requests), s.Units)
}

func decodeBooked(b []byte) (usage.Sums, error) {
	r := reader{b: b}
	s := usage.Sums{Requests: r.varint(), Units: r.varint()}
	if r.err == nil && len(r.b) != 0 {
		r.fail("something follows its end")
	}
	if r.err != nil {
		return s, fmt.Errorf("decode what was corrected: %w", r.err)
	}
	return s, nil
}

// stream calls each with rows in order of time.
type stream[T any] func(each func(start int64, row T) error) error

type timed[T any] struct {
	start int64
	row   T
}

// sorted streams rows that are in memory.
func sorted[T any](rows []timed[T]) stream[T] {
	slices.SortStableFunc(rows, func(a, b timed[T]) int { return cmp.Compare(a.start, b.start) })
	return func(each func(int64, T) error) error {
		for _, r := range rows {
			if err := each(r.start, r.row); err != nil {
				return err
			}
		}
		return nil
	}
}

var errStopped = errors.New("no more rows are wanted")

// merged streams two in one order; of rows of one time those of a come first.
func merged[T any](a, b stream[T]) stream[T] {
	return func(each func(int64, T) error) error {
		var failed error
		next, stop := iter.Pull2(func(yield func(int64, T) bool) {
			failed = a(func(start int64, row T) error {
				if !yield(start, row) {
					return errStopped
				}
				return nil
			})
		})
		defer stop()
		start, row, ok := next()
		drain := func(until int64) error {
			for ok && start <= until {
				if err := each(start, row); err != nil {
					return err
				}
				start, row, ok = next()
			}
			return failed
		}
		err := b(func(start int64, row T) error {
			if err := drain(start); err != nil {
				return err
			}
			return each(start, row)
		})
		if err == nil {
			err = drain(math.MaxInt64)
		}
		return err
	}
}

// readCells calls each with the rows of a customer's cells that start in
// [lo, hi), in order of time.
func readCells(ctx context.Context, r pebbledb.Reader, customer string, lo, hi int64, each func(Row) error) error {
	ends := func(prefix string, from int64) ([]byte, []byte) {
		return appendStart(appendCustomer(nil, prefix, customer), from), appendStart(appendCustomer(nil, prefix, customer), hi)
	}
	var beside []timed[Row]
	for _, src := range []struct {
		prefix string
		kind   RowKind
		decode func([]byte) (usage.Sums, error)
	}{{prefixLateCell, Late, decodeSums}, {prefixBookedCell, Corrected, decodeBooked}} {
		from, to := ends(src.prefix, lo)
		err := scan(r, from, to, ticking(ctx, func(k, val []byte) error {
			c, err := decodeCellKey(src.prefix, k)
			if err != nil {
				return err
			}
			s, err := src.decode(val)
			if s == (usage.Sums{}) && src.kind == Corrected {
				return err // booked, and taken back
			}
			beside = append(beside, timed[Row]{c.Start, Row{c, s, src.kind}})
			return err
		}))
		if err != nil {
			return err
		}
	}
	folded := func(each func(int64, Row) error) error {
		from, to := ends(prefixFoldedCell, dayOf(lo))
		return unfold(ctx, r, from, to, func(c usage.Cell, s usage.Sums) error {
			if c.Start < lo || c.Start >= hi {
				return nil
			}
			return each(c.Start, Row{c, s, Counted})
		})
	}
	counted := func(each func(int64, Row) error) error {
		from, to := ends(prefixCell, lo)
		return scan(r, from, to, ticking(ctx, func(k, val []byte) error {
			c, err := decodeCellKey(prefixCell, k)
			if err != nil {
				return err
			}
			s, err := decodeSums(val)
			if err != nil {
				return err
			}
			return each(c.Start, Row{c, s, Counted})
		}))
	}
	return merged(sorted(beside), merged(folded, counted))(func(_ int64, row Row) error { return each(row) })
}

// readTotals is readCells for the zone without its customers.
func readTotals(ctx context.Context, r pebbledb.Reader, lo, hi int64, each func(int64, TotalsRow) error) error {
	ends := func(prefix string, from int64) ([]byte, []byte) {
		return appendStart([]byte(prefix), from), appendStart([]byte(prefix), hi)
	}
	read := func(prefix string, kind RowKind, decode func([]byte) (usage.Sums, error), yield func(int64, TotalsRow) error) error {
		from, to := ends(prefix, lo)
		return scan(r, from, to, ticking(ctx, func(k, val []byte) error {
			start, row, err := decodeTotalKey(prefix, k)
			if err != nil {
				return err
			}
			row.Kind = kind
			if row.Sums, err = decode(val); err != nil || row.Sums == (usage.Sums{}) && kind == Corrected {
				return err
			}
			return yield(start, row)
		}))
	}
	var beside []timed[TotalsRow]
	keep := func(start int64, row TotalsRow) error {
		beside = append(beside, timed[TotalsRow]{start, row})
		return nil
	}
	err := errors.Join(read(prefixLateTotal, Late, decodeSums, keep), read(prefixBookedTotal, Corrected, decodeBooked, keep))
	if err != nil {
		return err
	}
	folded := func(each func(int64, TotalsRow) error) error {
		from, to := ends(prefixFoldedTotal, dayOf(lo))
		return unfold(ctx, r, from, to, func(c usage.Cell, s usage.Sums) error {
			if c.Start < lo || c.Start >= hi {
				return nil
			}
			return each(c.Start, TotalsRow{Product: c.Product, Plan: c.Plan, API: c.API, ServedRegion: c.ServedRegion, Outcome: c.Outcome, Sums: s})
		})
	}
	counted := func(each func(int64, TotalsRow) error) error { return read(prefixTotal, Counted, decodeSums, each) }
	return merged(sorted(beside), merged(folded, counted))(each)
}

// unfold calls each with the cells of the folded days in [from, to), in order of time. The pieces of a day have
// their own order, so a day is in memory at once.
func unfold(ctx context.Context, r pebbledb.Reader, from, to []byte, each func(usage.Cell, usage.Sums) error) error {
	var day []byte // key of its first piece, less the piece's number
	var rows []Row
	flush := func() error {
		slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(cmp.Compare(a.Cell.Start, b.Cell.Start), a.Cell.Compare(&b.Cell)) })
		for i := range rows {
			if err := each(rows[i].Cell, rows[i].Sums); err != nil {
				return err
			}
		}
		rows = rows[:0]
		return nil
	}
	err := scan(r, from, to, ticking(ctx, func(k, val []byte) error {
		if len(k) < 12 {
			return errors.New("the key of a folded day is malformed")
		}
		if of := k[:len(k)-4]; !bytes.Equal(of, day) {
			if err := flush(); err != nil {
				return err
			}
			day = append(day[:0], of...)
		}
		cells, err := usage.DecodePayload(val)
		if err != nil {
			return fmt.Errorf("read a folded day: %w", err)
		}
		for c, s := range cells {
			rows = append(rows, Row{Cell: c, Sums: s})
		}
		return nil
	}))
	if err != nil {
		return err
	}
	return flush()
}
