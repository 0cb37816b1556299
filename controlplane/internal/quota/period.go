package quota

import (
	"fmt"
	"time"

	"bailiwick/controlplane/internal/calendar"
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
	switch kind {
	case "rolling":
		return Period{Start: usage.PeriodRolling}, nil
	case "prepaid":
		return Period{Start: usage.PeriodPrepaid}, nil
	case calendar.Hour, calendar.Day, calendar.Week, calendar.Month, calendar.Year:
		start, end := calendar.Span(at, kind, zone)
		return Period{start.Unix(), end.Unix()}, nil
	}
	return Period{}, fmt.Errorf("quota period %q is unknown: run a newer bailiwick-control", kind)
}
