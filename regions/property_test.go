package regions_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bailiwick/regions"
)

var (
	zoneNames   = []string{"za", "zb", "zc"}
	basisNames  = []string{"b0", "b1", "b2"}
	classNames  = []string{"request", "cache", "log"}
	policyNames = []string{"p0", "p1"}
)

// anything is a world drawn at random, always one that compiles.
type anything struct {
	regs     []regions.Region
	bases    []regions.LegalBasis
	policies []regions.Policy
	closures []regions.Closure
}

func (w anything) compile(t *rapid.T) *regions.Set {
	s, err := regions.Compile(w.regs, w.bases, w.policies)
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	return s
}

func (w anything) names() (out []string) {
	for _, r := range w.regs {
		out = append(out, r.Name)
	}
	return out
}

func (w anything) region(name string) regions.Region {
	return w.regs[slices.IndexFunc(w.regs, func(r regions.Region) bool { return r.Name == name })]
}

func draw(t *rapid.T) anything {
	var w anything
	for i := range rapid.IntRange(2, 7).Draw(t, "regions") {
		w.regs = append(w.regs, regions.Region{
			Name:        fmt.Sprintf("r%d", i),
			Zone:        rapid.SampledFrom(zoneNames).Draw(t, "zone"),
			Partition:   rapid.SampledFrom([]string{"", "public", "public", "cn"}).Draw(t, "partition"),
			ControlOnly: rapid.IntRange(0, 5).Draw(t, "control") == 0,
		})
	}
	for _, name := range basisNames {
		w.bases = append(w.bases, regions.LegalBasis{
			Name:    name,
			Kind:    rapid.SampledFrom([]string{regions.SameLaw, regions.Adequacy, regions.DPF, regions.SCC, regions.Explicit}).Draw(t, "kind"),
			Status:  rapid.SampledFrom([]string{"", regions.Active, regions.Active, regions.Suspended}).Draw(t, "status"),
			Expires: rapid.SampledFrom([]time.Time{{}, {}, now.Add(time.Second), now, now.Add(-time.Second)}).Draw(t, "expires"),
		})
	}
	basis := rapid.SampledFrom(basisNames)
	classes := rapid.SliceOfNDistinct(rapid.SampledFrom(classNames), 0, 3, rapid.ID[string])
	for _, name := range policyNames {
		p := regions.Policy{Name: name, Zone: rapid.SampledFrom(zoneNames).Draw(t, "policy zone"), WithinZone: rapid.Bool().Draw(t, "within")}
		p.WithinZoneBasis, p.WithinZoneClasses = basis.Draw(t, "within basis"), classes.Draw(t, "within classes")
		if rapid.Bool().Draw(t, "offline") {
			p.OfflineGrant = ptr(time.Duration(rapid.IntRange(0, 3).Draw(t, "hours")) * time.Hour)
		}
		for _, a := range w.regs {
			for _, b := range w.regs {
				part := func(r regions.Region) string {
					if r.Partition == "" {
						return "public"
					}
					return r.Partition
				}
				if a.Name == b.Name || a.Zone != p.Zone || part(a) != part(b) || rapid.IntRange(0, 2).Draw(t, "pair") > 0 {
					continue
				}
				p.Pairs = append(p.Pairs, regions.Pair{From: a.Name, To: b.Name, Basis: basis.Draw(t, "basis"), Classes: classes.Draw(t, "classes"),
					Status: rapid.SampledFrom([]string{"", regions.Open, regions.Open, regions.Closed}).Draw(t, "pair status")})
			}
		}
		w.policies = append(w.policies, p)
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "closures") {
		w.closures = append(w.closures, drawClosure(t, w, fmt.Sprintf("c%d", i)))
	}
	return w
}

func drawClosure(t *rapid.T, w anything, id string) regions.Closure {
	return regions.Closure{ID: id,
		From:  rapid.SampledFrom(append(w.names(), "")).Draw(t, "closure from"),
		To:    rapid.SampledFrom(append(w.names(), "")).Draw(t, "closure to"),
		Basis: rapid.SampledFrom(append(slices.Clone(basisNames), "")).Draw(t, "closure basis"), Crossing: rapid.IntRange(0, 3).Draw(t, "crossing") == 0}
}

type question struct{ policy, home, target, class string }

func (w anything) questions() (out []question) {
	for _, p := range append(slices.Clone(policyNames), "none") {
		for _, a := range append(w.names(), "mars") {
			for _, b := range append(w.names(), "mars") {
				for _, c := range append(slices.Clone(classNames), "other") {
					out = append(out, question{p, a, b, c})
				}
			}
		}
	}
	return out
}

func ask(s *regions.Set, q question, closures []regions.Closure) regions.Decision {
	return s.Permits(q.policy, q.home, q.target, q.class, now, closures)
}

// oracle is Permits written a second time, straight from the design's words and
// from the uncompiled objects. Between two different regions something must say
// yes in so many words: a pair in that direction, or within_zone.
func (w anything) oracle(q question) bool {
	i := slices.IndexFunc(w.regs, func(r regions.Region) bool { return r.Name == q.home })
	j := slices.IndexFunc(w.regs, func(r regions.Region) bool { return r.Name == q.target })
	if i < 0 || j < 0 {
		return false
	}
	home, target := w.regs[i], w.regs[j]
	k := slices.IndexFunc(w.policies, func(p regions.Policy) bool { return p.Name == q.policy })
	if k >= 0 && w.policies[k].Zone != home.Zone || home.ControlOnly || target.ControlOnly {
		return false
	}
	if i == j {
		return true
	}
	if k < 0 || (home.Partition == "cn") != (target.Partition == "cn") {
		return false
	}
	p := w.policies[k]
	var basis string
	var classes []string
	if n := slices.IndexFunc(p.Pairs, func(x regions.Pair) bool { return x.From == q.home && x.To == q.target }); n >= 0 {
		if p.Pairs[n].Status == regions.Closed {
			return false
		}
		basis, classes = p.Pairs[n].Basis, p.Pairs[n].Classes
	} else if p.WithinZone && home.Zone == target.Zone {
		basis, classes = p.WithinZoneBasis, p.WithinZoneClasses
	} else {
		return false
	}
	if len(classes) == 0 {
		classes = []string{"request"}
	}
	b := w.bases[slices.IndexFunc(w.bases, func(b regions.LegalBasis) bool { return b.Name == basis })]
	if !slices.Contains(classes, q.class) || b.Status == regions.Suspended || !b.Expires.IsZero() && !b.Expires.After(now) {
		return false
	}
	for _, c := range w.closures {
		if (!c.Crossing || home.Zone != target.Zone) && (c.From == "" || c.From == q.home) && (c.To == "" || c.To == q.target) && (c.Basis == "" || c.Basis == basis) {
			return false
		}
	}
	return true
}

func TestPermits_OnlyWhatIsWritten(t *testing.T) {
	permitted := 0
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		s := w.compile(t)
		for _, q := range w.questions() {
			d := ask(s, q, w.closures)
			if got, want := d.OK, w.oracle(q); got != want {
				t.Fatalf("%+v: got %v (%s), want %v", q, got, d.Why(), want)
			}
			if d.OK && q.home != q.target {
				permitted++
			}
			if !d.OK && (d.OfflineGrant != 0 || d.Rule == "") {
				t.Fatalf("%+v: a denial with offline grant %v and rule %q", q, d.OfflineGrant, d.Rule)
			}
		}
	})
	if permitted == 0 {
		t.Error("no world permitted any flow: this test saw nothing")
	}
}

// With within_zone off and the pairs a→b and b→c alone, a→c is denied, as are
// the ways back.
func TestPermits_IsNeitherTransitiveNorSymmetric(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		var chain []regions.Pair
		for i := range w.regs {
			w.regs[i] = regions.Region{Name: w.regs[i].Name, Zone: "za"}
			if i > 0 {
				chain = append(chain, regions.Pair{From: w.regs[i-1].Name, To: w.regs[i].Name, Basis: "b0"})
			}
		}
		w.bases[0].Status, w.bases[0].Expires = regions.Active, time.Time{}
		w.policies = []regions.Policy{{Name: "p0", Zone: "za", Pairs: chain}}
		s := w.compile(t)
		for i := range w.regs {
			for j := range w.regs {
				got := s.Permits("p0", w.regs[i].Name, w.regs[j].Name, "", now, nil).OK
				if want := j == i || j == i+1; got != want {
					t.Fatalf("%s to %s along a chain: got %v, want %v", w.regs[i].Name, w.regs[j].Name, got, want)
				}
			}
		}
	})
}

// narrowed checks that after holds no flow that before does not, home untouched.
func narrowed(t *rapid.T, w anything, before, after regions.State) {
	for _, q := range w.questions() {
		was, is := ask(before.Set, q, before.Closures), ask(after.Set, q, after.Closures)
		if is.OK && !was.OK {
			t.Fatalf("%+v: opened by a tightening: %s", q, is.Why())
		}
		if q.home == q.target && was.OK != is.OK {
			t.Fatalf("%+v: home changed from %v to %v", q, was.OK, is.OK)
		}
		// What a node does that knows both: exactly the narrower one.
		if x := regions.Intersect(before.Set, after.Set, q.policy, q.home, q.target, q.class, now, after.Closures); x.OK != is.OK {
			t.Fatalf("%+v: intersection says %v, the narrower set %v", q, x.OK, is.OK)
		}
	}
	if changes := regions.Diff(before, after, now); regions.Loosens(changes) {
		t.Fatalf("diff of a tightening opens: %v", changes)
	}
}

func TestTightening_OnlyRemoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		before := regions.State{Set: w.compile(t), Closures: w.closures}
		after := before
		p := &w.policies[rapid.IntRange(0, len(w.policies)-1).Draw(t, "which policy")]
		switch how := rapid.SampledFrom([]string{"closure", "close pair", "suspend", "expire", "close written over within_zone"}).Draw(t, "how"); how {
		case "closure":
			c := drawClosure(t, w, "new")
			after.Closures = append(slices.Clone(w.closures), c)
			for _, pair := range after.Set.Pairs(now, after.Closures) {
				if (!c.Crossing || !pair.SameZone) && (c.From == "" || c.From == pair.From) && (c.To == "" || c.To == pair.To) && (c.Basis == "" || c.Basis == pair.Basis) {
					t.Fatalf("closure %+v leaves %+v open", c, pair)
				}
			}
		case "close pair":
			if len(p.Pairs) == 0 {
				return
			}
			pair := &p.Pairs[rapid.IntRange(0, len(p.Pairs)-1).Draw(t, "which pair")]
			pair.Status = regions.Closed
			after.Set = w.compile(t)
			if d := after.Set.Permits(p.Name, pair.From, pair.To, "request", now, nil); d.OK {
				t.Fatalf("closed pair still open: %s", d.Why())
			}
		case "suspend", "expire":
			b := &w.bases[rapid.IntRange(0, len(w.bases)-1).Draw(t, "which basis")]
			if how == "suspend" {
				b.Status = regions.Suspended
			} else {
				b.Expires = now
			}
			after.Set = w.compile(t)
			for _, pair := range after.Set.Pairs(now, nil) {
				if pair.Basis == b.Name {
					t.Fatalf("%s of %s leaves %+v open", how, b.Name, pair)
				}
			}
		case "close written over within_zone":
			for _, pair := range before.Set.Pairs(now, nil) {
				if pair.Policy == p.Name && pair.Rule == regions.RuleWithinZone {
					p.Pairs = append(p.Pairs, regions.Pair{From: pair.From, To: pair.To, Basis: pair.Basis, Status: regions.Closed})
					after.Set = w.compile(t)
					if d := after.Set.Permits(p.Name, pair.From, pair.To, "request", now, nil); d.OK {
						t.Fatalf("closed over within_zone, still open: %s", d.Why())
					}
					break
				}
			}
		}
		narrowed(t, w, before, after)
	})
}

func TestPairs_AgreeWithPermits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		s := w.compile(t)
		listed := map[question]bool{}
		pairs := s.Pairs(now, w.closures)
		for _, p := range pairs {
			for _, c := range p.Classes {
				listed[question{p.Policy, p.From, p.To, c}] = true
			}
			if p.From == p.To || p.SameZone != (w.region(p.From).Zone == w.region(p.To).Zone) {
				t.Fatalf("listed: %+v", p)
			}
		}
		for _, q := range w.questions() {
			if q.home == q.target {
				continue
			}
			d := ask(s, q, w.closures)
			if d.OK != listed[q] {
				t.Fatalf("%+v: Permits says %v (%s), Pairs says %v", q, d.OK, d.Why(), listed[q])
			}
			targets := s.Targets(q.policy, q.home, q.class, now, w.closures)
			if got := slices.ContainsFunc(targets, func(p regions.Permitted) bool { return p.To == q.target }); got != d.OK {
				t.Fatalf("%+v: Permits says %v, Targets %v", q, d.OK, got)
			}
		}
		if again := s.Pairs(now, w.closures); fmt.Sprint(again) != fmt.Sprint(pairs) {
			t.Fatalf("Pairs is not stable: %v, then %v", pairs, again)
		}
	})
}
