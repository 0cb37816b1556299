package raftgroup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// What clients of a Store ask for, and what they are told, as Porcupine checks it: one register a key, whose state is
// the ModIndex and value of its latest write. A write of which the outcome is unknown may have taken effect at any time
// until the end, or never.
type (
	asked struct {
		op, key, value string // op: get, put, cas
		expect         uint64 // cas: the ModIndex that must be
	}
	told struct {
		unknown, ok bool // ok of get: the key is there; of cas: it matched
		mod         uint64
		value       string
	}
	register struct {
		mod     uint64
		value   string
		strange bool // mod is unknown: a write whose outcome is unknown took effect
	}
)

func stepRegister(s, i, o any) []any {
	state, in, out := s.(register), i.(asked), o.(told)
	matches := func(mod uint64) bool { return state.strange || state.mod == mod }
	switch {
	case in.op == "get" && !out.ok && state == register{}:
		return []any{state}
	case in.op == "get" && out.ok && state.value == out.value && matches(out.mod):
		return []any{register{mod: out.mod, value: out.value}}
	case in.op == "put" && out.unknown:
		return []any{state, register{value: in.value, strange: true}}
	case in.op == "put":
		return []any{register{mod: out.mod, value: in.value}}
	case in.op == "cas" && out.unknown && matches(in.expect):
		return []any{state, register{value: in.value, strange: true}}
	case in.op == "cas" && out.unknown:
		return []any{state}
	case in.op == "cas" && out.ok && matches(in.expect):
		return []any{register{mod: out.mod, value: in.value}}
	case in.op == "cas" && !out.ok && (state.strange || state.mod != in.expect):
		return []any{state}
	}
	return nil
}

func checkHistory(t *testing.T, history []porcupine.Operation) {
	t.Helper()
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{register{}} },
		Step: stepRegister,
		Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
			at := map[string]int{}
			for _, op := range history {
				key := op.Input.(asked).key
				n, ok := at[key]
				if !ok {
					n, parts = len(parts), append(parts, nil)
					at[key] = n
				}
				parts[n] = append(parts[n], op)
			}
			return parts
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %+v", in, out) },
	}
	result, info := porcupine.CheckOperationsVerbose(model.ToModel(), history, time.Minute)
	if result == porcupine.Ok {
		return
	}
	path := filepath.Join(os.TempDir(), "history.html")
	if f, err := os.Create(path); err == nil {
		_ = porcupine.Visualize(model.ToModel(), info, f)
		_ = f.Close()
	}
	t.Errorf("the history of %d operations is %v: no order of them explains what clients were told; see %s", len(history), result, path)
}

// slowDisk keeps every write waiting while slow is set, below the limit at which the node would stop.
type slowDisk struct {
	disk
	slow, broken *atomic.Bool
}

func (s *slowDisk) StoreLogs(logs []*raft.Log) error {
	if s.slow.Load() {
		time.Sleep(150 * time.Millisecond)
	}
	if s.broken.Load() {
		return fmt.Errorf("fdatasync raft.db: input/output error")
	}
	return s.disk.StoreLogs(logs)
}
func (s *slowDisk) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// Under kills, partitions, slow disks and at last a failing one, what clients at all nodes were told has an order. A
// campaign is BAILIWICK_HISTORY=<seconds> with BAILIWICK_SEED=<n> to repeat one: make histories.
func TestHistory_IsLinearizableUnderFaults(t *testing.T) {
	length, seed := 4*time.Second, uint64(time.Now().UnixNano())
	if s, err := strconv.Atoi(os.Getenv("BAILIWICK_HISTORY")); err == nil {
		length = time.Duration(s) * time.Second
	}
	if n, err := strconv.ParseUint(os.Getenv("BAILIWICK_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("seed %d, for %s", seed, length)
	rng := rand.New(rand.NewPCG(seed, 1))
	slow, broken := map[string]*atomic.Bool{}, map[string]*atomic.Bool{}
	base := Config{SnapshotThreshold: 60, SnapshotInterval: 50 * time.Millisecond, TrailingLogs: 20, CheckEvery: 50, LookEvery: 100 * time.Millisecond}
	var mu sync.Mutex // covers slow and broken
	flag := func(m map[string]*atomic.Bool, name string) *atomic.Bool {
		mu.Lock()
		defer mu.Unlock()
		if m[name] == nil {
			m[name] = new(atomic.Bool)
		}
		return m[name]
	}
	base.wrapDisk = func(d disk) disk {
		name := filepath.Base(filepath.Dir(d.(*boltDisk).path))
		return &slowDisk{disk: d, slow: flag(slow, name), broken: flag(broken, name)}
	}
	c := newCluster(t, base)
	c.leader()

	begin := time.Now()
	var history []porcupine.Operation
	var hmu sync.Mutex // covers history
	stop := make(chan struct{})
	var clients sync.WaitGroup
	names := c.base.Voters
	for id := range 6 {
		own := rand.New(rand.NewPCG(seed, uint64(id)+2))
		clients.Go(func() {
			known := map[string]uint64{} // ModIndex last seen, by key
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				c.nw.mu.Lock()
				s := c.nw.nodes[names[own.IntN(len(names))]]
				c.nw.mu.Unlock()
				if s == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				in := asked{op: []string{"get", "get", "put", "cas"}[own.IntN(4)], key: fmt.Sprint("k", own.IntN(4)), value: fmt.Sprintf("%d.%d", id, n)}
				in.expect = known[in.key]
				call := time.Since(begin).Nanoseconds()
				out, keep := ask(s, in)
				if !keep {
					continue
				}
				end := time.Since(begin).Nanoseconds()
				if out.unknown {
					end = time.Hour.Nanoseconds()
				}
				if out.mod > 0 {
					known[in.key] = out.mod
				}
				hmu.Lock()
				history = append(history, porcupine.Operation{ClientId: id, Input: in, Call: call, Output: out, Return: end})
				hmu.Unlock()
				time.Sleep(time.Duration(own.IntN(8)) * time.Millisecond)
			}
		})
	}
	faults := 0
	for time.Since(begin) < length {
		name := names[rng.IntN(len(names))]
		wait := time.Duration(100+rng.IntN(400)) * time.Millisecond
		switch rng.IntN(3) {
		case 0:
			c.kill(name)
			time.Sleep(wait)
			c.start(name)
		case 1:
			c.nw.isolate(name, true)
			time.Sleep(wait)
			c.nw.isolate(name, false)
		case 2:
			flag(slow, name).Store(true)
			time.Sleep(wait)
			flag(slow, name).Store(false)
		}
		faults++
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
	}
	victim := c.leader().node.cfg.Node
	flag(broken, victim).Store(true)
	put(t, c.stores[names[(indexOf(names, victim)+1)%len(names)]], "last", "1") // through the next leader
	close(stop)
	clients.Wait()
	mustContain(t, <-c.fatal, victim, "input/output error")
	_ = c.stop[victim]()
	delete(c.stores, victim)
	checkHistory(t, history)
	t.Logf("%d operations, %d faults", len(history), faults)
	if len(history) < 50 || faults < 2 {
		t.Errorf("%d operations and %d faults prove little", len(history), faults)
	}
}

func indexOf(names []string, name string) int {
	for i, n := range names {
		if n == name {
			return i
		}
	}
	return 0
}

// ask does one operation; keep is false if it certainly did nothing.
func ask(s *Store, in asked) (out told, keep bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	if in.op == "get" {
		kv, ok, _, err := s.Get(ctx, in.key)
		return told{ok: ok, mod: kv.ModIndex, value: string(kv.Value)}, err == nil
	}
	txn := group.Txn{Ops: []group.Op{{Key: in.key, Value: []byte(in.value)}}}
	if in.op == "cas" {
		txn.Compares = []group.Compare{{Key: in.key, ModIndex: in.expect}}
	}
	r, err := s.Txn(ctx, txn)
	switch reason := fault.ReasonOf(err); {
	case err == nil && r.Succeeded:
		return told{ok: true, mod: r.Revision.Index}, true
	case err == nil:
		return told{}, true
	case reason == group.ReasonNoLeader || reason == group.ReasonNotLeader:
		return told{}, false
	}
	return told{unknown: true}, true
}

// The check can fail: a read of what was overwritten before it began, and a lost write, are found.
func TestHistory_CheckFindsWhatIsWrong(t *testing.T) {
	op := func(from, to int64, in asked, out told) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
	}
	put := func(from, to int64, v string, mod uint64) porcupine.Operation {
		return op(from, to, asked{op: "put", key: "k", value: v}, told{ok: true, mod: mod})
	}
	get := func(from, to int64, v string, mod uint64) porcupine.Operation {
		return op(from, to, asked{op: "get", key: "k"}, told{ok: mod > 0, mod: mod, value: v})
	}
	unknown := op(0, 100, asked{op: "put", key: "k", value: "u"}, told{unknown: true})
	for name, c := range map[string]struct {
		history []porcupine.Operation
		ok      bool
	}{
		"in order":                  {[]porcupine.Operation{put(0, 1, "a", 1), get(2, 3, "a", 1)}, true},
		"stale read":                {[]porcupine.Operation{put(0, 1, "a", 1), put(2, 3, "b", 2), get(4, 5, "a", 1)}, false},
		"lost write":                {[]porcupine.Operation{put(0, 1, "a", 1), get(2, 3, "", 0)}, false},
		"unknown, then seen":        {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "u", 2)}, true},
		"unknown, never seen":       {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "a", 1)}, true},
		"seen and then gone":        {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "u", 2), get(4, 5, "a", 1)}, false},
		"two compares at one place": {[]porcupine.Operation{op(0, 1, asked{op: "cas", key: "k", value: "a"}, told{ok: true, mod: 1}), op(2, 3, asked{op: "cas", key: "k", value: "b"}, told{ok: true, mod: 2})}, false},
	} {
		model := porcupine.NondeterministicModel{Init: func() []any { return []any{register{}} }, Step: stepRegister}
		if got := porcupine.CheckOperations(model.ToModel(), c.history); got != c.ok {
			t.Errorf("%s: got %v, want %v", name, got, c.ok)
		}
	}
}
