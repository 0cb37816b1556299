package apitest

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/ledger"
)

// replica applies what is proposed at once, as a group of one would.
type replica struct {
	m *ledger.Machine

	mu    sync.Mutex // covers index; held while one command is applied
	index uint64
}

func (r *replica) Propose(ctx context.Context, cmd []byte) ([]byte, error) {
	if err := r.m.Check(cmd); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	return r.m.Apply(r.index, time.Time{}, cmd)
}

func (r *replica) ReadIndex(context.Context) (uint64, error) { return r.m.Applied(), nil }
func (r *replica) WaitApplied(context.Context, uint64) error { return nil }

// newLedger is a real ledger on a replica of one, which ends with the test.
func newLedger(t testing.TB) *ledger.Ledger {
	t.Helper()
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(t.TempDir(), "ledger")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.New(ledger.Config{Machine: m, Replica: &replica{m: m}, SealInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
