package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/controlplane/internal/correction"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// The reasons why a correction is not booked.
const (
	ReasonNegative     = "CELL_NEGATIVE"        // kind Invalid: a cell's total would fall below zero
	ReasonRepeated     = "REQUEST_ID_USED"      // kind Conflict: for another correction
	ReasonNoCorrection = "CORRECTION_UNKNOWN"   // kind NotFound
	ReasonUndone       = "CORRECTION_UNDONE"    // kind Conflict: it was undone before
	ReasonIsUndo       = "CORRECTION_IS_UNDO"   // kind Conflict: an undo is not undone, but corrected
	ReasonNotOpposite  = "UNDO_IS_NOT_OPPOSITE" // kind Invalid
)

var bookings = []struct {
	kind   fault.Kind
	reason string
}{
	bookedNow:       {},
	bookedBefore:    {},
	bookNegative:    {fault.Invalid, ReasonNegative},
	bookRepeated:    {fault.Conflict, ReasonRepeated},
	bookUnknown:     {fault.NotFound, ReasonNoCorrection},
	bookUndone:      {fault.Conflict, ReasonUndone},
	bookIsUndo:      {fault.Conflict, ReasonIsUndo},
	bookNotOpposite: {fault.Invalid, ReasonNotOpposite},
}

const (
	bookedNow byte = iota
	bookedBefore
	bookNegative
	bookRepeated
	bookUnknown
	bookUndone
	bookIsUndo
	bookNotOpposite
)

// Booked is a correction as the ledger holds it.
type Booked struct {
	correction.Correction
	UndoneBy string `json:"undone_by,omitempty"` // id of the correction that took it back
}

// booking is the order to book a correction.
type booking struct{ *correction.Correction }

func decodeCorrect(r *reader) order {
	b := r.b
	r.b = nil
	if r.err != nil {
		return nil
	}
	c, err := correction.Decode(b)
	if err != nil {
		r.err = err
		return nil
	}
	return booking{c}
}

func correctionKey(id string) []byte { return append([]byte(prefixCorrection), id...) }

func readBooked(r pebbledb.Reader, id string) (*Booked, error) {
	v, closer, err := r.Get(correctionKey(id))
	if errors.Is(err, pebbledb.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	b := new(Booked)
	if err := json.Unmarshal(v, b); err != nil {
		return nil, fmt.Errorf("read a correction: %w", err)
	}
	return b, nil
}

// judgeBooking says what would become of c in the state r. It is run by Apply,
// and by whoever only asks.
func judgeBooking(r pebbledb.Reader, c *correction.Correction) (code byte, detail string, err error) {
	was, err := readBooked(r, c.ID())
	switch {
	case err != nil:
		return 0, "", err
	case was != nil && was.Same(c):
		return bookedBefore, "", nil
	case was != nil:
		return bookRepeated, fmt.Sprintf("correct usage: request id %s of producer %s has booked another correction before: choose a new one", c.RequestID, c.Producer), nil
	}
	if c.Corrects != "" {
		was, err := readBooked(r, c.Corrects)
		switch {
		case err != nil:
			return 0, "", err
		case was == nil || was.Customer != c.Customer:
			return bookUnknown, fmt.Sprintf("undo correction %s: the ledger has none of that id", c.Corrects), nil
		case was.UndoneBy != "":
			return bookUndone, fmt.Sprintf("undo correction %s: it was undone by %s before", c.Corrects, was.UndoneBy), nil
		case was.Corrects != "":
			return bookIsUndo, fmt.Sprintf("undo correction %s: it is an undo itself: book a new correction instead", c.Corrects), nil
		case !slices.Equal(c.Rows, was.Opposite()):
			return bookNotOpposite, fmt.Sprintf("undo correction %s: the rows are not its opposite", c.Corrects), nil
		}
	}
	return judgeTotals(r, c)
}

// judgeTotals refuses what would make a cell's total negative. A cell is seen
// without its plan's revision here, which an operator does not know.
func judgeTotals(r pebbledb.Reader, c *correction.Correction) (byte, string, error) {
	change := make(map[usage.Cell]usage.Sums)
	var starts []int64
	for i := range c.Rows {
		cell := cellOf(c.Customer, &c.Rows[i])
		change[cell] = sum(change[cell], usage.Sums{Requests: c.Rows[i].Requests, Units: c.Rows[i].Units})
		starts = append(starts, cell.Start)
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	have := make(map[usage.Cell]usage.Sums)
	for len(starts) > 0 { // whole days at once: a folded one is read whole
		day := dayOf(starts[0])
		n := 1
		for n < len(starts) && dayOf(starts[n]) == day {
			n++
		}
		err := readCells(context.Background(), r, c.Customer, starts[0], starts[n-1]+1, func(row Row) error {
			row.Cell.PlanRev, row.Cell.Period = 0, 0
			if _, touched := change[row.Cell]; touched {
				have[row.Cell] = sum(have[row.Cell], row.Sums)
			}
			return nil
		})
		if err != nil {
			return 0, "", err
		}
		starts = starts[n:]
	}
	for i := range c.Rows { // in the order of the rows: the first one is named
		cell := cellOf(c.Customer, &c.Rows[i])
		if after := sum(have[cell], change[cell]); after.Requests < 0 || after.Units < 0 {
			return bookNegative, fmt.Sprintf("correct usage: row %d: the cell holds %d requests and %d units, and would hold %d and %d", i+1,
				have[cell].Requests, have[cell].Units, after.Requests, after.Units), nil
		}
	}
	return bookedNow, "", nil
}

// cellOf is the cell that a row is booked on; that its outcome has a name was validated.
func cellOf(customer string, r *correction.Row) usage.Cell {
	o, _ := usage.ParseOutcome(r.Outcome)
	return usage.Cell{Start: r.Start, Customer: customer, Subscription: r.Subscription, Plan: r.Plan, Product: r.Product,
		API: r.API, Route: r.Route, Outcome: o, ServedRegion: r.ServedRegion}
}

func (o booking) apply(t *tx) ([]byte, error) {
	code, detail, err := judgeBooking(t.db, o.Correction)
	if err != nil {
		return nil, err
	}
	if code == bookedNow {
		if err := t.book(o.Correction); err != nil {
			return nil, err
		}
	}
	return appendText([]byte{resultVersion, code}, detail), nil
}

func (t *tx) book(c *correction.Correction) error {
	added := make(map[string]usage.Sums)
	for i := range c.Rows {
		cell := cellOf(c.Customer, &c.Rows[i])
		s := usage.Sums{Requests: c.Rows[i].Requests, Units: c.Rows[i].Units}
		for _, k := range [][]byte{appendCellKey(nil, prefixBookedCell, &cell), appendTotalKey(nil, prefixBookedTotal, &cell)} {
			added[string(k)] = sum(added[string(k)], s)
		}
	}
	for k, s := range added { // distinct keys: the order does not matter
		v, err := t.get([]byte(k))
		if err != nil {
			return err
		}
		if v != nil {
			was, err := decodeBooked(v)
			if err != nil {
				return err
			}
			s = sum(s, was)
		}
		if err := t.set([]byte(k), appendBooked(nil, s)); err != nil {
			return err
		}
	}
	if c.Corrects != "" {
		was, err := readBooked(t.db, c.Corrects)
		if err != nil {
			return err
		}
		was.UndoneBy = c.ID()
		if err := t.putBooked(was); err != nil {
			return err
		}
	}
	if err := t.set(append(appendCustomer(nil, prefixCorrected, c.Customer), c.ID()...), nil); err != nil {
		return err
	}
	return t.putBooked(&Booked{Correction: *c})
}

func (t *tx) putBooked(b *Booked) error {
	v, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return t.set(correctionKey(b.ID()), v)
}

// Correct books a signed correction, once for its id. repeated: it was booked before.
func (l *Ledger) Correct(ctx context.Context, c *correction.Correction) (repeated bool, err error) {
	if err := c.Validate(); err != nil {
		return false, fault.New(fault.Invalid, "CORRECTION_INVALID", "%v", err)
	}
	body, err := c.Encode()
	if err != nil {
		return false, fault.New(fault.TooLarge, "CORRECTION_TOO_LARGE", "%v", err)
	}
	out, err := l.propose(ctx, append(begin(kindCorrect), body...))
	if err != nil {
		return false, fmt.Errorf("book correction %s: %w", c.ID(), err)
	}
	if len(out) < 2 || out[0] != resultVersion {
		return false, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: out[2:]}
	return out[1] == bookedBefore, bookingError(out[1], r.text())
}

func bookingError(code byte, detail string) error {
	switch {
	case code == bookedNow || code == bookedBefore:
		return nil
	case int(code) >= len(bookings):
		return errors.New("the ledger refuses a correction for a reason that this program does not know")
	}
	return fault.New(bookings[code].kind, bookings[code].reason, "%s", detail)
}

// TryCorrect says what Correct would, and changes nothing.
func (v *View) TryCorrect(c *correction.Correction) (repeated bool, err error) {
	defer guard(&err, "read ledger")
	if err := c.Validate(); err != nil {
		return false, fault.New(fault.Invalid, "CORRECTION_INVALID", "%v", err)
	}
	code, detail, err := judgeBooking(v.snap, c)
	if err != nil {
		return false, err
	}
	return code == bookedBefore, bookingError(code, detail)
}

// Correction is the one with an id; nil: there is none.
func (v *View) Correction(id string) (b *Booked, err error) {
	defer guard(&err, "read ledger")
	return readBooked(v.snap, id)
}

// Corrections lists a customer's, or everybody's for "", in the order of their time.
func (v *View) Corrections(ctx context.Context, customer string) ([]Booked, error) {
	var out []Booked
	prefix := []byte(prefixCorrected)
	if customer != "" {
		prefix = appendCustomer(nil, prefixCorrected, customer)
	}
	err := v.scan(ctx, prefix, upper(prefix), func(k, _ []byte) error {
		_, id, ok := bytes.Cut(k[len(prefixCorrected):], []byte{0})
		if !ok {
			return errors.New("a correction's key is malformed")
		}
		b, err := readBooked(v.snap, string(id))
		if err != nil || b == nil {
			return errors.Join(err, errors.New("a correction is not there"))
		}
		out = append(out, *b)
		return nil
	})
	slices.SortStableFunc(out, func(a, b Booked) int {
		switch {
		case a.AtMS < b.AtMS:
			return -1
		case a.AtMS > b.AtMS:
			return 1
		}
		return 0
	})
	return out, err
}

// FirstUsage is the start of the oldest cell the zone has; ok is false before there is one.
func (v *View) FirstUsage() (start int64, ok bool, err error) {
	defer guard(&err, "read ledger")
	for _, prefix := range []string{prefixFoldedTotal, prefixTotal, prefixLateTotal} {
		it, err := v.snap.NewIter(&pebbledb.IterOptions{LowerBound: []byte(prefix), UpperBound: upper([]byte(prefix))})
		if err != nil {
			return 0, false, err
		}
		if it.First() && len(it.Key()) >= len(prefix)+8 {
			if s := startOf(it.Key()[len(prefix):]); !ok || s < start {
				start, ok = s, true
			}
		}
		if err := it.Close(); err != nil {
			return 0, false, err
		}
	}
	return start, ok, nil
}
