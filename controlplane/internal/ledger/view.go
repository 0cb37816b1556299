package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pebbledb "github.com/cockroachdb/pebble/v2"

	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// MaxRows bounds one report: beyond it the caller narrows the time range.
const MaxRows = 250_000

var errClosed = fault.New(fault.Unavailable, ReasonClosed, "the ledger of this node is closed")

// Reasons of the ledger's errors, besides those of a block's refusal.
const (
	ReasonClosed   = "LEDGER_CLOSED"   // kind Unavailable
	ReasonTooMany  = "TOO_MANY_ROWS"   // kind TooLarge
	ReasonBadRange = "RANGE_INVALID"   // kind Invalid
	ReasonEpoch    = "EPOCH_UNKNOWN"   // kind NotFound
	ReasonBadEdge  = "EDGE_INVALID"    // kind Invalid
	ReasonTooLarge = "BLOCK_TOO_LARGE" // kind TooLarge
)

// Total sums rows as design.md §7 counts them.
type Total struct {
	Requests int64 // of every outcome other than limited and refused
	Billable int64 // of success; prices may know better (rating)
	Limited  int64
	Errors   int64 // Requests that are not Billable
	Units    int64 // of Requests
}

func (t *Total) add(o usage.Outcome, s usage.Sums) {
	plus := func(to *int64, n int64) { *to = plus(*to, n) }
	switch o {
	case usage.OutcomeLimited:
		plus(&t.Limited, s.Requests)
		return
	case usage.OutcomeRefused:
		return
	case usage.OutcomeSuccess:
		plus(&t.Billable, s.Requests)
	default:
		plus(&t.Errors, s.Requests)
	}
	plus(&t.Requests, s.Requests)
	plus(&t.Units, s.Units)
}

// Row is one cell of a customer.
type Row struct {
	Cell usage.Cell
	Sums usage.Sums // of a correction either sign
	Kind RowKind
}

// RowKind says how a row came into the ledger.
type RowKind uint8

const (
	Counted   RowKind = 0 // in its time
	Late      RowKind = 1 // counted all the same, but after its day was closed
	Corrected RowKind = 2 // booked by an operator or an import
)

// Report is a customer's usage, rows in order of time.
type Report struct {
	Total Total
	Rows  []Row
	Index uint64 // of the ledger's log
}

// TotalsRow sums cells over time and customers.
type TotalsRow struct {
	Product, Plan, API, ServedRegion string
	Outcome                          usage.Outcome
	Kind                             RowKind
	Sums                             usage.Sums // of a correction either sign
}

// Totals is the zone's usage without a customer column.
type Totals struct {
	Total Total
	Rows  []TotalsRow
	Index uint64
}

// Gap is usage known to be lost: blocks Applied+1 to Sealed of an epoch that an
// operator closed.
type Gap struct {
	Edge            string
	Epoch           uint64
	Applied, Sealed uint64
}

// EdgeEpoch is one epoch of one edge as the ledger knows it.
type EdgeEpoch struct {
	Edge, Region    string
	Epoch           uint64
	Applied, Sealed uint64
	Through         time.Time // its rows that finished before are in the ledger; zero: not known
	Closed          bool
	Quarantined     bool   // two spools speak for it, and nobody has closed it yet
	Forked          uint64 // the block of which there is more than one content; 0: none
	Gap             uint64 // blocks known to be lost
	ClosedBy        string
	ClosedWhy       string
	ClosedAt        time.Time
	Held            Held
}

// Status is one word: open, complete, closed, quarantined.
func (e *EdgeEpoch) Status() string {
	switch {
	case e.Closed:
		return "closed"
	case e.Quarantined:
		return "quarantined"
	case e.Sealed == e.Applied:
		return "complete"
	}
	return "open"
}

// View is the ledger at one index: whatever is asked of one View agrees, so that
// CompleteThrough speaks of the very rows beside it. For one goroutine; Close it
// soon: an open View keeps replaced data on disk.
type View struct {
	m     *Machine
	g     *generation
	snap  *pebbledb.Snapshot
	index uint64
}

// View captures the state this node has applied, which may be behind the
// group's: Ledger.View is the linearizable one.
func (m *Machine) View() (v *View, err error) {
	g, err := m.acquire()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.release(g)
		}
	}()
	defer guard(&err, "read ledger")
	snap := g.db.NewSnapshot()
	index, err := readApplied(snap)
	if err != nil {
		return nil, errors.Join(err, snap.Close())
	}
	return &View{m, g, snap, index}, nil
}

// Index is the ledger's log index the view stands at.
func (v *View) Index() uint64 { return v.index }

// Close ends the view.
func (v *View) Close() {
	if err := v.snap.Close(); err != nil {
		v.m.logger.Error("ledger view does not close", "error", err)
	}
	v.m.release(v.g)
}

// cellRange turns a time range into the starts of the cells that overlap it.
func cellRange(since, until time.Time) (lo, hi int64, err error) {
	if !since.Before(until) {
		return 0, 0, fault.New(fault.Invalid, ReasonBadRange, "usage from %s to %s: the range is empty",
			since.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339))
	}
	lo = since.Unix() - usage.CellSeconds + 1
	hi = until.Unix()
	if until.Nanosecond() > 0 {
		hi++
	}
	return lo, hi, nil
}

func (v *View) scan(ctx context.Context, lo, hi []byte, each func(k, val []byte) error) (err error) {
	defer guard(&err, "read ledger")
	return scan(v.snap, lo, hi, ticking(ctx, each))
}

// ticking ends a scan when ctx does.
func ticking(ctx context.Context, each func(k, val []byte) error) func(k, val []byte) error {
	n := 0
	return func(k, val []byte) error {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		return each(k, val)
	}
}

// Cells calls each with a customer's cells that overlap [since, until), in order of time: a cell is never split.
// What came late and what was corrected are rows of their own. Nothing bounds their number but the range.
func (v *View) Cells(ctx context.Context, customer string, since, until time.Time, each func(Row) error) (err error) {
	defer guard(&err, "read ledger")
	lo, hi, err := cellRange(since, until)
	if err != nil {
		return err
	}
	return readCells(ctx, v.snap, customer, lo, hi, each)
}

// Usage reports a customer's cells that overlap [since, until). A customer without usage has an empty report.
func (v *View) Usage(ctx context.Context, customer string, since, until time.Time) (Report, error) {
	out := Report{Index: v.index}
	err := v.Cells(ctx, customer, since, until, func(r Row) error {
		if len(out.Rows) == MaxRows {
			return fault.New(fault.TooLarge, ReasonTooMany, "usage of one customer: more than %d rows: ask for a shorter time range", MaxRows)
		}
		out.Rows = append(out.Rows, r)
		out.Total.add(r.Cell.Outcome, r.Sums)
		return nil
	})
	if err != nil {
		return Report{}, fmt.Errorf("report usage: %w", err)
	}
	return out, nil
}

// TotalCells calls each with the zone's cells that overlap [since, until), in order of time, by product, plan, API,
// served region and outcome. What came late and what was corrected are rows of their own.
func (v *View) TotalCells(ctx context.Context, since, until time.Time, each func(start int64, row TotalsRow) error) (err error) {
	defer guard(&err, "read ledger")
	lo, hi, err := cellRange(since, until)
	if err != nil {
		return err
	}
	return readTotals(ctx, v.snap, lo, hi, each)
}

// Totals sums the zone's cells that overlap [since, until) by product, plan,
// API, served region and outcome, in that order.
func (v *View) Totals(ctx context.Context, since, until time.Time) (Totals, error) {
	out := Totals{Index: v.index}
	sums := make(map[TotalsRow]usage.Sums)
	err := v.TotalCells(ctx, since, until, func(_ int64, row TotalsRow) error {
		s := row.Sums
		row.Sums = usage.Sums{}
		sums[row] = sum(sums[row], s)
		out.Total.add(row.Outcome, s)
		return nil
	})
	if err != nil {
		return Totals{}, fmt.Errorf("sum usage: %w", err)
	}
	for row, s := range sums {
		row.Sums = s
		out.Rows = append(out.Rows, row)
	}
	slices.SortFunc(out.Rows, func(a, b TotalsRow) int {
		return cmp.Or(cmp.Compare(a.Product, b.Product), cmp.Compare(a.Plan, b.Plan), cmp.Compare(a.API, b.API),
			cmp.Compare(a.ServedRegion, b.ServedRegion), cmp.Compare(a.Outcome, b.Outcome), cmp.Compare(a.Kind, b.Kind))
	})
	return out, nil
}

func (v *View) epochs(ctx context.Context, lo, hi []byte, each func(epochKey, *epoch) error) error {
	return v.scan(ctx, lo, hi, func(k, val []byte) error {
		key, err := decodeEpochKey(k)
		if err != nil {
			return err
		}
		e, err := decodeEpoch(val)
		if err != nil {
			return err
		}
		return each(key, e)
	})
}

func (v *View) epochsOf(ctx context.Context, edge string, each func(epochKey, *epoch) error) error {
	prefix := append(append([]byte(prefixEpoch), edge...), 0)
	return v.epochs(ctx, prefix, upper(prefix), each)
}

// CompleteThrough is the instant before which every finished row of these edges
// is in this view, gaps excepted. The zero time: one of them has not said yet,
// or there are none.
func (v *View) CompleteThrough(ctx context.Context, edges []string) (time.Time, error) {
	var least int64
	for i, edge := range edges {
		through, err := v.through(ctx, edge)
		if err != nil {
			return time.Time{}, fmt.Errorf("read completeness: %w", err)
		}
		if i == 0 || through < least {
			least = through
		}
	}
	if least == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(least).UTC(), nil
}

// heard is the newest instant that any edge has told of, its blocks applied or
// not: what time it is at least, by somebody else's clock. Unix ms.
func (v *View) heard(ctx context.Context) (ms int64, err error) {
	err = v.epochs(ctx, []byte(prefixEpoch), upper([]byte(prefixEpoch)), func(_ epochKey, e *epoch) error {
		ms = max(ms, e.Through.MS, e.Last.MS)
		return nil
	})
	return ms, err
}

// through follows an edge's epochs in order.
func (v *View) through(ctx context.Context, edge string) (int64, error) {
	var r reach
	err := v.epochsOf(ctx, edge, func(_ epochKey, e *epoch) error {
		r.past(e)
		return nil
	})
	return r.ms, err
}

// Watermark says how far an epoch of an edge has been applied; one never heard
// of stands at 0.
func (v *View) Watermark(edge string, number uint64) (w Watermark, err error) {
	defer guard(&err, "read ledger")
	w = Watermark{Edge: edge, Epoch: number, Index: v.index}
	val, closer, err := v.snap.Get(appendEpochKey(nil, epochKey{edge, number}))
	if errors.Is(err, pebbledb.ErrNotFound) {
		return w, nil
	}
	if err != nil {
		return w, fmt.Errorf("read watermark: %w", err)
	}
	defer closer.Close()
	e, err := decodeEpoch(val)
	if err != nil {
		return w, fmt.Errorf("read watermark: %w", err)
	}
	w.Applied, w.Head, w.Closed, w.Quarantined = e.Applied, e.Head, e.Closed, e.quarantined()
	return w, nil
}

// Edges lists every epoch of every edge, by edge and epoch.
func (v *View) Edges(ctx context.Context) ([]EdgeEpoch, error) {
	var out []EdgeEpoch
	prefix := []byte(prefixEpoch)
	err := v.epochs(ctx, prefix, upper(prefix), func(k epochKey, e *epoch) error {
		n := EdgeEpoch{Edge: k.edge, Region: e.Region, Epoch: k.epoch, Applied: e.Applied, Sealed: e.Sealed, Closed: e.Closed,
			Quarantined: e.quarantined(), Gap: e.Gap}
		if e.Fork != nil {
			n.Forked = e.Fork.Seq
		}
		if c := e.Closing; c != nil {
			n.ClosedBy, n.ClosedWhy, n.ClosedAt, n.Held = c.By, c.Reason, time.UnixMilli(c.AtMS).UTC(), c.Held
		}
		if e.Through.MS > 0 {
			n.Through = time.UnixMilli(e.Through.MS).UTC()
		}
		out = append(out, n)
		return nil
	})
	return out, err
}

// Gaps lists what is known to be lost.
func (v *View) Gaps(ctx context.Context) ([]Gap, error) {
	var out []Gap
	prefix := []byte(prefixEpoch)
	err := v.epochs(ctx, prefix, upper(prefix), func(k epochKey, e *epoch) error {
		if e.Closed && e.Gap > 0 {
			out = append(out, Gap{Edge: k.edge, Epoch: k.epoch, Applied: e.Sealed - e.Gap, Sealed: e.Sealed})
		}
		return nil
	})
	return out, err
}
