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

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
)

// process is one of an edge's: the newest serves who comes, and those before it go on with what they have.
type process struct {
	epoch  uint64
	book   *quota.Book
	stop   context.CancelFunc // of its exchanges with the ledger
	ended  sync.WaitGroup
	sublet *quota.Sublet // to the process before; nil: there is none
	after  *process      // it lingers, and that one counts for it
	dead   bool
}

// succession is an edge whose processes take each other's place.
type succession struct {
	t      *testing.T
	ledger *ledger
	way    *link
	limit  int64
	plan   *policy.Plan

	mu     sync.Mutex
	now    *process
	all    []*process
	rows   map[spent]int64
	sent   map[spent]int64
	served map[int64]int64
	disk   []quota.Pending // what was unheard of when a process last adopted
	over   int             // units of streams that went on over a takeover
}

func (e *succession) begin(before *process, holding []quota.Ask) *process {
	p := &process{epoch: uint64(len(e.all) + 1)}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	b, err := quota.New(quota.Config{Leader: e.way, Epoch: p.epoch, Pending: func() []quota.Pending { return e.pending(p.epoch) }, Logger: slog.New(slog.DiscardHandler), Wait: quota.DefaultWait})
	if err != nil {
		e.t.Fatal(err)
	}
	p.book = b
	if before != nil {
		e.disk = append(before.book.Unheard(), quota.Pending{Epoch: before.epoch, Sealed: 1})
		p.sublet = b.Adopt(e.disk, holding, func(name string) *policy.Plan {
			if name == e.plan.Name {
				return e.plan
			}
			return nil
		})
	} else {
		b.Adopt(e.disk, nil, nil)
	}
	p.ended.Go(func() { b.Run(ctx) })
	e.mu.Lock()
	e.now, e.all = p, append(e.all, p)
	e.mu.Unlock()
	return p
}

func (e *succession) pending(current uint64) (out []quota.Pending) {
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

func (e *succession) ship() {
	e.mu.Lock()
	rows := map[spent]int64{}
	for of, n := range e.rows {
		rows[of] = n
	}
	e.mu.Unlock()
	for of, n := range rows {
		e.ledger.apply(account{acme, of.period}, "edge", of.epoch, n)
		e.mu.Lock()
		e.sent[of] = n
		e.mu.Unlock()
	}
}

// takeover has another process take the newest one's place, which goes on with what it has.
func (e *succession) takeover() {
	a := e.now
	a.stop()
	a.ended.Wait()
	holding := a.book.Holding()
	b := e.begin(a, holding)
	e.mu.Lock()
	a.after = b
	e.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	a.ended.Go(func() { a.book.RunUnder(ctx, b.sublet) })
}

// kill ends processes without a last word. Whoever counted for another takes it along; who was counted for gives back what it held.
func (e *succession) kill(p *process) {
	var cut bool
	e.way.set(func() { cut, e.way.cut = e.way.cut, true })
	e.mu.Lock()
	var gone []*process
	for _, q := range e.all { // those before it, by and by
		if q == p || q.after != nil && (q.after == p || q.after.dead) {
			if !q.dead {
				q.dead = true
				gone = append(gone, q)
			}
		}
	}
	for again := true; again; {
		again = false
		for _, q := range e.all {
			if !q.dead && q.after != nil && q.after.dead {
				q.dead, again = true, true
				gone = append(gone, q)
			}
		}
	}
	e.mu.Unlock()
	for _, q := range gone {
		q.stop()
		q.ended.Wait()
	}
	e.way.set(func() { e.way.cut = cut })
	if p.after != nil {
		p.after.sublet.End()
	}
	if p == e.now {
		e.begin(nil, nil)
	}
}

// row counts a unit that was taken of p's book, at whoever counts for it. false: nobody does any more.
func (e *succession) row(p *process, t quota.Ticket) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.dead {
		return false
	}
	last := p
	for last.after != nil {
		last = last.after
	}
	e.rows[spent{last.epoch, t.Period()}] += t.Units()
	for q := p; q.after != nil; q = q.after {
		q.after.sublet.Spent(acme, t.Period(), t.Units())
	}
	t.Spend()
	e.served[t.Period()] += t.Units()
	if e.served[t.Period()] > e.limit {
		e.t.Errorf("served %d of a limit of %d in period %d", e.served[t.Period()], e.limit, t.Period())
	}
	return true
}

// state is who holds what.
func (e *succession) state() (out string) {
	e.ledger.mu.Lock()
	for at, h := range e.ledger.accounts[account{acme, e.ledger.period}] {
		if h.leased > h.applied {
			out += fmt.Sprintf("in the ledger epoch %d is leased %d, spent %d; ", at.epoch, h.leased, h.applied)
		}
	}
	e.ledger.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.all {
		if !p.dead {
			s := p.book.Stats()
			out += fmt.Sprintf("process %d: %d free, %d spent; ", p.epoch, s.Free, s.Spent)
			if p.sublet != nil {
				out += fmt.Sprintf("holds %d for the one before; ", p.sublet.Held())
			}
		}
	}
	return out
}

// stream takes units one after the other for a while, of the process that it began at.
func (e *succession) stream(ctx context.Context, r *rand.Rand, units int) {
	e.mu.Lock()
	p := e.now
	e.mu.Unlock()
	for range units {
		t, d := request(ctx, p.book, e.plan)
		for again := 0; d != quota.Taken && again < 5 && ctx.Err() == nil; again++ {
			time.Sleep(time.Second)
			t, d = request(ctx, p.book, e.plan)
		}
		if d != quota.Taken {
			return
		}
		time.Sleep(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		if r.IntN(10) == 0 { // no upstream answered
			t.Release()
			continue
		}
		e.mu.Lock()
		if p.after != nil {
			e.over++
		}
		e.mu.Unlock()
		if !e.row(p, t) {
			return
		}
	}
}

// TestSublet_InvariantQ has processes of one edge take each other's place under streams that go on: never more than the quota is served,
// and all of it in the end, whoever is killed.
func TestSublet_InvariantQ(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 8
	}
	over := 0
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { succeed(t, uint64(seed), &over) })
		})
	}
	if over < 10*seeds {
		t.Errorf("%d units of %d seeds were taken by who went on over a takeover: too few to say anything", over, seeds)
	}
}

func succeed(t *testing.T, seed uint64, over *int) {
	rnd := rand.New(rand.NewPCG(seed, 23))
	e := &succession{t: t, plan: strict, rows: map[spent]int64{}, sent: map[spent]int64{}, served: map[int64]int64{}, limit: []int64{4, 40, 400, 400}[rnd.IntN(4)]}
	e.ledger = newLedger(e.limit, acme)
	e.ledger.broken, e.ledger.lingers = t.Errorf, true
	if rnd.IntN(3) == 0 {
		e.ledger.length = 7
	}
	e.way = &link{edge: "edge", ledger: e.ledger, rnd: rand.New(rand.NewPCG(seed, 24)), loss: 0.1, twice: 0.1, delay: time.Millisecond}
	e.begin(nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+i)))
			for ctx.Err() == nil {
				e.stream(ctx, r, 1+r.IntN(20))
				time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(250 * time.Millisecond)
			e.ship()
		}
	})
	for range 25 {
		time.Sleep(time.Duration(rnd.Int64N(int64(1500 * time.Millisecond))))
		switch rnd.IntN(6) {
		case 0, 1, 2:
			e.takeover()
		case 3:
			e.kill(e.now)
		case 4:
			if p := e.all[rnd.IntN(len(e.all))]; !p.dead {
				e.kill(p)
			}
		case 5:
			e.way.set(func() { e.way.loss = rnd.Float64() / 2 })
		}
	}
	e.way.set(func() { e.way.cut, e.way.loss, e.way.twice, e.way.rnd = false, 0, 0, nil })
	e.ledger.mu.Lock()
	e.ledger.length, e.ledger.end = 0, 0
	last := e.ledger.period
	e.ledger.mu.Unlock()
	done := func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.served[last] == e.limit
	}
	for began := time.Now(); time.Since(began) < 2*time.Minute && !done(); time.Sleep(100 * time.Millisecond) {
	}
	if !done() {
		t.Errorf("served %d after all was well for two minutes, want exactly %d; %s", e.served[last], e.limit, e.state())
	}
	cancel()
	wg.Wait()
	for _, p := range e.all {
		if !p.dead {
			p.stop()
			p.ended.Wait()
		}
	}
	e.way.wg.Wait()
	*over += e.over
}
