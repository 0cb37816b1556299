package failover_test

import (
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
)

var timing = failover.Timing{EjectAfter: 3, GoodFor: 10 * time.Second, Ramp: 3 * time.Second, HomeAnswers: 4, HomeFor: time.Second}

func TestStep_Table(t *testing.T) {
	const (
		A, F, U, N, G, B, T = failover.Answered, failover.Failed, failover.Unavailable, failover.NotAlive, failover.ProbeGood, failover.ProbeBad, failover.Tick
		s                   = time.Second
	)
	type at struct {
		e   failover.Event
		now time.Duration
	}
	for _, c := range []struct {
		name  string
		given []at
		want  failover.Phase
	}{
		{"nothing happened", nil, failover.Healthy},
		{"one failure is a suspicion", []at{{F, s}}, failover.Suspect},
		{"a 503 too", []at{{U, s}}, failover.Suspect},
		{"an answer clears it", []at{{F, s}, {A, s}}, failover.Healthy},
		{"a probe clears it", []at{{F, s}, {G, s}}, failover.Healthy},
		{"a failed probe proves it", []at{{F, s}, {B, s}}, failover.Ejected},
		{"three in a row, whatever the probe says", []at{{U, s}, {G, s}, {U, s}, {G, s}, {U, s}}, failover.Ejected},
		{"three with an answer between are no row", []at{{U, s}, {U, s}, {A, s}, {U, s}}, failover.Suspect},
		{"an idle target that fails its probe", []at{{B, s}}, failover.Ejected},
		{"no life for some milliseconds", []at{{N, s}}, failover.Suspect},
		{"a good probe does not end an ejection", []at{{B, s}, {G, 2 * s}, {G, 11 * s}}, failover.Ejected},
		{"ten seconds of good probes do", []at{{B, s}, {G, 2 * s}, {G, 12 * s}}, failover.Returning},
		{"a bad one starts over", []at{{B, s}, {G, 2 * s}, {B, 8 * s}, {G, 9 * s}, {G, 13 * s}}, failover.Ejected},
		{"an answer does not", []at{{B, s}, {A, 2 * s}, {A, 20 * s}}, failover.Ejected},
		{"answers of a last resort bring it home", []at{{B, s}, {G, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 3 * s}}, failover.Healthy},
		{"not in a burst", []at{{B, s}, {G, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}}, failover.Ejected},
		{"not with a failure between", []at{{B, s}, {G, 2 * s}, {A, 2 * s}, {A, 2 * s}, {U, 2 * s}, {A, 3 * s}, {A, 3 * s}, {A, 4 * s}}, failover.Ejected},
		{"not without a good probe", []at{{B, s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 3 * s}, {A, 4 * s}}, failover.Ejected},
		{"not of before a bad probe", []at{{B, s}, {G, 2 * s}, {A, 2 * s}, {A, 2 * s}, {A, 2 * s}, {B, 3 * s}, {G, 3 * s}, {A, 3 * s}}, failover.Ejected},
		{"a failed last resort does", []at{{B, s}, {G, 2 * s}, {F, 8 * s}, {G, 9 * s}, {G, 13 * s}}, failover.Ejected},
		{"a failure while returning", []at{{B, s}, {G, 2 * s}, {G, 12 * s}, {F, 13 * s}}, failover.Ejected},
		{"the ramp ends by time", []at{{B, s}, {G, 2 * s}, {G, 12 * s}, {T, 15 * s}}, failover.Healthy},
		{"not before", []at{{B, s}, {G, 2 * s}, {G, 12 * s}, {A, 14 * s}}, failover.Returning},
	} {
		var st failover.State
		for _, x := range c.given {
			st = failover.Step(st, x.e, x.now, timing)
		}
		if st.Phase != c.want {
			t.Errorf("%s: got %v, want %v", c.name, st.Phase, c.want)
		}
	}
}

func TestState_ShareGrows(t *testing.T) {
	st := failover.State{Phase: failover.Returning, Since: 10 * time.Second}
	last := 0.0
	for now := 10 * time.Second; now <= 13*time.Second; now += 100 * time.Millisecond {
		share := st.Share(now, timing)
		if share < last || share <= 0 || share > 1 {
			t.Fatalf("share at %v: got %v after %v, want it to grow within (0,1]", now, share, last)
		}
		last = share
	}
	if last != 1 {
		t.Errorf("share at the end: got %v, want 1", last)
	}
	if got := (failover.State{Phase: failover.Ejected}).Share(0, timing); got != 0 {
		t.Errorf("share of an ejected target: got %v, want 0", got)
	}
}
