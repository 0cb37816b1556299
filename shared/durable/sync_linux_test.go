package durable_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/shared/durable"
)

func files(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// What is synced by the kernel's workers, many at once and beside writers, is done, leaves nothing open, and uses as many workers as
// there were syncs at once.
func TestSync_ManyAtOnce(t *testing.T) {
	if !durable.ByWorker() {
		t.Skip("the kernel syncs for nobody here")
	}
	const many = 8
	before := files(t) - durable.IdleWorkers()
	var wg sync.WaitGroup
	for i := range many {
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		wg.Go(func() {
			for j := range 50 {
				if _, err := f.WriteString("row"); err != nil {
					t.Error(err)
				}
				do := durable.Sync
				if j%2 == 0 {
					do = durable.SyncData
				}
				if err := do(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := durable.IdleWorkers(); got == 0 || got > many {
		t.Errorf("got %d workers, want 1 to %d", got, many)
	}
	if got := files(t) - durable.IdleWorkers() - many; got != before {
		t.Errorf("got %d more files open than before", got-before)
	}
}

// What cannot be synced says so, by whom and why, and the worker that found out does not stay.
func TestSync_SaysWhatFails(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, do := range map[string]func(*os.File) error{"fsync": durable.Sync, "fdatasync": durable.SyncData} {
		idle := durable.IdleWorkers()
		var e *os.PathError
		if err := do(w); !errors.Is(err, syscall.EINVAL) || !errors.As(err, &e) {
			t.Errorf("%s of a pipe: got %v, want EINVAL of a path", name, err)
		}
		if got := durable.IdleWorkers(); got > idle {
			t.Errorf("%s: got %d workers, had %d", name, got, idle)
		}
	}
	w.Close()
	if err := durable.Sync(w); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of what is closed: got %v", err)
	}
	if err := durable.SyncData(w); err == nil {
		t.Error("data of what is closed: got no error")
	}
	if err := durable.Result(-int64(syscall.EIO)); !errors.Is(err, syscall.EIO) {
		t.Errorf("a disk that fails: got %v, want EIO", err)
	}
	if err := durable.Result(0); err != nil {
		t.Errorf("got %v", err)
	}
}

// A worker that was first used in a test with a clock of its own is of use behind it, and the other way round.
func TestSync_BesideClocks(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			for range 3 {
				began := time.Now()
				if err := durable.Sync(f); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("a sync let %v pass", took)
				}
			}
		})
		if err := durable.SyncData(f); err != nil {
			t.Fatal(err)
		}
	}
}
