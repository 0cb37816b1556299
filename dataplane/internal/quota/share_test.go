package quota_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/table"
)

const (
	planRate  = 100
	planBurst = 20
	// lag is how long an edge may go on with an old share: an exchange of what it watches, a tick, the way.
	lag = 400 * time.Millisecond
)

// region is four edges that share one subscription's rate limit, and clients whose demand moves.
type shareSim struct {
	t        *testing.T
	began    time.Time
	mu       sync.Mutex
	demand   [4]int // requests a second
	admitted []int  // by second
	offered  []int
}

func (s *shareSim) second() int { return int(time.Since(s.began) / time.Second) }

func (s *shareSim) count(ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.admitted) <= s.second() {
		s.admitted, s.offered = append(s.admitted, 0), append(s.offered, 0)
	}
	s.offered[s.second()]++
	if ok {
		s.admitted[s.second()]++
	}
}

// clients send to one edge as its demand says.
func (s *shareSim) clients(ctx context.Context, i int, book func() *quota.Book, limits *limit.Map, plan *policy.Plan) {
	rnd := rand.New(rand.NewPCG(9, uint64(i)))
	for ctx.Err() == nil {
		s.mu.Lock()
		d := s.demand[i]
		s.mu.Unlock()
		if d == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		time.Sleep(time.Duration(rnd.Int64N(2 * int64(time.Second) / int64(d))))
		b := book()
		if b == nil {
			continue
		}
		share := b.Account(acme, plan).Offer()
		s.count(limits.Take(limit.ID{Customer: "acme", Subscription: "main", Plan: plan.Name}, time.Since(s.began), planRate, planBurst, share).OK)
	}
}

// TestBook_SharedRateLimit measures how far four edges together stray from the plan's limit while demand of
// 90/5/5/0 moves between them, the control plane goes and comes back, and an edge dies. DESIGN.md has the bound.
func TestBook_SharedRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(0, acme)
		l.none, l.sharing = true, true
		plan := &policy.Plan{Plan: table.Plan{Name: "shared", RequestsPerSecond: planRate, Burst: planBurst}}
		s := &shareSim{t: t, began: time.Now()}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var ways [4]*link
		var stops [4]context.CancelFunc
		var mu sync.Mutex
		var books [4]*quota.Book
		for i := range books {
			ways[i] = &link{edge: fmt.Sprint("edge-", i), ledger: l, delay: 10 * time.Millisecond}
			b, err := quota.New(quota.Config{Leader: ways[i], Epoch: 1, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			books[i] = b
			alive, stop := context.WithCancel(ctx)
			stops[i] = stop
			wg.Go(func() { b.Run(alive) })
			limits := limit.NewMap()
			wg.Go(func() {
				s.clients(ctx, i, func() *quota.Book { mu.Lock(); defer mu.Unlock(); return books[i] }, limits, plan)
			})
		}
		time.Sleep(time.Second) // every edge has beaten once: each knows how many live
		demand := func(a, b, c, d int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.demand = [4]int{a, b, c, d}
		}
		// A phase is a change, and then ten seconds. What follows two seconds after it is steady.
		type phase struct {
			name   string
			change func()
			moves  int  // edges to which much of the demand goes
			steady bool // the shares can follow
		}
		phases := []phase{
			{"90/5/5/0", func() { demand(180, 10, 10, 0) }, 1, true},
			{"5/90/5/0", func() { demand(10, 180, 10, 0) }, 1, true},
			{"0/5/5/90", func() { demand(0, 10, 10, 180) }, 1, true},
			{"even", func() { demand(50, 50, 50, 50) }, 3, true},
			{"half the limit", func() { demand(45, 2, 2, 1) }, 0, true},
			{"90/5/5/0 again", func() { demand(180, 10, 10, 0) }, 1, true},
			{"control plane away", func() {
				for _, w := range ways {
					w.set(func() { w.cut = true })
				}
			}, 0, true},
			{"away, and demand moves", func() { demand(0, 5, 10, 180) }, 1, false},
			{"back", func() {
				for _, w := range ways {
					w.set(func() { w.cut = false })
				}
			}, 1, true},
			{"the busiest edge dies", func() {
				mu.Lock()
				books[3] = nil
				mu.Unlock()
				ways[3].set(func() { ways[3].cut = true })
				stops[3]()
				demand(180, 10, 10, 0)
			}, 1, true},
		}
		worstOver, worstSteady, worstUnder := 0, 0, 0
		for _, p := range phases {
			from := s.second()
			p.change()
			time.Sleep(10 * time.Second)
			s.mu.Lock()
			for i := from; i < from+10; i++ {
				got, most := s.admitted[i], planRate+planBurst
				if i < from+2 { // each move lets an edge spend another burst, and old shares be used a little longer
					most += p.moves * (planBurst + int(planRate*lag/time.Second))
					worstOver = max(worstOver, got-planRate)
				} else if worstSteady = max(worstSteady, got-planRate); p.steady && i >= from+5 {
					least := min(planRate, s.offered[i]) * 9 / 10
					worstUnder = max(worstUnder, min(planRate, s.offered[i])-got)
					if got < least {
						t.Errorf("%s, second %d: admitted %d of %d offered, want %d at least", p.name, i-from, got, s.offered[i], least)
					}
				}
				if got > most {
					t.Errorf("%s, second %d: admitted %d, want %d at most", p.name, i-from, got, most)
				}
			}
			t.Logf("%-24s admitted %v", p.name, s.admitted[from:from+10])
			s.mu.Unlock()
		}
		t.Logf("limit %d/s, burst %d: worst second +%d after a move, +%d steady; worst steady shortfall -%d", planRate, planBurst, worstOver, worstSteady, worstUnder)
		cancel()
		wg.Wait()
	})
}
