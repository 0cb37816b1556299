package detail

import (
	"cmp"
	"context"
	"slices"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Query says which rows: a customer's that ended in [Since, Until). Blank fields match all.
type Query struct {
	Customer     string
	Since, Until time.Time
	API, Route   string
	Outcome      usage.Outcome // 0: any
	RequestID    [16]byte      // as usage.ShortID has it; zero: any
}

func (q *Query) matches(r *usage.Row) bool {
	return (q.API == "" || q.API == r.API) && (q.Route == "" || q.Route == r.Route) && (q.Outcome == 0 || q.Outcome == r.Outcome) &&
		(q.RequestID == [16]byte{} || q.RequestID == usage.ShortID(r.RequestID))
}

// Cell is what rows are compared with the ledger by.
type Cell struct {
	Start                          int64 // unix s
	API, Route, Plan, ServedRegion string
	Outcome                        usage.Outcome
}

// Share is what one piece adds to a cell. An edge that lost an answer may have sent the piece to another node
// as well: whoever adds up over nodes counts each (Edge, Epoch, Number) once.
type Share struct {
	Edge               string
	Epoch, Number, Seq uint64
	Requests, Units    int64
}

// Sum is a cell and the pieces behind it.
type Sum struct {
	Cell   Cell
	Shares []Share
}

// Found is what this node has.
type Found struct {
	Rows      []Row // the earliest, at most as many as asked for
	Sums      []Sum // over all rows, whatever the limit
	Facts     Facts
	Truncated bool
}

// Facts say what a node cannot show.
type Facts struct {
	Lost      []Lost    // given up by edges for want of space, of all their customers
	KeptSince time.Time // rows that ended before are gone, by age or by the budget
	Damaged   []string  // files that do not check out
}

// maxShares bounds an answer in memory; reached, the time range must be shorter.
const maxShares = 500_000

// Trace finds rows and sums them up.
func (s *Store) Trace(ctx context.Context, q Query, limit int) (Found, error) {
	type key struct {
		cell               Cell
		edge               string
		epoch, number, seq uint64
	}
	sums := map[key]usage.Sums{}
	var out Found
	byEnd := func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.EndUnixMS, b.EndUnixMS), cmp.Compare(a.Edge, b.Edge), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number))
	}
	cut := func() {
		slices.SortStableFunc(out.Rows, byEnd)
		if len(out.Rows) > limit {
			out.Rows, out.Truncated = out.Rows[:limit], true
		}
	}
	facts, err := s.Each(ctx, q, func(r *Row) error {
		k := key{Cell{usage.CellStart(r.EndUnixMS), r.API, r.Route, r.Plan, r.ServedRegion, r.Outcome}, r.Edge, r.Epoch, r.Number, r.Seq}
		sums[k] = sums[k].Add(r.Sums())
		if len(sums) > maxShares {
			return fault.New(fault.TooLarge, "TRACE_TOO_LARGE", "more than %d pieces of detail lie in the range: ask for a shorter one, or for one API, route or outcome", maxShares)
		}
		out.Rows = append(out.Rows, *r)
		if len(out.Rows) >= 2*limit+1024 {
			cut()
		}
		return nil
	})
	if err != nil {
		return Found{}, err
	}
	cut()
	out.Facts = facts
	cells := map[Cell][]Share{}
	for k, v := range sums {
		cells[k.cell] = append(cells[k.cell], Share{k.edge, k.epoch, k.number, k.seq, v.Requests, v.Units})
	}
	for c, shares := range cells {
		slices.SortFunc(shares, func(a, b Share) int {
			return cmp.Or(cmp.Compare(a.Edge, b.Edge), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number))
		})
		out.Sums = append(out.Sums, Sum{c, shares})
	}
	slices.SortFunc(out.Sums, func(a, b Sum) int { return a.Cell.Compare(b.Cell) })
	return out, nil
}

// Compare orders cells by time, then by their names.
func (c Cell) Compare(o Cell) int {
	return cmp.Or(cmp.Compare(c.Start, o.Start), cmp.Compare(c.API, o.API), cmp.Compare(c.Route, o.Route), cmp.Compare(c.Plan, o.Plan),
		cmp.Compare(c.ServedRegion, o.ServedRegion), cmp.Compare(c.Outcome, o.Outcome))
}

// Each visits the rows asked for, files first, in no order that is promised. The row is the caller's.
func (s *Store) Each(ctx context.Context, q Query, each func(*Row) error) (Facts, error) {
	lo, hi := q.Since.UnixMilli(), q.Until.UnixMilli()
	s.mu.Lock()
	files, facts := s.cat.Files, Facts{KeptSince: s.keptSince(&s.cat)}
	lost := slices.Clone(s.cat.Lost)
	var waiting [][]Piece
	for _, t := range s.tables {
		waiting = append(waiting, t.pieces)
		lost = append(lost, t.lost...)
	}
	s.mu.Unlock()
	for _, l := range addLost(nil, lost...) {
		if l.Until.UnixMilli() >= lo && l.Since.UnixMilli() < hi {
			facts.Lost = append(facts.Lost, l)
		}
	}
	for _, f := range files {
		if f.MaxMS < lo || f.MinMS >= hi {
			continue
		}
		visit := func(r *record) error {
			row := r.row()
			if !q.matches(&row.Row) {
				return nil
			}
			return each(&row)
		}
		err := s.scan(ctx, f, q.Customer, lo, hi, visit)
		for missing(err) { // replaced or removed since
			again, ok := s.successor(f)
			if !ok {
				err = nil
				break
			}
			f = again
			err = s.scan(ctx, f, q.Customer, lo, hi, visit)
		}
		if s.damaged(f) {
			facts.Damaged = append(facts.Damaged, f.Name)
			continue
		}
		if err != nil {
			return facts, err
		}
	}
	for _, pieces := range waiting {
		for i := range pieces {
			if p := &pieces[i]; p.rows > 0 && p.max >= lo && p.min < hi && slices.Contains(p.Customers, q.Customer) {
				if err := s.eachOf(ctx, p, &q, lo, hi, each); err != nil {
					return facts, err
				}
			}
		}
	}
	return facts, nil
}

func (s *Store) eachOf(ctx context.Context, p *Piece, q *Query, lo, hi int64, each func(*Row) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rows, err := usage.DecodeDetail(p.Payload)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.Customer != q.Customer || r.EndUnixMS < lo || r.EndUnixMS >= hi || !q.matches(&r) {
			continue
		}
		if err := each(&Row{Row: r, Edge: p.Edge, Region: p.Region, Epoch: p.Epoch, Number: p.Number, Seq: p.Seq}); err != nil {
			return err
		}
	}
	return nil
}

// successor is what took a file's place; false: it is gone.
func (s *Store) successor(f info) (info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.cat.Files {
		if o.Number == f.Number {
			return o, o.Name != f.Name
		}
	}
	return info{}, false
}

func (s *Store) damaged(f info) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sound[f.Name] != nil
}
