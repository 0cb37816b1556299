package raftgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// However a row of transactions is cut into batches, the state, the results and the memory of request ids are those of the
// transactions one by one.
func TestMemory_ABatchIsItsPartsInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	one, many := newMemory("a", 1000, 0), newMemory("a", 1000, 0)
	at := time.Unix(1_800_000_000, 0)
	for entry := uint64(1); entry <= 200; {
		cmds := make([][]byte, 1+r.IntN(6))
		var want [][]byte
		for i := range cmds {
			txn := group.Txn{RequestID: fmt.Sprint("r", r.IntN(400))} // some come again, in the same batch too
			if r.IntN(2) == 0 {
				txn.Compares = []group.Compare{{Key: fmt.Sprint("k", r.IntN(8)), Exists: r.IntN(2) == 0}} // some do not hold
			}
			key := fmt.Sprint("k", r.IntN(8))
			txn.Ops = []group.Op{{Key: key, Value: fmt.Append(nil, entry, i)}}
			if r.IntN(4) == 0 {
				txn.Ops = []group.Op{{Key: key, Delete: true}}
			}
			cmds[i] = encodeTxn(txn)
		}
		// One by one they are entries too: the raft index is no part of what is compared.
		for _, c := range cmds {
			out, err := one.Apply(entry, at, c)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, out)
		}
		out, err := many.Apply(entry, at, many.Batch(cmds))
		if err != nil {
			t.Fatal(err)
		}
		got, err := many.Results(out)
		if err != nil || !slices.EqualFunc(got, want, slices.Equal) {
			t.Fatalf("entry %d: got results %x, %v, want %x", entry, got, err, want)
		}
		entry, at = entry+1, at.Add(time.Millisecond)
	}
	rev1, h1 := one.hash()
	rev2, h2 := many.hash()
	if rev1 != rev2 || h1 != h2 || rev1.Index == 0 {
		t.Errorf("states: got %v %x, want %v %x", rev2, h2, rev1, h1)
	}
}

func TestMemory_ABatchComesFromNobodyElse(t *testing.T) {
	m := newMemory("a", 1000, 0)
	cmd := m.Batch([][]byte{encodeTxn(group.Txn{Ops: []group.Op{{Key: "k"}}})})
	if got := fault.ReasonOf(m.Check(cmd)); got != "COMMAND_BATCH" {
		t.Errorf("a batch at the door: got %q, want COMMAND_BATCH", got)
	}
	for _, bad := range [][]byte{cmd[:len(cmd)-1], append(slices.Clone(cmd), 0), m.Batch([][]byte{cmd}), m.Batch([][]byte{{9, 9}})} {
		if _, err := m.Apply(1, time.Unix(1, 0), bad); err == nil {
			t.Errorf("apply %x: got no error, want one", bad)
		}
	}
}

// What comes while an entry is on its way to the disk leaves together, is answered each for itself, and whoever went away
// in the meantime is left out.
func TestLine_WhatWaitsLeavesTogether(t *testing.T) {
	t.Parallel()
	var hold atomic.Pointer[chan struct{}]
	// One leader all along, and no entries but the writers', however slow the machine is.
	base := Config{LookEvery: 20 * time.Millisecond, Timing: Regional(), ProbeAfter: time.Hour, StallLimit: time.Minute}
	base.wrapDisk = func(d disk) disk { return &heldDisk{disk: d, hold: &hold} }
	c := newCluster(t, base)
	l := c.leader()
	eventually(t, "all members know batches", func() bool { b, _, _ := l.node.batches(); return b != nil })
	put(t, l, "held", "0")
	first := l.node.Stats().LastLog

	gate := make(chan struct{})
	hold.Store(&gate)
	const writers = 60
	var wg sync.WaitGroup
	results := make([]group.Result, writers)
	write := func(ctx context.Context, i int) error {
		txn := group.Txn{Ops: []group.Op{{Key: fmt.Sprintf("k%02d", i), Value: []byte("v")}}}
		if i%3 == 0 {
			txn.Compares = []group.Compare{{Key: "held"}} // does not hold
		}
		var err error
		results[i], err = l.Txn(ctx, txn)
		return err
	}
	wg.Go(func() { write(short(t), 1) }) // is held, and with it all others
	waiting := func(n int) func() bool {
		return func() bool {
			l.node.line.mu.Lock()
			defer l.node.line.mu.Unlock()
			return len(l.node.line.waiting) == n && l.node.line.carriers == 1
		}
	}
	eventually(t, "the first is on its way", waiting(0))
	gone, leave := context.WithCancel(t.Context())
	for i := 2; i < writers; i++ {
		wg.Go(func() {
			if err := write(short(t), i); err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		})
	}
	wg.Go(func() {
		if err := write(gone, 0); fault.ReasonOf(err) != group.ReasonOutcomeUnknown {
			t.Errorf("who went away: got %v, want OUTCOME_UNKNOWN", err)
		}
	})
	eventually(t, "all others wait", waiting(writers-1))
	leave()
	eventually(t, "one of them left", func() bool {
		l.node.line.mu.Lock()
		defer l.node.line.mu.Unlock()
		return slices.ContainsFunc(l.node.line.waiting, func(p *proposal) bool { return p.gone.Load() })
	})
	hold.Store(nil)
	close(gate)
	wg.Wait()
	var indexes []uint64
	for i := 1; i < writers; i++ {
		if want := i%3 != 0; results[i].Succeeded != want {
			t.Errorf("write %d: got succeeded %v, want %v", i, results[i].Succeeded, want)
		}
		kv, ok := l.Local().Get(fmt.Sprintf("k%02d", i))
		if ok != results[i].Succeeded || ok && kv.ModIndex != results[i].Revision.Index {
			t.Errorf("write %d: got %v at %d, told %+v", i, ok, kv.ModIndex, results[i])
		}
		if ok {
			indexes = append(indexes, kv.ModIndex)
		}
	}
	slices.Sort(indexes)
	for i, index := range indexes {
		if want := indexes[0] + uint64(i); index != want {
			t.Fatalf("revisions %v have a gap", indexes)
		}
	}
	if got := l.node.Stats().LastLog - first; got != 2 { // the first's, and one with all the rest
		t.Errorf("entries: got %d for %d writers, want 2", got, writers)
	}
}

// heldDisk keeps writes waiting while hold is set.
type heldDisk struct {
	disk
	hold *atomic.Pointer[chan struct{}]
}

func (d *heldDisk) StoreLogs(logs []*raft.Log) error {
	if gate := d.hold.Load(); gate != nil {
		<-*gate
	}
	return d.disk.StoreLogs(logs)
}

func (d *heldDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// While a member runs a program that knows no batches, none is proposed.
func TestLine_NoBatchBeforeAllKnowIt(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{LookEvery: 20 * time.Millisecond, knows: commandVersion})
	upgrade := func(name string) {
		t.Helper()
		if err := c.stop[name](); err != nil {
			t.Fatal(err)
		}
		delete(c.stores, name)
		c.start(name)
	}
	c.base.knows = 0
	for _, name := range c.base.Voters {
		l := c.leader()
		for range 3 { // however often they are asked
			l.node.look(t.Context(), false)
		}
		if b, limit, most := l.node.batches(); b != nil || limit != 1 || most != oneByOne {
			t.Fatalf("before %s is upgraded: got batches of %d, %d at a time, want none", name, limit, most)
		}
		upgrade(name)
	}
	eventually(t, "all know batches", func() bool { b, _, _ := c.leader().node.batches(); return b != nil })
}

// No proposal is left without a carrier, none is carried twice, and limits hold.
func TestLine_EachIsCarriedOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var l line
	most, limit := oneByOne, 1
	joined, carried, gone, carriers := map[*proposal]bool{}, map[*proposal]bool{}, 0, 0
	for range 20_000 {
		switch r.IntN(5) {
		case 0, 1:
			p := &proposal{cmd: make([]byte, r.IntN(batchBytes/8))}
			if r.IntN(10) == 0 {
				p.gone.Store(true)
				gone++
			}
			joined[p] = true
			carry, ok := l.join(p, most)
			if !ok {
				t.Fatalf("refused with %d in line", len(l.waiting))
			}
			if carry {
				carriers++
			}
		case 2: // the group learns or forgets that it may batch
			if most, limit = 1, batchLimit; r.IntN(4) == 0 {
				most, limit = oneByOne, 1
			}
		default:
			if carriers == 0 {
				break
			}
			many := l.carriers > most
			batch := l.take(limit, most)
			size := 0
			if many && len(batch) > 0 {
				t.Fatalf("one of too many carriers goes on with %d", len(batch))
			}
			for _, p := range batch {
				if carried[p] || !joined[p] || p.gone.Load() {
					t.Fatal("carried twice, or for nobody")
				}
				carried[p] = true
				size += len(p.cmd)
			}
			if len(batch) > limit || len(batch) > 1 && size > batchBytes {
				t.Fatalf("got a batch of %d with %d bytes", len(batch), size)
			}
			if len(batch) == 0 {
				carriers--
			}
		}
		if l.carriers != carriers || len(l.waiting) > 0 && carriers == 0 {
			t.Fatalf("%d wait, %d carriers of %d", len(l.waiting), carriers, l.carriers)
		}
	}
	for carriers > 0 {
		batch := l.take(batchLimit, oneByOne)
		for _, p := range batch {
			carried[p] = true
		}
		if len(batch) == 0 {
			carriers--
		}
	}
	if len(carried) != len(joined)-gone {
		t.Errorf("carried: got %d, want %d", len(carried), len(joined)-gone)
	}
	for range lineLimit {
		l.join(&proposal{}, 0)
	}
	if _, ok := l.join(&proposal{}, 0); ok {
		t.Errorf("one more than %d was let in", lineLimit)
	}
}

// Nodes choose the same revisions to hash, one that was restored meanwhile too, and a large state is not hashed over and over.
func TestMemory_HashesAlikeAndSeldom(t *testing.T) {
	a, b := newMemory("a", 1000, 10), newMemory("a", 1000, 10)
	made := func(m *memory) (index uint64) {
		select {
		case <-m.checks.signal:
			return m.checks.take()().Index
		default:
			return 0
		}
	}
	at := time.Unix(1_800_000_000, 0)
	hashed, twice := 0, 0
	for i := uint64(1); i <= 5000; i++ {
		at = at.Add(250 * time.Microsecond) // 4,000 a second
		cmd := encodeTxn(group.Txn{RequestID: fmt.Sprint("r", i), Ops: []group.Op{{Key: fmt.Sprint("k", i)}}})
		for _, m := range []*memory{a, b} {
			if _, err := m.Apply(i, at, cmd); err != nil {
				t.Fatal(err)
			}
		}
		got, want := made(b), made(a)
		if want > 0 {
			hashed++
			if got > 0 {
				twice++
			}
		}
		if got != want && i%1000 > 10 { // a restored one may choose one more
			t.Fatalf("revision %d: one hashes %d, the other %d", i, want, got)
		}
		if i%1000 == 0 {
			write, _, _ := a.Snapshot()
			b = newMemory("a", 1000, 10)
			if err := b.Restore(readerOf(t, write)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// 1.25 s by the group's clock; in the end a hash every 200 ms, in the beginning one of every ten revisions.
	if hashed < 20 || hashed > 120 || twice < hashed-5 {
		t.Errorf("of 500: got %d hashed, %d of them by both, want 20 to 120, and all but five by both", hashed, twice)
	}
}
