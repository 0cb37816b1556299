package main

import (
	"fmt"
	"time"

	"bailiwick/e2e/harness"
)

// judge holds every customer to the law.
func (w *world) judge(s *summary) {
	now := time.Now()
	for _, c := range append(append([]*customer(nil), w.customers...), w.special...) {
		a := account{Name: c.name, Zone: c.zone, Sent: c.sent.Load(), Unheard: c.unheard.Load(), Completed: c.completed.Load()}
		for _, u := range w.upstreams {
			a.Answered += u.of(c.name).Load()
		}
		usage, err := w.through(c, now, 2*time.Minute)
		if err != nil {
			a.Breach = err.Error()
		} else {
			a.Counted = usage.Answered()
			a.Law, a.Breach = w.law(c, &a)
		}
		if a.Breach != "" {
			w.breach("%s: %s", c.name, a.Breach)
		}
		s.Customers = append(s.Customers, a)
	}
}

// law is what holds for an account, or how it was broken.
func (w *world) law(c *customer, a *account) (law, breach string) {
	w.mu.Lock()
	excused, reported := w.excused[c.name], w.measures["epochs quarantined"]+w.measures["blocks in gaps"] > 0
	w.mu.Unlock()
	switch {
	case a.Counted > a.Answered:
		return "", fmt.Sprintf("counted %d more than upstreams answered: something is counted twice", a.Counted-a.Answered)
	case excused:
		if a.Counted >= a.Completed {
			return "completed ≤ counted ≤ answered, though a loss was provoked", ""
		}
		if !reported {
			return "", fmt.Sprintf("%d lost, and neither a quarantine nor a gap tells of it", a.Completed-a.Counted)
		}
		return fmt.Sprintf("counted ≤ answered; %d lost and reported", a.Completed-a.Counted), ""
	case a.Completed > a.Counted:
		return "", fmt.Sprintf("%d completed requests are not counted", a.Completed-a.Counted)
	case c.quiet && a.Completed != a.Counted:
		return "", fmt.Sprintf("nothing was in flight at a kill, but %d completed are %d counted", a.Completed, a.Counted)
	case a.Counted > a.Completed+a.Unheard:
		return "", fmt.Sprintf("%d counted beyond the %d completed, but only %d were unheard", a.Counted-a.Completed, a.Completed, a.Unheard)
	case c.limit > 0 && a.Counted > c.limit:
		return "", fmt.Sprintf("%d counted of a strict quota of %d", a.Counted, c.limit)
	case c.limit > 0 && a.Counted < c.limit:
		return "", fmt.Sprintf("all edges refuse, but only %d of a strict quota of %d are counted", a.Counted, c.limit)
	case a.Completed == 0:
		return "", "no request was completed: nothing is proved"
	case c.limit > 0:
		return fmt.Sprintf("completed ≤ counted = quota of %d ≤ answered", c.limit), ""
	case c.quiet:
		return "completed = counted ≤ answered", ""
	}
	return "completed ≤ counted ≤ answered", ""
}

// through waits until a customer's usage is complete through an instant.
func (w *world) through(c *customer, at time.Time, patience time.Duration) (harness.Usage, error) {
	deadline := time.Now().Add(patience)
	for {
		u, err := w.s.Usage(c.zone, c.name)
		if err == nil && !u.CompleteThrough.Before(at) {
			return u, nil
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fmt.Errorf("complete through %s only, %s after %s", u.CompleteThrough.Format(time.RFC3339Nano), time.Since(at).Round(time.Second), at.Format(time.RFC3339Nano))
			}
			return u, fmt.Errorf("usage does not become complete: %w", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
