package etcdgroup

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
)

// three are nodes of one group; the first reaches one member of etcd, through a proxy of its own, the last all others.
func (c *cluster) three(prefix string) (stores []group.Store, own *proxy) {
	own = newProxy(c.t, c.members[0].client)
	for i := range 3 {
		s, _ := c.node(fmt.Sprint("n", i+1), prefix, func(cfg *Config) {
			switch {
			case i == 0:
				cfg.Endpoints = []string{own.ln.Addr().String()}
			case i == 2 && len(c.members) > 1:
				cfg.Endpoints = cfg.Endpoints[1:] // not the first one's
			}
		})
		stores = append(stores, s)
	}
	return stores, own
}

func TestConformance_World(t *testing.T) {
	t.Parallel()
	conformance.RunWorld(t, func(t *testing.T) conformance.World {
		c := newEtcd(t, 3)
		stores, own := c.three("p/")
		cl := c.raw()
		first := stores[0].(*Store)
		var backup *clientv3.GetResponse
		return conformance.World{
			Stores: func() []group.Store { return stores },
			Cut: func() { // until what it has missed is compacted
				own.set(true)
				before := stores[1].Local().Revision()
				eventually(t, "the others go on", func() bool { return before.Index+10 < stores[1].Local().Revision().Index })
				c.compact(cl)
				own.set(false)
			},
			Kill: func() {
				m := c.leader()
				c.kill(m)
				time.Sleep(200 * time.Millisecond)
				c.begin(m)
			},
			Behind: func() func() { // its member takes part in the quorum, and applies nothing
				tx := c.members[0].etcd.Server.Backend().BatchTx()
				tx.LockOutsideApply()
				return tx.Unlock
			},
			Restore: func() {
				backup = c.backup(cl, "p/")
				put(t, first, "lost", "1")
				put(t, first, "lost", "2")
				c.restore(cl, "p/", backup)
			},
		}
	})
}

// backup and restore are as etcd's own tools make them: all keys of one revision, at once. The leader's key goes on; a real
// restore ends all leases.
func (c *cluster) backup(cl *clientv3.Client, prefix string) *clientv3.GetResponse {
	resp, err := cl.Get(short(c.t), prefix, clientv3.WithPrefix())
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *cluster) restore(cl *clientv3.Client, prefix string, backup *clientv3.GetResponse) {
	ops, kept := []clientv3.Op{}, map[string]bool{}
	leader := prefix + "now/leader"
	for _, kv := range backup.Kvs {
		kept[string(kv.Key)] = true
		if string(kv.Key) != leader {
			ops = append(ops, clientv3.OpPut(string(kv.Key), string(kv.Value)))
		}
	}
	for _, kv := range c.backup(cl, prefix).Kvs {
		if key := string(kv.Key); !kept[key] && key != leader {
			ops = append(ops, clientv3.OpDelete(key))
		}
	}
	if _, err := cl.Txn(short(c.t)).Then(ops...).Commit(); err != nil {
		c.t.Fatal(err)
	}
}

// Under kills of etcd's members, partitions of nodes from it and of its members from each other, and compactions, what
// clients at all nodes were told has an order. A campaign is BAILIWICK_HISTORY=<seconds>, BAILIWICK_SEED=<n> repeats one:
// make histories.
func TestHistory_IsLinearizableUnderFaults(t *testing.T) {
	t.Parallel()
	length, seed := 5*time.Second, uint64(time.Now().UnixNano())
	if s, err := strconv.Atoi(os.Getenv("BAILIWICK_HISTORY")); err == nil {
		length = time.Duration(s) * time.Second
	}
	if n, err := strconv.ParseUint(os.Getenv("BAILIWICK_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("seed %d, for %s", seed, length)
	c := newEtcd(t, 3)
	stores, own := c.three("p/")
	put(t, stores[0], "begin", "1")
	cl := c.raw()
	history, faults := conformance.History(seed, length, func() []group.Store { return stores }, func(rng *rand.Rand) {
		wait := time.Duration(100+rng.IntN(400)) * time.Millisecond
		m := c.members[rng.IntN(len(c.members))]
		cut := func(p *proxy) {
			p.set(true)
			time.Sleep(wait)
			p.set(false)
		}
		switch rng.IntN(5) {
		case 0:
			m = c.leader()
			fallthrough
		case 1:
			c.kill(m)
			time.Sleep(wait)
			c.begin(m)
			<-m.etcd.Server.ReadyNotify()
		case 2:
			cut(m.toPeer)
		case 3:
			cut(m.toClient)
		default:
			own.set(true)
			time.Sleep(wait)
			c.compact(cl)
			own.set(false)
		}
	})
	conformance.CheckHistory(t, history)
	t.Logf("%d operations, %d faults", len(history), faults)
	if len(history) < 50 || faults < 2 {
		t.Errorf("%d operations and %d faults prove little", len(history), faults)
	}
}
