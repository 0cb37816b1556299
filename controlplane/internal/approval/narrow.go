package approval

import (
	"slices"
	"time"

	"bailiwick/controlplane/internal/model"
)

// Narrow is the part of a policy's change that needs nobody's approval: what it closes, and all that is not about who may
// relay where. before is the policy as it stands, if there. It is false if no such part was found, and all of it waits.
func Narrow(before, after World, name string, now time.Time) (model.Policy, bool) {
	next, ok := after.policy(name)
	if !ok {
		return next, false
	}
	old, existed := before.policy(name)
	was, err := before.compile()
	if err != nil {
		return next, false
	}
	is, err := after.compile()
	if err != nil {
		return next, false
	}
	held := map[[3]string]bool{}
	bases := map[[2]string]string{}
	for _, p := range was.Pairs(now, nil) {
		if p.Policy == name {
			bases[[2]string{p.From, p.To}] = p.Basis
			for _, c := range p.Classes {
				held[[3]string{p.From, p.To, c}] = true
			}
		}
	}
	out := next
	out.Pairs = slices.Clone(next.Pairs)
	out.TwoPerson = next.TwoPerson || existed && old.TwoPerson
	if existed {
		out.OfflineGrant = old.OfflineGrant
		if next.OfflineGrant != nil && old.OfflineGrant != nil && *next.OfflineGrant < *old.OfflineGrant {
			out.OfflineGrant = next.OfflineGrant
		}
	}
	for _, p := range is.Pairs(now, nil) {
		if p.Policy != name {
			continue
		}
		classes := slices.DeleteFunc(slices.Clone(p.Classes), func(c string) bool { return !held[[3]string{p.From, p.To, c}] })
		basis := bases[[2]string{p.From, p.To}]
		if len(classes) == len(p.Classes) && basis == p.Basis {
			continue
		}
		pair := model.Pair{From: p.From, To: p.To, Basis: p.Basis, Classes: classes, Priority: p.Priority, Status: "open"}
		if basis != "" {
			pair.Basis = basis
		}
		if len(classes) == 0 {
			pair.Classes, pair.Status = p.Classes, "closed"
		}
		if i := slices.IndexFunc(out.Pairs, func(x model.Pair) bool { return x.From == p.From && x.To == p.To }); i >= 0 {
			pair.ReviewBy = out.Pairs[i].ReviewBy
			out.Pairs[i] = pair
		} else {
			out.Pairs = append(out.Pairs, pair)
		}
	}
	// It is judged like any other change: what this function did not think of waits.
	trial := after
	trial.Policies = slices.Clone(after.Policies)
	i := slices.IndexFunc(trial.Policies, func(p model.Policy) bool { return p.Name == name })
	trial.Policies[i] = out
	opens, err := Openings(before, trial, now)
	return out, err == nil && len(opens) == 0
}
