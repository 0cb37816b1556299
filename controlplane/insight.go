package controlplane

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/forecast"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// thinEvery is how often the ledger's leader makes old latencies coarse.
const thinEvery = time.Hour

// thinLatency does so while this node leads the ledger.
func (n *Node) thinLatency(ctx context.Context) error {
	return n.replica.RunLeader(ctx, func(ctx context.Context) {
		tick := time.NewTicker(thinEvery)
		defer tick.Stop()
		for {
			if count, err := n.ledger.ThinLatency(ctx, time.Now()); err != nil && ctx.Err() == nil {
				n.log.Warn("thin old latencies", "error", err)
			} else if count > 0 {
				n.log.Info("old latencies folded into hours", "minutes", count)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// Latency implements adminapi.Insight.
func (c *central) Latency(ctx context.Context, since, until time.Time, api, route string) (adminapi.LatencyReport, error) {
	out := adminapi.LatencyReport{}
	view, err := c.ledger.View(ctx)
	if err != nil {
		return out, err
	}
	defer view.Close()
	found, err := view.Latency(ctx, since, until, api, route)
	if err != nil {
		return out, err
	}
	for _, r := range found {
		out.Rows = append(out.Rows, adminapi.LatencyRow{API: r.API, Route: r.Route, ServedRegion: r.ServedRegion, Count: r.Sketch.Count(),
			Quantile: func(permille int) time.Duration { return time.Duration(r.Sketch.Quantile(permille)) * time.Microsecond }})
	}
	out.CompleteThrough, err = c.told(ctx, view)
	return out, err
}

// Forecast implements adminapi.Insight.
func (c *central) Forecast(ctx context.Context, customer string) ([]adminapi.Forecast, error) {
	view, err := c.ledger.View(ctx)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	out, err := forecasts(ctx, c.store.Local(), c.catalog.Local(), view, time.Now(), customer)
	if ctx.Err() != nil {
		return nil, fault.New(fault.TooLarge, "FORECAST_TOO_LARGE", "zone %s used more in seven days than can be read in time: ask for one customer", c.self.Zone)
	}
	if err != nil {
		return nil, fmt.Errorf("forecast quotas: %w", err)
	}
	return out, nil
}

// forecasts are in the order of their end, those without one last.
func forecasts(ctx context.Context, store, catalog group.Snapshot, view *ledger.View, now time.Time, customer string) ([]adminapi.Forecast, error) {
	var out []adminapi.Forecast
	var days map[string][]forecast.Day // of the customer in hand, by subscription
	of := ""
	err := standings(ctx, store, catalog, view, now, customer, func(s standing) (err error) {
		starts := forecast.Window(now, s.zone)
		if s.customer.Name != of {
			of = s.customer.Name
			if days, err = lastDays(ctx, view, of, starts, now); err != nil {
				return err
			}
		}
		used := days[s.subscription.Name]
		if used == nil {
			used = make([]forecast.Day, len(starts))
		}
		q := forecast.Quota{Limit: s.limit, Used: s.used, Slides: s.slides}
		if s.period.End != 0 {
			q.End = time.Unix(s.period.End, 0)
		}
		f := forecast.Of(now, starts, used, q)
		out = append(out, adminapi.Forecast{Customer: of, Subscription: s.subscription.Name, Plan: s.subscription.Plan, Limit: s.limit, Used: s.used,
			UnitsPerDay: f.UnitsPerDay, ExhaustedAt: f.ExhaustedAt, PeriodEnd: q.End, Limited: f.Limited, DaysLimited: f.DaysLimits, Requests: f.Requests})
		return nil
	})
	slices.SortStableFunc(out, func(a, b adminapi.Forecast) int {
		if a.ExhaustedAt.IsZero() != b.ExhaustedAt.IsZero() {
			if a.ExhaustedAt.IsZero() {
				return 1
			}
			return -1
		}
		return cmp.Or(a.ExhaustedAt.Compare(b.ExhaustedAt), cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Subscription, b.Subscription))
	})
	return out, err
}

// lastDays sums a customer's cells by subscription and local day.
func lastDays(ctx context.Context, view *ledger.View, customer string, starts []time.Time, now time.Time) (map[string][]forecast.Day, error) {
	out := map[string][]forecast.Day{}
	err := view.Cells(ctx, customer, starts[0], now, func(r ledger.Row) error {
		i, exact := slices.BinarySearchFunc(starts, r.Cell.Start, func(t time.Time, start int64) int { return cmp.Compare(t.Unix(), start) })
		if !exact {
			i--
		}
		if i < 0 {
			return nil
		}
		if out[r.Cell.Subscription] == nil {
			out[r.Cell.Subscription] = make([]forecast.Day, len(starts))
		}
		d := &out[r.Cell.Subscription][i]
		switch r.Cell.Outcome {
		case usage.OutcomeLimited:
			d.Limited += r.Sums.Requests
		case usage.OutcomeRefused:
		default:
			d.Units += r.Sums.Units
			d.Requests += r.Sums.Requests
		}
		return nil
	})
	return out, err
}

// slides is the window of a quota that slides; 0 of every other.
func slides(q *model.Quota) time.Duration {
	if q.Period != "rolling" {
		return 0
	}
	return q.Window
}
