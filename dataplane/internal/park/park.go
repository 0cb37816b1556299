// Package park owns connections on which nothing happens: a goroutine that waits for one costs a stack of 4 to 16 KiB, and one
// that is parked a place in a list of the kernel's. Whoever parks a connection lets go of it; when a byte or its end arrives on
// it, when its time is over, or when somebody says so, its owner is roused, once, and starts again where it was.
//
// It reads and writes nothing, closes nothing, and decides nothing about requests. Nothing of it survives a crash. All methods
// may be called from any number of goroutines; one, Run, waits for all that is parked. On systems other than Linux nothing can be
// parked.
package park

import (
	"container/heap"
	"sync"
	"time"
)

// Owner is whose connection is parked. Rouse must not block: the others wait meanwhile. It is called by whoever takes the
// connection out, from the moment of which that is its owner's alone.
type Owner interface{ Rouse() }

// Place is where a connection is parked. It may be used again, and the zero Place is ready; it must not be copied, nor used for
// two connections.
type Place struct {
	fd         descriptor
	owner      Owner // nil: nothing is parked here
	until      time.Time
	at         int // in the line
	slot, turn uint32
}

// Lot is where connections are parked. In a nil Lot none is.
type Lot struct {
	poll poll

	mu     sync.Mutex // covers the rest, and all Places
	slots  []*Place   // nil: free
	free   []uint32
	turns  uint32 // so that an event of one that has left is not taken for that of another
	line   line   // a heap: whose time is over first
	closed bool
}

// line orders places by when their time is over.
type line []*Place

func (l line) Len() int           { return len(l) }
func (l line) Less(i, j int) bool { return l[i].until.Before(l[j].until) }
func (l line) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].at, l[j].at = i, j
}

func (l *line) Push(x any) {
	p := x.(*Place)
	p.at = len(*l)
	*l = append(*l, p)
}

func (l *line) Pop() any {
	last := len(*l) - 1
	p := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	return p
}

// Count is how many are parked.
func (l *Lot) Count() int {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.line)
}

// enter takes a place. first: nobody's time is over sooner.
func (l *Lot) enter(p *Place, owner Owner, until time.Time) (first bool) {
	if n := len(l.free); n > 0 {
		p.slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		p.slot, l.slots = uint32(len(l.slots)), append(l.slots, nil)
	}
	l.turns++
	l.slots[p.slot] = p
	p.turn, p.owner, p.until = l.turns, owner, until
	heap.Push(&l.line, p)
	return p.at == 0
}

// leave takes it out again.
func (l *Lot) leave(p *Place) {
	l.slots[p.slot] = nil
	l.free = append(l.free, p.slot)
	heap.Remove(&l.line, p.at)
	if p.owner = nil; len(l.line) == 0 { // what a crowd has left behind
		l.slots, l.free, l.line = nil, nil, nil
	}
}

// Take rouses the owner of what is parked there. false: nothing is, or another has roused it.
func (l *Lot) Take(p *Place) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	if p.owner == nil {
		l.mu.Unlock()
		return false
	}
	owner := l.out(p)
	l.mu.Unlock()
	owner.Rouse()
	return true
}

// Oldest takes out whose time is over first, who has mostly waited longest, for the caller to rouse; nil: nobody is parked.
func (l *Lot) Oldest() Owner {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.line) == 0 {
		return nil
	}
	return l.out(l.line[0])
}

// out takes a place out of the line and the kernel's.
func (l *Lot) out(p *Place) (owner Owner) {
	owner = p.owner
	l.leave(p)
	l.poll.remove(p.fd)
	return owner
}

// over takes out whose time is over, and says when that of the next is; zero: there is none.
func (l *Lot) over(now time.Time, owners []Owner) ([]Owner, time.Time) {
	for len(l.line) > 0 {
		p := l.line[0]
		if p.until.After(now) {
			return owners, p.until
		}
		owners = append(owners, l.out(p))
	}
	return owners, time.Time{}
}

// Close rouses all that are parked; no other is taken any more, and Run ends.
func (l *Lot) Close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.closed = true
	var owners []Owner
	for len(l.line) > 0 {
		owners = append(owners, l.out(l.line[0]))
	}
	l.mu.Unlock()
	l.poll.close()
	for _, o := range owners {
		o.Rouse()
	}
}
