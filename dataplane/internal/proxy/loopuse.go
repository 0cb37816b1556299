package proxy

import (
	"sync/atomic"
	"syscall"
	"time"
)

// Few loops are in use while there is little to do: each finds more at a time then, and is woken less often, which costs less than
// two processors that take turns. One more is used when the process has work for nearly as many processors as loops are in use, and
// one fewer when it has had much less for a while. Connections follow when a request of theirs has ended.
const (
	useEvery = 250 * time.Millisecond // between looks
	useFull  = 90                     // percent of a processor for each loop in use
	useEmpty = 60                     // percent of one for each but one of them
	useCalm  = 8                      // looks in a row that find it so
)

// loopsInUse says how many of a door's loops are in use.
type loopsInUse struct {
	n     atomic.Int32 // 0: connections stay where they are
	fixed atomic.Int32 // for tests: so many, whatever there is to do; 0: as it says above
	most  int32

	// The first loop's goroutine alone uses the rest.
	at   time.Time
	cpu  time.Duration
	calm int
}

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
	if now.Sub(u.at) < useEvery {
		return
	}
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.weigh(now, time.Duration(r.Utime.Nano()+r.Stime.Nano()))
	}
}

// weigh takes in what processor time the process has used by now.
func (u *loopsInUse) weigh(now time.Time, cpu time.Duration) {
	took, used := now.Sub(u.at), cpu-u.cpu
	first := u.at.IsZero()
	u.at, u.cpu = now, cpu
	n := u.n.Load()
	if first || took <= 0 || n == 0 || u.fixed.Load() > 0 {
		return
	}
	switch busy := 100 * float64(used) / float64(took); {
	case busy > useFull*float64(n):
		u.calm = 0
		u.n.CompareAndSwap(n, min(u.most, max(n+1, int32(busy/useFull)+1)))
	case busy < useEmpty*float64(n-1):
		if u.calm++; u.calm >= useCalm {
			u.calm = 0
			u.n.CompareAndSwap(n, n-1)
		}
	default:
		u.calm = 0
	}
}
