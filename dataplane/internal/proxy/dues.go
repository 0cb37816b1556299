package proxy

import (
	"errors"
	"sync"
	"time"

	"bailiwick/shared/usage"
)

// dues are what a long answer pays for as it goes: units are in a row before the bytes that they are for pass, so that a kill
// loses none of them. What is asked up to the answer's head is owed only if there is an answer, and in no row before. Both
// directions pay.
type dues struct {
	mu   sync.Mutex // covers the rest, and all that a row is made of
	c    *call      // nil: it is closed
	paid int64      // units in rows that are not the last
}

var errUnpaid = errors.New("usage cannot be recorded")

// owe begins it. Call it before the first byte of an answer that may last passes, by whoever passes it.
func (c *call) owe() {
	if c.dues == nil && c.sold() && c.v.Counted && !c.counted && c.v.Route != nil && c.v.Route.Units != nil && c.v.Units > 0 {
		c.dues = &dues{c: c}
		if c.body != nil {
			c.body.dues.Store(c.dues)
		}
	}
}

// sold says whether what the client gets is for sale.
func (c *call) sold() bool { return c.served != "" || c.hit && !c.free }

// passes says that n more bytes of the answer are about to pass. false: what they cost could not be kept, and they must not.
func (c *call) passes(n int64) bool {
	if c.dues == nil {
		c.out += n
		return true
	}
	return c.dues.pay(n)
}

// pay puts what has come up since the last row into one, n bytes of the answer with it.
func (d *dues) pay(n int64) bool {
	if d == nil {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.c
	if c == nil || c.counted {
		return true
	}
	c.out += n
	units := c.cost() - d.paid
	if units <= 0 {
		return true
	}
	c.v.Flags |= usage.FlagStreamed
	c.row(usage.OutcomeOf(c.status), time.Now())
	part, rest := c.v.Ticket.Split(units)
	d.paid += units
	c.kept.Units, c.kept.Period, c.v.Ticket = units, part.Period(), part
	kept := c.append()
	c.v.Ticket = rest
	return kept
}

// unpaid is what the last row has to name.
func (c *call) unpaid() int64 {
	if c.dues == nil {
		return c.cost()
	}
	return max(0, c.cost()-c.dues.paid)
}

// lock keeps the other direction's rows out until unlock.
func (c *call) lock() {
	if c.dues != nil {
		c.dues.mu.Lock()
	}
}

func (c *call) unlock() {
	if c.dues != nil {
		c.dues.mu.Unlock()
	}
}

// stale says whether the last row is so old that the bytes since belong into one.
func (c *call) stale() bool {
	c.lock()
	defer c.unlock()
	return time.Since(c.lastRow) >= c.p.cfg.InterimEvery
}

// settled ends it: whoever still reads for a call that is closed pays nothing.
func (c *call) settled() {
	if c.dues != nil {
		c.dues.mu.Lock()
		c.dues.c = nil
		c.dues.mu.Unlock()
	}
}
