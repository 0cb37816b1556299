package border

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/proto"
)

// grantText is what a grant's signature covers besides its payload.
const grantText = "bailiwick-grant/1\n"

// past is all that a new leader finds of grants that edges may still hold.
func (k *Keeper) past(now time.Time) (grant.Past, error) {
	p := grant.Past{Edges: map[string]string{}}
	zone := k.cfg.Store.Local()
	var all []grant.Life // the most that anybody may hold
	if a, _, err := adopted(zone); err == nil {
		if set, err := a.Compile(); err == nil {
			for _, x := range set.Pairs(now, nil) { // without closures: a closed pair may still be granted
				p.Rules = append(p.Rules, grant.Life{To: x.To, Lasts: x.OfflineGrant})
			}
			for _, r := range a.Regions {
				all = append(all, grant.Life{To: r.Name, Lasts: regions.MaxOfflineGrant})
			}
		}
	}
	if pending, err := list[model.InForce](zone, model.PrefixInForce); err == nil {
		for _, r := range pending {
			p.Targets = append(p.Targets, r.To)
		}
	}
	if recoveries, err := list[model.Recovery](zone, model.PrefixRecovery); err != nil {
		p.Lost = regions.MaxOfflineGrant
	} else {
		for _, r := range recoveries { // what it lost may have been grants, and the policies that allowed them
			if now.Before(r.At.Add(grant.Slack(regions.MaxOfflineGrant))) {
				p.Lost = regions.MaxOfflineGrant
			}
		}
	}
	registry, err := nodes(k.cfg.Catalog.Local())
	if err != nil {
		return p, err
	}
	for name, n := range registry {
		if n.Kind == "edge" && n.Zone == k.cfg.Zone {
			p.Edges[name] = n.Region
		}
	}
	for kv := range zone.List(model.PrefixGrant) {
		r, err := model.Decode[model.GrantRecord](kv.Key, kv.Value)
		if err != nil { // of a newer release, perhaps, which knows of lifetimes that this one does not
			edge := strings.TrimPrefix(kv.Key, model.PrefixGrant)
			k.cfg.Logger.Error("record of grants does not read: tightenings wait for the edge as if it held all for the longest time there is", "edge", edge, "error", err)
			p.Records = append(p.Records, grant.Record{Process: grant.Process{Edge: edge}, Region: p.Edges[edge], Given: all})
			continue
		}
		p.Records = append(p.Records, recorded(r))
	}
	return p, nil
}

func recorded(r model.GrantRecord) grant.Record {
	x := grant.Record{Process: grant.Process{Edge: r.Edge, Incarnation: r.Incarnation}, Region: r.Region}
	for _, g := range r.Grants {
		x.Given = append(x.Given, grant.Life{To: g.To, Lasts: time.Duration(g.TTLMS) * time.Millisecond})
	}
	if r.TakesMS > 0 {
		x.Given = append(x.Given, grant.Life{To: r.Region, Lasts: time.Duration(r.TakesMS) * time.Millisecond})
	}
	earlier := func(incarnation string, left map[string]int64) {
		for to, ms := range left {
			x.Earlier = append(x.Earlier, grant.Left{Incarnation: incarnation, Life: grant.Life{To: to, Lasts: time.Duration(ms) * time.Millisecond}})
		}
	}
	earlier(r.Incarnation, r.EarlierMS)
	for incarnation, left := range r.Others {
		earlier(incarnation, left)
	}
	return x
}

// Grant gives an edge its permissions to relay, one grant for each target region. edge and region are as the
// carrying node authenticated them. The order matters: read the rules, log the grants (which a quorum
// confirms), look at the rules again, and only then hand out what still holds.
func (k *Keeper) Grant(ctx context.Context, edge, region string, req *syncv1.RequestGrantsRequest) (*syncv1.RequestGrantsResponse, error) {
	now := time.Now()
	zone, catalog := k.cfg.Store.Local(), k.cfg.Catalog.Local()
	registry, err := nodes(catalog)
	if err != nil {
		return nil, fmt.Errorf("read the node registry: %w", err)
	}
	if at := catalog.Revision(); registry[edge].Name == "" && at.Less(group.Revision{Epoch: req.GetCatalog().GetEpoch(), Index: req.GetCatalog().GetIndex()}) {
		return nil, fault.New(fault.Unavailable, "CATALOG_BEHIND", "edge %s is not in the node registry as of catalog %s, and has itself seen more", edge, at)
	}
	if n, ok := registry[edge]; !ok || n.Kind != "edge" || n.Region != region || n.Zone != k.cfg.Zone {
		return nil, fault.New(fault.Denied, "WITHDRAWN", "edge %s of region %s is not in the node registry; it gets no grant", edge, region)
	}
	process := grant.Process{Edge: edge, Incarnation: req.GetIncarnation()}
	if !process.Reads(req.GetDead()) {
		return nil, fault.New(fault.Invalid, "INCARNATION_MALFORMED", "edge %s says which run of it this is, and which have ended, in a way that does not read", edge)
	}
	if err := k.fresh(zone, req); err != nil {
		return nil, err
	}
	pairs, err := Permitted(zone, k.cfg.Zone, now)
	if err != nil {
		return nil, err
	}
	// What was not noticed as permitted is not granted: no tightening of it would be noticed either.
	baseline, mod, err := baseline(zone)
	if err != nil {
		return nil, err
	}
	peers := peersBy(registry)
	pairs = grant.Noticed(pairs, baseline)
	offers := grant.Offers(pairs, region, k.cfg.TTL, func(to string) bool { return len(peers[to]) > 0 })
	takes := grant.Takes(pairs, region, k.cfg.TTL)
	record := model.GrantRecord{Edge: edge, Region: region, GrantedAt: now.UTC(), Incarnation: process.Incarnation, TakesMS: takes.Milliseconds()}
	if record.Relays, record.Refusals, err = told(req); err != nil {
		return nil, err
	}
	k.mu.Lock()
	if k.term == nil {
		k.mu.Unlock()
		return nil, notLeader()
	}
	k.term.book.Bury(edge, req.GetDead(), now) // also of who is given nothing: a tightening may wait for what they held
	k.mu.Unlock()
	if len(offers) == 0 && takes == 0 && len(record.Relays) == 0 && len(record.Refusals) == 0 {
		return &syncv1.RequestGrantsResponse{}, nil
	}
	ids := make([]string, len(offers))
	for i, o := range offers {
		ids[i] = newID()
		record.Grants = append(record.Grants, model.Granted{ID: ids[i], From: region, To: o.To, Policies: slices.Clone(o.Policies), TTLMS: o.OfflineTTL.Milliseconds()})
	}
	// Before the record: from here on this leader counts the grant as given, whatever becomes of the answer.
	k.mu.Lock()
	if k.term == nil {
		k.mu.Unlock()
		return nil, notLeader()
	}
	if elder := k.term.book.Elder(process, now); elder != "" {
		k.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "TWIN", "edge %s runs twice: process %q gets nothing while process %q speaks; stop one of the two machines, and give a copy an identity of its own", edge, process.Incarnation, elder)
	}
	for _, l := range k.term.book.Give(process, region, grant.Lives(offers), takes, now).Earlier {
		if l.Incarnation == process.Incarnation {
			put(&record.EarlierMS, l.To, l.Lasts.Milliseconds())
			continue
		}
		others := record.Others[l.Incarnation]
		put(&others, l.To, l.Lasts.Milliseconds())
		put(&record.Others, l.Incarnation, others)
	}
	k.mu.Unlock()
	last, _ := zone.Get(model.PrefixGrant + edge) // two processes of one name must not write over each other's record
	result, err := k.cfg.Store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: model.KeyPermitted, ModIndex: mod}, {Key: model.PrefixGrant + edge, ModIndex: last.ModIndex}},
		Ops:      []group.Op{{Key: model.PrefixGrant + edge, Value: model.Encode(record)}},
	})
	if err != nil {
		return nil, fmt.Errorf("log the grants of edge %s: %w", edge, err)
	}
	if !result.Succeeded {
		return nil, fault.New(fault.Unavailable, "RULES_CHANGED", "the border rules, or what the edge was granted last, changed while edge %s was being granted; ask again", edge)
	}
	if err := k.cfg.Store.VerifyLeader(ctx); err != nil {
		return nil, err
	}
	still, err := Permitted(k.cfg.Store.Local(), k.cfg.Zone, time.Now())
	if err != nil {
		return nil, err
	}
	response := &syncv1.RequestGrantsResponse{TakesMs: min(takes, grant.Takes(still, region, k.cfg.TTL)).Milliseconds()}
	for i, o := range offers {
		if !o.Confirm(region, still) {
			continue
		}
		g := k.compose(zone, process, region, ids[i], o, now)
		g.Peers = peers[o.To]
		payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(g)
		if err != nil {
			return nil, err
		}
		response.Grants = append(response.Grants, &syncv1.SignedGrant{Payload: payload, Signature: ed25519.Sign(k.cfg.Signer, append([]byte(grantText), payload...))})
	}
	return response, nil
}

func put[V any](m *map[string]V, key string, v V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = v
}

// fresh refuses an edge that has not applied the newest change of permitted pairs: a stale edge gets nothing
// but policy (invariant 9).
func (k *Keeper) fresh(zone group.Snapshot, req *syncv1.RequestGrantsRequest) error {
	last, ok := zone.Get(model.KeyPermitted)
	if !ok {
		return fault.New(fault.Unavailable, "NOT_ADOPTED", "zone %s has adopted no border rules yet; ask again", k.cfg.Zone)
	}
	held := req.GetZone()
	if !grant.FreshTable(held.GetEpoch(), held.GetIndex(), zone.Revision().Epoch, last.ModIndex) {
		return fault.New(fault.Unavailable, "STALE_TABLE", "the edge holds zone position %d.%d and border rules changed at %d.%d; apply that first",
			held.GetEpoch(), held.GetIndex(), zone.Revision().Epoch, last.ModIndex)
	}
	return nil
}

// compose writes out the grant that an offer has become.
func (k *Keeper) compose(zone group.Snapshot, p grant.Process, region, id string, o grant.Offer, now time.Time) *syncv1.Grant {
	a, _, _ := adopted(zone)
	revision := zone.Revision()
	return &syncv1.Grant{Id: id, Zone: k.cfg.Zone, Edge: p.Edge, Incarnation: p.Incarnation, From: region, To: o.To, Policies: o.Policies,
		CatalogEpoch: a.CatalogEpoch, CatalogIndex: a.CatalogIndex, ZoneEpoch: revision.Epoch, ZoneIndex: revision.Index,
		GrantedUnixMs: now.UnixMilli(), TtlMs: o.TTL.Milliseconds(), OfflineTtlMs: o.OfflineTTL.Milliseconds()}
}

// peersBy are the edges that take relays, by region, in order of their names.
func peersBy(registry map[string]model.Node) map[string][]*syncv1.Peer {
	out := map[string][]*syncv1.Peer{}
	for name, n := range registry {
		if n.Kind == "edge" && n.RelayAddr != "" {
			out[n.Region] = append(out[n.Region], &syncv1.Peer{Edge: name, RelayAddr: n.RelayAddr})
		}
	}
	for _, peers := range out {
		slices.SortFunc(peers, func(a, b *syncv1.Peer) int { return strings.Compare(a.Edge, b.Edge) })
	}
	return out
}

func newID() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Report takes what control nodes of the zone say of the edges connected to them. Only the leader keeps it.
func (k *Keeper) Report(edges []*peerv1.EdgeReport) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.term == nil {
		return notLeader()
	}
	now := time.Now()
	for _, e := range edges {
		p := grant.Process{Edge: e.GetEdge(), Incarnation: e.GetIncarnation()}
		if !p.Reads(e.GetDead()) {
			continue // its node has let it in by mistake: nobody has acknowledged anything
		}
		k.term.book.Bury(p.Edge, e.GetDead(), now)
		for _, incarnation := range e.GetDead() {
			delete(k.term.reports, grant.Process{Edge: p.Edge, Incarnation: incarnation})
		}
		if k.term.book.Hear(grant.Word{Process: p, Region: e.GetRegion(), By: e.GetControl(), Connected: e.GetConnected(), Spoke: e.GetLastSeen().AsTime(),
			Epoch: e.GetZone().GetEpoch(), Index: e.GetZone().GetIndex()}, now) {
			k.term.reports[p] = e
		}
	}
	for p := range k.term.reports {
		if !k.term.book.Known(p) {
			delete(k.term.reports, p)
		}
	}
	return nil
}

// Reports returns the latest word of every edge, marking those of whom nobody spoke lately as disconnected. Of
// processes of one name a connected one speaks for it.
func (k *Keeper) Reports() ([]*peerv1.EdgeReport, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.term == nil {
		return nil, notLeader()
	}
	now := time.Now()
	best := map[string]*peerv1.EdgeReport{}
	for p, e := range k.term.reports {
		e = proto.CloneOf(e)
		e.Connected = k.term.book.Connected(p, now)
		e.Twins = k.term.book.Twins(p.Edge, now)
		old := best[p.Edge]
		if old == nil || e.Connected && !old.Connected || e.Connected == old.Connected && old.GetLastSeen().AsTime().Before(e.GetLastSeen().AsTime()) {
			best[p.Edge] = e
		}
	}
	out := slices.Collect(maps.Values(best))
	slices.SortFunc(out, func(a, b *peerv1.EdgeReport) int { return strings.Compare(a.Edge, b.Edge) })
	return out, nil
}
