package proxy

import (
	"sync/atomic"
	"syscall"
	"time"
)

// Few loops are in use while there is little to do: each finds more at a time then, and is woken less often, which costs less than
// two processors that take turns. One more is used when the process has work for nearly as many processors as loops are in use, and
// one fewer when it has worked less than one fewer are full with for a longer while: what two share takes less of one. A burst that one
// more came into use for leaves so after the while, and not only once there is little to do; more often than once in a while nothing
// goes to and fro. Connections follow when a request of theirs has ended.
const (
	useEvery = 250 * time.Millisecond // between looks
	useWhile = 2 * time.Second        // the while
	useFull  = 90                     // percent of a processor for each loop in use
)

// loopsInUse says how many of a door's loops are in use.
type loopsInUse struct {
	n     atomic.Int32 // 0: connections stay where they are
	fixed atomic.Int32 // for tests: so many, whatever there is to do; 0: as it says above
	most  int32

	// The first loop's goroutine alone uses the rest.
	now  used // at the last look
	then used // when the while began
}

// used is the processor time of the process at a time.
type used struct {
	at  time.Time
	cpu time.Duration
}

// since is how many percent of a processor the process used since u, which is earlier.
func (v used) since(u used) float64 { return 100 * float64(v.cpu-u.cpu) / float64(v.at.Sub(u.at)) }

// begin has one of most used.
func (u *loopsInUse) begin(most int) {
	u.most = int32(most)
	u.n.Store(min(u.most, max(1, u.fixed.Load())))
}

// end leaves connections where they are.
func (u *loopsInUse) end() { u.n.Store(0) }

// of is the loop of a seat; -1: any.
func (u *loopsInUse) of(seat int) int {
	n := int(u.n.Load())
	if n == 0 {
		return -1
	}
	return seat % n
}

func (u *loopsInUse) look(now time.Time) {
	if now.Sub(u.now.at) < useEvery {
		return
	}
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.weigh(used{now, time.Duration(r.Utime.Nano() + r.Stime.Nano())})
	}
}

// weigh takes in what processor time the process has used by now.
func (u *loopsInUse) weigh(now used) {
	last, n := u.now, u.n.Load()
	u.now = now
	if last.at.IsZero() || !now.at.After(last.at) || n == 0 || u.fixed.Load() > 0 {
		u.then = now
		return
	}
	if busy := now.since(last); busy > useFull*float64(n) {
		u.n.CompareAndSwap(n, min(u.most, max(n+1, int32(busy/useFull)+1)))
		u.then = now
	} else if now.at.Sub(u.then.at) >= useWhile {
		if now.since(u.then) < useFull*float64(n-1) {
			u.n.CompareAndSwap(n, n-1)
		}
		u.then = now
	}
}
