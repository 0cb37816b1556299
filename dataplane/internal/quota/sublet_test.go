package quota_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
)

// leaderFunc is a Leader.
type leaderFunc func(*quota.Request) *quota.Response

func (f leaderFunc) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	return f(r), nil
}

// What the process before holds must be told before its epoch is over for the ledger: it gives the units to others then. They do
// not fit into one exchange here.
func TestSublet_AllIsToldBeforeTheEpochBeforeIsOver(t *testing.T) {
	for name, pending := range map[string][]quota.Pending{"its blocks are acknowledged": nil, "some are not for a while": {{Epoch: 6, Sealed: 9}}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const accounts = 3000
				var holding []quota.Ask
				for i := range accounts {
					holding = append(holding, quota.Ask{ID: quota.ID{Customer: fmt.Sprint("c", i), Subscription: "main"}, Plan: strict.Name, Period: 1000, Ceiling: 5, Spent: 3})
				}
				told, over := map[quota.ID]bool{}, false
				b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
					out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
					open := false
					for _, p := range r.Pending {
						open = open || p.Epoch == 6 && p.Sealed > 9
					}
					if !open && !over {
						over = true
						if len(told) < accounts {
							t.Errorf("the epoch before is over when %d of %d accounts have been told", len(told), accounts)
						}
					}
					for _, k := range r.Asks {
						if k.Ceiling != 2 {
							t.Errorf("%v: the ceiling is %d, want the 2 units that the process before holds", k.ID, k.Ceiling)
						}
						told[k.ID] = true
						out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: 2, Limit: 100, Leases: true})
					}
					return out
				}), func(c *quota.Config) {
					began := time.Now()
					c.Pending = func() []quota.Pending {
						if time.Since(began) > time.Second {
							return nil
						}
						return pending
					}
				})
				s := b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 10}}, holding, func(string) *policy.Plan { return strict })
				if s.Held() != 2*accounts {
					t.Errorf("%d units are held, want %d", s.Held(), 2*accounts)
				}
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { b.Run(ctx) })
				time.Sleep(3 * time.Second)
				cancel()
				wg.Wait()
				if !over {
					t.Error("the epoch before never ends")
				}
			})
		})
	}
}

// Of what the process before holds the ledger has to hear also where it is silent at first and nobody else asks for the account, for
// however long it is silent: until then all that the epoch before ever held is nobody else's.
func TestSublet_WhatIsAdoptedIsToldWheneverTheLedgerIsBack(t *testing.T) {
	for name, silence := range map[string]time.Duration{"after seconds": 3 * time.Second, "when it would be forgotten": 15 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var told atomic.Int64
				var over atomic.Bool
				b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
					if time.Since(began) < silence {
						return &quota.Response{}
					}
					out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
					for _, k := range r.Asks {
						told.Store(k.Ceiling)
						out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: k.Ceiling, Limit: 100, Leases: true})
					}
					if len(r.Pending) == 0 && !over.Swap(true) && told.Load() != 2 {
						t.Errorf("the epoch before is over, and of the units that are held of it %d were told", told.Load())
					}
					return out
				}), nil)
				b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 10}}, []quota.Ask{{ID: acme, Plan: strict.Name, Period: 1000, Ceiling: 5, Spent: 3}}, func(string) *policy.Plan { return strict })
				run(t, func(context.Context) { time.Sleep(silence + 3*time.Second) }, b)
				if !over.Load() {
					t.Error("the epoch before is never over")
				}
			})
		})
	}
}

// An account that the leader has no word on, as of a customer who has left, keeps the epoch before open for as long as it is
// remembered, and no longer.
func TestSublet_WhatTheLedgerDoesNotKnowIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, over atomic.Int64
		b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
			asked.Add(int64(len(r.Asks)))
			if len(r.Pending) == 0 {
				over.Add(1)
			}
			return &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
		}), nil)
		b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 10}}, []quota.Ask{{ID: acme, Plan: strict.Name, Period: 1000, Ceiling: 5, Spent: 3}}, func(string) *policy.Plan { return strict })
		run(t, func(context.Context) {
			time.Sleep(9 * time.Minute)
			if over.Load() > 0 {
				t.Error("the epoch before is over though nobody was told what is held of it")
			}
			if n := asked.Load(); n < 60 || n > 6*60*9 {
				t.Errorf("it was asked about %d times in nine minutes", n)
			}
			time.Sleep(2 * time.Minute)
			if over.Load() == 0 {
				t.Error("the epoch before is never over")
			}
		}, b)
	})
}

// Units that come when the other process has ended go back at once.
func TestSublet_WhatComesAfterTheEndGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var grant atomic.Int64
		b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
			out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
			for _, k := range r.Asks {
				out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: grant.Load(), Limit: 100, Leases: true})
			}
			return out
		}), nil)
		s := b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 1}}, nil, func(string) *policy.Plan { return strict })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.Run(ctx) })
		ask := &quota.Request{Sequence: 1, Asks: []quota.Ask{{ID: acme, Plan: strict.Name, Want: 3, Starving: true}}}
		wg.Go(func() { s.Exchange(ctx, ask) })
		time.Sleep(50 * time.Millisecond) // it waits for units
		s.End()
		grant.Store(3)
		time.Sleep(time.Second)
		if s.Held() != 0 {
			t.Errorf("%d units are held for a process that has ended", s.Held())
		}
		if got, d := request(ctx, b, strict); d != quota.Taken || got.Units() != 1 {
			t.Errorf("they cannot be taken: %v", d)
		}
		if r, err := s.Exchange(ctx, &quota.Request{Sequence: 2, Asks: []quota.Ask{{ID: acme, Plan: strict.Name, Want: 1}}}); err != nil || len(r.States) != 1 || r.States[0].Leased != 0 || s.Held() != 0 {
			t.Errorf("asked after its end it leases %+v, %v", r, err)
		}
		cancel()
		wg.Wait()
	})
}

// Who starves holds an exchange up, and the other Book asks anew meanwhile: what the older exchange says of accounts behind that one
// takes nothing back of what the newer one has let. And all who starve together hold it up for less than the other waits.
func TestSublet_AnExchangeThatIsOvertakenTakesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starves := func(i int) quota.ID { return quota.ID{Customer: fmt.Sprint("starves", i), Subscription: "main"} }
		b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
			out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
			for _, k := range r.Asks {
				state := quota.State{ID: k.ID, Period: 1000, Limit: 100, Leases: true}
				if k.ID == acme {
					state.Leased = 10
				}
				out.States = append(out.States, state)
			}
			return out
		}), nil)
		s := b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 1}}, nil, func(string) *policy.Plan { return strict })
		run(t, func(ctx context.Context) {
			let := func(sequence uint64, asks ...quota.Ask) int64 {
				for i := range asks {
					asks[i].Plan = strict.Name
				}
				r, err := s.Exchange(ctx, &quota.Request{Sequence: sequence, Asks: asks})
				if err != nil {
					t.Error(err)
				}
				for _, state := range r.States {
					if state.ID == acme {
						return state.Leased
					}
				}
				return 0
			}
			if n := let(1, quota.Ask{ID: acme, Want: 3, Starving: true}); n == 0 {
				t.Error("nothing is let")
			}
			first := let(2, quota.Ask{ID: acme, Period: 1000, Ceiling: 1, Want: 2})
			var older sync.WaitGroup
			older.Go(func() {
				began := time.Now()
				var asks []quota.Ask
				for i := range 5 {
					asks = append(asks, quota.Ask{ID: starves(i), Want: 1, Starving: true})
				}
				let(3, append(asks, quota.Ask{ID: acme, Period: 1000, Ceiling: first})...)
				if took := time.Since(began); took >= 750*time.Millisecond {
					t.Errorf("it is answered after %s: nobody waits for it any more", took)
				}
			})
			time.Sleep(100 * time.Millisecond)
			second := let(4, quota.Ask{ID: acme, Period: 1000, Ceiling: first, Want: 4})
			if first == 0 || second <= first { // how many, the other's own wants say
				t.Errorf("%d and then %d units are let, want some and then more", first, second)
			}
			older.Wait()
			if s.Held() != second {
				t.Errorf("%d units are held, of %d that the other Book may spend: the rest is given to others", s.Held(), second)
			}
		}, b)
	})
}

// A row may be in the spool that is handed over while its request has not come to say so: the unit is said to be held. It is spent all
// the same, and when the process that had it ends it is nobody's again.
func TestSublet_WhatWasSpentBeforeIsNotGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1
		l := newLedger(limit, acme)
		l.lingers = true
		a := newBook(t, &link{edge: "edge", ledger: l}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx) })
		late, d := request(t.Context(), a, strict)
		if d != quota.Taken {
			t.Fatal(d)
		}
		time.Sleep(3 * time.Second)
		cancel()
		wg.Wait()
		l.apply(account{acme, late.Period()}, "edge", 7, 1) // its row
		b, err := quota.New(quota.Config{Leader: &link{edge: "edge", ledger: l}, Epoch: 8, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
		if err != nil {
			t.Fatal(err)
		}
		s := b.Adopt([]quota.Pending{{Epoch: 7, Sealed: 1}}, a.Holding(), func(string) *policy.Plan { return strict })
		run(t, func(ctx context.Context) {
			time.Sleep(3 * time.Second)
			under, end := context.WithCancel(ctx)
			wg.Go(func() { a.RunUnder(under, s) })
			time.Sleep(3 * time.Second)
			late.Spend()
			time.Sleep(3 * time.Second)
			end()
			wg.Wait()
			s.End()
			served := 1
			for range 3 {
				if _, d := request(ctx, b, strict); d == quota.Taken {
					served++
				}
				time.Sleep(time.Second)
			}
			if served != limit {
				t.Errorf("%d units were served of %d", served, limit)
			}
		}, b)
	})
}

// A subscription that has another plan by now has it, whatever the process before began under: that this quota is used up stays known.
func TestSublet_TheNewerPlanStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
			out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
			for _, k := range r.Asks {
				out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: 2, Limit: 2, Used: 2, UsedHere: 2, Leases: true, Exhausted: true})
			}
			return out
		}), nil)
		plans := map[string]*policy.Plan{strict.Name: strict, soft.Name: soft}
		s := b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 1}}, []quota.Ask{{ID: acme, Plan: soft.Name, Period: 1000, Ceiling: 5, Spent: 3}}, func(name string) *policy.Plan { return plans[name] })
		run(t, func(ctx context.Context) {
			ask := &quota.Request{Asks: []quota.Ask{{ID: acme, Plan: soft.Name, Period: 1000, Ceiling: 5, Spent: 3}}}
			let := func() {
				ask.Sequence++
				if r, err := s.Exchange(ctx, ask); err != nil || len(r.States) != 1 {
					t.Errorf("the process before is told %+v, %v", r, err)
				}
			}
			let()
			if _, d := request(ctx, b, strict); d != quota.Exhausted {
				t.Errorf("a request under the new plan: %v, want that it is used up", d)
			}
			time.Sleep(2 * time.Second)
			for range 5 {
				let()
				if _, d := b.Account(acme, strict).Take(1, true, time.Now().Unix()); d != quota.Exhausted {
					t.Errorf("a request after the process before has asked: %v, want that it is used up", d)
				}
			}
		}, b)
	})
}

// A quota that is only watched refuses nobody: what the process before takes of it counts here, whenever it says so.
func TestSublet_OfAWatchedQuotaAllCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(4, acme)
		l.soft = true
		a := newBook(t, &link{edge: "edge", ledger: l}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx) })
		first, d := request(t.Context(), a, soft)
		if d != quota.Taken {
			t.Fatal(d)
		}
		second, _ := request(t.Context(), a, soft)
		second.Spend()
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		b, err := quota.New(quota.Config{Leader: &link{edge: "edge", ledger: l}, Epoch: 8, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
		if err != nil {
			t.Fatal(err)
		}
		s := b.Adopt([]quota.Pending{{Epoch: 7, Sealed: 1}}, a.Holding(), func(string) *policy.Plan { return soft })
		ctx, cancel = context.WithCancel(t.Context())
		wg.Go(func() { b.Run(ctx) })
		wg.Go(func() { a.RunUnder(ctx, s) })
		time.Sleep(time.Second)
		for range 7 { // more than the quota
			more, d := request(t.Context(), a, soft)
			if d != quota.Taken || more.Period() != l.period {
				t.Fatalf("of a watched quota: %v in period %d", d, more.Period())
			}
			s.Spent(acme, more.Period(), 1)
			more.Spend()
		}
		s.Spent(acme, first.Period(), 1)
		first.Spend()
		var said *quota.Request
		for range 40 {
			time.Sleep(25 * time.Millisecond)
			l.mu.Lock()
			if last := l.last["edge"]; len(last.Asks) > 0 {
				said = last
			}
			l.mu.Unlock()
		}
		if said == nil || said.Epoch != 8 || said.Asks[0].Spent != 8 || said.Asks[0].InFlight != 0 || said.Asks[0].Ceiling != 8 {
			t.Errorf("the successor says %+v, want that 8 are spent in its epoch and nothing is under way", said)
		}
		cancel()
		wg.Wait()
	})
}

// Who waited when the last exchange was made is asked about again under the next leader.
func TestBook_WhoWaitedIsAskedAboutUnderAnotherLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		way := &link{edge: "edge", ledger: newLedger(4, acme), cut: true}
		b := newBook(t, way, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.Run(ctx) })
		if _, d := request(t.Context(), b, strict); d != quota.Unconfirmed {
			t.Fatalf("nobody answers, and a request is told %v", d)
		}
		wg.Go(func() { request(t.Context(), b, strict) })
		time.Sleep(200 * time.Millisecond) // it is in line
		cancel()
		wg.Wait()
		other := newLedger(4, acme)
		ctx, cancel = context.WithCancel(t.Context())
		wg.Go(func() { b.RunUnder(ctx, &link{edge: "edge", ledger: other}) })
		if _, d := request(t.Context(), b, strict); d != quota.Taken {
			t.Errorf("the next leader has units, and a request is told %v", d)
		}
		cancel()
		wg.Wait()
	})
}

// What a process that has ended held is whoever's comes next, at once.
func TestSublet_WhatTheDeadHeldIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, leaderFunc(func(r *quota.Request) *quota.Response {
			out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
			for _, k := range r.Asks {
				out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: 2, Limit: 2, Leases: true})
			}
			return out
		}), nil)
		s := b.Adopt([]quota.Pending{{Epoch: 6, Sealed: 1}}, []quota.Ask{{ID: acme, Plan: strict.Name, Period: 1000, Ceiling: 9, Spent: 7}}, func(string) *policy.Plan { return strict })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.Run(ctx) })
		if _, d := request(ctx, b, strict); d != quota.Unconfirmed {
			t.Errorf("what the other process holds is taken: %v", d)
		}
		s.End()
		if got, d := request(ctx, b, strict); d != quota.Taken {
			t.Errorf("what it held is not free: %v, %v", got, d)
		}
		cancel()
		wg.Wait()
	})
}
