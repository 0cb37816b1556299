package attribution_test

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/attribution"
	"bailiwick/shared/usage"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func cell(at time.Time, change func(*usage.Cell)) usage.Cell {
	c := usage.Cell{Start: usage.CellStart(at.UnixMilli()), Customer: "acme", Plan: "gold", API: "orders", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}
	if change != nil {
		change(&c)
	}
	return c
}

// 72 hours at the highest rate, shipped as one block by an edge that was cut off all the while, is honest.
func TestPlausible_TakesAnOutageAtFullRate(t *testing.T) {
	cells := map[usage.Cell]usage.Sums{}
	for at := now.Add(-72 * time.Hour); at.Before(now); at = at.Add(15 * time.Minute) {
		cells[cell(at, nil)] = usage.Sums{Requests: attribution.MaxRate * usage.CellSeconds, Units: 1}
	}
	if f := attribution.Plausible(cells, now.AddDate(0, -1, 0), uint64(now.Add(-72*time.Hour).UnixMilli()), 0); f.Reason != "" {
		t.Errorf("got %+v, want it taken", f)
	}
}

func TestPlausible_Refuses(t *testing.T) {
	joined, epoch := now.AddDate(0, 0, -2), uint64(now.Add(-time.Hour).UnixMilli())
	full := int64(attribution.MaxRate * usage.CellSeconds)
	month := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	of := func(period time.Time) usage.Cell {
		return cell(now, func(c *usage.Cell) { c.Period = period.Unix() })
	}
	for name, c := range map[string]struct {
		cells  map[usage.Cell]usage.Sums
		joined time.Time
		epoch  uint64
		reason string
	}{
		"honest":                    {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: 9, Units: 9}}, joined, epoch, ""},
		"too many in one row":       {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: full + 1}}, joined, epoch, attribution.Implausible},
		"too many in several":       {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: full}, cell(now, func(c *usage.Cell) { c.Route = "b" }): {Requests: 1}}, joined, epoch, attribution.Implausible},
		"as many in two cells":      {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: full}, cell(now.Add(-time.Hour), nil): {Requests: full}}, joined, epoch, ""},
		"a month of this year":      {map[usage.Cell]usage.Sums{of(month): {Requests: 1}, of(month.AddDate(-1, 0, 0)): {Requests: 1}, of(time.Unix(usage.PeriodPrepaid, 0)): {Requests: 1}}, joined, epoch, ""},
		"a period an hour early":    {map[usage.Cell]usage.Sums{of(now.Add(time.Hour)): {Requests: 1}}, joined, epoch, ""},
		"a period of no calendar":   {map[usage.Cell]usage.Sums{of(month.Add(time.Second)): {Requests: 1}}, joined, epoch, attribution.Implausible},
		"a period of next month":    {map[usage.Cell]usage.Sums{of(month.AddDate(0, 1, 0)): {Requests: 1}}, joined, epoch, attribution.Implausible},
		"a period of long ago":      {map[usage.Cell]usage.Sums{of(month.AddDate(-2, 0, 0)): {Requests: 1}}, joined, epoch, attribution.Implausible},
		"absurd units":              {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: 1, Units: 1<<50 + 1}}, joined, epoch, attribution.Implausible},
		"absurd bytes":              {map[usage.Cell]usage.Sums{cell(now, nil): {Requests: 1, BytesOut: 1 << 62}}, joined, epoch, attribution.Implausible},
		"long before the edge":      {map[usage.Cell]usage.Sums{cell(now.AddDate(0, 0, -40), nil): {Requests: 1}}, joined, epoch, attribution.Implausible},
		"spool of before it joined": {map[usage.Cell]usage.Sums{cell(now.AddDate(0, 0, -30), nil): {Requests: 1}}, joined, uint64(now.AddDate(0, 0, -30).UnixMilli()), ""},
		"an epoch it made up":       {map[usage.Cell]usage.Sums{cell(now.AddDate(-3, 0, 0), nil): {Requests: 1}}, joined, 1, attribution.Implausible},
		"no word of when it joined": {map[usage.Cell]usage.Sums{cell(now.AddDate(0, 0, -40), nil): {Requests: 1}}, time.Time{}, epoch, attribution.Implausible},
	} {
		if f := attribution.Plausible(c.cells, c.joined, c.epoch, 0); f.Reason != c.reason || c.reason != "" && f.Detail == "" {
			t.Errorf("%s: got %+v, want %q", name, f, c.reason)
		}
	}
}

type facts map[string]bool

func (f facts) Customer(name string) bool { return f["customer/"+name] }
func (f facts) Region(name string) bool   { return f["region/"+name] }
func (f facts) API(name string) bool      { return f["api/"+name] }

func TestEntitled(t *testing.T) {
	f := facts{"customer/acme": true, "region/eu-central": true, "api/orders": true}
	for name, c := range map[string]struct {
		change func(*usage.Cell)
		reason string
	}{
		"its own region":           {nil, ""},
		"nobody served":            {func(c *usage.Cell) { c.ServedRegion = "" }, ""},
		"a region it may ask":      {func(c *usage.Cell) { c.ServedRegion = "eu-central" }, ""},
		"a region it may not ask":  {func(c *usage.Cell) { c.ServedRegion = "us-east" }, attribution.ForeignRegion},
		"another zone's customer":  {func(c *usage.Cell) { c.Customer = "umbrella" }, attribution.ForeignCustomer},
		"an API that is not there": {func(c *usage.Cell) { c.API = "secrets" }, attribution.ForeignAPI},
	} {
		cells := map[usage.Cell]usage.Sums{cell(now, nil): {Requests: 1}, cell(now.Add(-time.Hour), c.change): {Requests: 1}}
		if got := attribution.Entitled(cells, "eu-west", f); got.Reason != c.reason || got.Unknown != (c.reason != "") {
			t.Errorf("%s: got %+v, want %q", name, got, c.reason)
		}
	}
}
