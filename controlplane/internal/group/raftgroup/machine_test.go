package raftgroup

import (
	"context"
	"encoding/binary"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// durableSum is a Machine with files of its own, as the ledger's is: it outlives
// its node and knows how far it is.
type durableSum struct {
	mu       sync.Mutex // covers all below
	sum, at  uint64
	applies  []uint64
	restores int
	last     time.Time
}

func (d *durableSum) Apply(index uint64, at time.Time, cmd []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum += uint64(cmd[0])
	d.at = index
	d.applies = append(d.applies, index)
	d.last = at
	return binary.BigEndian.AppendUint64(nil, d.sum), nil
}

func (d *durableSum) Snapshot() (func(io.Writer) error, func(), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, d.sum), d.at)
	return func(w io.Writer) error { _, err := w.Write(b); return err }, func() {}, nil
}

func (d *durableSum) Restore(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum, d.at = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	d.restores++
	return nil
}

func (d *durableSum) Applied() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

func TestNode_MachineThatKeepsItsOwnState(t *testing.T) {
	t.Parallel()
	cfg := Config{Group: "ledger/test", Node: "n1", Dir: filepath.Join(t.TempDir(), "ledger"), Voters: []string{"n1"}, Timing: Local(),
		SnapshotThreshold: 8, SnapshotInterval: 10 * time.Millisecond, TrailingLogs: 4}
	run := func(m *durableSum, adds int) (sum uint64) {
		t.Helper()
		n, err := New(cfg, m)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		for range adds {
			out, err := n.Propose(short(t), []byte{1})
			if err != nil {
				t.Fatal(err)
			}
			sum = binary.BigEndian.Uint64(out)
		}
		index, err := n.ReadIndex(short(t))
		if err == nil {
			err = n.WaitApplied(short(t), index)
		}
		if err != nil {
			t.Fatal(err)
		}
		if adds > 0 {
			eventually(t, "a snapshot", func() bool { return n.Stats().Snapshot > 0 })
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return sum
	}
	m := &durableSum{}
	if got := run(m, 30); got != 30 {
		t.Fatalf("sum: got %d, want 30", got)
	}
	// Restarted with its state, and a tail behind the snapshot: nothing of it is
	// applied again, nothing restored.
	cfg.SnapshotThreshold = 1000
	run(m, 1)
	applies := len(m.applies)
	run(m, 0)
	if m.sum != 31 || len(m.applies) != applies || m.restores != 0 {
		t.Errorf("restart with state: got sum %d, %d applies, %d restores, want 31, %d, 0", m.sum, len(m.applies), m.restores, applies)
	}
	// Its state lost: restored and replayed to the same.
	fresh := &durableSum{}
	run(fresh, 0)
	if fresh.sum != 31 || fresh.restores != 1 {
		t.Errorf("restart without state: got sum %d after %d restores, want 31 after 1", fresh.sum, fresh.restores)
	}
	// State older than the log's tail but newer than the snapshot, or behind it.
	for _, back := range []uint64{1, 25} {
		old := &durableSum{sum: m.sum - back, at: m.applies[len(m.applies)-1-int(back)]}
		run(old, 0)
		if old.sum != 31 {
			t.Errorf("restart %d behind: got sum %d, want 31", back, old.sum)
		}
	}
}
