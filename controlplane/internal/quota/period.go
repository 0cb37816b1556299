package quota

import (
	"fmt"
	"time"

	"bailiwick/shared/usage"
)

// Period is the time in which a quota's units may be spent.
type Period struct {
	Start int64 // unix s; usage.PeriodRolling or PeriodPrepaid where there is none
	End   int64 // unix s; 0: it does not end, or slides
}

// Bounds of a rolling quota's window.
const (
	MinWindow = usage.CellSeconds * time.Second
	MaxWindow = 31 * 24 * time.Hour
)

// ValidWindow: windows are whole cells, since the ledger knows no finer time.
func ValidWindow(d time.Duration) bool {
	return d >= MinWindow && d <= MaxWindow && d%MinWindow == 0
}

// At is the period of a kind (hour, day, week, month, year, rolling, prepaid)
// that holds an instant, in a customer's time zone. Periods of one kind and zone
// follow each other without a gap or an overlap, whatever daylight saving does:
// a day may have 23 hours, and an hour that the clocks repeat is two hours.
func At(kind string, zone *time.Location, at time.Time) (Period, error) {
	t := at.In(zone)
	y, m, d := t.Date()
	days := func(from, to time.Time) Period { return Period{from.Unix(), to.Unix()} }
	switch kind {
	case "hour":
		return hour(t), nil
	case "day":
		return days(midnight(y, m, d, zone), midnight(y, m, d+1, zone)), nil
	case "week":
		monday := d - (int(t.Weekday())+6)%7
		return days(midnight(y, m, monday, zone), midnight(y, m, monday+7, zone)), nil
	case "month":
		return days(midnight(y, m, 1, zone), midnight(y, m+1, 1, zone)), nil
	case "year":
		return days(midnight(y, 1, 1, zone), midnight(y+1, 1, 1, zone)), nil
	case "rolling":
		return Period{Start: usage.PeriodRolling}, nil
	case "prepaid":
		return Period{Start: usage.PeriodPrepaid}, nil
	}
	return Period{}, fmt.Errorf("quota period %q is unknown: run a newer bailiwick-control", kind)
}

// midnight is the first instant of a date. Where clocks skip midnight that is
// the instant of the change, and where they repeat it the first of the two;
// time.Date promises neither.
func midnight(y int, m time.Month, d int, zone *time.Location) time.Time {
	y, m, d = time.Date(y, m, d, 12, 0, 0, 0, time.UTC).Date() // carries the overflow of months and days
	t := time.Date(y, m, d, 0, 0, 0, 0, zone)
	if t.Day() != d && t.Before(time.Date(y, m, d, 12, 0, 0, 0, zone)) && t.Hour() > 0 {
		if _, end := t.ZoneBounds(); !end.IsZero() {
			return end
		}
	}
	start, _ := t.ZoneBounds()
	if start.IsZero() {
		return t
	}
	_, now := t.Zone()
	_, before := start.Add(-time.Second).Zone()
	if earlier := t.Add(time.Duration(now-before) * time.Second); earlier.Before(start) && earlier.Before(t) {
		return earlier
	}
	if t.Hour() > 0 && start.After(t.Add(-time.Duration(t.Hour()+1)*time.Hour)) {
		return start
	}
	return t
}

// hour is the hour of the local clock, cut where the clock is set by less than one.
func hour(t time.Time) Period {
	_, m, s := t.Clock()
	from, until := t.ZoneBounds()
	start := t.Unix() - int64(m*60+s)
	end := start + 3600
	if set(from) && from.Unix() > start {
		start = from.Unix()
	}
	if set(until) && until.Unix() < end {
		end = until.Unix()
	}
	return Period{start, end}
}

// set says whether clocks are set at a bound of a zone. Some bounds only rename it.
func set(bound time.Time) bool {
	if bound.IsZero() {
		return false
	}
	_, after := bound.Zone()
	_, before := bound.Add(-time.Second).Zone()
	return before != after
}
