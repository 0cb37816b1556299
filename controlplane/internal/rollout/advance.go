package rollout

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"bailiwick/controlplane/internal/model"
)

// Facts are what a roll-out advances by.
type Facts struct {
	Edges  []model.Node // registered edges, of all zones
	Pairs  [][2]string  // regions that may take over for each other, by the rules before or after
	Words  map[string]model.RolloutWord
	Silent map[string]bool // zones that have said nothing for too long
}

// Act is what is to be done with a roll-out besides writing it.
type Act int

const (
	Keep     Act = iota
	TakeBack     // put back what was, on record as why it says
	Finish       // nothing is held back any more
)

// Advance is the next state of a roll-out. It goes on in a zone when the zone says that its ring is good and no other zone
// is behind, except zones that are away. One bad word from anywhere ends it everywhere, also while it is paused.
func Advance(r model.Rollout, f Facts) (model.Rollout, Act) {
	if r.State != model.RolloutRunning && r.State != model.RolloutPaused {
		return r, Keep
	}
	r.Zones = clone(r.Zones)
	zones := map[string]map[string][]string{} // zone → region → edges
	for _, e := range f.Edges {
		if zones[e.Zone] == nil {
			zones[e.Zone] = map[string][]string{}
		}
		zones[e.Zone][e.Region] = append(zones[e.Zone][e.Region], e.Name)
	}
	word := func(zone string) (model.RolloutWord, bool) {
		w, ok := f.Words[zone]
		return w, ok && w.Number == r.Number && w.Round == r.Round
	}
	names := slices.Sorted(maps.Keys(zones))
	for _, zone := range names {
		if w, ok := word(zone); ok && w.Verdict == Bad {
			r.Why, r.Edge, r.API = w.Why, w.Edge, w.API
			return r, TakeBack
		}
	}
	if r.State == model.RolloutPaused {
		return r, Keep
	}
	r.Zones = slices.DeleteFunc(r.Zones, func(z model.RolloutZone) bool { return zones[z.Zone] == nil })
	for _, zone := range names {
		w, spoken := word(zone)
		z := r.Zone(zone)
		if z == nil {
			r.Zones = append(r.Zones, model.RolloutZone{Zone: zone})
			z = r.Zone(zone)
		}
		z.Away = !z.Done && (f.Silent[zone] || spoken && w.Verdict == Alone)
		if z.Canary == "" && spoken && w.Canary != "" {
			z.Canary, z.Rings = w.Canary, plan(w.Canary, zones[zone], f, r.Zones)
		}
	}
	slices.SortFunc(r.Zones, func(a, b model.RolloutZone) int { return cmp.Compare(a.Zone, b.Zone) })
	good := func(z model.RolloutZone) bool {
		w, spoken := word(z.Zone)
		return z.Done || spoken && z.Canary != "" && w.Verdict == Good && w.Ring == z.Ring
	}
	at := clone(r.Zones) // all are judged by where they stood
	for i, z := range at {
		if z.Done || !good(z) {
			continue
		}
		held := slices.ContainsFunc(at, func(o model.RolloutZone) bool {
			return !o.Done && !o.Away && (o.Canary == "" || o.Ring < z.Ring || o.Ring == z.Ring && !good(o))
		})
		switch {
		case held:
		case z.Ring >= len(z.Rings):
			r.Zones[i].Done, r.Zones[i].Away = true, false
		default:
			r.Zones[i].Ring++
		}
	}
	if !slices.ContainsFunc(r.Zones, func(z model.RolloutZone) bool { return !z.Done }) {
		return r, Finish
	}
	return r, Keep
}

func clone(zones []model.RolloutZone) []model.RolloutZone { return slices.Clone(zones) }

// plan parts a zone's regions into rings: the canary's first, if it has other edges, then all others, so that no ring has
// both ends of a pair, and none an end whose other end changes at the same step in another zone.
func plan(canary string, edges map[string][]string, f Facts, others []model.RolloutZone) (rings []model.RegionRing) {
	home := ""
	for region, names := range edges {
		if slices.Contains(names, canary) {
			home = region
		}
	}
	paired := func(a, b string) bool {
		return slices.ContainsFunc(f.Pairs, func(p [2]string) bool { return p == [2]string{a, b} || p == [2]string{b, a} })
	}
	fits := func(step int, region string) bool {
		for _, z := range others {
			if step < len(z.Rings) && slices.ContainsFunc(z.Rings[step].Regions, func(o string) bool { return paired(o, region) }) {
				return false
			}
		}
		return step >= len(rings) || !slices.ContainsFunc(rings[step].Regions, func(o string) bool { return paired(o, region) })
	}
	put := func(from int, region string) int {
		step := from
		for !fits(step, region) {
			step++
		}
		for len(rings) <= step {
			rings = append(rings, model.RegionRing{})
		}
		rings[step].Regions = append(rings[step].Regions, region)
		return step
	}
	first := 0
	if len(edges[home]) > 1 {
		first = put(0, home) + 1
	}
	for _, region := range slices.Sorted(maps.Keys(edges)) {
		if region == home {
			continue
		}
		at := put(first, region)
		if first == 0 { // the first region goes alone
			first = at + 1
		}
	}
	return rings
}

// Pulse knows how long each zone has said nothing. It belongs to one goroutine.
type Pulse struct {
	Silent time.Duration
	heard  map[string]heard
}

type heard struct {
	word model.RolloutWord
	at   time.Duration
}

// Hear takes the present word of a zone, a zero one if there is none, at a monotonic reading.
func (p *Pulse) Hear(zone string, w model.RolloutWord, now time.Duration) {
	if p.heard == nil {
		p.heard = map[string]heard{}
	}
	if old, ok := p.heard[zone]; !ok || old.word != w {
		p.heard[zone] = heard{w, now}
	}
}

// Quiet are the zones that have said nothing for too long.
func (p *Pulse) Quiet(now time.Duration) map[string]bool {
	out := map[string]bool{}
	for zone, h := range p.heard {
		if now-h.at >= p.Silent {
			out[zone] = true
		}
	}
	return out
}
