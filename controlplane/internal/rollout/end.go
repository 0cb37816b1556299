package rollout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/approval"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/view"
	"bailiwick/shared/fault"
)

// Ending is a transaction that ends the roll-out under way.
type Ending struct {
	Ops      []group.Op
	Compares []group.Compare
	Kept     []string // documents that are not put back, since that would open what is closed now
	// Stopped is why it is not taken back: no edge holds it from now on, and somebody has to decide.
	Stopped error
}

// Release ends it with every document as it is, on all edges.
func Release(snap group.Snapshot, r model.Rollout, at time.Time) (Ending, error) {
	e := Ending{Compares: []group.Compare{compare(snap, model.KeyRollout)}}
	for kv := range snap.List(model.PrefixHeld) {
		e.Ops = append(e.Ops, group.Op{Key: kv.Key, Delete: true})
	}
	r.State = model.RolloutDone
	return e, e.archive(snap, r, at)
}

// Back ends it with every document as edges hold it that it has not reached. Rules of the border are put back only if that
// opens nothing: what was tightened stays tight, whatever else of the change was bad.
func Back(snap group.Snapshot, r model.Rollout, at time.Time) (Ending, error) {
	e := Ending{Compares: []group.Compare{compare(snap, model.KeyRollout), compare(snap, model.KeyFence)}}
	rules := map[string]model.Held{}
	for kv := range snap.List(model.PrefixHeld) {
		key := strings.TrimPrefix(kv.Key, model.PrefixHeld)
		h, err := model.Decode[model.Held](kv.Key, kv.Value)
		if err != nil {
			return e, err
		}
		e.Ops = append(e.Ops, group.Op{Key: kv.Key, Delete: true})
		old, put, err := view.Before(snap, key, h)
		switch {
		case err != nil:
			return e, err
		case put:
			e.restore(snap, key, old)
		case strings.HasPrefix(key, model.PrefixPolicy), strings.HasPrefix(key, model.PrefixBasis):
			rules[key] = h
		}
	}
	opens, err := reopens(snap, rules, at)
	if err != nil {
		return e, err
	}
	for key, h := range rules {
		if opens {
			e.Kept = append(e.Kept, title(key))
			continue
		}
		old := group.KV{}
		if !h.Absent {
			old = group.KV{Key: key, Value: h.Value}
		}
		e.restore(snap, key, old)
	}
	why, err := refused(snap, e.Ops, at)
	if err != nil {
		return e, err
	}
	if why != nil {
		return stop(snap, r, why, at), nil
	}
	slices.Sort(e.Kept)
	slices.SortFunc(e.Ops, func(a, b group.Op) int { return strings.Compare(a.Key, b.Key) })
	id := sha256.Sum256([]byte(r.Name()))
	e.Ops = append(e.Ops, group.Op{Key: model.KeyFence, Value: fmt.Appendf(nil, "after %v", snap.Revision())},
		group.Op{Key: model.KeyAudit, Value: model.Encode(model.Audit{Call: "rollout", RequestSHA256: hex.EncodeToString(id[:])})})
	r.State = model.RolloutRolledBack
	return e, e.archive(snap, r, at)
}

// stop leaves the documents as they are to be and has no edge hold them.
func stop(snap group.Snapshot, r model.Rollout, why error, at time.Time) Ending {
	r.State, r.Why, r.Since = model.RolloutStopped, fault.ReasonOf(why), at
	return Ending{Stopped: why, Ops: []group.Op{{Key: model.KeyRollout, Value: model.Encode(r)}}, Compares: []group.Compare{compare(snap, model.KeyRollout)}}
}

func (e *Ending) restore(snap group.Snapshot, key string, old group.KV) {
	now, there := snap.Get(key)
	switch {
	case old.Key == "" && there:
		e.Ops = append(e.Ops, group.Op{Key: key, Delete: true})
	case old.Key != "" && !(there && string(now.Value) == string(old.Value)):
		e.Ops = append(e.Ops, group.Op{Key: key, Value: old.Value})
		if _, gone := snap.Get(model.PrefixGone + key); gone {
			e.Ops = append(e.Ops, group.Op{Key: model.PrefixGone + key, Delete: true})
		}
	default:
		return
	}
	e.Compares = append(e.Compares, compare(snap, key))
}

// archive puts the record where ended ones rest, and lets the oldest go.
func (e *Ending) archive(snap group.Snapshot, r model.Rollout, at time.Time) error {
	r.Since = at
	e.Ops = append(e.Ops, group.Op{Key: model.KeyRollout, Delete: true}, group.Op{Key: r.Key(), Value: model.Encode(r)})
	var ended []string
	for kv := range snap.List(model.PrefixRollout) {
		ended = append(ended, kv.Key)
	}
	for len(ended) >= model.RolloutsKept {
		e.Ops = append(e.Ops, group.Op{Key: ended[0], Delete: true})
		ended = ended[1:]
	}
	return nil
}

// reopens says whether rules as they were would permit anything that is not permitted now, or for longer.
func reopens(snap group.Snapshot, rules map[string]model.Held, now time.Time) (bool, error) {
	if len(rules) == 0 {
		return false, nil
	}
	is, was, err := worlds(snap, rules)
	if err != nil {
		return true, err
	}
	if _, err := (model.Adopted{Regions: was.Regions, Bases: was.Bases, Policies: was.Policies}).Compile(); err != nil {
		return true, nil // they do not stand by themselves: leave them
	}
	for key, h := range rules { // one operator would be enough from then on
		if kv, there := snap.Get(key); there && !h.Absent && strings.HasPrefix(key, model.PrefixPolicy) {
			p, err := model.Decode[model.Policy](key, kv.Value)
			if err != nil {
				return true, err
			}
			old, err := model.Decode[model.Policy](key, h.Value)
			if err != nil || p.TwoPerson && !old.TwoPerson {
				return true, err
			}
		}
	}
	opens, err := approval.Openings(is, was, now)
	return len(opens) > 0, err
}

// worlds are the rules as they are and with some as they were, each policy as if it asked for two operators: so every opening
// is listed.
func worlds(snap group.Snapshot, rules map[string]model.Held) (is, was approval.World, err error) {
	err = each(snap, model.PrefixRegion, func(_ string, r model.Region) {
		is.Regions, was.Regions = append(is.Regions, r), append(was.Regions, r)
	})
	if err != nil {
		return is, was, err
	}
	err = each(snap, model.PrefixBasis, func(key string, b model.LegalBasis) {
		is.Bases = append(is.Bases, b)
		if _, changed := rules[key]; !changed {
			was.Bases = append(was.Bases, b)
		}
	})
	if err != nil {
		return is, was, err
	}
	err = each(snap, model.PrefixPolicy, func(key string, p model.Policy) {
		p.TwoPerson = true
		is.Policies = append(is.Policies, p)
		if _, changed := rules[key]; !changed {
			was.Policies = append(was.Policies, p)
		}
	})
	if err != nil {
		return is, was, err
	}
	for key, h := range rules {
		switch {
		case h.Absent:
		case strings.HasPrefix(key, model.PrefixBasis):
			b, err := model.Decode[model.LegalBasis](key, h.Value)
			if err != nil {
				return is, was, err
			}
			was.Bases = append(was.Bases, b)
		default:
			p, err := model.Decode[model.Policy](key, h.Value)
			if err != nil {
				return is, was, err
			}
			p.TwoPerson = true
			was.Policies = append(was.Policies, p)
		}
	}
	return is, was, nil
}

func each[T any](snap group.Snapshot, prefix string, visit func(key string, v T)) error {
	for kv := range snap.List(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		visit(kv.Key, v)
	}
	return nil
}

func compare(snap group.Snapshot, key string) group.Compare {
	kv, _ := snap.Get(key)
	return group.Compare{Key: key, ModIndex: kv.ModIndex}
}
