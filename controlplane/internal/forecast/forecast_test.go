package forecast_test

import (
	"math"
	"testing"
	"time"

	"bailiwick/controlplane/internal/forecast"
)

func TestOf(t *testing.T) {
	zone, _ := time.LoadLocation("Europe/Berlin")
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, zone) // half of the seventh day
	starts := forecast.Window(now, zone)
	if len(starts) != 7 || !starts[0].Equal(time.Date(2026, 11, 19, 0, 0, 0, 0, zone)) {
		t.Fatalf("window %v", starts)
	}
	end := time.Date(2026, 12, 1, 0, 0, 0, 0, zone)
	even := func(units int64) []forecast.Day {
		days := make([]forecast.Day, 7)
		for i := range days {
			days[i] = forecast.Day{Units: units, Requests: units}
		}
		days[6].Units /= 2 // of the half that has passed
		return days
	}
	young := make([]forecast.Day, 7)
	young[5], young[6] = forecast.Day{Units: 100, Limited: 3}, forecast.Day{Units: 50, Limited: 1}
	for name, c := range map[string]struct {
		days []forecast.Day
		q    forecast.Quota
		pace float64
		at   time.Duration // from now; 0: never
	}{
		"even pace":                      {even(100), forecast.Quota{Limit: 1000, Used: 800, End: end}, 100, 48 * time.Hour},
		"lasts until the end":            {even(100), forecast.Quota{Limit: 1000, Used: 400, End: end}, 100, 0},
		"just":                           {even(100), forecast.Quota{Limit: 1000, Used: 451, End: end}, 100, 549 * 24 * time.Hour / 100},
		"begun two days ago":             {young, forecast.Quota{Limit: 1000, Used: 150, End: end.Add(30 * 24 * time.Hour)}, 100, 204 * time.Hour},
		"idle":                           {make([]forecast.Day, 7), forecast.Quota{Limit: 1000, Used: 10, End: end}, 0, 0},
		"used up":                        {even(100), forecast.Quota{Limit: 1000, Used: 1000, End: end}, 100, 1},
		"prepaid":                        {even(100), forecast.Quota{Limit: 10_000, Used: 0}, 100, 100 * 24 * time.Hour},
		"beyond what can be told":        {even(100), forecast.Quota{Limit: math.MaxInt64, Used: 0}, 100, 0},
		"a window that this fills":       {even(100), forecast.Quota{Limit: 150, Used: 100, Slides: 48 * time.Hour}, 100, 12 * time.Hour},
		"a window that this never fills": {even(100), forecast.Quota{Limit: 250, Used: 200, Slides: 48 * time.Hour}, 100, 0},
		"no quota":                       {even(100), forecast.Quota{}, 100, 0},
	} {
		got := forecast.Of(now, starts, c.days, c.q)
		if math.Abs(got.UnitsPerDay-c.pace) > 0.01 {
			t.Errorf("%s: %v units a day, want %v", name, got.UnitsPerDay, c.pace)
		}
		if c.at == 0 != got.ExhaustedAt.IsZero() || c.at > 1 && got.ExhaustedAt.Sub(now.Add(c.at)).Abs() > time.Minute {
			t.Errorf("%s: used up at %v, want in %v", name, got.ExhaustedAt, c.at)
		}
	}
	if got := forecast.Of(now, starts, young, forecast.Quota{}); got.Limited != 4 || got.DaysLimits != 2 {
		t.Errorf("limits: %+v, want 4 on 2 days", got)
	}
}

// Where a day has 25 hours, the pace is of the time that passed and not of the number of midnights.
func TestOf_CountsTimeNotMidnights(t *testing.T) {
	zone, _ := time.LoadLocation("Europe/Berlin")
	now := time.Date(2026, 10, 26, 0, 0, 0, 0, zone)
	starts := forecast.Window(now, zone)
	if got, want := now.Sub(starts[0]), 145*time.Hour; got != want {
		t.Errorf("the days before the clocks were set back last %v, want %v", got, want)
	}
}
