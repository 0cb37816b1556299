package sentinel_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// A process may be kept from running between the first check and this one for longer than a grant lasts: what is stopped
// then was permitted when it was checked, and is late. What was not permitted when it was checked is wrong, however long
// after it comes here.
func TestSentinel_APauseIsNoFaultOfTheCheck(t *testing.T) {
	const short = 2 * time.Second
	expect := func(t *testing.T, what string, err error, violations, wrong, late, lates int64) {
		t.Helper()
		if err == nil || wrong != violations || late != lates {
			t.Errorf("%s: got %v, %d violations, %d late; want it stopped, %d and %d", what, err, wrong, late, violations, lates)
		}
	}
	t.Run("a request that leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _ := open(t, good)
			g := grant()
			g.TtlMs, g.OfflineTtlMs = short.Milliseconds(), short.Milliseconds()
			raw := signed(t, emeaKey, g)
			before := s.Now()
			time.Sleep(time.Second)
			s.Answered(time.Now(), [][]byte{raw})
			time.Sleep(time.Second)
			checked := s.Now()
			time.Sleep(time.Minute) // the machine sleeps
			leaves := func(at time.Time) error { return s.Leaves(certificate(central), raw, "orders", "eu-west", at) }
			expect(t, "checked while the grant lasted", leaves(checked), 0, s.Violations(), s.Late(), 1)
			s.Answered(time.Now(), nil) // the first thing that it does when it is awake
			expect(t, "and an answer has come", leaves(checked), 0, s.Violations(), s.Late(), 2)
			expect(t, "a connection", s.Dialled(certificate(central), checked), 0, s.Violations(), s.Late(), 3)
			expect(t, "checked before it was given", leaves(before), 1, s.Violations(), s.Late(), 3)
			expect(t, "checked after it had ended", leaves(checked.Add(short)), 2, s.Violations(), s.Late(), 3)
			expect(t, "checked just now", leaves(s.Now()), 3, s.Violations(), s.Late(), 3)
			expect(t, "never checked", leaves(time.Time{}), 4, s.Violations(), s.Late(), 3)
			expect(t, "to be checked", leaves(s.Now().Add(time.Minute)), 5, s.Violations(), s.Late(), 3)
			expect(t, "a connection, checked just now", s.Dialled(certificate(central), s.Now()), 6, s.Violations(), s.Late(), 3)
			if err := s.Leaves(certificate(central), raw, "reports", "eu-west", checked); err == nil || s.Violations() != 7 {
				t.Errorf("of an API that is not under the policy: got %v, %d violations; no pause makes that right", err, s.Violations())
			}
		})
	})
	t.Run("one that arrives", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _ := receiver(t, receiving(t, nil, 1))
			g := arriving()
			g.TtlMs, g.OfflineTtlMs = short.Milliseconds(), 0
			raw := signed(t, emeaKey, g)
			arrives := func(at time.Time) error { return s.Arrives(certificate(westCert), raw, "emea", "reports", at) }
			before := s.Now()
			time.Sleep(time.Second)
			if err := arrives(s.Now()); err != nil {
				t.Fatal(err)
			}
			checked := s.Now()
			time.Sleep(time.Minute)
			expect(t, "checked while the grant lasted", arrives(checked), 0, s.Violations(), s.Late(), 1)
			expect(t, "checked before it was ever shown", arrives(before), 1, s.Violations(), s.Late(), 1)
			expect(t, "checked just now", arrives(s.Now()), 2, s.Violations(), s.Late(), 1)
		})
	})
}
