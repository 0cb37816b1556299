package regions

import (
	"cmp"
	"errors"
	"slices"
	"time"
)

// Set is a compiled rule set. It never changes; nil permits nothing.
type Set struct {
	index    map[string]uint32 // region name → place in regions
	regions  []Region
	policies map[string]*policy
}

type policy struct {
	name  string
	zone  string
	rules map[uint64]*rule // by key(from, to)
}

// rule is one permitted direction of one policy, all names resolved.
type rule struct {
	name         string // RulePair or RuleWithinZone
	closed       bool
	local        bool // both ends in one zone
	classes      []string
	basis        *LegalBasis
	priority     int
	offlineGrant time.Duration
}

func key(from, to uint32) uint64 { return uint64(from)<<32 | uint64(to) }

// Compile builds the rule set. It refuses what cannot be resolved or is
// ambiguous (unknown or double names, a self pair, a pair that leaves from
// outside the policy's zone) and accepts what is merely not in force now: a
// suspended basis compiles and denies.
func Compile(regs []Region, bases []LegalBasis, policies []Policy) (*Set, error) {
	s, findings := compile(regs, bases, policies)
	var errs []error
	for _, f := range findings {
		errs = append(errs, f)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// compile leaves out what it reports, so that Validate can judge the rest.
func compile(regs []Region, bases []LegalBasis, policies []Policy) (*Set, []Finding) {
	var rep report
	s := &Set{index: make(map[string]uint32, len(regs)), policies: make(map[string]*policy, len(policies))}
	for _, r := range regs {
		if _, dup := s.index[r.Name]; dup {
			rep.fail(KindRegion, r.Name, "name", "NAME_DUPLICATE", "region %s is defined twice", r.Name)
			continue
		}
		s.index[r.Name] = uint32(len(s.regions))
		s.regions = append(s.regions, r)
	}
	byName := make(map[string]*LegalBasis, len(bases))
	for _, b := range bases {
		if byName[b.Name] != nil {
			rep.fail(KindLegalBasis, b.Name, "name", "NAME_DUPLICATE", "legal basis %s is defined twice", b.Name)
			continue
		}
		byName[b.Name] = &b
	}
	for i := range policies {
		p := &policies[i]
		if s.policies[p.Name] != nil {
			rep.fail(KindPolicy, p.Name, "name", "NAME_DUPLICATE", "policy %s is defined twice", p.Name)
			continue
		}
		s.policies[p.Name] = s.compilePolicy(p, byName, &rep)
	}
	return s, rep.findings
}

func (s *Set) compilePolicy(p *Policy, bases map[string]*LegalBasis, rep *report) *policy {
	out := &policy{name: p.Name, zone: p.Zone, rules: map[uint64]*rule{}}
	resolve := func(name, field string) *LegalBasis {
		b := bases[name]
		switch {
		case b != nil:
		case name == "":
			rep.fail(KindPolicy, p.Name, field, "BASIS_MISSING", "policy %s names no legal basis: each flow rests on one", p.Name)
		default:
			rep.fail(KindPolicy, p.Name, field, "BASIS_UNKNOWN", "policy %s rests on legal basis %q, which does not exist", p.Name, name)
		}
		return b
	}
	add := func(from, to uint32, r *rule) {
		a, b := s.regions[from], s.regions[to]
		r.local = a.Zone == b.Zone
		switch {
		case p.OfflineGrant != nil:
			r.offlineGrant = min(*p.OfflineGrant, MaxOfflineGrant)
		case r.local && r.basis.Kind == SameLaw:
			r.offlineGrant = DefaultOfflineGrant
		}
		out.rules[key(from, to)] = r
	}

	seen := map[[2]string]bool{}
	for i, pair := range p.Pairs {
		at := func(field string) string { return pairField(i, field) }
		from, okFrom := s.index[pair.From]
		to, okTo := s.index[pair.To]
		ok := true
		bad := func(field, reason, format string, args ...any) {
			ok = false
			rep.fail(KindPolicy, p.Name, at(field), reason, format, args...)
		}
		if !okFrom {
			bad("from", "REGION_UNKNOWN", "policy %s: region %q does not exist", p.Name, pair.From)
		}
		if !okTo {
			bad("to", "REGION_UNKNOWN", "policy %s: region %q does not exist", p.Name, pair.To)
		}
		if pair.From == pair.To {
			bad("to", "PAIR_SELF", "policy %s pairs %s with itself: home needs no pair", p.Name, pair.From)
		}
		if k := [2]string{pair.From, pair.To}; seen[k] {
			bad("to", "PAIR_DUPLICATE", "policy %s has the pair %s to %s twice: put all data classes into one", p.Name, pair.From, pair.To)
		} else {
			seen[k] = true
		}
		if okFrom && s.regions[from].Zone != p.Zone {
			bad("from", "ZONE_MISMATCH", "policy %s is for zone %s, but %s lies in %s: a policy opens flows out of its own zone only", p.Name, p.Zone, pair.From, s.regions[from].Zone)
		}
		if okFrom && okTo && s.regions[from].partition() != s.regions[to].partition() {
			bad("to", "PARTITION_CROSSED", "policy %s: %s is in partition %s and %s in %s: no policy crosses a partition", p.Name, pair.From, s.regions[from].partition(), pair.To, s.regions[to].partition())
		}
		if pair.Status != "" && pair.Status != Open && pair.Status != Closed {
			bad("status", "STATUS_INVALID", "policy %s: status %q is neither open nor closed", p.Name, pair.Status)
		}
		basis := resolve(pair.Basis, at("basis"))
		if !ok || basis == nil {
			continue
		}
		add(from, to, &rule{name: RulePair, closed: pair.Status == Closed, classes: slices.Clone(pair.Classes), basis: basis, priority: pair.Priority})
	}
	if !p.WithinZone {
		return out
	}
	basis := resolve(p.WithinZoneBasis, "spec.within_zone.basis")
	if basis == nil {
		return out
	}
	for i, a := range s.regions {
		for j, b := range s.regions {
			// A pair written out wins, also one refused above: a broken pair
			// may have been meant to close.
			if i == j || a.Zone != p.Zone || b.Zone != p.Zone || a.partition() != b.partition() || seen[[2]string{a.Name, b.Name}] {
				continue
			}
			add(uint32(i), uint32(j), &rule{name: RuleWithinZone, classes: slices.Clone(p.WithinZoneClasses), basis: basis})
		}
	}
	return out
}

// Permits says whether a request at home in one region may be served in
// another, under a policy, for a data class (blank: DefaultClass), now, given
// the home zone's closures. Default deny: only home itself, or a pair of that
// policy in that direction, is permitted. One permitted hop after another is
// not permission for both.
//
// It allocates nothing and takes some tens of nanoseconds plus the scan of
// closures: it stands before every attempt of every request.
func (s *Set) Permits(policyName, home, target, class string, now time.Time, closures []Closure) Decision {
	if class == "" {
		class = DefaultClass
	}
	d := Decision{policy: policyName, home: home, target: target, class: class}
	if s == nil {
		d.Rule = RuleUnknownRegion
		return d
	}
	from, ok := s.index[home]
	if !ok {
		d.Rule = RuleUnknownRegion
		return d
	}
	p := s.policies[policyName]
	if p != nil && s.regions[from].Zone != p.zone {
		d.Rule = RuleForeignHome
		return d
	}
	if home == target {
		if s.regions[from].ControlOnly {
			d.Rule = RuleControlOnly
			return d
		}
		d.OK, d.Rule = true, RuleHome
		return d
	}
	to, ok := s.index[target]
	if !ok {
		d.Rule = RuleUnknownRegion
		return d
	}
	if p == nil {
		d.Rule = RuleNoPolicy
		return d
	}
	a, b := &s.regions[from], &s.regions[to]
	if a.ControlOnly || b.ControlOnly {
		d.Rule = RuleControlOnly
		return d
	}
	if a.Partition != b.Partition && a.partition() != b.partition() {
		d.Rule = RulePartition
		return d
	}
	r := p.rules[key(from, to)]
	if r == nil {
		d.Rule = RuleNoPair
		return d
	}
	d.Basis = r.basis.Name
	switch {
	case r.closed:
		d.Rule = RulePairClosed
		return d
	case !r.carries(class):
		d.Rule = RuleClass
		return d
	}
	if d.Rule = r.basis.stands(now); d.Rule != "" {
		return d
	}
	for i := range closures {
		if closures[i].closes(home, target, r.basis.Name, r.local) {
			d.Rule, d.Closure = RuleClosure, closures[i].ID
			if closures[i].Crossing {
				d.Rule = RuleRecovery
			}
			return d
		}
	}
	d.OK, d.Rule, d.Priority, d.OfflineGrant = true, r.name, r.priority, r.offlineGrant
	return d
}

func (r *rule) carries(class string) bool {
	if len(r.classes) == 0 {
		return class == DefaultClass
	}
	return slices.Contains(r.classes, class)
}

// stands is "" for a basis in force, or the rule by which it is not. A state
// nobody knows is not in force.
func (b *LegalBasis) stands(now time.Time) string {
	switch {
	case b.Status != "" && b.Status != Active:
		return RuleBasisSuspended
	case !b.Expires.IsZero() && !now.Before(b.Expires):
		return RuleBasisExpired
	}
	return ""
}

// Permitted is one direction that a policy permits.
type Permitted struct {
	Policy       string
	From, To     string
	Rule         string   // RulePair or RuleWithinZone
	Classes      []string // never empty
	Basis        string
	Priority     int
	OfflineGrant time.Duration
	SameZone     bool
}

// Pairs lists every ordered pair of different regions that some policy permits
// now for some class, by policy, from, and the order of Targets.
func (s *Set) Pairs(now time.Time, closures []Closure) []Permitted {
	if s == nil {
		return nil
	}
	var out []Permitted
	for _, p := range s.policies {
		out = s.permitted(out, p, now, closures, func(from, _ uint32, _ *rule) bool { return true })
	}
	slices.SortFunc(out, func(a, b Permitted) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.From, b.From), inOrder(a, b))
	})
	return out
}

// Targets lists where a request at home may be relayed under a policy, the
// preferred first: by priority, then inside the zone before outside, then by
// name. Home itself is not in it. The order knows nothing of health.
func (s *Set) Targets(policyName, home, class string, now time.Time, closures []Closure) []Permitted {
	if s == nil {
		return nil
	}
	p, at := s.policies[policyName], s.index[home]
	if _, known := s.index[home]; !known || p == nil {
		return nil
	}
	if class == "" {
		class = DefaultClass
	}
	out := s.permitted(nil, p, now, closures, func(from, _ uint32, r *rule) bool { return from == at && r.carries(class) })
	slices.SortFunc(out, inOrder)
	return out
}

func inOrder(a, b Permitted) int {
	local := func(p Permitted) int {
		if p.SameZone {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(local(a), local(b)), cmp.Compare(a.To, b.To))
}

func (s *Set) permitted(out []Permitted, p *policy, now time.Time, closures []Closure, want func(from, to uint32, r *rule) bool) []Permitted {
	for k, r := range p.rules {
		from, to := uint32(k>>32), uint32(k)
		if !want(from, to, r) {
			continue
		}
		classes := r.classes
		if len(classes) == 0 {
			classes = []string{DefaultClass}
		}
		// Through Permits, not beside it: two roads to one answer drift apart.
		d := s.Permits(p.name, s.regions[from].Name, s.regions[to].Name, classes[0], now, closures)
		if !d.OK {
			continue
		}
		out = append(out, Permitted{
			Policy: p.name, From: s.regions[from].Name, To: s.regions[to].Name, Rule: d.Rule,
			Classes: slices.Clone(classes), Basis: d.Basis, Priority: d.Priority, OfflineGrant: d.OfflineGrant, SameZone: r.local,
		})
	}
	return out
}

// Region finds a region by name.
func (s *Set) Region(name string) (Region, bool) {
	if s == nil {
		return Region{}, false
	}
	i, ok := s.index[name]
	if !ok {
		return Region{}, false
	}
	return s.regions[i], true
}

// Regions lists all regions in the order they were given to Compile.
func (s *Set) Regions() []Region {
	if s == nil {
		return nil
	}
	return slices.Clone(s.regions)
}
