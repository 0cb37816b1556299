package answer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of one answer. They keep it far below what a UDP answer may hold, and so of little use to who wants
// to flood a third party with answers.
const (
	MaxAddresses = 8
	MaxServices  = 4 // HTTPS records
	MaxHints     = 4 // addresses of each family in one of them
)

// Service is an HTTPS record (RFC 9460): where a host is served. Priority 1 is tried first.
type Service struct {
	Priority uint16
	Port     uint16
	IPv4     []netip.Addr
	IPv6     []netip.Addr
}

// ALPN are the protocols that every edge speaks.
var ALPN = []string{"h2", "h3"}

// String is the record's data as a zone file writes it.
func (s Service) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `%d . alpn="%s"`, s.Priority, strings.Join(ALPN, ","))
	if s.Port != 443 {
		fmt.Fprintf(&b, " port=%d", s.Port)
	}
	hint(&b, " ipv4hint=", s.IPv4)
	hint(&b, " ipv6hint=", s.IPv6)
	return b.String()
}

func hint(b *strings.Builder, name string, addresses []netip.Addr) {
	for i, a := range addresses {
		if i == 0 {
			b.WriteString(name)
		} else {
			b.WriteByte(',')
		}
		b.WriteString(a.String())
	}
}

// Addresses are those of one family that an answer holds. spin, any number, decides who comes first: over many
// answers every region and every edge does equally often, but for a region that returns (see Ramp).
func (c Choice) Addresses(v6 bool, spin uint32) []netip.Addr {
	var out []netip.Addr
	near, _ := c.turn(spin)
	for _, e := range spread(near, spin) {
		for _, a := range e.Addresses {
			if a.Is6() == v6 && len(out) < MaxAddresses && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// Services are the HTTPS records: one for each port, the client's own region before the others.
func (c Choice) Services(spin uint32) []Service {
	var out []Service
	add := func(edges []Edge, priority uint16) {
		for _, e := range edges {
			i := slices.IndexFunc(out, func(s Service) bool { return s.Priority == priority && s.Port == e.Port })
			if i < 0 {
				if len(out) == MaxServices {
					continue
				}
				i = len(out)
				out = append(out, Service{Priority: priority, Port: e.Port})
			}
			for _, a := range e.Addresses {
				hints := &out[i].IPv4
				if a.Is6() {
					hints = &out[i].IPv6
				}
				if len(*hints) < MaxHints && !slices.Contains(*hints, a) {
					*hints = append(*hints, a)
				}
			}
		}
	}
	near, far := c.turn(spin)
	add(spread(near, spin), 1)
	add(spread(far, spin), 2)
	return out
}

// spread orders edges so that regions take turns, and turns the whole by spin.
func spread(edges []Edge, spin uint32) []Edge {
	var names []string
	byRegion := map[string][]Edge{}
	for _, e := range edges {
		if byRegion[e.Region] == nil {
			names = append(names, e.Region)
		}
		byRegion[e.Region] = append(byRegion[e.Region], e)
	}
	out := make([]Edge, 0, len(edges))
	for round := 0; len(out) < len(edges); round++ {
		for i := range names {
			of := byRegion[names[(i+int(spin%uint32(len(names))))%len(names)]]
			if round < len(of) {
				turn := spin / uint32(len(names)) % uint32(len(of))
				out = append(out, of[(round+int(turn))%len(of)])
			}
		}
	}
	return out
}
