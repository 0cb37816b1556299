package answer_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/regions/answer"
)

var regionNames = []string{"eu-west", "eu-central", "eu-south", "us-east", "us-west", "uk-1"}

// world draws anything, however wrong: regions in no or another zone, edges whose zone is not their region's.
func world(t *rapid.T) answer.World {
	zones := []string{"emea", "us", "uk", ""}
	w := answer.World{Zone: rapid.SampledFrom(zones[:3]).Draw(t, "zone"), Down: map[string]string{}, Silent: map[string]bool{}}
	for _, r := range regionNames {
		if rapid.IntRange(0, 4).Draw(t, r+" known") > 0 {
			w.Regions = append(w.Regions, answer.Region{Name: r, Zone: rapid.SampledFrom(zones).Draw(t, r+" zone"),
				Drain: rapid.SampledFrom([]string{"", "", "work on the building"}).Draw(t, r+" drain")})
		}
		if rapid.Bool().Draw(t, r+" deployed") {
			w.Deployed = append(w.Deployed, r)
		}
		if rapid.IntRange(0, 2).Draw(t, r+" down") == 0 {
			w.Down[r] = "two of two say so"
		}
		for i := range rapid.IntRange(0, 3).Draw(t, r+" edges") {
			e := answer.Edge{Name: fmt.Sprintf("%s-%d", r, i), Region: r, Zone: rapid.SampledFrom(zones).Draw(t, "edge's zone"),
				Port: rapid.SampledFrom([]uint16{443, 7443, 0}).Draw(t, "port")}
			for j := range rapid.IntRange(0, 2).Draw(t, "addresses") {
				e.Addresses = append(e.Addresses, netip.MustParseAddr(fmt.Sprintf("198.51.%d.%d", len(w.Edges), j+1)))
			}
			w.Edges = append(w.Edges, e)
			w.Silent[e.Name] = rapid.Bool().Draw(t, "silent")
		}
	}
	w.Share = map[string]int{}
	for _, r := range regionNames {
		if rapid.IntRange(0, 2).Draw(t, r+" returns") == 0 {
			w.Share[r] = rapid.IntRange(-1, 101).Draw(t, r+" share")
		}
	}
	w.Client = rapid.SampledFrom(append(regionNames, "")).Draw(t, "client")
	return w
}

// permitted is the border written a second time, from the words of the design.
func permitted(w answer.World, e answer.Edge) bool {
	inZone := false
	for _, r := range w.Regions {
		inZone = inZone || r.Name == e.Region && r.Zone == w.Zone
	}
	return inZone && e.Zone == w.Zone && slices.Contains(w.Deployed, e.Region) && len(e.Addresses) > 0 && e.Port != 0
}

func TestChoose_NeverCrossesTheBorderAndIsNeverEmptyByAccident(t *testing.T) {
	desperate, chosen := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := world(t)
		c := answer.Choose(w)
		named := append(slices.Clone(c.Near), c.Far...)
		possible := false
		well := map[string]bool{}
		for _, e := range w.Edges {
			if permitted(w, e) {
				possible = true
				well[e.Region] = w.Down[e.Region] == "" && drain(w, e.Region) == ""
			}
		}
		anyWell := slices.Contains(values(well), true)
		for _, e := range named {
			chosen++
			if !permitted(w, e) {
				t.Fatalf("named %+v in the world %+v", e, w)
			}
			if anyWell && !well[e.Region] {
				t.Fatalf("named an edge of %s, which is not well, while another region is", e.Region)
			}
			if e.Region == w.Client && slices.ContainsFunc(c.Far, func(f answer.Edge) bool { return f.Region == w.Client }) {
				t.Fatal("the client's own region is named among the others")
			}
		}
		if possible != (len(c.Near) > 0) {
			t.Fatalf("possible %v, but named first are %v", possible, c.Near)
		}
		if c.Desperate != (possible && !anyWell) {
			t.Fatalf("desperate %v with possible %v and a region well %v", c.Desperate, possible, anyWell)
		}
		if c.Desperate {
			desperate++
		}
		for _, v := range c.Regions {
			is := slices.ContainsFunc(named, func(e answer.Edge) bool { return e.Region == v.Region })
			if v.Named != is || v.Why == "" {
				t.Fatalf("%+v is told of a region that is named: %v", v, is)
			}
		}
		for _, spin := range []uint32{0, 1, 7, 1 << 31} {
			if a := c.Addresses(false, spin); len(a) > answer.MaxAddresses || len(c.Near) > 0 && len(a) == 0 {
				t.Fatalf("%d addresses of %d edges", len(a), len(c.Near))
			}
			if s := c.Services(spin); len(s) > answer.MaxServices || len(c.Near) > 0 && (len(s) == 0 || s[0].Priority != 1) {
				t.Fatalf("services %v", s)
			}
			for _, a := range c.Addresses(false, spin) {
				if !slices.ContainsFunc(named, func(e answer.Edge) bool { return slices.Contains(e.Addresses, a) }) {
					t.Fatalf("%s is of no edge that is named", a)
				}
			}
		}
	})
	if desperate == 0 || chosen == 0 {
		t.Fatalf("the worlds drawn were too tame: %d edges named, %d times desperate", chosen, desperate)
	}
}

func drain(w answer.World, region string) string {
	for _, r := range w.Regions {
		if r.Name == region {
			return r.Drain
		}
	}
	return ""
}

func values(m map[string]bool) (out []bool) {
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func emea() answer.World {
	edge := func(name, region string, port uint16, addr string) answer.Edge {
		return answer.Edge{Name: name, Region: region, Zone: "emea", Port: port, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	return answer.World{Zone: "emea", Deployed: []string{"eu-central", "eu-west", "us-east"},
		Regions: []answer.Region{{Name: "eu-west", Zone: "emea"}, {Name: "eu-central", Zone: "emea"}, {Name: "eu-south", Zone: "emea"}, {Name: "us-east", Zone: "us"}},
		Edges:   []answer.Edge{edge("w1", "eu-west", 443, "192.0.2.1"), edge("w2", "eu-west", 443, "192.0.2.2"), edge("c1", "eu-central", 8443, "192.0.2.3"), edge("s1", "eu-south", 443, "192.0.2.4")}}
}

func TestChoose_SaysWhy(t *testing.T) {
	w := emea()
	w.Down = map[string]string{"eu-west": "2 of 2 regions cannot reach it"}
	got := map[string]string{}
	for _, v := range answer.Choose(w).Regions {
		got[v.Region] = fmt.Sprint(v.Named, " ", v.Why)
	}
	for region, want := range map[string]string{
		"eu-west": "false looks dead: 2 of 2 regions cannot reach it", "eu-central": "true well",
		"eu-south": "false the API has no upstream there", "us-east": "false of zone us: never answered for a host of zone emea",
	} {
		if got[region] != want {
			t.Errorf("%s: %q, want %q", region, got[region], want)
		}
	}
}

func TestChoice_Records(t *testing.T) {
	w := emea()
	w.Client = "eu-central"
	c := answer.Choose(w)
	if got := fmt.Sprint(c.Addresses(false, 3)); got != "[192.0.2.3]" {
		t.Errorf("a client of eu-central is told %s", got)
	}
	var lines []string
	for _, s := range c.Services(0) {
		lines = append(lines, s.String())
	}
	want := `1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.3|2 . alpn="h2,h3" ipv4hint=192.0.2.1,192.0.2.2`
	if got := strings.Join(lines, "|"); got != want {
		t.Errorf("services %s, want %s", got, want)
	}
	w.Client = ""
	first := map[string]int{}
	for spin := range uint32(400) {
		first[answer.Choose(w).Addresses(false, spin)[0].String()]++
	}
	if first["192.0.2.3"] != 200 || first["192.0.2.1"] != 100 || first["192.0.2.2"] != 100 {
		t.Errorf("without a region of its own a client meets first: %v; want each region, then each edge, equally often", first)
	}
}

// The scope is right if and only if every client that shares so many bits is claimed by the same region, and one
// bit less would be too few.
func TestSubnets_ScopeIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := map[string][]string{}
		var all []netip.Prefix
		for range rapid.IntRange(0, 8).Draw(t, "blocks") {
			// 16 addresses are enough of a world to try them all.
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 15).Draw(t, "low"))}), rapid.IntRange(28, 32).Draw(t, "bits")).Masked()
			if slices.Contains(all, p) {
				continue
			}
			all = append(all, p)
			r := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "region")
			blocks[r] = append(blocks[r], p.String())
		}
		s := answer.NewSubnets(blocks)
		naive := func(a netip.Addr) string {
			region, bits := "", -1
			for r, list := range blocks {
				for _, text := range list {
					if p := netip.MustParsePrefix(text); p.Contains(a) && p.Bits() > bits {
						region, bits = r, p.Bits()
					}
				}
			}
			return region
		}
		for low := range 16 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(low)})
			region, scope := s.Region(netip.PrefixFrom(a, 32))
			if region != naive(a) {
				t.Fatalf("%s is claimed by %q, want %q", a, region, naive(a))
			}
			for other := range 16 {
				b := netip.AddrFrom4([4]byte{10, 0, 0, byte(other)})
				if netip.PrefixFrom(a, scope).Contains(b) && naive(b) != region {
					t.Fatalf("scope /%d of %s (%q) takes in %s (%q); blocks %v", scope, a, region, b, naive(b), blocks)
				}
			}
		}
	})
	s := answer.NewSubnets(map[string][]string{"eu-west": {"10.0.0.0/8", "2001:db8::/32"}, "eu-central": {"10.1.0.0/16"}})
	for _, c := range []struct {
		client, region string
		scope          int
	}{
		{"10.1.2.0/24", "eu-central", 16}, {"10.2.0.0/24", "eu-west", 15}, {"10.0.0.0/8", "eu-west", 16},
		{"192.0.2.0/24", "", 1}, {"2001:db8:1::/48", "eu-west", 32}, {"::/0", "", 3},
	} {
		region, scope := s.Region(netip.MustParsePrefix(c.client))
		if region != c.region || scope != c.scope {
			t.Errorf("%s: region %q scope %d, want %q %d", c.client, region, scope, c.region, c.scope)
		}
	}
	for _, bad := range []string{"10.0.0.1/8", "x", "10.0.0.0", "::ffff:10.0.0.0/104"} {
		if _, err := answer.ParseSubnet(bad); err == nil {
			t.Errorf("%q is taken for a block", bad)
		}
	}
}
