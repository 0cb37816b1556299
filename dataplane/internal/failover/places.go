package failover

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultWait = time.Second // for a place, where the API does not say
	ranks       = 8
	roomFor     = time.Minute // after a request of a rank for which those below it leave room
)

// line is who waits for a place at one of an API's targets, first come, first served.
type line struct {
	seen  [ranks]atomic.Int64 // when a request of that rank came last, by the monitor's clock; 0: none did
	mu    sync.Mutex          // covers queue; held for no I/O
	queue []*waiter
}

// standing is a request's among others of its API: who is of a higher rank goes first, and who has a share of the places fills no
// more of them while requests of higher ranks come.
type standing struct {
	rank  int
	share int64 // in hundredths; 0: all
}

// note says that a request of a rank came.
func (l *line) note(rank int, now time.Duration) {
	at := &l.seen[min(max(rank, 0), ranks-1)]
	if last := at.Load(); last == 0 || now-time.Duration(last) > roomFor/8 { // it need not be written each time
		at.Store(max(1, int64(now)))
	}
}

// room is how many of a target's places a request may find taken, of so many that there are. What higher ranks do not use is
// nobody's loss where none of them came in the last minute: then it is all.
func (l *line) room(limit int64, s standing, now time.Duration) int64 {
	if s.share == 0 || s.share >= 100 {
		return limit
	}
	for rank := s.rank + 1; rank < ranks; rank++ {
		if last := l.seen[rank].Load(); last != 0 && now-time.Duration(last) <= roomFor {
			return max(1, limit*s.share/100)
		}
	}
	return limit
}

type waiter struct {
	place chan *Target // gets the target at which it holds a place, or nil: one of a higher rank has its place in the line
	standing
}

func (l *line) waiting() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.queue))
}

// enter takes a place at the target if one is free.
func (t *Target) enter(s standing) bool {
	limit := int64(t.settings.Load().dispatch.MaxRequests)
	if limit == 0 {
		t.busy.Add(1)
		return true
	}
	limit = t.line.room(limit, s, t.m.now())
	for {
		n := t.busy.Load()
		if n >= limit {
			return false
		}
		if t.busy.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (t *Target) full(s standing) bool {
	limit := int64(t.settings.Load().dispatch.MaxRequests)
	return limit > 0 && t.busy.Load() >= t.line.room(limit, s, t.m.now())
}

// leave gives the place back: to whoever has waited longest of the highest rank, if the target still has one for him.
func (t *Target) leave() {
	limit := int64(t.settings.Load().dispatch.MaxRequests)
	if limit == 0 { // where there was a limit a moment ago, who waits finds out when his time is over
		t.busy.Add(-1)
		return
	}
	l := t.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || t.busy.Load() > l.room(limit, l.queue[0].standing, t.m.now()) { // whoever is behind him has no more
		t.busy.Add(-1)
		return
	}
	w := l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	w.place <- t // never blocks: a waiter is in the queue once, and is given one place
}

// join puts a new waiter (nil) behind all of its rank and of higher ones, one who was given a place that he cannot use before
// those of his. Where as many wait as may, the last goes for one of a higher rank: whoever asks for much must not keep out whom he
// has to yield to. nil if there is nobody of a lower one.
func (l *line) join(w *waiter, s standing, most int) *waiter {
	rank := s.rank
	l.mu.Lock()
	defer l.mu.Unlock()
	if w != nil {
		l.queue = slices.Insert(l.queue, l.before(w.rank+1), w)
		return w
	}
	if n := len(l.queue); n >= most {
		if n == 0 || l.queue[n-1].rank >= rank {
			return nil
		}
		last := l.queue[n-1]
		l.queue = slices.Delete(l.queue, n-1, n)
		last.place <- nil // never blocks, like a place
	}
	w = &waiter{place: make(chan *Target, 1), standing: s}
	l.queue = slices.Insert(l.queue, l.before(rank), w)
	return w
}

// before is how many wait of that rank and higher ones, with mu held.
func (l *line) before(rank int) int {
	for i, w := range l.queue {
		if w.rank < rank {
			return i
		}
	}
	return len(l.queue)
}

// quit takes a waiter out. It may have been given a place meanwhile, which it gives back.
func (l *line) quit(w *waiter) {
	l.mu.Lock()
	i := slices.Index(l.queue, w)
	if i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	l.mu.Unlock()
	if i < 0 {
		if t := <-w.place; t != nil {
			t.leave()
		}
	}
}

// patience is how long to wait for a place: no longer than the route gives the whole request.
func (a *Attempts) patience() time.Duration {
	wait := a.api.Dispatch.MaxWait
	if wait == 0 {
		wait = defaultWait
	}
	if a.route != nil {
		for _, most := range [...]time.Duration{a.route.Timeout, a.route.Deadline} {
			if most > 0 {
				wait = min(wait, most-(a.r.monitor.now()-a.began))
			}
		}
	}
	return wait
}

// await waits for a place at a target that the request may still try. nil with a.full: none came in time, or too many
// wait. nil without: the targets are not well any more.
func (a *Attempts) await(ctx context.Context, l *line, most int, wait time.Duration) *Target {
	w := l.join(nil, a.standing, most)
	if w == nil {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		// A place that came free before the line was joined was given to nobody.
		if t := a.pick(); t != nil || !a.full {
			l.quit(w)
			return t
		}
		select {
		case t := <-w.place:
			if t == nil {
				return a.pick() // once more, as below
			}
			if a.fit(t, a.r.monitor.now()) != unfit {
				return t
			}
			t.leave()
			l.join(w, a.standing, most)
		case <-timer.C:
			l.quit(w)
			return a.pick() // once more, since the others may have become unwell meanwhile
		case <-ctx.Done():
			l.quit(w)
			return nil
		}
	}
}
