package controlplane

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"bailiwick/controlplane/internal/backup"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// snapshot is etcdctl snapshot save.
func (e *etcd) snapshot() string {
	e.t.Helper()
	file := filepath.Join(e.t.TempDir(), "snapshot.db")
	cfg := clientv3.Config{Endpoints: []string{e.endpoint()}, DialTimeout: 20 * time.Second, Logger: zap.NewNop()}
	if _, err := snapshot.NewV3(zap.NewNop()).Save(within(e.t), cfg, file); err != nil {
		e.t.Fatal(err)
	}
	return file
}

// putBack is etcdutl snapshot restore in the place of the stopped member.
func (e *etcd) putBack(file, token string, bump uint64) {
	e.t.Helper()
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Fatal(err)
	}
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{SnapshotPath: file, Name: e.cfg.Name, OutputDataDir: e.dir, PeerURLs: []string{e.cfg.AdvertisePeerUrls[0].String()},
		InitialCluster: e.cfg.InitialCluster, InitialClusterToken: token, RevisionBump: bump, MarkCompacted: bump > 0})
	if err != nil {
		e.t.Fatal(err)
	}
}

// An etcd that its own tools saved and put back, in each way that their pages give, is a new epoch, with a signed record and
// with what crosses zones closed, although revisions of etcd may only have risen.
func TestEtcd_ASnapshotThatItsToolsPutBack(t *testing.T) {
	e := newEtcd(t)
	w := newWorld(t, "emea-1")
	n := w.startOn("emea-1", e)
	soon(t, "the catalog is seeded", func() bool { return seededZone(n) })
	soon(t, "crossings are approved at birth", func() bool {
		kv, ok := n.store.Local().Get(model.KeyCrossing)
		if !ok {
			return false
		}
		c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
		return err == nil && c.Closed(n.catalog.Local().Revision().Epoch, n.store.Local().Revision().Epoch) == ""
	})
	write(t, n.store, model.PrefixOperator+"kept", `{"name":"kept","role":"viewer"}`)
	soon(t, "evidence of the write", func() bool { return len(n.leaf(evidence.KindWrite)) > 0 })
	file := e.snapshot()
	for _, way := range []struct {
		name, token string
		bump        uint64
	}{
		{"a token of its own", "second", 0},
		{"revisions bumped and the history marked as compacted", "third", 1_000_000},
		{"the token that it had", "third", 0},
	} {
		before := len(n.leaf(evidence.KindWrite))
		lost := write(t, n.store, model.PrefixOperator+"lost", `{"name":"lost","role":"viewer"}`)
		soon(t, "evidence of what will be lost", func() bool { return len(n.leaf(evidence.KindWrite)) > before })
		w.stopAll()
		e.stop()
		e.putBack(file, way.token, way.bump)
		e.start()
		w.startOn("emea-1", e)
		if err := w.ends("emea-1"); fault.ReasonOf(err) != evidence.ReasonSetBack {
			t.Fatalf("%s: the node ended with %v, want %s", way.name, err, evidence.ReasonSetBack)
		}
		n = w.startOn("emea-1", e)
		after := write(t, n.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
		if after.Epoch <= lost.Epoch {
			t.Errorf("%s: %v follows %v, want an epoch above", way.name, after, lost)
		}
		if _, ok := n.store.Local().Get(model.PrefixOperator + "lost"); ok {
			t.Errorf("%s: the etcd was not set back: the test tests nothing", way.name)
		}
		if _, ok := n.store.Local().Get(model.PrefixOperator + "kept"); !ok {
			t.Errorf("%s: what the snapshot holds is not there", way.name)
		}
		if _, ok := n.store.Local().Get(model.PrefixRecovery + strconv.FormatUint(after.Epoch, 10)); !ok {
			t.Errorf("%s: no record of what happened under epoch %d", way.name, after.Epoch)
		}
		c, err := model.Decode[model.Crossing](model.KeyCrossing, value(t, n, model.KeyCrossing))
		if err != nil || c.Closed(c.CatalogEpoch, after.Epoch) == "" {
			t.Errorf("%s: pairs that cross zones are open under epoch %d: %+v, %v", way.name, after.Epoch, c, err)
		}
		soon(t, way.name+": evidence goes on", func() bool { return len(n.leaf(evidence.KindRecovery)) > 0 })
		if _, broken := n.evidence.Size(); broken != nil {
			t.Errorf("%s: evidence: %v", way.name, broken)
		}
	}
}

// What operators do with a node's directory and with tokens: on etcd it works where it is the node's, and says which tool of
// etcd's to use where it is not.
func TestEtcd_WhatOperatorsDo(t *testing.T) {
	e := newEtcd(t)
	w := newWorld(t, "emea-1")
	first := w.startOn("emea-1", e)
	soon(t, "the catalog is seeded", func() bool { return seededZone(first) })
	kept := write(t, first.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)

	second := w.bring(first, "emea-2") // its ledger is taken in, the rest it finds in etcd
	if err := second.store.WaitFor(within(t), kept.Index); err != nil {
		t.Fatal(err)
	}
	soon(t, "the ledger has two members", func() bool {
		found := 0
		for _, m := range must(first.Members(within(t))) {
			if m.Group == ledgerGroup("emea") && m.Role != "learner" && m.Reachable {
				found++
			}
		}
		return found == 2
	})
	if engine, err := storesOf(w.path("emea-2")); engine != EngineEtcd || err != nil {
		t.Errorf("the node that joined is of engine %q, %v", engine, err)
	}
	running, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := running.Recover(Recovery{Zone: true, Operator: "ada", Reason: "in haste"}, time.Now()); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("recover under a running node: %v, want it refused", err)
	}
	w.stopAll()

	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := off.Inspect()
	if err != nil || len(found) != 1 || found[0].Group != ledgerGroup("emea") || strings.Join(off.Outside(), " ") != "catalog store/emea" {
		t.Errorf("inspect: got %+v, %v, and %v beside it, want the ledger, and the two that rest in etcd", found, err, off.Outside())
	}
	if _, err := off.Recover(Recovery{Catalog: true, Operator: "ada", Reason: "lost"}, time.Now()); fault.ReasonOf(err) != ReasonInEtcd || !strings.Contains(err.Error(), "etcd's own tools") {
		t.Errorf("recover the catalog: %v, want %s with what to do", err, ReasonInEtcd)
	}
	for _, group := range off.Outside() {
		file := filepath.Join(t.TempDir(), "b")
		info := backup.Info{Program: "bailiwick-control v1", Installation: "raft.test", Zone: "emea", Group: group, Entry: 5, Term: 1}
		if _, _, err := writeBackup(file, off.secrets.Backup, info, func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if _, aside, err := off.Restore(Restoring{File: file, Operator: "ada", Reason: "lost"}, time.Now()); fault.ReasonOf(err) != ReasonInEtcd || !strings.Contains(err.Error(), "etcdutl") || len(aside) > 0 {
			t.Errorf("restore %s: %v, set aside %v, want %s with what to do", group, err, aside, ReasonInEtcd)
		}
	}
	record, err := off.Recover(Recovery{Zone: true, Operator: "ada", Reason: "emea-2 is lost"}, time.Now())
	if err != nil || len(record.Groups) != 1 || record.Groups[0].Group != ledgerGroup("emea") {
		t.Fatalf("recover the zone: %+v, %v, want its ledger alone", record, err)
	}
	alone := w.startOn("emea-1", e)
	soon(t, "the ledger goes on alone", func() bool { _, self := alone.replica.Leader(); return self })
	if after := write(t, alone.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`); after.Epoch != kept.Epoch {
		t.Errorf("the store in etcd goes on at %v after %v, want its own epoch", after, kept)
	}
}
