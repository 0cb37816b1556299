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

// Who comes at 500 requests a second from one moment to the next has to wait for units a few times, not at each handful: until
// an edge believes in a demand it is leased little, and each lease that is too small holds up a request.
func TestBook_WhoComesOftenWaitsSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plenty := &policy.Plan{Plan: table.Plan{Name: "plenty", QuotaUnits: 1_000_000_000, QuotaPeriod: "month", QuotaMode: "elastic"}}
		l := newLedger(1_000_000_000, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for again := range 2 {
				waited := 0
				for range 1000 {
					began := time.Now()
					ticket, d := request(ctx, b, plenty)
					if d != quota.Taken {
						t.Fatalf("got decision %v, want taken", d)
					}
					ticket.Spend()
					if !time.Now().Equal(began) {
						waited++
					}
					time.Sleep(2 * time.Millisecond)
				}
				if waited > 5 {
					t.Errorf("got %d of 1,000 requests that waited for units, time %d, want five at most", waited, again+1)
				}
				t.Log("waited:", waited)
				time.Sleep(3 * time.Second) // what was not used goes back
				if h := l.peek(acme, "a"); h.leased != h.said || h.said != int64(1000*(again+1)) {
					t.Errorf("got leased %d, spent %d once nobody asks, want %d and as much", h.leased, h.said, 1000*(again+1))
				}
			}
		}, b)
	})
}

// One request now and then is leased the unit it needs: no more that would have to be given back.
func TestBook_WhoComesNowAndThenIsLeasedLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1_000_000, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for range 10 {
				ticket, _ := request(ctx, b, strict)
				ticket.Spend()
				if h := l.peek(acme, "a"); h.leased-h.said > 1 {
					t.Errorf("got %d held for one request, want one", h.leased-h.said)
				}
				time.Sleep(2500 * time.Millisecond)
			}
		}, b)
	})
}
