package border

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"

	"bailiwick/regions/grant"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// notice compares the pairs permitted now with those of the last look; each that is gone becomes a pending
// in-force record in the same transaction, so no leader change can lose one.
func (k *Keeper) notice(ctx context.Context) error {
	zone := k.cfg.Store.Local()
	now := time.Now()
	pairs, err := Permitted(zone, k.cfg.Zone, now)
	if err != nil {
		return err
	}
	before, mod, err := baseline(zone)
	if err != nil {
		return err
	}
	var pending []group.KV
	var open []grant.Pair
	for kv := range zone.List(model.PrefixInForce) {
		r, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if r.At.IsZero() {
			pending, open = append(pending, kv), append(open, grant.Pair{Policy: r.Policy, From: r.From, To: r.To})
		}
	}
	change, same := grant.Notice(before, mod != 0, pairs, open)
	if same {
		return nil
	}
	next := model.Permitted{Pairs: []model.PermittedPair{}}
	for _, p := range change.Now {
		next.Pairs = append(next.Pairs, model.PermittedPair(p))
	}
	// Views rest on the baseline too: one of this transaction's index or above lacks the pair, by whatever
	// clock it was built. That index is the record's ModIndex while it is pending; ZoneIndex says since when.
	compares := []group.Compare{{Key: model.KeyPermitted, ModIndex: mod}}
	ops := []group.Op{{Key: model.KeyPermitted, Value: model.Encode(next)}}
	revision := zone.Revision()
	for _, p := range change.Lost {
		record := model.InForce{Policy: p.Policy, From: p.From, To: p.To, Why: "no longer permitted; it rested on " + p.Basis,
			ZoneEpoch: revision.Epoch, ZoneIndex: revision.Index + 1, CommittedAt: now.UTC()}
		ops = append(ops, group.Op{Key: inForceKey(record), Value: model.Encode(record)})
		k.cfg.Logger.Info("tightening", "policy", p.Policy, "from", p.From, "to", p.To)
	}
	// What opens again before it was shut everywhere will never have been: its pending record ends here.
	for _, i := range change.Back {
		compares = append(compares, group.Compare{Key: pending[i].Key, ModIndex: pending[i].ModIndex})
		ops = append(ops, group.Op{Key: pending[i].Key, Delete: true})
		k.cfg.Logger.Info("tightening taken back before it was in force", "policy", open[i].Policy, "from", open[i].From, "to", open[i].To)
	}
	_, err = k.cfg.Store.Txn(ctx, group.Txn{Compares: compares, Ops: ops})
	return err
}

// baseline is what was permitted at the leader's last look; mod is 0 if there was none.
func baseline(zone group.Snapshot) (pairs []grant.Pair, mod uint64, err error) {
	kv, ok := zone.Get(model.KeyPermitted)
	if !ok {
		return nil, 0, nil
	}
	p, err := model.Decode[model.Permitted](kv.Key, kv.Value)
	for _, x := range p.Pairs {
		pairs = append(pairs, grant.Pair(x))
	}
	return pairs, kv.ModIndex, err
}

// inForceKey sorts a zone's records by when they came.
func inForceKey(r model.InForce) string {
	return fmt.Sprintf("%s%020d/%s/%s>%s", model.PrefixInForce, r.ZoneIndex, r.Policy, r.From, r.To)
}

// complete signs each pending tightening that now holds everywhere: when all senders have acknowledged or
// their grants have ended, or all receivers have acknowledged; in both cases plus the time to cut.
func (k *Keeper) complete(ctx context.Context) error {
	zone := k.cfg.Store.Local()
	now := time.Now()
	for kv := range zone.List(model.PrefixInForce) {
		record, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if !record.At.IsZero() {
			continue
		}
		by, waiting := k.holds(record, kv.ModIndex, now)
		if len(waiting) > 0 {
			continue
		}
		record.At, record.By = now.UTC(), by
		record.Signature = ed25519.Sign(k.cfg.Signer, inForceText(record))
		if _, err := k.cfg.Store.Txn(ctx, group.Txn{
			Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}},
			Ops:      []group.Op{{Key: kv.Key, Value: model.Encode(record)}},
		}); err != nil {
			return err
		}
		k.cfg.Logger.Info("tightening in force", "policy", record.Policy, "from", record.From, "to", record.To,
			"by", by, "after_ms", record.At.Sub(record.CommittedAt).Milliseconds())
	}
	return nil
}

func inForceText(r model.InForce) []byte {
	r.Signature = nil
	return append([]byte("bailiwick-in-force/1\n"), model.Encode(r)...)
}

// VerifyInForce checks a completed record's signature.
func VerifyInForce(key ed25519.PublicKey, r model.InForce) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, inForceText(r), r.Signature)
}

// holds says which half makes the tightening hold, or for which edges it still waits (the shorter list).
// barrier is the zone index from which a table lacks the pair.
func (k *Keeper) holds(r model.InForce, barrier uint64, now time.Time) (by string, waiting []string) {
	registry, unread := nodes(k.cfg.Catalog.Local())
	a, _, err := adopted(k.cfg.Store.Local())
	if err != nil || unread != nil { // an edge that nobody sees is not one that has acknowledged
		return "", []string{"leader"}
	}
	ground := grant.Ground{
		Own: func(region string) (own, known bool) {
			for _, x := range a.Regions {
				if x.Name == region {
					return x.Zone == k.cfg.Zone, true
				}
			}
			return false, false
		},
		Members: func(region string) (edges []string) {
			for name, n := range registry {
				if n.Region == region && n.Kind == "edge" {
					edges = append(edges, name)
				}
			}
			return edges
		},
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.term == nil {
		return "", []string{"leader"}
	}
	return k.term.book.InForce(grant.Tightening{From: r.From, To: r.To, Epoch: r.ZoneEpoch, Barrier: barrier, Now: k.cfg.Store.Local().Revision().Epoch}, ground, now)
}

func nodes(catalog group.Snapshot) (map[string]model.Node, error) {
	out := map[string]model.Node{}
	for kv := range catalog.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out[strings.TrimPrefix(kv.Key, model.PrefixNode)] = n
	}
	return out, nil
}

// Tightenings lists the zone's in-force records, newest first, at most 100; pending ones say for whom they wait.
func (k *Keeper) Tightenings() ([]*adminv1.Tightening, error) {
	records := slices.Collect(k.cfg.Store.Local().List(model.PrefixInForce))
	slices.Reverse(records)
	var out []*adminv1.Tightening
	for _, kv := range records[:min(len(records), 100)] {
		r, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		t := &adminv1.Tightening{Policy: r.Policy, From: r.From, To: r.To, Why: r.Why, CommittedAt: timestamppb.New(r.CommittedAt)}
		if r.At.IsZero() {
			_, t.WaitingFor = k.holds(r, kv.ModIndex, time.Now())
		} else {
			t.InForceAt = timestamppb.New(r.At)
		}
		out = append(out, t)
	}
	return out, nil
}
