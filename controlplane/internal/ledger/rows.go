package ledger

import (
	"context"
	"errors"
	"fmt"
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

// timed is a row in waiting for its place in time.
type timed[T any] struct {
	start int64
	row   T
}

// inOrder calls each with the rows of base, which come in order of time, and
// before the first later one with those of beside. Beside is in memory: it is
// what is rare.
func inOrder[T any](beside []timed[T], base func(yield func(int64, T) error) error, each func(int64, T) error) error {
	slices.SortStableFunc(beside, func(a, b timed[T]) int {
		switch {
		case a.start < b.start:
			return -1
		case a.start > b.start:
			return 1
		}
		return 0
	})
	flush := func(before int64) error {
		for len(beside) > 0 && beside[0].start < before {
			if err := each(beside[0].start, beside[0].row); err != nil {
				return err
			}
			beside = beside[1:]
		}
		return nil
	}
	err := base(func(start int64, row T) error {
		if err := flush(start); err != nil {
			return err
		}
		return each(start, row)
	})
	if err == nil {
		err = flush(math.MaxInt64)
	}
	return err
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
			beside = append(beside, timed[Row]{c.Start, Row{c, s, src.kind}})
			return err
		}))
		if err != nil {
			return err
		}
	}
	base := func(yield func(int64, Row) error) error {
		// Days are folded in their order: what is folded is older than what is not.
		from, to := ends(prefixFoldedCell, dayOf(lo))
		err := scan(r, from, to, ticking(ctx, func(_, val []byte) error {
			return unfold(val, func(c usage.Cell, s usage.Sums) error {
				if c.Customer = customer; c.Start < lo || c.Start >= hi {
					return nil
				}
				return yield(c.Start, Row{c, s, Counted})
			})
		}))
		if err != nil {
			return err
		}
		from, to = ends(prefixCell, lo)
		return scan(r, from, to, ticking(ctx, func(k, val []byte) error {
			c, err := decodeCellKey(prefixCell, k)
			if err != nil {
				return err
			}
			s, err := decodeSums(val)
			if err != nil {
				return err
			}
			return yield(c.Start, Row{c, s, Counted})
		}))
	}
	return inOrder(beside, base, func(_ int64, row Row) error { return each(row) })
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
			if row.Sums, err = decode(val); err != nil {
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
	base := func(yield func(int64, TotalsRow) error) error {
		from, to := ends(prefixFoldedTotal, dayOf(lo))
		err := scan(r, from, to, ticking(ctx, func(_, val []byte) error {
			return unfold(val, func(c usage.Cell, s usage.Sums) error {
				if c.Start < lo || c.Start >= hi {
					return nil
				}
				return yield(c.Start, TotalsRow{Product: c.Product, Plan: c.Plan, API: c.API, ServedRegion: c.ServedRegion, Outcome: c.Outcome, Sums: s})
			})
		}))
		if err != nil {
			return err
		}
		return read(prefixTotal, Counted, decodeSums, yield)
	}
	return inOrder(beside, base, each)
}

// unfold calls each with the cells of a folded day in their order.
func unfold(payload []byte, each func(usage.Cell, usage.Sums) error) error {
	cells, err := usage.DecodePayload(payload)
	if err != nil {
		return fmt.Errorf("read a folded day: %w", err)
	}
	order := make([]usage.Cell, 0, len(cells))
	for c := range cells {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b usage.Cell) int { return a.Compare(&b) })
	for _, c := range order {
		if err := each(c, cells[c]); err != nil {
			return err
		}
	}
	return nil
}
