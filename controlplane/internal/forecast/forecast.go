// Package forecast owns the arithmetic of how long a quota will last: the pace of the last days, and the instant at
// which that pace uses up what is left.
//
// It is pure: no clock, no I/O, no state, so nothing of it survives a crash and everything may be called at once. A
// forecast is an estimate, and the only place where units meet floating point; nothing is billed or refused by it.
package forecast

import (
	"time"

	"bailiwick/controlplane/internal/calendar"
)

// Days is how many local days a pace is taken from, the present one included.
const Days = 7

// horizon is how far ahead an exhaustion is told: what lies beyond is no forecast.
const horizon = 10 * 365 * 24 * time.Hour

// Window is when the days of a pace begin, and the beginnings of all of them, in a customer's time zone.
func Window(now time.Time, zone *time.Location) []time.Time {
	var days []time.Time
	start, _ := calendar.Span(now, calendar.Day, zone)
	for range Days {
		days = append([]time.Time{start}, days...)
		start, _ = calendar.Span(start.Add(-time.Second), calendar.Day, zone)
	}
	return days
}

// Day is what a subscription used on one local day.
type Day struct {
	Units, Requests, Limited int64
}

// Quota is what there is to use up.
type Quota struct {
	Limit, Used int64
	End         time.Time     // of the period; zero: it does not end
	Slides      time.Duration // the window of a rolling quota; 0: it does not slide
}

// Result is what the last days say of the coming ones.
type Result struct {
	UnitsPerDay                   float64
	ExhaustedAt                   time.Time // zero: not before the period ends, at this pace
	Requests, Limited, DaysLimits int64
}

// Of takes the pace of the days that begin at starts, until now:
//
//	pace      = units of those days / time that has passed of them
//	exhausted = now + (limit - used) / pace, if that is before the period's end
//
// The present day counts by its part that has passed, and the time begins with the first day on which anything was
// used: a customer of two days is not taken for one who was idle for five. A sliding quota is used up only by a pace
// that fills its window.
func Of(now time.Time, starts []time.Time, days []Day, q Quota) Result {
	var r Result
	var units int64
	var begun time.Time
	for i, d := range days {
		if begun.IsZero() && (d.Units > 0 || d.Requests > 0) {
			begun = starts[i]
		}
		units += max(0, d.Units) // a correction may have taken more away than a day had
		r.Requests += d.Requests
		r.Limited += d.Limited
		if d.Limited > 0 {
			r.DaysLimits++
		}
	}
	const day = 24 * time.Hour
	passed := now.Sub(begun)
	if !begun.IsZero() && passed > 0 {
		r.UnitsPerDay = float64(units) * float64(day) / float64(max(passed, time.Hour))
	}
	left := q.Limit - q.Used
	switch {
	case q.Limit <= 0:
	case left <= 0:
		r.ExhaustedAt = now
	case r.UnitsPerDay <= 0:
	case q.Slides > 0 && r.UnitsPerDay*float64(q.Slides)/float64(day) < float64(q.Limit):
	default:
		wait := float64(left) / r.UnitsPerDay * float64(day)
		if wait > float64(horizon) {
			break
		}
		if at := now.Add(time.Duration(wait)); q.End.IsZero() || at.Before(q.End) {
			r.ExhaustedAt = at
		}
	}
	return r
}
