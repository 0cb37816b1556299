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
				if again > 0 && waited > 0 {
					t.Errorf("got %d that waited although what there is is plenty, want none after a pause", waited)
				}
				time.Sleep(time.Duration(again*70+3) * time.Second)
				if again == 0 {
					continue
				}
				// What was not used went back.
				if h := l.peek(acme, "a"); h.leased != h.said || h.said != int64(1000*(again+1)) {
					t.Errorf("got leased %d, spent %d once nobody asks, want %d and as much", h.leased, h.said, 1000*(again+1))
				}
			}
		}, b)
	})
}

// One request now and then of a small quota is leased the unit it needs: others may miss what lies here.
func TestBook_WhoComesNowAndThenIsLeasedLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(100_000, acme)
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

// Of a large quota an edge keeps a little for who comes now and then, so that not each of its requests waits for the ledger; it
// asks little meanwhile, and gives all back after a minute of silence.
func TestBook_WhoComesNowAndThenDoesNotWaitWhereThereIsPlenty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1<<21, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			waited := 0
			for range 40 {
				began := time.Now()
				ticket, d := request(ctx, b, strict)
				if d != quota.Taken {
					t.Fatalf("got decision %v, want taken", d)
				}
				ticket.Spend()
				if !time.Now().Equal(began) {
					waited++
				}
				time.Sleep(20 * time.Second)
			}
			if waited > 1 {
				t.Errorf("got %d of 40 requests that waited, want the first alone", waited)
			}
			asks := l.asked()
			time.Sleep(35 * time.Second)
			if n := l.asked() - asks; n > 7 {
				t.Errorf("got %d asks in 35 s of silence, want one in five seconds", n)
			}
			time.Sleep(10 * time.Second) // 65 s since the last
			if h := l.peek(acme, "a"); h.leased != 40 || h.said != 40 {
				t.Errorf("after a minute: got leased %d, spent %d, want both 40", h.leased, h.said)
			}
			asks = l.asked()
			time.Sleep(time.Minute)
			if n := l.asked() - asks; n > 0 {
				t.Errorf("got %d asks of an account that nobody uses and that holds nothing, want none", n)
			}
		}, b)
	})
}

// What lies at a silent edge because it was plenty goes to who starves once it is not: the guarantee that all units are served.
func TestBook_WhatWasPlentyGoesToWhoStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1<<21, acme)
		l.broken = t.Errorf
		a := newBook(t, &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}, nil)
		b := newBook(t, &link{edge: "b", ledger: l, delay: 3 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for range 2 {
				ticket, _ := request(ctx, a, strict)
				ticket.Spend()
				time.Sleep(300 * time.Millisecond)
			}
			held := l.peek(acme, "a")
			if held.leased < 10 {
				t.Fatalf("got %d leased to the edge that falls silent, want a few", held.leased)
			}
			time.Sleep(2 * time.Second)
			l.mu.Lock()
			l.limits[acme] = held.leased // nothing is left but what lies there
			l.mu.Unlock()
			began := time.Now()
			for served := int64(2); served < held.leased; {
				if ticket, d := request(ctx, b, strict); d == quota.Taken {
					ticket.Spend()
					served++
				} else {
					time.Sleep(50 * time.Millisecond)
				}
				if time.Since(began) > 10*time.Second {
					t.Fatalf("got %d of %d units served in ten seconds of asking, want all", served, held.leased)
				}
			}
		}, a, b)
	})
}

// mean is one that remembers the most that anybody wanted of it.
type mean struct {
	one
	most int64
}

func (m *mean) Exchange(ctx context.Context, r *quota.Request) (*quota.Response, error) {
	for _, k := range r.Asks {
		m.most = max(m.most, k.Want)
	}
	return m.one.Exchange(ctx, r)
}

// Who waits and is leased nothing does not want ever more: it would all be its own when there is something again.
func TestBook_WhoIsLeasedNothingWantsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader := &mean{}
		b := newBook(t, leader, nil)
		run(t, func(ctx context.Context) {
			ticket, _ := request(ctx, b, strict)
			ticket.Spend()
			for range 3 {
				if _, d := request(ctx, b, strict); d != quota.Unconfirmed {
					t.Fatalf("got decision %v, want unconfirmed", d)
				}
			}
		}, b)
		if leader.most > 16 {
			t.Errorf("got %d units wanted at most by one who waits for one, want 16 at most", leader.most)
		}
	})
}
