package observe_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bailiwick/dataplane/internal/observe"
)

// zone is edges that ask each other in virtual time: each runs the real Step, once a second, out of phase.
type zone struct {
	now     time.Duration
	edges   map[string]*edge
	roster  map[string]string
	drained map[string]bool
	cut     func(from, to string) bool // between regions
	changes []change
}

type edge struct {
	name, region string
	state        observe.State
	began        time.Duration
	phase        time.Duration
	dead         bool
	late         []late // probes whose silence is noticed a second later
}

type late struct {
	at   time.Duration
	edge string
}

type change struct {
	at   time.Duration
	edge string
	observe.Effect
}

func newZone(regions, each int) *zone {
	z := &zone{edges: map[string]*edge{}, roster: map[string]string{}, cut: func(string, string) bool { return false }}
	for r := range regions {
		for i := range each {
			e := &edge{name: fmt.Sprintf("r%d-%d", r, i), region: fmt.Sprintf("r%d", r), phase: time.Duration(len(z.edges)*370%1000) * time.Millisecond}
			e.state.Self = e.name
			z.edges[e.name], z.roster[e.name] = e, e.region
		}
	}
	return z
}

func (z *zone) step(e *edge, ev observe.Event) {
	ev.At = z.now - e.began
	var effects []observe.Effect
	e.state, effects = observe.Step(e.state, ev)
	for _, f := range effects {
		z.changes = append(z.changes, change{z.now, e.name, f})
	}
}

func (z *zone) kill(region string) {
	for _, e := range z.edges {
		if e.region == region {
			e.dead, e.late = true, nil
		}
	}
}

func (z *zone) start(region string) {
	for _, e := range z.edges {
		if e.region == region {
			e.dead, e.state, e.began = false, observe.State{Self: e.name}, z.now
		}
	}
}

// run lets time pass in steps of 10 ms. Half of the dead answer "refused" at once, the others never.
func (z *zone) run(d time.Duration) {
	for end := z.now + d; z.now < end; z.now += 10 * time.Millisecond {
		for _, name := range slices.Sorted(maps.Keys(z.edges)) {
			e := z.edges[name]
			if e.dead {
				continue
			}
			for len(e.late) > 0 && e.late[0].at <= z.now {
				z.step(e, observe.Event{Probed: &observe.Probe{Edge: e.late[0].edge}})
				e.late = e.late[1:]
			}
			if (z.now-e.phase)%time.Second != 0 {
				continue
			}
			z.step(e, observe.Event{Roster: z.roster, Drained: z.drained})
			z.step(e, observe.Event{Probed: &observe.Probe{Edge: e.name, OK: true}})
			for _, other := range slices.Sorted(maps.Keys(z.edges)) {
				o := z.edges[other]
				switch {
				case other == name:
				case o.dead || z.cut(e.region, o.region):
					if o.phase%(20*time.Millisecond) == 0 {
						z.step(e, observe.Event{Probed: &observe.Probe{Edge: other}})
					} else {
						e.late = append(e.late, late{z.now + 990*time.Millisecond, other})
					}
				default:
					p := &observe.Probe{Edge: other, OK: true, Says: o.state.Opinions()}
					for r, v := range o.state.Regions {
						if v.Dead {
							p.Dead = append(p.Dead, r)
						}
					}
					z.step(e, observe.Event{Probed: p})
				}
			}
		}
	}
}

// dead are the regions that each edge alive holds for dead.
func (z *zone) dead() map[string][]string {
	out := map[string][]string{}
	for name, e := range z.edges {
		if e.dead {
			continue
		}
		out[name] = []string{}
		for _, r := range slices.Sorted(maps.Keys(e.state.Regions)) {
			if e.state.Regions[r].Dead {
				out[name] = append(out[name], r)
			}
		}
	}
	return out
}

func TestStep_ARegionDiesAndReturns(t *testing.T) {
	for _, size := range []struct{ regions, each int }{{2, 1}, {2, 3}, {3, 1}, {3, 2}, {4, 2}, {6, 2}} {
		t.Run(fmt.Sprintf("%dx%d", size.regions, size.each), func(t *testing.T) {
			z := newZone(size.regions, size.each)
			z.run(15 * time.Second)
			if len(z.changes) != 0 {
				t.Fatalf("changes in a zone that is well: %v", z.changes)
			}
			z.kill("r1")
			at := z.now
			z.run(5 * time.Second)
			for name, dead := range z.dead() {
				if !slices.Equal(dead, []string{"r1"}) {
					t.Fatalf("5 s after the death of r1 %s holds %v for dead", name, dead)
				}
			}
			slowest := time.Duration(0)
			for _, c := range z.changes {
				slowest = max(slowest, c.at-at)
			}
			t.Logf("declared dead by everybody after %v", slowest)
			z.run(20 * time.Second)
			z.changes = nil
			z.start("r1")
			at = z.now
			z.run(9 * time.Second)
			for name, dead := range z.dead() {
				if !slices.Equal(dead, []string{"r1"}) && z.now-z.edges[name].began >= 2*time.Second && len(dead) > 0 {
					t.Fatalf("9 s after the return of r1 %s holds %v for dead", name, dead)
				}
				if len(dead) == 0 {
					t.Fatalf("%s, of region %s, names r1 again 9 s after its return", name, z.edges[name].region)
				}
			}
			z.run(6 * time.Second)
			for name, dead := range z.dead() {
				if len(dead) != 0 {
					t.Fatalf("15 s after the return of r1 %s still holds %v for dead", name, dead)
				}
			}
			for _, c := range z.changes {
				if !c.Dead && c.Region == "r1" && c.at-at < 10*time.Second {
					t.Errorf("%s took r1 back after %v", c.edge, c.at-at)
				}
			}
		})
	}
}

// A region is back from the moment that its drain ended, or that it was no longer held for dead: from then its share of
// answers grows. One that was never away has no such moment.
func TestStep_KnowsSinceWhenARegionIsBack(t *testing.T) {
	z := newZone(3, 1)
	z.run(12 * time.Second)
	back := func(region string) (out []time.Duration) {
		for _, name := range slices.Sorted(maps.Keys(z.edges)) {
			if e := z.edges[name]; e.region != region {
				at := e.state.Regions[region].Back
				if at >= 0 {
					at += e.began
				}
				out = append(out, at)
			}
		}
		return out
	}
	z.drained = map[string]bool{"r1": true}
	z.run(10 * time.Second)
	if got := back("r1"); !slices.Equal(got, []time.Duration{-1, -1}) {
		t.Fatalf("r1, which is drained, is back since %v", got)
	}
	z.drained = nil
	ended := z.now
	z.run(30 * time.Second)
	for _, at := range back("r1") {
		if at < ended || at > ended+time.Second {
			t.Errorf("the drain of r1 ended at %v, and it is back since %v", ended, at)
		}
	}
	z.kill("r2")
	z.run(10 * time.Second)
	z.start("r2")
	started := z.now
	z.run(20 * time.Second)
	for _, at := range back("r2") {
		if at < started+10*time.Second || at > started+13*time.Second {
			t.Errorf("r2 started at %v, and is back since %v", started, at)
		}
	}
	if got := back("r0"); got[1] != -1 {
		t.Errorf("r0, which was never away, is back since %v", got)
	}
}

// An edge that is cut off sees everybody dead. From four regions on it must conclude that it is the one.
func TestStep_TheObserverIsSick(t *testing.T) {
	z := newZone(5, 2)
	z.run(12 * time.Second)
	z.cut = func(from, to string) bool { return (from == "r0") != (to == "r0") }
	z.run(20 * time.Second)
	for name, dead := range z.dead() {
		want := []string{"r0"}
		if z.edges[name].region == "r0" {
			want = []string{}
		}
		if !slices.Equal(dead, want) || z.edges[name].state.Held != (len(want) == 0) {
			t.Errorf("%s holds %v for dead, held %v; want %v", name, dead, z.edges[name].state.Held, want)
		}
	}
	// Three regions of five die in truth: what may be declared dead stays a minority.
	z = newZone(5, 1)
	z.run(12 * time.Second)
	z.kill("r0")
	z.run(10 * time.Second)
	z.kill("r1")
	z.kill("r2")
	z.run(10 * time.Second)
	for name, dead := range z.dead() {
		if len(dead) > 2 || !z.edges[name].state.Held {
			t.Errorf("%s holds %v for dead, held %v", name, dead, z.edges[name].state.Held)
		}
	}
}

// One observer that alone cannot reach a region does not have its way against two that can.
func TestStep_TheMajorityDecides(t *testing.T) {
	z := newZone(4, 1)
	z.run(12 * time.Second)
	z.cut = func(from, to string) bool { return from == "r0" && to == "r1" }
	z.run(20 * time.Second)
	for name, dead := range z.dead() {
		if len(dead) != 0 {
			t.Errorf("%s holds %v for dead, which only r0 cannot reach", name, dead)
		}
	}
}

// A region is no witness in its own cause: two regions of which one cannot reach the other agree on who is dead.
func TestStep_NoRegionSpeaksForItself(t *testing.T) {
	z := newZone(2, 2)
	z.run(12 * time.Second)
	z.cut = func(from, to string) bool { return to == "r1" && from != "r1" }
	z.run(5 * time.Second)
	for name, dead := range z.dead() {
		if !slices.Equal(dead, []string{"r1"}) {
			t.Errorf("%s holds %v for dead, want r1, which its clients would not reach either", name, dead)
		}
	}
}

// A sick observer has no vote, and declares nobody dead on the word of others either.
func TestStep_TheSickHaveNoVote(t *testing.T) {
	z := newZone(4, 1)
	z.run(12 * time.Second)
	// r0 reaches nobody; of the others r3 alone does not reach r1. With the vote of r0 that would be a majority.
	z.cut = func(from, to string) bool { return from == "r0" && to != "r0" || from == "r3" && to == "r1" }
	z.run(20 * time.Second)
	for name, dead := range z.dead() {
		if len(dead) != 0 {
			t.Errorf("%s holds %v for dead", name, dead)
		}
	}
	z = newZone(5, 1)
	z.run(12 * time.Second)
	// r0 reaches r4 alone, which says that r1 is dead.
	z.cut = func(from, to string) bool {
		return from == "r0" && to != "r0" && to != "r4" || from == "r4" && to == "r1"
	}
	z.run(20 * time.Second)
	if dead := z.dead()["r0-0"]; len(dead) != 0 {
		t.Errorf("r0, which sees more than half dead, declares %v dead", dead)
	}
}

// Whatever happens in whatever order: Step leaves its argument alone and is a function; no region returns before
// it had a majority for ten seconds; the guard holds.
func TestStep_Properties(t *testing.T) {
	deaths, returns, holds := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		regions := rapid.IntRange(1, 6).Draw(t, "regions")
		roster := map[string]string{}
		for r := range regions {
			for i := range rapid.IntRange(1, 2).Draw(t, "edges") {
				roster[fmt.Sprintf("r%d-%d", r, i)] = fmt.Sprintf("r%d", r)
			}
		}
		names := slices.Sorted(maps.Keys(roster))
		s := observe.State{Self: "r0-0"}
		lacked := map[string]time.Duration{} // when a region was last without a majority
		at := time.Duration(0)
		for n := range rapid.IntRange(1, 120).Draw(t, "events") {
			at += time.Duration(rapid.IntRange(0, 1500).Draw(t, "ms")) * time.Millisecond
			e := observe.Event{At: at}
			switch k := rapid.IntRange(0, 9).Draw(t, "kind"); {
			case n == 0 || k == 0:
				e.Roster = maps.Clone(roster)
				if n > 0 {
					delete(e.Roster, rapid.SampledFrom(names[:]).Draw(t, "leaver"))
				}
				e.Roster["r0-0"] = "r0"
			case k < 9:
				p := &observe.Probe{Edge: rapid.SampledFrom(names).Draw(t, "edge"), OK: rapid.IntRange(0, 3).Draw(t, "ok") > 0, Says: map[string]bool{}}
				for r := range regions {
					p.Says[fmt.Sprintf("r%d", r)] = rapid.Bool().Draw(t, "up")
				}
				if rapid.IntRange(0, 5).Draw(t, "gossip") == 0 {
					p.Dead = []string{"r1", "r2", "r3", "nowhere"}
				}
				e.Probed = p
			}
			before := observe.Copy(s)
			next, effects := observe.Step(s, e)
			if again, _ := observe.Step(s, e); !reflect.DeepEqual(next, again) || !reflect.DeepEqual(before, s) {
				t.Fatal("Step is no function of its arguments, or changed them")
			}
			up, down := observe.Votes(next, at)
			dead := 0
			for name, r := range next.Regions {
				if r.Dead {
					dead++
				}
				if was, known := s.Regions[name]; known && was.Dead && !r.Dead {
					returns++
					if at-lacked[name] < 10*time.Second {
						t.Fatalf("%s returns %v after it had no majority", name, at-lacked[name])
					}
				}
				if up[name] <= down[name] {
					lacked[name] = at
				}
			}
			for _, f := range effects {
				if f.Dead {
					deaths++
					if len(next.Regions) >= 4 && dead*2 > len(next.Regions) {
						t.Fatalf("%d of %d regions are dead: %+v", dead, len(next.Regions), f)
					}
				}
				if f.Held {
					holds++
				}
			}
			s = next
		}
	})
	if deaths == 0 || returns == 0 || holds == 0 {
		t.Fatalf("too tame: %d deaths, %d returns, %d holds", deaths, returns, holds)
	}
}
