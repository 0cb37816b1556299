package controlplane

import (
	"cmp"
	"context"

	"bailiwick/controlplane/internal/discovery"
	"bailiwick/controlplane/internal/group/etcdgroup"
)

// openFinder is who looks for upstreams in the zone's etcd of them; nil if there is none.
func (n *Node) openFinder() (*discovery.Finder, error) {
	e := n.cfg.Discovery
	if len(e.Endpoints) == 0 {
		return nil, nil
	}
	if err := e.validate("-discovery-etcd"); err != nil {
		return nil, err
	}
	e.Prefix = cmp.Or(e.Prefix, "bailiwick/upstreams/")
	cfg, err := e.config("discovery", n.self.Name)
	if err != nil {
		return nil, err
	}
	return discovery.New(discovery.Config{Zone: n.self.Zone, Catalog: n.catalog, Store: n.store, Logger: n.log,
		Follow: func(ctx context.Context, told func(map[string]string)) error {
			return etcdgroup.Tell(ctx, cfg, e.below(), discovery.MaxKeys, told)
		}})
}
