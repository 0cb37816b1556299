package limit

import (
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"
)

// MaxWindows is how many windows a request may have to pass.
const MaxWindows = 4

// Window is a limit of Requests each Per, of which Burst may come at once; 0: all of them. Within any time of Per, Burst plus
// Requests pass at most: what GCRA costs over a counter that forgets everything at once, for one integer a window.
type Window struct {
	Requests int
	Per      time.Duration
	Burst    int
}

// Terms are what a request has to pass beside a rate a second. The zero Terms let everything pass.
type Terms struct {
	Windows    [MaxWindows]Window
	N          int // of Windows
	Concurrent int // under way at once; 0: no bound
}

// Entered is what an Enter found.
type Entered struct {
	Result [MaxWindows]Result // of each window, whether or not it refused
	// Refused is the window that refused and will for longest, -1 if none did. Crowded: too many are under way.
	Refused int
	Crowded bool
	pass    Pass
}

// OK says whether the request was let in. What was refused has taken nothing.
func (e *Entered) OK() bool { return e.Refused < 0 && !e.Crowded }

// Pass is the place of a request that was let in. The zero Pass is none.
func (e *Entered) Pass() Pass { return e.pass }

// Pass is one request among those under way.
type Pass struct {
	b     *bucket
	taken [MaxWindows]int64 // of each window
	set   uint32            // the bucket's, of then
}

// bucket is what there is of a subscription beside its rate: one lock for all windows, so that a request passes all of them
// or takes from none.
type bucket struct {
	mu      sync.Mutex // covers all; held for some arithmetic
	tat     [MaxWindows]int64
	per     [MaxWindows]time.Duration // whose tat it is: a window is known by its length, not by its place in a plan
	set     uint32                    // counts the changes of per
	under   int
	dropped bool // not in its map any more
}

// Enter passes all windows and the bound on requests under way, or none. It allocates only when id is new. What was let in
// ends with Pass.Leave, once.
func (m *Map) Enter(id ID, now time.Duration, t *Terms, share int64) Entered {
	if t.N == 0 && t.Concurrent <= 0 {
		return Entered{Refused: -1}
	}
	s := &m.shard[maphash.String(m.seed, id.Customer)%shards]
	for {
		s.mu.RLock()
		b := s.buckets[id]
		s.mu.RUnlock()
		if b == nil {
			b = s.addBucket(id, now)
		}
		if e, ok := b.enter(now, t, min(max(share, 1), Whole)); ok {
			return e
		}
	}
}

func (b *bucket) enter(now time.Duration, t *Terms, share int64) (e Entered, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dropped {
		return e, false
	}
	b.arrange(t)
	e.Refused = -1
	var next, taken [MaxWindows]int64
	for i := range t.N {
		var r *Result = &e.Result[i]
		if next[i], taken[i] = t.Windows[i].pass(&b.tat[i], now, share, r); !r.OK && (e.Refused < 0 || r.RetryAfter > e.Result[e.Refused].RetryAfter) {
			e.Refused = i
		}
	}
	// Somebody whose share of the bound is less than one may still have one under way.
	e.Crowded = t.Concurrent > 0 && int64(b.under) >= max(1, (int64(t.Concurrent)*share+Whole-1)/Whole)
	if !e.OK() {
		for i := range t.N { // nothing was taken: what one window has left is told without this request
			if e.Result[i].OK {
				e.Result[i].back(taken[i])
			}
		}
		return e, true
	}
	copy(b.tat[:], next[:]) // of windows that there are no more, 0
	b.under++
	e.pass = Pass{b, taken, b.set}
	return e, true
}

// arrange puts what was taken of each window where the window is now: else who adds one before that of a day gives everybody at
// the day's end of it a new day. A window of a new length begins with the largest debt of those that are gone, of which pass
// counts no more than all of its own: to change a length would else be to forget as well.
func (b *bucket) arrange(t *Terms) {
	same := true
	for i := range t.N {
		same = same && b.per[i] == t.Windows[i].Per
	}
	if same {
		return
	}
	var tat [MaxWindows]int64
	var per [MaxWindows]time.Duration
	var stays [MaxWindows]bool
	for i := range t.N {
		per[i] = t.Windows[i].Per
		if at := slices.Index(b.per[:], per[i]); at >= 0 {
			tat[i], stays[at] = b.tat[at], true
		}
	}
	gone := int64(0)
	for i := range b.tat {
		if !stays[i] {
			gone = max(gone, b.tat[i])
		}
	}
	for i := range t.N {
		if !slices.Contains(b.per[:], per[i]) {
			tat[i] = gone
		}
	}
	b.tat, b.per, b.set = tat, per, b.set+1
}

// Leave says that the request is over.
func (p Pass) Leave() {
	if p.b != nil {
		p.b.mu.Lock()
		p.b.under--
		p.b.mu.Unlock()
	}
}

// Undo leaves as if it had never come: another limit refused it. If the windows are others by now, what it took stays taken. r, what the
// client is told of each window, is as it is without the request then.
func (p Pass) Undo(r *[MaxWindows]Result) {
	if p.b == nil {
		return
	}
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	p.b.under--
	if p.set != p.b.set {
		return
	}
	for i := range p.taken {
		if p.b.tat[i] -= p.taken[i]; p.taken[i] > 0 {
			r[i].back(p.taken[i])
		}
	}
}

// back has what is told of a window be as if a request that took so much had not come.
func (r *Result) back(taken int64) {
	r.Remaining++
	r.Reset = max(r.Reset-time.Duration(taken), 0)
}

// times are a window's whole interval, that of a share, and the time that the burst lasts.
func (w Window) times(share int64) (whole, interval, window int64) {
	requests := int64(max(w.Requests, 1))
	whole = (int64(w.Per) + requests - 1) / requests // rounded up: kept from below, never exceeded
	burst := int64(w.Burst)
	if burst <= 0 || burst > requests {
		burst = requests
	}
	hi, lo := bits.Mul64(uint64(whole), Whole)
	if interval = math.MaxInt64 / 8; hi < uint64(share) {
		if q, _ := bits.Div64(hi, lo, uint64(share)); q < math.MaxInt64/8 {
			interval = int64(q)
		}
	}
	return whole, interval, max(whole*burst, interval)
}

func (w Window) pass(tat *int64, now time.Duration, share int64, r *Result) (next, taken int64) {
	whole, interval, window := w.times(share)
	// What was taken under other terms, of a longer window or of a small share, counts for no more than all of this one: who
	// sent one request of a day's ten under a twentieth of them would else be refused for a day when he gets the whole.
	*tat = min(*tat, int64(now)+window)
	next = max(*tat, int64(now)) + interval
	used := next - int64(now)
	if over := used - window; over > 0 {
		*r = Result{Reset: time.Duration(*tat - int64(now)), RetryAfter: time.Duration(over)}
		return *tat, 0
	}
	*r = Result{OK: true, Reset: time.Duration(used)}
	if used+interval <= window {
		r.Remaining = int((window - used) / whole)
	}
	return next, interval
}

func (s *shard) addBucket(id ID, now time.Duration) *bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[id]; b != nil {
		return b
	}
	if len(s.buckets) >= s.bucketsAt { // as add sweeps
		for id, b := range s.buckets {
			b.mu.Lock()
			b.dropped = b.under == 0
			for _, tat := range b.tat {
				b.dropped = b.dropped && tat <= int64(now)
			}
			if b.dropped {
				delete(s.buckets, id)
			}
			b.mu.Unlock()
		}
		s.bucketsAt = max(minSweep, 2*len(s.buckets))
	}
	b := &bucket{}
	s.buckets[id] = b
	return b
}
