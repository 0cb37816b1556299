package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
)

// terminal is an output that somebody looks at.
type terminal struct{ bytes.Buffer }

func (*terminal) Terminal() bool { return true }

// seededUsage: acme of emea was used on two days of Europe/Berlin with a day between them, by names that a
// spreadsheet would take for formulas.
func seededUsage(t *testing.T) *desk {
	d := seeded(t)
	at := time.Date(2026, 11, 20, 22, 45, 0, 0, time.UTC) // 23:45 in Berlin
	row := func(cell time.Time, api, outcome string, n int64) adminapi.UsageRow {
		return adminapi.UsageRow{Cell: cell, Subscription: "gold", Product: "commerce", API: api, Route: "=cmd|' /C calc'!A0", Plan: "gold",
			ServedRegion: "eu-west", Outcome: outcome, Requests: n, Units: n, BytesIn: 10 * n, BytesOut: 100 * n}
	}
	d.in.Zones["emea"].Usage.Set("acme", adminapi.UsageReport{CompleteThrough: at, Rows: []adminapi.UsageRow{
		row(at, "orders", "success", 7), row(at.Add(15*time.Minute), "orders", "success", 3), row(at.Add(15*time.Minute), "orders", "limited", 2),
		row(at.Add(30*time.Minute), "reports", "client_error", 1), row(at.Add(48*time.Hour), "orders", "success", 20)}})
	return d
}

func TestUsageBy_FoldsIntoLocalDays(t *testing.T) {
	d := seededUsage(t)
	var got struct {
		Total    usageTotal `json:"total"`
		TimeZone string     `json:"time_zone"`
		Rows     []struct {
			Day, API                                  string
			Requests, Billable, Limited, Errors, Unit int64
			BytesOut                                  int64 `json:"bytes_out"`
		}
	}
	args := []string{"usage", "--customer", "acme", "--since", "2026-11-01", "--until", "2026-12-01", "--time-zone", "Europe/Berlin"}
	out := d.must(&got, append(args, "--by", "api,day", "-o", "json")...)
	var lines []string
	for _, r := range got.Rows {
		b, _ := json.Marshal([]any{r.Day, r.API, r.Requests, r.Billable, r.Limited, r.Errors, r.BytesOut})
		lines = append(lines, string(b))
	}
	want := []string{`["2026-11-20","orders",7,7,0,0,700]`, `["2026-11-21","orders",3,3,2,0,500]`, `["2026-11-21","reports",1,0,0,1,100]`, `["2026-11-22","orders",20,20,0,0,2000]`}
	if !slices.Equal(lines, want) || got.TimeZone != "Europe/Berlin" || got.Total.Requests != 31 {
		t.Errorf("by day and api:\n got %s\nwant %s\nin %s", strings.Join(lines, "\n     "), strings.Join(want, "\n     "), out)
	}
	for _, c := range []struct{ zone, day string }{{"Asia/Kathmandu", "2026-11-21"}, {"America/New_York", "2026-11-20"}} {
		out := d.must(nil, "usage", "--customer", "acme", "--since", "2026-11-20", "--until", "2026-11-21", "--time-zone", c.zone, "--by", "day", "-o", "csv")
		if !strings.HasPrefix(strings.Split(out, "\r\n")[1], c.day+",11,10,2,1,") {
			t.Errorf("in %s: got %q, want all of it on %s", c.zone, out, c.day)
		}
	}
	d.must(nil, append(args, "--by", "month,outcome", "-o", "yaml")...)
	d.must(nil, "apply", "-f", d.file("zone.yaml", "kind: Customer\nname: acme\nspec: {zone: emea, time_zone: Asia/Kathmandu, subscriptions: [{plan: gold}]}\n"))
	if out := d.must(nil, "usage", "--customer", "acme", "--since", "2026-11-20", "--until", "2026-11-21", "--by", "day"); !strings.Contains(out, "2026-11-21 ") || !strings.Contains(out, "time zone Asia/Kathmandu") {
		t.Errorf("in the customer's own zone: %s", out)
	}
	if out := d.must(nil, "usage", "--all-zones", "--by", "day,api", "--time-zone", "Europe/Berlin", "-o", "csv"); !strings.HasPrefix(out, "zone,day,api,requests,billable,limited,errors,units\r\nemea,2026-11-20,orders,7,7,0,0,7\r\n") {
		t.Errorf("all zones by day and api: %q", out)
	}
	for _, bad := range [][]string{{"--by", "day,hour"}, {"--by", "day,day"}, {"--by", "colour"}, {"--by", "day", "--time-zone", "Mars/Olympus"}} {
		if code, _, errs := d.run("", append(args[:3:3], bad...)...); code != exitFailure {
			t.Errorf("%v: exit %d, want 1: %s", bad, code, errs)
		}
	}
}

func TestUsageCSV_IsSafeInSpreadsheets(t *testing.T) {
	d := seededUsage(t)
	args := []string{"usage", "--customer", "acme", "--since", "2026-11-01", "--until", "2026-12-01", "-o", "csv"}
	for _, by := range []string{"", "route"} {
		if by != "" {
			args = append(args, "--by", by)
		}
		out := d.must(nil, args...)
		records, err := csv.NewReader(strings.NewReader(out)).ReadAll()
		if err != nil || len(records) < 2 || !strings.Contains(out, "\r\n") {
			t.Fatalf("by %q: %v in %q", by, err, out)
		}
		for _, r := range records[1:] {
			for _, cell := range r {
				if strings.ContainsAny(cell[:min(1, len(cell))], "=+@") {
					t.Errorf("by %q: a cell begins a formula: %q", by, cell)
				}
			}
		}
		if !strings.Contains(out, "'=cmd|' /C calc'!A0") {
			t.Errorf("by %q: the name is not there: %q", by, out)
		}
	}
	if code, _, _ := d.run("", "get", "regions", "-o", "csv"); code != exitUsage {
		t.Errorf("get -o csv: exit %d, want 2", code)
	}
}

func TestUsageBy_DrawsTrendsOnATerminalOnly(t *testing.T) {
	d := seededUsage(t)
	args := []string{"usage", "--customer", "acme", "--since", "2026-11-01", "--until", "2026-12-01", "--time-zone", "Europe/Berlin", "--by", "day,api"}
	if plain := d.must(nil, args...); strings.ContainsAny(plain, "▁█\x1b") {
		t.Errorf("not on a terminal: got %s", plain)
	}
	var screen terminal
	var errs bytes.Buffer
	code := run(t.Context(), args, world{func(k string) string { return d.env[k] }, strings.NewReader(""), &screen, &errs})
	if out := screen.String(); code != exitOK || !strings.Contains(out, "|▃▂█|") || !strings.Contains(out, "each day from 2026-11-20 to 2026-11-22") {
		t.Errorf("on a terminal: exit %d, got %s %s", code, out, errs.String())
	}
}

func TestSparkline(t *testing.T) {
	for want, values := range map[string][]int64{"": nil, "  ": {0, 0}, "▁█": {1, 1000}, "█ █": {5, 0, 5}, "▅█": {1 << 61, 1 << 62}} {
		if got := sparkline(values); got != want {
			t.Errorf("sparkline(%v) = %q, want %q", values, got, want)
		}
	}
}
