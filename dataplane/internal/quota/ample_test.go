package quota_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/table"
)

// steady asks a hundred times a second and says how many requests were not served at once.
func steady(ctx context.Context, b *quota.Book, plan *policy.Plan, lasts time.Duration) (late int) {
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		ticket, d := request(ctx, b, plan)
		ticket.Spend()
		if d != quota.Taken || !time.Now().Equal(began) {
			late++
		}
	}
	return late
}

// Where a quota is nowhere near its end, the leader is asked seldom, and may be silent for three seconds without a request that
// notices.
func TestBook_AmpleIsAskedForSeldomAndHeldLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plenty := &policy.Plan{Plan: table.Plan{Name: "plenty", QuotaUnits: 1_000_000_000, QuotaPeriod: "month", QuotaMode: "strict"}}
		l := newLedger(1_000_000_000, acme)
		way := &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}
		b := newBook(t, way, nil)
		run(t, func(ctx context.Context) {
			steady(ctx, b, plenty, 5*time.Second) // until its demand is believed
			way.mu.Lock()
			before := way.calls
			way.mu.Unlock()
			late := steady(ctx, b, plenty, 5*time.Second)
			way.mu.Lock()
			calls := way.calls - before
			way.cut = true
			way.mu.Unlock()
			if late != 0 || calls > 30 { // every 250 ms; 50 would be at each tick
				t.Errorf("%d requests waited, and the leader was asked %d times in 5 s; want none and at most 30", late, calls)
			}
			if late := steady(ctx, b, plenty, 3*time.Second); late != 0 {
				t.Errorf("the leader is silent for 3 s, and %d of 300 requests are not served at once", late)
			}
		}, b)
	})
}

// Where it is not, an edge holds no more than it did, since others may want for it.
func TestBook_WhatIsScarceIsNotHeldLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scarce := &policy.Plan{Plan: table.Plan{Name: "scarce", QuotaUnits: 100_000, QuotaPeriod: "month", QuotaMode: "strict"}}
		l := newLedger(100_000, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			steady(ctx, b, scarce, 5*time.Second)
			most := int64(0)
			for range 50 {
				steady(ctx, b, scarce, 100*time.Millisecond)
				h := l.peek(acme, "a")
				most = max(most, h.leased-h.said)
			}
			if most > 300 {
				t.Errorf("as many as %d units are held at 100 a second, want two seconds' worth, and what was spent since", most)
			}
		}, b)
	})
}
