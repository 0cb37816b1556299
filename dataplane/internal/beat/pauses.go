package beat

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Late is how long what may be late waits for a pause, and for how long a pause says that others will follow. At 500 requests a second
// there is one within 2 ms. Where few come, who ticks at any moment meets none of them, and under load there are no pauses: then nobody
// waits for one.
const Late = 5 * time.Millisecond

// pauses are the moments in which nobody waits for an answer, as far as one who answers knows.
type pauses struct {
	base time.Time
	at   atomic.Int64 // ns since base: the last one
	due  atomic.Int64 // ns since base: from when on one rings an alarm

	mu      sync.Mutex
	waiting []*Alarm // a dozen, in no order
}

func newPauses(base time.Time) *pauses {
	p := &pauses{base: base}
	p.at.Store(math.MinInt64 / 2)
	p.due.Store(math.MaxInt64)
	return p
}

// Pause says that nobody waits for an answer at a moment. true: something waits for that, and Begin begins it. Who calls it lets others have
// the processor before: who has just been answered may be waiting for it, and what begins takes it for some 0.2 ms. Two atomics.
func (p *pauses) Pause(now time.Time) bool {
	at := int64(now.Sub(p.base))
	p.at.Store(at)
	return at >= p.due.Load()
}

// Begin rings what a pause at that moment rings.
func (p *pauses) Begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(a *Alarm) bool {
		if a.from.After(now) {
			return false
		}
		a.ring(now)
		return true
	})
	p.count()
}

// told says whether pauses are being told of. mu is held.
func (p *pauses) told(now time.Time) bool {
	return now.Sub(p.base)-time.Duration(p.at.Load()) < Late
}

// count sets due. mu is held.
func (p *pauses) count() {
	due := int64(math.MaxInt64)
	for _, a := range p.waiting {
		due = min(due, int64(a.from.Sub(p.base)))
	}
	p.due.Store(due)
}
