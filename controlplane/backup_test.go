package controlplane

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/backup"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/lifecycle/porttest"
)

// A zone's three groups are restored on one node from backups: the state is as of then, in a higher epoch, and the log
// of evidence goes on from there.
func TestBackup_RestoresAZoneInANewEpoch(t *testing.T) {
	w := newWorld(t, "emea-1")
	n := w.start("emea-1")
	write(t, n.store, model.PrefixOperator+"kept", `{"name":"kept-marker","role":"viewer"}`)
	soon(t, "evidence of the write", func() bool { return len(n.leaf(evidence.KindWrite)) > 0 })
	files := map[string]string{}
	for _, name := range []string{"catalog", "store/emea", "ledger/emea"} {
		b, err := n.Backup(within(t), name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b.Path
		content, err := os.ReadFile(b.Path)
		if err != nil || int64(len(content)) != b.Bytes {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(content), err, b.Bytes)
		}
		if strings.Contains(string(content), "kept-marker") {
			t.Errorf("%s: the backup shows what it holds", name)
		}
		if fi, err := os.Stat(b.Path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600", name, fi.Mode(), err)
		}
	}
	if _, err := n.Backup(within(t), "store/us"); fault.ReasonOf(err) != "GROUP_NOT_HERE" {
		t.Errorf("backup of another zone's group: got %v", err)
	}
	records := len(n.leaf(evidence.KindWrite))
	running, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, aside, err := running.Restore(Restoring{File: files["store/emea"], Operator: "ada", Reason: "in haste"}, time.Now()); fault.ReasonOf(err) != "NODE_RUNS" || len(aside) > 0 {
		t.Fatalf("restored under a running node: set aside %v, %v", aside, err)
	}
	token, _, err := n.enroll.CreateToken(within(t), identity.Control, "eu-west", "emea-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if aside, err := Join(within(t), Joining{Dir: w.path("emea-1"), Name: "emea-1", Region: "eu-west", AdminURL: "https://" + porttest.Addr(t), PeerAddr: porttest.Addr(t),
		Control: []string{n.self.Admin}, RootsPEM: n.source.RootsPEM(), Token: token}); fault.ReasonOf(err) != "NODE_RUNS" || len(aside) > 0 {
		t.Fatalf("joined anew under a running node: set aside %v, %v", aside, err)
	}
	last := write(t, n.store, model.PrefixOperator+"later", `{"name":"later","role":"viewer"}`)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}

	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range files {
		if _, _, err := off.Restore(Restoring{File: file, Operator: "ada", Reason: strings.Repeat("x", 501)}, time.Now()); fault.ReasonOf(err) != "REASON_TOO_LONG" {
			t.Errorf("%s: restore with a reason without end: got %v", name, err)
		}
		if _, _, err := off.Restore(Restoring{File: file}, time.Now()); fault.ReasonOf(err) != "REASON_REQUIRED" {
			t.Errorf("%s: restore without a reason: got %v", name, err)
		}
		record, aside, err := off.Restore(Restoring{File: file, Operator: "ada", Reason: "the catalog was deleted"}, time.Now())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(aside) == 0 || len(record.Groups) != 1 || record.Groups[0].Group != name || len(record.Signature) == 0 {
			t.Errorf("%s: set aside %v, record %+v", name, aside, record)
		}
	}
	n = w.start("emea-1")
	soon(t, "the node leads", func() bool { return n.store.VerifyLeader(within(t)) == nil })
	if _, ok := n.store.Local().Get(model.PrefixOperator + "kept"); !ok {
		t.Error("what the backup holds is not there")
	}
	if _, ok := n.store.Local().Get(model.PrefixOperator + "later"); ok {
		t.Error("what was written after the backup is there")
	}
	next := write(t, n.store, model.PrefixOperator+"new", `{"name":"new","role":"viewer"}`)
	if next.Epoch <= last.Epoch {
		t.Errorf("after the restore: %v, want an epoch above that of %v: edges never go backwards", next, last)
	}
	soon(t, "evidence goes on", func() bool {
		return len(n.leaf(evidence.KindRecovery)) == 1 && len(n.leaf(evidence.KindWrite)) == records+1
	})
	if _, broken := n.evidence.Size(); broken != nil {
		t.Errorf("evidence: %v", broken)
	}
	soon(t, "the ledger has a leader", func() bool { _, self := n.replica.Leader(); return self })
}

func TestRestore_RefusesWhatHasNoPlaceHere(t *testing.T) {
	w, other := newWorld(t, "emea-1"), newWorld(t, "emea-1")
	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := OpenOffline(other.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(key []byte, change func(*backup.Info)) string {
		t.Helper()
		info := backup.Info{Program: "bailiwick-control v9", Installation: "raft.test", Zone: "emea", Group: "store/emea", Entry: 5, Term: 1, State: 3}
		change(&info)
		path := filepath.Join(t.TempDir(), "b")
		if _, _, err := writeBackup(path, key, info, func(w io.Writer) error { _, err := w.Write([]byte("abc")); return err }); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own := off.secrets.Backup
	damaged := put(own, func(*backup.Info) {})
	content, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)-1] ^= 1
	if err := os.WriteFile(damaged, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, reason := range map[string]string{
		put(own, func(i *backup.Info) { i.Installation = "other.test" }): "BACKUP_OF_ANOTHER_INSTALLATION",
		put(own, func(i *backup.Info) { i.Zone = "us" }):                 "BACKUP_OF_ANOTHER_ZONE",
		put(own, func(i *backup.Info) { i.Group = "console/emea" }):      "BACKUP_NEWER",
		put(foreign.secrets.Backup, func(*backup.Info) {}):               backup.ReasonDamaged,
		damaged: backup.ReasonDamaged,
	} {
		_, aside, err := off.Restore(Restoring{File: file, Operator: "ada", Reason: "test"}, time.Now())
		if fault.ReasonOf(err) != reason || len(aside) > 0 {
			t.Errorf("restore: got %v, set aside %v, want %s and nothing moved", err, aside, reason)
		}
	}
	// A body that is no state: what was there stays set aside, and no half-made group is left.
	_, _, err = off.Restore(Restoring{File: put(own, func(*backup.Info) {}), Operator: "ada", Reason: "test"}, time.Now())
	if err == nil {
		t.Error("restore of no state: got no error")
	}
	if _, err := os.Stat(filepath.Join(w.path("emea-1"), "zone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a failed restore: %v, want no group directory", err)
	}
}

// A stopped node is backed up with all that it acknowledged, with the log of evidence as of the same transaction, also where
// that had stayed behind; restored, the zone goes on in a higher epoch and its evidence without a gap.
func TestBackup_OfAStoppedNode(t *testing.T) {
	w := newWorld(t, "emea-1")
	n := w.start("emea-1")
	write(t, n.store, model.PrefixOperator+"kept", `{"name":"kept-marker","role":"viewer"}`)
	soon(t, "evidence of the write", func() bool { return len(n.leaf(evidence.KindWrite)) > 0 })
	records := len(n.leaf(evidence.KindWrite))
	soon(t, "the ledger has a leader", func() bool { return n.replica.VerifyLeader(within(t)) == nil })
	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := off.Backup(within(t), "store/emea", "v1.0.0", time.Now()); fault.ReasonOf(err) != "NODE_RUNS" {
		t.Fatalf("backup under a running node: got %v, want NODE_RUNS", err)
	}
	// After a crash the log of evidence may lack the latest: here it lacks all.
	last := write(t, n.store, model.PrefixOperator+"last", `{"name":"last","role":"viewer"}`)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.path("emea-1"), "evidence")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := off.Backup(within(t), "store/us", "v1.0.0", time.Now()); fault.ReasonOf(err) != "GROUP_NOT_HERE" {
		t.Errorf("backup of another zone's group: got %v", err)
	}
	for _, name := range []string{"catalog", "store/emea", "ledger/emea"} {
		b, _, err := off.Backup(within(t), name, "v1.0.0", time.Now()) // what was under way and nobody was told of may be left out
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "store/emea" && (b.Index < last.Index || b.Epoch != last.Epoch) {
			t.Errorf("%s: revision %d.%d, want %v at least", name, b.Epoch, b.Index, last)
		}
		info, err := off.InspectBackup(b.Path)
		if err != nil || info.Zone != "emea" || filepath.Dir(b.Path) != filepath.Join(w.path("emea-1"), backupDir) {
			t.Errorf("%s: got %+v in %s, %v", name, info, b.Path, err)
		}
		if _, _, err := off.Restore(Restoring{File: b.Path, Operator: "ada", Reason: "moved"}, time.Now()); err != nil {
			t.Fatalf("restore %s: %v", name, err)
		}
	}
	n = w.start("emea-1")
	soon(t, "the node leads", func() bool { return n.store.VerifyLeader(within(t)) == nil })
	for _, name := range []string{"kept", "last"} {
		if _, ok := n.store.Local().Get(model.PrefixOperator + name); !ok {
			t.Errorf("%s is not there", name)
		}
	}
	if next := write(t, n.store, model.PrefixOperator+"new", `{"name":"new","role":"viewer"}`); next.Epoch <= last.Epoch {
		t.Errorf("after the restore: %v, want an epoch above that of %v", next, last)
	}
	soon(t, "evidence goes on without a gap", func() bool {
		return len(n.leaf(evidence.KindRecovery)) == 1 && len(n.leaf(evidence.KindWrite)) == records+2
	})
	if _, broken := n.evidence.Size(); broken != nil {
		t.Errorf("evidence: %v", broken)
	}
	soon(t, "the ledger has a leader", func() bool { _, self := n.replica.Leader(); return self })
}
