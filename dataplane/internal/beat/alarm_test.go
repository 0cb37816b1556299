package beat_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/beat"
)

// What is set rings at its moment; at a pause, where one comes that it may ring at; and never later than it may.
func TestAlarm_RingsAtAPause(t *testing.T) {
	const at = 100 * ms
	for _, c := range []struct {
		name        string
		early, late time.Duration
		pauses      []time.Duration
		want        time.Duration
	}{
		{"nobody tells of pauses", 0, beat.Late, nil, at},
		{"nobody does, and it may be early", 20 * ms, 0, nil, at},
		{"none is near", 10 * ms, beat.Late, []time.Duration{50 * ms}, at},
		{"it may not be late", 0, 0, []time.Duration{99 * ms, 101 * ms}, at},
		{"one comes before it may ring", 10 * ms, 0, []time.Duration{89 * ms}, at},
		{"one comes when it may", 10 * ms, 0, []time.Duration{89 * ms, 90 * ms, 91 * ms}, 90 * ms},
		{"the first of them", 10 * ms, 0, []time.Duration{93 * ms, 97 * ms}, 93 * ms},
		{"pauses come, and it waits for the next", 0, beat.Late, []time.Duration{98 * ms, 102 * ms, 103 * ms}, 102 * ms},
		{"the last was too long ago", 0, beat.Late, []time.Duration{at - beat.Late, 102 * ms}, at},
		{"the last was just not", 0, beat.Late, []time.Duration{at - beat.Late + 1, 102 * ms}, 102 * ms},
		{"it waits in vain", 0, beat.Late, []time.Duration{98 * ms}, at + beat.Late},
		{"it waits in vain for less", 0, 2 * ms, []time.Duration{98 * ms, 103 * ms}, at + 2*ms},
		{"both: early", 10 * ms, beat.Late, []time.Duration{95 * ms, 102 * ms}, 95 * ms},
		{"both: late", 3 * ms, beat.Late, []time.Duration{96 * ms, 102 * ms}, 102 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, began := beat.New(), time.Now()
				for _, p := range c.pauses {
					time.AfterFunc(p, func() { pause(b) })
				}
				a := b.Alarm()
				a.Set(began.Add(at), c.early, c.late)
				<-a.C
				if got := time.Since(began); got != c.want {
					t.Errorf("rang after %v, want %v", got, c.want)
				}
				time.Sleep(time.Second)
				if pause(b); rang(a) {
					t.Error("it rang twice")
				}
			})
		})
	}
}

// pause is what a loop does that has answered all.
func pause(b *beat.Beat) {
	if now := time.Now(); b.Pause(now) {
		b.Begin(now)
	}
}

func rang(a *beat.Alarm) bool {
	select {
	case <-a.C:
		return true
	default:
		return false
	}
}

// What is set anew, or stopped, is forgotten, whether or not it has rung.
func TestAlarm_SetAnewForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := beat.New()
		a, other := b.Alarm(), b.Alarm()
		in := func(d time.Duration) time.Time { return time.Now().Add(d) }
		a.Set(in(10*ms), 0, 0)
		time.Sleep(20 * ms) // it has rung, and nobody listened
		a.Set(in(100*ms), 50*ms, 0)
		if synctest.Wait(); rang(a) {
			t.Error("it rings for what was set before")
		}
		if a.Wake(); rang(a) {
			t.Error("it rings by the timer of what was set before")
		}
		a.Set(in(200*ms), 50*ms, beat.Late)
		other.Set(in(100*ms), 40*ms, 0)
		for range 6 {
			time.Sleep(10 * ms)
			pause(b)
		}
		if rang(a) || !rang(other) {
			t.Error("a pause after 60 ms: want the other alone, which may ring 60 ms from now")
		}
		time.Sleep(50 * ms)
		if synctest.Wait(); rang(a) {
			t.Error("it rings when it was first set to")
		}
		a.Stop()
		a.Stop()
		if b.Pause(in(time.Hour)) {
			t.Error("something waits for a pause though all is stopped")
		}
		time.Sleep(time.Second)
		if pause(b); rang(a) {
			t.Error("it rings though it was stopped")
		}
		a.Set(in(-time.Second), 0, 0)
		if synctest.Wait(); !rang(a) {
			t.Error("a moment that has passed does not ring")
		}
	})
}

// Whatever pauses come meanwhile, each that is set rings once, and not before it may: a spool whose alarm is lost commits nothing any more.
func TestAlarm_NoneIsLost(t *testing.T) {
	b := beat.New()
	end := make(chan struct{})
	var loops, parts sync.WaitGroup
	for range 3 {
		loops.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				pause(b)
				time.Sleep(time.Duration(rand.IntN(int(100 * time.Microsecond))))
			}
		})
	}
	failed := make(chan error, 8)
	for i := range cap(failed) {
		parts.Go(func() {
			a := b.Alarm()
			defer a.Stop()
			for n := range 1000 {
				early := time.Duration(rand.IntN(int(ms)))
				at := time.Now().Add(time.Duration(rand.IntN(int(ms))))
				a.Set(at, early, time.Duration(rand.IntN(2))*time.Duration(rand.IntN(int(ms))))
				if rand.IntN(4) == 0 { // and perhaps again, while it rings
					time.Sleep(time.Duration(rand.IntN(int(ms))))
					at = time.Now().Add(time.Duration(rand.IntN(int(ms))))
					a.Set(at, early, 0)
				}
				select {
				case <-a.C:
					if now := time.Now(); now.Before(at.Add(-early)) {
						failed <- fmt.Errorf("alarm %d rang %v before it might, the %d. time", i, at.Add(-early).Sub(now), n)
						return
					}
				case <-time.After(30 * time.Second):
					failed <- fmt.Errorf("alarm %d did not ring the %d. time", i, n)
					return
				}
			}
		})
	}
	parts.Wait()
	close(end)
	loops.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if b.Pause(time.Now().Add(time.Hour)) {
		t.Error("something is still waited for")
	}
}
