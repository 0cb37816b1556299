package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"go.yaml.in/yaml/v3"

	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Spec is what `bailiwick-control init` reads, as YAML or JSON; an unknown
// field is an error.
type Spec struct {
	Installation string        `yaml:"installation"`  // required: dotted name, the end of every trust domain
	PrimaryZone  string        `yaml:"primary_zone"`  // required: the zone whose control nodes vote on the catalog
	IdentityTTL  time.Duration `yaml:"identity_ttl"`  // of node certificates; zero is 30 days
	Zones        []SpecZone    `yaml:"zones"`         // required
	Regions      []SpecRegion  `yaml:"regions"`       // required: those that exist from the beginning
	ControlNodes []SpecNode    `yaml:"control_nodes"` // required: at least one in each zone
}

// SpecZone is a residency zone.
type SpecZone struct {
	Name         string `yaml:"name"`
	Jurisdiction string `yaml:"jurisdiction"`
}

// SpecRegion is a region of a zone.
type SpecRegion struct {
	Name         string `yaml:"name"`
	Zone         string `yaml:"zone"`
	Country      string `yaml:"country"`
	Jurisdiction string `yaml:"jurisdiction"`
	Provider     string `yaml:"provider"`
	ControlOnly  bool   `yaml:"control_only"` // no data plane runs here
}

// SpecNode is a control node.
type SpecNode struct {
	Name   string `yaml:"name"`
	Zone   string `yaml:"zone"`
	Region string `yaml:"region"`
	Admin  string `yaml:"admin"` // https URL that people and edges reach it at
	Peer   string `yaml:"peer"`  // host:port of the peer port
}

const (
	defaultIdentityTTL = 30 * 24 * time.Hour
	minIdentityTTL     = 2 * time.Second // below, certificates' whole seconds leave no room to renew
)

// ParseSpec reads and validates a Spec.
func ParseSpec(text []byte) (Spec, error) {
	var s Spec
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		return Spec{}, fault.New(fault.Invalid, "SPEC_MALFORMED", "read installation spec: %w", err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Spec{}, fault.New(fault.Invalid, "SPEC_MALFORMED", "read installation spec: more than one document")
	}
	if s.IdentityTTL == 0 {
		s.IdentityTTL = defaultIdentityTTL
	}
	return s, s.Validate()
}

// Validate refuses a spec from which no working installation would come.
func (s Spec) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fault.New(fault.Invalid, "SPEC_INVALID", "installation spec: "+field+": "+format, args...).At(field)
	}
	probe := identity.Name{Zone: "z", Installation: s.Installation, Region: "r", Kind: identity.Control, Node: "n"}
	if err := probe.Validate(); err != nil {
		return bad("installation", "%w", err)
	}
	if s.IdentityTTL < minIdentityTTL {
		return bad("identity_ttl", "%s is below %s", s.IdentityTTL, minIdentityTTL)
	}
	zones, regions, nodes := map[string]int{}, map[string]string{}, map[string]bool{}
	for i, z := range s.Zones {
		f := fmt.Sprintf("zones[%d].name", i)
		probe.Zone = z.Name
		if err := probe.Validate(); err != nil {
			return bad(f, "%w", err)
		}
		if _, twice := zones[z.Name]; twice {
			return bad(f, "zone %q is there twice", z.Name)
		}
		zones[z.Name] = 0
	}
	probe.Zone = "z"
	for i, r := range s.Regions {
		f := fmt.Sprintf("regions[%d]", i)
		probe.Region = r.Name
		if err := probe.Validate(); err != nil {
			return bad(f+".name", "%w", err)
		}
		if _, twice := regions[r.Name]; twice {
			return bad(f+".name", "region %q is there twice", r.Name)
		}
		if _, ok := zones[r.Zone]; !ok {
			return bad(f+".zone", "zone %q is not listed", r.Zone)
		}
		regions[r.Name] = r.Zone
	}
	probe.Region = "r"
	for i, n := range s.ControlNodes {
		f := fmt.Sprintf("control_nodes[%d]", i)
		probe.Node = n.Name
		if err := probe.Validate(); err != nil {
			return bad(f+".name", "%w", err)
		}
		if nodes[n.Name] || n.Name == rootDir {
			return bad(f+".name", "name %q is taken", n.Name)
		}
		nodes[n.Name] = true
		if zone, ok := regions[n.Region]; !ok || zone != n.Zone {
			return bad(f+".region", "region %q is not listed in zone %q", n.Region, n.Zone)
		}
		zones[n.Zone]++
		if u, err := url.Parse(n.Admin); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" {
			return bad(f+".admin", "%q is not an https URL of a host and port", n.Admin)
		}
		if host, port, err := net.SplitHostPort(n.Peer); err != nil || host == "" || port == "" {
			return bad(f+".peer", "%q is not host:port", n.Peer)
		}
	}
	if _, ok := zones[s.PrimaryZone]; !ok {
		return bad("primary_zone", "zone %q is not listed", s.PrimaryZone)
	}
	for i, z := range s.Zones {
		if zones[z.Name] == 0 {
			return bad(fmt.Sprintf("zones[%d]", i), "zone %q has no control node: nothing would keep its state", z.Name)
		}
	}
	return nil
}
