package proxy

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/quota"
	"bailiwick/dataplane/internal/websocket"
	"bailiwick/shared/usage"
)

const quotaAgain = time.Second // a connection that waits for units asks so often

// tab is what a connection that lasts comes to. While it does, the call's rows are the tab's alone.
type tab struct {
	c        *call
	per      int64 // messages or bytes a unit; 0: the connection as a whole costs what a request does
	messages bool  // it is messages that cost
	stopped  context.Context
	told     *atomic.Pointer[websocket.Order] // that it ends: nothing passes any more; nil: nobody judges it here

	mu      sync.Mutex // covers the rest, and the call's rows
	in, out int64      // bytes that passed
	rowed   int64      // of out, in rows
	used    int64      // messages or bytes
	paid    int64      // units in rows
	room    int64      // what used may come to with the units at hand
	fresh   bool       // something passed since the last row
	failed  bool       // such a row could not be kept: nothing more passes that would have to be in one
}

// bill begins the tab of a call that was admitted. stopped ends waiting for units.
func (c *call) bill(stopped context.Context) *tab {
	t := &tab{c: c, stopped: stopped}
	if r := c.v.Route; r != nil && r.Units != nil && c.v.Units > 0 && c.v.Counted {
		t.per = r.Units.PerBytes
		if r.Units.PerMessages > 0 {
			t.per, t.messages = r.Units.PerMessages, true
		}
		t.room = product(c.v.Ticket.Units(), t.per)
	}
	c.tab, c.lastRow = t, time.Now()
	return t
}

func product(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

func (t *tab) bytesIn() int64 {
	if t == nil {
		return 0
	}
	return t.in
}

// due is how many units have come up since the last row: whole ones, or those that were begun too.
func (t *tab) due(end bool) int64 {
	n := t.used / t.per
	if end && t.used%t.per > 0 {
		n++
	}
	return n - t.paid
}

// Spend implements websocket.Meter.
func (t *tab) Spend(up bool, messages, bytes int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.over(); err != nil {
		return err
	}
	n := bytes
	if t.messages {
		n = messages
	}
	if t.per > 0 && n > 0 {
		for t.used > t.room-n {
			if err := t.renew(n); err != nil {
				return err
			}
		}
		t.used += n
		if t.failed = t.due(true) > 0 && !t.row(true); t.failed { // before what it is for passes: whoever kills the edge loses none of it
			return t.over()
		}
	}
	if up {
		t.in += bytes
	} else {
		t.out += bytes
	}
	t.fresh = true
	return nil
}

// over says why nothing may pass any more, with mu held.
func (t *tab) over() error {
	if t.told != nil {
		if o := t.told.Load(); o != nil {
			return o
		}
	}
	if t.failed && t.per > 0 {
		return &websocket.Order{Code: websocket.CloseLater, Reason: "usage cannot be recorded"}
	}
	return nil
}

// Tick implements websocket.Meter. Somebody who waits for units holds the tab: what passed was put into rows before.
func (t *tab) Tick() {
	if !t.mu.TryLock() {
		return
	}
	defer t.mu.Unlock()
	if t.fresh && time.Since(t.c.lastRow) >= t.c.p.cfg.InterimEvery {
		t.failed = !t.row(false)
	}
}

// row puts what passed since the last one into a row that is not the last, with mu held. false: it could not be.
func (t *tab) row(end bool) bool {
	c := t.c
	t.fresh = false
	if !c.v.Counted || c.counted {
		return true
	}
	c.v.Flags |= usage.FlagStreamed
	c.out, t.rowed = t.out-t.rowed, t.out
	c.row(usage.OutcomeSuccess, time.Now())
	if t.per == 0 {
		return c.append()
	}
	k := max(0, t.due(end))
	part, rest := c.v.Ticket.Split(k) // what is not due yet may be used at any moment: it stays taken
	t.paid += k
	c.kept.Units, c.kept.Period, c.v.Ticket = k, part.Period(), part
	kept := c.append()
	c.v.Ticket = rest
	return kept
}

// renew gets units for n more, with mu held: what was used of the old ones is in rows, and what was not goes back.
func (t *tab) renew(n int64) error {
	c := t.c
	c.v.Ticket.Release()
	c.v.Ticket = quota.Ticket{}
	t.room = product(t.paid, t.per)
	units := max(c.v.Units, (t.used+n+t.per-1)/t.per-t.paid)
	deadline := time.Now().Add(c.p.cfg.QuotaGrace)
	for {
		ticket, decision := c.v.More(units, time.Now().Unix())
		if decision == quota.Wait {
			ticket, decision = c.v.Account.Park(t.stopped, units, c.v.Leased)
		}
		switch {
		case decision == quota.Taken && ticket.Units() == 0: // nobody keeps account
			t.room = math.MaxInt64
			return nil
		case decision == quota.Taken:
			c.v.Ticket = ticket
			t.room = product(t.paid+ticket.Units(), t.per)
			return nil
		case !time.Now().Before(deadline) || t.stopped.Err() != nil:
			if err := t.over(); err != nil {
				return err
			}
			if decision == quota.Exhausted {
				return &websocket.Order{Code: websocket.ClosePolicy, Reason: "the plan's quota is used up"}
			}
			return &websocket.Order{Code: websocket.CloseLater, Reason: "the quota cannot be confirmed"}
		}
		if least := (t.used+n+t.per-1)/t.per - t.paid; units > least { // less than a whole slice may be left
			units = least
			continue
		}
		select {
		case <-t.stopped.Done():
		case <-time.After(min(quotaAgain, c.p.cfg.QuotaGrace)):
		}
	}
}

// close is the last word on the connection, after which nothing passes. What passed is paid for whatever its end was.
func (t *tab) close(outcome usage.Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if outcome != usage.OutcomeSuccess {
		t.row(true)
	}
	t.c.out, t.rowed = t.out-t.rowed, t.out
	if t.rowed > 0 && t.c.outBefore > 0 {
		t.c.v.Flags |= usage.FlagStreamed
	}
	t.c.count(outcome)
}
