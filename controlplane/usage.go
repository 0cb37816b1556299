package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// central reads usage: a customer's from this zone's ledger, sums from every zone's. The last sums of other
// zones are kept in memory, so that a zone that is away shows an old figure with its age and not nothing.
type central struct {
	*Node

	// mu covers last; never held while another zone is asked.
	mu   sync.Mutex
	last map[string]remembered
}

type remembered struct {
	at           time.Time
	since, until time.Time
	totals       adminapi.ZoneTotals
}

func newCentral(n *Node) *central { return &central{Node: n, last: map[string]remembered{}} }

// told is the instant up to which the view is complete: all registered edges have told everything before it,
// and no edge that was removed is known to hold blocks that never came. Those may yet come, should it join
// again; until then, or until its epoch is closed, saying more would hide the loss.
func (c *central) told(ctx context.Context, view *ledger.View) (time.Time, error) {
	edges, err := c.owing(ctx, view)
	if err != nil {
		return time.Time{}, err
	}
	return view.CompleteThrough(ctx, edges)
}

// owing names the edges without whose word nothing is complete.
func (c *central) owing(ctx context.Context, view *ledger.View) ([]string, error) {
	var names []string
	for kv := range c.catalog.Local().List(model.PrefixNode) {
		if node, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil && node.Kind == identity.Edge && node.Zone == c.self.Zone {
			names = append(names, node.Name)
		}
	}
	epochs, err := view.Edges(ctx)
	if err != nil {
		return nil, err
	}
	return withOpenEnds(names, epochs), nil
}

// withOpenEnds adds to edges those of which the ledger knows blocks that it does not have.
func withOpenEnds(edges []string, epochs []ledger.EdgeEpoch) []string {
	for _, e := range epochs {
		if e.Sealed > e.Applied && !e.Closed && !slices.Contains(edges, e.Edge) {
			edges = append(edges, e.Edge)
		}
	}
	return edges
}

// Usage implements adminapi.Usage.
func (c *central) Usage(ctx context.Context, q adminapi.UsageQuery) (adminapi.UsageReport, error) {
	out := adminapi.UsageReport{}
	view, err := c.ledger.View(ctx)
	if err != nil {
		return out, err
	}
	defer view.Close()
	sums := map[adminapi.UsageRow]int{} // where in out.Rows
	err = view.Cells(ctx, q.Customer, q.Since, q.Until, func(r ledger.Row) error {
		row := adminapi.UsageRow{Cell: time.Unix(r.Cell.Start, 0).UTC(), Subscription: r.Cell.Subscription, Product: r.Cell.Product, API: r.Cell.API,
			Route: r.Cell.Route, Plan: r.Cell.Plan, ServedRegion: r.Cell.ServedRegion, Outcome: r.Cell.Outcome.String(), Correction: r.Kind != ledger.Counted}
		if r.Kind == ledger.Late {
			out.Late = append(out.Late, r)
		}
		i := len(out.Rows)
		if q.Fold != nil {
			row = q.Fold(row)
			at, known := sums[row]
			if known {
				i = at
			} else {
				sums[row] = i
			}
		}
		if i == len(out.Rows) {
			if i == ledger.MaxRows {
				return fault.New(fault.TooLarge, ledger.ReasonTooMany, "usage of one customer: more than %d rows: ask for a shorter time range, or group them", ledger.MaxRows)
			}
			out.Rows = append(out.Rows, row)
		}
		sum := &out.Rows[i]
		sum.Requests += r.Sums.Requests
		sum.Units += r.Sums.Units
		sum.BytesIn += r.Sums.BytesIn
		sum.BytesOut += r.Sums.BytesOut
		return nil
	})
	if err != nil {
		return adminapi.UsageReport{}, fmt.Errorf("report usage: %w", err)
	}
	if out.Corrections, err = view.Corrections(ctx, q.Customer); err != nil {
		return out, err
	}
	if out.CompleteThrough, err = c.told(ctx, view); err != nil {
		return out, err
	}
	gaps, err := view.Gaps(ctx)
	if err != nil {
		return out, err
	}
	for _, g := range gaps {
		out.Gaps = append(out.Gaps, adminapi.Gap{Edge: g.Edge, Epoch: g.Epoch, AppliedSeq: g.Applied, SealedSeq: g.Sealed})
	}
	return out, nil
}

// Totals implements adminapi.Usage for this zone.
func (c *central) Totals(ctx context.Context, q adminapi.TotalsQuery) (adminapi.ZoneTotals, error) {
	view, err := c.ledger.View(ctx)
	if err != nil {
		return adminapi.ZoneTotals{}, err
	}
	defer view.Close()
	starts := map[int64]time.Time{} // of the unit that holds a cell
	rows := map[adminapi.TotalsRow]adminapi.TotalsRow{}
	err = view.TotalCells(ctx, q.Since, q.Until, func(cell int64, r ledger.TotalsRow) error {
		key := adminapi.TotalsRow{Product: r.Product, Plan: r.Plan, API: r.API, ServedRegion: r.ServedRegion, Outcome: r.Outcome.String(), Correction: r.Kind != ledger.Counted}
		if q.Unit != "" {
			start, ok := starts[cell]
			if !ok {
				start, _ = calendar.Span(time.Unix(cell, 0), q.Unit, q.Zone)
				start = start.UTC()
				starts[cell] = start
			}
			key.Start = start
		}
		sum, ok := rows[key]
		if !ok {
			if len(rows) == ledger.MaxRows {
				return fault.New(fault.TooLarge, ledger.ReasonTooMany, "usage of zone %s: more than %d rows: ask for a shorter time range", c.self.Zone, ledger.MaxRows)
			}
			sum = key
		}
		sum.Requests, sum.Units = sum.Requests+r.Sums.Requests, sum.Units+r.Sums.Units
		rows[key] = sum
		return nil
	})
	if err != nil {
		return adminapi.ZoneTotals{}, fmt.Errorf("sum usage: %w", err)
	}
	through, err := c.told(ctx, view)
	if err != nil {
		return adminapi.ZoneTotals{}, err
	}
	out := adminapi.ZoneTotals{Zone: c.self.Zone, CompleteThrough: through, Rows: slices.Collect(maps.Values(rows))}
	slices.SortFunc(out.Rows, func(a, b adminapi.TotalsRow) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Product, b.Product), cmp.Compare(a.Plan, b.Plan), cmp.Compare(a.API, b.API),
			cmp.Compare(a.ServedRegion, b.ServedRegion), cmp.Compare(a.Outcome, b.Outcome))
	})
	return out, nil
}

// own is what other zones are told.
func (c *central) own(ctx context.Context, req *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error) {
	zone, err := calendar.Load(req.GetTimeZone())
	if err != nil {
		return nil, err
	}
	if u := req.GetUnit(); u != "" && !slices.Contains(calendar.Units(), u) {
		return nil, fault.New(fault.Invalid, "UNIT_UNKNOWN", "unit %q is none of %v", u, calendar.Units()).At("unit")
	}
	totals, err := c.Totals(ctx, adminapi.TotalsQuery{Since: req.GetSince().AsTime(), Until: req.GetUntil().AsTime(), Unit: req.GetUnit(), Zone: zone})
	if err != nil {
		return nil, err
	}
	return adminapi.TotalsProto(totals), nil
}

// AllTotals implements adminapi.Usage: every zone is asked at once, none waits for another.
func (c *central) AllTotals(ctx context.Context, q adminapi.TotalsQuery) ([]adminapi.ZoneTotals, error) {
	out := make([]adminapi.ZoneTotals, len(c.in.Zones))
	var wg sync.WaitGroup
	for i, z := range c.in.Zones {
		wg.Go(func() {
			key := z.Name + "/" + q.Unit // sums over all the time are no stand-in for sums by day
			var err error
			if z.Name == c.self.Zone {
				out[i], err = c.Totals(ctx, q)
			} else {
				out[i], err = c.ask(ctx, z.Name, q)
			}
			if err != nil {
				out[i] = c.recall(z.Name, key, err)
				return
			}
			c.mu.Lock()
			c.last[key] = remembered{time.Now(), q.Since, q.Until, out[i]}
			c.mu.Unlock()
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b adminapi.ZoneTotals) int { return strings.Compare(a.Zone, b.Zone) })
	return out, nil
}

// ask tries the zone's nodes in turn within two seconds each.
func (c *central) ask(ctx context.Context, zone string, q adminapi.TotalsQuery) (adminapi.ZoneTotals, error) {
	req := &peerv1.TotalsRequest{Since: timestamppb.New(q.Since), Until: timestamppb.New(q.Until), Unit: q.Unit, TimeZone: q.Zone.String()}
	err := errors.New("it has no control node")
	for _, node := range c.zoneNodes(zone) {
		var totals *adminv1.ZoneTotals
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		totals, err = c.carrier.Totals(attempt, node.Name, req)
		cancel()
		if err == nil {
			out := adminapi.TotalsFrom(totals)
			out.Zone = zone // whatever it calls itself
			return out, nil
		}
	}
	return adminapi.ZoneTotals{}, err
}

func (c *central) recall(zone, key string, cause error) adminapi.ZoneTotals {
	c.mu.Lock()
	last, ok := c.last[key]
	c.mu.Unlock()
	if !ok {
		return adminapi.ZoneTotals{Zone: zone, Error: fmt.Sprintf("zone %s does not answer and no earlier sums are known here: %v", zone, cause)}
	}
	last.totals.Age = time.Since(last.at)
	last.totals.Error = fmt.Sprintf("zone %s does not answer; these are its sums of %s to %s: %v", zone,
		last.since.UTC().Format(time.RFC3339), last.until.UTC().Format(time.RFC3339), cause)
	return last.totals
}
