package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/usage"
)

// Period is a UTC day that is closed: what comes for it afterwards is counted
// once like everything else, but as late.
type Period struct {
	Day       time.Time
	ClosedAt  time.Time // by the leader's clock
	Why       Why
	WaitedFor []string // edges that had not told everything when grace ended
	Folded    bool     // its cells are one record a customer
}

// Why says why a day was closed.
type Why uint8

const (
	WhyComplete Why = 1 // every edge had told all of it
	WhyGrace    Why = 2 // not all had, and grace was over
)

func (w Why) String() string {
	if w == WhyGrace {
		return "grace"
	}
	return "complete"
}

const maxWaiting = 1024 // edges named in a record; more are counted in none

func periodKey(day int64) []byte { return appendStart([]byte(prefixPeriod), day) }

func (p *Period) encode(b []byte) []byte {
	b = append(b, byte(p.Why), boolByte(p.Folded))
	b = binary.AppendUvarint(b, uint64(max(p.ClosedAt.UnixMilli(), 0)))
	b = binary.AppendUvarint(b, uint64(len(p.WaitedFor)))
	for _, edge := range p.WaitedFor {
		b = appendText(b, edge)
	}
	return b
}

func (r *reader) period(day int64) Period {
	flags := r.take(2)
	p := Period{Day: time.Unix(day, 0).UTC(), Why: Why(flags[0]), Folded: flags[1] != 0, ClosedAt: time.UnixMilli(r.int64()).UTC()}
	for range r.count(2) {
		p.WaitedFor = append(p.WaitedFor, r.name())
	}
	if p.Why != WhyComplete && p.Why != WhyGrace || len(p.WaitedFor) > maxWaiting {
		r.fail("why a day is closed is unknown")
	}
	return p
}

// dayOrder closes a day. Days are closed in their order: one that is not after
// the last changes nothing.
type dayOrder struct{ Period }

func encodeCloseDay(p *Period) []byte {
	return p.encode(appendVarint(begin(kindCloseDay), p.Day.Unix()))
}

func decodeCloseDay(r *reader) order { return &dayOrder{r.period(r.day())} }

// day is the start of a UTC day.
func (r *reader) day() int64 {
	d := r.varint()
	if d != dayOf(d) {
		r.fail("a day does not begin at midnight")
	}
	return d
}

func (o *dayOrder) apply(t *tx) ([]byte, error) {
	if end := o.Day.Unix() + daySeconds; end > t.m.closed {
		if err := t.set(periodKey(o.Day.Unix()), o.encode(nil)); err != nil {
			return nil, err
		}
		t.m.closed = end
	}
	return []byte{resultVersion}, nil
}

// loadClosed finds the end of the last closed day.
func (m *Machine) loadClosed(db *pebbledb.DB) error {
	m.closed = math.MinInt64
	return scan(db, []byte(prefixPeriod), upper([]byte(prefixPeriod)), func(k, _ []byte) error {
		if len(k) != len(prefixPeriod)+8 {
			return errors.New("the key of a period is malformed")
		}
		m.closed = startOf(k[len(prefixPeriod):]) + daySeconds
		return nil
	})
}

// foldOrder makes one record of a closed day's cells for each customer after
// After, until it has read limit cells; the next order goes on from its result.
// It is a function of the state alone. What it writes is usage's payload, so a
// new version of that is a new version of this command.
type foldOrder struct {
	day   int64
	after string
	limit uint64
}

func encodeFold(o *foldOrder) []byte {
	return binary.AppendUvarint(appendText(appendVarint(begin(kindFoldDay), o.day), o.after), o.limit)
}

func decodeFold(r *reader) order {
	return &foldOrder{r.day(), string(r.bytes(maxName)), r.uvarint()}
}

// Folded is what one step of folding did.
type Folded struct {
	Done          bool
	After         string // customer to go on behind
	Cells         uint64
	Before, Bytes uint64 // of keys and values, before and after
}

func (o *foldOrder) apply(t *tx) ([]byte, error) {
	v, err := t.get(periodKey(o.day))
	if err != nil {
		return nil, err
	}
	out := Folded{Done: true}
	if v != nil {
		r := reader{b: v}
		p := r.period(o.day)
		if r.err != nil {
			return nil, fmt.Errorf("read a period: %w", r.err)
		}
		if !p.Folded {
			if out, err = t.foldDay(o); err != nil {
				return nil, err
			}
			if p.Folded = out.Done; p.Folded {
				if err := t.set(periodKey(o.day), p.encode(nil)); err != nil {
					return nil, err
				}
			}
		}
	}
	b := appendText([]byte{resultVersion, boolByte(out.Done)}, out.After)
	for _, n := range []uint64{out.Cells, out.Before, out.Bytes} {
		b = binary.AppendUvarint(b, n)
	}
	return b, nil
}

func (t *tx) foldDay(o *foldOrder) (out Folded, err error) {
	it, err := t.db.NewIter(&pebbledb.IterOptions{LowerBound: []byte(prefixCell), UpperBound: upper([]byte(prefixCell))})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	seek := []byte(prefixCell)
	if o.after != "" {
		seek = upper(appendCustomer(nil, prefixCell, o.after))
	}
	for it.SeekGE(seek); it.Valid(); it.SeekGE(seek) { // one turn a customer: O(customers), whatever else they have
		first, err := decodeCellKey(prefixCell, it.Key())
		if err != nil {
			return out, err
		}
		if out.Cells >= o.limit {
			return out, nil
		}
		customer := appendCustomer(nil, prefixCell, first.Customer)
		lo, hi := appendStart(customer[:len(customer):len(customer)], o.day), appendStart(customer[:len(customer):len(customer)], o.day+daySeconds)
		cells := make(map[usage.Cell]usage.Sums)
		err = scan(t.db, lo, hi, func(k, val []byte) error {
			c, err := decodeCellKey(prefixCell, k)
			if err != nil {
				return err
			}
			out.Before += uint64(len(k) + len(val))
			cells[c], err = decodeSums(val)
			return err
		})
		if err == nil {
			err = t.putFolded(appendStart(appendCustomer(nil, prefixFoldedCell, first.Customer), o.day), lo, hi, cells, &out)
		}
		if err == nil {
			err = t.trimSpans(first.Customer, o.day)
		}
		if err != nil {
			return out, err
		}
		out.After, seek = first.Customer, upper(customer)
	}
	if err := it.Error(); err != nil {
		return out, err
	}
	cells := make(map[usage.Cell]usage.Sums)
	lo, hi := appendStart([]byte(prefixTotal), o.day), appendStart([]byte(prefixTotal), o.day+daySeconds)
	err = scan(t.db, lo, hi, func(k, val []byte) error {
		start, row, err := decodeTotalKey(prefixTotal, k)
		if err != nil {
			return err
		}
		out.Before += uint64(len(k) + len(val))
		// A payload's cell has a customer; here it stands for all.
		c := usage.Cell{Start: start, Customer: otherEdges, Plan: row.Plan, Product: row.Product, API: row.API, Outcome: row.Outcome, ServedRegion: row.ServedRegion}
		cells[c], err = decodeSums(val)
		return err
	})
	if err == nil {
		err = t.putFolded(appendStart([]byte(prefixFoldedTotal), o.day), lo, hi, cells, &out)
	}
	out.Done = err == nil
	return out, err
}

// putFolded replaces [lo, hi) by cells in one form of theirs.
func (t *tx) putFolded(key, lo, hi []byte, cells map[usage.Cell]usage.Sums, out *Folded) error {
	if len(cells) == 0 {
		return nil
	}
	out.Cells += uint64(len(cells))
	piece := uint32(0)
	for payload := range usage.Payloads(usage.Payload{Cells: cells}) {
		k := binary.BigEndian.AppendUint32(key[:len(key):len(key)], piece)
		out.Bytes += uint64(len(k) + len(payload))
		if err := t.set(k, payload); err != nil {
			return err
		}
		piece++
	}
	return t.b.DeleteRange(lo, hi, nil)
}

// CloseDay closes a day after which no closed one is.
func (l *Ledger) CloseDay(ctx context.Context, p Period) error {
	if len(p.WaitedFor) > maxWaiting {
		p.WaitedFor = p.WaitedFor[:maxWaiting]
	}
	if _, err := l.propose(ctx, encodeCloseDay(&p)); err != nil {
		return fmt.Errorf("close %s: %w", p.Day.Format(time.DateOnly), err)
	}
	return nil
}

// FoldDay does one step of folding a closed day, of customers after one and of about so many cells.
func (l *Ledger) FoldDay(ctx context.Context, day time.Time, after string, cells int) (Folded, error) {
	out, err := l.propose(ctx, encodeFold(&foldOrder{day.Unix(), after, uint64(cells)}))
	if err != nil {
		return Folded{}, fmt.Errorf("fold %s: %w", day.Format(time.DateOnly), err)
	}
	if len(out) < 2 || out[0] != resultVersion {
		return Folded{}, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: out[2:]}
	f := Folded{Done: out[1] != 0, After: r.text(), Cells: r.uvarint(), Before: r.uvarint(), Bytes: r.uvarint()}
	return f, r.err
}

// Periods lists the closed days in their order.
func (v *View) Periods(ctx context.Context) ([]Period, error) {
	var out []Period
	err := v.scan(ctx, []byte(prefixPeriod), upper([]byte(prefixPeriod)), func(k, val []byte) error {
		if len(k) != len(prefixPeriod)+8 {
			return errors.New("the key of a period is malformed")
		}
		r := reader{b: val}
		out = append(out, r.period(startOf(k[len(prefixPeriod):])))
		return r.err
	})
	return out, err
}
