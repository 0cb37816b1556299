package proxy

import (
	"crypto/tls"
	"net"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/loop"
	"bailiwick/dataplane/internal/park"
)

// lotFor is where a connection may be parked; nil: nowhere, so that it waits on a goroutine of its own, which costs memory and
// nothing else. d.mu is held.
func (d *Door) lotFor(c net.Conn) *park.Lot {
	switch c.(type) {
	case *direct.Conn, *loop.Conn:
	default:
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

// How long a connection that waits keeps its goroutine and its buffer. To be parked and roused costs some 40 µs of processor
// time, which who asks once a second would pay for each request; where there are few connections, what they hold does not matter.
// Over HTTP/2 it is four times as long, of which a connection is looked at so often while requests are under way.
const (
	wholeFew  = 5 * time.Second
	wholeMany = 250 * time.Millisecond
	many      = 2048 // connections of a door
)

func (d *Door) whole() time.Duration {
	switch {
	case d.parkAfter > 0:
		return d.parkAfter
	case d.open.Load() > many:
		return wholeMany
	}
	return wholeFew
}

// pause is the same over HTTP/2; nil: it cannot be parked.
func (c *conn) pause() func() time.Duration {
	if c.lot == nil {
		return nil
	}
	return c.door.pause
}

func (d *Door) pause() time.Duration { return 4 * d.whole() }

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
