package rollout

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// refused says why operations are not made by a control node by itself; nil: they may be. Nobody is there to approve what
// takes two operators, and nobody to mend what would refer to what is gone. It asks what adminapi asks of an operator.
func refused(snap group.Snapshot, ops []group.Op, now time.Time) (why, err error) {
	after := laidOver(snap, ops)
	is, err := approval.Read(snap.List)
	if err != nil {
		return nil, err
	}
	will, err := approval.Read(after.list)
	if err != nil {
		return nil, err
	}
	opens, err := approval.Openings(is, will, now)
	if err != nil {
		return nil, err
	}
	if len(opens) > 0 {
		return fault.New(fault.Conflict, WhyApproval, "taking it back would open what takes two operators: %s; apply what is to be there again and have it approved, or promote the roll-out", opens[0].What), nil
	}
	had, err := missing(snap.List)
	if err != nil {
		return nil, err
	}
	lacks, err := missing(after.list)
	if err != nil {
		return nil, err
	}
	lacks = slices.DeleteFunc(lacks, func(s string) bool { return slices.Contains(had, s) })
	if len(lacks) > 0 {
		return fault.New(fault.Conflict, WhyReferred, "taking it back would leave %s; change that first and abort the roll-out, or promote it", lacks[0]), nil
	}
	return nil, nil
}

// lister is a Snapshot's List.
type lister func(prefix string) iter.Seq[group.KV]

// laid is a snapshot with operations laid over it.
type laid struct {
	snap group.Snapshot
	ops  map[string]group.Op
}

func laidOver(snap group.Snapshot, ops []group.Op) laid {
	l := laid{snap, map[string]group.Op{}}
	for _, op := range ops {
		l.ops[op.Key] = op
	}
	return l
}

func (l laid) list(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for kv := range l.snap.List(prefix) {
			if _, changed := l.ops[kv.Key]; !changed && !yield(kv) {
				return
			}
		}
		for key, op := range l.ops {
			if strings.HasPrefix(key, prefix) && !op.Delete && !yield(group.KV{Key: key, Value: op.Value}) {
				return
			}
		}
	}
}

func read[T any](list lister, prefix string) (out []T, err error) {
	for kv := range list(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// missing are references to what is not there, in sentences. Customers rest in their zones, which are not seen from here: as
// with a plan that somebody deletes, keys on one that was made in the roll-out are refused by edges from then on.
func missing(list lister) (out []string, err error) {
	w, err := approval.Read(list)
	if err != nil {
		return nil, err
	}
	products, err := read[model.Product](list, model.PrefixProduct)
	if err != nil {
		return nil, err
	}
	plans, err := read[model.Plan](list, model.PrefixPlan)
	if err != nil {
		return nil, err
	}
	switches, err := read[model.Switch](list, model.PrefixSwitch)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, r := range w.Regions {
		known["region "+r.Name] = true
	}
	for _, b := range w.Bases {
		known["legal basis "+b.Name] = true
	}
	for _, p := range w.Policies {
		known["policy "+p.Name] = true
	}
	for _, a := range w.APIs {
		known["API "+a.Name], known["API "+a.Zone+"/"+a.Name] = true, true
	}
	for _, p := range products {
		known["product "+p.Name] = true
	}
	needs := func(who, kind, name string) {
		if name != "" && !known[kind+" "+name] {
			out = append(out, fmt.Sprintf("%s with %s %s, which would not exist", who, kind, name))
		}
	}
	for _, p := range w.Policies {
		if p.WithinZone != nil {
			needs("policy "+p.Name, "legal basis", p.WithinZone.Basis)
		}
		for _, q := range p.Pairs {
			needs("policy "+p.Name, "legal basis", q.Basis)
			needs("policy "+p.Name, "region", q.From)
			needs("policy "+p.Name, "region", q.To)
		}
	}
	for _, a := range w.APIs {
		needs("API "+a.Zone+"/"+a.Name, "policy", a.Policy)
		for _, u := range a.Upstreams {
			needs("API "+a.Zone+"/"+a.Name, "region", u.Region)
		}
	}
	for _, p := range products {
		for _, name := range p.APIs {
			needs("product "+p.Name, "API", name)
		}
	}
	for _, p := range plans {
		for _, name := range p.Products {
			needs("plan "+p.Name, "product", name)
		}
	}
	for _, s := range switches {
		needs("switch "+s.Name, "region", s.Region)
		needs("switch "+s.Name, "API", s.API)
	}
	return out, nil
}
