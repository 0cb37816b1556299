package usage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
)

// Limits of one payload. DecodePayload refuses more, Payloads makes no more.
const (
	MaxPayload = 4 << 20 // bytes
	MaxCells   = 65536
)

// A payload is
//
//	version u8
//	n, n × (length, text)        the dictionary: ascending, each text used
//	n, n × cell                  ascending in the order of Cell's fields
//
//	cell: Δstart/900 (the first signed) | seven dictionary ids | plan rev |
//	      outcome u8 | requests | units | bytes in | bytes out
//
// where numbers are uvarints of the shortest form. So one map has one payload
// and the reverse: blocks made twice from the same rows have the same hash, and
// whoever re-derives a block from its detail can compare bytes.
const payloadVersion = 1

const minCellBytes = 1 + 7 + 1 + 1 + 4

func (c *Cell) texts() [7]string {
	return [...]string{c.Customer, c.Subscription, c.Plan, c.Product, c.API, c.Route, c.ServedRegion}
}

// Compare orders cells by their fields as they are declared.
func (c *Cell) Compare(o *Cell) int {
	return cmp.Or(cmp.Compare(c.Start, o.Start), cmp.Compare(c.Customer, o.Customer), cmp.Compare(c.Subscription, o.Subscription),
		cmp.Compare(c.Plan, o.Plan), cmp.Compare(c.PlanRev, o.PlanRev), cmp.Compare(c.Product, o.Product), cmp.Compare(c.API, o.API),
		cmp.Compare(c.Route, o.Route), cmp.Compare(c.Outcome, o.Outcome), cmp.Compare(c.ServedRegion, o.ServedRegion))
}

func sorted(cells map[Cell]Sums) []Cell {
	out := slices.Collect(maps.Keys(cells))
	slices.SortFunc(out, func(a, b Cell) int { return a.Compare(&b) })
	return out
}

// EncodePayload writes the cells, the same bytes for the same map. It checks no
// limit: what may pass one goes through Payloads.
func EncodePayload(cells map[Cell]Sums) []byte { return encode(sorted(cells), cells) }

// Payloads yields the cells, in order, as payloads that each keep the limits; a
// map without cells yields nothing.
func Payloads(cells map[Cell]Sums) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for rest := sorted(cells); len(rest) > 0; {
			n := min(len(rest), MaxCells)
			b := encode(rest[:n], cells)
			for len(b) > MaxPayload && n > 1 { // a lone cell is always small enough
				n = max(1, n/2)
				b = encode(rest[:n], cells)
			}
			if !yield(b) {
				return
			}
			rest = rest[n:]
		}
	}
}

func encode(order []Cell, cells map[Cell]Sums) []byte {
	ids := make(map[string]uint64)
	for i := range order {
		for _, s := range order[i].texts() {
			ids[s] = 0
		}
	}
	dict := slices.Sorted(maps.Keys(ids))
	b := append(make([]byte, 0, 64+32*len(order)), payloadVersion)
	b = binary.AppendUvarint(b, uint64(len(dict)))
	for i, s := range dict {
		ids[s] = uint64(i)
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	b = binary.AppendUvarint(b, uint64(len(order)))
	var start int64
	for i := range order {
		c := &order[i]
		if s := c.Start / CellSeconds; i == 0 {
			b = binary.AppendVarint(b, s)
			start = s
		} else {
			b = binary.AppendUvarint(b, uint64(s-start))
			start = s
		}
		for _, s := range c.texts() {
			b = binary.AppendUvarint(b, ids[s])
		}
		b = binary.AppendUvarint(b, c.PlanRev)
		b = append(b, byte(c.Outcome))
		s := cells[*c]
		for _, v := range [...]int64{s.Requests, s.Units, s.BytesIn, s.BytesOut} {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	return b
}

// DecodePayload reads what EncodePayload wrote and refuses everything else:
// more than the limits, another order, duplicates, negative sums, texts that no
// row may have, a second spelling of the same cells. Its memory is bounded by a
// small multiple of len(b). The result shares nothing with b.
func DecodePayload(b []byte) (map[Cell]Sums, error) {
	cells, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("decode usage payload of %d bytes: %w", len(b), err)
	}
	return cells, nil
}

func decode(b []byte) (map[Cell]Sums, error) {
	if len(b) > MaxPayload {
		return nil, fmt.Errorf("at most %d are allowed", MaxPayload)
	}
	if len(b) == 0 || b[0] != payloadVersion {
		return nil, fmt.Errorf("this program knows version %d only", payloadVersion)
	}
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
