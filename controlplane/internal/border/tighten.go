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
	known := mod != 0
	next := model.Permitted{Pairs: []model.PermittedPair{}}
	holds := map[model.PermittedPair]bool{}
	for _, p := range pairs {
		pair := model.PermittedPair{Policy: p.Policy, From: p.From, To: p.To, Basis: p.Basis}
		next.Pairs = append(next.Pairs, pair)
		pair.Basis = "" // a pair that only changes its basis stays permitted
		holds[pair] = true
	}
	if known && slices.Equal(next.Pairs, before.Pairs) {
		return nil
	}
	revision := zone.Revision()
	ops := []group.Op{{Key: model.KeyPermitted, Value: model.Encode(next)}}
	for _, p := range before.Pairs {
		basis := p.Basis
		p.Basis = ""
		if holds[p] {
			continue
		}
		record := model.InForce{Policy: p.Policy, From: p.From, To: p.To, Why: "no longer permitted; it rested on " + basis,
			ZoneEpoch: revision.Epoch, ZoneIndex: revision.Index + 1, CommittedAt: now.UTC()}
		ops = append(ops, group.Op{Key: inForceKey(record), Value: model.Encode(record)})
		k.cfg.Logger.Info("tightening", "policy", p.Policy, "from", p.From, "to", p.To)
	}
	// Views rest on the baseline too: one of this transaction's index or above lacks the pair, by whatever
	// clock it was built. That index is the record's ModIndex while it is pending; ZoneIndex says since when.
	compares := []group.Compare{{Key: model.KeyPermitted, ModIndex: mod}}
	// What opens again before it was shut everywhere will never have been: its pending record ends here.
	for kv := range zone.List(model.PrefixInForce) {
		r, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if r.At.IsZero() && holds[model.PermittedPair{Policy: r.Policy, From: r.From, To: r.To}] {
			compares = append(compares, group.Compare{Key: kv.Key, ModIndex: kv.ModIndex})
			ops = append(ops, group.Op{Key: kv.Key, Delete: true})
			k.cfg.Logger.Info("tightening taken back before it was in force", "policy", r.Policy, "from", r.From, "to", r.To)
		}
	}
	_, err = k.cfg.Store.Txn(ctx, group.Txn{Compares: compares, Ops: ops})
	return err
}

func baseline(zone group.Snapshot) (p model.Permitted, mod uint64, err error) {
	kv, ok := zone.Get(model.KeyPermitted)
	if ok {
		p, err = model.Decode[model.Permitted](kv.Key, kv.Value)
	}
	return p, kv.ModIndex, err
}

type pairKey struct{ policy, from, to string }

func noticed(zone group.Snapshot) (pairs map[pairKey]bool, mod uint64, err error) {
	p, mod, err := baseline(zone)
	pairs = map[pairKey]bool{}
	for _, x := range p.Pairs {
		pairs[pairKey{x.Policy, x.From, x.To}] = true
	}
	return pairs, mod, err
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
// barrier is the zone index from which a table lacks the pair. Only the own zone's edges answer to this leader:
// of a pair from abroad the receivers alone count, of one that leads abroad the senders alone.
func (k *Keeper) holds(r model.InForce, barrier uint64, now time.Time) (by string, waiting []string) {
	registry := nodes(k.cfg.Catalog.Local())
	a, _, err := adopted(k.cfg.Store.Local())
	if err != nil {
		return "", []string{"leader"}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.term
	if t == nil {
		return "", []string{"leader"}
	}
	own := func(region string) bool {
		for _, x := range a.Regions {
			if x.Name == region {
				return x.Zone == k.cfg.Zone
			}
		}
		for _, l := range t.ends { // not in the rules any more: edges that may hold grants tell, and those that report
			if l.region == region {
				return true
			}
		}
		for _, rep := range t.reports {
			if rep.edge.GetRegion() == region {
				return true
			}
		}
		return false
	}
	sends, takes := own(r.From), own(r.To)
	acked := func(edge string) bool {
		rep, ok := t.reports[edge]
		if !ok || rep.edge.GetZone().GetEpoch() != r.ZoneEpoch || rep.edge.GetZone().GetIndex() < barrier {
			return false
		}
		first, seen := rep.acked[barrier]
		if !seen {
			rep.acked[barrier] = now
			return false
		}
		return now.Sub(first) >= abort
	}
	var senders, receivers []string
	for key, l := range t.ends { // also edges that were removed: until its end a grant may still be used
		if l.region == r.From && (key.to == r.To || key.to == anywhere) && now.Before(l.end) && !acked(key.edge) {
			senders = append(senders, key.edge)
		}
	}
	slices.Sort(senders)
	senders = slices.Compact(senders)
	known := map[string]bool{} // receivers: of the registry, and who a node of this zone speaks for
	for name, n := range registry {
		if n.Region == r.To && n.Kind == "edge" {
			known[name] = true
		}
	}
	for name, rep := range t.reports {
		if rep.edge.GetRegion() == r.To {
			known[name] = true
		}
	}
	for name := range known {
		if !acked(name) {
			receivers = append(receivers, name)
		}
	}
	if len(known) == 0 { // the registry may not have arrived here yet: nobody has acknowledged anything
		receivers = []string{"edges of " + r.To}
	}
	slices.Sort(receivers)
	switch {
	case sends && len(senders) == 0:
		return "senders", nil
	case takes && len(receivers) == 0:
		return "receivers", nil
	case sends && (!takes || len(senders) <= len(receivers)):
		return "", senders
	}
	return "", receivers
}

func nodes(catalog group.Snapshot) map[string]model.Node {
	out := map[string]model.Node{}
	for kv := range catalog.List(model.PrefixNode) {
		if n, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil {
			out[strings.TrimPrefix(kv.Key, model.PrefixNode)] = n
		}
	}
	return out
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
