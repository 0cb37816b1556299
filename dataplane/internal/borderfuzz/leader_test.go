package borderfuzz

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/failover"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

const (
	ttl     = time.Second
	offline = 3 * time.Second // for pairs inside a zone
)

// How the zone's leader is to one edge.
const (
	answers = iota
	silent
)

// leader is the zone's leader as one edge finds it. It grants what the committed rules permit, to an edge that has
// them, and remembers what it gave: what the edge may do until when.
type leader struct {
	edge *edge
	key  ed25519.PrivateKey

	mu     sync.Mutex // covers all below
	rules  *rules     // committed; never changed once here
	mode   int
	n      uint64
	book   map[string]given
	order  []string
	ends   map[string]time.Time // by target region: when the last grant to it ends at the latest
	signed [][]byte             // the latest that were given, for forgers

	offline time.Duration // of grants inside the zone; 0: as the constant says
	leave   bool          // also to an edge that is behind, which receives and does not send
}

type given struct {
	from, to string
	end      time.Time
}

func (l *leader) given(id string) (given, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.book[id]
	return g, ok
}

func (l *leader) become(mode int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode = mode
}

// last has grants inside the zone go unasked for so long.
func (l *leader) last(offline time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offline = offline
}

// leaves gives an edge that is behind leave to take relays: what it is behind of is no rule of its zone.
func (l *leader) leaves(leave bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leave = leave
}

// erring is a grant that this leader signs by mistake: for its edge, and from another region than the edge's. The
// certificate says where an edge is, and nobody else does. nil: no rule makes it worth showing.
func (l *leader) erring(rng *rand.Rand) (raw []byte, from string, to *edge, s *service) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.edge
	var candidates [][2]arc
	for _, a := range arcs {
		for _, b := range arcs {
			if a.policy == b.policy && a.from == e.region && b.from != a.from && a.to == b.to {
				candidates = append(candidates, [2]arc{a, b})
			}
		}
	}
	if len(candidates) == 0 {
		return nil, "", nil, nil
	}
	c := candidates[rng.IntN(len(candidates))]
	for _, x := range services {
		if x.zone == e.zone && l.rules.policy[x] == c[1].policy {
			s = x
		}
	}
	to = e.world.at(c[1].to)
	if s == nil {
		return nil, "", nil, nil
	}
	l.n++
	signed, err := l.sign(&syncv1.Grant{Id: fmt.Sprintf("%s-erring-%d", e.region, l.n), Zone: e.zone, Edge: e.name, From: c[1].from, To: to.region, Policies: []string{c[1].policy},
		CatalogEpoch: l.rules.epoch, ZoneEpoch: l.rules.epoch, ZoneIndex: l.n, GrantedUnixMs: time.Now().UnixMilli(), TtlMs: ttl.Milliseconds(),
		Peers: []*syncv1.Peer{{Edge: to.name, RelayAddr: to.relayAddr}}})
	if err != nil {
		return nil, "", nil, nil
	}
	raw, _ = proto.Marshal(signed)
	return raw, c[1].from, to, s
}

func (l *leader) sign(g *syncv1.Grant) (*syncv1.SignedGrant, error) {
	payload, err := proto.Marshal(g)
	return &syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(l.key, append([]byte(failover.SignaturePrefix), payload...))}, err
}

// stolen is a grant that this leader gave not long ago.
func (l *leader) stolen(rng *rand.Rand) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.signed) == 0 {
		return nil
	}
	return slices.Clone(l.signed[rng.IntN(len(l.signed))])
}

func (l *leader) RequestGrants(_ context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	asked := time.Now()
	l.edge.world.judge.search("a question for grants", req.String())
	l.mu.Lock()
	defer l.mu.Unlock()
	e, r := l.edge, l.rules
	switch {
	case l.mode == silent:
		e.sentinel.Silent()
		return nil, fault.New(fault.Unavailable, "NO_LEADER", "nobody answers")
	case r.gone[e.region]:
		e.sentinel.Answered(asked, nil)
		return nil, fault.New(fault.Denied, "WITHDRAWN", "the registry does not have %s", e.name)
	case req.GetZone().GetEpoch() != r.epoch || req.GetZone().GetIndex() < r.index:
		e.sentinel.Answered(asked, nil)
		if l.leave {
			return &syncv1.RequestGrantsResponse{TakesMs: ttl.Milliseconds()}, nil
		}
		return nil, fault.New(fault.Conflict, "STALE_TABLE", "%s has not acknowledged the rules of %d", e.name, r.index)
	}
	var grants []*syncv1.SignedGrant
	var raws [][]byte
	for _, to := range e.world.edges {
		var policies []string
		for _, a := range arcs {
			if a.from == e.region && a.to == to.region && r.state[a] == isOpen {
				policies = append(policies, a.policy)
			}
		}
		if len(policies) == 0 {
			continue
		}
		l.n++
		g := &syncv1.Grant{Id: fmt.Sprintf("%s-%d", e.region, l.n), Zone: e.zone, Edge: e.name, From: e.region, To: to.region, Policies: policies,
			CatalogEpoch: r.epoch, ZoneEpoch: r.epoch, ZoneIndex: l.n, GrantedUnixMs: asked.UnixMilli(), TtlMs: ttl.Milliseconds(),
			Peers: []*syncv1.Peer{{Edge: to.name, RelayAddr: to.relayAddr}}}
		lasts := ttl
		if to.zone == e.zone {
			lasts = cmp.Or(l.offline, offline)
			g.OfflineTtlMs = lasts.Milliseconds()
		}
		signed, err := l.sign(g)
		if err != nil {
			return nil, err
		}
		raw, err := proto.Marshal(signed)
		if err != nil {
			return nil, err
		}
		grants, raws = append(grants, signed), append(raws, raw)
		end := asked.Add(lasts + lasts/50 + time.Second)
		l.ends[to.region] = end
		l.book[g.Id] = given{e.region, to.region, end}
		if l.order = append(l.order, g.Id); len(l.order) > 1000 {
			delete(l.book, l.order[0])
			l.order = l.order[1:]
		}
		if l.signed = append(l.signed, raw); len(l.signed) > 32 {
			l.signed = l.signed[1:]
		}
	}
	e.sentinel.Answered(asked, raws)
	// As short as a grant, as a leader's answer is: an edge that only receives asks again within a third of it, and what
	// it was told last may be no older than the grant that it is shown.
	return &syncv1.RequestGrantsResponse{Grants: grants, TakesMs: ttl.Milliseconds()}, nil
}
