// Package discovery owns upstreams that are found and not written in manifests: what an etcd of the zone's operators says of
// them becomes a record of the zone's store, and so an object of its edges' tables. Edges speak to no etcd.
//
// It never removes the last that is known: while etcd is away, or says nothing more of a region, what was found before stays,
// since nothing is never what an operator wants to reach. It never looks at the catalog's leader, nor at upstreams themselves.
// The node that leads the zone's store does it; another begins anew from what rests there and from etcd. A Finder may be asked
// by one Run alone.
package discovery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Limits.
const (
	MaxKeys   = 10_000 // below the prefix; with more nothing of it is taken
	MaxURLs   = 64     // of one API in one region; the first by name stay
	maxValue  = 512    // bytes of one
	pace      = time.Second
	lookAgain = 10 * time.Second // at the catalog, for APIs that came or changed
)

// Follow tells all that is there, at first and after each change, until it fails or ctx ends: etcdgroup.Tell of a prefix.
type Follow func(ctx context.Context, told func(map[string]string)) error

// Store is what a Finder asks of the zone's store.
type Store interface {
	Local() group.Snapshot
	Txn(ctx context.Context, t group.Txn) (group.Result, error)
	RunLeader(ctx context.Context, work func(ctx context.Context)) error
}

// Catalog is what it asks of the catalog.
type Catalog interface{ Local() group.Snapshot }

// Config of a Finder. All fields are required.
type Config struct {
	Zone    string
	Catalog Catalog
	Store   Store
	Follow  Follow
	Logger  *slog.Logger
}

// Finder writes what is found. Run it.
type Finder struct{ cfg Config }

// New makes one.
func New(cfg Config) (*Finder, error) {
	if cfg.Zone == "" || cfg.Catalog == nil || cfg.Store == nil || cfg.Follow == nil || cfg.Logger == nil {
		return nil, errors.New("discovery: Zone, Catalog, Store, Follow and Logger are required")
	}
	return &Finder{cfg}, nil
}

// Run finds until ctx ends, while this node leads.
func (f *Finder) Run(ctx context.Context) error { return f.cfg.Store.RunLeader(ctx, f.lead) }

func (f *Finder) lead(ctx context.Context) {
	told := make(chan map[string]string, 1) // the latest alone
	ended := make(chan error, 1)
	var all map[string]string
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ctx.Err() == nil {
			err := f.cfg.Follow(ctx, func(m map[string]string) {
				select {
				case <-told:
				default:
				}
				told <- m // there is room: nobody else sends
			})
			select {
			case ended <- err:
			case <-ctx.Done():
			}
			sleep(ctx, pace)
		}
	})
	failing := false
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case all = <-told:
			failing = false
		case err := <-ended:
			if err != nil && !failing {
				failing = true
				f.cfg.Logger.WarnContext(ctx, "upstreams cannot be looked for: what was found stays", "error", err)
			}
			continue
		case <-again.C:
		}
		if all == nil {
			continue
		}
		if err := f.write(ctx, all); err != nil && ctx.Err() == nil {
			f.cfg.Logger.WarnContext(ctx, "upstreams that were found are not written: trying again", "error", err)
		}
		if !sleep(ctx, pace) { // changes that come closely together are one
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// write brings the store to what is there: one transaction an API that differs.
func (f *Finder) write(ctx context.Context, all map[string]string) error {
	catalog, zone := f.cfg.Catalog.Local(), f.cfg.Store.Local()
	regions := map[string]bool{}
	for kv := range catalog.List(model.PrefixRegion) {
		r, err := model.Decode[model.Region](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		regions[r.Name] = r.Zone == f.cfg.Zone && !r.ControlOnly
	}
	found := f.read(all, regions)
	seeking := map[string]bool{}
	for kv := range catalog.List(model.PrefixAPI) {
		a, err := model.Decode[model.API](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		seeking[a.Name] = seeking[a.Name] || a.Zone == f.cfg.Zone && a.Dispatch.Discovery == "etcd"
	}
	var errs []error
	for api, is := range seeking {
		if !is {
			continue
		}
		key := model.PrefixTargets + api
		kv, there := zone.Get(key)
		var was model.Targets
		if there {
			var err error
			if was, err = model.Decode[model.Targets](key, kv.Value); err != nil {
				return err
			}
		}
		now := merge(api, was, found[api], regions)
		if len(now.Of) == 0 && !there || there && same(was, now) {
			continue
		}
		errs = append(errs, f.commit(ctx, group.Op{Key: key, Value: model.Encode(now)}, kv.ModIndex))
	}
	for kv := range zone.List(model.PrefixTargets) {
		if !seeking[strings.TrimPrefix(kv.Key, model.PrefixTargets)] {
			errs = append(errs, f.commit(ctx, group.Op{Key: kv.Key, Delete: true}, kv.ModIndex))
		}
	}
	return errors.Join(errs...)
}

func (f *Finder) commit(ctx context.Context, op group.Op, at uint64) error {
	_, err := f.cfg.Store.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: op.Key, ModIndex: at}}, Ops: []group.Op{op}})
	return err // a compare that fails is a change that the next look sees
}

// read sorts names ZONE/API/REGION/ANY by API and region. What is no URL, or of another zone or region, is left out and
// counted: a wrong entry takes the others nowhere.
func (f *Finder) read(all map[string]string, regions map[string]bool) map[string]map[string][]string {
	out, wrong := map[string]map[string][]string{}, 0
	for name, value := range all {
		part := strings.SplitN(name, "/", 4)
		if len(part) != 4 || part[0] != f.cfg.Zone {
			continue
		}
		value = strings.TrimRight(strings.TrimSpace(value), "/")
		if !regions[part[2]] || len(value) > maxValue || model.UpstreamURL(value) != nil {
			wrong++
			continue
		}
		of := out[part[1]]
		if of == nil {
			of = map[string][]string{}
			out[part[1]] = of
		}
		of[part[2]] = append(of[part[2]], value)
	}
	if wrong > 0 {
		f.cfg.Logger.Debug("entries that name no upstream of this zone are left out", "count", wrong)
	}
	for _, of := range out {
		for region, urls := range of {
			slices.Sort(urls)
			urls = slices.Compact(urls)
			of[region] = urls[:min(len(urls), MaxURLs)]
		}
	}
	return out
}

// merge is what is to rest: of a region of which nothing is said any more, what was.
func merge(api string, was model.Targets, found map[string][]string, regions map[string]bool) model.Targets {
	out := model.Targets{API: api}
	for region, urls := range found {
		out.Of = append(out.Of, model.DiscoveredURLs{Region: region, URLs: urls})
	}
	for _, o := range was.Of {
		if len(found[o.Region]) == 0 && regions[o.Region] {
			out.Of = append(out.Of, o)
		}
	}
	slices.SortFunc(out.Of, func(a, b model.DiscoveredURLs) int { return strings.Compare(a.Region, b.Region) })
	return out
}

func same(a, b model.Targets) bool {
	return slices.EqualFunc(a.Of, b.Of, func(x, y model.DiscoveredURLs) bool {
		return x.Region == y.Region && slices.Equal(x.URLs, y.URLs)
	})
}
