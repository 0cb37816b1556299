package adminapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// propose parts a request that opens something into what is made at once and what waits for a second operator.
func (s *server) propose(by string, whole *plan, opens []approval.Opening, catalogSnap, zoneSnap group.Snapshot) (*plan, error) {
	if err := s.ours(opens); err != nil {
		return nil, err
	}
	now, later, err := s.part(whole)
	if err != nil {
		return nil, err
	}
	var p *plan
	for { // what refers to a document that waits, waits too
		p, err = s.planOn(catalogSnap, zoneSnap, now)
		f, ok := fault.As(err)
		if err == nil {
			break
		}
		i := slices.IndexFunc(now, func(d *doc) bool { return ok && (f.Field == d.at || strings.HasPrefix(f.Field, d.at+".")) })
		if i < 0 || now[i].kind.Name == "Customer" {
			return nil, fmt.Errorf("part of this waits for a second operator, and without it: %w", err)
		}
		if !slices.Contains(later, now[i]) {
			later = append(later, now[i])
		}
		now = slices.Delete(now, i, i+1)
	}
	if left, err := s.opens(p.judge); err != nil || len(left) > 0 {
		return nil, fault.New(fault.Internal, "APPROVAL_REQUIRED", "what was to wait for a second operator was not all held back: %v, %w", left, err)
	}
	p.warnings, p.flows = whole.warnings, whole.flows
	for _, catalog := range []bool{true, false} {
		var docs []model.ProposedDoc
		for _, d := range later {
			if d.kind.Zonal != catalog {
				docs = append(docs, model.ProposedDoc{Kind: d.kind.Name, Name: d.name, Key: d.key, Catalog: catalog, Value: d.value()})
			}
		}
		if len(docs) == 0 {
			continue
		}
		st, world := p.judge.catalog, catalogWorld
		if !catalog {
			st, world = p.judge.zoneAfter, zoneWorld
		}
		w, err := world(st)
		if err != nil {
			return nil, err
		}
		prop := s.proposal(by, docs, s.base(st, w, docs), opens, p.judge.now)
		if err := p.store(zoneSnap, &prop); err != nil {
			return nil, err
		}
		p.pending = append(p.pending, approvalOf(prop, ""))
	}
	p.fence()
	p.changes = nil
	for _, d := range whole.docs {
		change := d.change
		if i := slices.IndexFunc(p.docs, func(x *doc) bool { return x.key == d.key }); i >= 0 {
			change = p.docs[i].change
		} else {
			change.Action = proposed
		}
		for _, a := range p.pending {
			if slices.Contains(a.Documents, d.kind.Name+" "+d.name) {
				change.Pending = a.Id
			}
		}
		p.changes = append(p.changes, change)
	}
	return p, nil
}

// ours refuses what operators of another zone decide.
func (s *server) ours(opens []approval.Opening) error {
	for _, o := range opens {
		if o.Zone == s.Zone {
			continue
		}
		if slices.ContainsFunc(opens, func(x approval.Opening) bool { return x.Zone != o.Zone }) {
			return fault.New(fault.Invalid, "SEVERAL_ZONES", "this loosens policies of several zones that each have a second operator decide: apply it zone by zone")
		}
		return s.wrongZone(o.What+", which needs a second operator and", o.Zone)
	}
	return nil
}

// part tries the documents one after the other, those first on which others rest. Of a policy that opens and closes, the
// part that closes is taken at once.
func (s *server) part(whole *plan) (now, later []*doc, err error) {
	order := map[string]int{}
	for i, k := range manifest.Kinds() {
		order[k.Name] = i
	}
	rest := slices.Clone(whole.docs)
	slices.SortStableFunc(rest, func(a, b *doc) int { return cmp.Compare(order[a.kind.Name], order[b.kind.Name]) })
	catalogAt, zoneAt := whole.judge.catalogBefore, whole.judge.zoneBefore
	catalogAt, zoneAt = catalogAt.with(map[string]record{}), zoneAt.with(map[string]record{})
	rules := map[string]bool{"Region": true, "LegalBasis": true, "Policy": true, "API": true, "Closure": true}
	for progress := true; progress; {
		progress = false
		var again []*doc
		for _, d := range rest {
			before, at, world := whole.judge.catalogBefore, catalogAt, catalogWorld
			if d.kind.Zonal {
				before, at, world = whole.judge.zoneBefore, zoneAt, zoneWorld
			}
			if !rules[d.kind.Name] || d.change.Action == unchanged {
				at.overlay[d.key], now, progress = d.rec, append(now, d), true
				continue
			}
			was, err := world(before)
			if err != nil {
				return nil, nil, err
			}
			old, laid := at.overlay[d.key]
			at.overlay[d.key] = d.rec
			is, err := world(at)
			if err != nil {
				return nil, nil, err
			}
			found, err := approval.Openings(was, is, whole.judge.now)
			if err == nil && len(found) == 0 {
				now, progress = append(now, d), true
				continue
			}
			if policy, ok := d.rec.(model.Policy); ok && err == nil {
				if narrow, ok := approval.Narrow(was, is, policy.Name, whole.judge.now); ok {
					part := *d
					part.rec, at.overlay[d.key] = narrow, narrow
					now, later, progress = append(now, &part), append(later, d), true
					continue
				}
			}
			if delete(at.overlay, d.key); laid {
				at.overlay[d.key] = old
			}
			again = append(again, d)
		}
		rest = again
	}
	return now, append(later, rest...), nil
}

// proposal of documents on top of a base.
func (s *server) proposal(by string, docs []model.ProposedDoc, base string, opens []approval.Opening, now time.Time) model.Proposal {
	p := model.Proposal{ID: approval.ID(s.Zone, docs, base), Zone: s.Zone, Docs: docs, Base: base, Status: model.ProposalPending,
		By: by, At: now.UTC().Truncate(time.Second), Expires: now.UTC().Truncate(time.Second).Add(approval.TTL)}
	for _, o := range opens {
		if p.Opens = append(p.Opens, o.What); len(p.Opens) == 100 {
			break
		}
	}
	return p
}

// store adds the writing of a proposal to the zone's half, unless the very same waits already: then that one is told.
func (p *plan) store(zone group.Snapshot, prop *model.Proposal) error {
	ops, compares, err := keep(zone, prop, p.judge.now)
	p.zoneOps, p.zoneCompares = append(p.zoneOps, ops...), append(p.zoneCompares, compares...)
	return err
}

func keep(zone group.Snapshot, prop *model.Proposal, now time.Time) (ops []group.Op, compares []group.Compare, err error) {
	var waiting, bytes int
	var old []model.Proposal
	for kv := range zone.List(model.PrefixApproval) {
		x, err := model.Decode[model.Proposal](kv.Key, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		open := (x.Status == model.ProposalPending || x.Status == model.ProposalApproved) && now.Before(x.Expires)
		switch {
		case x.ID == prop.ID && open:
			*prop = x
			return nil, nil, nil
		case x.ID == prop.ID:
		case open:
			waiting++
			bytes += len(kv.Value)
		default:
			old = append(old, x)
		}
	}
	if waiting >= approval.Pending {
		return nil, nil, fault.New(fault.Conflict, "APPROVALS_FULL", "%d changes of zone %s wait for a second operator already: approve or reject some first", waiting, prop.Zone)
	}
	value := model.Encode(*prop)
	if bytes += len(value); bytes > approval.Bytes {
		return nil, nil, fault.New(fault.Conflict, "APPROVALS_FULL", "changes of zone %s that wait for a second operator would hold %d bytes, at most %d: approve or reject some first", prop.Zone, bytes, approval.Bytes)
	}
	slices.SortFunc(old, func(a, b model.Proposal) int { return a.At.Compare(b.At) })
	for _, x := range old[:min(max(len(old)-approval.Kept, 0), 10)] {
		ops = append(ops, group.Op{Key: model.PrefixApproval + x.ID, Delete: true})
	}
	key := model.PrefixApproval + prop.ID
	return append(ops, group.Op{Key: key, Value: value}), []group.Compare{compareAt(state{snap: zone}, key)}, nil
}

func approvalOf(p model.Proposal, status string) *adminv1.Approval {
	out := &adminv1.Approval{Id: p.ID, Status: or(status, p.Status), Zone: p.Zone, Opens: p.Opens, ProposedBy: p.By, DecidedBy: p.DecidedBy, Reason: p.Reason}
	for _, d := range p.Docs {
		out.Documents = append(out.Documents, d.Kind+" "+d.Name)
		out.Specs = append(out.Specs, string(d.Value))
	}
	if !p.At.IsZero() {
		out.ProposedAt, out.ExpiresAt = timestamppb.New(p.At), timestamppb.New(p.Expires)
	}
	if !p.DecidedAt.IsZero() {
		out.DecidedAt = timestamppb.New(p.DecidedAt)
	}
	return out
}
