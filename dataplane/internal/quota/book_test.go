package quota_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/table"
)

var (
	acme   = quota.ID{Customer: "acme", Subscription: "main"}
	strict = &policy.Plan{Plan: table.Plan{Name: "free", QuotaUnits: 4, QuotaPeriod: "month", QuotaMode: "strict"}}
	soft   = &policy.Plan{Plan: table.Plan{Name: "gold", QuotaUnits: 4, QuotaPeriod: "month", QuotaMode: "soft"}}
)

func newBook(t testing.TB, leader quota.Leader, mod func(*quota.Config)) *quota.Book {
	t.Helper()
	cfg := quota.Config{Leader: leader, Epoch: 7, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait}
	if mod != nil {
		mod(&cfg)
	}
	b, err := quota.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// run runs the books until the test's function returns.
func run(t *testing.T, f func(ctx context.Context), books ...*quota.Book) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, b := range books {
		wg.Go(func() { b.Run(ctx) })
	}
	f(ctx)
	cancel()
	wg.Wait()
}

// request takes a unit as the proxy does.
func request(ctx context.Context, b *quota.Book, plan *policy.Plan) (quota.Ticket, quota.Decision) {
	a := b.Account(acme, plan)
	a.Offer()
	t, d := a.Take(1, quota.Leases(plan), time.Now().Unix())
	if d == quota.Wait {
		t, d = a.Park(ctx, 1, quota.Leases(plan))
	}
	return t, d
}

func TestBook_ServesExactlyTheLimitOverTwoEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(4, acme)
		l.broken = t.Errorf
		a := newBook(t, &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}, nil)
		b := newBook(t, &link{edge: "b", ledger: l, delay: 5 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			served, refused := 0, 0
			for _, book := range []*quota.Book{a, a, a, b, b} {
				ticket, d := request(ctx, book, strict)
				switch d {
				case quota.Taken:
					served++
					ticket.Spend()
				case quota.Exhausted:
					refused++
				default:
					t.Errorf("got decision %v, want taken or exhausted", d)
				}
			}
			if served != 4 || refused != 1 {
				t.Errorf("got %d served and %d refused of five requests, want 4 and 1", served, refused)
			}
		}, a, b)
	})
}

func TestBook_ParkedRequestsEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(4, acme)
		way := &link{edge: "a", ledger: l, cut: true}
		b := newBook(t, way, func(c *quota.Config) { c.MaxParked = 3 })
		run(t, func(ctx context.Context) {
			began := time.Now()
			if _, d := request(ctx, b, strict); d != quota.Unconfirmed || time.Since(began) != quota.DefaultWait {
				t.Errorf("nobody answers: got %v after %v, want unconfirmed after %v", d, time.Since(began), quota.DefaultWait)
			}
			gone, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
			began = time.Now()
			if _, d := request(gone, b, strict); d != quota.Unconfirmed || time.Since(began) != 30*time.Millisecond {
				t.Errorf("the client left: got %v after %v, want it to end with the request", d, time.Since(began))
			}
			cancel()
			var wg sync.WaitGroup
			var at atomic.Int64
			for range 5 {
				wg.Go(func() {
					began := time.Now()
					request(ctx, b, strict)
					if time.Since(began) == 0 {
						at.Add(1)
					}
				})
			}
			wg.Wait()
			if at.Load() != 2 {
				t.Errorf("got %d of five refused at once where three may wait, want 2", at.Load())
			}
			if s := b.Stats(); s.Parked != 0 || s.Crowded != 2 {
				t.Errorf("got %+v, want nobody parked and two crowded out", s)
			}
		}, b)
	})
}

// Who comes to a process that has just taken another's place has waited for it, and waits for its first answer too.
func TestBook_AYoungOneIsWaitedForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(9, acme)
		way := &link{edge: "a", ledger: l, delay: 600 * time.Millisecond}
		b := newBook(t, way, func(c *quota.Config) { c.Young = quota.TakeoverWait })
		run(t, func(ctx context.Context) {
			if ticket, d := request(ctx, b, strict); d != quota.Taken {
				t.Errorf("in its first second: got %v, want taken", d)
			} else {
				ticket.Spend()
			}
			time.Sleep(6 * time.Second)
			began := time.Now()
			if _, d := request(ctx, b, strict); d != quota.Unconfirmed || time.Since(began) != quota.DefaultWait {
				t.Errorf("later: got %v after %v, want unconfirmed after %v", d, time.Since(began), quota.DefaultWait)
			}
		}, b)
		way.wg.Wait()
	})
	b := newBook(t, &link{edge: "a", ledger: newLedger(4, acme)}, func(c *quota.Config) { c.Wait, c.Young = 0, quota.TakeoverWait })
	if _, d := request(t.Context(), b, strict); d != quota.Unconfirmed {
		t.Errorf("told to wait not at all: got %v, want unconfirmed at once", d)
	}
}

func TestBook_WaitsNotAtAllWhenToldSo(t *testing.T) {
	b := newBook(t, &link{edge: "a", ledger: newLedger(4, acme)}, func(c *quota.Config) { c.Wait = 0 })
	if _, d := request(t.Context(), b, strict); d != quota.Unconfirmed {
		t.Errorf("got %v, want unconfirmed at once", d)
	}
}

// one leases a single unit, once, and never says that there is nothing left.
type one struct{}

func (one) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, k := range r.Asks {
		out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: 1, Limit: 2, Leases: true})
	}
	return out, nil
}

// A unit that is given back goes to the one who has waited longest, and nobody else wakes.
func TestBook_ReleasedUnitsGoToThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, one{}, nil)
		run(t, func(ctx context.Context) {
			ticket, d := request(ctx, b, strict)
			if d != quota.Taken {
				t.Fatalf("got %v, want the one unit", d)
			}
			began := time.Now()
			var mu sync.Mutex
			var order []int
			var wg sync.WaitGroup
			for i := range 3 {
				time.Sleep(time.Millisecond)
				wg.Go(func() {
					ticket, d := request(ctx, b, strict)
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					if i < 2 && (d != quota.Taken || time.Since(began) > 60*time.Millisecond) {
						t.Errorf("waiter %d: got %v after %v, want the unit as soon as it is free", i, d, time.Since(began))
					}
					if i == 2 && d != quota.Unconfirmed {
						t.Errorf("waiter 2: got %v, want unconfirmed: the unit was spent", d)
					}
					time.Sleep(10 * time.Millisecond)
					if i == 0 {
						ticket.Release()
					}
				})
			}
			time.Sleep(40 * time.Millisecond)
			ticket.Release()
			wg.Wait()
			if !slices.Equal(order, []int{0, 1, 2}) {
				t.Errorf("got order %v, want first come first served", order)
			}
		}, b)
	})
}

// An edge that uses what it holds gives it back at once when another starves, not after a second of silence.
func TestBook_RecalledUnitsGoToWhoStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(100, acme)
		l.broken, l.generous = t.Errorf, true
		a := newBook(t, &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}, nil)
		b := newBook(t, &link{edge: "b", ledger: l, delay: 5 * time.Millisecond}, nil)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { a.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		for range 60 { // at 100 a second it wants to hold 200
			if ticket, d := request(ctx, a, strict); d == quota.Taken {
				ticket.Spend()
			}
			time.Sleep(10 * time.Millisecond)
		}
		if h := l.peek(acme, "a"); h.leased != 100 {
			t.Errorf("got %d leased to a, want all 100", h.leased)
		}
		wg.Go(func() { b.Run(ctx) })
		wg.Go(func() {
			for range 20 {
				if ticket, d := request(ctx, a, strict); d == quota.Taken {
					ticket.Spend()
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		began := time.Now()
		if ticket, d := request(ctx, b, strict); d != quota.Taken {
			t.Errorf("got %v after %v, want a unit that a gave back", d, time.Since(began))
		} else {
			ticket.Spend()
		}
	})
}

func TestBook_GivesBackWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1000, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for range 200 {
				if ticket, d := request(ctx, b, strict); d == quota.Taken {
					ticket.Spend()
				}
				time.Sleep(10 * time.Millisecond)
			}
			h := l.peek(acme, "a")
			if held := h.leased - h.said; held < 50 {
				t.Errorf("got %d held at 100 requests a second, want about two seconds' worth", held)
			}
			time.Sleep(1500 * time.Millisecond)
			if h = l.peek(acme, "a"); h.leased != 200 || h.said != 200 {
				t.Errorf("a second and a half later: got leased %d, spent %d, want both 200", h.leased, h.said)
			}
			asks := l.asked()
			time.Sleep(10 * time.Second)
			if l.asked() != asks {
				t.Errorf("got %d asks of an account nobody uses, want none", l.asked()-asks)
			}
		}, b)
	})
}

// An account that was let go and comes back within its period remembers what it spent: else the ledger's
// cumulative number would be leased to it a second time.
func TestBook_AnAccountThatComesBackIsNotLeasedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10, acme)
		l.broken = t.Errorf
		b := newBook(t, &link{edge: "a", ledger: l}, nil)
		run(t, func(ctx context.Context) {
			for range 6 {
				ticket, _ := request(ctx, b, strict)
				ticket.Spend()
			}
			time.Sleep(15 * time.Minute)
			if s := b.Stats(); s.Accounts != 0 {
				t.Fatalf("got %d accounts after a quarter of an hour, want none", s.Accounts)
			}
			served := 6
			for range 10 {
				if ticket, d := request(ctx, b, strict); d == quota.Taken {
					served++
					ticket.Spend()
				}
			}
			if served != 10 {
				t.Errorf("got %d served of a limit of 10", served)
			}
		}, b)
	})
}

func TestBook_PeriodRolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(3, acme)
		now := time.Now().Unix()
		l.period, l.end = now-100, now+10
		b := newBook(t, &link{edge: "a", ledger: l, delay: time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for i := range 4 {
				ticket, d := request(ctx, b, strict)
				if want := i < 3; (d == quota.Taken) != want {
					t.Fatalf("request %d: got %v, want taken %v", i, d, want)
				}
				if d == quota.Taken {
					if ticket.Period() != now-100 {
						t.Errorf("got period %d, want %d", ticket.Period(), now-100)
					}
					ticket.Spend()
				}
			}
			w, ok := b.Account(acme, strict).Whole(0)
			if !ok || w.Limit != 3 || w.Rest != 0 || w.Length != 110 || w.End != now+10 {
				t.Errorf("got %+v, want all three used of a period of 110 s", w)
			}
			time.Sleep(10 * time.Second)
			l.mu.Lock()
			l.period, l.end = now+10, now+110
			l.mu.Unlock()
			ticket, d := request(ctx, b, strict)
			if d != quota.Taken || ticket.Period() != now+10 {
				t.Errorf("in the next period: got %v in %d, want taken in %d", d, ticket.Period(), now+10)
			}
		}, b)
	})
}

// The leader's clock rules: an edge whose clock runs ahead goes on in the period that the leader calls current.
func TestBook_AFastClockDoesNotStopIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(100, acme)
		l.period, l.end = 1000, time.Now().Unix()-5
		b := newBook(t, &link{edge: "a", ledger: l, delay: time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			for range 50 {
				ticket, d := request(ctx, b, strict)
				if d != quota.Taken {
					t.Fatalf("got %v, want taken", d)
				}
				ticket.Spend()
				time.Sleep(100 * time.Millisecond)
			}
		}, b)
	})
}

func TestBook_TopUpAndUpgradeActAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1, acme)
		b := newBook(t, &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			ticket, _ := request(ctx, b, strict)
			ticket.Spend()
			if _, d := request(ctx, b, strict); d != quota.Exhausted {
				t.Fatalf("got %v, want exhausted", d)
			}
			raise := func(to int64) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.limits[acme] = to
			}
			raise(2) // a top-up: nothing tells the edge, but demand does
			began := time.Now()
			for time.Since(began) < time.Second {
				if ticket, d := request(ctx, b, strict); d == quota.Taken {
					ticket.Spend()
					break
				}
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(began); took > 350*time.Millisecond {
				t.Errorf("top-up: first changed decision after %v, want 350ms at most", took)
			}
			time.Sleep(300 * time.Millisecond)
			request(ctx, b, strict)
			raise(3)
			other := *strict // the table's next plan object
			if ticket, d := request(ctx, b, &other); d != quota.Taken {
				t.Errorf("another plan: got %v at once, want taken", d)
			} else {
				ticket.Spend()
			}
			// The leader hears of the next plan 20 ms after the edge.
			third := *strict
			if _, d := request(ctx, b, &third); d != quota.Exhausted {
				t.Errorf("another plan that the leader does not know: got %v, want exhausted", d)
			}
			time.Sleep(20 * time.Millisecond)
			raise(4)
			began = time.Now()
			for d := quota.Exhausted; d != quota.Taken && time.Since(began) < time.Second; time.Sleep(time.Millisecond) {
				_, d = request(ctx, b, &third)
			}
			if took := time.Since(began); took > 60*time.Millisecond {
				t.Errorf("a leader that hears later: first changed decision after %v, want 60ms at most", took)
			}
		}, b)
	})
}

// A soft quota is only watched: the first request waits for the period, so that it is counted in it, and
// nobody waits while the control plane is away.
func TestBook_SoftIsWatchedAndNeverHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(4, acme)
		l.soft = true
		way := &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}
		b := newBook(t, way, nil)
		run(t, func(ctx context.Context) {
			for range 1000 {
				ticket, d := request(ctx, b, soft)
				if d != quota.Taken || ticket.Period() != 1000 {
					t.Fatalf("got %v in period %d, want taken in 1000", d, ticket.Period())
				}
				ticket.Spend()
			}
			time.Sleep(time.Second)
			if h := l.peek(acme, "a"); h.leased != 0 || h.said != 1000 {
				t.Errorf("got leased %d and spent %d, want 0 and 1000", h.leased, h.said)
			}
			// It becomes strict within the period: what was spent counts.
			l.mu.Lock()
			l.soft = false
			l.limits[acme] = 1002
			l.mu.Unlock()
			l.apply(account{acme, 1000}, "a", 7, 1000)
			served := 0
			for range 20 {
				if ticket, d := request(ctx, b, strict); d == quota.Taken {
					served++
					ticket.Spend()
				}
			}
			if served != 2 {
				t.Errorf("strict, 1000 of 1002 spent: got %d served, want 2", served)
			}
		}, b)
		away := newBook(t, &link{edge: "a", ledger: l, cut: true}, nil)
		run(t, func(ctx context.Context) {
			time.Sleep(time.Second)
			began := time.Now()
			if _, d := request(ctx, away, soft); d != quota.Unconfirmed || time.Since(began) != 0 {
				t.Errorf("control plane away: got %v after %v, want it not to wait", d, time.Since(began))
			}
		}, away)
	})
}

// A period ends while the control plane is away: what is served then is not of that period any more.
func TestBook_SoftUnitsAfterThePeriodAreNotOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(4, acme)
		l.soft = true
		l.end = time.Now().Unix() + 10
		way := &link{edge: "a", ledger: l}
		b := newBook(t, way, nil)
		run(t, func(ctx context.Context) {
			request(ctx, b, soft)
			way.set(func() { way.cut = true })
			for _, want := range []int64{1000, 0} {
				ticket, d := request(ctx, b, soft)
				if d != quota.Taken || ticket.Period() != want {
					t.Errorf("got %v in period %d, want taken in %d", d, ticket.Period(), want)
				}
				ticket.Spend()
				time.Sleep(15 * time.Second)
			}
		}, b)
	})
}

// A leader whose clock is hours behind names a period that the edge has forgotten: the units on record there
// may be spent, and are not leased once more.
func TestBook_AForgottenPeriodThatIsNamedAgainIsNotLeasedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10, acme)
		l.broken = t.Errorf
		l.length = 3600
		b := newBook(t, &link{edge: "a", ledger: l}, nil)
		run(t, func(ctx context.Context) {
			served := map[int64]int{}
			serve := func() {
				for range 12 {
					if ticket, d := request(ctx, b, strict); d == quota.Taken {
						served[ticket.Period()]++
						ticket.Spend()
					}
				}
			}
			for range 6 {
				ticket, _ := request(ctx, b, strict)
				served[ticket.Period()]++
				ticket.Spend()
			}
			time.Sleep(3 * time.Hour)
			l.mu.Lock()
			l.skew = -3 * time.Hour
			l.mu.Unlock()
			serve()
			for period, n := range served {
				if n > 10 {
					t.Errorf("got %d served of a limit of 10 in period %d", n, period)
				}
			}
			if len(served) != 1 {
				t.Errorf("got periods %v, want the first one twice", served)
			}
		}, b)
	})
}

// An edge that stops in order gives back what no request will take.
func TestBook_GivesBackWhenItStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(1000, acme)
		b := newBook(t, &link{edge: "a", ledger: l}, nil)
		run(t, func(ctx context.Context) {
			for range 50 {
				ticket, _ := request(ctx, b, strict)
				ticket.Spend()
				time.Sleep(10 * time.Millisecond)
			}
		}, b)
		if h := l.peek(acme, "a"); h.leased != 50 {
			t.Errorf("got %d leased after the end, want the 50 that were spent", h.leased)
		}
	})
}

func TestTicket_LostRowsStayTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(10, acme)
		b := newBook(t, &link{edge: "a", ledger: l}, nil)
		run(t, func(ctx context.Context) {
			request(ctx, b, strict) // its row is not kept: neither spent nor released
			time.Sleep(5 * time.Second)
			h := l.peek(acme, "a")
			if h.leased != 1 || h.said != 0 || h.inFlight != 1 {
				t.Errorf("got %+v, want the unit held in flight", h)
			}
		}, b)
	})
}

// Requests of many units are asked for as such: none waits until its units have become a rate, nor because there is nearly
// enough.
func TestBook_WhoWaitsForManyUnitsGetsThemAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(100_000, acme)
		l.broken, l.generous = t.Errorf, true
		b := newBook(t, &link{edge: "a", ledger: l, delay: 5 * time.Millisecond}, nil)
		run(t, func(ctx context.Context) {
			a := b.Account(acme, strict)
			for i := range 40 {
				began := time.Now()
				ticket, d := a.Take(100, true, began.Unix())
				if d == quota.Wait {
					ticket, d = a.Park(ctx, 100, true)
				}
				if took := time.Since(began); d != quota.Taken || took > 20*time.Millisecond {
					t.Errorf("request %d: got %v after %v, want its units within two exchanges", i, d, took)
				}
				ticket.Part(7).Spend()
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
			}
		}, b)
	})
}

// noted leases far more than is asked for, or nothing for now, and keeps when it was asked.
type noted struct {
	mu      sync.Mutex // covers asked
	asked   []time.Time
	nothing atomic.Bool
}

func (p *noted) times() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func (p *noted) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	p.mu.Lock()
	p.asked = append(p.asked, time.Now())
	p.mu.Unlock()
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	leased := int64(1 << 20)
	if p.nothing.Load() {
		leased = 0
	}
	for _, k := range r.Asks {
		out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, Leased: leased, Limit: 1 << 40, Leases: true})
	}
	return out, nil
}

// An edge hears its leader once a second, and five times as often while it holds units: sooner than a request that starves for them
// elsewhere has waited in vain, whenever between two ticks the first one came.
func TestBook_IsNeverLongWithoutAnExchange(t *testing.T) {
	for after := time.Duration(0); after < 100*time.Millisecond; after += 7 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			p := &noted{}
			b := newBook(t, p, nil)
			run(t, func(ctx context.Context) {
				time.Sleep(3*time.Second + after)
				asked := p.times()
				held := len(asked)
				if held < 3 {
					t.Errorf("%d exchanges in 3 s", held)
				}
				for i, at := range asked[1:] {
					if gap := at.Sub(asked[i]); gap > time.Second {
						t.Errorf("%v went by without an exchange", gap)
					}
				}
				request(ctx, b, strict)
				time.Sleep(900 * time.Millisecond) // in use all the while
				asked = p.times()
				if n := len(asked) - held; n < 5 || n > 11 {
					t.Errorf("%d exchanges in 900 ms", n)
				}
				for i, at := range asked[held+1:] {
					if gap := at.Sub(asked[held+i]); gap > 200*time.Millisecond {
						t.Errorf("%v after a tick: units were held, and %v went by without an exchange", after, gap)
					}
				}
			}, b)
		})
	}
}
