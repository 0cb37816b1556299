package sentinel

import (
	"crypto/ed25519"
	"crypto/x509"
	"time"
)

// shown is a grant that a peer has shown with a relay, verified.
type shown struct {
	*grant
	first time.Time
}

// Arrives judges a relay at its receiving end, before the request goes on to an upstream: by the certificate that
// the peer showed, the grant as it came, and the API that is about to serve it. at is what Now said after the first check.
func (s *Sentinel) Arrives(cert *x509.Certificate, signed []byte, apiZone, api string, at time.Time) error {
	zone, region, edge, ok := peer(cert)
	if !ok {
		return s.stop(RulePeer, "unnamed", s.cfg.Region, false)
	}
	g, err := parse(signed)
	if err != nil {
		return s.stop(RuleGrant, region, s.cfg.Region, false)
	}
	s.mu.Lock()
	s.read()
	now := time.Now()
	rule := s.receive(s.now, g, now, zone, region, edge, named{apiZone, api})
	late := rule != "" && s.excused(now, at, func(r *reading, when time.Time) bool {
		return s.receive(r, g, when, zone, region, edge, named{apiZone, api}) == ""
	})
	s.mu.Unlock()
	if rule == "" {
		return nil
	}
	return s.stop(rule, region, s.cfg.Region, late)
}

// receive is the receiver's decision under one reading, with mu held.
func (s *Sentinel) receive(r *reading, g *grant, now time.Time, zone, region, edge string, api named) string {
	policyName, known := r.served[api]
	end, paired := r.pairs[pair{policyName, region, s.cfg.Region}]
	switch {
	case r.nodes[edge] != named{zone, region}:
		return RulePeer
	case g.zone != zone || g.edge != edge || g.from != region || g.to != s.cfg.Region:
		return RuleGrant
	case g.catalog < r.catalog || zone == s.cfg.Zone && g.store < r.zone:
		return RuleGrant
	case !known || api.zone != zone || !g.policies[policyName]:
		return RuleAPI
	case !paired || end != ends{zone, s.cfg.Zone}:
		return RulePair
	case !s.lasts(r, g, now):
		return RuleGrant
	}
	return ""
}

// lasts says whether a grant shown is its zone's and not older than it may get, with mu held. The receiver cannot
// know whether the sender reaches its control plane: the offline lifetime counts.
func (s *Sentinel) lasts(r *reading, g *grant, now time.Time) bool {
	x := s.shown[g.id]
	if x == nil || string(x.payload) != string(g.payload) {
		key := r.keys[g.zone]
		if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte("bailiwick-grant/1\n"), g.payload...), g.signature) {
			return false
		}
	}
	if x == nil { // else the first word under an id says how long it lasts
		x = &shown{g, now}
		s.shown[g.id] = x
		if s.inOrder = append(s.inOrder, g.id); len(s.inOrder) > maxGrants {
			delete(s.shown, s.inOrder[0])
			s.inOrder = s.inOrder[1:]
		}
	}
	age := now.Sub(x.first)
	return age >= 0 && age < max(x.ttl, x.offline)+slack
}

// Control judges a connection over which usage leaves, over TCP or QUIC, by the certificate that was shown: usage goes
// to control nodes of the own zone and to nobody else.
func (s *Sentinel) Control(cert *x509.Certificate) error {
	zone, region, _, ok := node(cert, "control")
	switch {
	case !ok:
		return s.refuse(RuleControl, "unnamed", false)
	case zone != s.cfg.Zone:
		return s.refuse(RuleControl, region, false)
	}
	return nil
}
