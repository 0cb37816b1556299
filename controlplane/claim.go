package controlplane

import (
	"encoding/json"
	"fmt"
	"sync"

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
	file string // which cluster was found to be another than the catalog's, so that a start does not wait for the catalog's

	mu             sync.Mutex // covers what follows
	catalog, store uint64     // 0: not known yet
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
		if found == nil {
			return nil
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
		return nil
	}}
}

// standing refuses a zone's store in the cluster of the catalog, which stands in the primary zone, whatever it is called.
func (c *clusters) standing(cluster uint64, catalog bool) error {
	if c.self == c.in.PrimaryZone {
		return nil
	}
	c.mu.Lock()
	if catalog {
		c.catalog = cluster
	} else {
		c.store = cluster
	}
	catalogs, stores := c.catalog, c.store
	c.mu.Unlock()
	switch apart := fmt.Sprintf("%016x", stores); {
	case catalogs == stores: // refused below
	case catalog: // the store's judge writes it down, alone
		return nil
	case catalogs != 0:
		if err := durable.WriteFileAtomic(durable.OS(), c.file, []byte(apart), durable.FilePerm); err != nil {
			return fmt.Errorf("remember the cluster of the zone's store: %w: %w", err, etcdgroup.ErrUndecided)
		}
		return nil
	default:
		if was, err := durable.ReadFile(durable.OS(), c.file, 1<<10); err == nil && string(was) == apart {
			return nil
		}
		return fmt.Errorf("whether the zone's store has a cluster of its own is known once the catalog's answers: %w", etcdgroup.ErrUndecided)
	}
	return fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "-etcd-endpoints and -etcd-catalog-endpoints lead to one cluster of etcd (%016x): the catalog rests in zone %s, and the store of zone %s must rest in %s: give it a cluster there. If they are two that were made with the same names and addresses, make them anew, each with an --initial-cluster-token of its own", cluster, c.in.PrimaryZone, c.self, c.self)
}
