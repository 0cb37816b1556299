package dns

import (
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/answer"
)

// names are what this server has authority for, made once for each table.
type names struct {
	table   *policy.Table
	apexes  []string
	serial  uint32
	regions []answer.Region
	edges   []answer.Edge
	servers []server // of DNS, by the edge's name
	subnets answer.Subnets
	above   map[string]bool // names that have a host of ours below them, and so exist
}

// server is an edge that answers DNS.
type server struct {
	edge string
	answer.Edge
}

// maxServers bounds an NS answer.
const maxServers = 8

// what a name is.
type what uint8

const (
	outside  what = iota // not ours: refused
	nothing              // below an apex of ours, and there is nothing: NXDOMAIN
	empty                // exists, without a record of its own
	host                 // of an API
	apexOnly             // a delegated domain that is no host
	nsHost               // the name of one of our servers
)

// found is a name looked up.
type found struct {
	what what
	name string // canonical
	apex string
	api  *policy.API
	edge answer.Edge // of nsHost
}

func (s *Server) current() *names {
	t := s.cfg.Tables.Load()
	if t == nil {
		return nil
	}
	n := s.names.Load()
	if n == nil || n.table != t {
		n = newNames(t, s.cfg.Zone, s.cfg.Apexes)
		s.names.Store(n) // two may have made the same
	}
	return n
}

func newNames(t *policy.Table, zone string, apexes []string) *names {
	// A position of the catalog's log only grows, and every edge computes the same from it.
	n := &names{table: t, apexes: apexes, above: map[string]bool{}, serial: uint32(t.Catalog().Epoch<<24) + uint32(t.Catalog().Index)}
	for _, h := range t.Hosts() {
		for at := parent(h); at != ""; at = parent(at) {
			n.above[at] = true
		}
	}
	blocks := map[string][]string{}
	for _, r := range t.Regions() {
		n.regions = append(n.regions, answer.Region{Name: r.Name, Zone: r.Zone, Drain: r.Drain})
		if r.Zone == zone {
			blocks[r.Name] = r.Clients
		}
	}
	n.subnets = answer.NewSubnets(blocks)
	for _, d := range t.Doors() {
		if _, home := blocks[d.Region]; !home || d.Zone != zone || d.HTTPSPort <= 0 || d.HTTPSPort > 65535 {
			continue // package answer looks again; names of servers rest on this alone
		}
		e := answer.Edge{Name: d.Edge, Region: d.Region, Zone: d.Zone, Port: uint16(d.HTTPSPort)}
		for _, text := range d.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				e.Addresses = append(e.Addresses, a.Unmap())
			}
		}
		n.edges = append(n.edges, e)
		if d.DNS && len(e.Addresses) > 0 && len(n.servers) < maxServers {
			n.servers = append(n.servers, server{d.Edge, e})
		}
	}
	return n
}

// find walks up from the name to the first that is a host, a delegated domain, or another zone's host: the closest
// decides whose the name is.
func (n *names) find(name string) found {
	for at := name; at != ""; at = parent(at) {
		if api := n.table.API(at); api != nil && !api.Foreign {
			f := found{name: name, apex: n.apexOf(at), api: api, what: host}
			if at != name {
				f.api, f.what = nil, nothing
				n.server(&f)
			}
			return f
		}
		if n.table.DirectoryByHost(at) != nil {
			return found{}
		}
		if slices.Contains(n.apexes, at) {
			f := found{name: name, apex: at, what: nothing}
			switch {
			case at == name:
				f.what = apexOnly
			case n.above[name]:
				f.what = empty
			default:
				n.server(&f)
			}
			return f
		}
	}
	return found{}
}

// server recognises the names that NS records point to: "ns-" and an edge's name, right below an apex.
func (n *names) server(f *found) {
	label, rest, _ := strings.Cut(f.name, ".")
	edge, ok := strings.CutPrefix(label, "ns-")
	if !ok || rest != f.apex {
		return
	}
	for _, s := range n.servers {
		if s.edge == edge {
			f.what, f.edge = nsHost, s.Edge
		}
	}
}

// apexOf is the domain by which a host is delegated: the closest that the operator named, or itself.
func (n *names) apexOf(h string) string {
	for at := h; at != ""; at = parent(at) {
		if slices.Contains(n.apexes, at) {
			return at
		}
	}
	return h
}

func parent(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	return rest
}

func nsName(edge, apex string) string { return "ns-" + edge + "." + apex + "." }

// ns are the NS records of an apex, and the addresses of what they point to.
func (n *names) ns(owner, apex string, ttl uint32) (records, glue []mdns.RR) {
	for _, s := range n.servers {
		target := nsName(s.edge, apex)
		records = append(records, &mdns.NS{Hdr: header(owner, mdns.TypeNS, ttl), Ns: target})
		for _, a := range s.Addresses {
			glue = append(glue, address(target, a, ttl))
		}
	}
	return records, glue
}

func (n *names) soa(apex string, ttl, negative uint32) *mdns.SOA {
	primary := apex + "."
	if len(n.servers) > 0 {
		primary = nsName(n.servers[0].edge, apex)
	}
	return &mdns.SOA{Hdr: header(apex+".", mdns.TypeSOA, ttl), Ns: primary, Mbox: "hostmaster." + apex + ".", Serial: n.serial,
		Refresh: 7200, Retry: 900, Expire: 1209600, Minttl: negative}
}

func header(owner string, rrtype uint16, ttl uint32) mdns.RR_Header {
	return mdns.RR_Header{Name: owner, Rrtype: rrtype, Class: mdns.ClassINET, Ttl: ttl}
}

func address(owner string, a netip.Addr, ttl uint32) mdns.RR {
	if a.Is6() {
		return &mdns.AAAA{Hdr: header(owner, mdns.TypeAAAA, ttl), AAAA: a.AsSlice()}
	}
	return &mdns.A{Hdr: header(owner, mdns.TypeA, ttl), A: a.AsSlice()}
}
