package syncserver_test

import (
	"fmt"
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/syncserver"
)

// A snapshot that breaks off again and again costs each object once, as long as nothing that it holds has changed; what
// moves the place in the log alone is no change. Once something has, it begins anew and is right.
func TestSubscribe_ASnapshotGoesOnWhereItBroke(t *testing.T) {
	w := newWorld(t, func(c *syncserver.Config) { c.PartBytes = 4096 })
	const keys = 500
	for i := range keys {
		w.key(fmt.Sprintf("key%04d", i), "active")
	}
	e := w.edge("w1")
	breaks := 0
	for at := 40; at < keys; at += 90 {
		e.breakAt = at
		e.connect()
		if err := e.err(); err != errBroken {
			t.Fatalf("broken off at %d: %v", at, err)
		}
		breaks++
		if e.resume.Objects < uint64(at) {
			t.Fatalf("at %d it has %d objects", at, e.resume.Objects)
		}
		w.zone.put("locks/x", model.Gone{Name: fmt.Sprint(at)}) // the place moves, and no object
		w.key("revoked", "revoked")
	}
	e.breakAt = 0
	e.connect()
	eventually(t, "the whole table", e.at)
	if s, _ := e.counts(); s != 1 || e.skipped == 0 {
		t.Errorf("%d snapshots, %d objects spared, want one in %d pieces", s, e.skipped, breaks+1)
	}
	if got := w.server.Stats().Resumed.Load(); got != int64(breaks) {
		t.Errorf("%d streams went on, want %d", got, breaks)
	}
	e.disconnect()

	// The same in the face of a change: what was spared would be wrong.
	f := w.edge("w2")
	f.breakAt = 300
	f.connect()
	if err := f.err(); err != errBroken {
		t.Fatal(err)
	}
	w.zone.put("customers/acme", model.Customer{Name: "acme", Zone: "emea", Status: "suspended"}) // as many keys, and others
	f.breakAt = 0
	f.connect()
	eventually(t, "the whole table", f.at)
	if f.skipped != 0 {
		t.Errorf("%d objects were spared of a table that is another", f.skipped)
	}
}
