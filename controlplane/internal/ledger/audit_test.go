package ledger_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/fault"
)

// crowd is a group of machines fed one log; the first one leads.
type crowd struct {
	mu    sync.Mutex // covers index and the order of entries
	index uint64
	m     []*ledger.Machine
	fs    []*vfs.MemFS
	fatal []chan error
}

func newCrowd(t *testing.T, n int) *crowd {
	c := &crowd{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range n {
		died := make(chan error, 1)
		fs := vfs.NewMem()
		m, err := ledger.OpenOn(fs, ledger.MachineConfig{Dir: "ledger", OnFatal: func(err error) { died <- err }})
		if err != nil {
			t.Fatal(err)
		}
		c.m, c.fs, c.fatal = append(c.m, m), append(c.fs, fs), append(c.fatal, died)
		wg.Go(func() {
			if err := m.HashCheckpoints(ctx); err != nil {
				t.Errorf("hash checkpoints: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, m := range c.m {
			shut(t, m)
		}
	})
	return c
}

func (c *crowd) Propose(_ context.Context, cmd []byte) (out []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	for i := len(c.m) - 1; i >= 0; i-- { // the leader last: its answer is the group's
		if out, err = c.m[i].Apply(c.index, base, cmd); err != nil && i > 0 {
			continue // it has stopped
		}
	}
	return out, err
}
func (c *crowd) ReadIndex(context.Context) (uint64, error) { return c.m[0].Applied(), nil }
func (c *crowd) WaitApplied(context.Context, uint64) error { return nil }
func (c *crowd) audit(t *testing.T) (*ledger.Ledger, *ledger.Audit) {
	t.Helper()
	l, err := ledger.New(ledger.Config{Machine: c.m[0], Replica: c})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"n0", "n1", "n2"}[:len(c.m)]
	a, err := ledger.NewAudit(ledger.AuditConfig{Ledger: l, Leader: alone{}, Node: "n0", Members: func() []string { return names }, Look: time.Millisecond, Patience: 10 * time.Second,
		Ask: func(_ context.Context, node string, index uint64) ([32]byte, bool, error) {
			_, sum, ok := c.m[node[1]-'0'].CheckpointSum(index)
			return sum, ok, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	return l, a
}

func (c *crowd) count(t *testing.T) {
	t.Helper()
	k := &chain{edge: "e", epoch: 1}
	for i := range 20 {
		if _, err := c.Propose(t.Context(), ledger.EncodeAppend([]ledger.Block{k.next(one("acme", i, 1))})); err != nil {
			t.Fatal(err)
		}
	}
}

// One value flipped in one node's database: exactly that node stops, says why,
// and does not come back with that state.
func TestAudit_ANodeThatDiffersStopsItself(t *testing.T) {
	for which := range 3 { // the leader, too
		c := newCrowd(t, 3)
		_, a := c.audit(t)
		c.count(t)
		if err := a.Once(t.Context()); err != nil || a.Agreed.Load() != 1 {
			t.Fatalf("before: got %v and %d agreed, want 1", err, a.Agreed.Load())
		}
		if err := c.m[which].Flip(cell("acme", 3)); err != nil {
			t.Fatal(err)
		}
		if err := a.Once(t.Context()); err != nil || a.Outvoted.Load() != 1 {
			t.Fatalf("after: got %v and %d outvoted, want 1", err, a.Outvoted.Load())
		}
		for i := range c.m {
			select {
			case err := <-c.fatal[i]:
				if i != which || fault.ReasonOf(err) != "LEDGER_DIFFERS" && !strings.Contains(err.Error(), "differs from that of the majority") {
					t.Errorf("node %d stops with %v, want node %d to, and to say why", i, err, which)
				}
			case <-time.After(map[bool]time.Duration{true: 30 * time.Second, false: 20 * time.Millisecond}[i == which]):
				if i == which {
					t.Errorf("node %d has a false value and goes on", i)
				}
			}
		}
		if _, err := c.m[which].Apply(c.index+1, base, ledger.EncodeSealed(nil)); err == nil {
			t.Error("the node that differs applies entries")
		}
		shut(t, c.m[which])
		if m, err := ledger.OpenOn(c.fs[which], ledger.MachineConfig{Dir: "ledger"}); err == nil {
			m.Close()
			t.Error("it opens again with that state")
		} else if !strings.Contains(err.Error(), "wipe") {
			t.Errorf("opening again: got %v, want it to say what to do", err)
		}
	}
}

// Two nodes and two states: nobody can know who is right.
func TestAudit_WithoutAMajorityNobodyStops(t *testing.T) {
	for _, members := range []int{2, 3} {
		c := newCrowd(t, members)
		_, a := c.audit(t)
		c.count(t)
		for i := 1; i < members; i++ {
			for range i {
				if err := c.m[i].Flip(cell("acme", 3)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := a.Once(t.Context()); err != nil || a.Split.Load() != 1 || a.Outvoted.Load() != 0 {
			t.Fatalf("%d members: got %v, %d split, %d outvoted, want 1 split", members, err, a.Split.Load(), a.Outvoted.Load())
		}
		for i := range c.m {
			select {
			case err := <-c.fatal[i]:
				t.Errorf("node %d stops: %v", i, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// What a minority of the members says is no majority, however alike they are.
func TestAudit_TooFewAnswersJudgeNobody(t *testing.T) {
	c := newCrowd(t, 1)
	l, err := ledger.New(ledger.Config{Machine: c.m[0], Replica: c})
	if err != nil {
		t.Fatal(err)
	}
	a, err := ledger.NewAudit(ledger.AuditConfig{Ledger: l, Leader: alone{}, Node: "n0", Members: func() []string { return []string{"n0", "n1", "n2"} }, Look: time.Millisecond, Patience: 50 * time.Millisecond,
		Ask: func(context.Context, string, uint64) ([32]byte, bool, error) {
			return [32]byte{}, false, errors.New("away")
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Once(t.Context()); err != nil || a.Agreed.Load()+a.Outvoted.Load()+a.Split.Load() != 0 {
		t.Errorf("got %v, %d agreed, want no verdict", err, a.Agreed.Load())
	}
}

// A checkpoint that waits to be hashed does not hold up a restore or a close.
func TestMachine_CheckpointsLetGo(t *testing.T) {
	m := open(t, vfs.NewMem())
	applyCmd(t, m, ledger.EncodeCheckpoint(base))
	applyCmd(t, m, ledger.EncodeCheckpoint(base))
	done := make(chan struct{})
	go func() { defer close(done); shut(t, m) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for a checkpoint that nobody hashes")
	}
}
