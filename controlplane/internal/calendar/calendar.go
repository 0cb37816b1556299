// Package calendar owns local time: which hour, day, week, month or year of an IANA time zone an instant lies in,
// and when that one begins and ends.
//
// It is pure but for the time zone database, which bailiwick-control carries along (time/tzdata), so that a machine
// without one still knows its customers' days. It never reads a clock. Everything may be called at once.
package calendar

import (
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // a static program on a bare machine must know every zone

	"bailiwick/shared/fault"
)

// Units of local time.
const (
	Hour  = "hour"
	Day   = "day"
	Week  = "week" // from Monday
	Month = "month"
	Year  = "year"
)

// Units lists all of them, the shortest first.
func Units() []string { return []string{Hour, Day, Week, Month, Year} }

// ReasonUnknown is of the error for a name that is no time zone; its kind is Invalid.
const ReasonUnknown = "TIME_ZONE_UNKNOWN"

// known holds the zones that were asked for, of which there are some hundreds at most: reading one from the database
// costs more than all else that is done with it, and quotas ask for their customers' again and again.
var known sync.Map

// Load finds a time zone; "" is UTC. It refuses what time.LoadLocation would take and another node would read
// differently: this machine's own zone, and the variants of the database that count leap seconds.
func Load(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if loc, ok := known.Load(name); ok {
		return loc.(*time.Location), nil
	}
	variant := slices.ContainsFunc([]string{"right/", "posix/"}, func(p string) bool { return strings.HasPrefix(name, p) })
	loc, err := time.LoadLocation(name)
	if err != nil || variant || strings.EqualFold(name, "local") || name == "localtime" {
		return nil, fault.New(fault.Invalid, ReasonUnknown, "time zone %q does not exist: name one of the IANA database, such as Europe/Berlin", name).At("time_zone")
	}
	known.Store(name, loc)
	return loc, nil
}

// Span is the unit of local time that t lies in: [start, end). An hour is one of the wall clock under one offset:
// where clocks are set back the repeated hour is two.
func Span(t time.Time, unit string, loc *time.Location) (start, end time.Time) {
	local := t.In(loc)
	y, m, d := local.Date()
	switch unit {
	case Hour:
		return hour(local)
	case Week:
		d -= (int(local.Weekday()) + 6) % 7
		return first(y, m, d, loc), first(y, m, d+7, loc)
	case Month:
		return first(y, m, 1, loc), first(y, m+1, 1, loc)
	case Year:
		return first(y, 1, 1, loc), first(y+1, 1, 1, loc)
	}
	return first(y, m, d, loc), first(y, m, d+1, loc)
}

func hour(local time.Time) (start, end time.Time) {
	into := time.Duration(local.Minute())*time.Minute + time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	start, end = local.Add(-into), local.Add(time.Hour-into)
	// Bounds alone are not enough: the database has some where no offset changes, at the end of 32-bit time.
	from, to := local.ZoneBounds()
	if start.Before(from) && offset(start) != offset(local) {
		start = from
	}
	if end.After(to) && offset(to) != offset(local) && !to.IsZero() {
		end = to
	}
	return start, end
}

func offset(t time.Time) int {
	_, seconds := t.Zone()
	return seconds
}

// first is the first instant of a local day. It is looked for and not computed: midnight is skipped where clocks
// are set forward over it and comes twice where they are set back over it, and time.Date promises neither.
func first(y int, m time.Month, d int, loc *time.Location) time.Time {
	midnight := time.Date(y, m, d, 0, 0, 0, 0, time.UTC) // normalised: month 13, day 0
	y, m, d = midnight.Date()
	const reach = 26 * 60 * 60 // more than any offset, in seconds
	begin := midnight.Unix() - reach
	n := sort.Search(2*reach, func(i int) bool {
		ly, lm, ld := time.Unix(begin+int64(i), 0).In(loc).Date()
		return ly > y || ly == y && (lm > m || lm == m && ld >= d)
	})
	return time.Unix(begin+int64(n), 0).In(loc)
}

// Label names the unit that t lies in, as people in loc would: 2026, 2026-11, 2026-11-25 (weeks by their Monday),
// and hours with their offset, which alone tells a repeated hour from the first.
func Label(t time.Time, unit string, loc *time.Location) string {
	local := t.In(loc)
	switch unit {
	case Hour:
		return local.Format("2006-01-02T15:00Z07:00")
	case Week:
		start, _ := Span(t, Week, loc)
		return start.Format(time.DateOnly)
	case Month:
		return local.Format("2006-01")
	case Year:
		return local.Format("2006")
	}
	return local.Format(time.DateOnly)
}
