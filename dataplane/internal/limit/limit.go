// Package limit owns the rate limits of an edge: GCRA (the generic cell rate algorithm, ITU-T I.371) with
// one atomic integer for each subscription and plan; and beside it, for plans that have them, limits over longer
// times and a bound on requests under way, which are passed together or not at all.
//
// It never knows what a plan is, answers nobody and reads no clock: time comes in as an argument. Nothing
// survives a crash: after a restart every subscription has its full burst, which costs at most one burst (of a limit a day
// that is a day's: a quota is exact).
// Everything may be called from any number of goroutines at once; no call waits for more than arithmetic of another's.
package limit

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Limiter is one limit. Its only state is the theoretical arrival time: the instant at which the bucket
// is full again. The zero Limiter is full.
type Limiter struct{ tat atomic.Int64 }

// dropped marks a limiter that its map has let go, so that a goroutine that still holds it takes nothing
// from a bucket nobody else sees.
const dropped = math.MinInt64

// Result is what a Take found.
type Result struct {
	OK         bool
	Remaining  int           // whole requests that could be taken right now
	Reset      time.Duration // until the burst is full again
	RetryAfter time.Duration // until the next request is taken; 0 when OK
}

// Whole is the share of who has a limit to itself. Shares are in millionths.
const Whole = 1_000_000

// Take takes one request at now, a monotonic reading from any fixed origin ≥ 0, under a share (millionths,
// 1 to Whole) of rate requests a second and the given burst (below 1 it is 1). A rate of 0 or less takes
// everything. All of it are arguments, not state: a changed plan or share is in effect with the next request.
// Result speaks of the whole limit, as if all who share it stood as this one does.
func (l *Limiter) Take(now time.Duration, rate, burst int, share int64) Result {
	r, ok := l.take(now, rate, burst, share)
	for !ok { // only a limiter of a Map is ever dropped, and Map.Take does not come here
		l.tat.CompareAndSwap(dropped, 0)
		r, ok = l.take(now, rate, burst, share)
	}
	return r
}

func (l *Limiter) take(now time.Duration, rate, burst int, share int64) (r Result, ok bool) {
	if rate <= 0 {
		return Result{OK: true, Remaining: math.MaxInt}, true
	}
	if burst < 1 {
		burst = 1
	}
	// A share of the rate is a longer interval, exact to a nanosecond however small it is; a share of the burst is the same
	// window of time, so a share that changes leaves a bucket as full as it was. Somebody whose share of the
	// burst is less than one request may still send one.
	whole, interval := intervals(rate, share)
	window := whole * int64(burst)
	if window/whole != int64(burst) { // overflow: a burst of ages is no limit within anybody's lifetime
		window = math.MaxInt64 / 4
	}
	window = max(window, interval)
	for {
		tat := l.tat.Load()
		if tat == dropped {
			return Result{}, false
		}
		next := max(tat, int64(now)) + interval
		if over := next - int64(now) - window; over > 0 {
			if full := int64(now) + window; tat > full { // taken under other terms: it counts for no more than all of these
				l.tat.CompareAndSwap(tat, full)
				continue
			}
			return Result{Reset: time.Duration(tat - int64(now)), RetryAfter: time.Duration(over)}, true
		}
		if l.tat.CompareAndSwap(tat, next) {
			used := next - int64(now)
			r = Result{OK: true, Reset: time.Duration(used)}
			if used+interval <= window { // else the next one would be refused here, whatever others have left
				r.Remaining = int(min((window-used)/whole, int64(burst)))
			}
			return r, true
		}
	}
}

// ID names a limit. A subscription that moves to another plan starts with that plan's full burst.
type ID struct{ Customer, Subscription, Plan string }

const shards = 64

// Map holds the limiters of an edge. It outlives policy tables. Make one with NewMap.
//
// An entry exists only for a subscription that presented a valid key, and goes when its burst is full
// again: dropping a full bucket cannot be told from keeping it. So the size is bounded by the
// subscriptions seen within twice their burst window, and random keys cost nothing.
type Map struct {
	seed  maphash.Seed
	shard [shards]shard
}

type shard struct {
	mu      sync.RWMutex // covers the map, not the limiters in it
	m       map[ID]*Limiter
	sweepAt int

	buckets   map[ID]*bucket
	bucketsAt int
}

// NewMap makes an empty map.
func NewMap() *Map {
	m := &Map{seed: maphash.MakeSeed()}
	for i := range m.shard {
		m.shard[i].m, m.shard[i].sweepAt = map[ID]*Limiter{}, minSweep
		m.shard[i].buckets, m.shard[i].bucketsAt = map[ID]*bucket{}, minSweep
	}
	return m
}

const minSweep = 64

// Take takes one request of id. It allocates only when id is new.
func (m *Map) Take(id ID, now time.Duration, rate, burst int, share int64) Result {
	r, _ := m.Find(id, now, rate, burst, share)
	return r
}

// Find is Take, and says what it took from: see Again.
func (m *Map) Find(id ID, now time.Duration, rate, burst int, share int64) (Result, *Limiter) {
	if rate <= 0 {
		return Result{OK: true, Remaining: math.MaxInt}, nil
	}
	s := &m.shard[maphash.String(m.seed, id.Customer)%shards]
	for {
		s.mu.RLock()
		l := s.m[id]
		s.mu.RUnlock()
		if l == nil {
			l = s.add(id, now)
		}
		if r, ok := l.take(now, rate, burst, share); ok {
			return r, l
		}
	}
}

// Again takes one request from a limiter that Find has found. false: the map has let it go, and nothing was taken. nil is none.
func (l *Limiter) Again(now time.Duration, rate, burst int, share int64) (Result, bool) {
	if l == nil {
		return Result{}, false
	}
	return l.take(now, rate, burst, share)
}

// Give gives a request back that Take took under the same terms: nobody served it. It never makes a limit fuller than full.
func (m *Map) Give(id ID, rate int, share int64) {
	if rate <= 0 {
		return
	}
	s := &m.shard[maphash.String(m.seed, id.Customer)%shards]
	s.mu.RLock()
	l := s.m[id]
	s.mu.RUnlock()
	if l == nil {
		return // it was full, and let go
	}
	_, interval := intervals(rate, share)
	for {
		tat := l.tat.Load()
		if tat == dropped || l.tat.CompareAndSwap(tat, max(0, tat-interval)) {
			return
		}
	}
}

// intervals are the times that one request takes of a whole rate and of a share of it. Both rounded up: a rate that does not
// divide a second is kept from below, never exceeded.
func intervals(rate int, share int64) (whole, interval int64) {
	share = min(max(share, 1), Whole)
	whole = (int64(time.Second) + int64(rate) - 1) / int64(rate)
	if share == Whole {
		return whole, whole
	}
	perShare := int64(rate) * share // at most 2^31 × 10^6
	return whole, (int64(time.Second)*Whole + perShare - 1) / perShare
}

func (s *shard) add(id ID, now time.Duration) *Limiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.m[id]; l != nil {
		return l
	}
	// Swept when the shard has doubled since the last sweep: amortised O(1) an insert, and no goroutine.
	if len(s.m) >= s.sweepAt {
		for id, l := range s.m {
			if tat := l.tat.Load(); tat <= int64(now) && l.tat.CompareAndSwap(tat, dropped) {
				delete(s.m, id)
			}
		}
		s.sweepAt = max(minSweep, 2*len(s.m))
	}
	l := &Limiter{}
	s.m[id] = l
	return l
}

// Len is how many subscriptions there are limits of, those with further windows twice, for metrics.
func (m *Map) Len() int {
	n := 0
	for i := range m.shard {
		m.shard[i].mu.RLock()
		n += len(m.shard[i].m) + len(m.shard[i].buckets)
		m.shard[i].mu.RUnlock()
	}
	return n
}
