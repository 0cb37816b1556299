// Package rotation owns what is left to do when the time of a rotated key is over: its record says revoked from then on, so
// that edges need not hold it any more, and those of a release before, which know of no end, lose it as well.
//
// It ends nothing while this node's clock is not that of most nodes of the zone. Nothing waits for it: an edge ends the key by itself, by the end that it holds. It makes no key and no end; adminapi does.
// It keeps no state: what is to do rests in the zone store, and a new leader goes on. Run is called once.
package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Defaults.
const (
	DefaultEvery = 10 * time.Second
	// Keep is how long the end of a key is remembered after it came: who asks again, since his answer was lost, is told.
	Keep = 24 * time.Hour
	// MaxApart is how far the clocks of this node and of most others may be apart: beyond it no key is ended here.
	MaxApart = 30 * time.Second
	// batch bounds one transaction.
	batch = 60
)

// Store is the zone store.
type Store interface {
	Local() group.Snapshot
	Txn(ctx context.Context, t group.Txn) (group.Result, error)
	RunLeader(ctx context.Context, work func(ctx context.Context)) error
}

// Clock is this node's among those of the zone.
type Clock interface {
	// ClockAgrees says whether most nodes of the zone have the time of day that this one has, within limit.
	ClockAgrees(limit time.Duration) bool
}

// Config of a Sweep; all but Every are required.
type Config struct {
	Store  Store
	Clock  Clock
	Every  time.Duration // 0: DefaultEvery
	Logger *slog.Logger
}

// Sweep works while this node leads the zone store.
type Sweep struct{ cfg Config }

// New makes a Sweep.
func New(cfg Config) (*Sweep, error) {
	if cfg.Store == nil || cfg.Clock == nil || cfg.Logger == nil {
		return nil, errors.New("rotation: Store, Clock and Logger are required")
	}
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	return &Sweep{cfg}, nil
}

// Run sweeps until ctx ends.
func (s *Sweep) Run(ctx context.Context) error {
	return s.cfg.Store.RunLeader(ctx, func(ctx context.Context) {
		tick := time.NewTicker(s.cfg.Every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("note that rotated keys have ended", "error", err)
			}
		}
	})
}

// sweep looks once, whatever the number of keys, and writes batch by batch.
func (s *Sweep) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Every)
	defer cancel()
	all, err := due(s.cfg.Store.Local(), time.Now())
	if err != nil || len(all) == 0 {
		return err
	}
	// An hour ahead, this node would end for all what has an hour to go.
	if !s.cfg.Clock.ClockAgrees(MaxApart) {
		return fmt.Errorf("the clocks of most other nodes are unknown or more than %s from this node's: nothing is ended by it; edges end the keys by their own", MaxApart)
	}
	for _, t := range all {
		res, err := s.cfg.Store.Txn(ctx, t)
		if err != nil || !res.Succeeded { // outrun by an operator: the next tick looks again
			return err
		}
	}
	return nil
}

// due is what is to be written by now, as transactions each held to what it was judged on.
func due(snap group.Snapshot, now time.Time) (all []group.Txn, err error) {
	var t group.Txn
	next := func() {
		if len(t.Ops) >= batch {
			all, t = append(all, t), group.Txn{}
		}
	}
	for kv := range snap.List(model.PrefixKeyEnd) {
		end, err := model.Decode[model.KeyEnd](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if now.Before(end.At) {
			continue
		}
		next()
		held := group.Compare{Key: kv.Key, ModIndex: kv.ModIndex}
		key, ok := snap.Get(model.PrefixKey + end.ID)
		if ok {
			k, err := model.Decode[model.Key](key.Key, key.Value)
			if err != nil {
				return nil, err
			}
			if k.Status == "active" {
				k.Status = "revoked"
				t.Compares = append(t.Compares, held, group.Compare{Key: key.Key, ModIndex: key.ModIndex})
				t.Ops = append(t.Ops, group.Op{Key: key.Key, Value: model.Encode(k)})
				continue
			}
		}
		if !ok || !now.Before(end.At.Add(Keep)) {
			t.Compares = append(t.Compares, held)
			t.Ops = append(t.Ops, group.Op{Key: kv.Key, Delete: true})
		}
	}
	if len(t.Ops) > 0 {
		all = append(all, t)
	}
	return all, nil
}
