package proxy

import (
	"net"
	"testing"

	"bailiwick/dataplane/internal/park"
)

// Where everybody has something to do a newcomer makes a door look at some of its connections, not at all of them.
func TestGuests_LookAtSomeForRoom(t *testing.T) {
	const doors, conns = 10, 40 * lookedAt
	found := 0
	for range doors {
		d := &Door{conns: map[*conn]struct{}{}, lot: new(park.Lot)}
		mine, other := net.Pipe()
		for i := range conns {
			c := &conn{raw: mine}
			c.phase.Store(serving)
			if i == conns/2 { // the one that waits
				c.phase.Store(waiting)
			}
			d.conns[c] = struct{}{}
		}
		if d.anyGoes() {
			found++
		}
		other.Close()
	}
	if found > doors/2 { // one in forty of them is to be expected
		t.Errorf("of %d doors with one connection in %d that waits %d found it", doors, conns, found)
	}
	few := &Door{conns: map[*conn]struct{}{}, lot: new(park.Lot)}
	mine, other := net.Pipe()
	defer other.Close()
	for i := range lookedAt {
		c := &conn{raw: mine}
		if c.phase.Store(serving); i == 0 {
			c.phase.Store(waiting)
		}
		few.conns[c] = struct{}{}
	}
	if !few.anyGoes() {
		t.Error("among few the one that waits is not found")
	}
}
