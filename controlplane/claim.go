package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"bailiwick/controlplane/internal/claim"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/etcdgroup"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// keyClaim, below a prefix of etcd, says whose it is: one zone's of one installation. The catalog's is the primary zone's.
const keyClaim = "zone"

// claimed is what the key holds. The zone's public key tells two installations of one name apart.
type claimed struct {
	Installation string `json:"installation"`
	Zone         string `json:"zone"`
	Key          []byte `json:"key"`
}

func keyOf(in *pki.Installation, zone string) []byte {
	for _, z := range in.Zones {
		if z.Name == zone {
			return z.SigningKey
		}
	}
	return nil // no node is of a zone that its installation does not name
}

// clusters knows to which clusters of etcd the two groups were led. Texts of endpoints say nothing of that.
type clusters struct {
	in   *pki.Installation
	self string // zone
	file string // which cluster the zone's store may be opened in, so that a start does not wait for the catalog

	node   string        // this one
	window time.Duration // in which others object

	led chan struct{} // the store was led to a cluster; buffered

	mu             sync.Mutex // covers what follows
	catalog, store uint64     // 0: not known yet
	wanted         uint64     // to be claimed: the store's, once its prefix is known to be nobody else's
	restored       bool       // and it holds the zone's store already
	claimed        uint64     // what the catalog says this zone keeps its store in
}

func newClusters(in *pki.Installation, self, node, file string, window time.Duration) *clusters {
	return &clusters{in: in, self: self, node: node, file: file, window: window, led: make(chan struct{}, 1)}
}

// claim is the claim on the prefix of a group's etcd, which is to be a zone's: for the catalog, the primary one's.
func (c *clusters) claim(prefix, zone, flag string, catalog bool) *etcdgroup.Claim {
	mine := claimed{Installation: c.in.Name, Zone: zone, Key: keyOf(c.in, zone)}
	value, err := json.Marshal(mine)
	if err != nil {
		panic(err) // texts and bytes
	}
	return &etcdgroup.Claim{Key: prefix + keyClaim, Value: value, Make: c.self == zone, Judge: func(found []byte, cluster uint64) error {
		if err := c.standing(cluster, catalog); err != nil {
			return err
		}
		allowed := func() error {
			if catalog {
				return nil
			}
			return c.allowed(cluster, found != nil)
		}
		if found == nil {
			return allowed()
		}
		var theirs claimed
		if err := json.Unmarshal(found, &theirs); err != nil || theirs.Installation == "" || theirs.Zone == "" {
			return fault.New(fault.Conflict, "STORE_CLAIM_UNREADABLE", "%s-endpoints: key %s%s in etcd does not say whose the prefix is: a newer bailiwick-control wrote it, or something else did: choose another %s-prefix", flag, prefix, keyClaim, flag)
		}
		switch {
		case theirs.Installation != mine.Installation || theirs.Zone == mine.Zone && string(theirs.Key) != string(mine.Key):
			return fault.New(fault.Conflict, "STORE_OF_ANOTHER_INSTALLATION", "%s-endpoints: prefix %s in this etcd is kept by another installation (%s, zone %s): choose another %s-prefix, or another cluster", flag, prefix, theirs.Installation, theirs.Zone, flag)
		case theirs.Zone != mine.Zone && catalog:
			return fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "%s-endpoints: prefix %s in this etcd is zone %s's: the catalog rests in the primary zone %s: name the cluster there", flag, prefix, theirs.Zone, mine.Zone)
		case theirs.Zone != mine.Zone:
			return fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "%s-endpoints: prefix %s in this etcd is zone %s's: the store of zone %s must rest in %s: give it a cluster there", flag, prefix, theirs.Zone, mine.Zone, mine.Zone)
		}
		return allowed()
	}}
}

// standing refuses a zone's store in the cluster of the catalog, which stands in the primary zone, whatever it is called.
func (c *clusters) standing(cluster uint64, catalog bool) error {
	c.mu.Lock()
	if catalog {
		c.catalog = cluster
	} else {
		c.store = cluster
	}
	catalogs, stores := c.catalog, c.store
	c.mu.Unlock()
	if c.self != c.in.PrimaryZone && catalogs == stores {
		return fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "-etcd-endpoints and -etcd-catalog-endpoints lead to one cluster of etcd (%016x): the catalog rests in zone %s, and the store of zone %s must rest in %s: give it a cluster there. %s", cluster, c.in.PrimaryZone, c.self, c.self, sameName)
	}
	return nil
}

// allowed has the zone's store wait until the catalog says that no other zone keeps its store in that cluster. What is another's
// by the key below the prefix never comes here: a node that was led astray would take the cluster from a zone that has not
// claimed it yet.
func (c *clusters) allowed(cluster uint64, restored bool) error {
	c.mu.Lock()
	c.wanted, c.restored = cluster, restored
	claimed := c.claimed
	c.mu.Unlock()
	select {
	case c.led <- struct{}{}:
	default:
	}
	if claimed == cluster {
		return nil
	}
	if was, err := durable.ReadFile(durable.OS(), c.file, 1<<10); err == nil && string(was) == apart(cluster) {
		return nil // claimed before, or, by the release of before 2026-11-26, found to be another than the catalog's
	}
	return fmt.Errorf("whether the zone's store has a cluster of its own is known once the catalog answers: %w", etcdgroup.ErrUndecided)
}

func apart(cluster uint64) string { return fmt.Sprintf("%016x", cluster) }

// sameName is what else two zones in one cluster may be.
const sameName = "If they are two that were made with the same names and addresses, save a snapshot of one (etcdctl snapshot save) and restore it with an --initial-cluster-token of its own (etcdutl snapshot restore), which gives it another id and keeps what is in it"

const (
	claimRetry = time.Second
	claimEvery = 30 * time.Second       // a catalog that was set back may have lost the claim
	claimLook  = 200 * time.Millisecond // for releases to object to: a look is one at this node's copy
	claimLimit = 5 * time.Second        // beside the window of a release
)

// keep claims the cluster that the zone's store was led to, in the catalog, which all zones share: of any number of zones that
// are led to one cluster exactly one opens its store there, and of any number of clusters that one zone's nodes are led to, one is
// opened. What another zone keeps, or where this zone does not, ends the node. While it runs, it objects to releases of its cluster.
func (c *clusters) keep(ctx context.Context, catalog group.Store, log *slog.Logger, fail func(error)) error {
	timer, look := time.NewTimer(claimEvery), time.NewTicker(claimLook)
	defer timer.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.led:
		case <-timer.C:
		case <-look.C:
			if err := c.object(ctx, catalog, log); err != nil && ctx.Err() == nil {
				log.Debug("the release of the cluster of the zone's store cannot be objected to; it will be tried again", "error", err)
			}
			continue
		}
		c.mu.Lock()
		cluster, restored := c.wanted, c.restored
		c.mu.Unlock()
		wait := claimEvery
		if cluster != 0 {
			holder, err := c.take(ctx, catalog, cluster, restored)
			switch {
			case fault.ReasonOf(err) == claim.ReasonTwo:
				fail(err)
				return nil
			case err != nil:
				if wait = claimRetry; ctx.Err() == nil {
					log.Debug("the cluster of the zone's store is not claimed yet; it will be tried again", "error", err)
				}
			case holder != c.self:
				fail(fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "-etcd-endpoints lead to the cluster of etcd (%016x) in which zone %s keeps its store: the store of zone %s must rest in %s: give it a cluster there. %s", cluster, holder, c.self, c.self, sameName))
				return nil
			default:
				if err := c.claims(cluster); err != nil {
					return fmt.Errorf("remember the cluster of the zone's store: %w", err)
				}
			}
		}
		timer.Reset(wait)
	}
}

func (c *clusters) take(ctx context.Context, catalog group.Store, cluster uint64, restored bool) (holder string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.window+claimLimit)
	defer cancel()
	return claim.Take(ctx, catalog, claim.Taking{Cluster: apart(cluster), Zone: c.self, Node: c.node, Restored: restored, At: time.Now(), Window: c.window})
}

// object objects to the release of the cluster that the zone's store is in.
func (c *clusters) object(ctx context.Context, catalog group.Store, log *slog.Logger) error {
	c.mu.Lock()
	cluster := c.claimed
	c.mu.Unlock()
	if cluster == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimLimit)
	defer cancel()
	objected, err := claim.Object(ctx, catalog, apart(cluster), c.self)
	if objected {
		log.Warn("the cluster of the zone's store was to be released: this node uses it, and has objected", "group", storeGroup(c.self))
	}
	return err
}

func (c *clusters) claims(cluster uint64) error {
	c.mu.Lock()
	before := c.claimed
	c.claimed = cluster
	c.mu.Unlock()
	if before == cluster {
		return nil
	}
	return durable.WriteFileAtomic(durable.OS(), c.file, []byte(apart(cluster)), durable.FilePerm)
}
