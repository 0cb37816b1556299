package grant

import (
	"slices"

	"bailiwick/regions"
)

// Pair is a permitted pair and what it rests on.
type Pair struct{ Policy, From, To, Basis string }

func (p Pair) bare() Pair {
	p.Basis = ""
	return p
}

// Change is what Notice found.
type Change struct {
	Now  []Pair // the new baseline
	Lost []Pair // permitted at the last look and no longer: each becomes a pending record
	Back []int  // of the pending records, those whose pair is permitted again: it will never have been shut
}

// Notice compares what is permitted now with the last look. same: nothing changed, and there is nothing to log.
// known is false while there was no look yet. A pair that only changes its basis stays permitted.
func Notice(before []Pair, known bool, permitted []regions.Permitted, pending []Pair) (c Change, same bool) {
	c.Now = make([]Pair, 0, len(permitted))
	for _, p := range permitted {
		c.Now = append(c.Now, Pair{p.Policy, p.From, p.To, p.Basis})
	}
	if known && slices.Equal(c.Now, before) {
		return c, true
	}
	holds := func(p Pair) bool {
		return slices.ContainsFunc(c.Now, func(x Pair) bool { return x.bare() == p.bare() })
	}
	for _, p := range before {
		if !holds(p) {
			c.Lost = append(c.Lost, p)
		}
	}
	for i, p := range pending {
		if holds(p) {
			c.Back = append(c.Back, i)
		}
	}
	return c, false
}

// Noticed keeps of what is permitted what the leader's last look had: no tightening of anything else would be
// noticed, and a legal basis that ends by the clock ends for all at one place in the log.
func Noticed(permitted []regions.Permitted, baseline []Pair) []regions.Permitted {
	holds := make(map[Pair]bool, len(baseline))
	for _, p := range baseline {
		holds[p.bare()] = true
	}
	return slices.DeleteFunc(permitted, func(p regions.Permitted) bool {
		return !holds[Pair{Policy: p.Policy, From: p.From, To: p.To}]
	})
}

// Touching keeps the pairs that begin or end in one of the regions and carry requests.
func Touching(permitted []regions.Permitted, in func(region string) bool) []regions.Permitted {
	return slices.DeleteFunc(permitted, func(p regions.Permitted) bool {
		return !in(p.From) && !in(p.To) || !slices.Contains(p.Classes, regions.DefaultClass)
	})
}

// FreshTable says whether an edge's table holds the newest change of permitted pairs, made at index of the zone's
// log: a stale edge gets nothing but policy (invariant 9).
func FreshTable(epoch, index, zoneEpoch, changed uint64) bool {
	return epoch == zoneEpoch && index >= changed
}
