package answer

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
)

// Subnets say which region claims a client. The longest block that holds a client decides; of two regions
// that claim one block the first by name.
type Subnets struct{ claims []claim } // by address, then the wider first

type claim struct {
	netip.Prefix
	region string
}

// ParseSubnet reads a CIDR block as an operator writes it; one with bits beyond its length is an error, since
// it hides which block was meant.
func ParseSubnet(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("client subnet %.64q is no CIDR block", text)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("client subnet %s: write an IPv4 block as IPv4", text)
	case p != p.Masked():
		return p, fmt.Errorf("client subnet %s has bits beyond its length: write %s", text, p.Masked())
	}
	return p, nil
}

// NewSubnets takes the blocks of each region; those that do not read are left out.
func NewSubnets(blocks map[string][]string) Subnets {
	var s Subnets
	for region, list := range blocks {
		for _, text := range list {
			if p, err := ParseSubnet(text); err == nil {
				s.claims = append(s.claims, claim{p, region})
			}
		}
	}
	slices.SortFunc(s.claims, func(a, b claim) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		if c := a.Bits() - b.Bits(); c != 0 {
			return c
		}
		if a.region < b.region {
			return -1
		}
		return 1
	})
	s.claims = slices.CompactFunc(s.claims, func(a, b claim) bool { return a.Prefix == b.Prefix })
	return s
}

// Region is the one that claims the client, "" if none does, and the scope: how many leading bits of its
// address every client must share for whom the answer is the same (RFC 7871, 7.2.1). A scope longer than the
// block that was asked for says that the block was too wide to be sure.
func (s Subnets) Region(client netip.Prefix) (region string, scope int) {
	addr := client.Addr().Unmap()
	best := -1
	for bits := min(client.Bits(), addr.BitLen()); bits >= 0 && best < 0; bits-- {
		if i, ok := s.find(netip.PrefixFrom(addr, bits).Masked()); ok {
			region, best = s.claims[i].region, bits
		}
	}
	for scope = max(best, 0); scope < addr.BitLen(); scope++ {
		if !s.splits(netip.PrefixFrom(addr, scope).Masked()) {
			break
		}
	}
	return region, scope
}

func (s Subnets) find(p netip.Prefix) (int, bool) {
	return sort.Find(len(s.claims), func(i int) int {
		if c := p.Addr().Compare(s.claims[i].Addr()); c != 0 {
			return c
		}
		return p.Bits() - s.claims[i].Bits()
	})
}

// splits says whether a longer block lies within p: the one after p's own place, if any.
func (s Subnets) splits(p netip.Prefix) bool {
	i := sort.Search(len(s.claims), func(i int) bool {
		c := p.Addr().Compare(s.claims[i].Addr())
		return c < 0 || c == 0 && s.claims[i].Bits() > p.Bits()
	})
	return i < len(s.claims) && p.Contains(s.claims[i].Addr()) && s.claims[i].Bits() > p.Bits()
}
