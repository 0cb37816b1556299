package observe

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Numbers of the verdict. A region that dies is out of all answers within 5 s: one second until the next probe,
// two probes of at most one second, and one more exchange for the others' word.
const (
	missesUntilSilent = 2                // probes in a row that an edge does not answer
	healthyFor        = 10 * time.Second // without a break, before what was declared dead returns
	opinionLasts      = 5 * time.Second  // what another edge said is not counted after that
	guardFrom         = 4                // observed regions from which on the mass-failure guard works
)

// State is all that an edge knows of its zone's edges and regions. The zero State knows nobody.
type State struct {
	Self    string
	Edges   map[string]Edge
	Regions map[string]Region
	Held    bool
}

// Edge is another edge, or this one, as this edge sees it.
type Edge struct {
	Region   string
	Misses   int  // probes in a row that it did not answer
	Silent   bool // declared dead, until it answers for healthyFor
	WellFrom time.Duration
	Says     map[string]bool // its own opinion of regions: whether each is up
	SaidAt   time.Duration
}

// Region is the verdict on a region.
type Region struct {
	Dead     bool
	Why      Why
	WellFrom time.Duration // since when the observers call it up; below zero: they do not
	Drained  bool          // by an operator; whether it is up is another matter
	Back     time.Duration // when it was last let back, from a drain or from looking dead; below zero: never
}

// Why says why a region was declared dead: its parts, since an edge tells its control plane no words (invariant 19). The
// zero Why is of one that is well.
type Why struct {
	Against, Of int    // so many of the regions that observe it do not reach it
	By          string // or a region one of whose edges had declared it dead before this edge began
}

// String is for this edge's own log and answers.
func (w Why) String() string {
	switch {
	case w.By != "":
		return "declared dead before this edge began, by one of " + w.By
	case w.Of > 0:
		return "not reached by " + observers(w.Against, w.Of)
	}
	return ""
}

// Event is what Step takes. Exactly one of Roster and Probed is set, or none: time has passed.
type Event struct {
	At      time.Duration // monotonic, since this edge began to observe
	Roster  map[string]string
	Drained map[string]bool // with Roster: regions that an operator drains
	Probed  *Probe
}

// Probe is the outcome of one exchange with an edge.
type Probe struct {
	Edge string
	OK   bool
	Says map[string]bool // its opinions, if it answered
	Dead []string        // regions it has declared dead
}

// Effect is what is to be told to people.
type Effect struct {
	Region string // "" when Held changed
	Dead   bool
	Held   bool
	Why    string
}

// Step is the verdict's whole logic, without a clock or I/O. The state it is given stays as it was.
func Step(s State, e Event) (State, []Effect) {
	n := State{Self: s.Self, Edges: maps.Clone(s.Edges), Regions: maps.Clone(s.Regions), Held: s.Held}
	var effects []Effect
	switch {
	case e.Roster != nil:
		n.enrol(e.At, e.Roster, e.Drained)
	case e.Probed != nil:
		effects = n.probed(e.At, *e.Probed)
	}
	return n, append(effects, n.judge(e.At)...)
}

// enrol takes over who there is. A newcomer is taken for well until it is seen not to be.
func (s *State) enrol(at time.Duration, roster map[string]string, drained map[string]bool) {
	edges, regions := map[string]Edge{}, map[string]Region{}
	for name, region := range roster {
		edge, known := s.Edges[name]
		if !known || edge.Region != region {
			edge = Edge{Region: region}
		}
		edges[name] = edge
		r, known := s.Regions[region]
		if !known {
			r = Region{WellFrom: -1, Back: -1}
		}
		if r.Drained && !drained[region] {
			r.Back = at
		}
		r.Drained = drained[region]
		regions[region] = r
	}
	s.Edges, s.Regions = edges, regions
}

func (s *State) probed(at time.Duration, p Probe) (effects []Effect) {
	edge, known := s.Edges[p.Edge]
	if !known {
		return nil
	}
	if p.OK {
		if edge.Misses > 0 {
			edge.WellFrom = at
		}
		edge.Misses = 0
		edge.Silent = edge.Silent && at-edge.WellFrom < healthyFor
		edge.Says, edge.SaidAt = p.Says, at
		effects = s.believe(at, edge.Region, p.Dead)
	} else if edge.Misses++; edge.Misses >= missesUntilSilent {
		edge.Misses, edge.Silent = missesUntilSilent, true
	}
	s.Edges[p.Edge] = edge
	return effects
}

// believe takes over what an edge of another region declared dead, while this edge is too young to have seen it:
// a region that crashes again and again would otherwise be named by its own edges after each start.
func (s *State) believe(at time.Duration, by string, dead []string) (effects []Effect) {
	if at >= healthyFor {
		return nil
	}
	for _, name := range dead {
		r, known := s.Regions[name]
		if known && !r.Dead && name != by && !s.tooMany() {
			why := Why{By: by}
			r.Dead, r.Why, r.WellFrom = true, why, -1
			s.Regions[name] = r
			effects = append(effects, Effect{Region: name, Dead: true, Why: why.String()})
		}
	}
	return effects
}

// tooMany says that with one more region dead the guard would be broken.
func (s *State) tooMany() bool {
	dead := 1
	for _, r := range s.Regions {
		if r.Dead {
			dead++
		}
	}
	return len(s.Regions) >= guardFrom && dead*2 > len(s.Regions)
}

// Opinions are this edge's own: a region is up while one of its edges answers.
func (s State) Opinions() map[string]bool {
	up := map[string]bool{}
	for name := range s.Regions {
		up[name] = false
	}
	for _, e := range s.Edges {
		if e.Misses < missesUntilSilent {
			up[e.Region] = true
		}
	}
	return up
}

// sick says that an observer sees more than half of at least guardFrom regions dead: it is the observer then.
func sick(opinions map[string]bool) bool {
	dead := 0
	for _, up := range opinions {
		if !up {
			dead++
		}
	}
	return len(opinions) >= guardFrom && dead*2 > len(opinions)
}

// votes counts, for each region, what the others say: one vote for each observing region, by the majority of its
// edges, and none for the region itself, which could only ever say that it is up.
func (s State) votes(at time.Duration) (up, down map[string]int) {
	type tally struct{ up, down int }
	by := map[[2]string]tally{} // observing region, observed region
	count := func(observer string, opinions map[string]bool) {
		if sick(opinions) {
			return
		}
		for region, isUp := range opinions {
			if _, known := s.Regions[region]; !known || region == observer {
				continue
			}
			t := by[[2]string{observer, region}]
			if isUp {
				t.up++
			} else {
				t.down++
			}
			by[[2]string{observer, region}] = t
		}
	}
	for name, e := range s.Edges {
		switch {
		case name == s.Self:
			count(e.Region, s.Opinions())
		case e.Says != nil && e.Misses < missesUntilSilent && at-e.SaidAt <= opinionLasts:
			count(e.Region, e.Says)
		}
	}
	up, down = map[string]int{}, map[string]int{}
	for pair, t := range by {
		if t.down > t.up {
			down[pair[1]]++
		} else {
			up[pair[1]]++
		}
	}
	return up, down
}

// judge brings the verdicts up to date.
func (s *State) judge(at time.Duration) []Effect {
	var effects []Effect
	up, down := s.votes(at)
	held := sick(s.Opinions())
	for _, name := range slices.Sorted(maps.Keys(s.Regions)) {
		r := s.Regions[name]
		switch {
		case up[name] > down[name]:
			if r.WellFrom < 0 {
				r.WellFrom = at
			}
			if r.Dead && at-r.WellFrom >= healthyFor {
				r.Dead, r.Why, r.Back = false, Why{}, at
				effects = append(effects, Effect{Region: name, Why: fmt.Sprintf("reached by %s for %s", observers(up[name], up[name]+down[name]), healthyFor)})
			}
		case down[name] > up[name]:
			r.WellFrom = -1
			why := Why{Against: down[name], Of: up[name] + down[name]}
			switch {
			case r.Dead:
				r.Why = why
			case held:
			case s.tooMany():
				held = true
			default:
				r.Dead, r.Why = true, why
				effects = append(effects, Effect{Region: name, Dead: true, Why: why.String()})
			}
		default:
			r.WellFrom = -1 // no majority: what was, stays
		}
		s.Regions[name] = r
	}
	if held != s.Held {
		s.Held = held
		effects = append(effects, Effect{Held: held})
	}
	return effects
}

func observers(n, of int) string {
	return fmt.Sprintf("%d of %d observing regions", n, of)
}

// silent are the edges that are left out of answers.
func (s State) silent() []string {
	var out []string
	for name, e := range s.Edges {
		if e.Silent {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
