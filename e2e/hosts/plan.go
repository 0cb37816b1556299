package main

import (
	"fmt"
	"net/netip"
	"strings"
)

// The plan of the lab: a zone is a network 10.Z.0.0/16, a kind of host in it a /21, a host four addresses.

type kind int

const (
	control kind = iota
	edge
	upstream
	client
	operator
	kinds
)

func (k kind) String() string {
	return [...]string{"control", "edge", "upstream", "client", "operator"}[k]
}

// Ports, the same on every host. An edge's admin port is on loopback, as its flag asks for.
const (
	adminPort    = 7001
	peerPort     = 7101
	relayPort    = 7500
	upstreamPort = 8080
	edgeAdmin    = "127.0.0.1:7900"
)

type site struct {
	zone   int // in zones
	kind   kind
	number int // within its kind and zone
	name   string
	region string
}

func (s site) address() netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(s.zone + 1), byte(8*int(s.kind) + s.number), 2})
}
func (s site) at(port int) string { return fmt.Sprintf("%s:%d", s.address(), port) }

// network of a kind of host in a zone.
func network(zone int, k kind) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(zone + 1), byte(8 * int(k)), 0}), 21)
}

func zoneNetwork(zone int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(zone + 1), 0, 0}), 16)
}

type zonePlan struct {
	name, jurisdiction, policy string
	serving                    [2]string // regions
	witness                    string    // region with a control node and nothing else
}

// The first is the primary zone.
var zones = [2]zonePlan{
	{"emea", "EEA", "gdpr-emea", [2]string{"eu-west", "eu-central"}, "eu-north"},
	{"us", "US", "us-law", [2]string{"us-east", "us-west"}, "us-central"},
}

func other(zone int) int { return 1 - zone }

// sites of the lab, in the order in which they start.
func sites() (all []site) {
	for z, plan := range zones {
		for i, region := range []string{plan.serving[0], plan.serving[1], plan.witness} {
			all = append(all, site{z, control, i, fmt.Sprintf("%s-%d", plan.name, i+1), region})
		}
		for i, region := range plan.serving {
			all = append(all, site{z, edge, i, region + "-edge-1", region}, site{z, upstream, i, "orders-" + region, region})
		}
		all = append(all, site{z, client, 0, plan.name + "-client", ""}, site{z, operator, 0, plan.name + "-operator", ""})
	}
	return all
}

// stranger is a client of no zone, who goes to whichever edge he likes.
var stranger = site{8, client, 0, "stranger", ""}

func hostName(zone int) string { return "orders." + zones[zone].name + ".example.test" }

// installation is the spec that `bailiwick-control init` reads.
func installation() string {
	var b strings.Builder
	fmt.Fprintf(&b, "installation: lab.example\nprimary_zone: %s\nzones:\n", zones[0].name)
	for _, z := range zones {
		fmt.Fprintf(&b, "  - {name: %s, jurisdiction: %s}\n", z.name, z.jurisdiction)
	}
	b.WriteString("regions:\n")
	country := map[string]string{"EEA": "DE", "US": "US"}
	for _, z := range zones {
		for _, r := range append(z.serving[:], z.witness) {
			fmt.Fprintf(&b, "  - {name: %s, zone: %s, country: %s, jurisdiction: %s, provider: lab, control_only: %v}\n", r, z.name, country[z.jurisdiction], z.jurisdiction, r == z.witness)
		}
	}
	b.WriteString("control_nodes:\n")
	for _, s := range sites() {
		if s.kind == control {
			fmt.Fprintf(&b, "  - {name: %s, zone: %s, region: %s, admin: \"https://%s\", peer: \"%s\"}\n", s.name, zones[s.zone].name, s.region, s.at(adminPort), s.at(peerPort))
		}
	}
	return b.String()
}

// catalog is what may be known everywhere. abroad gives the first zone's API an upstream in the other zone as well.
func catalog(abroad bool) string {
	var b strings.Builder
	b.WriteString("kind: LegalBasis\nname: gdpr\nspec: {kind: same-law}\n---\nkind: LegalBasis\nname: american\nspec: {kind: same-law}\n")
	for z, plan := range zones {
		basis := [2]string{"gdpr", "american"}[z]
		fmt.Fprintf(&b, "---\nkind: Policy\nname: %s\nspec: {zone: %s, within_zone: {basis: %s}}\n", plan.policy, plan.name, basis)
		fmt.Fprintf(&b, "---\nkind: API\nname: orders\nspec:\n  zone: %s\n  hosts: [%s]\n  policy: %s\n  routes: [{name: all, path_prefix: /}]\n  upstreams:\n", plan.name, hostName(z), plan.policy)
		for _, s := range sites() {
			if s.kind == upstream && (s.zone == z || abroad && z == 0 && s.number == 0) {
				fmt.Fprintf(&b, "    - {region: %s, url: \"http://%s\"}\n", s.region, s.at(upstreamPort))
			}
		}
	}
	b.WriteString("---\nkind: Product\nname: commerce\nspec: {apis: [orders]}\n---\nkind: Plan\nname: soft\nspec:\n  products: [commerce]\n  quota: {units: 1000000, period: month, mode: soft}\n")
	return b.String()
}

// customer is a manifest of what rests in its zone alone.
func customer(zone int, name, shown string) string {
	return fmt.Sprintf("kind: Customer\nname: %s\nspec: {zone: %s, display_name: %s, subscriptions: [{plan: soft}]}\n", name, zones[zone].name, shown)
}
