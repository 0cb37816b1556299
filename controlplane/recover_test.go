package controlplane

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func (r *running) leaf(kind string) (found []evidence.Record) {
	piece, err := r.evidence.Leaves(0, 4096)
	if err != nil {
		return nil
	}
	for _, l := range piece.Leaves {
		if rec, err := evidence.Decode(l); err == nil && rec.Kind == kind {
			found = append(found, rec)
		}
	}
	return found
}

// Two of three control nodes are gone for good: the third goes on with all three groups, its evidence goes on without
// a gap and says so, and the disks of the two do not come back.
func TestRecover_AZoneGoesOnWithOneNode(t *testing.T) {
	w := newWorld(t, "emea-1", "emea-2", "emea-3")
	for _, n := range []string{"emea-1", "emea-2", "emea-3"} {
		w.start(n)
	}
	first := w.nodes["emea-1"]
	before := write(t, first.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	catalog := write(t, first.catalog, model.PrefixRegion+"eu-north", `{"name":"eu-north","zone":"emea"}`)
	if err := errors.Join(first.store.WaitFor(within(t), before.Index), first.catalog.WaitFor(within(t), catalog.Index)); err != nil {
		t.Fatal(err)
	}
	soon(t, "evidence of the write", func() bool { return len(first.leaf(evidence.KindWrite)) > 0 })

	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	why := Recovery{Zone: true, Catalog: true, Operator: "ada", Reason: "two data centres burnt"}
	if _, err := off.Recover(why, time.Now()); err == nil {
		t.Error("recover while the node runs: got no error")
	}
	w.stopAll()
	if _, err := off.Recover(Recovery{Zone: true}, time.Now()); fault.ReasonOf(err) != "REASON_REQUIRED" {
		t.Errorf("recover without a reason: got %v", err)
	}
	record, err := off.Recover(why, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(record.Groups) != 3 {
		t.Errorf("record: got %+v, want three groups", record)
	}

	first = w.start("emea-1")
	after := write(t, first.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	if after.Epoch <= before.Epoch || after.Index <= before.Index {
		t.Errorf("store: %v follows %v, want a higher epoch and index", after, before)
	}
	if rev := write(t, first.catalog, model.PrefixRegion+"eu-south", `{"name":"eu-south","zone":"emea"}`); rev.Epoch <= catalog.Epoch {
		t.Errorf("catalog: %v follows %v, want a higher epoch", rev, catalog)
	}
	for _, x := range []string{"x", "y"} {
		if _, ok := first.store.Local().Get(model.PrefixOperator + x); !ok {
			t.Errorf("operator %s is gone", x)
		}
	}
	soon(t, "the ledger has a leader", func() bool { _, self := first.replica.Leader(); return self })
	soon(t, "evidence of the recovery and of what follows", func() bool {
		return len(first.leaf(evidence.KindRecovery)) == 1 && len(first.leaf(evidence.KindWrite)) >= 2
	})
	leaf := first.leaf(evidence.KindRecovery)[0]
	if leaf.By == nil || leaf.By.Operator != "ada" || leaf.Epoch != after.Epoch {
		t.Errorf("leaf of the recovery: got %+v, want ada's, in epoch %d", leaf, after.Epoch)
	}

	for _, name := range []string{"emea-2", "emea-3"} {
		old := w.start(name)
		select {
		case err := <-old.ends:
			old.ends <- err
			if fault.ReasonOf(err) != raftgroup.ReasonSuperseded {
				t.Errorf("%s ended with %v, want %s", name, err, raftgroup.ReasonSuperseded)
			}
		case <-time.After(15 * time.Second):
			t.Errorf("%s runs on a disk that was given up", name)
		}
		_ = old.stop()
		delete(w.nodes, name)
	}
	write(t, first.store, model.PrefixOperator+"z", `{"name":"z","role":"viewer"}`)
	if kept, err := os.ReadDir(filepath.Join(w.path("emea-1"), "recoveries")); err != nil || len(kept) != 1 {
		t.Errorf("records of recoveries: got %v, %v, want one", kept, err)
	}
}

// What a zone goes back to may be of before its crossings were first approved: no record says so, and no leader may take the
// new epoch for the zone's birth. So the first transaction of the epoch closes them.
func TestRecovery_ApprovesNoCrossing(t *testing.T) {
	dir := t.TempDir()
	run := func(work func(*raftgroup.Store)) {
		s, err := raftgroup.NewStore(raftgroup.Config{Group: "store/emea", Node: "n1", Dir: dir, Voters: []string{"n1"}, Timing: raftgroup.Local(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		defer func() { stop(); <-done }()
		work(s)
	}
	run(func(s *raftgroup.Store) { write(t, s, model.KeyAdopted, `{"catalog_epoch":3,"catalog_index":1}`) })
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func(got raftgroup.Recovered) ([]group.Op, error) {
		return recoveryOps(key, &model.Recovery{Zone: "emea", Operator: "ada", Reason: "the disks are of yesterday"}, got.Incarnation, "recover"), nil
	}
	if _, err := raftgroup.Recover(raftgroup.Config{Group: "store/emea", Node: "n1", Dir: dir}, open, time.Now()); err != nil {
		t.Fatal(err)
	}
	run(func(s *raftgroup.Store) {
		now, err := s.Sync(within(t))
		if err != nil {
			t.Fatal(err)
		}
		kv, ok := now.Get(model.KeyCrossing)
		if !ok {
			t.Fatal("no record says that crossings are closed")
		}
		c, err := model.Decode[model.Crossing](kv.Key, kv.Value)
		if err != nil || c.Closed(3, now.Revision().Epoch) == "" || c.Reason != "the disks are of yesterday" {
			t.Errorf("crossings after the recovery: %+v, %v, want them closed, and why", c, err)
		}
	})
}
