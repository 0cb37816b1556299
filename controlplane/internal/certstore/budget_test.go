package certstore

import (
	"testing"
	"time"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
)

var (
	issued  = joinv1.OrderOutcome_ORDER_OUTCOME_ISSUED
	failed  = joinv1.OrderOutcome_ORDER_OUTCOME_FAILED
	notMade = joinv1.OrderOutcome_ORDER_OUTCOME_NOT_MADE
)

// drive asks every minute for a while, with one outcome, and returns when it was granted.
func drive(h *history, b Budget, from time.Time, minutes, tries int, renewal bool, outcome joinv1.OrderOutcome) (granted []time.Time) {
	for i := range minutes {
		now := from.Add(time.Duration(i) * time.Minute)
		if h.ask(b, now, uint64(i), tries, renewal).IsZero() {
			granted = append(granted, now)
			if outcome != 0 {
				h.settle(b, now, outcome)
			}
		}
	}
	return granted
}

// most is the largest number of times within a window.
func most(times []time.Time, window time.Duration) (n int) {
	for i := range times {
		k := 0
		for _, t := range times[i:] {
			if t.Sub(times[i]) < window {
				k++
			}
		}
		n = max(n, k)
	}
	return n
}

func TestBudget_FailuresAnHour(t *testing.T) {
	begin, b := time.Unix(1_800_000_000, 0).UTC(), DefaultBudget()
	for tries := 1; tries <= b.Tries; tries++ {
		for name, outcome := range map[string]joinv1.OrderOutcome{"failed": failed, "nobody told": 0} {
			granted := drive(&history{}, b, begin, 24*60, tries, false, outcome)
			if n := most(granted, time.Hour) * tries; n > b.Tries || len(granted) < 20 {
				t.Errorf("%s, %d tries each: got %d failed validations in an hour and %d orders a day, want at most %d, and an attempt each hour", name, tries, n, len(granted), b.Tries)
			}
		}
	}
	granted := drive(&history{}, b, begin, 60, 1, false, failed)
	for i, want := range []time.Duration{0, 1, 3, 7, 15} { // one minute, doubled
		if i >= len(granted) || granted[i].Sub(begin) != want*time.Minute {
			t.Fatalf("one try each: got granted at %v, want at minutes 0, 1, 3, 7, 15", granted)
		}
	}
	if len(granted) != 5 {
		t.Errorf("one try each: got %d orders in the first hour, want 5", len(granted))
	}
}

func TestBudget_CertificatesAWeek(t *testing.T) {
	begin, b := time.Unix(1_800_000_000, 0).UTC(), DefaultBudget()
	h := &history{}
	if granted := drive(h, b, begin, 3*24*60, 2, false, issued); len(granted) != b.Issued {
		t.Errorf("first certificates in three days: got %d, want %d", len(granted), b.Issued)
	}
	if next := h.ask(b, begin.Add(72*time.Hour), 9, 2, false); !next.Equal(begin.Add(b.IssuedIn)) {
		t.Errorf("the next: got %v, want a week after the first", next)
	}
	// A host whose names were all used up still renews, and that has its own end.
	if granted := drive(h, b, begin.Add(72*time.Hour), 24*60, 2, true, issued); len(granted) != b.Renewed {
		t.Errorf("renewals in a day: got %d, want %d", len(granted), b.Renewed)
	}
	if n := len(h.Failed) + len(h.Issued) + len(h.Renewed); n > b.Tries+b.Issued+b.Renewed {
		t.Errorf("%d times are kept of one host", n)
	}
}

func TestBudget_SuccessEndsTheWaiting(t *testing.T) {
	now, b := time.Unix(1_800_000_000, 0).UTC(), DefaultBudget()
	h := &history{}
	for _, outcome := range []joinv1.OrderOutcome{failed, issued} {
		now = now.Add(time.Minute)
		if next := h.ask(b, now, 9, 1, false); !next.IsZero() {
			t.Fatalf("ask at %v: got %v, want granted", now, next)
		}
		h.settle(b, now, outcome)
	}
	if next := h.ask(b, now, 9, 1, true); !next.IsZero() {
		t.Errorf("after a success: got %v, want granted at once", next)
	}
	// What never reached the authority costs nothing.
	h = &history{}
	if granted := drive(h, b, now, 120, 2, false, notMade); len(granted) != 120 {
		t.Errorf("while the authority is away: got %d of 120 granted", len(granted))
	}
	// But not without end: one that goes round in circles is stopped as if it had failed.
	h, free := &history{}, 0
	for range 200 {
		if !h.ask(b, now, 9, 2, false).IsZero() {
			break
		}
		h.settle(b, now, notMade)
		free++
	}
	if free != b.Unmade+1 {
		t.Errorf("orders that are said not to be made, at once: got %d granted, want %d", free, b.Unmade+1)
	}
	// An edge that died in the middle costs its tries, and the next need not wait.
	h = &history{}
	if a, c := h.ask(b, now, 1, 2, false), h.ask(b, now, 2, 2, false); !a.IsZero() || !c.IsZero() {
		t.Errorf("after the death of an edge: got %v and %v, want both granted", a, c)
	}
	if next := h.ask(b, now, 3, 2, false); !next.Equal(now.Add(b.TriesIn)) {
		t.Errorf("after two deaths: got %v, want an hour", next)
	}
}

func TestBudget_OfTheZone(t *testing.T) {
	now, b := time.Unix(1_800_000_000, 0).UTC(), DefaultBudget()
	s, granted := slots{}, []time.Time{}
	for i := range 24 * 60 * 2 {
		at := now.Add(time.Duration(i) * 30 * time.Second)
		if next := s.ask(b, at); next.IsZero() {
			granted = append(granted, at)
		} else if !next.After(at) {
			t.Fatalf("refused at %v, to ask again at %v", at, next)
		}
	}
	if n := most(granted, b.ZoneIn*9/10); n > b.Zone || len(granted) < 1500 {
		t.Errorf("orders of the zone: got %d in the window and %d in a day, want at most %d and about 2,000", n, len(granted), b.Zone)
	}
	if len(s) > 10 {
		t.Errorf("%d slots are kept", len(s))
	}
}
