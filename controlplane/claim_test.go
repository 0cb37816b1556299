package controlplane

import (
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"bailiwick/controlplane/internal/claim"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/lifecycle/porttest"
)

// ends waits for a node to end by itself.
func (w *world) ends(name string) error {
	w.t.Helper()
	n := w.nodes[name]
	select {
	case err := <-n.ends:
		n.ends <- err
		return err
	case <-time.After(time.Minute):
		w.t.Fatalf("%s runs on", name)
		return nil
	}
}

// A cluster has many names. Whatever a node calls it: another zone's store is not opened in it, nor is another
// installation's, and neither writes anything there; a restart of who is there by right goes on.
func TestEtcd_APrefixIsOneZones(t *testing.T) {
	e := newEtcd(t)
	ours := Etcd{Endpoints: []string{e.endpoint()}}
	byName := Etcd{Endpoints: []string{strings.Replace(e.endpoint(), "127.0.0.1", "localhost", 1)}}
	below := func(x Etcd, prefix string) Etcd { x.Prefix = prefix; return x }
	w := newWorld(t, "emea-1", "us-1")
	home := Stores{Engine: EngineEtcd, Zone: ours, Catalog: ours}

	// A guest of the catalog's cluster that comes first waits: nobody has opened the catalog.
	us := newEtcd(t)
	w.stores = Stores{Engine: EngineEtcd, Zone: Etcd{Endpoints: []string{us.endpoint()}}, Catalog: byName}
	guest := w.start("us-1")
	w.stores = home
	n := w.start("emea-1")
	soon(t, "the catalog is seeded", func() bool { return seededZone(n) })
	soon(t, "us reads the catalog", func() bool { _, ok := guest.catalog.Local().Get(model.PrefixZone + "us"); return ok })
	write(t, guest.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	if err := guest.stop(); err != nil {
		t.Errorf("us-1 in a cluster of its own: %v", err)
	}
	// Once known to be apart, us starts without the catalog.
	w.stores = Stores{Engine: EngineEtcd, Zone: Etcd{Endpoints: []string{us.endpoint()}}, Catalog: Etcd{Endpoints: []string{"http://" + porttest.Addr(t)}}}
	guest = w.start("us-1")
	write(t, guest.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	if err := guest.stop(); err != nil {
		t.Errorf("us-1 without the catalog: %v", err)
	}

	for _, c := range []struct {
		name, node string
		stores     Stores
		reason     string
	}{
		{"us's store in emea's cluster, by another name", "us-1", Stores{Engine: EngineEtcd, Zone: byName, Catalog: ours}, "STORE_LEAVES_ITS_ZONE"},
		{"and below another prefix", "us-1", Stores{Engine: EngineEtcd, Zone: below(byName, "us/"), Catalog: ours}, "STORE_LEAVES_ITS_ZONE"},
		{"the catalog in us's cluster", "us-1", Stores{Engine: EngineEtcd, Zone: ours, Catalog: Etcd{Endpoints: []string{us.endpoint()}}}, "STORE_LEAVES_ITS_ZONE"},
	} {
		w.stores = c.stores
		w.start(c.node)
		err := w.ends(c.node)
		if fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), "zone us") {
			t.Errorf("%s: ended with %v, want %s", c.name, err, c.reason)
		}
	}
	delete(w.nodes, "us-1")
	before := n.store.Local().Revision()
	other := newWorld(t, "emea-1")
	other.stores = home
	other.start("emea-1")
	if err := other.ends("emea-1"); fault.ReasonOf(err) != "STORE_OF_ANOTHER_INSTALLATION" || !strings.Contains(err.Error(), "-prefix") {
		t.Errorf("an installation of the same name: ended with %v, want STORE_OF_ANOTHER_INSTALLATION and what to do", err)
	}
	delete(other.nodes, "emea-1")
	keys, err := e.run.Server.KV().Range(within(t), []byte("us/"), []byte("us0"), mvcc.RangeOptions{})
	if err != nil || len(keys.KVs) != 0 {
		t.Errorf("%d keys are below the prefix that was refused, %v", len(keys.KVs), err)
	}
	w.stores = home
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	n = w.start("emea-1")
	if after := write(t, n.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`); after.Epoch != before.Epoch {
		t.Errorf("it goes on at %v after %v", after, before)
	}
}

// Two zones that are led to one cluster, each below a prefix of its own, are told apart by the catalog: whoever is first keeps
// it, also after restarts without the catalog, and the other's node ends before it has written anything there.
func TestEtcd_AClusterIsOneZones(t *testing.T) {
	e, shared := newEtcd(t), newEtcd(t)
	home, other := Etcd{Endpoints: []string{e.endpoint()}}, Etcd{Endpoints: []string{shared.endpoint()}}
	below := func(x Etcd, prefix string) Etcd { x.Prefix = prefix; return x }
	w := newWorld(t, "emea-1", "us-1", "apac-1")
	both := []string{"us-1", "apac-1"}
	start := func(name string) *running {
		w.stores = Stores{Engine: EngineEtcd, Zone: below(other, name+"/"), Catalog: home}
		return w.start(name)
	}
	for _, name := range both { // at once, and before there is a catalog
		start(name)
	}
	w.stores = Stores{Engine: EngineEtcd, Zone: home, Catalog: home}
	n := w.start("emea-1")
	soon(t, "the catalog says whose the cluster is", func() bool {
		rows := 0
		for range n.catalog.Local().List(model.PrefixCluster) {
			rows++
		}
		return rows == 2 // emea's own, and that one
	})
	loser := ""
	select {
	case err := <-w.nodes[both[0]].ends:
		loser = both[0]
		w.nodes[loser].ends <- err
	case err := <-w.nodes[both[1]].ends:
		loser = both[1]
		w.nodes[loser].ends <- err
	case <-time.After(time.Minute):
		t.Fatal("two zones keep their stores in one cluster")
	}
	winner := both[0]
	if loser == winner {
		winner = both[1]
	}
	if err := w.ends(loser); fault.ReasonOf(err) != "STORE_LEAVES_ITS_ZONE" || !strings.Contains(err.Error(), "zone "+strings.TrimSuffix(winner, "-1")+" keeps") {
		t.Errorf("%s ended with %v, want STORE_LEAVES_ITS_ZONE and who keeps it", loser, err)
	}
	nothing := func() {
		t.Helper()
		keys, err := shared.run.Server.KV().Range(within(t), []byte(loser+"/"), []byte(loser+"0"), mvcc.RangeOptions{})
		if err != nil || len(keys.KVs) != 0 {
			t.Errorf("%d keys are below the prefix of %s, which was refused, %v", len(keys.KVs), loser, err)
		}
	}
	nothing()
	write(t, w.nodes[winner].store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)

	// The primary zone is no exception.
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	w.stores = Stores{Engine: EngineEtcd, Zone: below(other, "elsewhere/"), Catalog: home}
	w.start("emea-1")
	if err := w.ends("emea-1"); fault.ReasonOf(err) != "STORE_LEAVES_ITS_ZONE" {
		t.Errorf("emea's store in the cluster of another zone: ended with %v, want STORE_LEAVES_ITS_ZONE", err)
	}

	// Who keeps it needs the catalog no more; who does not, waits for it.
	if err := w.nodes[winner].stop(); err != nil {
		t.Error(err)
	}
	away := Etcd{Endpoints: []string{"http://" + porttest.Addr(t)}}
	w.stores = Stores{Engine: EngineEtcd, Zone: below(other, winner+"/"), Catalog: away}
	write(t, w.start(winner).store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	w.stores = Stores{Engine: EngineEtcd, Zone: below(other, loser+"/"), Catalog: away}
	w.start(loser)
	time.Sleep(500 * time.Millisecond)
	nothing()

	// A catalog that has lost the claim, as one that was set back, gets it again.
	if err := w.nodes[winner].stop(); err != nil {
		t.Error(err)
	}
	w.stores = Stores{Engine: EngineEtcd, Zone: home, Catalog: home}
	n = w.start("emea-1")
	soon(t, "the catalog is there", func() bool { return seededZone(n) })
	id := apart(uint64(shared.run.Server.Cluster().ID()))
	if _, err := n.catalog.Txn(within(t), group.Txn{Ops: []group.Op{{Key: model.PrefixCluster + id, Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	// A cluster of before there were claims has none either. Who is led there by mistake, and below the prefix that the key there says
	// is another's, ends, and takes nothing from it.
	if err := w.nodes[loser].stop(); err != nil {
		t.Error(err)
	}
	w.stores = Stores{Engine: EngineEtcd, Zone: below(other, winner+"/"), Catalog: home}
	w.start(loser)
	if err := w.ends(loser); fault.ReasonOf(err) != "STORE_LEAVES_ITS_ZONE" {
		t.Errorf("%s below the prefix of %s: ended with %v, want STORE_LEAVES_ITS_ZONE", loser, winner, err)
	}
	if kv, ok, _, err := n.catalog.Get(within(t), model.PrefixCluster+id); ok || err != nil {
		t.Errorf("it has claimed the cluster: %s, %v", kv.Value, err)
	}
	start(winner)
	soon(t, "the claim is there again", func() bool { _, ok := n.catalog.Local().Get(model.PrefixCluster + id); return ok })
}

// The nodes of a zone name one cluster. One that names another, which holds nothing of the zone or a copy of its store, ends and
// writes nothing there; once nobody uses the first, the copy takes its place. An operator releases nothing that is used.
func TestEtcd_AZoneHasOneCluster(t *testing.T) {
	catalog, used, other := newEtcd(t), newEtcd(t), newEtcd(t)
	w := newWorld(t, "emea-1", "emea-2")
	at := func(name string, e *etcd) *running {
		w.stores = Stores{Engine: EngineEtcd, Zone: Etcd{Endpoints: []string{e.endpoint()}}, Catalog: Etcd{Endpoints: []string{catalog.endpoint()}}}
		return w.start(name)
	}
	w.objection = time.Minute // whoever objects does it long before
	first := at("emea-1", used)
	soon(t, "the catalog is seeded", func() bool { return seededZone(first) })
	write(t, first.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	refused := func(what string) {
		t.Helper()
		at("emea-2", other)
		if err := w.ends("emea-2"); fault.ReasonOf(err) != claim.ReasonTwo || !strings.Contains(err.Error(), apart(uint64(used.run.Server.Cluster().ID()))) {
			t.Errorf("%s: ended with %v, want %s and the cluster to name", what, err, claim.ReasonTwo)
		}
	}
	refused("an empty cluster")
	keys, err := other.run.Server.KV().Range(within(t), []byte("bailiwick/"), []byte("bailiwick0"), mvcc.RangeOptions{})
	if err != nil || len(keys.KVs) != 0 {
		t.Errorf("%d keys are in the cluster that was refused, %v", len(keys.KVs), err)
	}
	file := used.snapshot()
	other.stop()
	other.putBack(file, "a copy", 0)
	other.start()
	refused("a copy of the one that is used")
	id := apart(uint64(used.run.Server.Cluster().ID()))
	if _, err := claim.Release(within(t), first.catalog, claim.Request{Cluster: id, By: "emea/1", From: "emea", Reason: "a test", At: time.Now(), Window: time.Minute}); fault.ReasonOf(err) != claim.ReasonInUse {
		t.Errorf("release of a cluster that is used: %v, want %s", err, claim.ReasonInUse)
	}
	if err := first.stop(); err != nil {
		t.Error(err)
	}

	w.objection = 0
	second := at("emea-2", other)
	write(t, second.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	rows, releases, err := claim.List(second.catalog.Local())
	if now := apart(uint64(other.run.Server.Cluster().ID())); err != nil || len(rows) != 1 || rows[0].ID != now || releases[id].Status != model.ReleaseDone {
		t.Errorf("claimed: %v, released: %v, %v, want %s in the place of %s", rows, releases, err, now, id)
	}
	if _, ok := second.store.Local().Get(model.PrefixOperator + "x"); !ok {
		t.Error("what was put back is not there")
	}
}
