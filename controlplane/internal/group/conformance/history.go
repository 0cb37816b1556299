package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Asked and Told are what a client of a Store asks for and is told, as Porcupine
// checks it: one register a key, whose state is the ModIndex and value of its
// latest write. A write of which the outcome is unknown may have taken effect at
// any time until the end, or never.
type (
	Asked struct {
		Op, Key, Value string // Op: get, put, cas
		Expect         uint64 // cas: the ModIndex that must be
	}
	Told struct {
		Unknown, OK bool // OK of get: the key is there; of cas: it matched
		Mod         uint64
		Value       string
	}
	register struct {
		mod     uint64
		value   string
		strange bool // mod is unknown: a write whose outcome is unknown took effect
	}
)

func stepRegister(s, i, o any) []any {
	state, in, out := s.(register), i.(Asked), o.(Told)
	matches := func(mod uint64) bool { return state.strange || state.mod == mod }
	switch {
	case in.Op == "get" && !out.OK && state == register{}:
		return []any{state}
	case in.Op == "get" && out.OK && state.value == out.Value && matches(out.Mod):
		return []any{register{mod: out.Mod, value: out.Value}}
	case in.Op == "put" && out.Unknown:
		return []any{state, register{value: in.Value, strange: true}}
	case in.Op == "put":
		return []any{register{mod: out.Mod, value: in.Value}}
	case in.Op == "cas" && out.Unknown && matches(in.Expect):
		return []any{state, register{value: in.Value, strange: true}}
	case in.Op == "cas" && out.Unknown:
		return []any{state}
	case in.Op == "cas" && out.OK && matches(in.Expect):
		return []any{register{mod: out.Mod, value: in.Value}}
	case in.Op == "cas" && !out.OK && (state.strange || state.mod != in.Expect):
		return []any{state}
	}
	return nil
}

// CheckHistory reports a history that no order of its operations explains.
func CheckHistory(t T, history []porcupine.Operation) {
	t.Helper()
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{register{}} },
		Step: stepRegister,
		Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
			at := map[string]int{}
			for _, op := range history {
				key := op.Input.(Asked).Key
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

// History lets six clients read, write and compare-and-write four keys at the
// stores that run, none of which need be there, while faults are made one after
// the other, and says what they were told. fault makes one and ends it.
func History(seed uint64, length time.Duration, stores func() []group.Store, fault func(*rand.Rand)) (history []porcupine.Operation, faults int) {
	begin := time.Now()
	rng := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex // covers history
	stop := make(chan struct{})
	var clients sync.WaitGroup
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
				all := stores()
				s := all[own.IntN(len(all))]
				if s == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				in := Asked{Op: []string{"get", "get", "put", "cas"}[own.IntN(4)], Key: fmt.Sprint("k", own.IntN(4)), Value: fmt.Sprintf("%d.%d", id, n)}
				in.Expect = known[in.Key]
				call := time.Since(begin).Nanoseconds()
				out, keep := ask(s, in)
				if !keep {
					continue
				}
				end := time.Since(begin).Nanoseconds()
				if out.Unknown {
					end = (1000 * time.Hour).Nanoseconds()
				}
				if out.Mod > 0 {
					known[in.Key] = out.Mod
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: id, Input: in, Call: call, Output: out, Return: end})
				mu.Unlock()
				time.Sleep(time.Duration(own.IntN(8)) * time.Millisecond)
			}
		})
	}
	enough := func() bool { // a loaded machine gets more time to prove anything
		mu.Lock()
		defer mu.Unlock()
		return faults >= 3 && len(history) >= 100
	}
	for time.Since(begin) < length || !enough() && time.Since(begin) < length+time.Minute {
		fault(rng)
		faults++
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
	}
	close(stop)
	clients.Wait()
	return history, faults
}

// ask does one operation; keep is false if it certainly did nothing.
func ask(s group.Store, in Asked) (out Told, keep bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	if in.Op == "get" {
		kv, ok, _, err := s.Get(ctx, in.Key)
		return Told{OK: ok, Mod: kv.ModIndex, Value: string(kv.Value)}, err == nil
	}
	txn := group.Txn{Ops: []group.Op{{Key: in.Key, Value: []byte(in.Value)}}}
	if in.Op == "cas" {
		txn.Compares = []group.Compare{{Key: in.Key, ModIndex: in.Expect}}
	}
	r, err := s.Txn(ctx, txn)
	switch reason := fault.ReasonOf(err); {
	case err == nil && r.Succeeded:
		return Told{OK: true, Mod: r.Revision.Index}, true
	case err == nil:
		return Told{}, true
	case reason == group.ReasonNoLeader || reason == group.ReasonNotLeader:
		return Told{}, false
	}
	return Told{Unknown: true}, true
}
