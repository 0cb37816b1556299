package raftgroup

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
)

// A full disk ends the node like any other error of it, and the error says which: whoever keeps a reserve can tell.
func TestWatchdog_AFullDiskIsFatalAndSaysSo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	c := newCluster(t, Config{})
	victim := c.leader().node.cfg.Node
	_ = c.stop[victim]()
	delete(c.stores, victim)
	dir := filepath.Join(c.dir, victim)
	db, err := os.ReadFile(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "raft.db"), db, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(victim)
	var told error
	for i := 0; told == nil && i < 100; i++ {
		_, err := c.leader().Txn(short(t), group.Txn{Ops: []group.Op{{Key: "k", Value: make([]byte, 100<<10)}}})
		if err != nil {
			t.Fatalf("the others take no write: %v", err)
		}
		select {
		case told = <-c.fatal:
		case <-time.After(10 * time.Millisecond):
		}
	}
	mustContain(t, told, victim, "no space left")
	if !errors.Is(told, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC in its chain", told)
	}
	_ = c.stop[victim]()
	delete(c.stores, victim)
	put(t, c.leader(), "z", "1")
}
