// Package answer owns which edges of a zone a DNS answer names: the one function that edges answer by and that
// the control plane explains by, so that the two cannot differ.
//
// An answer is a wish: it permits nothing, and the edge that a client reaches decides for itself. But it is
// never one to cross a border: whatever health, drains and client subnets say, only edges of the host's own
// zone, in regions where its API is deployed, are named. Accepting there is accepting at home; it is no
// failover and needs no pair.
//
// The package is pure: no clock, no I/O, no randomness; it keeps nothing. Its values do not change once made
// and may be shared.
package answer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Edge is a data plane as clients reach it.
type Edge struct {
	Name, Region, Zone string
	Addresses          []netip.Addr
	Port               uint16 // of HTTPS
}

// Region is a serving region of some zone.
type Region struct {
	Name, Zone string
	Drain      string // why it is drained; "": it is not
}

// World is all that a choice rests on.
type World struct {
	Zone     string // the host's
	Deployed []string
	Regions  []Region
	Edges    []Edge
	Down     map[string]string // regions that look dead, each with why
	Silent   map[string]bool   // edges that look dead, by name
	Share    map[string]int    // regions that return, and by how many percent of their answers; what is absent is whole
	Client   string            // the region that claims the client; "": none does
}

// Choice is who is named.
type Choice struct {
	Near []Edge // of the region that claims the client, or of all that are named when none does
	Far  []Edge // of the others; only an answer that can order (HTTPS) names them
	// Regions are all that were looked at, by name: those of the zone and those where the API is deployed.
	Regions []Verdict
	// Desperate says that no region is well, and so what looks dead, or is drained, is named.
	Desperate bool

	share map[string]int // of regions named that return
}

// Verdict says of one region whether it is named, and why.
type Verdict struct {
	Region string
	Named  bool
	Why    string
	Share  int // it returns: so many percent of the answers that would name it do; 0: all
}

// candidate is a region that may be named at all.
type candidate struct {
	name, drain, down string
	edges             []Edge
}

// Choose names the edges of the regions that are well. If none is, drained regions come before those that look
// dead: the first at least answer. It never comes out empty while an allowed region has an edge.
func Choose(w World) Choice {
	var c Choice
	var allowed []candidate
	for _, r := range w.looked() {
		if cand, why := w.candidate(r); why != "" {
			c.Regions = append(c.Regions, Verdict{Region: r, Why: why})
		} else {
			allowed = append(allowed, cand)
		}
	}
	named, desperate := best(allowed)
	c.Desperate, c.share = desperate, w.shares(named)
	near := slices.ContainsFunc(named, func(k candidate) bool { return k.name == w.Client })
	for _, k := range allowed {
		in := slices.ContainsFunc(named, func(n candidate) bool { return n.name == k.name })
		c.Regions = append(c.Regions, Verdict{Region: k.name, Named: in, Why: k.why(in, near && k.name != w.Client, c.share[k.name]), Share: c.share[k.name]})
		switch edges := w.awake(k.edges); {
		case !in:
		case near && k.name != w.Client:
			c.Far = append(c.Far, edges...)
		default:
			c.Near = append(c.Near, edges...)
		}
	}
	slices.SortFunc(c.Regions, func(a, b Verdict) int { return strings.Compare(a.Region, b.Region) })
	return c
}

// looked are the names of the regions to speak of.
func (w World) looked() []string {
	names := slices.Clone(w.Deployed)
	for _, r := range w.Regions {
		if r.Zone == w.Zone {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// candidate is the region if it may be named; otherwise why it may not. This is the border: all that follows
// chooses among candidates.
func (w World) candidate(name string) (candidate, string) {
	i := slices.IndexFunc(w.Regions, func(r Region) bool { return r.Name == name })
	switch {
	case i < 0 || w.Regions[i].Zone == "":
		return candidate{}, "not a serving region of zone " + w.Zone + ": never answered"
	case w.Regions[i].Zone != w.Zone:
		return candidate{}, fmt.Sprintf("of zone %s: never answered for a host of zone %s", w.Regions[i].Zone, w.Zone)
	case !slices.Contains(w.Deployed, name):
		return candidate{}, "the API has no upstream there"
	}
	k := candidate{name: name, drain: w.Regions[i].Drain, down: w.Down[name]}
	for _, e := range w.Edges {
		if e.Region == name && e.Zone == w.Zone && len(e.Addresses) > 0 && e.Port != 0 {
			k.edges = append(k.edges, e)
		}
	}
	if len(k.edges) == 0 {
		return candidate{}, "no edge there has a public address"
	}
	slices.SortFunc(k.edges, func(a, b Edge) int { return strings.Compare(a.Name, b.Name) })
	return k, ""
}

// best are the candidates to name: the first kind that has any.
func best(all []candidate) (named []candidate, desperate bool) {
	for i, good := range []func(candidate) bool{
		func(k candidate) bool { return k.down == "" && k.drain == "" },
		func(k candidate) bool { return k.down == "" },
	} {
		for _, k := range all {
			if good(k) {
				named = append(named, k)
			}
		}
		if len(named) > 0 {
			return named, i > 0
		}
	}
	return all, len(all) > 0
}

func (k candidate) why(named, far bool, share int) string {
	var what []string
	if k.down != "" {
		what = append(what, "looks dead: "+k.down)
	}
	if k.drain != "" {
		what = append(what, "drained: "+k.drain)
	}
	switch {
	case named && len(what) > 0:
		what = append(what, "named all the same, since no region is well")
	case named && share > 0:
		what = append(what, fmt.Sprintf("well again: %d%% of the answers name it, and more by and by", share))
	case named && far:
		what = append(what, "well; the client's own region comes first")
	case named:
		what = append(what, "well")
	}
	return strings.Join(what, "; ")
}

// awake leaves out edges that look dead, unless all do: the verdict on the region is then the better word.
func (w World) awake(edges []Edge) []Edge {
	alive := slices.DeleteFunc(slices.Clone(edges), func(e Edge) bool { return w.Silent[e.Name] })
	if len(alive) == 0 {
		return edges
	}
	return alive
}
