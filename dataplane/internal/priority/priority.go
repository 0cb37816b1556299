// Package priority owns who waits and who yields where an upstream, or the edge itself, is short: five classes of plans, and
// for each upstream an estimate of how many requests it works on at once before they only wait for each other.
//
// It never sends anything and knows neither plans nor upstreams: a class and a limit come in, a place goes out. Nothing
// survives a crash: an estimate begins anew, low. A Limiter and Seats may be used by any number of goroutines at once; Enter
// waits, within its class's time, and everything else takes the time of some arithmetic.
package priority

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Class of a plan. Higher ones yield later.
type Class uint8

const (
	Free Class = iota
	Bronze
	Silver // where a plan names none
	Gold
	Platinum
	classes
)

// Classes are all of them, the first to yield first.
func Classes() []Class { return []Class{Free, Bronze, Silver, Gold, Platinum} }

// String is the class's name.
func (c Class) String() string {
	return [...]string{"free", "bronze", "silver", "gold", "platinum"}[min(c, Platinum)]
}

// ParseClass reads a name; what is no class is Silver.
func ParseClass(s string) Class {
	switch s {
	case "free":
		return Free
	case "bronze":
		return Bronze
	case "gold":
		return Gold
	case "platinum":
		return Platinum
	}
	return Silver
}

// share is how much of a limit a class may fill, in hundredths, with all others: what is above it is for the classes above.
// Where a lower class is alone the limit grows until its share holds what the upstream can do, so nothing is lost by it.
var share = [classes]int{60, 70, 80, 90, 100}

// Share is a class's, in hundredths.
func (c Class) Share() int { return share[min(c, Platinum)] }

// patience is how long a request waits for a place. One whose client would be told to come back in a second is better told
// at once, so the lower classes wait for a hiccup and the highest for a real shortage.
var patience = [classes]time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, time.Second}

// Bounds of a Limiter, as the API has them. Zero values mean the default in the comment.
type Bounds struct {
	Min int // 4
	Max int // 1000
}

func (b Bounds) filled() Bounds {
	if b.Min <= 0 {
		b.Min = 4
	}
	if b.Max <= 0 {
		b.Max = 1000
	}
	return Bounds{min(b.Min, b.Max), b.Max}
}

// The estimate, a gradient as in Netflix's concurrency-limits: see DESIGN.md for why, and for the numbers.
const (
	initial     = 8                      // low: what is measured first is taken for an idle upstream
	floor       = 32                     // of Platinum alone: it is not turned away because an estimate has only begun
	windowLeast = 100 * time.Millisecond // a window is over after so long and so many answers,
	windowFull  = 50
	windowFew   = 10 // or after windowMost and these few
	windowMost  = 250 * time.Millisecond
	tolerance   = 1.35 // times the time of an idle upstream that answers may take
	growth      = 0.05 // of the limit, a window, while somebody waits for it
	quick       = 0.5  // likewise, while nothing tells of a queue: a start is over in a second or two
	quiet       = 1.1  // times the time of an idle upstream, up to which nothing does
	smoothing   = 0.3
	failing     = 0.1              // of a window's requests: then the limit goes down whatever the others took
	probeEvery  = 30 * time.Second // so often the lower classes halve, for a window, to see an idle upstream again
)

// Limiter bounds the requests that one upstream works on at once. The zero Limiter is ready.
type Limiter struct {
	mu      sync.Mutex // covers all below; never held while waiting
	bounds  Bounds
	limit   float64
	under   int
	waiting [classes][]*waiter // oldest first
	queued  int

	// the window under way
	began   time.Time
	answers int
	failed  int
	took    time.Duration // Σ of answers
	short   bool          // somebody had to wait, or was turned away

	idle    time.Duration // what an answer takes of an upstream that nothing waits at; 0: not known
	probed  time.Time
	probing bool

	shed [classes]int64
}

type waiter struct {
	turn chan bool // capacity 1: true is a place, false that a higher class took the place in the queue
}

// Ticket is a place at an upstream. The zero Ticket is none.
type Ticket struct {
	l       *Limiter
	entered time.Time
}

// How a request that had a place ended.
type End uint8

const (
	Answered End = iota // in the upstream's own time, which counts
	Failed              // not in time, or the upstream said that it cannot
	Untold              // nothing is to be learnt of it: the client left, or another upstream answered
)

// Enter takes a place, or waits for one as long as its class does. false: the request is to be turned away. It allocates only
// when it waits. The ticket is left once.
func (l *Limiter) Enter(ctx context.Context, c Class, b Bounds) (Ticket, bool) {
	c = min(c, Platinum)
	l.mu.Lock()
	now := time.Now()
	l.bound(b, now)
	if l.queued == 0 || len(l.waiting[c]) == 0 && !l.higher(c) {
		if l.room(c) {
			l.under++
			l.mu.Unlock()
			return Ticket{l, now}, true
		}
	}
	l.short = true
	w := l.queue(c)
	l.mu.Unlock()
	if w == nil {
		return Ticket{}, false
	}
	timer := time.NewTimer(patience[c])
	defer timer.Stop()
	select {
	case got := <-w.turn:
		return l.turn(got)
	case <-timer.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	if !l.forget(c, w) { // its turn came meanwhile
		l.mu.Unlock()
		return l.turn(<-w.turn)
	}
	l.shed[c]++
	l.mu.Unlock()
	return Ticket{}, false
}

// Spare is a place of the least class that is free and that nobody waits for. Who finds none does without, and is no sign that
// there are too few.
func (l *Limiter) Spare(b Bounds) (Ticket, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.bound(b, now); l.queued > 0 || !l.room(Free) {
		return Ticket{}, false
	}
	l.under++
	return Ticket{l, now}, true
}

func (l *Limiter) turn(got bool) (Ticket, bool) {
	if !got {
		return Ticket{}, false
	}
	return Ticket{l, time.Now()}, true
}

func (l *Limiter) bound(b Bounds, now time.Time) {
	if b = b.filled(); b == l.bounds {
		return
	}
	if l.limit == 0 {
		l.limit, l.began, l.probed = initial, now, now
	}
	l.bounds = b
	l.limit = min(max(l.limit, float64(b.Min)), float64(b.Max))
}

// higher says whether a class above c waits.
func (l *Limiter) higher(c Class) bool {
	for h := c + 1; h < classes; h++ {
		if len(l.waiting[h]) > 0 {
			return true
		}
	}
	return false
}

func (l *Limiter) room(c Class) bool {
	limit := l.limit
	switch {
	case c == Platinum:
		limit = max(limit, float64(min(floor, l.bounds.Max)))
	case l.probing:
		limit = max(limit/2, float64(l.bounds.Min))
	}
	return l.under < max(1, int(limit)*share[c]/100)
}

// queue is a place to wait in, nil if there is none: as many wait as are under way at most, and of a full queue the last of
// the lowest class goes when a higher one comes.
func (l *Limiter) queue(c Class) *waiter {
	if l.queued >= int(l.limit) {
		lowest := Free
		for lowest < c && len(l.waiting[lowest]) == 0 {
			lowest++
		}
		if lowest >= c {
			l.shed[c]++
			return nil
		}
		last := len(l.waiting[lowest]) - 1
		l.waiting[lowest][last].turn <- false
		l.waiting[lowest] = l.waiting[lowest][:last]
		l.queued--
		l.shed[lowest]++
	}
	w := &waiter{turn: make(chan bool, 1)}
	l.waiting[c] = append(l.waiting[c], w)
	l.queued++
	return w
}

// forget takes a waiter out of the queue; false if it is not there any more, and its turn channel has the answer.
func (l *Limiter) forget(c Class, w *waiter) bool {
	for i, o := range l.waiting[c] {
		if o == w {
			l.waiting[c] = append(l.waiting[c][:i], l.waiting[c][i+1:]...)
			l.queued--
			return true
		}
	}
	return false
}

// call gives places to who waits, the highest class first.
func (l *Limiter) call() {
	for c := Platinum; l.queued > 0; c-- {
		for len(l.waiting[c]) > 0 && l.room(c) {
			l.waiting[c][0].turn <- true
			l.waiting[c] = l.waiting[c][1:]
			l.queued--
			l.under++
		}
		if len(l.waiting[c]) > 0 || c == Free {
			return // a class waits: none below it goes first
		}
	}
}

// After is a ticket whose request took so much less: it was not the upstream that was waited for.
func (t Ticket) After(d time.Duration) Ticket {
	if t.l != nil && d > 0 {
		if t.entered = t.entered.Add(d); t.entered.After(time.Now()) {
			t.entered = time.Now()
		}
	}
	return t
}

// Leave gives the place back. Call it when the answer begins: a stream of hours is no work that others could wait for.
func (t Ticket) Leave(end End) {
	l := t.l
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.under--
	switch end {
	case Answered:
		l.answers++
		l.took += now.Sub(t.entered)
	case Failed:
		l.failed++
	}
	l.learn(now)
	l.call()
}

// learn ends the window if it is over.
func (l *Limiter) learn(now time.Time) {
	n, age := l.answers+l.failed, now.Sub(l.began)
	if !(age >= windowLeast && n >= windowFull || age >= windowMost && n >= windowFew) {
		if age < windowMost || n > 0 {
			return
		}
	}
	defer func() {
		l.began, l.answers, l.failed, l.took, l.short = now, 0, 0, 0, false
	}()
	next := l.limit
	switch {
	case float64(l.failed) > failing*float64(n):
		next *= 0.8
	case l.answers > 0:
		mean := l.took / time.Duration(l.answers)
		switch {
		case l.probing: // what was idle once may be so no more, in both directions
			l.idle, l.probing, l.probed = mean, false, now
			return
		case l.idle == 0 || mean < l.idle:
			l.idle, l.probed = mean, now
		case now.Sub(l.probed) >= probeEvery:
			l.probing = true
		}
		gradient := min(1, max(0.5, tolerance*float64(l.idle)/float64(max(mean, 1))))
		next *= gradient
		if l.short { // else nobody asked for more, and it is not known whether there is more
			more := growth
			if float64(mean) < quiet*float64(l.idle) {
				more = quick
			}
			next += max(1, more*l.limit)
		}
	}
	l.limit = l.limit*(1-smoothing) + next*smoothing
	l.limit = min(max(l.limit, float64(l.bounds.Min)), float64(l.bounds.Max))
}

// Stats of a Limiter.
type Stats struct {
	Limit, Under, Waiting int
	Shed                  [classes]int64 // turned away, by class
}

// Stats are as of now; 0 before the first Enter.
func (l *Limiter) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{int(math.Round(l.limit)), l.under, l.queued, l.shed}
}

// Seats are the places of the edge itself: of so many requests under way, each class may fill its share. Nobody waits.
type Seats struct {
	most  int64
	taken atomic.Int64
	shed  [classes]atomic.Int64
}

// DefaultSeats are requests under way at an edge.
const DefaultSeats = 16_384

// NewSeats are so many; 0: DefaultSeats.
func NewSeats(most int) *Seats {
	if most <= 0 {
		most = DefaultSeats
	}
	return &Seats{most: int64(most)}
}

// Take takes a seat; false: there is none for this class.
func (s *Seats) Take(c Class) bool {
	if s.taken.Add(1) <= max(1, s.most*int64(share[min(c, Platinum)])/100) {
		return true
	}
	s.taken.Add(-1)
	s.shed[min(c, Platinum)].Add(1)
	return false
}

// Leave gives a seat back that was taken.
func (s *Seats) Leave() { s.taken.Add(-1) }

// Taken is how many are, of Most that there are, Shed how often there was none for a class.
func (s *Seats) Taken() int64       { return s.taken.Load() }
func (s *Seats) Most() int64        { return s.most }
func (s *Seats) Shed(c Class) int64 { return s.shed[min(c, Platinum)].Load() }
