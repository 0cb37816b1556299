package regions

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// State is a rule set with the closures that hold beside it.
type State struct {
	Set      *Set
	Closures []Closure
}

// Change is one flow, one class of data under one policy in one direction, that
// two states judge differently.
type Change struct {
	Policy, From, To, Class string
	Opens                   bool   // newly allowed; otherwise newly forbidden
	Why                     string // the sentence of the newer decision
}

func (c Change) String() string {
	verb := "closes"
	if c.Opens {
		verb = "opens"
	}
	return fmt.Sprintf("%s %s to %s for %s data in policy %s: %s", verb, c.From, c.To, c.Class, c.Policy, c.Why)
}

type flow struct{ policy, from, to, class string }

// Diff lists the flows that a change newly allows and newly forbids, for a dry
// run: openings first, each part sorted.
func Diff(before, after State, now time.Time) []Change {
	was, is := before.flows(now), after.flows(now)
	var out []Change
	add := func(f flow, opens bool) {
		d := after.Set.Permits(f.policy, f.from, f.to, f.class, now, after.Closures)
		out = append(out, Change{Policy: f.policy, From: f.from, To: f.to, Class: f.class, Opens: opens, Why: d.Why()})
	}
	for f := range is {
		if !was[f] {
			add(f, true)
		}
	}
	for f := range was {
		if !is[f] {
			add(f, false)
		}
	}
	slices.SortFunc(out, func(a, b Change) int {
		if a.Opens != b.Opens {
			if a.Opens {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Class, b.Class))
	})
	return out
}

func (st State) flows(now time.Time) map[flow]bool {
	out := map[flow]bool{}
	for _, p := range st.Set.Pairs(now, st.Closures) {
		for _, class := range p.Classes {
			out[flow{p.Policy, p.From, p.To, class}] = true
		}
	}
	return out
}

// Loosens says whether any change opens a flow: then it takes effect late, and
// needs a second operator where the policy says so. What only narrows applies
// at once.
func Loosens(changes []Change) bool {
	return slices.ContainsFunc(changes, func(c Change) bool { return c.Opens })
}
