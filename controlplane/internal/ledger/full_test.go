package ledger_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"bailiwick/controlplane/internal/ledger"
)

// A full disk ends the node's part in the ledger with an error that says so: it is what the reserve is given back for, and
// what is applied is there when the node comes back. Whether the write ahead log or a flush in the background meets it.
func TestMachine_AFullDiskIsFatalAndTold(t *testing.T) {
	for name, hits := range map[string]func(errorfs.Op) bool{
		"its log": func(op errorfs.Op) bool {
			return op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData
		},
		"a flush": func(op errorfs.Op) bool { return op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") },
	} {
		t.Run(name, func(t *testing.T) {
			var full atomic.Bool
			disk := vfs.NewMem()
			fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if full.Load() && hits(op) {
					return syscall.ENOSPC
				}
				return nil
			}))
			died := make(chan error, 1)
			m, err := ledger.OpenOn(fs, ledger.MachineConfig{Dir: "ledger", OnFatal: func(err error) { died <- err }})
			if err != nil {
				t.Fatal(err)
			}
			r := &replica{m: m}
			c := &chain{edge: "e1", epoch: 1}
			for n := range 20 {
				if _, err := r.Propose(t.Context(), ledger.EncodeAppend([]ledger.Block{c.next(one("acme", n, 1))})); err != nil {
					t.Fatal(err)
				}
			}
			full.Store(true)
			go func() { // pebble has no error to give to who writes: it may never return
				if name == "a flush" {
					_ = m.Flush()
					return
				}
				_, _ = r.Propose(context.Background(), ledger.EncodeAppend([]ledger.Block{c.next(one("acme", 20, 1))}))
				_ = m.Sync()
			}()
			select {
			case err := <-died:
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("got %v, which does not say that the disk is full", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a full disk is not noticed")
			}
		})
	}
}
