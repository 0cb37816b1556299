package controlplane

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"bailiwick/shared/fault"
)

func TestReserve_IsGivenBackOnAFullDiskAlone(t *testing.T) {
	r := newReserve(t.TempDir(), 3<<20+1)
	if err := r.make(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(r.path)
	if err != nil || fi.Size() != 3<<20+1 || fi.Sys().(*syscall.Stat_t).Blocks*512 < fi.Size() {
		t.Fatalf("reserve: got %v, %v, want a file without holes", fi, err)
	}
	if r.freeOn(fmt.Errorf("store raft log: %w", syscall.EIO)) {
		t.Error("given back for another error")
	}
	full := fmt.Errorf("store raft log: %w", &os.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC})
	if !r.freeOn(full) {
		t.Error("not given back on a full disk")
	}
	if _, err := os.Stat(r.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after: got %v, want it gone", err)
	}
}

func TestReserve_OfAFullDiskIsAClearError(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	r := newReserve(dir, 4<<20)
	if err := r.make(); fault.ReasonOf(err) != "DISK_FULL" {
		t.Errorf("got %v, want DISK_FULL", err)
	}
	if _, err := os.Stat(r.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was written of it stays: %v", err)
	}
}
