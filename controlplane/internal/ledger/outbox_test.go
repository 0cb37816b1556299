package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
)

func outbox(t testing.TB, m *ledger.Machine, after uint64) (positions []uint64, sinks string) {
	t.Helper()
	v, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	blocks, err := v.Outbox(context.Background(), after, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if !b.Intact() || b.Region != "eu-west" {
			t.Errorf("block at %d: got %+v, want it as it was applied", b.Position, b)
		}
		positions = append(positions, b.Position)
	}
	list, err := v.Sinks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return positions, fmt.Sprint(list)
}

func TestMachine_OutboxKeepsWhatASinkLacks(t *testing.T) {
	mem := vfs.NewMem()
	m := open(t, mem)
	r := &replica{m: m}
	l := startLedger(t, r, ledger.Config{})
	ctx := t.Context()
	c := &chain{edge: "e", epoch: 1}
	add := func(n int) {
		t.Helper()
		for i := range n {
			b := c.next(one("acme", i, 1))
			for range 2 { // what is repeated is not emitted again
				if acks, err := l.Append(ctx, b); err != nil || acks[0].Reason != "" {
					t.Fatalf("append: %+v, %v", acks, err)
				}
			}
		}
	}
	want := func(positions, sinks string) {
		t.Helper()
		p, s := outbox(t, m, 0)
		if fmt.Sprint(p) != positions || s != sinks {
			t.Errorf("outbox: got %v and %s, want %s and %s", p, s, positions, sinks)
		}
	}
	add(3)
	want("[]", "[]") // nobody to keep them for
	if err := l.RegisterSinks(ctx, 1<<20, []string{"a", "b"}, nil); err != nil {
		t.Fatal(err)
	}
	add(3)
	want("[1 2 3]", "[{a 0 0 0 0} {b 0 0 0 0}]")
	for _, ack := range []struct {
		name string
		at   uint64
	}{{"a", 2}, {"b", 3}, {"a", 1}, {"a", 99}, {"nobody", 3}} { // older, beyond the end, unknown: nothing
		if err := l.Sunk(ctx, ack.name, ack.at); err != nil {
			t.Fatal(err)
		}
	}
	want("[3]", "[{a 2 0 0 0} {b 3 0 0 0}]")

	// A node that comes from a snapshot has the same outbox, and goes on alike.
	other := open(t, vfs.NewMem())
	defer func() { shut(t, other) }()
	if err := other.Restore(bytes.NewReader(snapshot(t, m))); err != nil {
		t.Fatal(err)
	}
	from := len(r.log)

	// The budget holds about two blocks: a, which takes nothing, is told what it lost.
	if err := l.RegisterSinks(ctx, 400, []string{"a", "b"}, nil); err != nil {
		t.Fatal(err)
	}
	add(4)
	p, s := outbox(t, m, 0)
	if len(p) == 0 || len(p) > 3 || p[len(p)-1] != 7 {
		t.Errorf("outbox: got %v, want the newest blocks within the budget", p)
	}
	first := p[0]
	if wantS := fmt.Sprintf("[{a %d %d 3 %d} {b %d %d 4 %d}]", first-1, first-3, first-1, first-1, first-4, first-1); s != wantS {
		t.Errorf("sinks: got %s, want %s", s, wantS)
	}
	if err := l.RegisterSinks(ctx, 400, nil, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	want("[]", "[]")
	for i := from; i < len(r.log); i++ {
		if _, err := other.Apply(uint64(i+1), base, r.log[i]); err != nil {
			t.Fatal(err)
		}
	}
	if stateHash(t, other) != stateHash(t, m) {
		t.Error("state hash: a node that came from a snapshot differs")
	}
}
