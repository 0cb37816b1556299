package failover

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
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

// Verify opens a signed grant with the key of its zone. Refusals are faults whose Reason is one of
// package grant's. It says nothing about age.
func Verify(t *policy.Table, signed *syncv1.SignedGrant) (*grant.Grant, error) {
	var p syncv1.Grant
	if err := proto.Unmarshal(signed.GetPayload(), &p); err != nil {
		return nil, fault.New(fault.Denied, grant.Malformed, "read grant: %w", err)
	}
	key := t.ZoneKey(p.Zone)
	if key == nil {
		return nil, fault.New(fault.Denied, grant.Zone, "verify grant %s: no key of zone %q here", p.Id, p.Zone)
	}
	if !ed25519.Verify(key, append([]byte(SignaturePrefix), signed.Payload...), signed.Signature) {
		return nil, fault.New(fault.Denied, grant.Signature, "verify grant %s: signature is not zone %s's", p.Id, p.Zone)
	}
	if p.Id == "" || p.TtlMs <= 0 || p.From == "" || p.To == "" || p.From == p.To {
		return nil, fault.New(fault.Denied, grant.Malformed, "read grant %q: it lacks an id, a pair or a lifetime", p.Id)
	}
	raw, err := proto.Marshal(signed)
	if err != nil {
		return nil, fault.New(fault.Internal, grant.Malformed, "keep grant %s: %w", p.Id, err)
	}
	g := &grant.Grant{ID: p.Id, Zone: p.Zone, Process: grant.Process{Edge: p.Edge, Incarnation: p.Incarnation}, From: p.From, To: p.To, Policies: p.Policies,
		Catalog: revision.Revision{Epoch: p.CatalogEpoch, Index: p.CatalogIndex}, Store: revision.Revision{Epoch: p.ZoneEpoch, Index: p.ZoneIndex},
		TTL: millis(p.TtlMs), OfflineTTL: max(millis(p.TtlMs), millis(p.OfflineTtlMs)), GrantedAt: p.GrantedUnixMs, Signed: raw}
	for _, peer := range p.Peers {
		g.Peers = append(g.Peers, grant.Peer{Edge: peer.Edge, Addr: peer.RelayAddr})
	}
	return g, nil
}

// millis bounds what a message may say: a lifetime that overflows would be one that never ends, also one from far below zero.
func millis(ms int64) time.Duration {
	const most = 30 * 24 * time.Hour
	return time.Duration(min(max(ms, 0), most.Milliseconds())) * time.Millisecond
}

// GrantsConfig of a Grants. All but Every are required.
type GrantsConfig struct {
	// Untold says that the edge has something for the zone's log, which goes with a request for grants: then it asks
	// even if no pair leaves its region any more. nil: never.
	Untold    func() bool
	Requester Requester
	Tables    *policy.Holder
	Self      identity.Name
	// Incarnation is which run of the edge this is, and Dead says which earlier ones have ended; nil: none. "": a test's.
	Incarnation string
	Dead        func() []string
	// Twin is told that the zone gives this run nothing while an earlier one seems to speak, and says whether to ask again soon:
	// that may be the process before this one. nil: there is none.
	Twin   func() bool
	Logger *slog.Logger
	Every  time.Duration // 0: a third of the shortest grant held, 10 s before there is one
}

const twinAgain = 200 * time.Millisecond

// Grants holds what this edge may relay, and keeps it fresh.
type Grants struct {
	cfg      GrantsConfig
	held     atomic.Pointer[grant.Held]
	answered atomic.Bool
	again    chan struct{} // holds one
	unsaid   atomic.Bool   // Again has been called since the last question
	newest   time.Time     // when what was answered last was asked; Run's

	mu      sync.Mutex // covers changed
	changed chan struct{}
}

// NewGrants makes an empty Grants; Run it.
func NewGrants(cfg GrantsConfig) (*Grants, error) {
	if cfg.Requester == nil || cfg.Tables == nil || cfg.Logger == nil || cfg.Self == (identity.Name{}) {
		return nil, errors.New("failover: grants need a Requester, Tables, Self and Logger")
	}
	if cfg.Dead == nil {
		cfg.Dead = func() []string { return nil }
	}
	g := &Grants{cfg: cfg, again: make(chan struct{}, 1)}
	g.held.Store(&grant.Held{})
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

// step takes an answer; only a change of what is held is told.
func (g *Grants) step(a grant.Answer, given []*grant.Grant, take grant.Take) {
	g.held.Store(g.held.Load().Step(a, given, take, time.Now()))
	if a != grant.Given && a != grant.Denied {
		return
	}
	g.answered.Store(true)
	g.tell()
}

// Borrow has this process go by what the one that took its place lends it, once Run has returned.
func (g *Grants) Borrow(h *grant.Held) {
	g.held.Store(h)
	g.answered.Store(true)
	g.tell()
}

// Lend lends what is held to the process before this one, for at most most. false: nothing is known yet that would be this
// process's to lend, since no leader has answered it.
func (g *Grants) Lend(now time.Time, most time.Duration) (grant.Lent, bool) {
	if !g.answered.Load() {
		return grant.Lent{}, false
	}
	return g.held.Load().Lend(at(g.cfg.Tables.Load()), now, most), true
}

// Again has Run ask at once: what it says of earlier runs has changed.
func (g *Grants) Again() {
	g.unsaid.Store(true)
	select {
	case g.again <- struct{}{}:
	default:
	}
}

func (g *Grants) tell() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

func at(t *policy.Table) grant.At { return grant.At{Catalog: t.Catalog(), Store: t.Zone()} }

// Live is the newest live grant to relay to a region under a policy, nil if there is none. It does not
// replace Table.Permits: a relay needs both.
func (g *Grants) Live(t *policy.Table, policy, to string) *grant.Grant {
	return g.held.Load().Live(policy, to, at(t), time.Now())
}

// Now is what is held at this moment, for a decision of package grant's.
func (g *Grants) Now() *grant.Held { return g.held.Load() }

// Held are the live grants, for people.
func (g *Grants) Held() []*grant.Grant {
	out := g.held.Load().All(at(g.cfg.Tables.Load()), time.Now())
	slices.SortFunc(out, func(a, b *grant.Grant) int { return strings.Compare(a.To+a.ID, b.To+b.ID) })
	return out
}

// Takes says whether this edge may take a relay under a grant, by what its own zone's leader has answered it.
func (g *Grants) Takes(x *grant.Grant) bool { return g.held.Load().Takes(x, time.Now()) }

// pairs names those that this edge could use, in either role, and the epochs in which it was granted them: a change of
// it is a reason to ask at once. A recovery ends every grant of before, and leaves most pairs.
func (g *Grants) pairs(t *policy.Table) string {
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
	for _, pair := range t.Inbound() {
		names = append(names, pair.Policy+"<"+pair.From)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("%d.%d %s", t.Catalog().Epoch, t.Zone().Epoch, strings.Join(names, ","))
}

// Run asks: at once, when the pairs change, and three times within each grant's lifetime. It also asks when there is
// something to tell.
func (g *Grants) Run(ctx context.Context) error {
	for {
		t := g.cfg.Tables.Load()
		pairs := g.pairs(t)
		var err error
		if unsaid := g.unsaid.Swap(false); unsaid || pairs != "" || g.cfg.Untold != nil && g.cfg.Untold() {
			if err = g.ask(ctx, t); err != nil && unsaid {
				g.unsaid.Store(true)
			}
		}
		next := g.every()
		if err != nil || g.lacks(t) {
			next = min(next, time.Second)
		}
		if fault.ReasonOf(err) == "TWIN" && g.cfg.Twin != nil && g.cfg.Twin() {
			next = min(next, twinAgain)
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
		if g.pairs(g.cfg.Tables.Load()) != pairs {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-g.again:
			return true
		case <-changed:
		}
	}
}

// lacks says whether a pair of the table has no live grant of the newest answer, or no leave: the leader may only not have caught up
// yet. A grant of an answer before may end before the next question.
func (g *Grants) lacks(t *policy.Table) bool {
	if len(t.Inbound()) > 0 && g.held.Load().LeaveFor(time.Now()) <= 0 {
		return true
	}
	for _, host := range t.Hosts() {
		p := t.API(host).Policy
		for _, pair := range t.Pairs(p, g.cfg.Self.Region) {
			if x := g.Live(t, p, pair.To); x == nil || x.Asked.Before(g.newest) {
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
	const most = 10 * time.Second
	return max(50*time.Millisecond, g.held.Load().Shortest(3*most)/3)
}

// IsAnswer says whether an error is the zone's own word about its border rules, and not its silence.
func IsAnswer(err error) bool {
	switch fault.ReasonOf(err) {
	case "STALE_TABLE", "RULES_CHANGED", "NOT_ADOPTED", "TWIN":
		return true
	}
	return false
}

func (g *Grants) ask(ctx context.Context, t *policy.Table) error {
	asked, run := time.Now(), ctx
	ctx, cancel := context.WithTimeout(ctx, min(5*time.Second, max(g.every(), 250*time.Millisecond)))
	defer cancel()
	catalog, zone := t.Catalog(), t.Zone()
	resp, err := g.cfg.Requester.RequestGrants(ctx, &syncv1.RequestGrantsRequest{
		Catalog: &syncv1.Position{Epoch: catalog.Epoch, Index: catalog.Index, Sum: catalog.Sum[:]},
		Zone:    &syncv1.Position{Epoch: zone.Epoch, Index: zone.Index, Sum: zone.Sum[:]},

		Incarnation: g.cfg.Incarnation, Dead: g.cfg.Dead(),
	})
	if err != nil {
		kind := fault.KindOf(err)
		switch {
		case run.Err() != nil: // nobody waited for it
		case kind == fault.Denied, kind == fault.Unauthenticated:
			// That is an answer: this edge may relay nothing. Not to be mistaken for silence.
			g.step(grant.Denied, nil, grant.Take{})
			g.cfg.Logger.Warn("grants denied", "error", err)
		case IsAnswer(err):
			g.step(grant.Behind, nil, grant.Take{})
			g.cfg.Logger.Info("grants wait", "error", err)
		default:
			if !g.held.Load().Away() {
				g.cfg.Logger.Warn("control plane does not answer for grants, offline lifetimes count", "error", err)
			}
			g.step(grant.Silent, nil, grant.Take{})
		}
		return err
	}
	var given []*grant.Grant
	for _, signed := range resp.Grants {
		x, err := g.take(t, signed, asked)
		if err != nil {
			g.cfg.Logger.Warn("grant refused", "reason", fault.ReasonOf(err), "error", err)
			continue
		}
		given = append(given, x)
	}
	if g.held.Load().Away() {
		g.cfg.Logger.Info("control plane answers for grants again")
	}
	g.newest = asked
	g.step(grant.Given, given, grant.Take{Asked: asked, Lasts: millis(resp.TakesMs)})
	return nil
}

func (g *Grants) take(t *policy.Table, signed *syncv1.SignedGrant, asked time.Time) (*grant.Grant, error) {
	x, err := Verify(t, signed)
	if err != nil {
		return nil, err
	}
	self := g.cfg.Self
	me := grant.Party{Zone: self.Zone, Region: self.Region, Process: grant.Process{Edge: self.Node, Incarnation: g.cfg.Incarnation}}
	if reason := x.Mine(me, at(t)); reason != "" {
		return nil, fault.New(fault.Denied, reason, "take grant %s: it is for run %q of edge %s in region %s of zone %s, epochs %d and %d", x.ID, x.Incarnation, x.Edge, x.From, x.Zone, x.Catalog.Epoch, x.Store.Epoch)
	}
	x.Asked = asked
	return x, nil
}
