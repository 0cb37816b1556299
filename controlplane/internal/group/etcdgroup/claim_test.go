package etcdgroup

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
)

var errNotOurs = errors.New("the prefix is another's")

// claimed opens groups for owner. Its nodes end with errNotOurs where another's claim is.
func claimed(owner string, makes bool, clusters *sync.Map, died chan<- error) func(*Config) {
	return func(c *Config) {
		c.OnFatal = func(err error) { died <- err }
		c.Claim = &Claim{Key: "p/zone", Value: []byte(owner), Make: makes, Judge: func(found []byte, cluster uint64) error {
			clusters.Store(cluster, true)
			if found != nil && string(found) != owner {
				return fmt.Errorf("%w: it is %s's", errNotOurs, found)
			}
			return nil
		}}
	}
}

// told is what a node ended with, nil if it does not end.
func told(died <-chan error) error {
	select {
	case err := <-died:
		return err
	case <-time.After(30 * time.Second):
		return nil
	}
}

// Of any number of owners that open a prefix at once, exactly one keeps it; the nodes of the others end, also those that
// come later, and have written nothing. Its own nodes go on, after a restart too.
func TestClaim_IsOneOwners(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	var clusters sync.Map
	const owners = 4
	died := make([]chan error, owners)
	stores := make([]*Store, owners)
	ends := make([]func(), owners)
	for i := range owners {
		died[i] = make(chan error, 1)
		stores[i], ends[i] = c.node("n1", fmt.Sprintf("p/store/%d/", i), claimed(fmt.Sprint("zone ", i), true, &clusters, died[i]))
	}
	winner := -1
	for i := range owners {
		if _, err := stores[i].Txn(short(t), group.Txn{Ops: []group.Op{{Key: "a", Value: []byte("1")}}}); err == nil {
			if winner >= 0 {
				t.Fatalf("owners %d and %d both keep the prefix", winner, i)
			}
			winner = i
		} else if told := told(died[i]); !errors.Is(told, errNotOurs) {
			t.Errorf("owner %d ended with %v, want %v", i, told, errNotOurs)
		}
	}
	if winner < 0 {
		t.Fatal("nobody keeps the prefix")
	}
	cl := c.raw()
	for i := range owners {
		if n := len(c.backup(cl, fmt.Sprintf("p/store/%d/", i)).Kvs); (n > 0) != (i == winner) {
			t.Errorf("owner %d has written %d keys, and %d keeps the prefix", i, n, winner)
		}
	}
	ends[winner]()
	again, _ := c.node("n2", fmt.Sprintf("p/store/%d/", winner), claimed(fmt.Sprint("zone ", winner), true, &clusters, died[winner]))
	wantValue(t, again, "a", "1")
	late := make(chan error, 1)
	c.node("n3", fmt.Sprintf("p/store/%d/", winner), claimed("somebody", true, &clusters, late))
	if told := told(late); !errors.Is(told, errNotOurs) {
		t.Errorf("a late owner ended with %v, want %v", told, errNotOurs)
	}
	n := 0
	clusters.Range(func(id, _ any) bool { n++; return id.(uint64) != 0 })
	if want := uint64(c.members[0].etcd.Server.Cluster().ID()); n != 1 {
		t.Errorf("the judge was told of %d clusters, want one", n)
	} else if _, ok := clusters.Load(want); !ok {
		t.Errorf("the judge was not told of cluster %x", want)
	}
}

// Who may not make the claim waits for who may.
func TestClaim_WaitsForItsOwner(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	var clusters sync.Map
	died := make(chan error, 2)
	guest, _ := c.node("n1", "p/catalog/", claimed("zone 1", false, &clusters, died), func(c *Config) { c.Observer = true })
	wrote := make(chan error, 1)
	go func() {
		_, err := guest.Txn(short(t), group.Txn{Ops: []group.Op{{Key: "a", Value: []byte("1")}}})
		wrote <- err
	}()
	eventually(t, "it asked", func() bool { return guest.trouble.Load() != nil })
	if n := len(c.backup(c.raw(), "p/").Kvs); n != 0 {
		t.Errorf("%d keys are written before the owner came", n)
	}
	c.node("n2", "p/catalog/", claimed("zone 1", true, &clusters, died))
	if err := <-wrote; err != nil {
		t.Errorf("with the owner there: %v", err)
	}
}
