package main

import (
	"testing"
	"testing/synctest"
	"time"
)

// A control node that met a full disk ended 3.5 s later, after the campaign had looked whether it ran, and was
// found dead 40 s on: a breach that was none.
func TestSettle_WaitsForWhoIsStillEnding(t *testing.T) {
	for _, takes := range []time.Duration{0, 100 * time.Millisecond, 3500 * time.Millisecond, 11 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			began, starts := time.Now(), 0
			var up time.Time // when it was started again
			start := func() error {
				if time.Since(began) >= takes && starts == 0 {
					starts, up = 1, time.Now()
				}
				return nil
			}
			serves := func() bool { return starts > 0 && time.Since(up) > time.Second }
			if err := settle(serves, start); err != nil || starts != 1 {
				t.Errorf("a process that takes %s to end is started %d times, %v; want once", takes, starts, err)
			}
		})
	}
}

func TestSettle_GivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := settle(func() bool { return false }, func() error { return nil }); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 31*time.Second {
			t.Errorf("it took %s, want 30 s", took)
		}
	})
}
