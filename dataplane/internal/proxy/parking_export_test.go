package proxy

import (
	"reflect"
	"time"
	"unsafe"
)

// Parked is how many of a door's connections are parked.
func (d *Door) Parked() int { return d.parked().Count() }

// ParkAfter has a door park connections that are idle for so long. Call it before Serve.
func (d *Door) ParkAfter(idle time.Duration) { d.parkAfter = idle }

// Age has the one that is parked longest have waited for as long as it may.
func (d *Door) Age() {
	if o := d.parked().Oldest(); o != nil {
		o.(*conn).idle = time.Unix(1, 0)
		o.Rouse()
	}
}

// Guests is how many connections are counted.
func (d *Door) Guests() int {
	d.guests.mu.Lock()
	defer d.guests.mu.Unlock()
	return d.guests.total
}

// Patience is how long a connection that waits keeps its goroutine where so many are open.
func Patience(open int64) time.Duration {
	d := &Door{}
	d.open.Store(open)
	return d.whole()
}

// AnyGoes lets a connection go for another client as if none had been parked a moment ago.
func (d *Door) AnyGoes() bool { return d.anyGoes() }

// ParkedUntil is until when the one connection that is parked is left alone.
func (d *Door) ParkedUntil() (until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		until = *(*time.Time)(unsafe.Pointer(reflect.ValueOf(&c.place).Elem().FieldByName("until").UnsafeAddr()))
	}
	return until
}

// Resting is how many of a door's connections rest in a loop.
func (d *Door) Resting() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.lc.Rests() {
			n++
		}
	}
	return n
}

// Unloop has goroutines serve all. Call it before Serve.
func (d *Door) Unloop() { d.unlooped = true }

// UseLoops has n of a door's loops in use, whatever there is to do. Before Serve, or later.
func (d *Door) UseLoops(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.use.fixed.Store(int32(n))
	if most := d.use.most; most > 0 {
		d.use.n.Store(min(int32(n), most))
	}
}

// Homes is how many of a door's connections each loop has.
func (d *Door) Homes() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := make([]int, len(d.turns))
	for c := range d.conns {
		if c.home != nil {
			n[c.home.number]++
		}
	}
	return n
}

// LoopsInUse looks at what the process has used at times, and says how many of most loops are in use after each.
func LoopsInUse(most int, at []time.Time, cpu []time.Duration) (n []int) {
	var u loopsInUse
	u.begin(most)
	for i := range at {
		u.weigh(used{at[i], cpu[i]})
		n = append(n, int(u.n.Load()))
	}
	return n
}

// BusyPoll is what a door's loops have. Call it before Serve.
func (d *Door) BusyPoll(most time.Duration) { d.busyPoll = most }

// Sought is how often they looked for an answer that came, or did not.
func (d *Door) Sought() (came, vain int64) { return d.sought() }
