package conformance

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

func reads(t T, s group.Store) {
	wantAbsent(t, s, "a")
	if kvs, rev := list(t, s, ""); len(kvs) != 0 || rev != (group.Revision{}) {
		t.Errorf("empty store: got %v at %v, want nothing at 0.0", keys(kvs), rev)
	}
	first := write(t, s, put("b/2", "two"), put("b/10", "ten"), put("a", "x"), put("c", ""), put("b", "dir"))
	second := write(t, s, put("b/2", "TWO"))
	kv, ok := get(t, s, "b/2")
	want := group.KV{Key: "b/2", Value: []byte("TWO"), CreateIndex: first.Revision.Index, ModIndex: second.Revision.Index, Version: 2}
	if !ok || !sameKV(kv, want) {
		t.Errorf("get b/2: got %+v, %v, want %+v", kv, ok, want)
	}
	wantValue(t, s, "c", "") // empty is not absent
	for prefix, want := range map[string][]string{
		"": {"a", "b", "b/10", "b/2", "c"}, "b/": {"b/10", "b/2"}, "b": {"b", "b/10", "b/2"}, "b/2": {"b/2"}, "d": {}, "b/20": {},
	} {
		kvs, rev := list(t, s, prefix)
		if got := keys(kvs); !slices.Equal(got, want) {
			t.Errorf("list %q: got %v, want %v in that order", prefix, got, want)
		}
		if rev != second.Revision {
			t.Errorf("list %q: got revision %v, want %v", prefix, rev, second.Revision)
		}
	}
}

func compares(t T, s group.Store) {
	r := write(t, s, put("a", "1"), put("b", "1"))
	mod := r.Revision.Index
	for _, c := range []struct {
		name string
		cmp  []group.Compare
		fail int
	}{
		{"none", nil, -1},
		{"mod", []group.Compare{{Key: "a", ModIndex: mod}}, -1},
		{"two mods", []group.Compare{{Key: "a", ModIndex: mod}, {Key: "b", ModIndex: mod}}, -1},
		{"absent", []group.Compare{{Key: "zz"}}, -1},
		{"exists", []group.Compare{{Key: "a", Exists: true}}, -1},
		{"exists ignores mod", []group.Compare{{Key: "a", Exists: true, ModIndex: 999}}, -1},
		{"mixed", []group.Compare{{Key: "a", ModIndex: mod}, {Key: "zz"}, {Key: "b", Exists: true}}, -1},
		{"wrong mod", []group.Compare{{Key: "a", ModIndex: mod + 1}}, 0},
		{"not absent", []group.Compare{{Key: "a"}}, 0},
		{"not there", []group.Compare{{Key: "zz", Exists: true}}, 0},
		{"mod of absent", []group.Compare{{Key: "zz", ModIndex: mod}}, 0},
		{"last of three", []group.Compare{{Key: "a", ModIndex: mod}, {Key: "zz"}, {Key: "b"}}, 2},
		{"first of two", []group.Compare{{Key: "b"}, {Key: "a"}}, 0},
	} {
		got := txn(t, s, group.Txn{Compares: c.cmp, Ops: []group.Op{put("hit/"+c.name, "x")}})
		if got.Failed != c.fail || got.Succeeded != (c.fail < 0) {
			t.Errorf("%s: got succeeded %v, failed %d, want failed %d", c.name, got.Succeeded, got.Failed, c.fail)
		}
		if _, ok := get(t, s, "hit/"+c.name); ok != (c.fail < 0) {
			t.Errorf("%s: got change made %v, want %v", c.name, ok, c.fail < 0)
		}
	}
}

func atomicity(t T, s group.Store) {
	write(t, s, put("a", "1"), put("p/1", "1"), put("p/2", "1"))
	txn(t, s, group.Txn{Compares: []group.Compare{{Key: "a"}}, Ops: []group.Op{put("a", "2"), del("p/1"), put("n", "2")}})
	wantValue(t, s, "a", "1")
	wantValue(t, s, "p/1", "1")
	wantAbsent(t, s, "n")
	r := write(t, s, put("a", "3"), delPrefix("p/"), put("n", "3"))
	for _, key := range []string{"a", "n"} {
		if kv, _ := get(t, s, key); kv.ModIndex != r.Revision.Index {
			t.Errorf("%s: got ModIndex %d, want %d: one transaction is one revision", key, kv.ModIndex, r.Revision.Index)
		}
	}
	wantAbsent(t, s, "p/1")
	wantAbsent(t, s, "p/2")
}

func revisions(t T, s group.Store) {
	last := write(t, s, put("a", "1"))
	if last.Revision.Index != 1 || last.Revision.Epoch == 0 {
		t.Errorf("first write: got revision %v, want index 1 of an epoch above 0", last.Revision)
	}
	step := func(what string, x group.Txn, by uint64) {
		t.Helper()
		r := txn(t, s, x)
		want := group.Revision{Epoch: last.Revision.Epoch, Index: last.Revision.Index + by}
		if r.Revision != want {
			t.Errorf("%s: got revision %v after %v, want %v", what, r.Revision, last.Revision, want)
		}
		if r.Time.IsZero() || r.Time.Before(last.Time) {
			t.Errorf("%s: got time %v after %v, want it not to go back", what, r.Time, last.Time)
		}
		last = r
	}
	step("put", ops(put("a", "2")), 1)
	step("put of the same value", ops(put("a", "2")), 1)
	step("three puts", ops(put("b", "1"), put("c", "1"), put("d", "1")), 1)
	step("delete", ops(del("b")), 1)
	step("delete of nothing", ops(del("b")), 0)
	step("prefix delete of nothing", ops(delPrefix("zz/")), 0)
	step("failed compare", group.Txn{Compares: []group.Compare{{Key: "a"}}, Ops: []group.Op{put("a", "3")}}, 0)
	step("compare only", group.Txn{Compares: []group.Compare{{Key: "a", Exists: true}}}, 0)
	step("prefix delete", ops(delPrefix("c")), 1)
	if _, rev := list(t, s, ""); rev != last.Revision {
		t.Errorf("list: got revision %v, want %v", rev, last.Revision)
	}
}

func deletes(t T, s group.Store) {
	write(t, s, put("a", "1"), put("ab", "1"), put("b", "1"), put("b/1", "1"), put("b/2", "1"), put("c", "1"))
	write(t, s, del("a"))
	wantAbsent(t, s, "a")
	wantValue(t, s, "ab", "1") // a delete is not a prefix delete
	write(t, s, delPrefix("b/"))
	wantValue(t, s, "b", "1")
	wantAbsent(t, s, "b/1")
	wantAbsent(t, s, "b/2")
	wantValue(t, s, "c", "1")
	again := write(t, s, put("a", "2"))
	want := group.KV{Key: "a", Value: []byte("2"), CreateIndex: again.Revision.Index, ModIndex: again.Revision.Index, Version: 1}
	if kv, _ := get(t, s, "a"); !sameKV(kv, want) {
		t.Errorf("made again: got %+v, want %+v", kv, want)
	}
	if kvs, _ := list(t, s, ""); !slices.Equal(keys(kvs), []string{"a", "ab", "b", "c"}) {
		t.Errorf("list: got %v, want [a ab b c]", keys(kvs))
	}
}

func snapshots(t T, s group.Store) {
	r := write(t, s, put("a", "1"), put("b", "1"))
	snap := current(t, s)
	write(t, s, put("a", "2"), del("b"), put("c", "2"))
	if snap.Revision() != r.Revision || snap.Len() != 2 {
		t.Errorf("held snapshot: got %d keys at %v, want 2 at %v", snap.Len(), snap.Revision(), r.Revision)
	}
	if kv, ok := snap.Get("a"); !ok || string(kv.Value) != "1" {
		t.Errorf("held snapshot: got a=%q, %v, want 1", kv.Value, ok)
	}
	if _, ok := snap.Get("c"); ok {
		t.Errorf("held snapshot: got c, want it absent")
	}
	if got := keys(slices.Collect(snap.List(""))); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("held snapshot: got %v, want [a b]", got)
	}
	now := current(t, s)
	if got := keys(slices.Collect(now.List(""))); !slices.Equal(got, []string{"a", "c"}) || now.Len() != 2 {
		t.Errorf("new snapshot: got %v, want [a c]", got)
	}
	for range now.List("") {
		break // stopping early is allowed
	}
	if local := s.Local(); local.Revision().Less(now.Revision()) {
		t.Errorf("local after sync: got %v, want at least %v", local.Revision(), now.Revision())
	}
}

func valuesAreCopied(t T, s group.Store) {
	value := []byte("mine")
	txn(t, s, ops(group.Op{Key: "a", Value: value}))
	copy(value, "gone")
	wantValue(t, s, "a", "mine")
}

// linearizableCounter loses an increment, or counts one twice, if compares are
// made against a stale state or a retry is applied again.
func linearizableCounter(t T, s group.Store) {
	const workers, each = 4, 10
	write(t, s, put("n", ""))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				ctx, cancel := limited(t)
				kv, ok, _, err := s.Get(ctx, "n")
				var r group.Result
				if err == nil && ok {
					r, err = s.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: "n", ModIndex: kv.ModIndex}}, Ops: []group.Op{put("n", string(kv.Value)+"x")}})
				}
				cancel()
				if err != nil || !ok {
					t.Errorf("increment: got %v, %v", ok, err)
					return
				}
				if r.Succeeded {
					done++
				}
			}
		})
	}
	wg.Wait()
	kv, _ := get(t, s, "n")
	if len(kv.Value) != workers*each || kv.Version != workers*each+1 {
		t.Errorf("counter: got %d at version %d, want %d at %d", len(kv.Value), kv.Version, workers*each, workers*each+1)
	}
}

func requestIDs(t T, s group.Store) {
	x := group.Txn{RequestID: "r1", Compares: []group.Compare{{Key: "a"}}, Ops: []group.Op{put("a", "1")}}
	first := txn(t, s, x)
	if !first.Succeeded || first.Replayed {
		t.Errorf("first: got %+v, want success, not replayed", first)
	}
	write(t, s, put("a", "2"))
	again := txn(t, s, x)
	if want := replayed(first); again != want {
		t.Errorf("again: got %+v, want the first result, replayed: %+v", again, want)
	}
	wantValue(t, s, "a", "2")
	// A failed compare is a result too: the retry does not succeed later.
	y := group.Txn{RequestID: "r2", Compares: []group.Compare{{Key: "b", Exists: true}}, Ops: []group.Op{put("c", "1")}}
	first = txn(t, s, y)
	write(t, s, put("b", "1"))
	if again := txn(t, s, y); again != replayed(first) || again.Succeeded {
		t.Errorf("failed compare again: got %+v, want %+v", again, replayed(first))
	}
	wantAbsent(t, s, "c")
	// Without an id each call is its own transaction.
	write(t, s, put("d", "1"))
	write(t, s, put("d", "1"))
	if kv, _ := get(t, s, "d"); kv.Version != 2 {
		t.Errorf("two writes without id: got version %d, want 2", kv.Version)
	}
}

func replayed(r group.Result) group.Result {
	r.Replayed = true
	return r
}

func requestIDRace(t T, s group.Store) {
	const n = 8
	var mu sync.Mutex
	var fresh int
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			ctx, cancel := limited(t)
			defer cancel()
			r, err := s.Txn(ctx, group.Txn{RequestID: "race", Ops: []group.Op{put("a", "x")}})
			if err != nil {
				t.Errorf("txn: got error %v", err)
			}
			if err == nil && !r.Replayed {
				mu.Lock()
				fresh++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if kv, _ := get(t, s, "a"); fresh != 1 || kv.Version != 1 {
		t.Errorf("%d at once with one id: got %d fresh, version %d, want 1 and 1", n, fresh, kv.Version)
	}
}

func limits(t T, s group.Store) {
	text := func(n int) string { return strings.Repeat("k", n) }
	many := func(n, size int) group.Txn {
		var x group.Txn
		for i := range n {
			x.Ops = append(x.Ops, group.Op{Key: fmt.Sprintf("many/%05d", i), Value: make([]byte, size)})
		}
		return x
	}
	manyCompares := func(n int) (x group.Txn) {
		for i := range n {
			x.Compares = append(x.Compares, group.Compare{Key: fmt.Sprintf("many/%05d", i), Exists: true})
		}
		return x
	}
	const tooLarge, badKey = group.ReasonTooLarge, group.ReasonKeyInvalid
	for _, c := range []struct {
		name   string
		txn    group.Txn
		reason string // "": allowed
	}{
		{"longest key", ops(put(text(group.MaxKey), "x")), ""},
		{"key too long", ops(put(text(group.MaxKey+1), "x")), tooLarge},
		{"delete key too long", ops(del(text(group.MaxKey + 1))), tooLarge},
		{"compare key too long", group.Txn{Compares: []group.Compare{{Key: text(group.MaxKey + 1)}}}, tooLarge},
		{"blank key", ops(put("", "x")), badKey},
		{"blank prefix", ops(delPrefix("")), badKey},
		{"blank compare", group.Txn{Compares: []group.Compare{{}}}, badKey},
		{"NUL in a key", ops(put("a\x00b", "x")), badKey},
		{"not UTF-8", ops(put("a\xff", "x")), badKey},
		{"largest value", ops(group.Op{Key: "v", Value: make([]byte, group.MaxValue)}), ""},
		{"value too large", ops(group.Op{Key: "v", Value: make([]byte, group.MaxValue+1)}), tooLarge},
		{"most ops", many(group.MaxOps, 1), ""},
		{"most bulk ops", many(group.MaxBulkOps, 10), ""},
		{"too many ops", many(group.MaxBulkOps+1, 1), tooLarge},
		{"bulk too large", many(group.MaxOps+1, group.MaxBulkBytes/group.MaxOps), tooLarge},
		{"all too large", many(3, group.MaxBytes/3), tooLarge},
		{"most compares", manyCompares(group.MaxBulkOps), ""},
		{"too many compares", manyCompares(group.MaxBulkOps + 1), tooLarge},
		{"longest request id", group.Txn{RequestID: text(group.MaxRequestID), Ops: []group.Op{put("r", "x")}}, ""},
		{"request id too long", group.Txn{RequestID: text(group.MaxRequestID + 1), Ops: []group.Op{put("r", "x")}}, tooLarge},
	} {
		before := current(t, s).Revision()
		ctx, cancel := limited(t)
		r, err := s.Txn(ctx, c.txn)
		cancel()
		switch {
		case c.reason == "" && (err != nil || !r.Succeeded):
			t.Errorf("%s: got %+v, %v, want it allowed", c.name, r, err)
		case c.reason != "" && fault.ReasonOf(err) != c.reason:
			t.Errorf("%s: got error %v (reason %q), want reason %s", c.name, err, reasonOf(err), c.reason)
		case c.reason != "" && current(t, s).Revision() != before:
			t.Errorf("%s: got a changed store, want it refused whole", c.name)
		}
	}
}

func overlap(t T, s group.Store) {
	for name, o := range map[string][]group.Op{
		"two puts":                   {put("a", "1"), put("a", "2")},
		"put and delete":             {put("a", "1"), del("a")},
		"put under a prefix delete":  {delPrefix("a/"), put("a/b", "1")},
		"put before a prefix delete": {put("a/b/c", "1"), put("x", "1"), delPrefix("a/")},
		"prefix itself":              {put("a/", "1"), delPrefix("a/")},
		"prefix in prefix":           {delPrefix("a/b"), delPrefix("a/")},
		"both deletes in one":        {{Key: "a", Delete: true, DeletePrefix: true}},
	} {
		ctx, cancel := limited(t)
		_, err := s.Txn(ctx, ops(o...))
		cancel()
		if reasonOf(err) != group.ReasonOpsOverlap {
			t.Errorf("%s: got %v, want reason %s", name, err, group.ReasonOpsOverlap)
		}
	}
	write(t, s, put("a", "1"), put("a/b", "1"), put("ab", "1"), delPrefix("b"), del("c"))
	if _, rev := list(t, s, ""); rev.Index != 1 {
		t.Errorf("revision: got %v, want index 1", rev)
	}
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.ReasonOf(err)
}

func sameKV(a, b group.KV) bool {
	return a.Key == b.Key && string(a.Value) == string(b.Value) && a.CreateIndex == b.CreateIndex && a.ModIndex == b.ModIndex && a.Version == b.Version
}
