package relay

import (
	"sync"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/shared/revision"
)

// ages counts the age of grants at the receiver, from when it first saw each, on its own monotonic clock: a
// wall clock that is an hour off changes nothing. An ended grant stays refused although it is forgotten:
// what a sender's pair was granted before the newest grant seen, and is not remembered, has ended. Before is by
// place in the zone's log, which each grant moves on: leaders' clocks differ, and a new leader's may be behind.
type ages struct {
	mu   sync.Mutex // covers seen
	seen map[agesKey][]sighting
}

type agesKey struct{ edge, from, to string }

type sighting struct {
	id      string
	granted revision.Revision
	first   time.Time
	lasts   time.Duration
}

const maxSightings = 64

// fresh says whether the grant is still within its lifetime. The receiver cannot know whether the sender
// still reaches its control plane, so it allows the offline lifetime; the sender keeps the shorter one.
func (a *ages) fresh(g *failover.Grant) bool {
	now := time.Now()
	key := agesKey{g.Edge, g.From, g.To}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = map[agesKey][]sighting{}
	}
	list := a.seen[key] // oldest grant first
	var newest revision.Revision
	for _, s := range list {
		if s.id == g.ID {
			return now.Sub(s.first) < s.lasts
		}
		if newest.Less(s.granted) {
			newest = s.granted
		}
	}
	if g.Store.Less(newest) {
		return false
	}
	// The newest ended one stays, as the mark below which nothing is taken for new.
	keep := list[:0]
	for i, s := range list {
		if now.Sub(s.first) < s.lasts || i == len(list)-1 {
			keep = append(keep, s)
		}
	}
	if len(keep) >= maxSightings {
		keep = append(keep[:0], keep[len(keep)-maxSightings+1:]...)
	}
	a.seen[key] = append(keep, sighting{g.ID, g.Store, now, g.OfflineTTL})
	return true
}

// forget drops edges that the registry does not have any more; with them go their marks, and a stranger is
// refused before ages is asked.
func (a *ages) forget(known func(edge string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key := range a.seen {
		if !known(key.edge) {
			delete(a.seen, key)
		}
	}
}
