// Package heap owns how much memory a process may have beyond what lives in it: Go lets garbage grow to as much as lives,
// which for a control node of a million keys would be a gigabyte of nothing.
//
// It never limits what lives, and frees nothing itself. It holds one setting of the whole process, so one Room runs at a
// time; nothing of it survives a crash.
package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// DefaultRoom is what a control node may have for garbage.
const DefaultRoom = 192 << 20

const (
	usual = 100 // percent of what lives, Go's own
	least = 10  // what lives is then ten times the room: more collecting would cost more than the memory is worth
)

// Percent is how many percent of what lives garbage may grow to so that it stays within room.
func Percent(live, room uint64) int {
	if live*usual <= room*100 {
		return usual
	}
	return max(least, int(room*100/live))
}

// Room keeps garbage within so many bytes until release: after each collection it looks at what lives. Small processes do
// not notice, since theirs grows to as much as lives in any case.
func Room(bytes uint64) (release func()) {
	r := &room{bytes: bytes, before: debug.SetGCPercent(usual), set: usual}
	mark(r)
	return r.release
}

type room struct {
	bytes  uint64
	before int

	mu       sync.Mutex // covers all below
	set      int
	released bool
}

// mark has adjust called once the next collection has passed: by it goes an object that nobody has.
func mark(r *room) { runtime.AddCleanup(new([16]byte), (*room).adjust, r) }

func (r *room) adjust() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.released {
		return
	}
	if p := Percent(live(), r.bytes); p != r.set {
		debug.SetGCPercent(p)
		r.set = p
	}
	mark(r)
}

func (r *room) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.released {
		r.released = true
		debug.SetGCPercent(r.before)
	}
}

func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
