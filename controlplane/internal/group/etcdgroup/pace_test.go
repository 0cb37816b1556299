package etcdgroup

import (
	"testing"
	"testing/synctest"
	"time"
)

// A writer whose clock is an hour ahead of what the others have moves the group's time by what passes, however often it writes;
// after a pause of all, the word of most lets it leap.
func TestPace_AClockThatIsAheadMovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = time.Hour
		first := time.Now()
		known := first
		agreed, asked := false, 0
		agrees := func() bool { asked++; return agreed }
		var p pace
		for range 1000 {
			time.Sleep(time.Second)
			known = p.stamp(known, time.Now().Add(ahead), agrees)
			if off := known.Sub(time.Now()); off > 0 || off < -2*time.Second {
				t.Fatalf("after %v the group's time is off by %v", time.Since(first), off)
			}
		}
		// Another writes, with a clock that is right, and is not held up by the first, nor asked about.
		var right pace
		asked = 0
		for range 10 {
			time.Sleep(time.Second)
			known = right.stamp(known, time.Now(), agrees)
		}
		if off := known.Sub(time.Now()).Abs(); off > 2*time.Second || asked > 0 {
			t.Errorf("a right clock is off by %v, others were asked %d times", off, asked)
		}
		// All were stopped for a day: the first to write leaps once most agree, and goes on as time passes until then.
		time.Sleep(24 * time.Hour)
		var after pace
		if got := after.stamp(known, time.Now(), agrees); !got.Equal(known) {
			t.Errorf("it leapt by %v on one clock's word", got.Sub(known))
		}
		agreed = true
		if got := after.stamp(known, time.Now(), agrees); got.Sub(time.Now()).Abs() > time.Millisecond {
			t.Errorf("most agree, and the group's time is %v off", got.Sub(time.Now()))
		}
		// Never back.
		agreed = false
		future := time.Now().Add(10 * time.Hour)
		if got := after.stamp(future, time.Now(), agrees); got.Before(future) {
			t.Errorf("time went back to %v", got)
		}
	})
}
