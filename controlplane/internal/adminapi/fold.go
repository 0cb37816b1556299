package adminapi

import (
	"cmp"
	"slices"
	"time"

	"bailiwick/controlplane/internal/calendar"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// folding is how rows are summed: by a unit of local time, and by names.
type folding struct {
	unit string // hour, day, month; "": over all the time
	zone *time.Location
	by   map[string]bool
	// spans remembers the beginning of the unit of each cell met: far fewer than rows.
	spans map[int64]time.Time
}

// newFolding reads group_by. Without one it returns nil: cells stay as they are.
func newFolding(groupBy []string, zone *time.Location) (*folding, error) {
	if len(groupBy) == 0 {
		return nil, nil
	}
	f := &folding{zone: zone, by: map[string]bool{}, spans: map[int64]time.Time{}}
	for _, g := range groupBy {
		unit := slices.Contains(calendar.Units(), g)
		switch {
		case f.by[g]:
			return nil, fault.New(fault.Invalid, "GROUP_INVALID", "group by %s: it is named twice", g).At("group_by")
		case unit && f.unit != "":
			return nil, fault.New(fault.Invalid, "GROUP_INVALID", "group by %s and %s: choose one unit of time", f.unit, g).At("group_by")
		case unit:
			f.unit = g
		}
		f.by[g] = true
	}
	return f, nil
}

// usualSpan is how many units of time one looks back who does not say how far.
var usualSpan = map[string]int{calendar.Hour: 24, calendar.Day: 30, calendar.Month: 12}

// since begins a query that does not say when: with a whole unit, so that the first row is no fragment. For a fold
// over no unit it is given.
func (f *folding) since(given, until time.Time) time.Time {
	if f == nil || f.unit == "" {
		return given
	}
	start, _ := calendar.Span(until.Add(-time.Nanosecond), f.unit, f.zone)
	for range usualSpan[f.unit] - 1 {
		start, _ = calendar.Span(start.Add(-time.Nanosecond), f.unit, f.zone)
	}
	return start.UTC()
}

// start is when the unit of time that holds the cell begins; zero if time is not asked for.
func (f *folding) start(cell time.Time) time.Time {
	if f.unit == "" {
		return time.Time{}
	}
	at, ok := f.spans[cell.Unix()]
	if !ok {
		at, _ = calendar.Span(cell, f.unit, f.zone)
		at = at.UTC()
		f.spans[cell.Unix()] = at
	}
	return at
}

func (f *folding) label(start time.Time) string {
	if f.unit == "" || start.IsZero() {
		return ""
	}
	return calendar.Label(start, f.unit, f.zone)
}

// keep blanks a name that is not asked for.
func (f *folding) keep(dimension, name string) string {
	if f.by[dimension] {
		return name
	}
	return ""
}

// row is what the ledger's reader sums by. Product, outcome and who served stay until it is known what is billed, and what was
// corrected until it is said.
func (f *folding) row(r UsageRow) UsageRow {
	return UsageRow{Cell: f.start(r.Cell), Subscription: f.keep("subscription", r.Subscription), Plan: f.keep("plan", r.Plan), Product: r.Product,
		API: f.keep("api", r.API), Route: f.keep("route", r.Route), ServedRegion: r.ServedRegion, Outcome: r.Outcome, Correction: r.Correction}
}

// usage sums rows that are alike but for what only billing asks for.
func (f *folding) usage(rows []UsageRow, bills func(product, outcome, served string) bool) []*adminv1.UsageRow {
	sums := map[UsageRow]*adminv1.UsageRow{}
	for _, r := range rows {
		key := f.row(r)
		key.Product, key.Outcome, key.Correction = f.keep("product", r.Product), f.keep("outcome", r.Outcome), false
		key.ServedRegion = f.keep("served_region", r.ServedRegion)
		out := sums[key]
		if out == nil {
			out = &adminv1.UsageRow{Cell: stamp(key.Cell), Time: f.label(key.Cell), Subscription: key.Subscription, Plan: key.Plan, Product: key.Product,
				Api: key.API, Route: key.Route, ServedRegion: key.ServedRegion, Outcome: key.Outcome, Billable: true, Total: &adminv1.UsageTotal{}}
			sums[key] = out
		}
		out.Billable = out.Billable && bills(r.Product, r.Outcome, r.ServedRegion)
		out.Correction = out.Correction || r.Correction
		out.BytesIn += r.BytesIn
		out.BytesOut += r.BytesOut
		out.Requests += r.Requests
		out.Units += r.Units
		add(out.Total, bills, r.Product, r.Outcome, r.ServedRegion, r.Requests, r.Units)
	}
	out := make([]*adminv1.UsageRow, 0, len(sums))
	for _, r := range sums {
		if !f.by["outcome"] {
			r.Requests, r.Units = r.Total.Requests, r.Total.Units
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *adminv1.UsageRow) int {
		return cmp.Or(a.GetCell().AsTime().Compare(b.GetCell().AsTime()), cmp.Compare(a.Subscription, b.Subscription), cmp.Compare(a.Plan, b.Plan), cmp.Compare(a.Product, b.Product),
			cmp.Compare(a.Api, b.Api), cmp.Compare(a.Route, b.Route), cmp.Compare(a.ServedRegion, b.ServedRegion), cmp.Compare(a.Outcome, b.Outcome))
	})
	return out
}

// totals is usage's like for sums without customers.
func (f *folding) totals(rows []TotalsRow, bills func(product, outcome, served string) bool) []*adminv1.TotalsRow {
	sums := map[TotalsRow]*adminv1.TotalsRow{}
	for _, r := range rows {
		key := TotalsRow{Start: f.start(r.Start), Product: f.keep("product", r.Product), Plan: f.keep("plan", r.Plan), API: f.keep("api", r.API),
			ServedRegion: f.keep("served_region", r.ServedRegion), Outcome: f.keep("outcome", r.Outcome)}
		out := sums[key]
		if out == nil {
			out = &adminv1.TotalsRow{Start: stamp(key.Start), Time: f.label(key.Start), Product: key.Product, Plan: key.Plan, Api: key.API,
				ServedRegion: key.ServedRegion, Outcome: key.Outcome, Total: &adminv1.UsageTotal{}}
			sums[key] = out
		}
		out.Requests += r.Requests
		out.Units += r.Units
		add(out.Total, bills, r.Product, r.Outcome, r.ServedRegion, r.Requests, r.Units)
	}
	out := make([]*adminv1.TotalsRow, 0, len(sums))
	for _, r := range sums {
		if !f.by["outcome"] {
			r.Requests, r.Units = r.Total.Requests, r.Total.Units
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *adminv1.TotalsRow) int {
		return cmp.Or(a.GetStart().AsTime().Compare(b.GetStart().AsTime()), cmp.Compare(a.Product, b.Product), cmp.Compare(a.Plan, b.Plan), cmp.Compare(a.Api, b.Api),
			cmp.Compare(a.ServedRegion, b.ServedRegion), cmp.Compare(a.Outcome, b.Outcome))
	})
	return out
}
