package adminapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// fenceKey is compared and rewritten by every admin transaction of a group, so that what a transaction was
// judged against (all names, all hosts) is what it is committed onto, also where the judgement read an absence.
// Its cost is that two admin writes to one group never commit side by side; keys are not written through it.
const fenceKey = model.KeyFence

// keysFence rests beside a customer and is rewritten, without a compare, by each key made for it: whoever
// removes a customer or a subscription sees that no key slipped in. Creating keys stays free of contention.
func keysFence(customer string) string { return "meta/keys/" + customer }

// state is a group's snapshot with the writes of one request laid over it.
type state struct {
	snap    group.Snapshot
	overlay map[string]record // nil: deleted
}

func (s state) with(overlay map[string]record) state { return state{s.snap, overlay} }

func (s state) has(key string) bool {
	if r, ok := s.overlay[key]; ok {
		return r != nil
	}
	_, ok := s.snap.Get(key)
	return ok
}

// mod is the ModIndex of a key as stored, 0 if absent.
func (s state) mod(key string) uint64 {
	kv, _ := s.snap.Get(key)
	return kv.ModIndex
}

func get[T record](s state, key string) (v T, ok bool, err error) {
	if r, laid := s.overlay[key]; laid {
		if r == nil {
			return v, false, nil
		}
		return r.(T), true, nil
	}
	kv, ok := s.snap.Get(key)
	if !ok {
		return v, false, nil
	}
	v, err = model.Decode[T](key, kv.Value)
	return v, err == nil, err
}

func list[T record](s state, prefix string) ([]T, error) {
	var out []T
	for kv := range s.snap.List(prefix) {
		if _, laid := s.overlay[kv.Key]; laid {
			continue
		}
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	for key, r := range s.overlay {
		if r != nil && strings.HasPrefix(key, prefix) {
			out = append(out, r.(T))
		}
	}
	return out, nil
}

// list is as a snapshot's, with what is laid over it.
func (s state) list(prefix string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for kv := range s.snap.List(prefix) {
			if _, laid := s.overlay[kv.Key]; !laid && !yield(kv) {
				return
			}
		}
		for key, r := range s.overlay {
			if r != nil && strings.HasPrefix(key, prefix) && !yield(group.KV{Key: key, Value: model.Encode(r)}) {
				return
			}
		}
	}
}

// explain tells a person what a store without a quorum means. Other errors pass.
func (s *server) explain(store group.Store, err error) error {
	f, ok := fault.As(err)
	late := err != nil && !ok // a bare context error
	if !late && (!ok || f.Kind != fault.Unavailable || f.Reason == group.ReasonOutcomeUnknown || f.Reason == group.ReasonStopped) {
		return err
	}
	if store == s.Catalog {
		return fault.New(fault.Unavailable, "CATALOG_NO_LEADER",
			"catalog changes need a quorum of the primary zone %s, and none answers within %v; serving, keys, closures and usage of other zones go on without it: %w",
			s.PrimaryZone, s.Wait, err)
	}
	return fault.New(fault.Unavailable, "ZONE_NO_LEADER", "zone %s has no leader: its store needs a quorum of its control nodes, and none answers within %v: %w", s.Zone, s.Wait, err)
}

// fresh is a linearizable snapshot.
func (s *server) fresh(ctx context.Context, store group.Store) (group.Snapshot, error) {
	snap, err := store.Sync(ctx)
	if err != nil {
		return nil, s.explain(store, fmt.Errorf("read %s: %w", store.Name(), err))
	}
	return snap, nil
}

// freshOrLocal falls back on what this node has applied: for what must go on without the group's quorum.
func (s *server) freshOrLocal(ctx context.Context, store group.Store) group.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
	defer cancel()
	if snap, err := store.Sync(ctx); err == nil {
		return snap
	}
	return store.Local()
}

// commit makes one transaction happen at most once, trying again while there is time and nobody knows whether
// it happened, and waits until this node has applied it. t.RequestID must be set and never used for another.
func (s *server) commit(ctx context.Context, store group.Store, t group.Txn) (group.Result, error) {
	by := operator(ctx)
	call, _, _ := strings.Cut(t.RequestID, "/")
	if by != "" && len(t.Ops) > 0 {
		if store == s.Catalog { // it rests in every zone
			by = evidence.Pseudonym(s.Pepper, s.Zone, by)
		}
		id := sha256.Sum256([]byte(t.RequestID))
		t.Ops = append(slices.Clip(t.Ops), group.Op{Key: model.KeyAudit, Value: model.Encode(model.Audit{Operator: by, Call: call, RequestSHA256: hex.EncodeToString(id[:])})})
	}
	t, err := s.guard(ctx, store, t)
	if err == nil && store == s.Catalog {
		t, err = s.remember(ctx, t, by, call)
	}
	if err == nil && store == s.Catalog {
		t, err = s.stage(ctx, by, t)
	}
	if err != nil {
		return group.Result{}, err
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		res, err := store.Txn(ctx, t)
		if err == nil {
			if err := store.WaitFor(ctx, res.Revision.Index); err != nil {
				return res, fault.New(fault.Unavailable, "NOT_APPLIED_HERE", "the change is committed, but node %s has not applied it yet; ask another node: %w", s.Node, err)
			}
			return res, nil
		}
		retry := false
		switch fault.ReasonOf(err) {
		case group.ReasonNoLeader, group.ReasonNotLeader, group.ReasonOutcomeUnknown:
			retry = true
		}
		if retry {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
				continue
			case <-ctx.Done():
				timer.Stop()
			}
		}
		return res, s.explain(store, fmt.Errorf("write %s: %w", store.Name(), err))
	}
}

// requestID keeps the ids of different calls apart. Without one from the client the call draws its own, which
// makes its own retries safe and no more.
func requestID(call, id string) string {
	if id == "" {
		id = rand.Text()
	}
	return call + "/" + id
}

// outran is the answer when others kept changing what a transaction was judged against.
func outran() error {
	return fault.New(fault.Conflict, "CONCURRENT_CHANGE", "others changed the same resources %d times meanwhile: try again", maxAttempts)
}

// wrongZone sends the caller where the data rests.
func (s *server) wrongZone(what, zone string) error {
	kv, ok := s.Catalog.Local().Get(model.PrefixZone + zone)
	if !ok {
		return fault.New(fault.Invalid, "ZONE_UNKNOWN", "%s belongs to zone %q, which does not exist", what, zone).At("spec.zone")
	}
	z, err := model.Decode[model.Zone](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	urls := strings.Join(z.AdminURLs, ",")
	return fault.New(fault.WrongZone, "WRONG_ZONE", "%s belongs to zone %s; this node is of zone %s: ask %s", what, zone, s.Zone, or(urls, "a control node of that zone")).
		With("zone", zone).With("admin_urls", urls)
}

// stored reads what is no resource, and so is never laid over.
func stored[T any](snap group.Snapshot, key string) (v T, ok bool, err error) {
	kv, ok := snap.Get(key)
	if ok {
		v, err = model.Decode[T](key, kv.Value)
	}
	return v, ok && err == nil, err
}
