// Package uptime has what the zone's observers make of its regions committed to the zone store when it changes, and so into
// the zone's Merkle log: reports on a region's uptime rest on it.
//
// It decides nothing: DNS follows the edges' own outlook. Every edge watches the regions of its zone, with hysteresis of its
// own; the leader takes the word of most of those that are connected. What is committed survives a crash; a new leader begins
// to look when edges have had time to report to it. Run is called once.
package uptime

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Defaults.
const (
	DefaultEvery = 5 * time.Second // between looks: at most one change of a region in that time
	settle       = 2               // looks of a new leader that nothing follows from
)

// Outlook is what one connected edge thinks of the regions it watches.
type Outlook struct {
	Edge  string
	Alive map[string]bool // by region
}

// Config of a Watch; all but Every are required.
type Config struct {
	Zone     string
	Store    group.Store // the zone store
	Regions  func() []model.Region
	Outlooks func() ([]Outlook, error) // of connected edges, as the leader of the zone store knows them
	Every    time.Duration             // 0: DefaultEvery
	Logger   *slog.Logger
}

// Watch commits changes while this node leads the zone store.
type Watch struct{ cfg Config }

// New makes a Watch.
func New(cfg Config) (*Watch, error) {
	if cfg.Zone == "" || cfg.Store == nil || cfg.Regions == nil || cfg.Outlooks == nil || cfg.Logger == nil {
		return nil, errors.New("uptime: Zone, Store, Regions, Outlooks and Logger are required")
	}
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	return &Watch{cfg}, nil
}

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) error { return w.cfg.Store.RunLeader(ctx, w.lead) }

func (w *Watch) lead(ctx context.Context) {
	tick := time.NewTicker(w.cfg.Every)
	defer tick.Stop()
	for looks := 0; ; looks++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if looks < settle {
			continue
		}
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Logger.Warn("commit what observers make of regions", "zone", w.cfg.Zone, "error", err)
		}
	}
}

func (w *Watch) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Every)
	defer cancel()
	outlooks, err := w.cfg.Outlooks()
	if err != nil {
		return err
	}
	store, now := w.cfg.Store.Local(), time.Now().UTC()
	for _, s := range Judge(w.cfg.Zone, w.cfg.Regions(), outlooks) {
		key := model.PrefixUptime + s.Region
		kv, ok := store.Get(key)
		if ok {
			was, err := model.Decode[model.RegionState](key, kv.Value)
			if err != nil {
				return err
			}
			if was.State == s.State {
				continue
			}
		}
		s.At = now
		if _, err := w.cfg.Store.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: key, Value: model.Encode(s)}}}); err != nil {
			return err
		}
	}
	return nil
}

// Judge says how each serving region of a zone stands, in the order of their names. Without an observer it is unknown, with
// as many for it as against it is up: most must say that it is down.
func Judge(zone string, regions []model.Region, outlooks []Outlook) (out []model.RegionState) {
	serving := map[string]model.Region{}
	for _, r := range regions {
		if r.Zone == zone && !r.ControlOnly {
			serving[r.Name] = r
		}
	}
	for _, name := range slices.Sorted(maps.Keys(serving)) {
		s := model.RegionState{Region: name}
		for _, o := range outlooks {
			if alive, watched := o.Alive[name]; watched {
				s.Observers++
				if !alive {
					s.Against++
				}
			}
		}
		switch {
		case serving[name].Drain != "":
			s.State = model.RegionDrained
		case s.Observers == 0:
			s.State = model.RegionUnknown
		case 2*s.Against > s.Observers:
			s.State = model.RegionDown
		default:
			s.State = model.RegionUp
		}
		out = append(out, s)
	}
	return out
}
