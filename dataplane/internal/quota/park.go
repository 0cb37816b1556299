package quota

import (
	"container/list"
	"context"
	"time"
)

// waiter is one parked request. Whoever takes it off the list owes it exactly one outcome.
type waiter struct {
	units  int64
	leased bool
	done   chan outcome // holds one
}

type outcome struct {
	ticket   Ticket
	decision Decision
}

// Park waits until the request's units are leased, the quota is known to be used up, ctx ends or Config.Wait
// is over (Unconfirmed for both). A request of a quota that is only watched (leased false) waits for the first
// word on its period, and only while the control plane answers. Units are handed to those who wait in the
// order they came, so only those wake who have an outcome. It never calls anybody.
func (a *Account) Park(ctx context.Context, units int64, leased bool) (Ticket, Decision) {
	t, d := a.park(ctx, units, leased)
	switch d {
	case Exhausted:
		a.book.stats.exhausted.Add(1)
	case Unconfirmed:
		a.book.stats.unconfirmed.Add(1)
	}
	return t, d
}

func (a *Account) park(ctx context.Context, units int64, leased bool) (Ticket, Decision) {
	b := a.book
	if b.cfg.Wait <= 0 || !leased && !b.reachable.Load() {
		a.kick()
		return Ticket{}, Unconfirmed
	}
	if b.parked.Add(1) > int64(b.cfg.MaxParked) {
		b.parked.Add(-1)
		b.stats.crowded.Add(1)
		return Ticket{}, Unconfirmed
	}
	defer b.parked.Add(-1)
	timer := time.NewTimer(b.patience(time.Now()))
	defer timer.Stop()
	for {
		w := &waiter{units: units, leased: leased, done: make(chan outcome, 1)}
		e, ok := a.enter(w)
		if !ok {
			a = b.Account(a.id, a.plan.Load()) // it was let go in this moment
			continue
		}
		select {
		case got := <-w.done:
			return got.ticket, got.decision
		case <-timer.C:
		case <-ctx.Done():
		}
		if a.leave(e) {
			return Ticket{}, Unconfirmed
		}
		got := <-w.done // settled in this moment
		return got.ticket, got.decision
	}
}

// patience is how long a request waits that comes now.
func (b *Book) patience(now time.Time) time.Duration {
	if now.Sub(b.born) < youngFor {
		return max(b.cfg.Wait, b.cfg.Young)
	}
	return b.cfg.Wait
}

// enter puts w on the list, after which whoever frees units sees it; what was freed before is looked for here.
func (a *Account) enter(w *waiter) (*list.Element, bool) {
	a.mu.Lock()
	if a.dropped.Load() {
		a.mu.Unlock()
		return nil, false
	}
	e := a.waiting.PushBack(w)
	a.needed.Add(w.units)
	a.waiters.Store(int64(a.waiting.Len()))
	a.mu.Unlock()
	a.settle(time.Now().Unix())
	a.kick()
	return e, true
}

// leave takes a waiter off the list; false: it has an outcome.
func (a *Account) leave(e *list.Element) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.waiting.Len()
	a.waiting.Remove(e)
	a.waiters.Store(int64(a.waiting.Len()))
	if a.waiting.Len() == before {
		return false
	}
	a.needed.Add(-e.Value.(*waiter).units)
	return true
}

// settle gives those who wait their outcome, first come first served, until there is none to give.
func (a *Account) settle(unix int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.waiting.Front(); e != nil; e = a.waiting.Front() {
		w := e.Value.(*waiter)
		t, d := a.try(w.units, w.leased, unix)
		if d == Wait {
			break
		}
		a.waiting.Remove(e)
		a.needed.Add(-w.units)
		w.done <- outcome{t, d}
	}
	a.waiters.Store(int64(a.waiting.Len()))
}
