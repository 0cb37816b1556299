package channel

import (
	"sync"
	"time"
)

// What one takes back in resetsWithin before what he sends goes over a connection apart, with others of his kind: what becomes of
// that is theirs alone. More than resetsOf of them are not told apart from who takes nothing back.
const (
	resetsEach = 50
	resetsOf   = 1024
)

// resets are how many requests were taken back lately, by whose they were.
type resets struct {
	mu sync.Mutex // covers of; held for no I/O
	of map[string]*taken
}

type taken struct {
	since time.Time
	n     int
}

func (r *resets) note(whose string, now time.Time) {
	if whose == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.of[whose]
	if t == nil {
		if len(r.of) >= resetsOf {
			for name, old := range r.of {
				if now.Sub(old.since) > resetsWithin {
					delete(r.of, name)
				}
			}
			if len(r.of) >= resetsOf {
				return
			}
		}
		if r.of == nil {
			r.of = map[string]*taken{}
		}
		t = &taken{since: now}
		r.of[whose] = t
	}
	if now.Sub(t.since) > resetsWithin {
		*t = taken{since: now}
	}
	t.n++
}

func (r *resets) many(whose string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.of[whose]
	return t != nil && t.n >= resetsEach && now.Sub(t.since) <= resetsWithin
}
