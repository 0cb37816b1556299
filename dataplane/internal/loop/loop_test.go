//go:build linux

package loop_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/loop"
)

func running(t testing.TB, tick func(time.Time) time.Duration, with ...func(l *loop.Loop)) *loop.Loop {
	t.Helper()
	if tick == nil {
		tick = func(time.Time) time.Duration { return 0 }
	}
	l, err := loop.New(tick)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range with {
		set(l)
	}
	over := make(chan error, 1)
	go func() { over <- l.Run() }()
	t.Cleanup(func() {
		l.Close()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return l
}

// pair is a connection of a loop's and its other end.
func pair(t testing.TB, l *loop.Loop) (*loop.Conn, *net.TCPConn) {
	t.Helper()
	return pairOf(t, l, false)
}

func pairOf(t testing.TB, l *loop.Loop, first bool) (*loop.Conn, *net.TCPConn) {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	far, err := net.Dial("tcp", at.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := at.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Adopt(near.(*net.TCPConn), first)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, far.(*net.TCPConn)
}

// For goroutines a connection is what net's is: bytes both ways, its end, deadlines and closing.
func TestConn_IsAConnection(t *testing.T) {
	l := running(t, nil)
	c, far := pair(t, l)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // more than any buffer: writing waits
	var wg sync.WaitGroup
	filled := 0
	for n := -1; n != 0; filled += n { // there is no room any more
		var err error
		if n, err = c.TryWrite(sent[filled:]); err != nil {
			t.Fatal(err)
		}
	}
	wg.Go(func() {
		if n, err := c.Write(sent[filled:]); n != len(sent)-filled || err != nil {
			t.Errorf("wrote %d of %d: %v", n, len(sent)-filled, err)
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(far)
	if wg.Wait(); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came: %v", len(got), len(sent), err)
	}
	wg.Go(func() { far.Write(sent); far.CloseWrite() })
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
	wg.Wait()

	c, far = pair(t, l)
	c.SetWriteDeadline(time.Unix(1, 0))
	if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d past the deadline: %v", n, err)
	}
	c.SetWriteDeadline(time.Time{})
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("reading past its deadline: %v", err)
	}
	far.Write([]byte("x"))
	for c.Quiet() {
		time.Sleep(time.Millisecond)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) { // as net's
		t.Fatalf("reading past its deadline what is here: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("read %d: %v", n, err)
	}
	wg.Go(func() {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading while the deadline is set: %v", err)
		}
	})
	time.Sleep(time.Millisecond)
	c.SetReadDeadline(time.Unix(1, 0))
	wg.Wait()
	c.SetReadDeadline(time.Time{})
	wg.Go(func() {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading what is closed meanwhile: %v", err)
		}
	})
	time.Sleep(time.Millisecond)
	c.Close()
	wg.Wait()
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("writing to what is closed: %v", err)
	}
	if n, err := far.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("the other end of what is closed reads %d bytes: %v", n, err)
	}
}

// echo answers on its loop, and hands over now and then to a goroutine, which gives the connection back.
type echo struct {
	c     *loop.Conn
	t     *testing.T
	on    atomic.Int32 // who serves it just now: never two
	loops *atomic.Int64
	wg    *sync.WaitGroup
}

func (e *echo) alone(do func()) {
	if e.on.Add(1) != 1 {
		e.t.Error("two serve one connection")
	}
	do()
	e.on.Add(-1)
}

func (e *echo) Ready(loop.Event) {
	var b [64]byte
	over, hand := false, false
	e.alone(func() {
		for !hand {
			n, err := e.c.TryRead(b[:])
			if n == 0 {
				over = err != nil
				return
			}
			e.c.TryWrite(b[:n])
			e.loops.Add(1)
			hand = rand.IntN(3) == 0
		}
	})
	switch {
	case over:
		e.c.Close()
		e.c.Man()
	case hand:
		e.c.Man()
		e.wg.Go(e.manned)
	case !e.c.Rest():
		e.c.Man()
	}
}

func (e *echo) manned() {
	var b [64]byte
	for {
		n := 0
		var err error
		e.alone(func() {
			e.c.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(200)) * time.Microsecond))
			if n, err = e.c.Read(b[:]); n > 0 {
				e.c.Write(b[:n])
			}
		})
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			e.c.Close()
			return
		}
		if n == 0 && e.c.Watch() {
			return
		}
		if e.c.Closed() {
			return
		}
	}
}

// Nothing is lost and nothing is served by two, whoever has the connection when it comes.
func TestConn_GoesToAndFro(t *testing.T) {
	l := running(t, nil)
	var wg, far sync.WaitGroup
	var loops atomic.Int64
	for range 16 {
		c, other := pair(t, l)
		e := &echo{c: c, t: t, loops: &loops, wg: &wg}
		c.Owner = e
		if !c.Watch() {
			wg.Go(e.manned)
		}
		far.Go(func() {
			other.SetDeadline(time.Now().Add(time.Minute))
			for i := range 300 {
				b := []byte{byte(i), 1, 2, 3}
				if i%7 == 0 {
					time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				}
				other.Write(b)
				got := make([]byte, 4)
				if _, err := io.ReadFull(other, got); err != nil || !bytes.Equal(got, b) {
					t.Errorf("request %d: got %v, %v", i, got, err)
					break
				}
			}
			other.Close()
		})
	}
	far.Wait()
	wg.Wait()
	if loops.Load() == 0 {
		t.Error("no loop has served any")
	}
}

type told struct {
	c     *loop.Conn
	order *[]string
	name  string
	ready chan struct{}
}

func (o *told) Ready(loop.Event) {
	*o.order = append(*o.order, o.name)
	var b [8]byte
	n, _ := o.c.TryRead(b[:])
	o.c.Rest()
	if n > 0 {
		o.ready <- struct{}{}
	}
}

// Who is to be told first is told before others of the same round.
func TestLoop_TellsSomeFirst(t *testing.T) {
	var order []string
	var held atomic.Bool
	hold, begun := make(chan struct{}), make(chan struct{}, 1)
	l := running(t, func(time.Time) time.Duration {
		if held.CompareAndSwap(true, false) {
			begun <- struct{}{}
			<-hold
		}
		return 0
	})
	ready := make(chan struct{}, 8)
	var others []*net.TCPConn
	var conns []*loop.Conn
	for _, name := range []string{"late", "late", "first"} {
		c, far := pairOf(t, l, name == "first")
		o := &told{c: c, order: &order, name: name, ready: ready}
		c.Owner = o
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
		others, conns = append(others, far), append(conns, c)
	}
	held.Store(true)
	others[0].Write([]byte("x"))
	<-begun // the loop does nothing until it may
	for len(ready) > 0 {
		<-ready
	}
	order = nil
	for _, far := range others {
		far.Write([]byte("x"))
	}
	for _, c := range conns { // until it is here
		for c.Quiet() {
			time.Sleep(time.Millisecond)
		}
	}
	hold <- struct{}{}
	for range others {
		<-ready
	}
	if len(order) != 3 || order[0] != "first" {
		t.Errorf("told in the order %v", order)
	}
}

// Taking what is closed and telling of it do not meet: one of them has it.
func TestConn_IsTakenOnce(t *testing.T) {
	l := running(t, nil)
	for range 200 {
		c, far := pair(t, l)
		var had atomic.Int32
		got := make(chan struct{}, 2)
		c.Owner = ready(func(loop.Event) {
			if _, err := c.TryRead(make([]byte, 1)); err == nil && c.Rest() {
				return
			}
			had.Add(1)
			c.Man()
			got <- struct{}{}
		})
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
		go far.Close()
		c.Close()
		if c.Take() {
			had.Add(1)
			got <- struct{}{}
		}
		<-got
		if n := had.Load(); n != 1 {
			t.Fatalf("%d have it", n)
		}
	}
}

// A connection that goes to and fro between two loops misses nothing, and one of them at a time tells of it.
func TestConn_Moves(t *testing.T) {
	loops := []*loop.Loop{running(t, nil), running(t, nil)}
	for range 4 {
		c, far := pair(t, loops[0])
		var inside, at atomic.Int32
		in := make([]byte, 8)
		c.Owner = ready(func(loop.Event) {
			if inside.Add(1) != 1 {
				t.Error("two loops tell of one connection at once")
			}
			for {
				n, err := c.TryRead(in)
				if n == 0 || err != nil {
					break
				}
				c.TryWrite(in[:n])
			}
			to := loops[1-at.Load()]
			at.Store(1 - at.Load())
			inside.Add(-1)
			if !c.Move(to) && !c.Closed() {
				t.Error("the other loop does not take it")
			}
		})
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
		far.SetDeadline(time.Now().Add(30 * time.Second))
		out, got := []byte("x"), make([]byte, 2)
		for i := range 3_000 {
			n := 1
			far.Write(out)
			if i%3 == 0 { // something comes while it moves
				for began, wait := time.Now(), time.Duration(rand.IntN(20))*time.Microsecond; time.Since(began) < wait; {
				}
				far.Write(out)
				n = 2
			}
			if _, err := io.ReadFull(far, got[:n]); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
	}
}

// One that is closed while it moves is somebody's all the same, and its descriptor is given back.
func TestConn_IsClosedAsItMoves(t *testing.T) {
	loops := []*loop.Loop{running(t, nil), running(t, nil)}
	for range 300 {
		c, far := pair(t, loops[0])
		var had atomic.Int32
		moves := make(chan struct{}, 1)
		done := make(chan struct{}, 2)
		n := 0
		c.Owner = ready(func(loop.Event) {
			if had.Load() > 0 {
				t.Error("a loop tells of what somebody has")
			}
			c.TryRead(make([]byte, 8))
			if n == 0 {
				moves <- struct{}{}
			}
			if n++; c.Move(loops[n%2]) {
				return
			}
			had.Add(1)
			c.Man()
			done <- struct{}{}
		})
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
		far.Write([]byte("x"))
		<-moves
		c.Close()
		if c.Take() {
			had.Add(1)
			done <- struct{}{}
		}
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("nobody has it")
		}
		if n := had.Load(); n != 1 {
			t.Fatalf("%d have it", n)
		}
	}
	if n := loops[0].Held() + loops[1].Held(); n != 0 {
		t.Errorf("%d connections that were closed are known", n)
	}
}

// What a loop was told of a connection in the round in which that moves is nobody's: the other loop alone tells of it from then on.
func TestConn_MovesFromWhatItsLoopHasTaken(t *testing.T) {
	from, to := running(t, nil), running(t, nil)
	watch := func(c *loop.Conn, o ready) {
		c.Owner = o
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
	}
	busy := func(l *loop.Loop) (free func()) { // it tells of nothing until then
		c, far := pairOf(t, l, true)
		in, out := make(chan struct{}), make(chan struct{})
		watch(c, func(loop.Event) {
			if n, _ := c.TryRead(make([]byte, 8)); n > 0 {
				in <- struct{}{}
				<-out
			}
			c.Rest()
		})
		far.Write([]byte("x"))
		<-in
		return sync.OnceFunc(func() { close(out) })
	}
	c, far := pair(t, from)
	link, end := pairOf(t, from, true) // told of before c
	told, moved := make(chan struct{}, 8), make(chan struct{})
	var flies, moves atomic.Bool
	watch(c, func(loop.Event) {
		if n, _ := c.TryRead(make([]byte, 8)); n == 0 {
			c.Rest()
			return
		}
		told <- struct{}{} // and stays its loop's, until link moves it
		if !flies.Swap(true) {
			return
		}
		if !moves.Load() {
			t.Error("a loop tells of what another has")
		}
		c.Rest()
	})
	watch(link, func(loop.Event) {
		if n, _ := link.TryRead(make([]byte, 8)); n > 0 {
			if !c.Move(to) {
				t.Error("the other loop does not take it")
			}
			close(moved)
		}
		link.Rest()
	})
	far.Write([]byte("x"))
	<-told
	free := busy(to)
	defer free()
	begin := busy(from)
	end.Write([]byte("x"))
	far.Write([]byte("x"))
	for link.Quiet() || c.Quiet() {
		time.Sleep(time.Millisecond)
	}
	begin() // a round with both
	<-moved
	busy(from)() // that round is over
	moves.Store(true)
	free()
	select {
	case <-told:
	case <-time.After(20 * time.Second):
		t.Error("nobody tells of it")
	}
}

// A loop that has ended takes none: the connection stays where it is.
func TestConn_DoesNotMoveToALoopThatHasEnded(t *testing.T) {
	l, ended := running(t, nil), running(t, nil)
	ended.Close()
	for end := time.Now().Add(20 * time.Second); !ended.Ended() && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	c, far := pair(t, l)
	c.Owner = ready(func(loop.Event) {
		in := make([]byte, 8)
		n, _ := c.TryRead(in)
		c.TryWrite(in[:n])
		if c.Move(ended) {
			t.Error("a loop that has ended takes a connection")
		}
		c.Rest()
	})
	for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
	}
	far.SetDeadline(time.Now().Add(20 * time.Second))
	for range 3 {
		far.Write([]byte("x"))
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

type ready func(e loop.Event)

func (r ready) Ready(e loop.Event) { r(e) }

func TestConn_AllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has memory of its own")
	}
	l := running(t, nil)
	c, far := pair(t, l)
	b := make([]byte, 64)
	seen := make(chan struct{}, 1)
	c.Owner = ready(func(loop.Event) {
		n, _ := c.TryRead(b)
		c.TryWrite(b[:n])
		c.Rest()
		if n > 0 {
			seen <- struct{}{}
		}
	})
	for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
	}
	in := make([]byte, 64)
	if n := testing.AllocsPerRun(200, func() {
		far.Write([]byte("ask"))
		<-seen
		far.Read(in)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
