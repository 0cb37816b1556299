package controlplane

import (
	"bytes"
	"crypto/ed25519"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/lifecycle/porttest"
)

// etcd is an etcd of one member, whose directory can be set back while it is stopped.
type etcd struct {
	t   *testing.T
	dir string
	cfg *embed.Config
	run *embed.Etcd
}

func newEtcd(t *testing.T) *etcd {
	t.Helper()
	e := &etcd{t: t, dir: filepath.Join(t.TempDir(), "member"), cfg: embed.NewConfig()}
	at := func() url.URL { return url.URL{Scheme: "http", Host: porttest.Addr(t)} }
	client, peer := at(), at()
	e.cfg.Name, e.cfg.Dir = "one", e.dir
	e.cfg.ListenClientUrls, e.cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	e.cfg.ListenPeerUrls, e.cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	e.cfg.InitialCluster = "one=" + peer.String()
	e.cfg.LogLevel, e.cfg.LogOutputs = "fatal", []string{"/dev/null"}
	e.start()
	t.Cleanup(e.stop)
	return e
}

func (e *etcd) endpoint() string { return e.cfg.ListenClientUrls[0].String() }

func (e *etcd) start() {
	e.t.Helper()
	run, err := embed.StartEtcd(e.cfg)
	if err != nil {
		e.t.Fatalf("start etcd: %v", err)
	}
	e.run = run
	select {
	case <-run.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		e.t.Fatal("etcd is not ready after 20 s")
	}
}

func (e *etcd) stop() {
	if e.run != nil {
		e.run.Close()
		e.run = nil
	}
}

func (w *world) startOn(name string, e *etcd) *running {
	w.t.Helper()
	w.stores = Stores{Engine: EngineEtcd, Zone: Etcd{Endpoints: []string{e.endpoint()}}}
	return w.start(name)
}

// A zone on etcd writes, reads and keeps its evidence. Its etcd is set back while all stand still: a new epoch begins with a
// signed record, what crosses zones is closed, the log of evidence is cut to what still holds and goes on soundly.
func TestEtcd_SetBackBeneathAZone(t *testing.T) {
	e := newEtcd(t)
	w := newWorld(t, "emea-1")
	n := w.startOn("emea-1", e)
	soon(t, "the catalog is seeded", func() bool { _, ok := n.catalog.Local().Get(model.PrefixZone + "emea"); return ok })
	soon(t, "crossings are approved at birth", func() bool { _, ok := n.store.Local().Get(model.KeyCrossing); return ok })
	kept := write(t, n.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	soon(t, "evidence of the write", func() bool { return len(n.leaf(evidence.KindWrite)) > 0 })
	if _, err := n.Backup(within(t), storeGroup("emea")); fault.ReasonOf(err) != ReasonInEtcd {
		t.Errorf("backup of a store in etcd: %v, want %s", err, ReasonInEtcd)
	}
	if _, err := n.Transfer(within(t), catalogGroup, "emea-2"); fault.ReasonOf(err) != ReasonInEtcd {
		t.Errorf("transfer of a catalog in etcd: %v, want %s", err, ReasonInEtcd)
	}
	if rows, err := n.Members(within(t)); err != nil || len(rows) != 3 {
		t.Errorf("members: %+v, %v, want a row for each of three groups", rows, err)
	}
	soon(t, "the ledger has a leader", func() bool { _, self := n.replica.Leader(); return self })
	w.stopAll()
	if _, err := New(func() Config { c := w.config("emea-1"); c.Stores = Stores{}; return c }()); fault.ReasonOf(err) != "STORE_ENGINE_CHANGED" {
		t.Errorf("start of the same node on raft: %v, want STORE_ENGINE_CHANGED", err)
	}
	e.stop()
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	if err := os.CopyFS(snapshot, os.DirFS(e.dir)); err != nil {
		t.Fatal(err)
	}

	e.start()
	n = w.startOn("emea-1", e)
	before := len(n.leaf(evidence.KindWrite))
	catalog := write(t, n.catalog, model.PrefixRegion+"eu-south", `{"name":"eu-south","zone":"emea"}`)
	lost := write(t, n.store, model.PrefixOperator+"lost", `{"name":"lost","role":"viewer"}`)
	if lost.Epoch != kept.Epoch || lost.Index <= kept.Index {
		t.Errorf("a restart of all: %v follows %v", lost, kept)
	}
	soon(t, "evidence of what will be lost", func() bool { return len(n.leaf(evidence.KindWrite)) > before })
	w.stopAll()
	e.stop()
	if err := os.RemoveAll(e.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(e.dir, os.DirFS(snapshot)); err != nil {
		t.Fatal(err)
	}
	e.start()

	n = w.startOn("emea-1", e)
	select {
	case err := <-n.ends:
		n.ends <- err
		if fault.ReasonOf(err) != evidence.ReasonSetBack {
			t.Fatalf("the node ended with %v, want %s", err, evidence.ReasonSetBack)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a node whose evidence is ahead of its store runs on")
	}
	delete(w.nodes, "emea-1")
	n = w.startOn("emea-1", e)
	after := write(t, n.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	if after.Epoch <= lost.Epoch {
		t.Errorf("after the etcd was set back: %v, want an epoch above %d", after, lost.Epoch)
	}
	now := n.store.Local()
	if _, ok := now.Get(model.PrefixOperator + "lost"); ok {
		t.Error("the etcd was not set back: the test tests nothing")
	}
	kv, ok := now.Get(model.PrefixRecovery + strconv.FormatUint(after.Epoch, 10))
	if !ok {
		t.Fatalf("no record of what happened under epoch %d", after.Epoch)
	}
	r, err := model.Decode[model.Recovery](kv.Key, kv.Value)
	if err != nil || !ed25519.Verify(n.secrets.Signer.Public().(ed25519.PublicKey), r.Statement(), r.Signature) {
		t.Errorf("the record %+v is not signed by the zone: %v", r, err)
	}
	crossing, err := model.Decode[model.Crossing](model.KeyCrossing, value(t, n, model.KeyCrossing))
	if err != nil || crossing.Closed(crossing.CatalogEpoch, after.Epoch) == "" || crossing.StoreEpoch != 0 || crossing.Reason != r.Reason {
		t.Errorf("pairs that cross zones are open under epoch %d: %+v, %v", after.Epoch, crossing, err)
	}
	soon(t, "evidence goes on with the record and the write", func() bool {
		writes := n.leaf(evidence.KindWrite)
		return len(n.leaf(evidence.KindRecovery)) == 1 && len(writes) > 0 && writes[len(writes)-1].Epoch == after.Epoch
	})
	x, err := n.evidence.NewExport("emea-1", n.chain, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	var bundle bytes.Buffer
	if err := x.WriteTo(&bundle, 0); err != nil {
		t.Fatal(err)
	}
	verdict, err := evidence.Verify(&bundle, evidence.Trust{Zone: "emea", Key: n.secrets.Signer.Public().(ed25519.PublicKey)})
	if err != nil || len(verdict.Findings) > 0 {
		t.Errorf("the evidence is not sound: %+v, %v", verdict, err)
	}
	soon(t, "the catalog begins a new epoch too", func() bool { return n.catalog.Local().Revision().Epoch > catalog.Epoch })
}

func value(t *testing.T, n *running, key string) []byte {
	t.Helper()
	kv, ok := n.store.Local().Get(key)
	if !ok {
		t.Fatalf("the store has no %s", key)
	}
	return kv.Value
}
