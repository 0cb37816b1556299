package conformance

import (
	"fmt"
	"strconv"
	"sync"

	"bailiwick/controlplane/internal/group"
)

// transfers moves amounts between accounts, comparing both, while others look: the sum is wrong as soon as one compare of
// several is not made, or is made on another state than the changes.
func transfers(t T, s group.Store) {
	const accounts, workers, each = 5, 4, 12
	var first []group.Op
	for i := range accounts {
		first = append(first, put(fmt.Sprintf("acc/%d", i), "100"))
	}
	write(t, s, first...)
	sum := func(kvs []group.KV) (n int) {
		for _, kv := range kvs {
			v, _ := strconv.Atoi(string(kv.Value))
			n += v
		}
		return n
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				ctx, cancel := limited(t)
				kvs, _, err := s.List(ctx, "acc/")
				if err != nil || len(kvs) != accounts {
					t.Errorf("list: got %d accounts, %v", len(kvs), err)
					cancel()
					return
				}
				if got := sum(kvs); got != 100*accounts {
					t.Errorf("sum: got %d, want %d: a list is one revision", got, 100*accounts)
				}
				from, to := kvs[(w+done)%accounts], kvs[(2*w+done+1)%accounts]
				if from.Key == to.Key {
					to = kvs[(w+done+1)%accounts]
				}
				a, _ := strconv.Atoi(string(from.Value))
				b, _ := strconv.Atoi(string(to.Value))
				r, err := s.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: from.Key, ModIndex: from.ModIndex}, {Key: to.Key, ModIndex: to.ModIndex}},
					Ops: []group.Op{put(from.Key, strconv.Itoa(a-w-1)), put(to.Key, strconv.Itoa(b+w+1))}})
				cancel()
				if err != nil {
					t.Errorf("transfer: got error %v", err)
					return
				}
				if r.Succeeded {
					done++
				}
			}
		})
	}
	wg.Wait()
	kvs, _ := list(t, s, "acc/")
	if got := sum(kvs); got != 100*accounts {
		t.Errorf("sum at the end: got %d, want %d", got, 100*accounts)
	}
	total := uint64(0)
	for _, kv := range kvs {
		total += kv.Version
	}
	if want := uint64(accounts + 2*workers*each); total != want {
		t.Errorf("writes: got %d, want %d", total, want)
	}
}

// bulkIsOne overwrites many keys at once while others look: nobody sees some of them.
func bulkIsOne(t T, s group.Store) {
	const many, times = 900, 4
	bulk := func(gen int) (x group.Txn) {
		for i := range many {
			x.Ops = append(x.Ops, put(fmt.Sprintf("bulk/%04d", i), fmt.Sprint(gen)))
		}
		return x
	}
	first := txn(t, s, bulk(0))
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for looking := true; looking; {
			select {
			case <-done:
				looking = false
			default:
			}
			ctx, cancel := limited(t)
			kvs, _, err := s.List(ctx, "bulk/")
			cancel()
			if err != nil || len(kvs) != many {
				t.Errorf("list: got %d keys, %v, want %d", len(kvs), err, many)
				return
			}
			for _, kv := range kvs {
				if string(kv.Value) != string(kvs[0].Value) || kv.ModIndex != kvs[0].ModIndex {
					t.Errorf("list: got %s of %d beside %s of %d: a part of a bulk", kv.Value, kv.ModIndex, kvs[0].Value, kvs[0].ModIndex)
					return
				}
			}
		}
	})
	for gen := 1; gen <= times; gen++ {
		ctx, cancel := limited(t)
		if _, err := s.Txn(ctx, bulk(gen)); err != nil {
			t.Errorf("bulk %d: got error %v", gen, err)
		}
		cancel()
	}
	close(done)
	wg.Wait()
	w := watch(t, s, first.Revision.Index, "bulk/")
	defer w.Close()
	for seen, at := 0, first.Revision.Index; seen <= times; seen++ {
		events, _ := next(t, w)
		for ; len(events) >= many; events, at = events[many:], at+1 {
			if events[0].Index != at || events[many-1].Index != at {
				t.Errorf("bulk at %d: got events of %d to %d", at, events[0].Index, events[many-1].Index)
				return
			}
		}
		if len(events) > 0 {
			t.Errorf("bulk at %d: got %d events of %d", at, len(events), many)
			return
		}
		if at > first.Revision.Index+times {
			break
		}
	}
}
