package ledger_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/ledger"
)

var (
	_ raftgroup.Machine = (*ledger.Machine)(nil)
	_ raftgroup.Checker = (*ledger.Machine)(nil)
	_ ledger.Replica    = (*raftgroup.Node)(nil)
)

// member is a group of one with its ledger, on disk.
type member struct {
	m    *ledger.Machine
	l    *ledger.Ledger
	stop func()
}

func startMember(t *testing.T, dir string) *member {
	t.Helper()
	fatal := func(err error) { t.Errorf("fatal: %v", err) }
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(dir, "cells"), OnFatal: fatal})
	if err != nil {
		t.Fatal(err)
	}
	n, err := raftgroup.New(raftgroup.Config{Group: "ledger/emea", Node: "emea-1", Dir: filepath.Join(dir, "raft"), Voters: []string{"emea-1"},
		Timing: raftgroup.Local(), SnapshotThreshold: 16, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: 4, OnFatal: fatal}, m)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.New(ledger.Config{Machine: m, Replica: n, SealInterval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Errorf("run node: %v", err)
		}
	})
	wg.Go(func() { l.Run(ctx) })
	return &member{m, l, func() { cancel(); wg.Wait(); shut(t, m) }}
}

// On the real engine: what was acknowledged is there after a restart, and after
// the cells were lost whole and come back from raft's snapshot and log.
func TestLedger_OnRaft(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := &chain{edge: "e", epoch: 1}
	sum := func(l *ledger.Ledger) int64 {
		r, err := l.Usage(ctx, "acme", base.AddDate(-1, 0, 0), base.AddDate(1, 0, 0))
		if err != nil {
			t.Fatal(err)
		}
		return r.Total.Requests
	}
	w := startMember(t, dir)
	for i := range 60 {
		b := c.next(one("acme", i%9, 1))
		for range 2 { // each ack is lost once
			acks, err := w.l.Append(ctx, b)
			if err != nil || acks[0].Reason != "" || acks[0].Applied != uint64(i+1) {
				t.Fatalf("append %d: got %+v, %v", i+1, acks, err)
			}
		}
	}
	if got := sum(w.l); got != 60 {
		t.Errorf("requests: got %d, want 60", got)
	}
	want := stateHash(t, w.m)
	for { // raft takes them in the background
		snaps, err := filepath.Glob(filepath.Join(dir, "raft", "snapshots", "*[0-9]"))
		if err != nil || ctx.Err() != nil {
			t.Fatalf("no raft snapshot was taken, so the log was never cut: %v", err)
		}
		if len(snaps) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.stop()
	for _, lost := range []bool{false, true} {
		if lost {
			if err := os.RemoveAll(filepath.Join(dir, "cells")); err != nil {
				t.Fatal(err)
			}
		}
		w = startMember(t, dir)
		if got := sum(w.l); got != 60 {
			t.Errorf("requests after a restart (cells lost: %v): got %d, want 60", lost, got)
		}
		if stateHash(t, w.m) != want {
			t.Errorf("state hash after a restart (cells lost: %v) differs", lost)
		}
		w.stop()
	}
	w = startMember(t, dir)
	defer w.stop()
	if acks, err := w.l.Append(ctx, c.next(one("acme", 0, 1))); err != nil || acks[0].Applied != 61 {
		t.Errorf("next block: got %+v, %v, want 61 applied", acks, err)
	}
}
