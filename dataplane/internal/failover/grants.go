package failover

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/revision"
)

// Requester carries a request for grants to the home zone.
type Requester interface {
	RequestGrants(ctx context.Context, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error)
}

// SignaturePrefix stands before the payload in what a zone signs.
const SignaturePrefix = "bailiwick-grant/1\n"

// Reasons for which a grant is refused, at either end of a relay.
const (
	GrantMalformed = "grant-malformed"
	GrantZone      = "grant-zone"      // signed for a zone whose requests this is not about
	GrantSignature = "grant-signature" //
	GrantEdge      = "grant-edge"      // given to another edge
	GrantFrom      = "grant-from"      // for another sending region
	GrantTo        = "grant-to"        // for another receiving region
	GrantEpoch     = "grant-epoch"     // from before a recovery
	GrantPolicy    = "grant-policy"    // does not cover the policy
	GrantExpired   = "grant-expired"   //
)

// Grant is a permission to relay over one pair, verified. It never changes.
type Grant struct {
	ID         string
	Zone       string
	Edge       string
	From, To   string
	Policies   []string
	Catalog    revision.Revision // epoch and index only
	Store      revision.Revision
	TTL        time.Duration
	OfflineTTL time.Duration
	GrantedAt  int64 // unix ms, for people
	Peers      []Peer
	Signed     []byte // syncv1.SignedGrant as received, to show to the peer

	asked time.Time // with its monotonic reading; zero at a receiver
}

// Peer is an edge of the other region.
type Peer struct{ Edge, Addr string }

// Covers says whether the grant is for requests under a policy.
func (g *Grant) Covers(policy string) bool { return slices.Contains(g.Policies, policy) }

// Verify opens a signed grant with the key of its zone. Refusals are faults whose Reason is one of the
// constants above. It says nothing about age.
func Verify(t *policy.Table, signed *syncv1.SignedGrant) (*Grant, error) {
	var p syncv1.Grant
	if err := proto.Unmarshal(signed.GetPayload(), &p); err != nil {
		return nil, fault.New(fault.Denied, GrantMalformed, "read grant: %w", err)
	}
	key := t.ZoneKey(p.Zone)
	if key == nil {
		return nil, fault.New(fault.Denied, GrantZone, "verify grant %s: no key of zone %q here", p.Id, p.Zone)
	}
	if !ed25519.Verify(key, append([]byte(SignaturePrefix), signed.Payload...), signed.Signature) {
		return nil, fault.New(fault.Denied, GrantSignature, "verify grant %s: signature is not zone %s's", p.Id, p.Zone)
	}
	if p.Id == "" || p.TtlMs <= 0 || p.From == "" || p.To == "" || p.From == p.To {
		return nil, fault.New(fault.Denied, GrantMalformed, "read grant %q: it lacks an id, a pair or a lifetime", p.Id)
	}
	raw, err := proto.Marshal(signed)
	if err != nil {
		return nil, fault.New(fault.Internal, GrantMalformed, "keep grant %s: %w", p.Id, err)
	}
	g := &Grant{ID: p.Id, Zone: p.Zone, Edge: p.Edge, From: p.From, To: p.To, Policies: p.Policies,
		Catalog: revision.Revision{Epoch: p.CatalogEpoch, Index: p.CatalogIndex}, Store: revision.Revision{Epoch: p.ZoneEpoch, Index: p.ZoneIndex},
		TTL: millis(p.TtlMs), OfflineTTL: max(millis(p.TtlMs), millis(p.OfflineTtlMs)), GrantedAt: p.GrantedUnixMs, Signed: raw}
	for _, peer := range p.Peers {
		g.Peers = append(g.Peers, Peer{peer.Edge, peer.RelayAddr})
	}
	return g, nil
}

// millis bounds what a message may say: a lifetime that overflows would be one that never ends.
func millis(ms int64) time.Duration {
	const most = 30 * 24 * time.Hour
	if ms > most.Milliseconds() {
		return most
	}
	return time.Duration(ms) * time.Millisecond
}

// GrantsConfig of a Grants. All but Every are required.
type GrantsConfig struct {
	// Untold says that the edge has something for the zone's log, which goes with a request for grants: then it asks
	// even if no pair leaves its region any more. nil: never.
	Untold    func() bool
	Requester Requester
	Tables    *policy.Holder
	Self      identity.Name
	Logger    *slog.Logger
	Every     time.Duration // 0: a third of the shortest grant held, 10 s before there is one
}

// Grants holds what this edge may relay, and keeps it fresh.
type Grants struct {
	cfg  GrantsConfig
	held atomic.Pointer[map[string][]*Grant] // by target region, newest first
	away atomic.Bool                         // the last question got no answer: offline lifetimes count

	mu      sync.Mutex // covers changed
	changed chan struct{}
}

// NewGrants makes an empty Grants; Run it.
func NewGrants(cfg GrantsConfig) (*Grants, error) {
	if cfg.Requester == nil || cfg.Tables == nil || cfg.Logger == nil || cfg.Self == (identity.Name{}) {
		return nil, errors.New("failover: grants need a Requester, Tables, Self and Logger")
	}
	g := &Grants{cfg: cfg}
	g.held.Store(&map[string][]*Grant{})
	return g, nil
}

// Changed closes when grants come or go by other means than time.
func (g *Grants) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

func (g *Grants) swap(m map[string][]*Grant) {
	g.held.Store(&m)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// live: counted from when this edge asked, on the monotonic clock, so it ends before the leader's count.
func (g *Grants) live(x *Grant, t *policy.Table) bool {
	age := time.Since(x.asked)
	if age >= x.TTL && !(g.away.Load() && age < x.OfflineTTL) {
		return false
	}
	// A recovery opens a new epoch in which nothing of the old one is permitted.
	return x.Catalog.Epoch >= t.Catalog().Epoch && x.Store.Epoch >= t.Zone().Epoch
}

// Live is the newest live grant to relay to a region under a policy, nil if there is none. It does not
// replace Table.Permits: a relay needs both.
func (g *Grants) Live(t *policy.Table, policy, to string) *Grant {
	for _, x := range (*g.held.Load())[to] {
		if x.Covers(policy) && g.live(x, t) {
			return x
		}
	}
	return nil
}

// Held are the live grants, for people.
func (g *Grants) Held() []*Grant {
	t := g.cfg.Tables.Load()
	var out []*Grant
	for _, list := range *g.held.Load() {
		for _, x := range list {
			if g.live(x, t) {
				out = append(out, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Grant) int { return strings.Compare(a.To+a.ID, b.To+b.ID) })
	return out
}

// outbound names the pairs this edge could use: a change of it is a reason to ask at once.
func (g *Grants) outbound(t *policy.Table) string {
	seen := map[string]bool{}
	var names []string
	for _, host := range t.Hosts() {
		p := t.API(host).Policy
		if seen[p] {
			continue
		}
		seen[p] = true
		for _, pair := range t.Pairs(p, g.cfg.Self.Region) {
			names = append(names, p+">"+pair.To)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// Run asks: at once, when the pairs change, and three times within each grant's lifetime. It also asks when there is
// something to tell.
func (g *Grants) Run(ctx context.Context) error {
	for {
		t := g.cfg.Tables.Load()
		pairs := g.outbound(t)
		var err error
		if pairs != "" || g.cfg.Untold != nil && g.cfg.Untold() {
			err = g.ask(ctx, t)
		}
		next := g.every()
		if err != nil || g.lacks(t) {
			next = min(next, time.Second)
		}
		if !g.wait(ctx, next, pairs) {
			return nil
		}
	}
}

// wait returns when d has passed or the pairs are others; false when ctx has ended. Keys change hundreds of
// times a second and must not become as many questions.
func (g *Grants) wait(ctx context.Context, d time.Duration, pairs string) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		changed := g.cfg.Tables.Changed()
		if g.outbound(g.cfg.Tables.Load()) != pairs {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

// lacks says whether a pair of the table has no live grant: the leader may only not have caught up yet.
func (g *Grants) lacks(t *policy.Table) bool {
	for _, host := range t.Hosts() {
		p := t.API(host).Policy
		for _, pair := range t.Pairs(p, g.cfg.Self.Region) {
			if g.Live(t, p, pair.To) == nil {
				return true
			}
		}
	}
	return false
}

func (g *Grants) every() time.Duration {
	if g.cfg.Every > 0 {
		return g.cfg.Every
	}
	every := 10 * time.Second
	for _, list := range *g.held.Load() {
		for _, x := range list {
			every = min(every, max(50*time.Millisecond, x.TTL/3))
		}
	}
	return every
}

// IsAnswer says whether an error is the zone's own word about its border rules, and not its silence.
func IsAnswer(err error) bool {
	switch fault.ReasonOf(err) {
	case "STALE_TABLE", "RULES_CHANGED", "NOT_ADOPTED":
		return true
	}
	return false
}

func (g *Grants) ask(ctx context.Context, t *policy.Table) error {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, min(5*time.Second, max(g.every(), 250*time.Millisecond)))
	defer cancel()
	catalog, zone := t.Catalog(), t.Zone()
	resp, err := g.cfg.Requester.RequestGrants(ctx, &syncv1.RequestGrantsRequest{
		Catalog: &syncv1.Position{Epoch: catalog.Epoch, Index: catalog.Index, Sum: catalog.Sum[:]},
		Zone:    &syncv1.Position{Epoch: zone.Epoch, Index: zone.Index, Sum: zone.Sum[:]},
	})
	if err != nil {
		kind := fault.KindOf(err)
		switch {
		case kind == fault.Denied, kind == fault.Unauthenticated:
			// That is an answer: this edge may relay nothing. Not to be mistaken for silence.
			g.away.Store(false)
			g.swap(map[string][]*Grant{})
			g.cfg.Logger.Warn("grants denied", "error", err)
		case IsAnswer(err):
			g.away.Store(false) // ordinary lifetimes count: whoever is behind gets nothing but policy (invariant 9)
			g.cfg.Logger.Info("grants wait for a newer table", "error", err)
		default:
			if !g.away.Swap(true) {
				g.cfg.Logger.Warn("control plane does not answer for grants, offline lifetimes count", "error", err)
			}
		}
		return err
	}
	held := map[string][]*Grant{}
	for _, signed := range resp.Grants {
		x, err := g.take(t, signed, asked)
		if err != nil {
			g.cfg.Logger.Warn("grant refused", "reason", fault.ReasonOf(err), "error", err)
			continue
		}
		held[x.To] = append(held[x.To], x)
	}
	// What was not granted again lasts until its ordinary end: the leader counts on that, and an edge that
	// is one revision behind must not lose its other pairs. The table, which comes faster, closes at once. An
	// offline lifetime it has no longer: the newest answer says how long the zone lets a pair go unasked.
	for to, list := range *g.held.Load() {
		for _, x := range list {
			if time.Since(x.asked) < x.TTL && len(held[to]) < 8 {
				if x.OfflineTTL != x.TTL {
					short := *x
					short.OfflineTTL, x = x.TTL, &short
				}
				held[to] = append(held[to], x)
			}
		}
	}
	if g.away.Swap(false) {
		g.cfg.Logger.Info("control plane answers for grants again")
	}
	g.swap(held)
	return nil
}

func (g *Grants) take(t *policy.Table, signed *syncv1.SignedGrant, asked time.Time) (*Grant, error) {
	x, err := Verify(t, signed)
	if err != nil {
		return nil, err
	}
	self := g.cfg.Self
	switch {
	case x.Zone != self.Zone:
		return nil, fault.New(fault.Denied, GrantZone, "take grant %s: it is of zone %s", x.ID, x.Zone)
	case x.Edge != self.Node:
		return nil, fault.New(fault.Denied, GrantEdge, "take grant %s: it is for edge %s", x.ID, x.Edge)
	case x.From != self.Region:
		return nil, fault.New(fault.Denied, GrantFrom, "take grant %s: it is for region %s", x.ID, x.From)
	case x.Catalog.Epoch < t.Catalog().Epoch || x.Store.Epoch < t.Zone().Epoch:
		return nil, fault.New(fault.Denied, GrantEpoch, "take grant %s: it is from before a recovery", x.ID)
	}
	x.asked = asked
	return x, nil
}
