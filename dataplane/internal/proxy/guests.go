package proxy

import (
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// guests counts clients' connections, of all doors together: of all clients, and of each address (of IPv6 each /64,
// which one client has). Addresses of this machine are not counted apart: what stands before an edge there speaks for many.
type guests struct {
	most, each int
	doors      []func() bool // each lets a connection of one door go that does nothing; set before any opens

	mu    sync.Mutex // covers the rest
	total int
	by    map[netip.Prefix]int

	taken, crowded, full, yielded int64 // since the start
}

// quicConnections is how many connections over QUIC an edge has at once, an eighth of them of one address. They take no files, which
// bound those over TCP, but memory: handshakes, streams' windows, and whatever a client makes an edge keep.
const quicConnections = 16384

// newGuests takes what files this process may have open as the measure, where nothing is said: three quarters of them for clients,
// of which one address may have an eighth.
func newGuests(most, each int) *guests {
	if most <= 0 {
		most = DefaultConnections()
	}
	if each <= 0 {
		each = max(64, most/8)
	}
	return &guests{most: most, each: each, by: map[netip.Prefix]int{}}
}

// DefaultConnections is how many connections of clients an edge has at once unless it is told otherwise.
func DefaultConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur > 1<<30 {
		return 1 << 20
	}
	return max(64, int(files.Cur)/4*3)
}

// neighbour is whom an address is counted with; the zero Prefix: nobody.
func neighbour(client string) netip.Prefix {
	a, err := netip.ParseAddr(client)
	if err != nil {
		return netip.Prefix{}
	}
	if a = a.Unmap().WithZone(""); a.IsLoopback() {
		return netip.Prefix{}
	}
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

type welcome uint8

const (
	welcomed welcome = iota
	crowded          // its address has as many as it may
	full             // all have
)

// enter counts a connection in, unless it has no place. made: one will leave for it.
func (g *guests) enter(client string, made bool) welcome {
	at := neighbour(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case at.IsValid() && g.by[at] >= g.each:
		g.crowded++
		return crowded
	case g.total >= g.most && !made:
		return full
	}
	if made {
		g.yielded++
	}
	g.taken++
	g.total++
	if at.IsValid() {
		g.by[at]++
	}
	return welcomed
}

func (g *guests) leave(client string) {
	at := neighbour(client)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if !at.IsValid() {
		return
	}
	if g.by[at]--; g.by[at] <= 0 {
		delete(g.by, at)
	}
}

// receive counts a client's connection in. Where there are as many as there may be, one that waits for its next request, or has
// not sent its first, goes for it: who sends nothing must not keep others out. It is one of the same door, if that has such, else
// of another: they share the places, and whoever fills them at one door must not shut all.
func (g *guests) receive(client string, own func() bool) bool {
	switch g.enter(client, false) {
	case welcomed:
		return true
	case crowded:
		return false
	}
	if own() || slices.ContainsFunc(g.doors, func(other func() bool) bool { return other() }) {
		return g.enter(client, true) == welcomed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full++
	return false
}

func (d *Door) receive(client string) bool { return d.guests.receive(client, d.makeRoom) }

// makeRoom lets a connection go that does nothing; of those that are parked, who waits longest.
func (d *Door) makeRoom() (made bool) {
	if o := d.parked().Oldest(); o != nil {
		made = o.(*conn).yields()
		if o.Rouse(); made {
			return true
		}
	}
	return d.anyGoes()
}

// lookedAt is how many connections are looked at, anywhere among them, for one that may go: where all have something to do each
// newcomer would else look at all of them, while nobody else comes or goes. Those that have waited for long are parked, and found
// at once.
const lookedAt = 256

// anyGoes lets one go of those that were not parked when that was looked at. It may be by now: nobody else would rouse it before
// its time is over, and so long it would keep its place.
func (d *Door) anyGoes() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, two := range [...]bool{false, true} {
		n := 0
		for c := range d.conns {
			if n++; n > lookedAt && d.lot != nil {
				break
			}
			if (c.two != nil) == two && c.yields() {
				c.wake()
				return true
			}
		}
	}
	return false
}

// yields ends a connection on which no request is under way.
func (c *conn) yields() bool {
	if c.two != nil {
		return c.two.Yield() // and is told that what it may just be asking was not looked at
	}
	if !c.phase.CompareAndSwap(waiting, closed) {
		return false
	}
	c.raw.Close()
	return true
}
