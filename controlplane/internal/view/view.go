// Package view owns what one data plane may hold now: it turns the catalog and a zone store into the
// objects of that edge's table, and says what differs between two such answers.
//
// It is pure: no clock, no I/O, no randomness; time comes in as an argument and View.NextChange says when
// the answer changes by time alone. Default deny: what no rule here puts in, no edge gets. It never sends
// anything (syncserver does) and keeps nothing a crash could lose. A View never changes after Build and may
// be shared; Keys change in place and belong to one goroutine at a time.
package view

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// View is all that one edge holds but the API keys, which are the same for every edge of a zone (Keys).
type View struct {
	Objects    map[table.ObjectKey]table.Object
	Ordered    []table.Object // the same, by kind and id: the order in which they are sent
	CatalogSum revision.Sum   // of the objects of the catalog's scope
	PairSum    revision.Sum   // of the objects of the zone's scope that are no keys: pairs and drains
	// NextChange is when this answer may change without any write: the next end of a legal basis. Zero: never.
	NextChange time.Time
}

// Closed is the view without any pair: what an edge may hold while its present view cannot be built. The rest
// of it was good once and stays; a permission to relay that may be gone does not.
func (v *View) Closed() *View {
	c := *v
	c.Objects = make(map[table.ObjectKey]table.Object, len(v.Objects))
	for key, o := range v.Objects {
		if key.Kind == table.KindPair {
			c.PairSum = c.PairSum.Sub(o.Sum())
			continue
		}
		c.Objects[key] = o
	}
	c.order()
	return &c
}

func (v *View) order() {
	v.Ordered = slices.SortedFunc(maps.Values(v.Objects), func(a, b table.Object) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
	})
}

// ZoneSum is the sum of the zone's scope as the edge holds it.
func (v *View) ZoneSum(k *Keys) revision.Sum { return v.PairSum.Add(k.Sum()) }

// Build makes the view of one edge. It is an error of kind Denied if the edge is no edge, its region is
// unknown, control-only or of another zone than the edge's; of kind Internal if a stored value does not read.
//
// level is that of the fields that the edge knows. An edge of level 0 would serve by what it knows of an object, so it gets
// none that forbids more; from level 1 on edges see to that themselves, and say so. Nor does it get the kinds that are in the
// zone's scope since then: it would count them to the catalog's, and refuse every table with one of them.
func Build(catalog, zone group.Snapshot, edge model.Node, level table.Level, now time.Time) (*View, error) {
	b := builder{catalog: catalog, zone: zone, edge: edge, level: level, now: now, view: &View{Objects: map[table.ObjectKey]table.Object{}}}
	steps := []func() error{b.holdBack, b.region, b.rules, b.settings, b.apis, b.plans, b.switches, b.pairs, b.peers, b.doors, b.purges, b.targets}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("build view of %s: %w", edge.Name, err)
		}
	}
	b.view.order()
	return b.view, nil
}

type builder struct {
	catalog, zone group.Snapshot // the catalog as this edge is to hold it
	edge          model.Node
	level         table.Level
	now           time.Time
	view          *View
	through       []group.KV     // what policies said in between: pairs must be permitted by these as well
	loosened      group.Snapshot // the catalog's border rules without what this edge is not to hold yet; nil: there is no such thing

	zones   map[string]string // region → zone
	serving []model.Region    // of the own zone
	allowed []table.Pair      // pairs that involve this region
	own     map[string]bool   // names of the own zone's APIs
	seeking map[string]bool   // of them, those for which the zone looks for upstreams
	// networks are those of this region's upstreams; none: no bound.
	networks []string
	// regionNeeds is what an edge must know to serve anything here.
	regionNeeds table.Level
}

func (b *builder) put(kind table.Kind, id string, value any) error {
	o, err := table.Encode(kind, id, value)
	if err != nil {
		return err
	}
	if _, dup := b.view.Objects[o.Key()]; dup {
		return fault.New(fault.Internal, "OBJECT_DUPLICATE", "%s %s comes from two records", kind, id)
	}
	b.view.Objects[o.Key()] = o
	if kind.Scope() == table.ScopeZone {
		b.view.PairSum = b.view.PairSum.Add(o.Sum())
	} else {
		b.view.CatalogSum = b.view.CatalogSum.Add(o.Sum())
	}
	return nil
}

// each decodes every value below a prefix.
func each[T any](s group.Snapshot, prefix string, f func(kv group.KV, v T) error) error {
	for kv := range s.List(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err == nil {
			err = f(kv, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) region() error {
	denied := func(what string) error {
		return fault.New(fault.Denied, "EDGE_REGION_REFUSED", "region %s of edge %s %s", b.edge.Region, b.edge.Name, what)
	}
	if b.edge.Kind != "edge" {
		return fault.New(fault.Denied, "NOT_AN_EDGE", "node %s is no edge", b.edge.Name)
	}
	b.zones = map[string]string{}
	var own *model.Region
	err := each(b.catalog, model.PrefixRegion, func(_ group.KV, r model.Region) error {
		b.zones[r.Name] = r.Zone
		if r.Zone == b.edge.Zone && !r.ControlOnly {
			b.serving = append(b.serving, r)
		}
		if r.Name == b.edge.Region {
			own = &r
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case own == nil:
		return denied("is not in the catalog")
	case own.ControlOnly:
		return denied("is control-only: no edge serves there")
	case own.Zone != b.edge.Zone:
		return denied("belongs to another zone")
	}
	b.networks = own.UpstreamNetworks
	b.regionNeeds = model.NeedsOf(*own).Edges
	return nil
}

// rules finds the pairs that involve this region and carry requests: what the zone has adopted, less its
// closures, and of that what the zone's leader has noticed as permitted. The latter makes a tightening a place
// in the log, whatever the clock here says of a legal basis that ends: a table of that place or later lacks
// the pair, and the leader counts on that when it says that it is in force. For pairs that come in from another zone that is the receiver's half of the answer; the sender's zone has its own.
func (b *builder) rules() error {
	kv, ok := b.zone.Get(model.KeyAdopted)
	if !ok {
		return nil // nothing adopted yet, nothing permitted
	}
	adopted, err := model.Decode[model.Adopted](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	set, err := adopted.Compile()
	if err != nil {
		return fmt.Errorf("compile adopted rules: %w", err)
	}
	var stored []model.Closure
	err = each(b.zone, model.PrefixClosure, func(_ group.KV, c model.Closure) error {
		stored = append(stored, c)
		return nil
	})
	if err != nil {
		return err
	}
	var crossing *model.Crossing
	if kv, ok := b.zone.Get(model.KeyCrossing); ok {
		c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		crossing = &c
	}
	closures := model.Closures(stored, crossing, adopted, b.zone.Revision().Epoch)
	for _, basis := range adopted.Bases {
		rule, err := basis.Rule()
		if err != nil {
			return err
		}
		if rule.Expires.After(b.now) && (b.view.NextChange.IsZero() || rule.Expires.Before(b.view.NextChange)) {
			b.view.NextChange = rule.Expires
		}
	}
	pairs := grant.Touching(set.Pairs(b.now, closures), func(region string) bool { return region == b.edge.Region })
	if kv, ok := b.zone.Get(model.KeyPermitted); ok { // else the leader has not looked yet, nor granted anything
		permitted, err := model.Decode[model.Permitted](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		var baseline []grant.Pair
		for _, p := range permitted.Pairs {
			baseline = append(baseline, grant.Pair(p))
		}
		pairs = grant.Noticed(pairs, baseline)
	}
	if pairs, err = b.notYet(adopted, pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		from, _ := set.Region(p.From)
		to, _ := set.Region(p.To)
		b.allowed = append(b.allowed, table.Pair{Policy: p.Policy, From: p.From, To: p.To, FromZone: from.Zone, ToZone: to.Zone,
			Basis: p.Basis, Classes: p.Classes, Priority: p.Priority, OfflineGrant: p.OfflineGrant})
	}
	return nil
}

func (b *builder) settings() error {
	return b.put(table.KindSettings, table.SettingsID, table.Settings{Zone: b.edge.Zone, Region: b.edge.Region, UpstreamNetworks: b.networks})
}

func (b *builder) apis() error {
	b.own, b.seeking = map[string]bool{}, map[string]bool{}
	return each(b.catalog, model.PrefixAPI, func(_ group.KV, a model.API) error {
		if a.Zone == b.edge.Zone {
			return b.ownAPI(a)
		}
		if err := b.put(table.KindDirectory, table.DirectoryID(a.Zone, a.Name), table.Directory{API: a.Name, Zone: a.Zone, Hosts: sorted(a.Hosts)}); err != nil {
			return err
		}
		return b.foreignAPI(a)
	})
}

func (b *builder) ownAPI(a model.API) error {
	b.own[a.Name], b.seeking[a.Name] = true, a.Dispatch.Discovery == "etcd"
	out := b.api(a)
	if !slices.ContainsFunc(out.Regions, func(r string) bool { return b.zones[r] == a.Zone }) {
		return nil // nowhere at home: nobody could accept it
	}
	if b.level == 0 && out.Needs > 0 {
		return nil
	}
	out.Hosts = sorted(a.Hosts)
	out.Auth = a.Callers()
	if slices.ContainsFunc(append([]model.Shaping{a.Shaping}, shapings(a.Routes)...), func(s model.Shaping) bool { return s.Validation != nil && s.Validation.Requests == "openapi" }) {
		out.OpenAPI = a.OpenAPI
	}
	return b.put(table.KindAPI, table.APIID(out), out)
}

// foreignAPI is pushed only where a pair of its policy leads from its zone to this region, and only what a
// receiver of relays needs.
func (b *builder) foreignAPI(a model.API) error {
	into := func(p table.Pair) bool {
		return p.Policy == a.Policy && p.To == b.edge.Region && p.FromZone == a.Zone
	}
	out := b.api(a)
	if len(out.Targets) == 0 || !slices.ContainsFunc(b.allowed, into) {
		return nil
	}
	if b.level == 0 && out.Needs > 0 {
		return nil
	}
	out.Foreign, out.Regions = true, []string{b.edge.Region}
	return b.put(table.KindAPI, table.APIID(out), out)
}

// api leaves out the upstreams of other regions: an edge that does not know them cannot dial them.
func (b *builder) api(a model.API) *table.API {
	out := &table.API{Name: a.Name, Zone: a.Zone, Policy: a.Policy, HealthPath: a.Health.Path, HealthInterval: a.Health.Interval,
		HealthTimeout: a.Health.Timeout, HealthFailures: a.Health.Failures, HealthGoodFor: a.Health.GoodFor,
		Dispatch: table.Dispatch(a.Dispatch), TLS: table.UpstreamTLS(a.UpstreamTLS), Needs: max(model.NeedsOf(a).Edges, b.regionNeeds)}
	if a.Health.Protocol == model.HealthGRPC {
		out.HealthGRPC = &a.Health.Service
	}
	for _, r := range a.Routes {
		cors, rewrite, validation := r.Shape()
		out.Routes = append(out.Routes, table.Route{Name: r.Name, Methods: r.Methods, PathPrefix: r.PathPrefix, Timeout: r.Timeout, MaxRequestBytes: r.MaxRequestBytes,
			Scope: r.Scope, Deadline: r.Deadline, MaxResponseBytes: r.MaxResponseBytes, Free: r.Free, Units: r.Costs(), HedgeAfter: r.HedgeAfter, GRPCWeb: r.TranslatesGRPCWeb(), Cache: (*table.Cache)(r.Cache), WebSocket: (*table.WebSocket)(r.WebSocket),
			CORS: cors, Rewrite: rewrite, Validation: validation, GraphQL: r.GraphQL.Bounds()})
	}
	for _, u := range a.Upstreams {
		if u.Region == b.edge.Region && !u.Drain {
			out.Targets = append(out.Targets, u.URL)
			if u.Multiplexed() {
				if out.Protocols == nil {
					out.Protocols = map[string]string{}
				}
				out.Protocols[u.URL] = u.Protocol
			}
		}
		if _, known := b.zones[u.Region]; known && !slices.Contains(out.Regions, u.Region) {
			out.Regions = append(out.Regions, u.Region)
		}
	}
	if p := b.spoken(a); p != "" {
		if out.Protocols == nil {
			out.Protocols = map[string]string{}
		}
		out.Protocols[table.FoundTargets] = p
	}
	slices.Sort(out.Regions)
	out.TCP = (*table.TCP)(a.TCP)
	out.CORS, out.Rewrite, out.Validation = a.Shape()
	if c := a.Concurrency; c != nil {
		out.Concurrency = &table.Concurrency{Min: c.Min, Max: c.Max}
	}
	return out
}

// spoken is what upstreams of this region speak that are found and not named: what all speak there that are, drained ones too.
func (b *builder) spoken(a model.API) (protocol string) {
	if a.Dispatch.Discovery != "etcd" {
		return ""
	}
	first := true
	for _, u := range a.Upstreams {
		if u.Region != b.edge.Region {
			continue
		}
		said := ""
		if u.Multiplexed() {
			said = u.Protocol
		}
		if !first && said != protocol {
			return ""
		}
		protocol, first = said, false
	}
	return protocol
}

func shapings(routes []model.Route) (out []model.Shaping) {
	for _, r := range routes {
		out = append(out, r.Shaping)
	}
	return out
}

func (b *builder) plans() error {
	products := map[string]model.Product{}
	err := each(b.catalog, model.PrefixProduct, func(_ group.KV, p model.Product) error {
		products[p.Name] = p
		return nil
	})
	if err != nil {
		return err
	}
	return each(b.catalog, model.PrefixPlan, func(kv group.KV, p model.Plan) error {
		out := table.Plan{Name: p.Name, Rev: kv.ModIndex, APIs: map[string]string{}, MaxKeyStaleness: p.MaxKeyStaleness, MaxConcurrent: p.MaxConcurrent, Class: p.PriorityClass, Needs: model.NeedsOf(p).Edges}
		if b.level == 0 && out.Needs > 0 {
			return nil
		}
		for _, w := range p.RateLimits {
			out.Windows = append(out.Windows, table.Window(w))
		}
		for _, name := range p.Products {
			for _, api := range products[name].APIs {
				// The first product that sells an API is the one its usage is booked on.
				if _, sold := out.APIs[api]; !sold && b.own[api] {
					out.APIs[api] = name
					if products[name].FreeCacheHits {
						out.FreeHits = append(out.FreeHits, api)
					}
				}
			}
		}
		if r := p.RateLimit; r != nil {
			out.RequestsPerSecond, out.Burst = r.RequestsPerSecond, r.Burst
			if out.Burst == 0 {
				out.Burst = r.RequestsPerSecond
			}
		}
		if q := p.Quota; q != nil {
			out.QuotaUnits, out.QuotaPeriod, out.QuotaMode = q.Units, q.Period, q.Mode
			out.QuotaWindow, out.QuotaGrace = q.Window, q.GracePercent
			if out.QuotaPeriod == "" {
				out.QuotaPeriod = "month"
			}
			if out.QuotaMode == "" {
				out.QuotaMode = "soft"
			}
		}
		return b.put(table.KindPlan, p.Name, out)
	})
}

// switches are what is turned off here.
func (b *builder) switches() error {
	off := map[table.Switch]bool{}
	err := each(b.catalog, model.PrefixSwitch, func(_ group.KV, s model.Switch) error {
		if s.Off && (s.Region == "" || s.Region == b.edge.Region) {
			off[table.Switch{Feature: s.Feature, API: s.API}] = true
		}
		return nil
	})
	for s := range off {
		err = errors.Join(err, b.put(table.KindSwitch, table.SwitchID(s), s))
	}
	return err
}

func (b *builder) pairs() error {
	for _, p := range b.allowed {
		if err := b.put(table.KindPair, table.PairID(p.Policy, p.From, p.To), p); err != nil {
			return err
		}
	}
	return nil
}

// peers are who may relay to this region, and the keys that sign their grants.
func (b *builder) peers() error {
	senders, signers := map[string]bool{}, map[string]bool{b.edge.Zone: true}
	for _, p := range b.allowed {
		if p.To == b.edge.Region {
			senders[p.From], signers[p.FromZone] = true, true
		}
	}
	err := each(b.catalog, model.PrefixNode, func(_ group.KV, n model.Node) error {
		if n.Kind != "edge" || !senders[n.Region] {
			return nil
		}
		return b.put(table.KindNode, n.Name, table.Node{Name: n.Name, Zone: n.Zone, Region: n.Region})
	})
	if err != nil {
		return err
	}
	return each(b.catalog, model.PrefixZone, func(_ group.KV, z model.Zone) error {
		if !signers[z.Name] || len(z.SigningKey) == 0 {
			return nil
		}
		return b.put(table.KindZoneKey, z.Name, table.ZoneKey{Zone: z.Name, PublicKey: z.SigningKey})
	})
}

// doors are the edges of this zone and where clients reach them, which is what DNS answers are made of; of no
// other zone: what an edge does not know it cannot answer. One without doors is named too: it may ask others how
// they are.
func (b *builder) doors() error {
	for _, r := range b.serving {
		if err := b.put(table.KindRegion, r.Name, table.Region{Name: r.Name, Zone: r.Zone, Clients: r.ClientSubnets, Drain: r.Drain}); err != nil {
			return err
		}
	}
	err := each(b.zone, model.PrefixDrain, func(_ group.KV, d model.Drain) error {
		if !slices.ContainsFunc(b.serving, func(r model.Region) bool { return r.Name == d.Name }) {
			return nil // of a region that is gone
		}
		return b.put(table.KindDrain, d.Name, table.Drain{Region: d.Name, Reason: d.Reason})
	})
	if err != nil {
		return err
	}
	return each(b.catalog, model.PrefixNode, func(_ group.KV, n model.Node) error {
		if n.Kind != "edge" || n.Zone != b.edge.Zone || b.zones[n.Region] != b.edge.Zone {
			return nil
		}
		out := table.Doors{Edge: n.Name, Region: n.Region, Zone: n.Zone}
		if d := n.Doors; d != nil {
			out.Addresses, out.HTTPSPort, out.DNS = d.Addresses, d.HTTPSPort, d.DNS
		}
		return b.put(table.KindDoors, n.Name, out)
	})
}

// purges are of APIs that this edge may keep answers of.
func (b *builder) purges() error {
	if b.level == 0 {
		return nil
	}
	return each(b.zone, model.PrefixPurge, func(_ group.KV, p model.Purges) error {
		if _, held := b.view.Objects[table.ObjectKey{Kind: table.KindAPI, ID: p.API}]; !held {
			return nil
		}
		out := table.Purges{API: p.API, All: p.All}
		for _, o := range p.Of {
			out.Of = append(out.Of, table.Purge{Seq: o.Seq, What: o.What, Soft: o.Soft})
		}
		return b.put(table.KindPurges, p.API, out)
	})
}

// targets are what was found for APIs that ask for it, in this region.
func (b *builder) targets() error {
	if b.level == 0 {
		return nil
	}
	return each(b.zone, model.PrefixTargets, func(_ group.KV, found model.Targets) error {
		if !b.seeking[found.API] {
			return nil
		}
		for _, r := range found.Of {
			if r.Region == b.edge.Region {
				return b.put(table.KindTargets, found.API, table.Targets{API: found.API, URLs: r.URLs})
			}
		}
		return nil
	})
}

// sorted copies: snapshots are shared.
func sorted(hosts []string) []string {
	out := make([]string, 0, len(hosts))
	for _, h := range hosts {
		out = append(out, strings.ToLower(h))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Diff names the objects that are in one view and not the other, or differ. nil is the empty view.
func Diff(old, new *View) []table.ObjectKey {
	var changed []table.ObjectKey
	if new != nil {
		for key, o := range new.Objects {
			if old != nil {
				if was, ok := old.Objects[key]; ok && bytes.Equal(was.Data, o.Data) {
					continue
				}
			}
			changed = append(changed, key)
		}
	}
	if old != nil {
		for key := range old.Objects {
			if new != nil {
				if _, ok := new.Objects[key]; ok {
					continue
				}
			}
			changed = append(changed, key)
		}
	}
	return changed
}

// Depends says whether events below this key of a zone store can change a View (Keys aside).
func Depends(key string) bool {
	return strings.HasPrefix(key, model.PrefixDrain) || strings.HasPrefix(key, model.PrefixPurge) || strings.HasPrefix(key, model.PrefixTargets) || key == model.KeyAdopted || key == model.KeyCrossing || key == model.KeyPermitted || strings.HasPrefix(key, model.PrefixClosure)
}

// DependsOnCatalog says whether events below this key of the catalog can change a View.
func DependsOnCatalog(key string) bool {
	return !strings.HasPrefix(key, model.PrefixWord) && !strings.HasPrefix(key, model.PrefixRollout) && !strings.HasPrefix(key, model.PrefixLevel) &&
		!strings.HasPrefix(key, model.PrefixCluster) && !strings.HasPrefix(key, model.PrefixRelease)
}
