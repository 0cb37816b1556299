//go:build linux

package loop_test

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"bailiwick/dataplane/internal/loop"
)

// asking is a loop that asks on one connection whenever something comes on the other, as a proxy does, and is calm already.
type asking struct {
	t            *testing.T
	l            *loop.Loop
	asker, asked *net.TCPConn // far ends
	began        chan struct{}
	answered     chan struct{}
}

func newAsking(t *testing.T, busy time.Duration, more ...func(*loop.Loop)) *asking {
	a := &asking{t: t, began: make(chan struct{}, 1), answered: make(chan struct{}, 1)}
	a.l = running(t, nil, func(l *loop.Loop) {
		l.BusyPoll = busy
		for _, f := range more {
			f(l)
		}
	})
	from, asker := pair(t, a.l)
	to, asked := pair(t, a.l)
	a.asker, a.asked = asker, asked
	one := make([]byte, 1)
	from.Owner = ready(func(loop.Event) {
		if n, _ := from.TryRead(one); n == 1 && one[0] == 'a' {
			a.l.Expect(to)
			a.began <- struct{}{}
		} else if n == 1 {
			from.TryWrite(one)
		}
		from.Rest()
	})
	to.Owner = ready(func(loop.Event) {
		if n, _ := to.TryRead(one); n == 1 {
			a.answered <- struct{}{}
		}
		to.Rest()
	})
	for _, c := range []*loop.Conn{from, to} {
		for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
		}
	}
	asker.SetDeadline(time.Now().Add(time.Minute))
	for range 2 * loop.Calm {
		a.echo()
	}
	return a
}

// echo has the loop answer something by itself.
func (a *asking) echo() {
	a.t.Helper()
	one := []byte("e")
	if _, err := a.asker.Write(one); err != nil {
		a.t.Fatal(err)
	}
	if _, err := io.ReadFull(a.asker, one); err != nil {
		a.t.Fatalf("the loop hears nothing: %v", err)
	}
}

func (a *asking) ask() {
	a.t.Helper()
	if _, err := a.asker.Write([]byte("a")); err != nil {
		a.t.Fatal(err)
	}
	a.wait(a.began, "the question")
}

func (a *asking) answer() {
	a.t.Helper()
	if _, err := a.asked.Write([]byte("x")); err != nil {
		a.t.Fatal(err)
	}
	a.wait(a.answered, "the answer")
}

func (a *asking) wait(c chan struct{}, what string) {
	a.t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		a.t.Fatalf("the loop hears nothing of %s", what)
	}
}

func (a *asking) sought(when string, came, vain uint64) {
	a.t.Helper()
	if c, v := a.l.Sought(); c != came || v != vain {
		a.t.Errorf("%s: it looked %d times for what came and %d times in vain, want %d and %d", when, c, v, came, vain)
	}
}

// vain waits until it has looked so often in vain.
func (a *asking) vain(n uint64) {
	a.t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Microsecond) {
		if _, v := a.l.Sought(); v >= n {
			return
		}
		if time.Since(began) > time.Minute {
			a.t.Fatalf("it looks for ever for what does not come, want %d times in vain", n)
		}
	}
}

// A calm loop that expects something looks for it until it comes, and hears of all else meanwhile.
func TestLoop_LooksForWhatItExpects(t *testing.T) {
	a := newAsking(t, time.Hour)
	for i := range uint64(100) {
		a.ask()
		a.answer()
		a.sought("asked and answered", i+1, 0)
	}
	a.ask()
	a.echo() // this ends it: what is expected may come late
	a.answer()
	a.sought("something else came first", 100, 0)
}

// It does not go on looking once the loop is closed.
func TestLoop_EndsWhileItLooks(t *testing.T) {
	const long = 20 * time.Second
	a := newAsking(t, long)
	a.ask()
	began := time.Now()
	for a.l.Close(); !a.l.Ended(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 2*long {
			t.Fatal("a loop that looks for what it expects does not end")
		}
	}
	if took := time.Since(began); took >= long {
		t.Errorf("it ended after %v, when it would have looked no longer", took)
	}
}

// Looking in vain is done ever more seldom, and as before as soon as it was not.
func TestLoop_LooksSeldomWhereItIsInVain(t *testing.T) {
	a := newAsking(t, time.Millisecond)
	looked, pass := uint64(0), 0
	for i := range 300 {
		a.ask()
		if pass == 0 {
			looked++
			a.vain(looked)
			pass = 1<<looked - 1
		} else {
			pass--
		}
		a.answer()
		a.sought("in vain", 0, looked)
		if t.Failed() {
			t.Fatalf("question %d", i)
		}
	}
	if looked != 8 { // 1+1, 1+3, 1+7 …
		t.Errorf("of 300 in vain it looked for %d, want 8", looked)
	}
}

// Who was answered in time once is looked for each time again.
func TestLoop_LooksAgainWhereItWasNotInVain(t *testing.T) {
	a := newAsking(t, 200*time.Millisecond)
	a.ask()
	a.vain(1)
	a.answer()
	a.ask() // passed
	a.answer()
	var came uint64
	for try := 0; came == 0; try++ { // this machine may stand still for 200 ms
		if try == 20 {
			t.Fatal("what came in time was not looked for")
		}
		a.ask()
		a.answer()
		came, _ = a.l.Sought()
	}
	_, vain := a.l.Sought()
	a.ask()
	a.vain(vain + 1)
	a.answer()
	a.ask() // one is passed, not as many as before
	a.answer()
	a.ask()
	a.vain(vain + 2)
}

// Nor where it is told not to, nor where many things come at a time.
func TestLoop_SleepsAtOnce(t *testing.T) {
	a := newAsking(t, 0)
	for range 100 {
		a.ask()
		a.answer()
	}
	a.sought("busy polling is off", 0, 0)

	l := running(t, nil, func(l *loop.Loop) { l.BusyPoll = time.Hour })
	c, far := pair(t, l)
	told := make(chan bool, 1)
	c.Owner = ready(func(loop.Event) {
		c.TryRead(make([]byte, 1))
		l.Expect(c)
		told <- l.Ajar()
		c.Rest()
	})
	for one := make([]byte, 1); !c.Watch(); c.Poll(one) {
	}
	for i := 0; ; i++ {
		far.Write([]byte("x"))
		if <-told {
			break
		}
		if came, vain := l.Sought(); came+vain > 0 {
			t.Fatalf("it looked for what it expects at the %dth event, before it is calm", i+1)
		}
	}
}

// What it finds when somebody else had the processor for longer than it may look was looked for in vain: asleep it would have been woken.
// On a machine that stands still meanwhile all may be in vain: then it is tried again.
func TestLoop_LooksSeldomWhereOthersTakeTheProcessor(t *testing.T) {
	for try := 1; ; try++ {
		if err := othersTake(t); err == nil {
			return
		} else if try == 10 {
			t.Fatal(err)
		}
	}
}

func othersTake(t *testing.T) error {
	const busy = 50 * time.Millisecond
	looks, goOn := make(chan struct{}), make(chan time.Duration)
	a := newAsking(t, busy, func(l *loop.Loop) {
		loop.SetYield(l, func() { looks <- struct{}{}; time.Sleep(<-goOn) })
	})
	defer a.l.Close()
	for i, c := range []struct {
		takes      time.Duration // less than 0: it does not look
		came, vain uint64
	}{{0, 1, 0}, {2 * busy, 1, 1}, {-1, 1, 1}, {0, 2, 1}, {2 * busy, 2, 2}} {
		a.ask()
		if c.takes >= 0 {
			<-looks
		}
		if _, err := a.asked.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if c.takes >= 0 {
			time.Sleep(time.Millisecond) // until it is there
			goOn <- c.takes
		}
		for done := false; !done; {
			select {
			case <-a.answered:
				done = true
			case <-looks: // the answer took its time
				goOn <- 0
			case <-time.After(time.Minute):
				t.Fatal("the loop hears nothing of the answer")
			}
		}
		if came, vain := a.l.Sought(); came != c.came || vain != c.vain {
			return fmt.Errorf("question %d, others take the processor for %v: it looked %d times for what came and %d times in vain, want %d and %d", i, c.takes, came, vain, c.came, c.vain)
		}
	}
	return nil
}

// Who takes long when he is given way is given it ever more seldom, and as before as soon as he does not.
func TestLoop_GivesWayToWhoIsQuick(t *testing.T) {
	given, takes := 0, time.Duration(0)
	l := running(t, nil, func(l *loop.Loop) {
		loop.SetYield(l, func() { given++; time.Sleep(takes) })
	})
	way := func(n int) int {
		before := given
		for range n {
			l.GiveWay()
		}
		return given - before
	}
	takes = time.Millisecond
	for i, c := range []struct{ calls, want int }{{1, 1}, {1, 0}, {1, 1}, {3, 0}, {1, 1}, {7, 0}, {1, 1}, {15, 0}} {
		if got := way(c.calls); got != c.want {
			t.Fatalf("step %d, who takes long: given way %d times of %d, want %d", i, got, c.calls, c.want)
		}
	}
	if got := way(20_000); got > 6+20_000/1024+1 {
		t.Errorf("given way %d times of 20,000 to who takes long each time", got)
	}
	takes = 0
	for tries := 0; way(1024) == 0; tries++ {
		if tries > 2 {
			t.Fatal("it never gives way again")
		}
	}
	if got := way(1024); got < 1000 {
		t.Errorf("given way %d times of 1,024 to who is quick", got)
	}
	takes = time.Millisecond
	if first, second, third := way(1), way(1), way(1); first != 1 || second != 0 || third != 1 {
		t.Errorf("who takes long again is given way %d, %d, %d times, want 1, 0, 1", first, second, third)
	}
}
