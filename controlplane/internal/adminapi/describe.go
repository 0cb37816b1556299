package adminapi

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/table"
)

// maxReferrers bounds what is listed of each kind that refers to one thing: a plan may have a million customers.
const maxReferrers = 100

// Describe answers from what this node can get fresh, or has: it is asked when things are down.
func (s *server) Describe(ctx context.Context, req *adminv1.DescribeRequest) (*adminv1.DescribeResponse, error) {
	k, err := parseKind(req.GetKind())
	if err != nil {
		return nil, err
	}
	if err := readKind(ctx, k.Name); err != nil {
		return nil, err
	}
	cat, zone := state{snap: s.freshOrLocal(ctx, s.Catalog)}, state{snap: s.freshOrLocal(ctx, s.Store)}
	snap := cat.snap
	if k.Zonal {
		snap = zone.snap
	}
	kv, err := find(snap, k, req.GetName())
	if err != nil {
		return nil, err
	}
	rec, err := decode(k.Name, kv)
	if err != nil {
		return nil, err
	}
	d := describer{s: s, cat: cat, zone: zone, customers: readKind(ctx, "Customer") == nil, out: &adminv1.DescribeResponse{
		Resource: toProto(rec, versionOf(snap, kv)), CreatedIndex: kv.CreateIndex, ChangedIndex: kv.ModIndex, Writes: kv.Version}}
	d.out.RefersTo = refersTo(rec)
	for _, r := range d.out.RefersTo {
		r.Missing = !d.exists(r)
	}
	if err := d.referredBy(rec); err != nil {
		return nil, err
	}
	if err := d.holders(ctx, rec, kv); err != nil {
		return nil, err
	}
	if r, ok, err := stored[model.Rollout](cat.snap, model.KeyRollout); err != nil {
		return nil, err
	} else if _, held := cat.snap.Get(model.PrefixHeld + kv.Key); ok && held {
		d.out.Notes = append(d.out.Notes, fmt.Sprintf("roll-out %s takes the latest change of it to edges ring by ring: bailiwick rollout get %s", r.Name(), r.Name()))
	}
	return d.out, d.notes(rec)
}

// refersTo are the other resources that one names.
func refersTo(rec record) (out []*adminv1.Reference) {
	use := func(kind, name, format string, args ...any) {
		if name != "" {
			out = append(out, &adminv1.Reference{Kind: kind, Name: name, Field: fmt.Sprintf(format, args...)})
		}
	}
	switch v := rec.(type) {
	case model.Region:
		use("Zone", v.Zone, "spec.zone")
	case model.Policy:
		use("Zone", v.Zone, "spec.zone")
		if v.WithinZone != nil {
			use("LegalBasis", v.WithinZone.Basis, "spec.within_zone.basis")
		}
		for i, p := range v.Pairs {
			use("Region", p.From, "spec.pairs[%d].from", i)
			use("Region", p.To, "spec.pairs[%d].to", i)
			use("LegalBasis", p.Basis, "spec.pairs[%d].basis", i)
		}
	case model.API:
		use("Zone", v.Zone, "spec.zone")
		use("Policy", v.Policy, "spec.policy")
		for i, u := range v.Upstreams {
			use("Region", u.Region, "spec.upstreams[%d].region", i)
		}
	case model.Product:
		for i, name := range v.APIs {
			use("API", name, "spec.apis[%d]", i)
		}
	case model.Plan:
		for i, name := range v.Products {
			use("Product", name, "spec.products[%d]", i)
		}
	case model.Customer:
		use("Zone", v.Zone, "spec.zone")
		for i, sub := range v.Subscriptions {
			use("Plan", sub.Plan, "spec.subscriptions[%d].plan", i)
		}
	case model.Closure:
		use("Zone", v.Zone, "spec.zone")
		use("Region", v.From, "spec.from")
		use("Region", v.To, "spec.to")
		use("LegalBasis", v.Basis, "spec.basis")
	case model.Drain:
		use("Zone", v.Zone, "spec.zone")
		use("Region", v.Name, "name")
	}
	return out
}

type describer struct {
	s         *server
	cat, zone state
	customers bool // who asks may read them
	out       *adminv1.DescribeResponse
}

func (d *describer) exists(r *adminv1.Reference) bool {
	if r.Kind == "API" { // products name it for every zone
		for kv := range d.cat.snap.List(model.PrefixAPI) {
			if strings.HasSuffix(kv.Key, "/"+r.Name) {
				return true
			}
		}
		return false
	}
	return d.cat.has(prefixOf(r.Kind) + r.Name)
}

// referredBy looks through all that this node may see: what names rec among what it refers to.
func (d *describer) referredBy(rec record) error {
	kind, name := fullName(rec)
	count := map[string]int{}
	add := func(r *adminv1.Reference) {
		if count[r.Kind]++; count[r.Kind] <= maxReferrers {
			d.out.ReferredBy = append(d.out.ReferredBy, r)
		}
	}
	for _, from := range []struct {
		kind string
		snap group.Snapshot
	}{{"Region", d.cat.snap}, {"Policy", d.cat.snap}, {"API", d.cat.snap}, {"Product", d.cat.snap}, {"Plan", d.cat.snap}, {"Closure", d.zone.snap}, {"Drain", d.zone.snap}, {"Customer", d.zone.snap}} {
		if from.kind == "Customer" && (!d.customers || kind != "Plan") || from.kind == kind { // a zone is every customer's
			continue
		}
		for kv := range from.snap.List(prefixOf(from.kind)) {
			other, err := decode(from.kind, kv)
			if err != nil {
				return err
			}
			for _, r := range refersTo(other) {
				if r.Kind == kind && r.Name == name {
					_, called := fullName(other)
					if api, ok := other.(model.API); ok {
						called = api.Zone + "/" + api.Name
					}
					add(&adminv1.Reference{Kind: from.kind, Name: called, Field: r.Field})
				}
			}
		}
	}
	for kv := range d.cat.snap.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if kind == "Region" && n.Region == name || kind == "Zone" && n.Zone == name {
			add(&adminv1.Reference{Kind: "Node", Name: n.Name, Field: strings.ToLower(kind)})
		}
	}
	if c, ok := rec.(model.Customer); ok {
		for kv := range d.zone.snap.List(model.PrefixKey) {
			k, err := model.Decode[model.Key](kv.Key, kv.Value)
			if err != nil {
				return err
			}
			if k.Customer == c.Name {
				add(&adminv1.Reference{Kind: "Key", Name: k.ID, Field: k.Status + ", subscription " + k.Subscription})
			}
		}
	}
	for kind, n := range count {
		if n > maxReferrers {
			d.out.Notes = append(d.out.Notes, fmt.Sprintf("%d more %ss refer to it than are listed", n-maxReferrers, strings.ToLower(kind)))
		}
	}
	slices.Sort(d.out.Notes)
	return nil
}

// holders are this zone's edges in whose view the thing is or leaves a trace: their views with it and without it differ.
func (d *describer) holders(ctx context.Context, rec record, kv group.KV) error {
	reports, err := d.s.reportsByEdge(ctx)
	if err != nil {
		d.out.Notes = append(d.out.Notes, "what edges have acknowledged is not known now: "+err.Error())
	}
	catalog, zone := d.cat.snap, d.zone.snap
	_, customer := rec.(model.Customer)
	for n := range d.cat.snap.List(model.PrefixNode) {
		edge, err := model.Decode[model.Node](n.Key, n.Value)
		if err != nil {
			return err
		}
		if edge.Kind != "edge" || edge.Zone != d.s.Zone {
			continue
		}
		if err := ctx.Err(); err != nil { // each takes two views: with a thousand edges nobody waits for the last
			return err
		}
		held := customer // his keys are on every edge of the zone
		if !customer {
			if held, err = holds(catalog, zone, edge, rec, kv.Key); err != nil {
				d.out.Notes = append(d.out.Notes, err.Error())
				continue
			}
		}
		if !held {
			continue
		}
		h := &adminv1.Holder{Edge: edge.Name, Region: edge.Region, Status: statusUnknown}
		if r := reports[edge.Name]; r != nil {
			row := &adminv1.Node{}
			fill(row, r)
			h.Status = row.Status
			h.InSync = r.GetConnected() && same(row.Catalog, row.CatalogWant) && same(row.ZonePosition, row.ZoneWant)
		}
		d.out.Holders = append(d.out.Holders, h)
	}
	return nil
}

func same(a, b *adminv1.Position) bool {
	return a != nil && b != nil && a.GetEpoch() == b.GetEpoch() && a.GetIndex() == b.GetIndex() && a.GetSum() == b.GetSum()
}

// without is a snapshot that lacks one key.
type without struct {
	group.Snapshot
	key string
}

func (w without) Get(key string) (group.KV, bool) {
	if key == w.key {
		return group.KV{}, false
	}
	return w.Snapshot.Get(key)
}

func (w without) List(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for kv := range w.Snapshot.List(prefix) {
			if kv.Key != w.key && !yield(kv) {
				return
			}
		}
	}
}

func holds(catalog, zone group.Snapshot, edge model.Node, rec record, key string) (bool, error) {
	now := time.Now()
	with, err := view.Build(catalog, zone, edge, table.Current, now)
	if err != nil {
		return false, err
	}
	for at, o := range with.Objects { // pairs come of what the zone has adopted, whatever the catalog says by now
		if at.Kind != table.KindPair {
			continue
		}
		var pair table.Pair
		if err := table.Decode(o, &pair); err != nil {
			return false, err
		}
		switch v := rec.(type) {
		case model.Policy:
			if pair.Policy == v.Name {
				return true, nil
			}
		case model.LegalBasis:
			if pair.Basis == v.Name {
				return true, nil
			}
		}
	}
	if r, ok := rec.(model.Region); ok && r.Name == edge.Region {
		return true, nil
	}
	less, err := view.Build(without{catalog, key}, without{zone, key}, edge, table.Current, now)
	return err == nil && len(view.Diff(less, with)) > 0, err
}

// notes say what a person should know who looks at it.
func (d *describer) notes(rec record) error {
	note := func(format string, args ...any) { d.out.Notes = append(d.out.Notes, fmt.Sprintf(format, args...)) }
	kind, name := fullName(rec)
	for _, r := range d.out.RefersTo {
		if r.Missing {
			note("%s names %s %s, which does not exist", r.Field, r.Kind, r.Name)
		}
	}
	switch v := rec.(type) {
	case model.Region:
		if v.Drain != "" {
			note("the catalog drains it: %s", v.Drain)
		}
		if drain, ok, err := stored[model.Drain](d.zone.snap, model.PrefixDrain+v.Name); err != nil {
			return err
		} else if ok {
			note("zone %s drains it since %s: %s", drain.Zone, drain.At.Format(time.RFC3339), drain.Reason)
		}
		if d.s.Zone != v.Zone {
			note("it is of zone %s: that zone's nodes know its edges and what is closed there", v.Zone)
		}
	case model.LegalBasis:
		if v.Status == "suspended" {
			note("it is suspended: every pair that rests on it is closed")
		}
		if v.Expires != "" {
			note("pairs that rest on it close after %s", v.Expires)
		}
	case model.API:
		if v.Policy == "" {
			note("it names no policy: it cannot fail over")
		}
	case model.Closure:
		note("closed since %s", v.At.Format(time.RFC3339))
	case model.Customer:
		if v.Status != "" && v.Status != "active" {
			note("%s: requests with its keys are refused", v.Status)
		}
	}
	for kv := range d.zone.snap.List(model.PrefixApproval) {
		p, err := model.Decode[model.Proposal](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if p.Status == model.ProposalPending && slices.ContainsFunc(p.Docs, func(doc model.ProposedDoc) bool { return doc.Kind == kind && doc.Name == name }) {
			note("a change of it by %s waits for a second operator until %s: bailiwick approval list", p.By, p.Expires.Format(time.RFC3339))
		}
	}
	return nil
}
