package lessor_test

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

// What one edge has spent is seen by the others with its next exchange, before its block is in the ledger, and once.
func TestLessor_SpentIsSeenBeforeItsBlock(t *testing.T) {
	for mode, leases := range map[string]bool{"strict": true, "soft": false} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 1000, Mode: mode}}), store(customer("acme", "p")))
			a := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
			b := &edge{t: t, w: w, name: "b", region: "eu-central", epoch: 1}
			s := a.one(ask(0, 0, 0, 100))
			if leases != (s.Leased > 10) {
				t.Fatalf("got %v, want a lease: %v", s, leases)
			}
			b.one(ask(0, 0, 0, 1))
			a.one(ask(s.Period, s.Leased, 7, 0))
			held := int64(0)
			seen := func(when string, want int64) {
				t.Helper()
				got := b.one(ask(s.Period, 5, 0, 0))
				if got.Used != want {
					t.Errorf("%s: b is told of %d used, want %d", when, got.Used, want)
				}
				if leases && held != 0 && got.Used+got.Held != held {
					t.Errorf("%s: used and held are %d together, want %d as before", when, got.Used+got.Held, held)
				}
				held = got.Used + got.Held
			}
			seen("told", 7)
			quotas, err := w.Quotas(t.Context(), "acme")
			if err != nil || quotas[0].Used != 7 || quotas[0].Remaining != 1000-quotas[0].Used-quotas[0].Held {
				t.Errorf("operators see %v, %v, want 7 used", quotas, err)
			}
			a.ship("acme", "p", s.Period, time.Now().Unix()/900*900, 7)
			seen("shipped", 7)
			a.one(ask(s.Period, s.Leased, 7, 0))
			seen("shipped and told", 7)
			if got := a.one(ask(s.Period, s.Leased, 9, 0)); got.Used != 7 || got.UsedHere != 7 {
				t.Errorf("a is told of %d used, %d by itself, want what the ledger has of it: 7", got.Used, got.UsedHere)
			}
			// A claim beyond reason is taken for what it could be at most.
			a.one(ask(s.Period, s.Leased, 1<<60, 0))
			if got := b.one(ask(s.Period, 5, 0, 0)); got.Used > 7+1000 || leases && got.Used > s.Leased {
				t.Errorf("b is told of %d used, a was leased %d of 1000", got.Used, s.Leased)
			}
		})
	}
}

// A quota of which the last units are told to be spent is used up: nobody waits for them to come back.
func TestLessor_ToldIsNotRecalled(t *testing.T) {
	w := newWorld(t, catalog(strict(1)), store(customer("acme", "p")))
	a := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	b := &edge{t: t, w: w, name: "b", region: "eu-central", epoch: 1}
	s := a.one(ask(0, 0, 0, 1))
	if s.Leased != 1 {
		t.Fatalf("got %v, want 1 leased", s)
	}
	if got := b.one(ask(s.Period, 0, 0, 1)); got.Exhausted {
		t.Errorf("got %v while a holds its unit, which may come back", got)
	}
	a.one(ask(s.Period, 1, 1, 0))
	if got := b.one(ask(s.Period, 0, 0, 1)); !got.Exhausted || got.Used != 1 {
		t.Errorf("got %v, want it used up", got)
	}
}
