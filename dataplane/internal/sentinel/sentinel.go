// Package sentinel owns the second opinion on the border. Where a connection to another edge, to a control node or
// to an upstream is made, where a relayed request leaves, and where one arrives, it decides again from what is really there: the bytes of the
// grant as they came from the control plane, the certificate that the peer showed, and the objects of the
// table. What it does not permit does not leave, is logged as an error, and counted in a number that is 0 for
// as long as the first check is right.
//
// It shares no code with that first check: neither package regions, failover nor relay, nor the index of the
// table; it reads names, addresses and grants itself, and an architecture test keeps it so. It never permits
// anything: the first check stands before it. Nothing survives a crash. All methods may be called at once.
package sentinel

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/idna"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/table"
)

// What is checked, for logs.
const (
	RulePeer     = "sentinel-peer"     // the certificate names no edge, or not one that the grant names
	RulePair     = "sentinel-pair"     // the table has no such pair
	RuleGrant    = "sentinel-grant"    // no such grant came from the zone, or it has ended
	RuleHome     = "sentinel-home"     // the request was not accepted here
	RuleAPI      = "sentinel-api"      // the table does not have the API under a policy that the grant covers
	RuleUpstream = "sentinel-upstream" // the address is no upstream of this region
	RuleControl  = "sentinel-control"  // the certificate is not that of a control node of this zone
)

const (
	// settle is how long after a change of the rules what was permitted before is late, and not wrong: blocked
	// all the same, but no fault of the first check, which read the table a moment earlier.
	settle = time.Second
	// maxPast is how many changes of the rules within settle are remembered; beyond it the oldest is forgotten, and
	// what it permitted counts as wrong.
	maxPast = 32
	// targetsFor is how long an upstream that left the table may be dialled: requests under way finish by the
	// table they began with, and an upstream of this region crosses no border.
	targetsFor = 2 * time.Minute
	// slack of the age of a grant: the answer that renews it may be on its way.
	slack = time.Second
	// maxGrants is how many grants are remembered; beyond it the oldest is forgotten, and so refused.
	maxGrants = 4096
)

// Config of a Sentinel. All fields are required.
type Config struct {
	Tables             *policy.Holder
	Zone, Region, Edge string // who this is, from its own certificate
	Logger             *slog.Logger
}

// Sentinel judges.
type Sentinel struct {
	cfg        Config
	violations atomic.Int64
	late       atomic.Int64

	mu      sync.Mutex // covers all below; held for no I/O
	of      *policy.Table
	now     *reading
	past    []past // what held before, oldest first
	left    map[string]time.Time
	grants  map[string]*grant // by id
	order   []string          // ids, oldest first
	shown   map[string]*shown // what peers have shown, by id
	inOrder []string          // ids of them, oldest first
	away    bool              // the zone did not answer the last question for grants
	heard   time.Time         // when it last did
	warned  map[[3]string]time.Time
}

// past is a reading that held until a moment ago.
type past struct {
	*reading
	until time.Time
}

// reading is what the objects of one table say. It never changes.
type reading struct {
	pairs   map[pair]ends
	apis    map[string]string // of the own zone: policy
	served  map[named]string  // of all zones: policy
	nodes   map[string]named  // edges that may relay to here: zone and region
	targets map[string]bool   // host:port
	keys    map[string]ed25519.PublicKey
	catalog uint64 // epochs
	zone    uint64
}

type (
	pair  struct{ policy, from, to string }
	ends  struct{ from, to string } // zones
	named struct{ zone, name string }
)

// New makes a Sentinel, which looks at every table that comes into force: it knows what was permitted a moment ago, also where
// two changes come at once. Before the first it lets nothing pass.
func New(cfg Config) (*Sentinel, error) {
	if cfg.Tables == nil || cfg.Zone == "" || cfg.Region == "" || cfg.Edge == "" || cfg.Logger == nil {
		return nil, errors.New("sentinel: Tables, Zone, Region, Edge and Logger are required")
	}
	s := &Sentinel{cfg: cfg, now: &reading{}, left: map[string]time.Time{}, grants: map[string]*grant{}, shown: map[string]*shown{}, warned: map[[3]string]time.Time{}}
	look := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.read()
	}
	cfg.Tables.Watch(look)
	look()
	return s, nil
}

// Violations is how often the first check was wrong since the start.
func (s *Sentinel) Violations() int64 { return s.violations.Load() }

// Now is this sentinel's own reading of the time. Whoever has made the first check takes it then, and hands it in with what
// was checked: a process may be kept from running for longer than a grant lasts between the two.
func (s *Sentinel) Now() time.Time { return time.Now() }

// Late is how often something was stopped that had been permitted until a moment before, or when it was checked first.
func (s *Sentinel) Late() int64 { return s.late.Load() }

// read looks at the newest table, with mu held. Judges call it too: one may have come into force that Watch has not told of yet.
func (s *Sentinel) read() {
	t := s.cfg.Tables.Load()
	if t == s.of {
		return
	}
	s.of = t
	r := &reading{pairs: map[pair]ends{}, apis: map[string]string{}, served: map[named]string{}, nodes: map[string]named{}, targets: map[string]bool{}, keys: map[string]ed25519.PublicKey{}}
	r.catalog, r.zone = t.Catalog().Epoch, t.Zone().Epoch
	for _, value := range t.All() {
		switch v := value.(type) {
		case *table.Pair:
			r.pairs[pair{v.Policy, v.From, v.To}] = ends{v.FromZone, v.ToZone}
		case *policy.API:
			r.served[named{v.Zone, v.Name}] = v.Policy
			if v.Zone == s.cfg.Zone {
				r.apis[v.Name] = v.Policy
			}
			for _, target := range slices.Concat(v.Targets, t.Found(&v.API)) {
				if addr := address(target); addr != "" {
					r.targets[addr] = true
				}
			}
		case *table.Node:
			r.nodes[v.Name] = named{v.Zone, v.Region}
		case *table.ZoneKey:
			r.keys[v.Zone] = v.PublicKey
		}
	}
	now := time.Now()
	for addr := range s.now.targets {
		if !r.targets[addr] {
			s.left[addr] = now
		}
	}
	maps.DeleteFunc(s.left, func(_ string, at time.Time) bool { return now.Sub(at) > targetsFor })
	if s.now.catalog != r.catalog || s.now.zone != r.zone || !maps.Equal(s.now.pairs, r.pairs) || !maps.Equal(s.now.served, r.served) || !maps.Equal(s.now.nodes, r.nodes) {
		s.past = append(s.past, past{s.now, now})
	}
	s.past = slices.DeleteFunc(s.past, func(p past) bool { return now.Sub(p.until) >= settle })
	s.past = s.past[max(0, len(s.past)-maxPast):]
	s.now = r
}

// excused says whether what is not permitted now was when the first check had been made, at, or is by a reading that held
// within the last moment, with mu held. It asks each of those, and not the last alone: rules may change twice between the
// first check and this one.
func (s *Sentinel) excused(now, at time.Time, permits func(r *reading, when time.Time) bool) bool {
	if permits(s.now, at) {
		return true
	}
	for _, p := range s.past {
		if now.Sub(p.until) < settle && (permits(p.reading, now) || permits(p.reading, at)) {
			return true
		}
	}
	return false
}

// address is what a dialler makes of a base URL.
func address(target string) string {
	u, err := url.Parse(target)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	host := u.Hostname()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil && net.ParseIP(host) == nil {
		host = ascii // as the HTTP client writes it
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)]
	}
	return strings.ToLower(net.JoinHostPort(host, port))
}

// peer is which edge a certificate says it is.
func peer(cert *x509.Certificate) (zone, region, edge string, ok bool) { return node(cert, "edge") }

// node is who a certificate says it is: spiffe://<zone>.<installation>/region/<region>/<kind>/<name>.
func node(cert *x509.Certificate, kind string) (zone, region, name string, ok bool) {
	if cert == nil || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" {
		return "", "", "", false
	}
	zone, _, ok = strings.Cut(cert.URIs[0].Host, ".")
	parts := strings.Split(cert.URIs[0].Path, "/")
	if !ok || len(parts) != 5 || parts[0] != "" || parts[1] != "region" || parts[3] != kind {
		return "", "", "", false
	}
	return zone, parts[2], parts[4], true
}

// Upstream judges a dial to an upstream, host:port as dialled, before the name is resolved.
func (s *Sentinel) Upstream(addr string) error {
	addr = strings.ToLower(addr)
	s.mu.Lock()
	s.read()
	at, gone := s.left[addr]
	ok := s.now.targets[addr] || gone && time.Since(at) < targetsFor
	s.mu.Unlock()
	if ok {
		return nil
	}
	return s.refuse(RuleUpstream, addr, false)
}

// Dialled judges a connection to another region's edge, over TCP or QUIC, by the certificate it showed, before
// anything is said on it. at is what Now said after the first check.
func (s *Sentinel) Dialled(cert *x509.Certificate, at time.Time) error {
	zone, region, edge, ok := peer(cert)
	if !ok {
		return s.refuse(RulePeer, "unnamed", false)
	}
	s.mu.Lock()
	s.read()
	now := time.Now()
	rule := s.connect(s.now, now, zone, region, edge)
	late := rule != "" && s.excused(now, at, func(r *reading, when time.Time) bool {
		return rule == RuleGrant && r != s.now || s.connect(r, when, zone, region, edge) == ""
	})
	s.mu.Unlock()
	if rule == "" {
		return nil
	}
	return s.refuse(rule, region, late)
}

// connect is the decision on a connection under one reading, with mu held.
func (s *Sentinel) connect(r *reading, when time.Time, zone, region, edge string) string {
	allowed := false
	for p, end := range r.pairs {
		allowed = allowed || p.from == s.cfg.Region && p.to == region && end.to == zone
	}
	if !allowed {
		return RulePair
	}
	for _, g := range s.grants {
		if g.to == region && g.peers[edge] && s.alive(g, when) {
			return ""
		}
	}
	return RuleGrant
}

// Leaves judges a request that is about to be relayed, from what it carries: the grant as sent, the API by name,
// the region said to have accepted it. at is what Now said after the first check.
func (s *Sentinel) Leaves(cert *x509.Certificate, signed []byte, api, home string, at time.Time) error {
	zone, region, edge, ok := peer(cert)
	if !ok {
		return s.refuse(RulePeer, "unnamed", false)
	}
	if home != s.cfg.Region {
		return s.refuse(RuleHome, region, false)
	}
	g, err := parse(signed)
	if err != nil {
		return s.refuse(RuleGrant, region, false)
	}
	s.mu.Lock()
	s.read()
	now := time.Now()
	rule := s.judge(s.now, g, now, zone, region, edge, api)
	late := rule != "" && s.excused(now, at, func(r *reading, when time.Time) bool { return s.judge(r, g, when, zone, region, edge, api) == "" })
	s.mu.Unlock()
	if rule == "" {
		return nil
	}
	return s.refuse(rule, region, late)
}

// judge is the decision under one reading, with mu held.
func (s *Sentinel) judge(r *reading, g *grant, now time.Time, zone, region, edge, api string) string {
	seen := s.grants[g.id]
	policyName, known := r.apis[api]
	end, paired := r.pairs[pair{policyName, s.cfg.Region, region}]
	switch {
	case seen == nil || string(seen.payload) != string(g.payload) || !s.alive(seen, now):
		return RuleGrant
	case g.zone != s.cfg.Zone || g.edge != s.cfg.Edge || g.from != s.cfg.Region || g.to != region || g.catalog < r.catalog || g.store < r.zone:
		return RuleGrant
	case !g.peers[edge]:
		return RulePeer
	case !known || !g.policies[policyName]:
		return RuleAPI
	case !paired || end.to != zone:
		return RulePair
	}
	return ""
}

func (s *Sentinel) refuse(rule, to string, late bool) error {
	return s.stop(rule, s.cfg.Region, to, late)
}

func (s *Sentinel) stop(rule, from, to string, late bool) error {
	if late {
		s.late.Add(1)
		return fmt.Errorf("sentinel: %s to %s is not permitted any more (%s)", from, to, rule)
	}
	s.violations.Add(1)
	key, now := [3]string{rule, from, to}, time.Now()
	s.mu.Lock()
	loud := now.Sub(s.warned[key]) > time.Second // a check that is broken is wrong for every request
	if loud {
		if len(s.warned) > 256 {
			clear(s.warned)
		}
		s.warned[key] = now
	}
	s.mu.Unlock()
	if loud {
		s.cfg.Logger.Error("border sentinel stopped what the first check let pass: report it, and take this edge out of service", "rule", rule, "from", from, "to", to)
	}
	return fmt.Errorf("sentinel: %s to %s is not permitted (%s)", from, to, rule)
}
