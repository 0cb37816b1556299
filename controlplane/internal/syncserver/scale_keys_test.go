package syncserver_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/heap"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/syncserver"
)

// TestScale_AControlNode holds a zone's keys in a real group, is started again on it, follows it, and sends them all to an edge of another
// process. With BAILIWICK_KEYS=1000000 it is the measurement of make scale, against 1.5 GiB.
func TestScale_AControlNode(t *testing.T) {
	keys := number(t, "BAILIWICK_KEYS", 4000)
	defer heap.Room(heap.DefaultRoom)() // as bailiwick-control has it
	e := newEngine(t, cmp.Or(os.Getenv(storeEnv), "raft"))
	store, closeStore := e.open()
	write := func(ops []group.Op) {
		t.Helper()
		if commit(t, store, ops...) == 0 {
			t.FailNow()
		}
	}
	write([]group.Op{{Key: "customers/acme", Value: model.Encode(model.Customer{Name: "acme", Zone: "emea"})}})
	var ops []group.Op
	for i := range keys {
		id := fmt.Sprintf("k%011d", i)
		ops = append(ops, group.Op{Key: "keys/" + id, Value: model.Encode(model.Key{ID: id, DigestHex: fmt.Sprintf("%064x", i), Customer: "acme", Subscription: "main", Plan: "gold", Status: "active"})})
		if len(ops) == 1500 || i == keys-1 {
			write(ops)
			ops = nil
		}
	}
	t.Logf("%d keys written: %d MB resident, at most %d", keys, resident()>>20, peakOf("self")>>20)
	again := time.Now()
	closeStore()
	store, closeStore = e.open()
	defer func() { closeStore() }()
	sctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if snap, err := store.Sync(sctx); err != nil || snap.Len() != keys+1 {
		t.Fatalf("the store after a restart: %v, want %d keys", err, keys+1)
	}
	t.Logf("on %s: stopped, started and at the present again after %.2f s: %d MB resident, at most %d", e.name, time.Since(again).Seconds(), resident()>>20, peakOf("self")>>20)
	w := newWorld(t, func(c *syncserver.Config) { c.Zone, c.SyncTimeout, c.Heartbeat = store, time.Minute, 5*time.Second })
	defer w.stop()
	began, cpu := time.Now(), used(syscall.RUSAGE_SELF)
	w.catalog.put("nodes/c0", model.Node{Name: "c0", Kind: "edge", Region: "eu-west", Zone: "emea"})
	end := w.follows(1)
	for {
		if _, _, ok := w.server.Acked("c0"); ok {
			break
		}
		if time.Since(began) > 5*time.Minute {
			t.Fatal("the edge has acknowledged nothing after five minutes")
		}
		time.Sleep(time.Millisecond)
	}
	if got := w.server.Stats().Objects.Load(); got < int64(keys) {
		t.Errorf("%d objects were sent, want all %d keys", got, keys)
	}
	t.Logf("followed, sent whole and acknowledged: %.2f s, processor of the node %.2f s", time.Since(began).Seconds(), (used(syscall.RUSAGE_SELF) - cpu).Seconds())
	end()
	e.tell()
	most := peakOf("self")
	t.Logf("%d MB resident, at most %d", resident()>>20, most>>20)
	if most > 1536<<20 {
		t.Errorf("a control node of %d keys has had %d MB, at most 1,536 are allowed", keys, most>>20)
	}
}
