package rollout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/regions"
	"bailiwick/shared/fault"
)

// Order is how a change is to go out.
type Order struct {
	By     string // zone and pseudonym of the operator
	At     time.Time
	Now    bool // to all edges at once
	Reason string
	Soak   time.Duration
}

// Staged is what Stage found.
type Staged struct {
	Ops      []group.Op
	Compares []group.Compare
	Name     string   // of the roll-out; "": there is none, all edges get the change at once
	AtOnce   []string // what of it goes to all edges at once all the same, in sentences
}

// Stage adds to a transaction of the catalog what makes it go out by rings: of each document as it was before, and the
// record. snap is what the transaction was judged on and is held to.
func Stage(snap group.Snapshot, ops []group.Op, o Order) (out Staged, err error) {
	changed := changes(snap, ops)
	if len(changed) == 0 || !anyEdge(snap) {
		return out, nil
	}
	var cur *model.Rollout
	kv, there := snap.Get(model.KeyRollout)
	if there {
		r, err := model.Decode[model.Rollout](kv.Key, kv.Value)
		if err != nil {
			return out, err
		}
		cur = &r
	}
	held := map[string]model.Held{}
	for kv := range snap.List(model.PrefixHeld) {
		h, err := model.Decode[model.Held](kv.Key, kv.Value)
		if err != nil {
			return out, err
		}
		held[strings.TrimPrefix(kv.Key, model.PrefixHeld)] = h
	}
	was := maps.Clone(held)
	settle := cur != nil && settled(*cur)
	if settle {
		clear(held)
	}
	for _, op := range changed {
		h, ok := held[op.Key]
		switch {
		case o.Now && ok:
			if err := releasable(snap, *cur, op.Key, h, o.At); err != nil {
				return out, err
			}
			delete(held, op.Key)
		case o.Now:
		case !ok:
			held[op.Key] = heldOf(snap, op.Key)
		case sameAs(op, h):
			delete(held, op.Key) // as edges have it that are not reached: nothing of it is on its way any more
		default:
			if held[op.Key], err = further(snap, op, h); err != nil {
				return out, err
			}
		}
	}
	if out.AtOnce, err = release(snap, changed, held); err != nil {
		return out, err
	}
	if !o.Now {
		out.AtOnce = append(out.AtOnce, loosening(changed, held)...)
	}
	out.Compares = []group.Compare{{Key: model.KeyRollout, ModIndex: kv.ModIndex}}
	for _, key := range slices.Sorted(maps.Keys(was)) {
		if _, still := held[key]; !still {
			out.Ops = append(out.Ops, group.Op{Key: model.PrefixHeld + key, Delete: true})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		value := model.Encode(held[key])
		if old, kept := was[key]; !kept || !bytes.Equal(model.Encode(old), value) {
			out.Ops = append(out.Ops, group.Op{Key: model.PrefixHeld + key, Value: value})
		}
	}
	if len(held) == 0 && cur != nil && !settle { // its end: all edges hold the same
		cur.State, cur.Why, cur.Since = model.RolloutDone, WhyOperator, o.At
		if !o.Now {
			cur.State = model.RolloutRolledBack
		}
		out.Ops = append(out.Ops, group.Op{Key: model.KeyRollout, Delete: true}, group.Op{Key: cur.Key(), Value: model.Encode(*cur)})
		return out, nil
	}
	if o.Now || len(held) == 0 {
		if len(out.Ops) == 0 {
			out.Compares = nil
		}
		return out, nil
	}
	next := model.Rollout{Number: 1, Round: 1, Base: snap.Revision().Index, Began: o.At}
	switch {
	case cur == nil:
		for kv := range snap.List(model.PrefixRollout) {
			last, err := model.Decode[model.Rollout](kv.Key, kv.Value)
			if err != nil {
				return out, err
			}
			next.Number = max(next.Number, last.Number+1)
		}
	case settle:
		next.Number = cur.Number + 1
		cur.State, cur.Why, cur.Since = model.RolloutDone, WhySkipped, o.At
		out.Ops = append(out.Ops, group.Op{Key: cur.Key(), Value: model.Encode(*cur)})
	default:
		next = *cur
		next.Round, next.Zones = cur.Round+1, nil
		if cur.State == model.RolloutStopped { // somebody has to decide about it, and a further change is no decision
			out.AtOnce = append(out.AtOnce, fmt.Sprintf("what of this goes by rings waits: roll-out %s is stopped (%s); bailiwick rollout resume, promote or abort it", cur.Name(), cur.Why))
			break
		}
		next.Why, next.Edge, next.API = WhyFolded, "", ""
	}
	if next.State == "" {
		next.State = model.RolloutRunning
	}
	next.By, next.Target, next.Since = o.By, snap.Revision().Index+1, o.At
	next.Soak = max(next.Soak, o.Soak)
	if o.Reason != "" {
		next.Reason = o.Reason
	}
	next.Changes, next.Changed = nil, len(held)
	for _, key := range slices.Sorted(maps.Keys(held)) {
		if len(next.Changes) < model.RolloutListed {
			next.Changes = append(next.Changes, changeOf(key))
		}
	}
	out.Name = next.Name()
	out.Ops = append(out.Ops, group.Op{Key: model.KeyRollout, Value: model.Encode(next)})
	return out, nil
}

// changes are the operations that change a document which goes out by rings.
func changes(snap group.Snapshot, ops []group.Op) (out []group.Op) {
	for _, op := range ops {
		if !model.Staged(op.Key) || op.DeletePrefix {
			continue
		}
		kv, there := snap.Get(op.Key)
		if op.Delete && !there || !op.Delete && there && (bytes.Equal(kv.Value, op.Value) || noEdges(op.Key, kv.Value, op.Value)) {
			continue
		}
		out = append(out, op)
	}
	return out
}

// noEdges says whether a document differs in nothing that goes by rings: in its labels, which no edge gets, or in a region's
// drain: an operator's hand on the tap waits for nobody.
func noEdges(key string, was, is []byte) bool {
	switch {
	case strings.HasPrefix(key, model.PrefixRegion):
		return sameBut(key, was, is, func(r *model.Region) { r.Drain, r.Labels = "", nil })
	case strings.HasPrefix(key, model.PrefixAPI):
		return sameBut(key, was, is, func(a *model.API) { a.Labels = nil })
	}
	return false
}

func sameBut[T any](key string, was, is []byte, blank func(*T)) bool {
	a, err := model.Decode[T](key, was)
	if err != nil {
		return false
	}
	b, err := model.Decode[T](key, is)
	if err != nil {
		return false
	}
	blank(&a)
	blank(&b)
	return bytes.Equal(model.Encode(a), model.Encode(b))
}

func anyEdge(snap group.Snapshot) bool {
	for kv := range snap.List(model.PrefixNode) {
		if n, err := model.Decode[model.Node](kv.Key, kv.Value); err != nil || n.Kind == "edge" {
			return true
		}
	}
	return false
}

func heldOf(snap group.Snapshot, key string) model.Held {
	kv, there := snap.Get(key)
	return model.Held{Absent: !there, ModIndex: kv.ModIndex, Value: kv.Value}
}

// sameAs says whether an operation leaves a document as it is held. A policy that said something else in between is not: that
// is what edges which are not reached go by, too.
func sameAs(op group.Op, h model.Held) bool {
	return len(h.Through) == 0 && !strings.HasPrefix(op.Key, model.PrefixPolicy) && !strings.HasPrefix(op.Key, model.PrefixBasis) &&
		!strings.HasPrefix(op.Key, model.PrefixRegion) && op.Delete == h.Absent && (op.Delete || bytes.Equal(op.Value, h.Value))
}

// further is what is held of a document that changes once more. What was tightened in between stays so on edges that are not
// reached: else it would be loosened everywhere at once.
func further(snap group.Snapshot, op group.Op, h model.Held) (model.Held, error) {
	now, there := snap.Get(op.Key)
	if h.Absent {
		return h, nil
	}
	switch {
	case strings.HasPrefix(op.Key, model.PrefixAPI):
		if op.Delete && there { // its policy was everywhere at once: what is held must not fall back on the one before
			old, _, err := view.Before(snap, op.Key, h)
			h.Value = old.Value
			return h, err
		}
	case strings.HasPrefix(op.Key, model.PrefixRegion):
		if !there { // it was gone; pairs with it are as new
			return model.Held{Absent: true}, nil
		}
	case strings.HasPrefix(op.Key, model.PrefixBasis):
		if !there {
			return model.Held{Absent: true}, nil
		}
		return narrower(h, now)
	case strings.HasPrefix(op.Key, model.PrefixPolicy):
		if !there || len(h.Through) >= model.HeldThrough {
			return model.Held{Absent: true}, nil
		}
		known := func(v json.RawMessage) bool { return bytes.Equal(v, now.Value) }
		if !known(h.Value) && !slices.ContainsFunc(h.Through, known) {
			h.Through = append(slices.Clone(h.Through), now.Value)
		}
	}
	return h, nil
}

// narrower is a held basis that holds no longer than the present one, and on nothing else.
func narrower(h model.Held, now group.KV) (model.Held, error) {
	was, err := model.Decode[model.LegalBasis](now.Key, h.Value)
	if err != nil {
		return h, err
	}
	is, err := model.Decode[model.LegalBasis](now.Key, now.Value)
	if err != nil {
		return h, err
	}
	if is.Kind != was.Kind {
		return model.Held{Absent: true}, nil
	}
	if is.Status != regions.Active {
		was.Status = is.Status
	}
	if is.Expires != "" && (was.Expires == "" || is.Expires < was.Expires) {
		was.Expires = is.Expires
	}
	h.Value = model.Encode(was)
	return h, nil
}

// releasable refuses to send a policy or basis to all edges at once while a roll-out holds back what it opens: that would go
// with it, though nobody asked for that. What a change tightens goes at once without being asked to.
func releasable(snap group.Snapshot, r model.Rollout, key string, h model.Held, at time.Time) error {
	if !strings.HasPrefix(key, model.PrefixPolicy) && !strings.HasPrefix(key, model.PrefixBasis) {
		return nil
	}
	is, was, err := worlds(snap, map[string]model.Held{key: h})
	if err != nil {
		return err
	}
	opens, err := approval.Openings(was, is, at)
	if err == nil && len(opens) == 0 && len(h.Through) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "ROLLOUT_HOLDS_BACK", "%s: roll-out %s holds back what it permits, and --now would send that to all edges too: promote the roll-out first, or apply without --now, since what tightens waits for no ring",
		title(key), r.Name())
}

// settled says whether all that a roll-out still waits for is away, while others have it: then a further change is no
// reason to take it from them.
func settled(r model.Rollout) bool {
	done := false
	for _, z := range r.Zones {
		if !z.Done && !z.Away {
			return false
		}
		done = done || z.Done
	}
	return done && r.State == model.RolloutRunning
}

// release takes from what is held back what cannot be: a host that goes from one zone to another, since two zones would
// answer for it; one that comes under another API's policy, which may be the narrower one and waits for no ring, and what is
// taken back must not put it under the wider one again; and what would give one edge a host twice.
func release(snap group.Snapshot, changed []group.Op, held map[string]model.Held) (why []string, err error) {
	now := map[string]model.API{} // as they are to be
	for kv := range snap.List(model.PrefixAPI) {
		if now[kv.Key], err = model.Decode[model.API](kv.Key, kv.Value); err != nil {
			return nil, err
		}
	}
	for _, op := range changed {
		if !strings.HasPrefix(op.Key, model.PrefixAPI) {
			continue
		}
		if delete(now, op.Key); !op.Delete {
			if now[op.Key], err = model.Decode[model.API](op.Key, op.Value); err != nil {
				return nil, err
			}
		}
	}
	owner := map[string]string{} // host → key of the API that is to have it
	for key, a := range now {
		for _, h := range a.Hosts {
			owner[strings.ToLower(h)] = key
		}
	}
	for again := true; again; {
		again = false
		for _, key := range slices.Sorted(maps.Keys(held)) {
			if h, ok := held[key]; !ok || h.Absent || !strings.HasPrefix(key, model.PrefixAPI) {
				continue
			}
			old, err := model.Decode[model.API](key, held[key].Value)
			if err != nil {
				return nil, err
			}
			for _, h := range old.Hosts {
				to, taken := owner[strings.ToLower(h)]
				if !taken || to == key {
					continue
				}
				under := old.Policy // the one that edges have it under which are not reached
				if there, ok := now[key]; ok {
					under = there.Policy
				}
				_, heldToo := held[to]
				if heldToo && now[to].Zone == old.Zone && now[to].Policy == under {
					continue // edges that are not reached have it where it was, and only there
				}
				if heldToo {
					delete(held, to)
				}
				delete(held, key)
				why = append(why, fmt.Sprintf("%s goes to all edges at once: host %s moves, and one host is never in two places, nor under two policies", title(key), h))
				again = true
				break
			}
		}
	}
	return why, nil
}

// loosening says of the border's rules among the changes how they go out.
func loosening(changed []group.Op, held map[string]model.Held) (out []string) {
	for _, op := range changed {
		switch h, ok := held[op.Key]; {
		case !ok:
		case strings.HasPrefix(op.Key, model.PrefixPolicy), strings.HasPrefix(op.Key, model.PrefixBasis):
			out = append(out, fmt.Sprintf("what %s forbids from now on goes to all edges at once; what it permits goes by rings", title(op.Key)))
		case strings.HasPrefix(op.Key, model.PrefixRegion):
			out = append(out, fmt.Sprintf("%s goes to all edges at once, but for its client subnets and for pairs that it opens", title(op.Key)))
		case strings.HasPrefix(op.Key, model.PrefixAPI) && !h.Absent && !op.Delete:
			was, err1 := model.Decode[model.API](op.Key, h.Value)
			is, err2 := model.Decode[model.API](op.Key, op.Value)
			if err1 == nil && err2 == nil && was.Policy != is.Policy {
				out = append(out, fmt.Sprintf("%s comes under policy %q at once, on all edges", title(op.Key), is.Policy))
			}
		}
	}
	return out
}

var kinds = []struct{ prefix, kind string }{
	{model.PrefixRegion, "Region"}, {model.PrefixBasis, "LegalBasis"}, {model.PrefixPolicy, "Policy"}, {model.PrefixAPI, "API"},
	{model.PrefixProduct, "Product"}, {model.PrefixPlan, "Plan"}, {model.PrefixSwitch, "Switch"},
}

func changeOf(key string) model.RolloutChange {
	for _, k := range kinds {
		if name, ok := strings.CutPrefix(key, k.prefix); ok {
			return model.RolloutChange{Kind: k.kind, Name: name}
		}
	}
	return model.RolloutChange{Name: key}
}

func title(key string) string {
	c := changeOf(key)
	return c.Kind + " " + c.Name
}
