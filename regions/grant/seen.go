package grant

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"bailiwick/shared/revision"
)

// Seen counts the age of grants at the receiver, from when it first saw each, on its own monotonic clock: a
// wall clock that is an hour off changes nothing. An ended grant stays refused although it is forgotten:
// what a sender's pair was granted before the newest grant seen, and is not remembered, has ended. Before is by
// place in the zone's log, which each grant moves on: leaders' clocks differ, and a new leader's may be behind.
// The mark is the name's, not the process's: an older grant of a twin, shown for the first time after a newer one of the
// other, is refused. A mark for each process would have to be kept for every start there ever was.
// The zero Seen has seen none.
type Seen struct {
	by   map[seenKey][]sighting
	left map[string]uint64 // edges that the registry does not have, by the order in which they left
	n    uint64            // how many ever left
}

type seenKey struct{ edge, from, to string }

type sighting struct {
	id      string
	granted revision.Revision
	first   time.Time
	lasts   time.Duration
}

const (
	maxSightings = 64   // of one sender's pair are remembered
	maxLeft      = 1024 // edges that left the registry are; beyond it the first to leave is forgotten
)

// Fresh says whether the grant is still within its lifetime, and remembers it. The receiver cannot know whether
// the sender still reaches its control plane, so it allows the offline lifetime; the sender keeps the shorter one.
func (s *Seen) Fresh(g *Grant, now time.Time) bool {
	key := seenKey{g.Edge, g.From, g.To}
	list := s.by[key] // oldest grant first
	var newest revision.Revision
	for _, x := range list {
		if x.id == g.ID {
			return now.Sub(x.first) < x.lasts
		}
		if newest.Less(x.granted) {
			newest = x.granted
		}
	}
	if g.Store.Less(newest) {
		return false
	}
	// The newest ended one stays, as the mark below which nothing is taken for new.
	keep := list[:0]
	for i, x := range list {
		if now.Sub(x.first) < x.lasts || i == len(list)-1 {
			keep = append(keep, x)
		}
	}
	if len(keep) >= maxSightings {
		keep = append(keep[:0], keep[len(keep)-maxSightings+1:]...)
	}
	if s.by == nil {
		s.by = map[seenKey][]sighting{}
	}
	s.by[key] = append(keep, sighting{g.ID, g.Store, now, g.OfflineTTL})
	return true
}

// Forget bounds what is kept of edges that the registry does not have any more. A stranger is refused before Fresh is
// asked; but who returns, or whose pair is opened again, must not bring ended grants back to life, so the marks of the
// last that left stay.
func (s *Seen) Forget(known func(edge string) bool) {
	maps.DeleteFunc(s.left, func(edge string, _ uint64) bool { return known(edge) })
	var leave []string
	for key := range s.by {
		if _, gone := s.left[key.edge]; !gone && !known(key.edge) {
			leave = append(leave, key.edge)
		}
	}
	if len(leave) == 0 {
		return
	}
	slices.Sort(leave)
	if s.left == nil {
		s.left = map[string]uint64{}
	}
	for _, edge := range slices.Compact(leave) {
		s.n++
		s.left[edge] = s.n
	}
	over := len(s.left) - maxLeft
	if over <= 0 {
		return
	}
	first := slices.SortedFunc(maps.Keys(s.left), func(a, b string) int { return cmp.Compare(s.left[a], s.left[b]) })[:over]
	maps.DeleteFunc(s.by, func(key seenKey, _ []sighting) bool { return slices.Contains(first, key.edge) })
	for _, edge := range first {
		delete(s.left, edge)
	}
}
