package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

var base = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, fs vfs.FS) *ledger.Machine {
	t.Helper()
	m, err := ledger.OpenOn(fs, ledger.MachineConfig{Dir: "ledger", OnFatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatalf("open machine: %v", err)
	}
	return m
}

func openMem(t testing.TB) *ledger.Machine {
	m := open(t, vfs.NewMem())
	t.Cleanup(func() { shut(t, m) })
	return m
}

func shut(t testing.TB, m *ledger.Machine) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Errorf("close machine: %v", err)
	}
}

func stateHash(t testing.TB, m *ledger.Machine) [32]byte {
	t.Helper()
	_, sum, err := m.StateHash()
	if err != nil {
		t.Fatalf("hash state: %v", err)
	}
	return sum
}

// cell makes one row's key; n varies the cell within a customer.
func cell(customer string, n int) usage.Cell {
	return usage.Cell{Start: base.Unix() + int64(n/4)*900, Customer: customer, Subscription: customer + "-s", Plan: "gold", PlanRev: 3,
		Product: "core", API: "orders", Route: fmt.Sprintf("/r%d", n%4), Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}
}

// chain builds an edge's blocks.
type chain struct {
	edge  string
	epoch uint64
	seq   uint64
	head  [32]byte
}

func (c *chain) next(cells map[usage.Cell]usage.Sums) ledger.Block {
	c.seq++
	b := block(c.edge, c.epoch, c.seq, c.head, usage.EncodePayload(cells))
	c.head = b.Hash
	return b
}

func block(edge string, epoch, seq uint64, prev [32]byte, payload []byte) ledger.Block {
	b := ledger.Block{Region: "eu-west"}
	b.Edge, b.Epoch, b.Seq, b.Prev, b.Payload = edge, epoch, seq, prev, payload
	b.Hash = usage.HashBlock(edge, epoch, seq, prev, payload)
	return b
}

func one(customer string, n int, requests int64) map[usage.Cell]usage.Sums {
	return map[usage.Cell]usage.Sums{cell(customer, n): {Requests: requests, Units: 2 * requests, BytesIn: 10, BytesOut: 100}}
}

// replica applies what is proposed at once, as a group of one would, and keeps
// the log.
type replica struct {
	mu      sync.Mutex
	m       *ledger.Machine
	log     [][]byte
	gate    chan struct{} // if not nil, each Propose takes one
	fail    error         // if not nil, Propose answers it after applying
	refuse  error         // if not nil, Propose answers it and does not apply
	readErr error
}

func (r *replica) Propose(ctx context.Context, cmd []byte) ([]byte, error) {
	if r.gate != nil {
		select {
		case <-r.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		return nil, r.refuse
	}
	if err := r.m.Check(cmd); err != nil {
		return nil, err
	}
	r.log = append(r.log, bytes.Clone(cmd))
	out, err := r.m.Apply(uint64(len(r.log)), base, cmd)
	if r.fail != nil {
		return nil, r.fail
	}
	return out, err
}

func (r *replica) ReadIndex(context.Context) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.log)), r.readErr
}

func (r *replica) WaitApplied(context.Context, uint64) error { return nil }

func (r *replica) entries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log)
}

func startLedger(t testing.TB, r *replica, cfg ledger.Config) *ledger.Ledger {
	t.Helper()
	cfg.Machine, cfg.Replica = r.m, r
	l, err := ledger.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
	})
	return l
}

func realDir(t testing.TB) string { return filepath.Join(t.TempDir(), "ledger") }
