package view

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/regions"
	"bailiwick/regions/grant"
)

// holdBack puts in the catalog's place what an edge is to hold that the roll-out under way has not reached.
func (b *builder) holdBack() error {
	kv, ok := b.catalog.Get(model.KeyRollout)
	if !ok {
		return nil
	}
	r, err := model.Decode[model.Rollout](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	if r.Reaches(b.edge) {
		return nil
	}
	old, rules := before{b.catalog, map[string]group.KV{}}, before{b.catalog, map[string]group.KV{}}
	border := false
	err = each(b.catalog, model.PrefixHeld, func(kv group.KV, h model.Held) error {
		key := strings.TrimPrefix(kv.Key, model.PrefixHeld)
		if strings.HasPrefix(key, model.PrefixRegion) || strings.HasPrefix(key, model.PrefixBasis) || strings.HasPrefix(key, model.PrefixPolicy) {
			border = true
			rules.kvs[key] = was(key, h)
			for _, value := range h.Through {
				b.through = append(b.through, group.KV{Key: key, Value: value})
			}
		}
		kv, put, err := Before(b.catalog, key, h)
		if put {
			old.kvs[key] = kv
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("what the roll-out holds back: %w", err)
	}
	b.catalog = old
	if border {
		b.loosened = rules
	}
	return nil
}

func was(key string, h model.Held) group.KV {
	if h.Absent {
		return group.KV{}
	}
	return group.KV{Key: key, Value: h.Value, ModIndex: h.ModIndex}
}

// Before is a document as an edge has it that a roll-out has not reached; a KV without a key: there is none. false: as it is
// now, since it goes to all edges at once. It is also what a roll-out that is taken back leaves behind.
//
// What decides relays is never held back whole. An API comes under its new policy at once: which of two policies is the
// tighter one may differ from pair to pair. A region is there, or gone, at once, since edges and drains rest on it; and
// rules are no objects of a table: of pairs, an edge that is not reached has those that the old rules permit as well.
func Before(catalog group.Snapshot, key string, h model.Held) (group.KV, bool, error) {
	old := was(key, h)
	now, there := catalog.Get(key)
	switch {
	case strings.HasPrefix(key, model.PrefixBasis), strings.HasPrefix(key, model.PrefixPolicy):
		return old, false, nil
	case strings.HasPrefix(key, model.PrefixRegion):
		if h.Absent || !there {
			return old, false, nil
		}
		o, err := model.Decode[model.Region](key, old.Value)
		if err != nil {
			return old, false, err
		}
		n, err := model.Decode[model.Region](key, now.Value)
		if err != nil {
			return old, false, err
		}
		n.ClientSubnets = o.ClientSubnets
		old.Value = model.Encode(n)
	case strings.HasPrefix(key, model.PrefixAPI) && there && !h.Absent:
		o, err := model.Decode[model.API](key, old.Value)
		if err != nil {
			return old, false, err
		}
		n, err := model.Decode[model.API](key, now.Value)
		if err != nil {
			return old, false, err
		}
		if o.Policy != n.Policy {
			o.Policy = n.Policy
			old.Value = model.Encode(o)
		}
	}
	return old, true, nil
}

// notYet leaves out the pairs that only rules permit which this edge is not to hold yet. What the rules forbid from now on
// is missing already: a roll-out holds back what loosens, and nothing that tightens.
//
// A zone's leader may have adopted rules of which this node's copy of the catalog does not know yet whether they go out by
// rings. Until it does the rules of that copy have to permit a pair as well.
func (b *builder) notYet(adopted model.Adopted, pairs []regions.Permitted) ([]regions.Permitted, error) {
	rules, at := b.loosened, b.catalog.Revision()
	if rules == nil && adopted.CatalogEpoch == at.Epoch && adopted.CatalogIndex > at.Index && at.Index > 0 {
		rules = b.catalog
	}
	if rules == nil {
		return pairs, nil
	}
	var a model.Adopted
	err := each(rules, model.PrefixRegion, func(_ group.KV, r model.Region) error { a.Regions = append(a.Regions, r); return nil })
	if err == nil {
		err = each(rules, model.PrefixBasis, func(_ group.KV, x model.LegalBasis) error { a.Bases = append(a.Bases, x); return nil })
	}
	if err == nil {
		err = each(rules, model.PrefixPolicy, func(_ group.KV, p model.Policy) error { a.Policies = append(a.Policies, p); return nil })
	}
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, r := range a.Regions {
		known[r.Name] = true
	}
	held := map[grant.Pair]regions.Permitted{}
	permitted := func(p model.Policy) map[grant.Pair]regions.Permitted {
		// One by one: an old policy may rest on a basis or a region that went to all edges at once. What rests on that permits
		// nothing then, and keeps nothing else from permitting.
		p.Pairs = slices.DeleteFunc(slices.Clone(p.Pairs), func(q model.Pair) bool { return !known[q.From] || !known[q.To] })
		set, err := model.Adopted{Regions: a.Regions, Bases: a.Bases, Policies: []model.Policy{p}}.Compile()
		if err != nil {
			return nil
		}
		out := map[grant.Pair]regions.Permitted{}
		for _, p := range set.Pairs(b.now, nil) {
			out[grant.Pair{Policy: p.Policy, From: p.From, To: p.To}] = p
		}
		return out
	}
	for _, p := range a.Policies {
		maps.Copy(held, permitted(p))
	}
	for _, kv := range b.through {
		p, err := model.Decode[model.Policy](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		also := permitted(p)
		for pair, old := range held {
			if pair.Policy != p.Name {
				continue
			}
			if now, ok := also[pair]; !ok {
				delete(held, pair)
			} else {
				held[pair] = within(old, now)
			}
		}
	}
	var out []regions.Permitted
	for _, p := range pairs {
		old, ok := held[grant.Pair{Policy: p.Policy, From: p.From, To: p.To}]
		if !ok {
			continue
		}
		if p = within(p, old); slices.Contains(p.Classes, regions.DefaultClass) {
			out = append(out, p)
		}
	}
	return out, nil
}

// within is of a permission what another one permits as well.
func within(p, other regions.Permitted) regions.Permitted {
	p.Classes = slices.DeleteFunc(slices.Clone(p.Classes), func(c string) bool { return !slices.Contains(other.Classes, c) })
	p.OfflineGrant = min(p.OfflineGrant, other.OfflineGrant)
	return p
}

// before is a snapshot in which some keys are as they were.
type before struct {
	group.Snapshot
	kvs map[string]group.KV // without a key: absent
}

func (s before) Get(key string) (group.KV, bool) {
	if kv, ok := s.kvs[key]; ok {
		return kv, kv.Key != ""
	}
	return s.Snapshot.Get(key)
}

func (s before) List(prefix string) iter.Seq[group.KV] {
	var keys []string
	for key := range maps.Keys(s.kvs) {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return func(yield func(group.KV) bool) {
		rest := keys
		for kv := range s.Snapshot.List(prefix) {
			for len(rest) > 0 && rest[0] <= kv.Key {
				old := s.kvs[rest[0]]
				rest = rest[1:]
				if old.Key != "" && !yield(old) {
					return
				}
			}
			if _, laid := s.kvs[kv.Key]; !laid && !yield(kv) {
				return
			}
		}
		for _, key := range rest {
			if old := s.kvs[key]; old.Key != "" && !yield(old) {
				return
			}
		}
	}
}
