//go:build linux

package loop_test

import (
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/loop"
)

// What comes while a loop works wakes nobody in Go's poller: the loop looks by itself.
func TestLoop_IsNotDisturbed(t *testing.T) {
	l := running(t, nil)
	c, start := pair(t, l)
	other, far := pair(t, l)
	begun, hold, told := make(chan struct{}, 1), make(chan struct{}), make(chan struct{}, 1)
	c.Owner = ready(func(loop.Event) {
		begun <- struct{}{}
		<-hold
		c.TryRead(make([]byte, 1))
		c.Rest()
	})
	other.Owner = ready(func(loop.Event) {
		other.TryRead(make([]byte, 1))
		other.Rest()
		told <- struct{}{}
	})
	for _, c := range []*loop.Conn{c, other} {
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
	}
	start.Write([]byte("x"))
	<-begun
	far.Write([]byte("x"))
	for other.Quiet() {
		time.Sleep(time.Millisecond)
	}
	if l.Reported() {
		t.Error("Go's poller is told of what comes while the loop works")
	}
	close(hold)
	<-told
}

// Nothing that comes just when a loop goes to wait is left lying.
func TestLoop_HearsWhatComesAsItGoesToWait(t *testing.T) {
	l := running(t, nil)
	c, far := pair(t, l)
	in := make([]byte, 1)
	c.Owner = ready(func(loop.Event) {
		for {
			if n, err := c.TryRead(in); n == 0 || err != nil {
				break
			}
			c.TryWrite(in)
		}
		c.Rest()
	})
	for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
	}
	far.SetDeadline(time.Now().Add(20 * time.Second))
	one := make([]byte, 1)
	for i := range 5_000 {
		for began, wait := time.Now(), time.Duration(rand.IntN(20))*time.Microsecond; time.Since(began) < wait; {
		}
		if _, err := far.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, one); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// Where one thing comes at a time the gate stays open, where more do it does not, and nothing is left lying however it changes.
func TestLoop_LeavesItsGateOpenWhereLittleComes(t *testing.T) {
	l := running(t, nil)
	const n = 3
	var conns [n]*loop.Conn
	var fars [n]*net.TCPConn
	var ajar, held atomic.Bool
	hold, told := make(chan struct{}), make(chan struct{}, n)
	for i := range n {
		conns[i], fars[i] = pair(t, l)
		c := conns[i]
		c.Owner = ready(func(loop.Event) {
			ajar.Store(l.Ajar())
			if held.Swap(false) {
				told <- struct{}{}
				<-hold
			}
			for in := make([]byte, 1); ; {
				if n, err := c.TryRead(in); n == 0 || err != nil {
					break
				}
				c.TryWrite(in)
			}
			c.Rest()
		})
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
		fars[i].SetDeadline(time.Now().Add(30 * time.Second))
	}
	one := make([]byte, 1)
	ask := func(i int) {
		if _, err := fars[i].Write(one); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(i int) {
		t.Helper()
		if _, err := io.ReadFull(fars[i], one); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	for round := range 60 {
		for i := 0; i < loop.Calm || !ajar.Load(); i++ {
			if i == 10*loop.Calm {
				t.Fatalf("round %d: the gate is shut and opened for one event at a time", round)
			}
			ask(i % n)
			hear(i % n)
		}
		held.Store(true) // two come while it is busy
		ask(0)
		select {
		case <-told:
		case <-time.After(30 * time.Second):
			t.Fatalf("round %d: the loop hears nothing", round)
		}
		ask(1)
		ask(2)
		for conns[1].Quiet() || conns[2].Quiet() {
			time.Sleep(100 * time.Microsecond)
		}
		hold <- struct{}{}
		for i := range n {
			hear(i)
		}
		for i := 0; ajar.Load(); i++ { // what is asked at once may be heard of before the loop rests
			if i == 10 {
				t.Fatalf("round %d: the gate is open where more than one thing came at a time", round)
			}
			time.Sleep(time.Duration(i) * time.Millisecond)
			ask(0)
			hear(0)
		}
	}
}
