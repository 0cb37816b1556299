package observe

import (
	"maps"
	"time"
)

// Votes are what the verdict rests on.
func Votes(s State, at time.Duration) (up, down map[string]int) { return s.votes(at) }

// Copy shares nothing with s that Step could write to.
func Copy(s State) State {
	s.Edges, s.Regions = maps.Clone(s.Edges), maps.Clone(s.Regions)
	return s
}
