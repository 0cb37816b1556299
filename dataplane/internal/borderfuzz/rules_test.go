package borderfuzz

import (
	"math/rand/v2"
	"slices"
	"time"

	"bailiwick/regions"
)

// The world: every API has an upstream in every region, so that nothing but the rules keeps a request from it.

type place struct{ zone, region string }

var places = []place{{"emea", "eu-west"}, {"emea", "eu-central"}, {"us", "us-east"}, {"us", "us-west"}}

// zoneOf a region.
func zoneOf(region string) string {
	for _, p := range places {
		if p.region == region {
			return p.zone
		}
	}
	return ""
}

type service struct {
	zone, name, host string
	policies         []string // those it may be put under; the first is where it begins
}

// Two zones use one name, and one API has no policy at all.
var services = []*service{
	{"emea", "orders", "orders.emea.test", []string{"gdpr-emea"}},
	{"emea", "reports", "reports.emea.test", []string{"emea-scc", "gdpr-emea"}},
	{"emea", "vault", "vault.emea.test", []string{""}},
	{"us", "orders", "orders.us.test", []string{"us-local", "us-abroad"}},
	{"us", "billing", "billing.us.test", []string{"us-abroad", "us-local"}},
}

// arc is one direction of one policy: what may be open at all.
type arc struct{ policy, zone, from, to string }

var arcs = []arc{
	{"gdpr-emea", "emea", "eu-west", "eu-central"}, {"gdpr-emea", "emea", "eu-central", "eu-west"},
	{"emea-scc", "emea", "eu-west", "eu-central"}, {"emea-scc", "emea", "eu-central", "eu-west"}, {"emea-scc", "emea", "eu-west", "us-east"}, {"emea-scc", "emea", "eu-central", "us-east"},
	{"us-local", "us", "us-east", "us-west"}, {"us-local", "us", "us-west", "us-east"},
	{"us-abroad", "us", "us-east", "us-west"}, {"us-abroad", "us", "us-west", "us-east"}, {"us-abroad", "us", "us-west", "eu-central"},
}

// How an arc is closed: each has its own road through package regions.
const (
	isOpen = iota
	leftOut
	writtenClosed
	basisSuspended
	basisExpired
	closedByZone
	closings
)

// rules are what the control plane has committed: plain lists, of which the truth below is read without any of the
// code that is under test.
type rules struct {
	index  uint64 // of the last change
	epoch  uint64
	state  map[arc]int
	policy map[*service]string
	gone   map[string]bool // regions whose edge the registry does not have
}

func firstRules() *rules {
	r := &rules{index: 1, epoch: 1, state: map[arc]int{}, policy: map[*service]string{}, gone: map[string]bool{}}
	for _, s := range services {
		r.policy[s] = s.policies[0]
	}
	return r
}

// flow is a relay of one API's requests from one region to another.
type flow struct {
	service  *service
	from, to string
}

// flows are what is permitted, by the lists alone.
func (r *rules) flows() map[flow]bool {
	out := map[flow]bool{}
	for _, s := range services {
		for _, a := range arcs {
			if a.policy == r.policy[s] && a.zone == s.zone && r.state[a] == isOpen && !r.gone[a.from] {
				out[flow{s, a.from, a.to}] = true
			}
		}
	}
	return out
}

// change draws the next rules, and may change nothing.
func (r *rules) change(rng *rand.Rand) (what string) {
	r.index++
	switch n := rng.IntN(20); {
	case n == 0: // a recovery: a new epoch with all that crosses zones closed
		r.epoch++
		for _, a := range arcs {
			if zoneOf(a.from) != zoneOf(a.to) {
				r.state[a] = leftOut
			}
		}
		return "recovery"
	case n == 1:
		if region := places[rng.IntN(len(places))].region; r.gone[region] {
			delete(r.gone, region)
		} else if len(r.gone) == 0 {
			r.gone[region] = true
		}
		return "registry"
	case n <= 4:
		s := services[rng.IntN(len(services))]
		r.policy[s] = s.policies[rng.IntN(len(s.policies))]
		return "api"
	}
	a := arcs[rng.IntN(len(arcs))]
	if r.state[a] != isOpen {
		r.state[a] = isOpen
		return "open"
	}
	r.state[a] = leftOut + rng.IntN(closings-leftOut)
	return "close"
}

// heal opens everything.
func (r *rules) heal() {
	r.index++
	clear(r.state)
	clear(r.gone)
	for _, s := range services {
		r.policy[s] = s.policies[0]
	}
}

// pairs are the permitted pairs as the control plane's own rule code gives them.
func (r *rules) pairs(now time.Time) ([]regions.Permitted, error) {
	var regs []regions.Region
	for _, p := range places {
		regs = append(regs, regions.Region{Name: p.region, Zone: p.zone})
	}
	var bases []regions.LegalBasis
	var closures []regions.Closure
	policies := map[string]*regions.Policy{}
	var order []string
	for i, a := range arcs {
		p := policies[a.policy]
		if p == nil {
			p = &regions.Policy{Name: a.policy, Zone: a.zone}
			policies[a.policy], order = p, append(order, a.policy)
		}
		basis := regions.LegalBasis{Name: a.policy + "-" + a.from + "-" + a.to, Kind: regions.SCC}
		if zoneOf(a.from) == zoneOf(a.to) {
			basis.Kind = regions.SameLaw
		}
		pair := regions.Pair{From: a.from, To: a.to, Basis: basis.Name, Priority: i % 3}
		switch r.state[a] {
		case leftOut:
			continue
		case writtenClosed:
			pair.Status = regions.Closed
		case basisSuspended:
			basis.Status = regions.Suspended
		case basisExpired:
			basis.Expires = now
		case closedByZone:
			closures = append(closures, regions.Closure{ID: "c", From: a.from, To: a.to, Basis: basis.Name})
		}
		bases = append(bases, basis)
		p.Pairs = append(p.Pairs, pair)
	}
	var list []regions.Policy
	slices.Sort(order)
	for _, name := range order {
		list = append(list, *policies[name])
	}
	set, err := regions.Compile(regs, bases, list)
	if err != nil {
		return nil, err
	}
	return set.Pairs(now, closures), nil
}
