// Package border keeps a zone's side of the compatibility policies: it adopts the catalog's rules into the
// zone's own log, grants edges permission to relay, notices each tightening and records when it is in force.
//
// The zone store's leader alone does any of it (design.md §2.2, §2.5); a Keeper on another node answers
// NOT_LEADER and its caller carries the request on. What must survive is in the zone store: what was adopted,
// closures, the record of each edge's latest grants, pending and completed in-force records. What a leader
// keeps in memory, when grants were given and what edges acknowledged, a new leader replaces by the worst
// case: every edge got a full grant when it was elected, and none has acknowledged anything.
// All methods may be called from several goroutines at once.
package border

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/regions"
	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
)

// Limits of §2.5.
const (
	DefaultTTL = 30 * time.Second
	// tick is how often pending tightenings are looked at.
	tick = 200 * time.Millisecond
	// retryPast is how often a new leader reads again what it could not read.
	retryPast = time.Second
)

// Config of a Keeper; every field but TTL and LeftBehind is required.
type Config struct {
	Zone    string
	Catalog group.Store
	Store   group.Store
	Signer  ed25519.PrivateKey // the zone's; signs grants and in-force records
	TTL     time.Duration      // of a grant; 0 means DefaultTTL
	Logger  *slog.Logger

	// LeftBehind says that the catalog was recovered and Catalog is a copy of before, which cannot tell its new epoch;
	// nil: never.
	LeftBehind func() bool
}

// Keeper is one node's part in keeping the border.
type Keeper struct {
	cfg Config

	// mu covers term: nil while this node does not lead the zone store. It is never held across I/O.
	mu   sync.Mutex
	term *term
	wake chan struct{}
}

// term is what a leader knows only by itself.
type term struct {
	book    *grant.Book
	reports map[grant.Process]*peerv1.EdgeReport // the latest of each, for people
}

// New checks the configuration; nothing runs before Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.Zone == "" || cfg.Catalog == nil || cfg.Store == nil || len(cfg.Signer) != ed25519.PrivateKeySize || cfg.Logger == nil {
		return nil, fmt.Errorf("border: Zone, Catalog, Store, Signer and Logger are required")
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	return &Keeper{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

// Run keeps the border whenever this node leads the zone store, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	return k.cfg.Store.RunLeader(ctx, k.lead)
}

func (k *Keeper) lead(ctx context.Context) {
	past, err := k.past(time.Now())
	for err != nil { // whoever does not know the edges cannot say what they may hold
		k.cfg.Logger.Error("border is not kept: what edges may hold does not read", "zone", k.cfg.Zone, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPast):
		}
		past, err = k.past(time.Now())
	}
	t := &term{book: grant.Open(past, k.cfg.TTL, time.Now()), reports: map[grant.Process]*peerv1.EdgeReport{}}
	k.mu.Lock()
	k.term = t
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.term = nil
		k.mu.Unlock()
	}()
	var watchers sync.WaitGroup
	defer watchers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, s := range []group.Store{k.cfg.Catalog, k.cfg.Store} {
		watchers.Go(func() { k.follow(ctx, s) })
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		if err := k.step(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Logger.Warn("border step", "zone", k.cfg.Zone, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-ticker.C: // also for legal bases that expire: no write announces them
		}
	}
}

// follow wakes the leader on every change; the tick covers what a compacted watch misses.
func (k *Keeper) follow(ctx context.Context, s group.Store) {
	for ctx.Err() == nil {
		w, err := s.Watch(s.Local().Revision().Index+1, "")
		if err == nil {
			for err == nil {
				if _, _, err = w.Next(ctx); err == nil {
					select {
					case k.wake <- struct{}{}:
					default:
					}
				}
			}
			w.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(tick):
		}
	}
}

// step adopts, notices tightenings and completes those in force. Each is idempotent.
func (k *Keeper) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// What cannot be adopted holds up nothing that the zone decides alone.
	var errs []error
	if err := k.birth(ctx); err != nil {
		errs = append(errs, fmt.Errorf("say under which epochs pairs may cross zones: %w", err))
	} else if err := k.adopt(ctx); err != nil {
		errs = append(errs, fmt.Errorf("adopt catalog rules: %w", err))
	} else if err := k.shut(ctx); err != nil {
		errs = append(errs, fmt.Errorf("close what crosses zones after a recovery of the catalog: %w", err))
	}
	if err := k.notice(ctx); err != nil {
		errs = append(errs, fmt.Errorf("compare permitted pairs: %w", err))
	}
	if err := k.complete(ctx); err != nil {
		errs = append(errs, fmt.Errorf("complete tightenings: %w", err))
	}
	return errors.Join(errs...)
}

// birth approves what crosses zones under the epochs of a zone's first rules, once. From then on each recovery, which
// opens an epoch, closes it until an operator approves it. It comes before adoption: rules of a recovered catalog must
// not be the first that a zone ever saw approved. A store that tells of a recovery was born before, also if all else that
// it tells is of earlier: there nothing is approved by itself.
func (k *Keeper) birth(ctx context.Context) error {
	zone := k.cfg.Store.Local()
	current, mod, err := adopted(zone)
	if _, written := zone.Get(model.KeyCrossing); err != nil || written || mod == 0 {
		return err
	}
	first := model.Crossing{CatalogEpoch: current.CatalogEpoch, StoreEpoch: zone.Revision().Epoch, At: time.Now().UTC()}
	if reborn(zone) {
		first = model.Crossing{At: first.At, Reason: "the zone's store was recovered, and has no record of what was approved before"}
	}
	_, err = k.cfg.Store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: model.KeyCrossing}, {Key: model.KeyAdopted, ModIndex: mod}},
		Ops:      []group.Op{{Key: model.KeyCrossing, Value: model.Encode(first)}},
	})
	return err
}

// shut closes what crosses zones where a recovered catalog cannot: its new epoch, which closes it otherwise, does not come
// to a node that was left behind until that begins anew. Whoever approves it before has it closed again.
func (k *Keeper) shut(ctx context.Context) error {
	if k.cfg.LeftBehind == nil || !k.cfg.LeftBehind() {
		return nil
	}
	zone := k.cfg.Store.Local()
	current, _, err := adopted(zone)
	if err != nil || current.CatalogEpoch > k.cfg.Catalog.Local().Revision().Epoch {
		return err // another leader of the zone has seen the new epoch
	}
	c, err := crossing(zone)
	if err != nil || c == nil || c.CatalogEpoch == 0 {
		return err
	}
	kv, _ := zone.Get(model.KeyCrossing)
	_, err = k.cfg.Store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: model.KeyCrossing, ModIndex: kv.ModIndex}},
		Ops: []group.Op{{Key: model.KeyCrossing, Value: model.Encode(model.Crossing{StoreEpoch: c.StoreEpoch, At: time.Now().UTC(),
			Reason: "the catalog was recovered, and this zone's control nodes have its copy of before"})}},
	})
	return err
}

// reborn says whether a store tells of a recovery.
func reborn(zone group.Snapshot) bool {
	for range zone.List(model.PrefixRecovery) {
		return true
	}
	return false
}

func crossing(zone group.Snapshot) (*model.Crossing, error) {
	kv, ok := zone.Get(model.KeyCrossing)
	switch {
	case !ok && reborn(zone):
		return &model.Crossing{}, nil // as birth will write it
	case !ok:
		return nil, nil
	}
	c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
	return &c, err
}

// adopt copies the catalog's border rules into the zone's log as soon as they differ from what it holds.
func (k *Keeper) adopt(ctx context.Context) error {
	catalog, zone := k.cfg.Catalog.Local(), k.cfg.Store.Local()
	current, mod, err := adopted(zone)
	if err != nil {
		return err
	}
	// A node that has just become leader may follow the catalog at a distance: never adopt backwards.
	if r := catalog.Revision(); r.Index == 0 || r.Less(group.Revision{Epoch: current.CatalogEpoch, Index: current.CatalogIndex}) {
		return nil
	}
	next, err := rulesOf(catalog)
	if err != nil {
		return err
	}
	next.CatalogEpoch, next.CatalogIndex = current.CatalogEpoch, current.CatalogIndex
	// A recovery of the catalog opens an epoch: the same rules are adopted anew, since grants carry it.
	if catalog.Revision().Epoch == current.CatalogEpoch && string(model.Encode(next)) == string(model.Encode(current)) {
		return nil
	}
	if _, err := next.Compile(); err != nil {
		// The admin API refuses such rules; if they are there all the same, the zone keeps what it has.
		return fmt.Errorf("catalog rules at %s do not compile and are not adopted: %w", catalog.Revision(), err)
	}
	next.CatalogEpoch, next.CatalogIndex = catalog.Revision().Epoch, catalog.Revision().Index
	_, err = k.cfg.Store.Txn(ctx, group.Txn{
		Compares: []group.Compare{{Key: model.KeyAdopted, ModIndex: mod}},
		Ops:      []group.Op{{Key: model.KeyAdopted, Value: model.Encode(next)}},
	})
	return err
}

func adopted(zone group.Snapshot) (model.Adopted, uint64, error) {
	kv, ok := zone.Get(model.KeyAdopted)
	if !ok {
		return model.Adopted{}, 0, nil
	}
	a, err := model.Decode[model.Adopted](model.KeyAdopted, kv.Value)
	return a, kv.ModIndex, err
}

func rulesOf(catalog group.Snapshot) (model.Adopted, error) {
	var a model.Adopted
	var err error
	if a.Regions, err = list[model.Region](catalog, model.PrefixRegion); err != nil {
		return a, err
	}
	for i := range a.Regions { // what only DNS or people read decides no relay and need not be adopted
		a.Regions[i].ClientSubnets, a.Regions[i].Drain, a.Regions[i].Labels, a.Regions[i].UpstreamNetworks = nil, "", nil, nil
	}
	if a.Bases, err = list[model.LegalBasis](catalog, model.PrefixBasis); err != nil {
		return a, err
	}
	a.Policies, err = list[model.Policy](catalog, model.PrefixPolicy)
	return a, err
}

func list[T any](s group.Snapshot, prefix string) ([]T, error) {
	var out []T
	for kv := range s.List(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Permitted lists the pairs that hold now by what a zone has adopted less its closures, those alone that
// touch the zone and carry requests. It is the one reading of the rules that grants, tightenings and status share.
func Permitted(zone group.Snapshot, name string, now time.Time) ([]regions.Permitted, error) {
	a, _, err := adopted(zone)
	if err != nil {
		return nil, err
	}
	set, err := a.Compile()
	if err != nil {
		return nil, err
	}
	stored, err := list[model.Closure](zone, model.PrefixClosure)
	if err != nil {
		return nil, err
	}
	crossing, err := crossing(zone)
	if err != nil {
		return nil, err
	}
	closures := model.Closures(stored, crossing, a, zone.Revision().Epoch)
	inZone := map[string]bool{}
	for _, r := range a.Regions {
		inZone[r.Name] = r.Zone == name
	}
	return grant.Touching(set.Pairs(now, closures), func(region string) bool { return inZone[region] }), nil
}

func notLeader() error {
	return fault.New(fault.Unavailable, "NOT_LEADER", "this node does not lead the zone store; ask its leader")
}
