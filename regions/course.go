package regions

import (
	"slices"
	"time"
)

// Course is what becomes of a request that a region accepts, while the upstreams of some regions are down.
type Course struct {
	Home   string
	Serves string   // the region that serves it; "": none may, and the answer is 503
	By     Decision // why Serves may
	Passed []Passed // every other region where the API is deployed, in the order in which they were considered
}

// Passed is a region that does not serve the request.
type Passed struct {
	Region   string
	Down     bool
	Decision Decision
}

// Course says who serves a request that is accepted at home: home itself, or the first permitted region that is
// not down. It decides nothing that Permits does not; it is for people who ask beforehand.
func (s *Set) Course(policy, home, class string, deployed []string, down map[string]bool, now time.Time, closures []Closure) Course {
	c := Course{Home: home}
	permits := func(target string) Decision { return s.Permits(policy, home, target, class, now, closures) }
	order := []string{home}
	for _, t := range s.Targets(policy, home, class, now, closures) {
		order = append(order, t.To)
	}
	rest := slices.Clone(deployed)
	slices.Sort(rest)
	for _, r := range append(order, rest...) {
		if r == c.Serves || !slices.Contains(deployed, r) || slices.ContainsFunc(c.Passed, func(p Passed) bool { return p.Region == r }) {
			continue
		}
		d := permits(r)
		if c.Serves == "" && d.OK && !down[r] {
			c.Serves, c.By = r, d
			continue
		}
		c.Passed = append(c.Passed, Passed{Region: r, Down: down[r], Decision: d})
	}
	return c
}
