package proxy

import (
	"crypto/tls"
	"net"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/park"
)

// lotFor is where a connection may be parked; nil: nowhere, so that it waits on a goroutine of its own, which costs memory and
// nothing else. d.mu is held.
func (d *Door) lotFor(c net.Conn) *park.Lot {
	if _, ok := c.(*direct.Conn); !ok {
		return nil
	}
	if d.lot == nil && !d.lotless {
		lot, err := park.New()
		if d.lotless = err != nil; d.lotless {
			d.log.Printf("idle connections are not parked: %v", err)
			return nil
		}
		d.lot = lot
		d.wg.Go(func() {
			if err := lot.Run(); err != nil { // all it had are roused, and wait by themselves
				d.log.Printf("idle connections are not parked any more: %v", err)
			}
		})
	}
	return d.lot
}

// parked is where connections are parked.
func (d *Door) parked() *park.Lot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lot
}

// park parks a connection that waits for a request, and says whether it is parked: then it is not the caller's any more. What it
// needs to go on is in its conn, and everything else is given back.
func (c *conn) park() bool {
	c.until, c.wuntil = time.Time{}, time.Time{}
	c.raw.SetDeadline(time.Time{})
	return c.leaveTo(c.idle)
}

// leaveTo leaves a connection to the lot until a moment.
func (c *conn) leaveTo(until time.Time) bool {
	if t, ok := c.rwc.(*tls.Conn); ok {
		park.Slim(t)
	}
	return c.lot.Park(&c.place, c.raw, c, until)
}

// pause is after what time without a word from a client over HTTP/2 its connection is parked, if nothing is under way. It is looked
// at so often while requests are.
func (c *conn) pause() time.Duration {
	if c.lot == nil {
		return 0
	}
	return 4 * c.door.whole
}

// runs serves what speaks HTTP/2 until it has ended or is parked.
func (c *conn) runs() (parked bool) {
	for c.two.Run() {
		if !c.leaveTo(c.two.Patience()) {
			c.two.Stay()
			continue
		}
		if c.two.Ends() { // whoever said so may have found nobody parked yet
			c.lot.Take(&c.place)
		}
		return true
	}
	return false
}

// Rouse implements park.Owner: something has come, its time is over, or somebody has closed it. Shutdown, which waits for all
// goroutines once no connection is left, knows of this one.
func (c *conn) Rouse() { c.door.wg.Go(c.serve) }
