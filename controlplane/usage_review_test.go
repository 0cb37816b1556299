package controlplane

import (
	"context"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// solo is a group of one: what is proposed is applied.
type solo struct {
	m  *ledger.Machine
	mu sync.Mutex
	n  uint64
}

func (s *solo) Propose(_ context.Context, cmd []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return s.m.Apply(s.n, time.Now(), cmd)
}
func (s *solo) ReadIndex(context.Context) (uint64, error)           { return 0, nil }
func (s *solo) WaitApplied(ctx context.Context, index uint64) error { return nil }

// An edge that was removed while the ledger knew of blocks it never got must not let the zone look complete
// beyond what that edge told.
func TestComplete_RemovedEdgeWithUnshippedUsageHoldsIt(t *testing.T) {
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l, err := ledger.New(ledger.Config{Machine: m, Replica: &solo{m: m}, SealInterval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()

	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	l.NoteSealed("gone", 1, 0, 0, at)
	l.NoteSealed("left-in-order", 1, 0, 0, at)
	l.NoteSealed("stays", 1, 0, 0, at.Add(time.Hour))
	l.NoteSealed("gone", 1, 2, 0, time.Time{}) // its Hello: two blocks, which never came
	through := func(edges ...string) time.Time {
		t.Helper()
		view, err := l.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer view.Close()
		epochs, err := view.Edges(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got, err := view.CompleteThrough(ctx, withOpenEnds(edges, epochs))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for end := time.Now().Add(30 * time.Second); through("stays", "gone").IsZero(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the marks are not committed within 30 s")
		}
	}
	if got := through("stays"); !got.Equal(at) {
		t.Errorf("with an edge removed that holds 2 blocks: complete through %v, want %v", got, at)
	}
	// It joins again and ships.
	var prev [32]byte
	for seq := range uint64(2) {
		b := ledger.Block{Region: "eu-west", Block: usage.NewBlock("gone", 1, seq+1, prev, payload(at, seq))}
		prev = b.Hash
		if acks, err := l.Append(ctx, b); err != nil || acks[0].Reason != "" {
			t.Fatalf("append: %v, %v", acks, err)
		}
	}
	if got := through("stays"); !got.Equal(at.Add(time.Hour)) {
		t.Errorf("once it has shipped: complete through %v, want %v", got, at.Add(time.Hour))
	}
}

func payload(at time.Time, n uint64) []byte {
	c := usage.Cell{Start: usage.CellStart(at.UnixMilli()), Customer: "acme", Plan: "gold", PlanRev: n, API: "orders", Outcome: usage.OutcomeSuccess}
	return usage.EncodePayload(map[usage.Cell]usage.Sums{c: {Requests: 1, Units: 1}})
}
