package adminapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// catalogWorld is what the catalog says of relays.
func catalogWorld(s state) (approval.World, error) { return approval.Read(s.list) }

// zoneWorld is what the zone has adopted, less what it closes.
func zoneWorld(s state) (w approval.World, err error) {
	a, _, err := stored[model.Adopted](s.snap, model.KeyAdopted)
	if err != nil {
		return w, err
	}
	closures, err := closuresOf(s, a.CatalogEpoch)
	return approval.World{Regions: a.Regions, Bases: a.Bases, Policies: a.Policies, Closures: closures}, err
}

// in keeps what concerns one zone: of other zones' policies nothing can change what is permitted here.
func in(w approval.World, zone string) approval.World {
	w.Policies = slices.DeleteFunc(slices.Clone(w.Policies), func(p model.Policy) bool { return p.Zone != zone })
	w.APIs = slices.DeleteFunc(slices.Clone(w.APIs), func(a model.API) bool { return a.Zone != zone })
	return w
}

// base is the digest of what a proposal to change some keys rests on, as it stands in a state.
func (s *server) base(st state, w approval.World, docs []model.ProposedDoc) string {
	h := sha256.New()
	h.Write([]byte(in(w, s.Zone).Digest()))
	for _, d := range docs {
		h.Write([]byte("\n" + d.Key + "="))
		if r, laid := st.overlay[d.Key]; laid && r != nil {
			h.Write(model.Encode(r))
		} else if kv, ok := st.snap.Get(d.Key); ok && !laid {
			h.Write(kv.Value)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// borderPrefixes are all keys under which something rests that decides relays, by group.
var borderPrefixes = map[bool][]string{
	true:  {model.PrefixRegion, model.PrefixBasis, model.PrefixPolicy, model.PrefixAPI},
	false: {model.PrefixClosure, model.KeyCrossing, model.KeyAdopted},
}

func borderOps(catalog bool, ops []group.Op) (out []group.Op) {
	for _, op := range ops {
		for _, p := range borderPrefixes[catalog] {
			if strings.HasPrefix(op.Key, p) || op.DeletePrefix && strings.HasPrefix(p, op.Key) {
				out = append(out, op)
				break
			}
		}
	}
	return out
}

// guard stands before every transaction of this API, whoever built it: what opens against the word of a policy that asks
// for two operators is committed only as it was proposed and approved. It judges the operations themselves, and holds
// the transaction to the state that it judged them on.
func (s *server) guard(ctx context.Context, store group.Store, t group.Txn) (group.Txn, error) {
	inCatalog := store == s.Catalog
	ops := borderOps(inCatalog, t.Ops)
	if len(ops) == 0 {
		return t, nil
	}
	at := slices.IndexFunc(t.Compares, func(c group.Compare) bool { return c.Key == fenceKey && !c.Exists })
	if at < 0 || slices.ContainsFunc(ops, func(op group.Op) bool { return op.DeletePrefix }) {
		return t, fault.New(fault.Internal, "UNFENCED", "a change of border rules is not held to what it was judged against")
	}
	snap := store.Local()
	if (state{snap: snap}).mod(fenceKey) != t.Compares[at].ModIndex {
		var err error
		if snap, err = s.fresh(ctx, store); err != nil {
			return t, err
		}
	}
	before := state{snap: snap}
	if before.mod(fenceKey) != t.Compares[at].ModIndex {
		return t, nil // its own compare refuses it
	}
	after := before.with(map[string]record{})
	var changed []group.Op
	for _, op := range ops {
		kv, there := snap.Get(op.Key)
		if op.Delete && !there || !op.Delete && there && bytes.Equal(kv.Value, op.Value) {
			continue
		}
		changed = append(changed, op)
		if op.Delete {
			after.overlay[op.Key] = nil
			continue
		}
		rec, err := decodeKey(group.KV{Key: op.Key, Value: op.Value})
		if err != nil {
			return t, err
		}
		after.overlay[op.Key] = rec
	}
	world := zoneWorld
	if inCatalog {
		world = catalogWorld
		if len(changed) > 0 {
			if err := s.settleDone(ctx, before); err != nil {
				return t, err
			}
		}
	}
	was, err := world(before)
	if err != nil {
		return t, err
	}
	is, err := world(after)
	if err != nil {
		return t, err
	}
	opens, err := approval.Openings(was, is, time.Now())
	if err != nil || len(opens) == 0 {
		return t, err
	}
	if !inCatalog { // adoption does not pass the fence
		for _, key := range []string{model.KeyAdopted, model.KeyCrossing} {
			if !slices.ContainsFunc(t.Compares, func(c group.Compare) bool { return c.Key == key }) {
				t.Compares = append(slices.Clip(t.Compares), compareAt(before, key))
			}
		}
	}
	return t, s.approved(ctx, inCatalog, before, was, t, changed, opens)
}

// approved says whether two operators want exactly these changes on top of exactly this state.
func (s *server) approved(ctx context.Context, inCatalog bool, before state, was approval.World, t group.Txn, changed []group.Op, opens []approval.Opening) error {
	needed := func(format string, args ...any) error {
		return fault.New(fault.Denied, "APPROVAL_REQUIRED", "%s: this needs a second operator: "+format, append([]any{opens[0].What}, args...)...)
	}
	for _, o := range opens {
		if o.Zone != s.Zone {
			return needed("one of zone %s, at a control node there", o.Zone)
		}
	}
	zone := before
	if inCatalog { // approved before it is made, so that it is on record before it is open
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return err
		}
		zone = state{snap: snap}
	}
	for kv := range zone.snap.List(model.PrefixApproval) {
		p, err := model.Decode[model.Proposal](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if !inCatalog { // the decision is part of this transaction
			i := slices.IndexFunc(t.Ops, func(op group.Op) bool { return op.Key == kv.Key && !op.Delete })
			if i < 0 || p.Status != model.ProposalPending || !slices.Contains(t.Compares, group.Compare{Key: kv.Key, ModIndex: kv.ModIndex}) {
				continue
			}
			decided, err := model.Decode[model.Proposal](kv.Key, t.Ops[i].Value)
			if err != nil || decided.DecidedBy != operator(ctx) || decided.By != p.By {
				continue
			}
			p.Status, p.DecidedBy = decided.Status, decided.DecidedBy
		}
		// Done is done: of the catalog it does not let the same be made again, should its base come back.
		if p.Status != model.ProposalApproved && (inCatalog || p.Status != model.ProposalDone) || samePerson(p.By, p.DecidedBy) || !time.Now().Before(p.Expires) {
			continue
		}
		docs := slices.DeleteFunc(slices.Clone(p.Docs), func(d model.ProposedDoc) bool { return d.Catalog != inCatalog })
		if p.Base == s.base(before, was, docs) && covers(docs, changed) {
			return nil
		}
	}
	return needed("bailiwick approval list shows what waits")
}

// covers says whether each change is proposed as it is.
func covers(docs []model.ProposedDoc, changed []group.Op) bool {
	return !slices.ContainsFunc(changed, func(op group.Op) bool {
		return !slices.ContainsFunc(docs, func(d model.ProposedDoc) bool {
			return d.Key == op.Key && bytes.Equal(d.Value, op.Value) && op.Delete == (len(d.Value) == 0)
		})
	})
}

// samePerson compares operators by who they are, and not by the token that they hold. Names that differ in case alone
// are one person's, in doubt.
func samePerson(a, b string) bool { return a == "" || b == "" || strings.EqualFold(a, b) }

// crossingRecord makes what is no resource pass for one where states are laid over.
type crossingRecord struct{ model.Crossing }

func (crossingRecord) Validate() error { return nil }

func decodeKey(kv group.KV) (record, error) {
	switch {
	case kv.Key == model.KeyCrossing:
		c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
		return crossingRecord{c}, err
	case strings.HasPrefix(kv.Key, model.PrefixRegion):
		return decode("Region", kv)
	case strings.HasPrefix(kv.Key, model.PrefixBasis):
		return decode("LegalBasis", kv)
	case strings.HasPrefix(kv.Key, model.PrefixPolicy):
		return decode("Policy", kv)
	case strings.HasPrefix(kv.Key, model.PrefixAPI):
		return decode("API", kv)
	case strings.HasPrefix(kv.Key, model.PrefixClosure):
		return decode("Closure", kv)
	}
	return nil, fault.New(fault.Internal, "KEY_UNKNOWN", "no border rule rests at %s", kv.Key)
}

// opens is what a plan's two halves open that needs a second operator, each by the rules that it changes.
func (s *server) opens(j *judge) (out []approval.Opening, err error) {
	for _, half := range []struct {
		before, after state
		world         func(state) (approval.World, error)
	}{{j.catalogBefore, j.catalog, catalogWorld}, {j.zoneBefore, j.zoneAfter, zoneWorld}} {
		if len(half.after.overlay) == 0 {
			continue
		}
		was, err := half.world(half.before)
		if err != nil {
			return nil, err
		}
		is, err := half.world(half.after)
		if err != nil {
			return nil, err
		}
		found, err := approval.Openings(was, is, j.now)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}
