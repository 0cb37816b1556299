package main

import "testing"

// The smoke: safe in every schedule, and enough relayed and answered for that to mean something. make simulate runs
// more, a night ten million.
func TestCampaign(t *testing.T) {
	n := uint64(40_000)
	if testing.Short() {
		n = 5000
	}
	const seed = 20261125
	s, err := campaign(seed, n, 0, false)
	t.Logf("seed %d: %s", seed, s)
	if err == nil {
		err = s.judge()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// One seed is one schedule, to the event.
func TestSchedule_IsItsSeed(t *testing.T) {
	for seed := range uint64(20) {
		a, b := newWorld(seed, newRules(), nil), newWorld(seed, newRules(), nil)
		if errA, errB := a.run(), b.run(); a.stats != b.stats || (errA == nil) != (errB == nil) {
			t.Fatalf("seed %d: %+v and %+v", seed, a.stats, b.stats)
		}
	}
}
