package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/shared/usage"
)

func TestUsageLatency(t *testing.T) {
	d := seeded(t)
	s := &usage.Sketch{}
	for ms := range int64(1000) {
		s.Add(1000*(ms+1), 1)
	}
	row := func(api, route string) adminapi.LatencyRow {
		return adminapi.LatencyRow{API: api, Route: route, ServedRegion: "eu-west", Count: s.Count(), Quantile: func(p int) time.Duration { return time.Duration(s.Quantile(p)) * time.Microsecond }}
	}
	d.in.Zones["emea"].Usage.Latencies = adminapi.LatencyReport{CompleteThrough: time.Now(), Rows: []adminapi.LatencyRow{row("orders", "all"), row("reports", "all")}}
	var got struct {
		Quantiles []float64
		Rows      []struct {
			API     string
			Count   int64
			Seconds []float64
		}
	}
	d.must(&got, "usage", "latency", "--api", "orders", "--quantiles", "0,0.5,0.999", "-o", "json")
	if len(got.Rows) != 1 || got.Rows[0].Count != 1000 || !slices.Equal(got.Quantiles, []float64{0, 0.5, 0.999}) {
		t.Fatalf("got %+v", got)
	}
	for i, want := range []float64{0.001, 0.5, 0.999} {
		if s := got.Rows[0].Seconds[i]; s < want*0.99 || s > want*1.01 {
			t.Errorf("quantile %v: %v s, want %v within 1 %%", got.Quantiles[i], s, want)
		}
	}
	if out := d.must(nil, "usage", "latency"); !strings.Contains(out, "P50") || !strings.Contains(out, "P99") || !strings.Contains(out, "reports") {
		t.Errorf("table: %s", out)
	}
	for _, bad := range []string{"1.1", "0.99999", "NaN"} {
		if code, _, errs := d.run("", "usage", "latency", "--quantiles", bad); code != exitFailure {
			t.Errorf("quantile %s: exit %d, want 1: %s", bad, code, errs)
		}
	}
}

func TestUsageForecast(t *testing.T) {
	d := seeded(t)
	at := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	d.in.Zones["us"].Usage.Forecasts = []adminapi.Forecast{{Customer: "hooli", Subscription: "free", Plan: "free", Limit: 10_000, Used: 9_000, UnitsPerDay: 333.5,
		ExhaustedAt: at, PeriodEnd: at.Add(72 * time.Hour), Limited: 17, DaysLimited: 2, Requests: 2000}, {Customer: "umbrella", Subscription: "gold", Limit: 5_000_000}}
	var got []map[string]any
	if d.must(&got, "usage", "forecast", "--customer", "hooli", "-o", "json"); len(got) != 1 || got[0]["exhausted_at"] != "2026-11-28T03:00:00Z" || got[0]["limited_7d"] != 17.0 {
		t.Errorf("of one customer, in another zone: %v", got)
	}
	if d.must(&got, "usage", "forecast", "--zone", "us", "-o", "json"); len(got) != 2 || got[1]["exhausted_at"] != nil {
		t.Errorf("of a zone: %v", got)
	}
	if out := d.must(nil, "usage", "forecast", "--zone", "us"); !strings.Contains(out, "90.0%") || !strings.Contains(out, "not in this period") {
		t.Errorf("table: %s", out)
	}
	if code, _, _ := d.run("", "usage", "forecast", "--customer", "nobody"); code != exitNotFound {
		t.Errorf("forecast of nobody: exit %d, want 3", code)
	}
}
