package alert

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// reached: used is at least threshold percent of limit. 128 bits: quotas are large, and no float decides.
func reached(used, limit int64, threshold int) bool {
	if limit <= 0 || used < 0 {
		return false
	}
	uh, ul := bits.Mul64(uint64(used), 100)
	lh, ll := bits.Mul64(uint64(limit), uint64(threshold))
	return uh > lh || uh == lh && ul >= ll
}

// fact is an alert with the key it rests under.
type fact struct {
	key   string
	alert Alert
}

// reachedBy lists every threshold that is reached now, raised before or not.
func reachedBy(zone string, hooks []Webhook, accounts []Account, at time.Time) []fact {
	var out []fact
	for _, a := range accounts {
		instance := a.instance(at)
		for _, w := range hooks {
			if w.Customer != "" && w.Customer != a.Customer {
				continue
			}
			for _, t := range w.Thresholds {
				if !reached(a.Used, a.Limit, t) {
					break // ascending
				}
				key := factKey(w, a, instance, t)
				out = append(out, fact{key, Alert{ID: messageID(zone, key), WebhookID: w.ID, Webhook: w.Name, Customer: a.Customer, Subscription: a.Subscription,
					Plan: a.Plan, Period: a.Period, PeriodEnd: a.PeriodEnd, Threshold: t, Limit: a.Limit, Used: a.Used, RaisedAt: at, Status: Pending}})
			}
		}
	}
	return out
}

// raise writes the facts that are new and, if it is time to, takes old ones away. Only the leader calls it, and the
// compares hold even against one that does not know yet that it is not. It answers how long reading quotas took.
func (s *Service) raise(ctx context.Context, tidy bool) (reading time.Duration, err error) {
	if s.cfg.Accounts == nil {
		return 0, nil
	}
	local := s.cfg.Store.Local()
	hooks, err := webhooks(local)
	if err != nil {
		return 0, err
	}
	var accounts []Account
	if len(hooks) > 0 {
		begun := time.Now()
		accounts, err = s.cfg.Accounts(ctx)
		if reading = time.Since(begun); err != nil {
			return reading, fmt.Errorf("read quotas: %w", err)
		}
	}
	at := now()
	facts := reachedBy(s.cfg.Zone, hooks, accounts, at)
	holds := make(map[string]bool, len(facts))
	var fresh []fact
	for _, f := range facts {
		holds[f.key] = true
		if _, known := local.Get(f.key); !known {
			fresh = append(fresh, f)
		}
	}
	for len(fresh) > 0 {
		n := 1
		for n < min(len(fresh), raisedAtOnce) && fresh[n].alert.Customer == fresh[0].alert.Customer {
			n++
		}
		// A customer who is erased meanwhile must not be named again, and holds up nobody else.
		t := group.Txn{Compares: []group.Compare{{Key: model.PrefixCustomer + fresh[0].alert.Customer, Exists: true}}}
		for _, f := range fresh[:n] {
			t.Compares = append(t.Compares, group.Compare{Key: f.key})
			t.Ops = append(t.Ops, group.Op{Key: f.key, Value: model.Encode(f.alert)})
		}
		res, err := s.commit(ctx, t)
		if err != nil {
			return reading, fmt.Errorf("raise %d alerts: %w", n, err)
		}
		if res.Succeeded { // else they are looked at again next time
			s.stats.Raised.Add(int64(n))
		}
		fresh = fresh[n:]
	}
	if !tidy {
		return reading, nil
	}
	return reading, s.prune(ctx, local, holds, at)
}

// prune forgets facts that are old and no longer hold: of one that holds the next look would raise it again.
func (s *Service) prune(ctx context.Context, local group.Snapshot, holds map[string]bool, at time.Time) error {
	var ops []group.Op
	for kv := range local.List(model.PrefixAlert) {
		if holds[kv.Key] {
			continue
		}
		a, err := model.Decode[Alert](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if at.Sub(a.RaisedAt) > Keep {
			ops = append(ops, group.Op{Key: kv.Key, Delete: true})
		}
	}
	for part := range slices.Chunk(ops, prunedAtOnce) { // all of it: what is left for the next hour may be more each time
		if _, err := s.cfg.Store.Txn(ctx, group.Txn{Ops: part}); err != nil {
			return err
		}
	}
	return nil
}
