// Package approval says which changes of what decides relays loosen it against the word of a policy that asks for two
// operators, what of such a change may take effect at once, and what exactly a second operator approves.
//
// It is pure: no clock, no I/O, no store. adminapi keeps proposals and asks again before each of its transactions, so that
// no call of it can go around; a zone adopts what the catalog then says without asking (DESIGN.md). Nothing here survives a
// crash, and all of it may be called by anyone at once. DESIGN.md says what counts as loosening.
package approval

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/regions"
)

// Limits.
const (
	TTL     = 72 * time.Hour // of a proposal: over a weekend
	Pending = 100            // proposals of a zone that wait at once
	Bytes   = 4 << 20        // that they hold together
	Kept    = 100            // decided ones that are still listed; the evidence log has all
)

// World is everything in one state that decides relays.
type World struct {
	Regions  []model.Region
	Bases    []model.LegalBasis
	Policies []model.Policy
	APIs     []model.API
	Closures []regions.Closure
}

// Read is the world of a catalog, given how to list it. Closures are no part of it: they are judged with what is adopted.
func Read(list func(prefix string) iter.Seq[group.KV]) (w World, err error) {
	if w.Regions, err = all[model.Region](list, model.PrefixRegion); err != nil {
		return w, err
	}
	if w.Bases, err = all[model.LegalBasis](list, model.PrefixBasis); err != nil {
		return w, err
	}
	if w.Policies, err = all[model.Policy](list, model.PrefixPolicy); err != nil {
		return w, err
	}
	w.APIs, err = all[model.API](list, model.PrefixAPI)
	return w, err
}

func all[T any](list func(prefix string) iter.Seq[group.KV], prefix string) (out []T, err error) {
	for kv := range list(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Opening is one way in which a change loosens what a policy has two operators decide.
type Opening struct {
	Zone   string
	Policy string // whose flows; "" for a host under no policy before
	What   string // a sentence
}

func (w World) policy(name string) (model.Policy, bool) {
	i := slices.IndexFunc(w.Policies, func(p model.Policy) bool { return p.Name == name })
	if i < 0 {
		return model.Policy{}, false
	}
	return w.Policies[i], true
}

func (w World) compile() (*regions.Set, error) {
	return model.Adopted{Regions: w.Regions, Bases: w.Bases, Policies: w.Policies}.Compile()
}

// Openings lists what a change newly allows, for longer than before or on less than before, under a policy that asks for
// two operators before or after it. Without such a policy there is nothing to list.
func Openings(before, after World, now time.Time) ([]Opening, error) {
	asks, zones := map[string]bool{}, map[string]bool{}
	for _, p := range append(slices.Clone(before.Policies), after.Policies...) {
		if p.TwoPerson {
			asks[p.Name], zones[p.Zone] = true, true
		}
	}
	if len(asks) == 0 {
		return nil, nil
	}
	was, err := before.compile()
	if err != nil {
		return nil, fmt.Errorf("compile the rules before the change: %w", err)
	}
	is, err := after.compile()
	if err != nil {
		return nil, fmt.Errorf("compile the rules after the change: %w", err)
	}
	zone := func(policy string) string {
		p, ok := after.policy(policy)
		if !ok {
			p, _ = before.policy(policy)
		}
		return p.Zone
	}
	var out []Opening
	add := func(policy, zone, format string, args ...any) {
		o := Opening{Zone: zone, Policy: policy, What: fmt.Sprintf(format, args...)}
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	// Once as if nothing were closed, so that what a closure hides today is not open tomorrow without a second look;
	// and once with closures, which is what changes if one goes.
	for _, d := range [][2]regions.State{
		{{Set: was}, {Set: is}},
		{{Set: was, Closures: before.Closures}, {Set: is, Closures: after.Closures}},
	} {
		for _, c := range regions.Diff(d[0], d[1], now) {
			if c.Opens && asks[c.Policy] {
				add(c.Policy, zone(c.Policy), "policy %s: %s to %s becomes permitted for %s data", c.Policy, c.From, c.To, c.Class)
			}
		}
	}
	lasting(before, after, was, is, now, func(p regions.Permitted, format string, args ...any) {
		if asks[p.Policy] {
			add(p.Policy, zone(p.Policy), "policy %s: %s to %s "+format, append([]any{p.Policy, p.From, p.To}, args...)...)
		}
	})
	for _, p := range before.Policies {
		if next, there := after.policy(p.Name); p.TwoPerson && !(there && next.TwoPerson) {
			add(p.Name, p.Zone, "policy %s no longer asks for a second operator", p.Name)
		}
	}
	for _, h := range hosts(after) {
		if !zones[h.zone] || h.policy == "" {
			continue
		}
		old := hostOf(before, h.host)
		if old.policy == h.policy && old.zone == h.zone {
			continue
		}
		// Else the host would come under a policy that permits no more, and one operator would then widen that one.
		left, _ := before.policy(old.policy)
		if next, _ := after.policy(h.policy); !next.TwoPerson && (old.policy == "" || left.TwoPerson) {
			add(h.policy, h.zone, "host %s comes under policy %s, which asks for no second operator", h.host, h.policy)
		}
		held := map[[3]string]bool{}
		for _, p := range was.Pairs(now, nil) {
			for _, class := range p.Classes {
				held[[3]string{p.From, p.To, class}] = held[[3]string{p.From, p.To, class}] || p.Policy == old.policy
			}
		}
		for _, p := range is.Pairs(now, nil) {
			for _, class := range p.Classes {
				if p.Policy == h.policy && !held[[3]string{p.From, p.To, class}] {
					add(h.policy, h.zone, "host %s: %s to %s becomes permitted for %s data, under policy %s", h.host, p.From, p.To, class, h.policy)
				}
			}
		}
	}
	return out, nil
}

// lasting compares the pairs that are permitted before and after: on which basis, until when, and for how long without
// the control plane.
func lasting(before, after World, was, is *regions.Set, now time.Time, add func(p regions.Permitted, format string, args ...any)) {
	type key struct{ policy, from, to string }
	held := map[key]regions.Permitted{}
	for _, p := range was.Pairs(now, nil) {
		held[key{p.Policy, p.From, p.To}] = p
	}
	ends := func(w World, basis string) string {
		for _, b := range w.Bases {
			if b.Name == basis {
				return cmp.Or(b.Expires, "9999-12-31")
			}
		}
		return ""
	}
	for _, p := range is.Pairs(now, nil) {
		old, ok := held[key{p.Policy, p.From, p.To}]
		if !ok {
			continue
		}
		if p.Basis != old.Basis {
			add(p, "rests on %s and no longer on %s", p.Basis, old.Basis)
		}
		if until := ends(after, p.Basis); until > ends(before, old.Basis) {
			add(p, "is permitted longer, until its basis %s ends (%s)", p.Basis, until)
		}
		if p.OfflineGrant > old.OfflineGrant {
			add(p, "is granted for %s while the control plane is away, and not for %s", p.OfflineGrant, old.OfflineGrant)
		}
	}
}

type hosted struct{ host, zone, policy string }

func hosts(w World) (out []hosted) {
	for _, a := range w.APIs {
		for _, h := range a.Hosts {
			out = append(out, hosted{h, a.Zone, a.Policy})
		}
	}
	return out
}

func hostOf(w World, host string) hosted {
	for _, h := range hosts(w) {
		if h.host == host {
			return h
		}
	}
	return hosted{}
}

// Digest is what a proposal rests on: rules, closures and which host is under which policy. An approval of one digest is
// none of another.
func (w World) Digest() string {
	bare := World{Closures: slices.Clone(w.Closures)}
	for _, r := range w.Regions { // what only DNS or people read decides nothing
		r.ClientSubnets, r.Drain, r.Labels, r.UpstreamNetworks = nil, "", nil, nil
		bare.Regions = append(bare.Regions, r)
	}
	bare.Bases, bare.Policies = slices.Clone(w.Bases), slices.Clone(w.Policies)
	slices.SortFunc(bare.Regions, func(a, b model.Region) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(bare.Bases, func(a, b model.LegalBasis) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(bare.Policies, func(a, b model.Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(bare.Closures, func(a, b regions.Closure) int { return cmp.Compare(a.ID, b.ID) })
	under := hosts(w)
	slices.SortFunc(under, func(a, b hosted) int { return cmp.Compare(a.host, b.host) })
	sum := sha256.Sum256(fmt.Appendf(model.Encode(bare), "\n%q", under))
	return hex.EncodeToString(sum[:])
}

// ID names a proposal by all that is approved with it: what is written, and on top of what.
func ID(zone string, docs []model.ProposedDoc, base string) string {
	sum := sha256.Sum256(model.Encode(model.Proposal{Zone: zone, Docs: docs, Base: base}))
	return hex.EncodeToString(sum[:8])
}
