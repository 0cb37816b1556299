package answer

import (
	"slices"
	"time"
)

// A region that returns, from a drain or from looking dead, does so by and by: its caches are cold and its
// connections gone, and half of a zone's clients at once would be the next thing to fell it. At first a tenth of the
// answers that would name it do; after Ramp all do.
const (
	Ramp  = time.Minute // the default of edges' -dns-ramp
	least = 10          // percent
	whole = 100
)

// Share is the part, in percent, of the answers that name a region which has been back for so long.
func Share(back, ramp time.Duration) int {
	if back >= ramp {
		return whole
	}
	return least + int(int64(whole-least)*int64(max(back, 0))/int64(ramp))
}

// shares are those of named regions that return, measured by the region that has the most: if all return, the one that
// has been back longest bears the load already.
func (w World) shares(named []candidate) map[string]int {
	of := func(region string) int {
		if s, returns := w.Share[region]; returns {
			return min(max(s, 1), whole)
		}
		return whole
	}
	top := 1
	for _, k := range named {
		top = max(top, of(k.name))
	}
	out := map[string]int{}
	for _, k := range named {
		if s := of(k.name); s < top {
			out[k.name] = max(s*whole/top, 1)
		}
	}
	return out
}

// turn leaves out the regions whose share this answer is not in. If nobody is left near the client the others take
// the place. It never empties an answer: some region has no share, and so is in all.
func (c Choice) turn(spin uint32) (near, far []Edge) {
	if len(c.share) == 0 {
		return c.Near, c.Far
	}
	// Multiples of the golden ratio lie evenly, whatever else follows from spin's remainders.
	at := int(uint64(spin*0x9E3779B1) * whole >> 32)
	in := func(edges []Edge) []Edge {
		return slices.DeleteFunc(slices.Clone(edges), func(e Edge) bool {
			s, returns := c.share[e.Region]
			return returns && at >= s
		})
	}
	if near, far = in(c.Near), in(c.Far); len(near) == 0 {
		return far, nil
	}
	return near, far
}
