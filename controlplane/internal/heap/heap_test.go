package heap_test

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"bailiwick/controlplane/internal/heap"
)

func TestPercent(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		live, room uint64
		want       int
	}{{0, 256 * mb, 100}, {256 * mb, 256 * mb, 100}, {512 * mb, 256 * mb, 50}, {1024 * mb, 256 * mb, 25}, {1 << 40, 256 * mb, 10}} {
		if got := heap.Percent(c.live, c.room); got != c.want {
			t.Errorf("%d MB live: %d percent, want %d", c.live/mb, got, c.want)
		}
	}
}

// Once something lives that is larger than the room, the next collection comes when the room is full, and not when as much
// is garbage as lives.
func TestRoom_HoldsWhatGarbageMayTake(t *testing.T) {
	release := heap.Room(8 << 20)
	lives := make([]byte, 32<<20)
	goal := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		if g := goal(); g > 32<<20 && g < 56<<20 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the heap may grow to %d MB, want some 8 over what lives", goal()>>20)
		}
	}
	runtime.KeepAlive(lives)
	release()
	if p := debug.SetGCPercent(100); p != 100 {
		t.Errorf("it leaves %d percent behind, want what was there before", p)
	}
}
