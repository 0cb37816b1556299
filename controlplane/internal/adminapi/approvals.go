package adminapi

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

const (
	expired = "expired"
	stale   = "stale"
)

// ListApprovals tells of each proposal also what it would meet if it were approved now.
func (s *server) ListApprovals(ctx context.Context, _ *adminv1.ListApprovalsRequest) (*adminv1.ListApprovalsResponse, error) {
	zone, cat := state{snap: s.freshOrLocal(ctx, s.Store)}, state{snap: s.freshOrLocal(ctx, s.Catalog)}
	var all []*adminv1.Approval
	for kv := range zone.snap.List(model.PrefixApproval) {
		p, err := model.Decode[model.Proposal](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		status := ""
		if err := s.standing(p, cat, zone, time.Now()); err != nil && (p.Status == model.ProposalPending || p.Status == model.ProposalApproved) {
			status = stale
			if fault.ReasonOf(err) == "APPROVAL_EXPIRED" {
				status = expired
			}
		}
		all = append(all, approvalOf(p, status))
	}
	waits := func(a *adminv1.Approval) int {
		if a.Status == model.ProposalPending || a.Status == model.ProposalApproved {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b *adminv1.Approval) int {
		return cmp.Or(cmp.Compare(waits(a), waits(b)), b.ProposedAt.AsTime().Compare(a.ProposedAt.AsTime()))
	})
	return &adminv1.ListApprovalsResponse{Approvals: all}, nil
}

// standing says why a proposal cannot be approved any more: it ended, or something it rests on has changed.
func (s *server) standing(p model.Proposal, cat, zone state, now time.Time) error {
	if !now.Before(p.Expires) {
		return fault.New(fault.Conflict, "APPROVAL_EXPIRED", "proposal %s ended at %s: propose the change again", p.ID, p.Expires.Format(time.RFC3339))
	}
	st, world := zone, zoneWorld
	if len(p.Docs) > 0 && p.Docs[0].Catalog {
		st, world = cat, catalogWorld
	}
	w, err := world(st)
	if err != nil {
		return err
	}
	if s.base(st, w, p.Docs) != p.Base {
		return fault.New(fault.Conflict, "APPROVAL_STALE", "what proposal %s rests on has changed since %s: it would open something else now; propose the change again", p.ID, p.At.Format(time.RFC3339))
	}
	return nil
}

// decidable finds a proposal that waits.
func (s *server) decidable(zone state, id string) (p model.Proposal, err error) {
	p, ok, err := stored[model.Proposal](zone.snap, model.PrefixApproval+id)
	switch {
	case err != nil:
	case !ok:
		err = fault.New(fault.NotFound, "APPROVAL_NOT_FOUND", "zone %s has no proposal %s", s.Zone, id).At("id")
	case p.Status != model.ProposalPending && p.Status != model.ProposalApproved:
		err = fault.New(fault.Conflict, "APPROVAL_DECIDED", "proposal %s is %s, by %s", id, p.Status, p.DecidedBy)
	}
	return p, err
}

// Approve decides, and then makes the change. What rests in the catalog is made after the decision is on record; called
// again it goes on from there.
func (s *server) Approve(ctx context.Context, req *adminv1.ApproveRequest) (*adminv1.ApproveResponse, error) {
	for range maxAttempts {
		p, again, err := s.approve(ctx, req.GetId())
		if err != nil {
			return nil, err
		}
		if !again {
			return &adminv1.ApproveResponse{Approval: approvalOf(p, "")}, nil
		}
	}
	return nil, outran()
}

func (s *server) approve(ctx context.Context, id string) (p model.Proposal, again bool, err error) {
	zoneSnap, err := s.fresh(ctx, s.Store)
	if err != nil {
		return p, false, err
	}
	catalogSnap := s.freshOrLocal(ctx, s.Catalog)
	cat, zone := state{snap: catalogSnap}, state{snap: zoneSnap}
	if p, err = s.decidable(zone, id); err != nil {
		return p, false, err
	}
	inCatalog := p.Docs[0].Catalog
	if inCatalog {
		if catalogSnap, err = s.fresh(ctx, s.Catalog); err != nil {
			return p, false, err
		}
		cat.snap = catalogSnap
	}
	if p.Status == model.ProposalApproved && alreadyMade(p, cat) {
		return s.done(ctx, p), false, nil
	}
	if err := s.standing(p, cat, zone, time.Now()); err != nil {
		return p, false, err
	}
	ops, compares, err := s.made(ctx, p, catalogSnap, zoneSnap)
	if err != nil {
		return p, false, err
	}
	key := model.PrefixApproval + p.ID
	if p.Status == model.ProposalPending {
		if samePerson(p.By, operator(ctx)) {
			return p, false, fault.New(fault.Denied, "SAME_OPERATOR", "%s proposed this change: another operator must approve it", p.By)
		}
		p.Status, p.DecidedBy, p.DecidedAt = model.ProposalApproved, operator(ctx), time.Now().UTC().Truncate(time.Second)
		if !inCatalog {
			p.Status = model.ProposalDone
		}
		t := group.Txn{RequestID: requestID("approve/"+id, ""), Ops: []group.Op{{Key: key, Value: model.Encode(p)}}, Compares: []group.Compare{compareAt(zone, key)}}
		if !inCatalog {
			t.Ops, t.Compares = append(t.Ops, ops...), append(t.Compares, compares...)
		}
		t.Ops, t.Compares = fenced(zone, t.Ops, t.Compares)
		res, err := s.commit(ctx, s.Store, t)
		if err != nil || !res.Succeeded || !inCatalog {
			return p, err == nil && !res.Succeeded, err
		}
	}
	ops, compares = fenced(cat, ops, compares)
	res, err := s.commit(ctx, s.Catalog, group.Txn{RequestID: requestID("approved/"+id, ""), Ops: ops, Compares: compares})
	if err != nil || !res.Succeeded {
		return p, err == nil, err
	}
	return s.done(ctx, p), false, nil
}

// done says of an approved proposal of the catalog that it is made, as well as it can: if the zone has no quorum now, the
// next change of the catalog's rules that this zone makes says it first.
func (s *server) done(ctx context.Context, p model.Proposal) model.Proposal {
	key := model.PrefixApproval + p.ID
	p.Status = model.ProposalDone
	for range maxAttempts {
		now := s.Store.Local()
		x, ok, err := stored[model.Proposal](now, key)
		if err != nil || !ok || x.Status != model.ProposalApproved {
			break // somebody else has said so
		}
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID("done/"+p.ID, ""), Ops: []group.Op{{Key: key, Value: model.Encode(p)}}, Compares: []group.Compare{compareAt(state{snap: now}, key)}})
		if err != nil || res.Succeeded {
			break
		}
	}
	return p
}

// alreadyMade says whether the catalog is as an approved proposal wants it.
func alreadyMade(p model.Proposal, cat state) bool {
	return !slices.ContainsFunc(p.Docs, func(d model.ProposedDoc) bool {
		kv, ok := cat.snap.Get(d.Key)
		return !d.Catalog || ok != (len(d.Value) > 0) || ok && !bytes.Equal(kv.Value, d.Value)
	})
}

// settleDone marks what was approved and made, and not marked because its node died in between: once the catalog is changed
// back, it would be approved still, and one operator could make it a second time.
func (s *server) settleDone(ctx context.Context, cat state) error {
	for kv := range s.Store.Local().List(model.PrefixApproval) {
		p, err := model.Decode[model.Proposal](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if p.Status == model.ProposalApproved && p.Docs[0].Catalog && alreadyMade(p, cat) {
			s.done(ctx, p)
		}
	}
	return nil
}

// made turns a proposal into operations, judged again on what is there now.
func (s *server) made(ctx context.Context, p model.Proposal, catalogSnap, zoneSnap group.Snapshot) (ops []group.Op, compares []group.Compare, err error) {
	var docs []*doc
	for _, d := range p.Docs {
		st := state{snap: zoneSnap}
		if d.Catalog {
			st.snap = catalogSnap
		}
		if len(d.Value) == 0 {
			kv, ok := st.snap.Get(d.Key)
			if !ok {
				return nil, nil, fault.New(fault.Conflict, "APPROVAL_STALE", "%s %s is gone already", d.Kind, d.Name)
			}
			rec, err := decode(d.Kind, kv)
			if err != nil {
				return nil, nil, err
			}
			if err := s.touch(ctx, rec, nil); err != nil {
				return nil, nil, err
			}
			if err := s.unused(ctx, st, rec); err != nil {
				return nil, nil, err
			}
			ops, compares = append(ops, group.Op{Key: d.Key, Delete: true}), append(compares, compareAt(st, d.Key))
			continue
		}
		if d.Key == model.KeyCrossing {
			ops, compares = append(ops, group.Op{Key: d.Key, Value: d.Value}), append(compares, compareAt(st, d.Key))
			continue
		}
		kind, _ := manifest.ParseKind(d.Kind)
		rec, err := decode(d.Kind, group.KV{Key: d.Key, Value: d.Value})
		if err != nil {
			return nil, nil, err
		}
		docs = append(docs, &doc{at: "proposal " + p.ID, kind: kind, name: d.Name, key: d.Key, rec: rec})
	}
	if len(docs) == 0 {
		return ops, compares, nil
	}
	plan, err := s.planOn(catalogSnap, zoneSnap, docs)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range docs {
		if err := s.touch(ctx, nil, d.rec); err != nil {
			return nil, nil, err
		}
	}
	if err := s.touchAll(ctx, plan); err != nil {
		return nil, nil, err
	}
	ops = append(append(ops, plan.catalogOps...), plan.zoneOps...)
	compares = append(append(compares, plan.catalogCompares...), plan.zoneCompares...)
	for _, op := range ops { // judging fills in what documents leave out: it must have nothing left to add
		i := slices.IndexFunc(p.Docs, func(d model.ProposedDoc) bool { return d.Key == op.Key })
		if !op.Delete && (i < 0 || !bytes.Equal(p.Docs[i].Value, op.Value)) {
			return nil, nil, fault.New(fault.Conflict, "APPROVAL_STALE", "%s would be written otherwise than it was proposed: propose it again", op.Key)
		}
	}
	return ops, compares, nil
}

// Reject ends a proposal. Who made it takes it back this way.
func (s *server) Reject(ctx context.Context, req *adminv1.RejectRequest) (*adminv1.RejectResponse, error) {
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		zone := state{snap: snap}
		p, err := s.decidable(zone, req.GetId())
		if err != nil {
			return nil, err
		}
		if p.Status == model.ProposalApproved {
			return nil, fault.New(fault.Conflict, "APPROVAL_DECIDED", "proposal %s is approved by %s; bailiwick approval approve finishes it", p.ID, p.DecidedBy)
		}
		p.Status, p.DecidedBy, p.DecidedAt, p.Reason = model.ProposalRejected, operator(ctx), time.Now().UTC().Truncate(time.Second), req.GetReason()
		key := model.PrefixApproval + p.ID
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID("reject/"+p.ID, ""), Ops: []group.Op{{Key: key, Value: model.Encode(p)}}, Compares: []group.Compare{compareAt(zone, key)}})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			return &adminv1.RejectResponse{Approval: approvalOf(p, "")}, nil
		}
	}
	return nil, outran()
}

// OpenCrossings writes the present epochs to the record that closes what crosses zones in later ones.
func (s *server) OpenCrossings(ctx context.Context, req *adminv1.OpenCrossingsRequest) (*adminv1.OpenCrossingsResponse, error) {
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		zone := state{snap: snap}
		crossing, ok, err := stored[model.Crossing](snap, model.KeyCrossing)
		if err != nil {
			return nil, err
		}
		adopted, _, err := stored[model.Adopted](snap, model.KeyAdopted)
		if err != nil {
			return nil, err
		}
		if !ok || crossing.Closed(adopted.CatalogEpoch, snap.Revision().Epoch) == "" {
			return nil, fault.New(fault.Conflict, "CROSSINGS_OPEN", "zone %s: no recovery has closed what crosses zones", s.Zone)
		}
		next := model.Crossing{CatalogEpoch: adopted.CatalogEpoch, StoreEpoch: snap.Revision().Epoch, Reason: req.GetReason()}
		after := zone.with(map[string]record{model.KeyCrossing: crossingRecord{next}})
		docs := []model.ProposedDoc{{Kind: "Crossings", Name: s.Zone, Key: model.KeyCrossing, Value: model.Encode(next)}}
		pending, again, err := s.loosen(ctx, zone, after, docs, []group.Op{{Key: model.KeyCrossing, Value: model.Encode(next)}}, zoneWorld, "", requestID("crossings", ""))
		if err != nil {
			return nil, err
		}
		if !again {
			return &adminv1.OpenCrossingsResponse{Pending: pending}, nil
		}
	}
	return nil, outran()
}

// loosen makes a change of one key, or proposes it where a policy asks for two operators.
func (s *server) loosen(ctx context.Context, before, after state, docs []model.ProposedDoc, ops []group.Op, world func(state) (approval.World, error), client, id string) (pending *adminv1.Approval, again bool, err error) {
	was, err := world(before)
	if err != nil {
		return nil, false, err
	}
	is, err := world(after)
	if err != nil {
		return nil, false, err
	}
	now := time.Now()
	opens, err := approval.Openings(was, is, now)
	if err != nil {
		return nil, false, err
	}
	store, zone := s.Store, before
	var compares []group.Compare
	if docs[0].Catalog {
		store = s.Catalog
	}
	for _, op := range ops {
		compares = append(compares, compareAt(before, op.Key))
	}
	if len(opens) > 0 {
		if err := s.ours(opens); err != nil {
			return nil, false, err
		}
		if docs[0].Catalog {
			store = s.Store
			if zone.snap, err = s.fresh(ctx, s.Store); err != nil {
				return nil, false, err
			}
		}
		p := s.proposal(operator(ctx), docs, s.base(before, was, docs), opens, now)
		if ops, compares, err = keep(zone.snap, &p, now); err != nil {
			return nil, false, err
		}
		if pending = approvalOf(p, ""); len(ops) == 0 {
			return pending, false, nil
		}
	}
	ops, compares = fenced(zone, ops, compares)
	res, err := s.commit(ctx, store, group.Txn{RequestID: id, Ops: ops, Compares: compares})
	if err == nil {
		err = still(store, client, ops, res)
	}
	return pending, err == nil && !res.Succeeded, err
}
