// Package beat owns when an edge does what it does every so often: at the same moments. Each part that ticked by itself woke a processor
// that had nothing to do, which costs the scheduler more than the tick does, and on a machine with little to do it is what requests wait
// for; where all tick together, the processor wakes once.
//
// What is due is never early, and is as often as it would be by itself. Nothing here is for what is due once, or soon. It keeps nothing:
// a process that begins anew has a beat of its own.
package beat

import "time"

// Beat is a beginning that periods are counted from. nil: each ticker counts from its own.
type Beat struct{ began time.Time }

// New begins now.
func New() *Beat { return &Beat{time.Now()} }

// Between is a beat whose moments lie halfway between this one's of that period: for what takes long, beside which others would have to
// wait. b is not nil.
func (b *Beat) Between(every time.Duration) *Beat { return &Beat{b.began.Add(-every / 2)} }

// After is the first moment after t that is a whole number of periods from the beginning, which is not after t. Safe for concurrent use.
func (b *Beat) After(t time.Time, every time.Duration) time.Time {
	return t.Add(every - t.Sub(b.began)%every)
}

// Ticker ticks at whole numbers of its period. Not for concurrent use.
type Ticker struct {
	C <-chan time.Time // a moment, as the clock was when it was told

	beat  *Beat
	every time.Duration
	timer *time.Timer
}

// Ticker ticks once, within a period, and again after each call of Again. Stop it.
func (b *Beat) Ticker(every time.Duration) *Ticker {
	if b == nil {
		b = New()
	}
	now := time.Now()
	timer := time.NewTimer(b.After(now, every).Sub(now))
	return &Ticker{C: timer.C, beat: b, every: every, timer: timer}
}

// Again has the next tick come, once one has been taken from C. Moments that have passed since are left out.
func (t *Ticker) Again() {
	now := time.Now()
	t.timer.Reset(t.beat.After(now, t.every).Sub(now))
}

// Stop ends it.
func (t *Ticker) Stop() { t.timer.Stop() }
