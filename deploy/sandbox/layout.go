package main

import (
	"fmt"
	"strings"
)

// layout is the fixed shape of the sandbox (design.md §7): two zones, six regions, ports counted from one base.
type layout struct{ base int }

type controlSpec struct{ name, region, zone string }
type edgeSpec struct{ name, region, zone string }

var zones = []struct{ name, jurisdiction string }{{"emea", "EEA"}, {"us", "US"}}

var regionSpecs = []struct {
	name, zone, country, jurisdiction string
	controlOnly                       bool
}{
	{"eu-west", "emea", "IE", "EEA", false},
	{"eu-central", "emea", "DE", "EEA", false},
	{"eu-north", "emea", "SE", "EEA", true},
	{"us-east", "us", "US", "US", false},
	{"us-west", "us", "US", "US", false},
	{"us-central", "us", "US", "US", true},
}

var controlSpecs = []controlSpec{
	{"emea-1", "eu-west", "emea"}, {"emea-2", "eu-central", "emea"}, {"emea-3", "eu-north", "emea"},
	{"us-1", "us-east", "us"}, {"us-2", "us-west", "us"}, {"us-3", "us-central", "us"},
}

var edgeSpecs = []edgeSpec{
	{"eu-west-edge-1", "eu-west", "emea"}, {"eu-central-edge-1", "eu-central", "emea"},
	{"us-east-edge-1", "us-east", "us"}, {"us-west-edge-1", "us-west", "us"},
}

// sampleKeys are minted when the sandbox is ready: one for each zone and plan.
var sampleKeys = []struct{ customer, zone, plan string }{
	{"acme", "emea", "gold"}, {"globex", "emea", "free"}, {"initech", "emea", "unlimited"},
	{"umbrella", "us", "gold"}, {"hooli", "us", "free"}, {"stark", "us", "unlimited"},
}

// storeSpec is a member of an etcd. The catalog's stand in the primary zone, as its voters do with raft; a zone's stand
// in that zone and nowhere else.
type storeSpec struct{ name, region, cluster string }

var storeSpecs = []storeSpec{
	{"etcd-catalog-1", "eu-west", "catalog"}, {"etcd-catalog-2", "eu-central", "catalog"}, {"etcd-catalog-3", "eu-north", "catalog"},
	{"etcd-emea-1", "eu-west", "emea"}, {"etcd-emea-2", "eu-central", "emea"}, {"etcd-emea-3", "eu-north", "emea"},
	{"etcd-us-1", "us-east", "us"}, {"etcd-us-2", "us-west", "us"}, {"etcd-us-3", "us-central", "us"},
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func (l layout) control() string        { return loopback(l.base) }
func (l layout) admin(i int) string     { return loopback(l.base + 1 + i) }
func (l layout) peer(i int) string      { return loopback(l.base + 101 + i) }
func (l layout) upstream(i int) string  { return loopback(l.base + 301 + i) }
func (l layout) edgeDNS(i int) string   { return loopback(l.base + 53 + i) }
func (l layout) edgeHTTP(i int) string  { return loopback(l.base + 80 + i) }
func (l layout) edgeHTTPS(i int) string { return loopback(l.base + 443 + i) }
func (l layout) edgeRelay(i int) string { return loopback(l.base + 501 + i) }
func (l layout) edgeAdmin(i int) string { return loopback(l.base + 901 + i) }
func (l layout) etcd(i int) string      { return loopback(l.base + 601 + i) }
func (l layout) etcdPeer(i int) string  { return loopback(l.base + 701 + i) }
func (l layout) authority(i int) string { return loopback(l.base + 801 + i) }

// etcdURLs are the clients' URLs of a cluster.
func (l layout) etcdURLs(cluster string) string {
	var urls []string
	for i, m := range storeSpecs {
		if m.cluster == cluster {
			urls = append(urls, "http://"+l.etcd(i))
		}
	}
	return strings.Join(urls, ",")
}

// etcdMembers are the members of a cluster, as they find each other.
func (l layout) etcdMembers(cluster string) string {
	var members []string
	for i, m := range storeSpecs {
		if m.cluster == cluster {
			members = append(members, m.name+"=http://"+l.etcdPeer(i))
		}
	}
	return strings.Join(members, ",")
}

func (l layout) adminURLs(zone string) string {
	var urls []string
	for _, first := range []bool{true, false} { // the zone's own nodes first
		for i, c := range controlSpecs {
			if (c.zone == zone) == first {
				urls = append(urls, "https://"+l.admin(i))
			}
		}
	}
	return strings.Join(urls, ",")
}

// installation is the spec that `bailiwick-control init` turns into keys and node kits.
func (l layout) installation(identityTTL string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "installation: sandbox.example\nprimary_zone: emea\nidentity_ttl: %s\nzones:\n", identityTTL)
	for _, z := range zones {
		fmt.Fprintf(&b, "  - {name: %s, jurisdiction: %s}\n", z.name, z.jurisdiction)
	}
	b.WriteString("regions:\n")
	for _, r := range regionSpecs {
		fmt.Fprintf(&b, "  - {name: %s, zone: %s, country: %s, jurisdiction: %s, provider: sandbox, control_only: %v}\n", r.name, r.zone, r.country, r.jurisdiction, r.controlOnly)
	}
	b.WriteString("control_nodes:\n")
	for i, c := range controlSpecs {
		fmt.Fprintf(&b, "  - {name: %s, zone: %s, region: %s, admin: \"https://%s\", peer: \"%s\"}\n", c.name, c.zone, c.region, l.admin(i), l.peer(i))
	}
	return b.String()
}
