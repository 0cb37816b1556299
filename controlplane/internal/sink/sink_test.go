package sink_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/sink"
	"bailiwick/shared/usage"
)

type replica struct {
	m     *ledger.Machine
	mu    sync.Mutex // covers index; held while one command is applied
	index uint64
}

func (r *replica) Propose(_ context.Context, cmd []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	return r.m.Apply(r.index, time.Time{}, cmd)
}
func (r *replica) ReadIndex(context.Context) (uint64, error) { return r.m.Applied(), nil }
func (r *replica) WaitApplied(context.Context, uint64) error { return nil }

// reigns ends a leader's turn after so many calls of what counts with it: at a step of the pump, not after a time,
// since a turn that is shorter than the disk is slow gets nothing done.
type reigns struct {
	mu    sync.Mutex // covers end
	end   context.CancelFunc
	begun int // turns
}

func (r *reigns) begin(ctx context.Context) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, r.end = context.WithCancel(ctx)
	r.begun++
	return ctx
}

func (r *reigns) over() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end != nil {
		r.end()
	}
}

// flaky loses the ledger's word on what was stored, and at every fifth the leader changes.
type flaky struct {
	*ledger.Ledger
	reigns *reigns
	mu     sync.Mutex // covers n
	n      int
}

func (f *flaky) Sunk(ctx context.Context, name string, position uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n++; f.n%5 == 0 {
		defer f.reigns.over()
	}
	if f.n%2 == 0 {
		return errors.New("no leader")
	}
	return f.Ledger.Sunk(ctx, name, position)
}

type reign struct{}

func (reign) RunLeader(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

// exact stores its position with its data, and answers every third Commit with an error although it has stored;
// at every seventh the leader changes.
type exact struct {
	reigns   *reigns
	mu       sync.Mutex // covers the rest
	position uint64
	seqs     []uint64
	commits  int
}

func (*exact) Name() string { return "exact" }
func (e *exact) Position(context.Context) (uint64, bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.position, true, nil
}
func (e *exact) Commit(_ context.Context, blocks []ledger.OutBlock) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range blocks {
		e.seqs, e.position = append(e.seqs, b.Seq), b.Position
	}
	if e.commits++; e.commits%7 == 0 {
		e.reigns.over()
	}
	if e.commits%3 == 0 {
		return errors.New("the answer was lost")
	}
	return nil
}

// A sink that keeps its position with its data has every block once, in order, whatever is lost on the way and
// however often the leader changes.
func TestPump_AnExactSinkHasEveryBlockOnce(t *testing.T) {
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(t.TempDir(), "ledger")})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l, err := ledger.New(ledger.Config{Machine: m, Replica: &replica{m: m}})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 100
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	turns := &reigns{}
	s := &exact{reigns: turns}
	door := &flaky{Ledger: l, reigns: turns}
	if err := l.RegisterSinks(ctx, 1<<20, []string{"exact"}, nil); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		defer cancel()
		for n := 0; ctx.Err() == nil; n++ {
			if n > 10*blocks { // one ends at every fifth word of the ledger's and every seventh Commit: 55 do for all blocks
				t.Errorf("%d turns did not empty the outbox", n)
				return
			}
			p, err := sink.New(sink.Config{Ledger: door, Leader: reign{}, Sinks: []sink.Sink{s}, Poll: time.Millisecond, Backoff: time.Millisecond, Batch: 1})
			if err != nil {
				t.Error(err)
				return
			}
			p.Run(turns.begin(ctx))
		}
	})
	var head [32]byte
	for i := range blocks {
		b := ledger.Block{Block: usage.NewBlock("e", 1, uint64(i+1), head, usage.EncodePayload(map[usage.Cell]usage.Sums{{Customer: "acme", Outcome: usage.OutcomeSuccess}: {Requests: 1}})), Region: "r"}
		head = b.Hash
		if acks, err := l.Append(ctx, b); err != nil || acks[0].Reason != "" {
			t.Fatalf("append: %+v, %v", acks, err)
		}
	}
	for {
		if ctx.Err() != nil {
			t.Fatal("the pump ended before the outbox was empty")
		}
		v, err := l.View(ctx)
		if err != nil {
			t.Fatal(err)
		}
		left, err := v.Outbox(ctx, 0, 1)
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if turns.begun < blocks/7 {
		t.Fatalf("the leader changed %d times: too seldom to say anything", turns.begun)
	}
	if len(s.seqs) != blocks {
		t.Fatalf("the sink holds %d blocks, want %d", len(s.seqs), blocks)
	}
	for i, seq := range s.seqs {
		if seq != uint64(i+1) {
			t.Fatalf("block %d: got %d", i, seq)
		}
	}
}
