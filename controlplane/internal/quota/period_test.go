package quota_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/quota"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var kinds = []string{"hour", "day", "week", "month", "year"}

// Whatever clocks do, an instant lies in exactly one period, and the period that
// its end begins is the next one. The zones are those that do the most: half and
// quarter hours, half an hour of daylight saving, midnights skipped and repeated,
// a whole day skipped.
func TestAt_PeriodsFollowEachOther(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham",
		"America/Havana", "Africa/Cairo", "Asia/Beirut", "America/Asuncion", "America/Santiago", "Pacific/Apia", "America/Sao_Paulo", "Asia/Tehran", "America/St_Johns", "Africa/Casablanca"}
	rapid.Check(t, func(rt *rapid.T) {
		loc := zone(t, rapid.SampledFrom(zones).Draw(rt, "zone"))
		kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
		at := time.Unix(rapid.Int64Range(1325376000, 1924992000).Draw(rt, "at"), 0) // 2012 (until then Newfoundland set its clocks at 00:01) to 2030
		if rapid.Bool().Draw(rt, "near a change") {
			if _, end := at.In(loc).ZoneBounds(); !end.IsZero() {
				at = end.Add(time.Duration(rapid.Int64Range(-7300, 7300).Draw(rt, "seconds")) * time.Second)
			}
		}
		p, err := quota.At(kind, loc, at)
		if err != nil {
			rt.Fatal(err)
		}
		if p.Start > at.Unix() || at.Unix() >= p.End {
			rt.Fatalf("%s in %s at %s: got [%s, %s), which does not hold it", kind, loc, at.In(loc), time.Unix(p.Start, 0).In(loc), time.Unix(p.End, 0).In(loc))
		}
		if p.Start%900 != 0 {
			rt.Fatalf("%s in %s: starts at %s, not at the edge of a cell", kind, loc, time.Unix(p.Start, 0).In(loc))
		}
		for _, edge := range []int64{p.Start, p.End - 1} {
			if q, _ := quota.At(kind, loc, time.Unix(edge, 0)); q != p {
				rt.Fatalf("%s in %s: got [%s, %s) at %s, but [%s, %s) at %s", kind, loc, time.Unix(p.Start, 0).In(loc), time.Unix(p.End, 0).In(loc), at.In(loc),
					time.Unix(q.Start, 0).In(loc), time.Unix(q.End, 0).In(loc), time.Unix(edge, 0).In(loc))
			}
		}
		if next, _ := quota.At(kind, loc, time.Unix(p.End, 0)); next.Start != p.End {
			rt.Fatalf("%s in %s: ends at %s, the next starts at %s", kind, loc, time.Unix(p.End, 0).In(loc), time.Unix(next.Start, 0).In(loc))
		}
	})
}

func TestAt_Calendar(t *testing.T) {
	for _, c := range []struct{ kind, zone, at, start, end string }{
		{"month", "UTC", "2026-11-25T19:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"},
		{"month", "America/New_York", "2026-11-01T03:59:59Z", "2026-10-01T04:00:00Z", "2026-11-01T04:00:00Z"}, // the change is on the 1st, later
		{"month", "America/New_York", "2026-11-01T04:00:00Z", "2026-11-01T04:00:00Z", "2026-12-01T05:00:00Z"},
		{"week", "Europe/Berlin", "2026-11-25T00:00:00Z", "2026-11-22T23:00:00Z", "2026-11-29T23:00:00Z"},
		{"week", "Europe/Berlin", "2026-11-29T22:59:59Z", "2026-11-22T23:00:00Z", "2026-11-29T23:00:00Z"}, // a Sunday
		{"day", "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},  // 25 hours
		{"day", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},  // 23 hours
		{"day", "Asia/Kathmandu", "2026-01-01T18:14:59Z", "2025-12-31T18:15:00Z", "2026-01-01T18:15:00Z"},
		{"hour", "Asia/Kolkata", "2026-01-01T00:29:59Z", "2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z"},
		{"hour", "Europe/Berlin", "2026-10-25T01:10:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"},
		{"year", "Asia/Tokyo", "2026-12-31T15:00:00Z", "2026-12-31T15:00:00Z", "2027-12-31T15:00:00Z"},
		{"day", "America/Havana", "2026-11-01T06:00:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"},   // midnight twice: the first
		{"day", "America/Santiago", "2026-09-06T12:00:00Z", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"}, // no midnight
		{"day", "Pacific/Apia", "2011-12-31T12:00:00Z", "2011-12-31T10:00:00Z", "2012-01-01T10:00:00Z"},     // after the day that was skipped
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		p, err := quota.At(c.kind, zone(t, c.zone), at)
		got := time.Unix(p.Start, 0).UTC().Format(time.RFC3339) + " " + time.Unix(p.End, 0).UTC().Format(time.RFC3339)
		if want := c.start + " " + c.end; err != nil || got != want {
			t.Errorf("%s in %s at %s: got %s, %v, want %s", c.kind, c.zone, c.at, got, err, want)
		}
	}
	for kind, start := range map[string]int64{"rolling": 1, "prepaid": 2} {
		if p, err := quota.At(kind, time.UTC, time.Now()); err != nil || p.Start != start || p.End != 0 {
			t.Errorf("%s: got %+v, %v", kind, p, err)
		}
	}
	if _, err := quota.At("decade", time.UTC, time.Now()); err == nil {
		t.Error("an unknown kind of period: got none, want an error")
	}
}
