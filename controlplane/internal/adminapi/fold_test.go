package adminapi_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/calendar"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

// Whatever rows are folded by: nothing is lost, nothing comes twice, and no two rows are of the same group.
func TestQueryUsage_FoldsKeepEverySum(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	from := time.Date(2026, 3, 27, 0, 0, 0, 0, time.UTC) // over a change of clocks
	outcomes := []string{"success", "client_error", "upstream_error", "aborted", "limited", "refused", "unserved"}
	zones := []string{"UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Chatham"}
	names := []string{"subscription", "plan", "product", "api", "route", "served_region", "outcome"}
	rapid.Check(t, func(t *rapid.T) {
		var rows []adminapi.UsageRow
		seen := map[adminapi.UsageRow]bool{}
		var raw, in, out int64
		for range rapid.IntRange(1, 60).Draw(t, "rows") {
			pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
			r := adminapi.UsageRow{Cell: from.Add(time.Duration(rapid.IntRange(0, 96*5).Draw(t, "cell")) * 15 * time.Minute), Subscription: pick("sub", "a", "b"), Plan: pick("plan", "gold", "free"),
				Product: pick("product", "commerce", "insight"), API: pick("api", "orders", "reports"), Route: pick("route", "all", "one"), ServedRegion: pick("region", "", "eu-west"), Outcome: pick("outcome", outcomes...)}
			if seen[r] {
				continue
			}
			seen[r] = true
			r.Requests, r.BytesIn, r.BytesOut = rapid.Int64Range(0, 1000).Draw(t, "n"), 3, 5
			r.Units = 2 * r.Requests
			raw, in, out = raw+r.Requests, in+3, out+5
			rows = append(rows, r)
		}
		z.Usage.Set("acme", adminapi.UsageReport{Rows: rows})
		by := slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(rapid.SampledFrom(names), 0, 7).Draw(t, "by"))))
		unit := rapid.SampledFrom([]string{"", "hour", "day", "month"}).Draw(t, "unit")
		if unit != "" {
			by = append(by, unit)
		}
		if len(by) == 0 {
			by = []string{"api"}
		}
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		resp, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "acme", Since: timestamppb.New(from), Until: timestamppb.New(from.Add(6 * 24 * time.Hour)), GroupBy: by, TimeZone: zone})
		if err != nil {
			t.Fatal(err)
		}
		loc, _ := calendar.Load(zone)
		var sum adminv1.UsageTotal
		var folded, gotIn, gotOut int64
		groups := map[[8]string]bool{}
		for _, r := range resp.Rows {
			key := [8]string{r.Time, r.Subscription, r.Plan, r.Product, r.Api, r.Route, r.ServedRegion, r.Outcome}
			if groups[key] {
				t.Errorf("group %v comes twice", key)
			}
			groups[key] = true
			if unit != "" && calendar.Label(r.Cell.AsTime(), unit, loc) != r.Time {
				t.Errorf("row of %s begins at %v, which is in %s", r.Time, r.Cell.AsTime(), calendar.Label(r.Cell.AsTime(), unit, loc))
			}
			sum.Requests, sum.Billable, sum.Limited = sum.Requests+r.Total.Requests, sum.Billable+r.Total.Billable, sum.Limited+r.Total.Limited
			sum.Errors, sum.Units = sum.Errors+r.Total.Errors, sum.Units+r.Total.Units
			folded, gotIn, gotOut = folded+r.Requests, gotIn+r.BytesIn, gotOut+r.BytesOut
		}
		want := resp.Total
		if sum.Requests != want.Requests || sum.Billable != want.Billable || sum.Limited != want.Limited || sum.Errors != want.Errors || sum.Units != want.Units {
			t.Errorf("by %v: the rows' totals add up to %v, the total is %v", by, &sum, want)
		}
		if slices.Contains(by, "outcome") {
			want.Requests = raw
		}
		if folded != want.Requests || gotIn != in || gotOut != out {
			t.Errorf("by %v: %d requests, %d and %d bytes in rows, want %d, %d and %d", by, folded, gotIn, gotOut, want.Requests, in, out)
		}
	})
}

// Without a beginning the first row is a whole unit, wherever its day begins.
func TestQueryUsage_BeginsWithAWholeUnit(t *testing.T) {
	in := seeded(t, time.Minute) // what is asked is not how long it takes
	z := in.Zones["emea"]
	usage := adminv1connect.NewUsageServiceClient(apitest.Client(apitest.Viewer), z.Server.URL, faults)
	until := time.Date(2026, 11, 25, 12, 7, 0, 0, time.UTC)
	var rows []adminapi.UsageRow
	step := 15 * time.Minute
	for cell := time.Date(2025, 11, 28, 0, 0, 0, 0, time.UTC); cell.Before(until); cell = cell.Add(step) {
		rows = append(rows, adminapi.UsageRow{Cell: cell, Outcome: "success", Requests: 1})
		// Whole are what is before the first month, that month, and the last days; a day between has one row.
		if step = 24 * time.Hour; cell.Before(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)) || cell.After(until.Add(-32*24*time.Hour)) {
			step = 15 * time.Minute
		}
	}
	z.Usage.Set("acme", adminapi.UsageReport{Rows: rows})
	for unit, want := range map[string]struct {
		rows     int
		first    string
		requests int64
	}{"hour": {24, "2026-11-24T18:00+05:45", 4}, "day": {30, "2026-10-27", 96}, "month": {12, "2025-12", 31 * 96}} {
		resp, err := usage.QueryUsage(t.Context(), &adminv1.QueryUsageRequest{Customer: "acme", Until: timestamppb.New(until), GroupBy: []string{unit}, TimeZone: "Asia/Kathmandu"})
		if err != nil {
			t.Fatal(err)
		}
		if first := resp.Rows[0]; len(resp.Rows) != want.rows || first.Time != want.first || first.Requests != want.requests {
			t.Errorf("by %s: %d rows, the first %s with %d requests, want %d, %s and %d", unit, len(resp.Rows), first.Time, first.Requests, want.rows, want.first, want.requests)
		}
	}
}
