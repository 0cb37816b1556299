package quota_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/quota"
)

// simEdge is one edge: a Book that dies and comes back, clients, and a spool that survives it.
type simEdge struct {
	sim  *sim
	name string
	way  *link
	rnd  *rand.Rand

	mu    sync.Mutex
	epoch uint64
	book  *quota.Book
	rows  map[spent]int64 // units of rows appended, never lost
	sent  map[spent]int64 // of them, in the ledger
	stop  context.CancelFunc
	ended sync.WaitGroup
}

// spent is whose units a row's are.
type spent struct {
	epoch  uint64
	period int64
}

type sim struct {
	t       *testing.T
	ledger  *ledger
	edges   []*simEdge
	limit   int64
	mu      sync.Mutex
	served  map[int64]int64 // by period
	longest time.Duration
}

func (e *simEdge) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch++
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	epoch := e.epoch
	b, err := quota.New(quota.Config{Leader: e.way, Epoch: epoch, Pending: func() []quota.Pending { return e.pending(epoch) }, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
	if err != nil {
		e.sim.t.Fatal(err)
	}
	e.book = b
	e.ended.Go(func() { b.Run(ctx) })
}

// kill is SIGKILL: nothing in memory survives, every row appended does.
func (e *simEdge) kill() {
	e.mu.Lock()
	e.book = nil
	stop := e.stop
	e.mu.Unlock()
	var cut bool
	e.way.set(func() { cut, e.way.cut = e.way.cut, true }) // no last word
	stop()
	e.ended.Wait()
	e.way.set(func() { e.way.cut = cut })
}

func (e *simEdge) pending(current uint64) (out []quota.Pending) {
	e.mu.Lock()
	defer e.mu.Unlock()
	late := map[uint64]bool{}
	for of, n := range e.rows {
		if of.epoch != current && n > e.sent[of] && !late[of.epoch] {
			late[of.epoch] = true
			out = append(out, quota.Pending{Epoch: of.epoch, Sealed: 1})
		}
	}
	return out
}

// ship brings rows to the ledger: acknowledged, or sent again.
func (e *simEdge) ship() {
	e.mu.Lock()
	rows := maps.Clone(e.rows)
	e.mu.Unlock()
	for of, n := range rows {
		e.sim.ledger.apply(account{acme, of.period}, e.name, of.epoch, n)
		e.mu.Lock()
		e.sent[of] = n
		e.mu.Unlock()
	}
}

// request is one client's.
func (e *simEdge) request(ctx context.Context, service time.Duration, answered bool) quota.Decision {
	e.mu.Lock()
	b, epoch := e.book, e.epoch
	e.mu.Unlock()
	if b == nil {
		return quota.Unconfirmed
	}
	began := time.Now()
	ticket, d := request(ctx, b, strict)
	s := e.sim
	s.mu.Lock()
	s.longest = max(s.longest, time.Since(began))
	s.mu.Unlock()
	if d != quota.Taken {
		return d
	}
	time.Sleep(service)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.book != b {
		return d // killed meanwhile: no row
	}
	if !answered {
		ticket.Release()
		return d
	}
	e.rows[spent{epoch, ticket.Period()}]++
	ticket.Spend()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.served[ticket.Period()]++; s.served[ticket.Period()] > s.limit {
		s.t.Errorf("served %d of a limit of %d in period %d", s.served[ticket.Period()], s.limit, ticket.Period())
	}
	return d
}

// TestBook_InvariantQ runs real Books against the reference ledger over a network that loses, delays, reorders
// and repeats, with edges that die and partitions: never more than the limit, exactly the limit once all is
// well again, and nobody who waits waits longer than allowed.
func TestBook_InvariantQ(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, uint64(seed)) })
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 6))
	s := &sim{t: t, served: map[int64]int64{}, limit: []int64{1, 4, 100, 1000, 1000}[rnd.IntN(5)]}
	s.ledger = newLedger(s.limit, acme)
	s.ledger.broken = t.Errorf
	if rolls := rnd.IntN(2) == 0; rolls { // periods pass, and the leader's clock is another
		s.ledger.length, s.ledger.skew = 7, time.Duration(rnd.Int64N(int64(6*time.Second)))-3*time.Second
	}
	n := 2 + rnd.IntN(3)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	loads := []int{90, 5, 5, 1}
	for i := range n {
		e := &simEdge{sim: s, name: fmt.Sprint("edge-", i), rnd: rand.New(rand.NewPCG(seed, uint64(i))), rows: map[spent]int64{}, sent: map[spent]int64{}}
		e.way = &link{edge: e.name, ledger: s.ledger, rnd: rand.New(rand.NewPCG(seed, uint64(100+i))), loss: 0.1, twice: 0.1, delay: time.Millisecond}
		s.edges = append(s.edges, e)
		e.start()
		wg.Go(func() { // clients
			r := rand.New(rand.NewPCG(seed, uint64(200+i)))
			var under sync.WaitGroup
			for ctx.Err() == nil {
				time.Sleep(time.Duration(1 + r.Int64N(int64(2*time.Second)/int64(loads[i]))))
				service, answered := time.Duration(r.Int64N(int64(100*time.Millisecond))), r.IntN(10) > 0
				under.Go(func() { e.request(ctx, service, answered) })
			}
			under.Wait()
		})
		wg.Go(func() { // the road up
			for ctx.Err() == nil {
				time.Sleep(250 * time.Millisecond)
				e.way.mu.Lock()
				cut := e.way.cut
				e.way.mu.Unlock()
				if !cut {
					e.ship()
				}
			}
		})
	}
	// Faults for twenty seconds of virtual time.
	for range 40 {
		time.Sleep(500 * time.Millisecond)
		e := s.edges[rnd.IntN(n)]
		switch rnd.IntN(4) {
		case 0:
			e.way.set(func() { e.way.cut = !e.way.cut })
		case 1:
			e.kill()
			time.Sleep(time.Duration(rnd.Int64N(int64(time.Second))))
			e.start()
		case 2:
			e.way.set(func() { e.way.loss = rnd.Float64() / 2 })
		case 3:
			s.ledger.mu.Lock()
			if s.ledger.length > 0 { // another plan, whose periods are longer, and back: an old period is current again
				s.ledger.length = 7 + 60 - s.ledger.length
			}
			s.ledger.mu.Unlock()
		}
	}
	// All is well again: what was held by dead epochs and idle edges comes back, and is served.
	for _, e := range s.edges {
		e.way.set(func() { e.way.cut, e.way.loss, e.way.twice, e.way.rnd = false, 0, 0, nil })
	}
	s.ledger.mu.Lock()
	s.ledger.length = 0 // the present period goes on
	s.ledger.end = 0
	last := s.ledger.period
	s.ledger.mu.Unlock()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(100 * time.Millisecond) {
		s.mu.Lock()
		done := s.served[last] == s.limit
		s.mu.Unlock()
		if done {
			break
		}
	}
	cancel()
	wg.Wait()
	for _, e := range s.edges {
		e.kill()
		e.way.wg.Wait()
	}
	if s.served[last] != s.limit {
		t.Errorf("served %d after all was well for a minute, want exactly %d", s.served[last], s.limit)
	}
	if s.longest > quota.DefaultWait {
		t.Errorf("a request waited %v, want %v at most", s.longest, quota.DefaultWait)
	}
}
