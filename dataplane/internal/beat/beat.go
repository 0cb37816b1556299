// Package beat owns when an edge does what it does every so often: at the same moments, and while nobody waits for an answer. Each part
// that ticked by itself woke a processor that had nothing to do, which costs the scheduler more than the tick does, and on a machine with
// little to do it is what requests wait for; where all tick together, the processor wakes once.
//
// What is due is never early, unless its owner says by how much it may be, nor later than its owner lets it, and is as often as it would
// be by itself. Nothing here is for what is due once, or soon. It keeps nothing: a process that begins anew has a beat of its own.
package beat

import (
	"slices"
	"time"
)

// Beat is a beginning that periods are counted from, and the pauses of those who answer requests. nil: each ticker counts from its own,
// and nobody tells of pauses. Safe for concurrent use.
type Beat struct {
	began time.Time
	*pauses
}

// New begins now.
func New() *Beat {
	now := time.Now()
	return &Beat{began: now, pauses: newPauses(now)}
}

// Between is a beat whose moments lie halfway between this one's of that period, with the same pauses: for what takes long, beside which
// others would have to wait. b is not nil.
func (b *Beat) Between(every time.Duration) *Beat { return &Beat{b.began.Add(-every / 2), b.pauses} }

// After is the first moment after t that is a whole number of periods from the beginning, which is not after t.
func (b *Beat) After(t time.Time, every time.Duration) time.Time {
	return t.Add(every - t.Sub(b.began)%every)
}

// Ticker ticks at whole numbers of its period. Not for concurrent use.
type Ticker struct {
	C <-chan time.Time // a moment, as the clock was when it was told

	beat  *Beat
	every time.Duration
	late  time.Duration
	alarm *Alarm
}

// Ticker ticks once, within a period, and again after each call of Again. Stop it.
func (b *Beat) Ticker(every time.Duration) *Ticker { return b.ticker(every, 0) }

// Patient is a Ticker that may be Late: for what takes a processor for a while, here or where it has others work.
func (b *Beat) Patient(every time.Duration) *Ticker { return b.ticker(every, Late) }

func (b *Beat) ticker(every, late time.Duration) *Ticker {
	if b == nil {
		b = New()
	}
	a := b.Alarm()
	t := &Ticker{C: a.C, beat: b, every: every, late: late, alarm: a}
	t.Again()
	return t
}

// Again has the next tick come, once one has been taken from C. Moments that have passed since are left out.
func (t *Ticker) Again() { t.alarm.Set(t.beat.After(time.Now(), t.every), 0, t.late) }

// Stop ends it.
func (t *Ticker) Stop() { t.alarm.Stop() }

// Alarm rings once each time that it is set. One goroutine sets it, stops it and hears C.
type Alarm struct {
	C <-chan time.Time // when it rang

	c     chan time.Time
	beat  *Beat
	timer *time.Timer

	// With the beat's mu held:
	set        bool
	from, last time.Time // a pause may ring it from and at last it rings
	wakes      time.Time // when timer does
}

// Alarm is not set. Stop one that was. b is not nil.
func (b *Beat) Alarm() *Alarm {
	c := make(chan time.Time, 1)
	return &Alarm{C: c, c: c, beat: b}
}

// Set has it ring at a moment, or at a pause that comes at most early before. If pauses are being told of at that moment, it waits for the
// next one, for at most late. What it was set to before is forgotten, even if it has rung and C was not heard.
func (a *Alarm) Set(at time.Time, early, late time.Duration) {
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	select {
	case <-a.c:
	default:
	}
	a.from, a.wakes, a.last = at.Add(-early), at, at.Add(late)
	if !a.set {
		a.set = true
		a.beat.waiting = append(a.beat.waiting, a)
	}
	a.beat.count()
	if d := max(0, time.Until(at)); a.timer == nil {
		a.timer = time.AfterFunc(d, a.wake)
	} else {
		a.timer.Reset(d)
	}
}

// wake is the timer's. It may come late, for what was set before: then a.timer is under way.
func (a *Alarm) wake() {
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	now := time.Now()
	if !a.set || now.Before(a.wakes) {
		return
	}
	if now.Before(a.last) && a.beat.told(now) {
		a.wakes = a.last
		a.timer.Reset(a.last.Sub(now))
		return
	}
	a.ring(now)
	a.beat.waiting = slices.DeleteFunc(a.beat.waiting, func(w *Alarm) bool { return w == a })
	a.beat.count()
}

// ring is called with mu held, by whoever takes it from those who wait.
func (a *Alarm) ring(now time.Time) {
	a.set = false
	a.c <- now // it has room: Set emptied it
}

// Stop has it not ring any more, unless it has.
func (a *Alarm) Stop() {
	a.beat.mu.Lock()
	defer a.beat.mu.Unlock()
	if !a.set {
		return
	}
	a.set = false
	a.timer.Stop()
	a.beat.waiting = slices.DeleteFunc(a.beat.waiting, func(w *Alarm) bool { return w == a })
	a.beat.count()
}
