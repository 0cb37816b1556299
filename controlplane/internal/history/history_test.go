package history_test

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/history"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// store is a group of one, which applies as every engine does.
type store struct {
	at  group.Revision
	kvs map[string]group.KV
}

func (s *store) Revision() group.Revision        { return s.at }
func (s *store) Len() int                        { return len(s.kvs) }
func (s *store) Get(key string) (group.KV, bool) { kv, ok := s.kvs[key]; return kv, ok }
func (s *store) List(p string) iter.Seq[group.KV] {
	return func(yield func(group.KV) bool) {
		for _, k := range slices.Sorted(maps.Keys(s.kvs)) {
			if strings.HasPrefix(k, p) && !yield(s.kvs[k]) {
				return
			}
		}
	}
}

func (s *store) commit(t *testing.T, x group.Txn) bool {
	t.Helper()
	if err := x.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range x.Compares {
		if s.kvs[c.Key].ModIndex != c.ModIndex {
			return false
		}
	}
	s.at.Index++
	for _, op := range x.Ops {
		if op.Delete {
			delete(s.kvs, op.Key)
			continue
		}
		s.kvs[op.Key] = group.KV{Key: op.Key, Value: op.Value, ModIndex: s.at.Index}
	}
	return true
}

func (s *store) resources() map[string]string {
	out := map[string]string{}
	for k, kv := range s.kvs {
		if history.Remembers(k) {
			out[k] = string(kv.Value)
		}
	}
	return out
}

// Whatever was written, each revision that is said to be reached is exactly what it was, and Back makes it so.
func TestHistory_EveryRevisionThatIsReachedIsWhatItWas(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := &store{at: group.Revision{Epoch: 1, Index: 10}, kvs: map[string]group.KV{}}
	then := map[uint64]map[string]string{10: {}}
	for range history.Kept + 150 {
		var x group.Txn
		for n := range 1 + r.IntN(4) {
			key := fmt.Sprintf("%s%d-%d", []string{model.PrefixAPI, model.PrefixPlan, model.PrefixNode}[r.IntN(3)], n, r.IntN(5))
			op := group.Op{Key: key, Value: fmt.Append(nil, r.IntN(3))}
			if r.IntN(4) == 0 {
				op = group.Op{Key: key, Delete: true}
			}
			x.Ops = append(x.Ops, op)
		}
		x, err := history.Record(s, x, "emea/x", "apply", time.Now())
		if err != nil || !s.commit(t, x) {
			t.Fatalf("commit: %v", err)
		}
		then[s.at.Index] = s.resources()
	}
	list, err := history.List(s)
	if err != nil || len(list) > history.Kept || len(list) < history.Kept-1 {
		t.Fatalf("%d revisions are remembered (%v), want %d", len(list), err, history.Kept)
	}
	oldest := history.Oldest(list)
	for index, want := range then {
		if index%9 != 0 && index > oldest+2 && index < s.at.Index-2 {
			continue // each is as good as another, and costs all records
		}
		ops, err := history.Back(s, index, nil)
		if index < oldest {
			if fault.ReasonOf(err) != history.ReasonUnreached {
				t.Errorf("revision %d is older than %d: got %v", index, oldest, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		back := &store{at: s.at, kvs: maps.Clone(s.kvs)}
		back.commit(t, group.Txn{Ops: ops})
		if got := back.resources(); !maps.Equal(got, want) {
			t.Fatalf("back to %d: got %v, want %v", index, got, want)
		}
	}
	if _, err := history.Since(s, s.at.Index+1); fault.ReasonOf(err) != history.ReasonUnreached {
		t.Errorf("a revision of the future: got %v", err)
	}
}

// What is written down as before is what was replaced, also when another was faster.
func TestRecord_HoldsTheTransactionToWhatItSaw(t *testing.T) {
	s := &store{kvs: map[string]group.KV{}}
	s.commit(t, group.Txn{Ops: []group.Op{{Key: "plans/a", Value: []byte("1")}}})
	late, err := history.Record(s, group.Txn{Ops: []group.Op{{Key: "plans/a", Value: []byte("3")}}}, "", "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.commit(t, group.Txn{Ops: []group.Op{{Key: "plans/a", Value: []byte("2")}}})
	if s.commit(t, late) {
		t.Error("it was committed over a value that it does not remember")
	}
}

func TestRecord_SaysWhatIsTooLargeToBeRemembered(t *testing.T) {
	s := &store{kvs: map[string]group.KV{}}
	noise := make([]byte, 400<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	write := func(v []byte) {
		x, err := history.Record(s, group.Txn{Ops: []group.Op{{Key: "apis/emea/a", Value: v}}}, "", "apply", time.Now())
		if err != nil || !s.commit(t, x) {
			t.Fatalf("commit: %v", err)
		}
	}
	write(noise)
	first := s.at.Index
	write([]byte("small")) // what was before cannot be kept
	second := s.at.Index
	write([]byte("smaller"))
	if _, err := history.Since(s, first); fault.ReasonOf(err) != history.ReasonUnreached {
		t.Errorf("before what was lost: got %v", err)
	}
	if then, err := history.Since(s, second); err != nil || string(then["apis/emea/a"]) != "small" {
		t.Errorf("after it: got %s, %v", then, err)
	}
}
