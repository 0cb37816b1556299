package adminapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/regions/catalog"
	"bailiwick/shared/fault"
)

// doc is one resource of a request.
type doc struct {
	at     string // "resources[3]"
	kind   manifest.Kind
	name   string
	key    string
	etag   string
	rec    record // nil: it is to go, which only a rollback asks for
	change *adminv1.Change
}

// field puts an error's field into the request.
func (d *doc) field(err error) error {
	if f, ok := fault.As(err); ok && f.Kind != fault.Internal {
		if f.Field == "" {
			return f.At(d.at)
		}
		return f.At(d.at + "." + f.Field)
	}
	return err
}

func (d *doc) errorf(kind fault.Kind, field, reason, format string, args ...any) error {
	return d.field(fault.New(kind, reason, format, args...).At(field))
}

// Apply writes the catalog documents in one transaction and then the zone documents in another. Everything is
// judged before the first is written, so what can still part them is the loss of a quorum in between.
func (s *server) Apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	how, err := newOrder(req.GetNow(), req.GetReason(), req.GetSoak().AsDuration())
	if err != nil {
		return nil, err
	}
	ctx = withOrder(ctx, how)
	if len(req.GetUpdateMask()) > 0 {
		return s.patch(ctx, req)
	}
	return s.apply(ctx, req, digest(req))
}

// apply makes a request's documents, content being the digest of what was intent for.
func (s *server) apply(ctx context.Context, req *adminv1.ApplyRequest, content string) (*adminv1.ApplyResponse, error) {
	docs, err := s.docs(ctx, req)
	if err != nil {
		return nil, err
	}
	as := intent{call: "apply", client: req.GetRequestId(), content: content}
	return s.write(ctx, as, req.GetDryRun(), func() (*plan, error) { return s.plan(ctx, docs) })
}

// write makes what make plans, which is asked again when others were faster.
func (s *server) write(ctx context.Context, as intent, dryRun bool, make func() (*plan, error)) (*adminv1.ApplyResponse, error) {
	id := as.id()
	how, _ := ctx.Value(orderKey{}).(*order)
	if how == nil {
		how = &order{}
		ctx = withOrder(ctx, how)
	}
	var first *plan // what the answer tells: a retry after half was written finds that half unchanged
	written := false
	for attempt := range maxAttempts {
		var p *plan
		err := onceLeveled(ctx, s.Wait, func() (err error) { p, err = make(); return err })
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = p
		}
		if dryRun {
			return p.response(), nil
		}
		again := false
		for _, half := range []struct {
			store group.Store
			ops   []group.Op
			cmp   []group.Compare
		}{{s.Catalog, p.catalogOps, p.catalogCompares}, {s.Store, p.zoneOps, p.zoneCompares}} {
			if len(half.ops) == 0 {
				continue
			}
			t, err := s.once(half.store, as, group.Txn{RequestID: id + "/" + strconv.Itoa(attempt), Compares: half.cmp, Ops: half.ops})
			if err != nil {
				return nil, err
			}
			res, err := s.commit(ctx, half.store, t)
			if err == nil {
				err = still(half.store, as.client, half.ops, res)
			}
			if err != nil {
				return nil, err
			}
			if again = !res.Succeeded; again {
				break
			}
			written = true
		}
		if !again {
			out := first.response()
			out.Rollout, out.AtOnce = how.staged.Name, append(how.staged.AtOnce, skips(out.Changes)...)
			return out, nil
		}
		if !written {
			first = nil
		}
	}
	return nil, outran()
}

// docs converts and judges each resource alone.
func (s *server) docs(ctx context.Context, req *adminv1.ApplyRequest) ([]*doc, error) {
	var docs []*doc
	seen := map[string]*doc{}
	for i, r := range req.GetResources() {
		d := &doc{at: fmt.Sprintf("resources[%d]", i), name: r.GetName(), etag: r.GetEtag()}
		d.kind, _ = manifest.KindOf(r)
		rec, err := fromProto(r)
		if err != nil {
			return nil, d.field(err)
		}
		if region, ok := rec.(model.Region); ok {
			filled := catalog.Fill(region.Rule())
			region.Country, region.Jurisdiction, region.Partition = filled.Country, filled.Jurisdiction, filled.Partition
			rec = region
		}
		if err := rec.Validate(); err != nil {
			return nil, d.field(err)
		}
		switch v := rec.(type) {
		case model.Customer:
			if v.Zone != s.Zone {
				return nil, d.field(s.wrongZone("customer "+v.Name, v.Zone))
			}
		case model.Closure:
			if v.Zone != s.Zone {
				return nil, d.field(s.wrongZone("closure "+v.Name, v.Zone))
			}
		case model.Drain:
			if v.Zone != s.Zone {
				return nil, d.field(s.wrongZone("drain "+v.Name, v.Zone))
			}
		}
		d.rec, d.key = rec, keyOf(rec)
		if err := s.touch(ctx, nil, rec); err != nil {
			return nil, d.field(err)
		}
		if other, twice := seen[d.key]; twice {
			return nil, d.errorf(fault.Invalid, "name", "DUPLICATE", "%s %s is in the request twice, at %s and %s", d.kind.Name, d.name, other.at, d.at)
		}
		seen[d.key] = d
		docs = append(docs, d)
	}
	return docs, nil
}

// plan is what an apply would do to one pair of snapshots.
type plan struct {
	docs                          []*doc
	changes                       []*adminv1.Change
	warnings                      []string
	flows                         []*adminv1.Flow
	catalogOps, zoneOps           []group.Op
	catalogCompares, zoneCompares []group.Compare
	judge                         *judge
	pending                       []*adminv1.Approval
}

func (p *plan) response() *adminv1.ApplyResponse {
	return &adminv1.ApplyResponse{Changes: p.changes, Warnings: p.warnings, Flows: p.flows, Pending: p.pending}
}

// digest is part of a request's id in the log: an id used again for something else is another request.
func digest(req proto.Message) string {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "" // a message that was just unmarshalled
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

func (s *server) plan(ctx context.Context, docs []*doc) (*plan, error) {
	var catalogSnap, zoneSnap group.Snapshot
	var err error
	inCatalog := slices.ContainsFunc(docs, func(d *doc) bool { return !d.kind.Zonal })
	inZone := slices.ContainsFunc(docs, func(d *doc) bool { return d.kind.Zonal })
	if inCatalog {
		if catalogSnap, err = s.fresh(ctx, s.Catalog); err != nil {
			return nil, err
		}
	} else {
		catalogSnap = s.freshOrLocal(ctx, s.Catalog) // zone documents need their zone's quorum only
	}
	if inZone {
		if zoneSnap, err = s.fresh(ctx, s.Store); err != nil {
			return nil, err
		}
	} else {
		zoneSnap = s.Store.Local()
	}
	whole, err := s.planOn(catalogSnap, zoneSnap, docs)
	if err != nil {
		return nil, err
	}
	if err := s.touchAll(ctx, whole); err != nil {
		return nil, err
	}
	opens, err := s.opens(whole.judge)
	if err != nil {
		return nil, err
	}
	if len(opens) == 0 {
		whole.fence()
		return whole, nil
	}
	if !inZone { // proposals rest in the zone store
		if zoneSnap, err = s.fresh(ctx, s.Store); err != nil {
			return nil, err
		}
	}
	return s.propose(operator(ctx), whole, opens, catalogSnap, zoneSnap)
}

// touchAll asks of each document what is stored under its name: it may be another zone's.
func (s *server) touchAll(ctx context.Context, p *plan) error {
	for _, d := range p.docs {
		before := p.judge.catalogBefore
		if d.kind.Zonal {
			before = p.judge.zoneBefore
		}
		if kv, ok := before.snap.Get(d.key); ok && d.change.Action != unchanged {
			old, err := decode(d.kind.Name, kv)
			if err != nil {
				return err
			}
			if err := s.touch(ctx, old, d.rec); err != nil {
				return d.field(err)
			}
		}
	}
	return nil
}

// planOn is what documents do to two snapshots, judged, and not fenced yet.
func (s *server) planOn(catalogSnap, zoneSnap group.Snapshot, docs []*doc) (*plan, error) {
	catalogBefore, zoneBefore := state{snap: catalogSnap}, state{snap: zoneSnap}
	catalogAfter, zoneAfter := catalogBefore.with(map[string]record{}), zoneBefore.with(map[string]record{})
	p := &plan{docs: docs}
	for _, d := range docs {
		before, after := catalogBefore, catalogAfter
		if d.kind.Zonal {
			before, after = zoneBefore, zoneAfter
		}
		if err := s.settle(d, before); err != nil {
			return nil, d.field(err)
		}
		if d.change.Action != unchanged {
			after.overlay[d.key] = d.rec
			op, cmp := group.Op{Key: d.key, Delete: true}, group.Compare{Key: d.key, ModIndex: before.mod(d.key)}
			if d.rec != nil {
				op = group.Op{Key: d.key, Value: model.Encode(d.rec)}
			}
			if d.kind.Zonal {
				p.zoneOps, p.zoneCompares = append(p.zoneOps, op), append(p.zoneCompares, cmp)
			} else {
				p.catalogOps, p.catalogCompares = append(p.catalogOps, op), append(p.catalogCompares, cmp)
			}
		}
		p.changes = append(p.changes, d.change)
	}
	p.judge = &judge{zone: s.Zone, now: time.Now(), catalogBefore: catalogBefore, catalog: catalogAfter, zoneBefore: zoneBefore, zoneAfter: zoneAfter, plan: p}
	if err := p.judge.judge(); err != nil {
		return p, err
	}
	return p, p.levels(catalogSnap, s.Zone)
}

// fence holds both transactions to what they were judged against.
func (p *plan) fence() {
	if len(p.catalogOps) > 0 {
		p.catalogOps, p.catalogCompares = fenced(p.judge.catalogBefore, p.catalogOps, p.catalogCompares)
	}
	if len(p.zoneOps) > 0 {
		p.zoneOps, p.zoneCompares = fenced(p.judge.zoneBefore, p.zoneOps, p.zoneCompares)
	}
}

// fenced adds the fence of a group to a transaction.
func fenced(s state, ops []group.Op, cmp []group.Compare) ([]group.Op, []group.Compare) {
	mod := s.mod(fenceKey)
	return append(ops, group.Op{Key: fenceKey, Value: fmt.Appendf(nil, "after %v", s.snap.Revision())}),
		append(cmp, group.Compare{Key: fenceKey, ModIndex: mod})
}

const (
	created   = "created"
	updated   = "updated"
	unchanged = "unchanged"
	proposed  = "proposed"
	deleted   = "deleted"
)

// settle completes a document from what is stored, checks its etag and what may never change, and says what
// would.
func (s *server) settle(d *doc, before state) error {
	kv, exists := before.snap.Get(d.key)
	if at := versionOf(before.snap, kv).String(); d.etag != "" && d.etag != at {
		return fault.New(fault.Conflict, "ETAG_MISMATCH", "%s %s is at etag %s, not %s: get it again", d.kind.Name, d.name, at, d.etag).At("etag")
	}
	var old record
	if exists {
		var err error
		if old, err = decode(d.kind.Name, kv); err != nil {
			return err
		}
	}
	if d.rec == nil { // a rollback takes away what was made since
		d.change = &adminv1.Change{Kind: d.kind.Name, Name: d.name, Action: deleted}
		if !exists {
			d.change.Action = unchanged
		}
		return nil
	}
	if err := immutable(d, old); err != nil {
		return err
	}
	d.change = &adminv1.Change{Kind: d.kind.Name, Name: d.name, Action: created}
	if exists {
		d.change.Action = updated
		if bytes.Equal(kv.Value, model.Encode(d.rec)) {
			d.change.Action = unchanged
			return nil
		}
	}
	d.change.Fields = fieldChanges(old, d.rec)
	if exists && len(d.change.Fields) == 0 && bytes.Equal(model.Encode(old), model.Encode(d.rec)) {
		d.change.Action = unchanged // stored in an older form of the same value
	}
	return nil
}

// immutable keeps what a resource is for ever, taking over what its document may leave out.
func immutable(d *doc, old record) error {
	refuse := func(field, format string, args ...any) error {
		return fault.New(fault.Conflict, "IMMUTABLE", format, args...).At(field)
	}
	switch v := d.rec.(type) {
	case model.Zone:
		if old == nil {
			return fault.New(fault.Invalid, "ZONE_FIXED", "zone %s does not exist: zones are laid down by bailiwick-control init", v.Name).At("name")
		}
		was := old.(model.Zone)
		v.Jurisdiction = or(v.Jurisdiction, was.Jurisdiction)
		if len(v.SigningKey) == 0 {
			v.SigningKey = was.SigningKey
		}
		if v.Jurisdiction != was.Jurisdiction {
			return refuse("spec.jurisdiction", "zone %s is under the law of %s for ever", v.Name, was.Jurisdiction)
		}
		if !bytes.Equal(v.SigningKey, was.SigningKey) {
			return refuse("spec.signing_key", "zone %s: its signing key is made by bailiwick-control init and never applied", v.Name)
		}
		d.rec = v
	case model.Policy:
		if was, ok := old.(model.Policy); ok && was.Zone != v.Zone {
			return refuse("spec.zone", "policy %s is of zone %s for ever: create another for %s", v.Name, was.Zone, v.Zone)
		}
	case model.API:
		if was, ok := old.(model.API); ok && was.Auth != nil && v.Auth != nil {
			for i, is := range v.Auth.Issuers {
				for _, before := range was.Auth.Issuers {
					if is.Issuer == before.Issuer && or(is.Claim, "sub") != or(before.Claim, "sub") { // a key bound to what one claim said would be another's
						return refuse(fmt.Sprintf("spec.auth.issuers[%d].claim", i), "API %s: keys are bound to what tokens of %s say in %s; read from %s the same text may name somebody else. "+
							"Revoke those keys, apply the API without the issuer, then with the other claim", v.Name, is.Issuer, or(before.Claim, "sub"), or(is.Claim, "sub"))
					}
				}
			}
		}
	case model.Closure:
		v.At = time.Now().UTC().Truncate(time.Second)
		if was, ok := old.(model.Closure); ok {
			v.At = was.At // since when it holds, not when it was last written
		}
		d.rec = v
	case model.Drain:
		v.At = time.Now().UTC().Truncate(time.Second)
		if was, ok := old.(model.Drain); ok {
			v.At = was.At
		}
		d.rec = v
	}
	return nil
}
