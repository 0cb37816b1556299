package ledger_test

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
)

// A cloned disk: two spools continue one epoch. Whatever is found of the copy
// puts the epoch into quarantine: nothing more is counted and nothing more is
// acknowledged, so that neither copy drops what the ledger does not have.
func TestMachine_ForkIsQuarantined(t *testing.T) {
	for _, c := range []struct {
		name string
		of   func(original *chain, blocks []ledger.Block, clone chain) ledger.Block // what the clone sends
	}{
		{"another newest block", func(_ *chain, b []ledger.Block, clone chain) ledger.Block {
			clone.seq, clone.head = 2, b[1].Hash
			return clone.next(one("acme", 0, 7))
		}},
		{"another older block", func(_ *chain, b []ledger.Block, clone chain) ledger.Block {
			clone.seq, clone.head = 1, b[0].Hash
			return clone.next(one("acme", 0, 7))
		}},
		{"the next block on another chain", func(_ *chain, b []ledger.Block, clone chain) ledger.Block {
			clone.seq, clone.head = 2, b[1].Hash
			clone.next(one("acme", 0, 7))
			return clone.next(one("acme", 0, 8))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			m := open(t, mem)
			original := &chain{edge: "e", epoch: 1}
			blocks := []ledger.Block{original.next(one("acme", 0, 1)), original.next(one("acme", 0, 1)), original.next(one("acme", 0, 1))}
			apply(t, m, blocks...)
			forged := c.of(original, blocks, chain{edge: "e", epoch: 1})
			if a := apply(t, m, forged)[0]; a.Reason != ledger.ReasonFork || a.Applied != 3 {
				t.Fatalf("the copy's block: got %q at %d, want %s at 3", a.Reason, a.Applied, ledger.ReasonFork)
			}
			shut(t, m)
			m = open(t, mem) // a fact, not a memory
			defer func() { shut(t, m) }()
			if m.Quarantined() != 1 {
				t.Errorf("quarantined: got %d, want 1", m.Quarantined())
			}
			for i, b := range []ledger.Block{original.next(one("acme", 0, 1)), blocks[0], blocks[2], forged} {
				if a := apply(t, m, b)[0]; a.Reason != ledger.ReasonQuarantined {
					t.Errorf("block %d afterwards: got %q, want %s: an ack would let a spool drop it", i, a.Reason, ledger.ReasonQuarantined)
				}
			}
			if got := requests(t, m, "acme"); got != 3 {
				t.Errorf("requests: got %d, want 3", got)
			}
			young := &chain{edge: "e", epoch: 2}
			if a := apply(t, m, young.next(one("acme", 0, 10)))[0]; a.Reason != "" {
				t.Errorf("the edge's next epoch: got %q, want it applied", a.Reason)
			}
			if e := epochOf(t, m, "e", 1); e.Status() != "quarantined" || e.Forked == 0 {
				t.Errorf("epoch: got %+v, want it quarantined with the number of the block", e)
			}
			r := &replica{m: m}
			r.log = make([][]byte, m.Applied())
			l := startLedger(t, r, ledger.Config{})
			if _, err := l.CloseEpoch(t.Context(), ledger.Closing{Edge: "e", Epoch: 1, Sealed: 5, Held: ledger.HeldForfeit, At: base, By: "ann", Reason: "cloned disk"}); err != nil {
				t.Fatal(err)
			}
			e := epochOf(t, m, "e", 1)
			if e.Status() != "closed" || e.Gap != 2 || e.ClosedBy != "ann" || e.ClosedWhy != "cloned disk" || !e.ClosedAt.Equal(base) || e.Held != ledger.HeldForfeit {
				t.Errorf("epoch: got %+v, want it closed with a gap of 2, by whom and why", e)
			}
			if m.Quarantined() != 0 {
				t.Errorf("quarantined: got %d, want 0", m.Quarantined())
			}
			if a := apply(t, m, blocks[2])[0]; a.Reason != "" {
				t.Errorf("an applied block after the close: got %q, want it acknowledged", a.Reason)
			}
		})
	}
}

// What version 1 means never changes: its forks are refused one by one.
func TestMachine_ForkInALogOfVersionOne(t *testing.T) {
	m := openMem(t)
	c := &chain{edge: "e", epoch: 1}
	b1 := c.next(one("acme", 0, 1))
	forged := block("e", 1, 1, [32]byte{}, []byte{1, 0, 0})
	applyCmd(t, m, asVersionOne(ledger.EncodeAppend([]ledger.Block{b1, forged})))
	applyCmd(t, m, asVersionOne(ledger.EncodeAppend([]ledger.Block{c.next(one("acme", 0, 1))})))
	if got := requests(t, m, "acme"); got != 2 || m.Quarantined() != 0 {
		t.Errorf("got %d requests and %d quarantined, want 2 and 0", got, m.Quarantined())
	}
}

func epochOf(t testing.TB, m *ledger.Machine, edge string, number uint64) ledger.EdgeEpoch {
	t.Helper()
	v, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	list, err := v.Edges(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Edge == edge && e.Epoch == number {
			return e
		}
	}
	t.Fatalf("epoch %d of %s is not listed", number, edge)
	return ledger.EdgeEpoch{}
}
