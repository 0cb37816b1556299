//go:build linux

package loop

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// hearing is an owner that gives back what it is told of; what it cannot give back is its.
type hearing struct {
	c   *Conn
	has atomic.Int32
}

func (h *hearing) Ready(Event) {
	if !h.c.Rest() {
		h.has.Add(1)
	}
}

// held is a connection that a loop has.
func held(l *Loop, fd int) *Conn {
	c := &Conn{fd: fd}
	c.loop.Store(l)
	return c
}

// together does all at the same time, again and again, with before before and after behind each round, until that says no.
func together(before func(), after func() bool, all ...func()) {
	const rounds = 20_000
	var turn, left atomic.Int32
	var done sync.WaitGroup
	for _, do := range all {
		done.Go(func() {
			for i := int32(1); ; i++ {
				for turn.Load() < i {
					runtime.Gosched()
				}
				if turn.Load() > rounds {
					return
				}
				do()
				left.Add(-1)
			}
		})
	}
	for i := int32(1); i <= rounds; i++ {
		before()
		left.Store(int32(len(all)))
		turn.Store(i)
		for left.Load() > 0 {
			runtime.Gosched()
		}
		if !after() {
			break
		}
	}
	turn.Store(rounds + 1)
	done.Wait()
}

// Whoever closes a connection, leaves it to its loop, is told of it or takes it: one of them has it in the end, and one alone.
func TestConn_IsSomebodysInTheEnd(t *testing.T) {
	var c *Conn
	var h *hearing
	var took atomic.Int32
	together(func() {
		c = held(&Loop{slots: make([]*Conn, 1)}, -1)
		h = &hearing{c: c}
		c.Owner = h
		took.Store(0)
	}, func() bool {
		n := took.Load() + h.has.Load()
		if n != 1 {
			t.Errorf("%d have it, want one", n)
		}
		return n == 1
	}, func() {
		if !c.Watch() {
			took.Add(1)
		}
	}, func() { c.loop.Load().happened(c, Out) }, func() {
		c.Close()
		if c.Take() {
			took.Add(1)
		}
	})
}

// What comes while a connection is left to its loop is told, or it is not left.
func TestConn_MissesNothingWhileItIsLeft(t *testing.T) {
	var c *Conn
	var told atomic.Int32
	left := false
	together(func() {
		c = held(&Loop{}, -1)
		c.Owner = telling(func() { told.Add(1) })
		told.Store(0)
	}, func() bool {
		if left && told.Load() == 0 {
			t.Error("it is left to its loop, and nobody is told of what came")
		}
		return !t.Failed()
	}, func() { left = c.Watch() }, func() { c.loop.Load().happened(c, In) })
}

// What may have come is not left to the loop, which would not be told of it: behind a read that found something, and behind the
// loop's own turn. What is not watched nobody can take or claim.
func TestConn_IsNotLeftWithWhatHasCome(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[1])
	c := held(&Loop{slots: make([]*Conn, 1)}, fds[0])
	defer c.Close()
	c.Owner = &hearing{c: c}
	b := make([]byte, 1)
	syscall.Write(fds[1], []byte("ab"))
	for range 2 {
		if n, err := c.Poll(b); n != 1 || err != nil {
			t.Fatalf("polled %d: %v", n, err)
		}
		if c.Watch() {
			t.Fatal("it is left to the loop before a read found nothing")
		}
	}
	if c.Claim() || c.Take() {
		t.Error("one that is manned is taken")
	}
	if n, err := c.Poll(b); n != 0 || err != nil || !c.Watch() {
		t.Fatalf("polled %d, %v: it is not left to the loop where there is nothing", n, err)
	}
	if !c.Claim() || c.Claim() || c.Take() || c.Rests() || !c.Looped() {
		t.Error("it is not the loop's alone")
	}
	if c.Man(); c.Watch() {
		t.Error("it is left to the loop again without a look")
	}
	syscall.Close(fds[1])
	if fds[1] = -1; c.Quiet() {
		t.Error("its end is nothing")
	}
	if _, err := c.Poll(b); err == nil || c.Watch() {
		t.Errorf("polled its end: %v", err)
	}
}

// A descriptor is not another's while a call of this connection's may use it, and is given back once behind the last.
func TestConn_KeepsItsDescriptorForWhoUsesIt(t *testing.T) {
	l := &Loop{slots: make([]*Conn, 1)}
	c := held(l, -1)
	for range 2 {
		if !c.acquire() {
			t.Fatal("it is closed")
		}
	}
	c.Close()
	c.release()
	if len(l.free) != 0 {
		t.Error("it is given back while a call uses it")
	}
	if c.acquire() {
		t.Error("a call begins on what is closed")
	}
	if c.release(); len(l.free) != 1 {
		t.Errorf("given back %d times, want once", len(l.free))
	}
	if err := c.Close(); err == nil || len(l.free) != 1 {
		t.Errorf("closed again: %v, given back %d times", err, len(l.free))
	}
}

// What happened on a connection that has gone is not told to the one that has its place by now.
func TestLoop_TellsNobodyOfTheOneBefore(t *testing.T) {
	var told atomic.Int32
	l := &Loop{slots: make([]*Conn, 1)}
	c := held(l, -1)
	c.turn = 7
	c.Owner = telling(func() { told.Add(1); c.Rest() })
	c.state.Store(watched)
	l.slots[0] = c
	l.round([]syscall.EpollEvent{{Events: uint32(In), Fd: 0, Pad: 6}})
	l.round([]syscall.EpollEvent{{Events: uint32(In), Fd: 3, Pad: 7}})
	if told.Load() != 0 {
		t.Error("it is told of another's bytes")
	}
	l.round([]syscall.EpollEvent{{Events: uint32(In), Fd: 0, Pad: 7}})
	if told.Load() != 1 || l.Round() != 3 {
		t.Errorf("told %d times in %d rounds, want once in three", told.Load(), l.Round())
	}
	c.Close()
	other := held(l, -1)
	other.turn = 8
	other.Owner = telling(func() { t.Error("one that has gone is told of") })
	l.round([]syscall.EpollEvent{{Events: uint32(In), Fd: 0, Pad: 7}})
	if told.Load() != 1 || len(l.free) != 1 {
		t.Errorf("told %d times, %d places are free", told.Load(), len(l.free))
	}
}

type telling func()

func (f telling) Ready(Event) { f() }

// Each gives those that are watched, and no others.
func TestLoop_EachHasThoseThatRest(t *testing.T) {
	l := &Loop{}
	var got []Owner
	for i := range uint32(3) {
		c := held(l, -1)
		c.slot = i
		c.Owner = &hearing{c: c}
		c.state.Store(i)
		l.slots = append(l.slots, c)
	}
	l.slots = append(l.slots, nil)
	l.Each(func(o Owner) { got = append(got, o) })
	if len(got) != 1 || got[0] != l.slots[watched].Owner || !l.slots[watched].Looped() {
		t.Errorf("given %d, want the one that is watched", len(got))
	}
	for _, c := range l.all[:cap(l.all)] {
		if c != nil {
			t.Error("what has gone is held")
		}
	}
}

// Closing a connection ends all that wait for it, not one of them.
func TestConn_AllWhoWaitHearOfItsEnd(t *testing.T) {
	c := held(&Loop{slots: make([]*Conn, 1)}, -1)
	var waits sync.WaitGroup
	for range 3 {
		waits.Go(func() {
			if err := c.in.wait(c); err != net.ErrClosed {
				t.Errorf("waited: %v", err)
			}
		})
	}
	for { // until the first waits: the others hear of it, or find it closed
		c.in.mu.Lock()
		begun := c.in.wake != nil
		c.in.mu.Unlock()
		if begun {
			break
		}
		runtime.Gosched()
	}
	for range 100 {
		runtime.Gosched()
	}
	c.Close()
	waits.Wait()
}
