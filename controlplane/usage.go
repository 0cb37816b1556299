package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
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
	var names []string
	for kv := range c.catalog.Local().List(model.PrefixNode) {
		if node, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil && node.Kind == identity.Edge && node.Zone == c.self.Zone {
			names = append(names, node.Name)
		}
	}
	epochs, err := view.Edges(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return view.CompleteThrough(ctx, withOpenEnds(names, epochs))
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
func (c *central) Usage(ctx context.Context, customer string, since, until time.Time) (adminapi.UsageReport, error) {
	view, err := c.ledger.View(ctx)
	if err != nil {
		return adminapi.UsageReport{}, err
	}
	defer view.Close()
	report, err := view.Usage(ctx, customer, since, until)
	if err != nil {
		return adminapi.UsageReport{}, err
	}
	out := adminapi.UsageReport{}
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
	for _, r := range report.Rows {
		out.Rows = append(out.Rows, adminapi.UsageRow{Cell: time.Unix(r.Cell.Start, 0).UTC(), Product: r.Cell.Product, API: r.Cell.API, Route: r.Cell.Route,
			Plan: r.Cell.Plan, ServedRegion: r.Cell.ServedRegion, Outcome: r.Cell.Outcome.String(), Requests: r.Sums.Requests, Units: r.Sums.Units})
	}
	return out, nil
}

// Totals implements adminapi.Usage for this zone.
func (c *central) Totals(ctx context.Context, since, until time.Time) (adminapi.ZoneTotals, error) {
	view, err := c.ledger.View(ctx)
	if err != nil {
		return adminapi.ZoneTotals{}, err
	}
	defer view.Close()
	totals, err := view.Totals(ctx, since, until)
	if err != nil {
		return adminapi.ZoneTotals{}, err
	}
	through, err := c.told(ctx, view)
	if err != nil {
		return adminapi.ZoneTotals{}, err
	}
	out := adminapi.ZoneTotals{Zone: c.self.Zone, CompleteThrough: through}
	for _, r := range totals.Rows {
		out.Rows = append(out.Rows, adminapi.TotalsRow{Product: r.Product, Plan: r.Plan, API: r.API, ServedRegion: r.ServedRegion,
			Outcome: r.Outcome.String(), Requests: r.Sums.Requests, Units: r.Sums.Units})
	}
	return out, nil
}

// own is what other zones are told.
func (c *central) own(ctx context.Context, since, until time.Time) (*adminv1.ZoneTotals, error) {
	totals, err := c.Totals(ctx, since, until)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ZoneTotals{Zone: totals.Zone}
	if !totals.CompleteThrough.IsZero() {
		out.CompleteThrough = timestamppb.New(totals.CompleteThrough)
	}
	for _, r := range totals.Rows {
		out.Rows = append(out.Rows, &adminv1.TotalsRow{Product: r.Product, Plan: r.Plan, Api: r.API, ServedRegion: r.ServedRegion, Outcome: r.Outcome, Requests: r.Requests, Units: r.Units})
	}
	return out, nil
}

// AllTotals implements adminapi.Usage: every zone is asked at once, none waits for another.
func (c *central) AllTotals(ctx context.Context, since, until time.Time) ([]adminapi.ZoneTotals, error) {
	out := make([]adminapi.ZoneTotals, len(c.in.Zones))
	var wg sync.WaitGroup
	for i, z := range c.in.Zones {
		wg.Go(func() {
			var err error
			if z.Name == c.self.Zone {
				out[i], err = c.Totals(ctx, since, until)
			} else {
				out[i], err = c.ask(ctx, z.Name, since, until)
			}
			if err != nil {
				out[i] = c.recall(z.Name, err)
				return
			}
			c.mu.Lock()
			c.last[z.Name] = remembered{time.Now(), since, until, out[i]}
			c.mu.Unlock()
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b adminapi.ZoneTotals) int { return strings.Compare(a.Zone, b.Zone) })
	return out, nil
}

// ask tries the zone's nodes in turn within two seconds each.
func (c *central) ask(ctx context.Context, zone string, since, until time.Time) (adminapi.ZoneTotals, error) {
	err := errors.New("it has no control node")
	for _, node := range c.in.InZone(zone) {
		var totals *adminv1.ZoneTotals
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		totals, err = c.carrier.Totals(attempt, node.Name, &peerv1.TotalsRequest{Since: timestamppb.New(since), Until: timestamppb.New(until)})
		cancel()
		if err != nil {
			continue
		}
		out := adminapi.ZoneTotals{Zone: zone}
		if totals.GetCompleteThrough() != nil {
			out.CompleteThrough = totals.CompleteThrough.AsTime()
		}
		for _, r := range totals.GetRows() {
			out.Rows = append(out.Rows, adminapi.TotalsRow{Product: r.Product, Plan: r.Plan, API: r.Api, ServedRegion: r.ServedRegion, Outcome: r.Outcome, Requests: r.Requests, Units: r.Units})
		}
		return out, nil
	}
	return adminapi.ZoneTotals{}, err
}

func (c *central) recall(zone string, cause error) adminapi.ZoneTotals {
	c.mu.Lock()
	last, ok := c.last[zone]
	c.mu.Unlock()
	if !ok {
		return adminapi.ZoneTotals{Zone: zone, Error: fmt.Sprintf("zone %s does not answer and no earlier sums are known here: %v", zone, cause)}
	}
	last.totals.Age = time.Since(last.at)
	last.totals.Error = fmt.Sprintf("zone %s does not answer; these are its sums of %s to %s: %v", zone,
		last.since.UTC().Format(time.RFC3339), last.until.UTC().Format(time.RFC3339), cause)
	return last.totals
}
