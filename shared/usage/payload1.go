package usage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Version 1 of the ledger part, which lies in spools and ledgers' logs from
// before 2026-11-25 and is not written any more:
//
//	version u8
//	n, n × (length, text)        the dictionary: ascending, each text used
//	n, n × cell                  ascending in the order of Cell's fields
//
//	cell: Δstart/900 (the first signed) | seven dictionary ids | plan rev |
//	      outcome u8 | requests | units | bytes in | bytes out
//
// where numbers are uvarints of the shortest form. It knows no Period and no latencies.
const minCellBytes = 1 + 7 + 1 + 1 + 4

func decode1(b []byte) (map[Cell]Sums, error) {
	r := reader{b: b[1:]}
	dict := make([]string, r.count(1))
	used := make([]bool, len(dict))
	for i := range dict {
		dict[i] = string(r.take(r.uvarint(MaxString)))
		if !textOK(dict[i]) {
			return nil, errText
		}
		if i > 0 && r.err == nil && dict[i-1] >= dict[i] {
			return nil, errors.New("its dictionary is not in order")
		}
	}
	n := r.count(minCellBytes)
	if n > MaxCells {
		return nil, fmt.Errorf("it holds %d cells, at most %d are allowed", n, MaxCells)
	}
	cells := make(map[Cell]Sums, n)
	var prev Cell
	for i := range n {
		const limit = math.MaxInt64 / CellSeconds
		var c Cell
		if i == 0 {
			v := r.uvarint(2*limit + 1)
			c.Start = int64(v>>1) ^ -int64(v&1) // zigzag, as binary.AppendVarint writes it
			if c.Start < -limit {
				return nil, errors.New("a cell starts out of range")
			}
		} else {
			c.Start = prev.Start / CellSeconds
			d := r.uvarint(2 * limit)
			if int64(d) > limit-c.Start {
				return nil, errors.New("a cell starts out of range")
			}
			c.Start += int64(d)
		}
		c.Start *= CellSeconds
		for _, s := range [...]*string{&c.Customer, &c.Subscription, &c.Plan, &c.Product, &c.API, &c.Route, &c.ServedRegion} {
			id := r.uvarint(math.MaxInt32)
			if id >= uint64(len(dict)) {
				return nil, errors.New("a cell names a text that is not in its dictionary")
			}
			*s, used[id] = dict[id], true
		}
		c.PlanRev = r.uvarint(math.MaxUint64)
		if o := r.take(1); len(o) == 1 {
			c.Outcome = Outcome(o[0])
		}
		var s Sums
		for _, v := range [...]*int64{&s.Requests, &s.Units, &s.BytesIn, &s.BytesOut} {
			*v = int64(r.uvarint(math.MaxInt64)) // a negative one reads as too large
		}
		if r.err != nil {
			return nil, r.err
		}
		if err := checkRest(c.Customer, c.Outcome, s); err != nil {
			return nil, err
		}
		if i > 0 && prev.Compare(&c) >= 0 {
			return nil, errors.New("its cells are not in order")
		}
		cells[c] = s
		prev = c
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, fmt.Errorf("%d bytes follow its end", len(r.b))
	case slices.Contains(used, false):
		return nil, errors.New("its dictionary holds a text that no cell names")
	}
	return cells, nil
}

// reader takes fields off bytes and remembers the first error, after which all
// it yields is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = errors.New(what)
	}
}

func (r *reader) uvarint(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	switch {
	case n <= 0 || n > 1 && r.b[n-1] == 0: // cut short, too long, or not the shortest form
		r.fail("a number is malformed")
		return 0
	case v > limit:
		r.fail("a number is too large")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.b)) {
		r.fail("it is cut short")
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// count is a number of items of at least each bytes.
func (r *reader) count(each int) int {
	n := r.uvarint(math.MaxUint32)
	if n > uint64(len(r.b)/each) {
		r.fail("a count is too large")
		return 0
	}
	return int(n)
}
