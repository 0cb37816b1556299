package quota_test

import (
	"context"
	"fmt"
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

// bursts offers so many requests a second, in steps of 10 ms.
func bursts(b *quota.Book, plan *policy.Plan, perSecond int, lasts time.Duration) {
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for range perSecond / 100 {
			a := b.Account(acme, plan)
			a.Offer()
			ticket, _ := a.Take(1, quota.Leases(plan), time.Now().Unix())
			ticket.Spend()
		}
	}
}

// Far below a rate limit it does not matter how that is shared, so the leader is asked once a second; before it does matter the
// leader knows, and where something else is shared by demand it is asked as often as ever.
func TestBook_WhoIsFarBelowItsLimitIsAskedForSeldom(t *testing.T) {
	ample := table.Plan{Name: "ample", QuotaUnits: 1_000_000_000_000, QuotaPeriod: "month", QuotaMode: "strict", RequestsPerSecond: 4000, Burst: 4000} // floor: 400
	unleased, places, windows := ample, ample, ample
	unleased.QuotaMode, unleased.QuotaUnits = "", 0
	places.MaxConcurrent = 1000
	windows.Windows = []table.Window{{Requests: 1_000_000, Per: time.Minute}}
	for name, c := range map[string]struct {
		plan        table.Plan
		least, most int // asks in 5 s
	}{"a rate": {ample, 5, 7}, "a rate and no quota": {unleased, 5, 7}, "places": {places, 18, 27}, "windows": {windows, 18, 27}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				plan := &policy.Plan{Plan: c.plan}
				l := newLedger(c.plan.QuotaUnits, acme)
				l.none, l.generous = c.plan.QuotaMode == "", true
				way := &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}
				b := newBook(t, way, nil)
				run(t, func(ctx context.Context) {
					if quota.Leases(plan) {
						request(ctx, b, plan)
					}
					bursts(b, plan, 200, 3*time.Second)
					before := l.asked()
					bursts(b, plan, 300, 5*time.Second)
					if n := l.asked() - before; n < c.least || n > c.most {
						t.Errorf("asked %d times in 5 s, want %d to %d", n, c.least, c.most)
					}
					if name != "a rate" {
						return
					}
					bursts(b, plan, 1200, time.Second) // its smoothed demand passes the floor within 200 ms
					l.mu.Lock()
					told := l.last["a"].Asks[0].Demand
					l.mu.Unlock()
					if told < 600_000 {
						t.Errorf("after a second of 1,200/s the leader knows of %d requests in 1,000 s, want 600,000 at least", told)
					}
					before = l.asked()
					bursts(b, plan, 1200, 5*time.Second)
					if n := l.asked() - before; n < 18 {
						t.Errorf("asked %d times in 5 s at thrice the floor, want every 250 ms", n)
					}
				}, b)
				way.wg.Wait()
			})
		})
	}
}

// Accounts that nothing matters of are asked for together.
func TestBook_WhoIsAskedForSeldomIsAskedForTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := &policy.Plan{Plan: table.Plan{Name: "ample", QuotaUnits: 1_000_000_000_000, QuotaPeriod: "month", QuotaMode: "strict"}}
		l := newLedger(0)
		l.generous = true
		ids := make([]quota.ID, 40)
		for i := range ids {
			ids[i] = quota.ID{Customer: fmt.Sprint("c", i), Subscription: "main"}
			l.limits[ids[i]] = plan.QuotaUnits
		}
		way := &link{edge: "a", ledger: l, delay: 3 * time.Millisecond}
		b := newBook(t, way, nil)
		use := func(ids []quota.ID) {
			for _, id := range ids {
				ticket, _ := b.Account(id, plan).Take(1, true, time.Now().Unix())
				ticket.Spend()
			}
			time.Sleep(25 * time.Millisecond)
		}
		run(t, func(ctx context.Context) {
			for i := range ids { // they come one after the other, over a second
				use(ids[:i+1])
			}
			for range 200 {
				use(ids)
			}
			way.mu.Lock()
			calls := way.calls
			way.mu.Unlock()
			asks := l.asked()
			for range 200 { // 5 s
				use(ids)
			}
			way.mu.Lock()
			calls = way.calls - calls
			way.mu.Unlock()
			if asks = l.asked() - asks; calls > 42 || asks > 40*7 {
				t.Errorf("%d exchanges and %d asks in 5 s for 40 accounts, want 42 and %d at most", calls, asks, 40*7)
			}
		}, b)
		way.wg.Wait()
	})
}

// A quota that was ample may be used up within a second, by others. What lies at an edge that had no reason to ask is recalled
// before who needs it has refused anybody for longer than a moment, whenever that edge spoke last, and all of it is served.
func TestBook_WhatIsHeldOfAnAmpleQuotaIsRecalledAtOnce(t *testing.T) {
	const limit = 1 << 21
	plan := &policy.Plan{Plan: table.Plan{Name: "ample", QuotaUnits: limit, QuotaPeriod: "month", QuotaMode: "strict"}}
	for name, silent := range map[string]time.Duration{"in use": 0, "silent": 2 * time.Second} {
		for phase := range 8 {
			t.Run(fmt.Sprint(name, phase), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLedger(limit, acme)
					l.broken = t.Errorf
					links := []*link{{edge: "a", ledger: l, delay: 3 * time.Millisecond}, {edge: "b", ledger: l, delay: 3 * time.Millisecond}}
					a, b := newBook(t, links[0], nil), newBook(t, links[1], nil)
					var served int64
					run(t, func(ctx context.Context) {
						pause := 10 * time.Millisecond
						if silent > 0 { // so seldom that what it is leased is plenty, and stays
							pause = 400 * time.Millisecond
						}
						for end := time.Now().Add(6*time.Second + time.Duration(phase)*130*time.Millisecond); time.Now().Before(end); time.Sleep(pause) {
							ticket, _ := request(ctx, b, plan)
							served += ticket.Units()
							ticket.Spend()
						}
						if silent > 0 {
							time.Sleep(silent + time.Duration(phase)*130*time.Millisecond)
						}
						if h := l.peek(acme, "b"); h.leased == h.said {
							t.Error("nothing lies at the edge that is to be asked for it")
						}
						use := func(units int64) (quota.Decision, time.Duration) {
							began := time.Now()
							account := a.Account(acme, plan)
							ticket, d := account.Take(units, true, began.Unix())
							if d == quota.Wait {
								ticket, d = account.Park(ctx, units, true)
							}
							served += ticket.Units()
							ticket.Spend()
							return d, time.Since(began)
						}
						done := make(chan int64)
						stop := make(chan struct{})
						go func() { // b has a request each 50 ms where it is not silent
							n := int64(0)
							for silent == 0 {
								select {
								case <-stop:
									done <- n
									return
								case <-time.After(50 * time.Millisecond):
								}
								ticket, _ := b.Account(acme, plan).Take(1, true, time.Now().Unix())
								n += ticket.Units()
								ticket.Spend()
							}
							done <- n
						}()
						rest := func() int64 {
							l.mu.Lock()
							defer l.mu.Unlock()
							return limit - l.counted(account{acme, l.period})
						}
						for n := rest(); n > 0; n = rest() { // all but what b holds
							if d, _ := use((n + 3) / 4); d != quota.Taken {
								t.Fatalf("a quarter of the rest of %d units: got %v", n, d)
							}
						}
						var refusing, longest time.Duration
						for d := quota.Unconfirmed; d != quota.Exhausted && refusing < 5*time.Second; {
							var took time.Duration
							if d, took = use(1); d == quota.Unconfirmed {
								refusing += took
							} else {
								refusing = 0
							}
							longest = max(longest, refusing)
						}
						if longest > 300*time.Millisecond {
							t.Errorf("who starves refuses for %v while another edge holds what it needs, want 300 ms at most", longest)
						}
						close(stop)
						served += <-done
					}, a, b)
					for _, way := range links {
						way.wg.Wait()
					}
					if served != limit {
						t.Errorf("%d units of %d are served", served, limit)
					}
				})
			})
		}
	}
}
