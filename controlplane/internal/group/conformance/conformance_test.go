package conformance_test

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
	"bailiwick/controlplane/internal/group/raftgroup"
)

func open(t *testing.T) group.Store {
	t.Helper()
	s, err := raftgroup.NewStore(raftgroup.Config{Group: "g", Node: "n", Dir: t.TempDir(), Voters: []string{"n"}, Timing: raftgroup.Local()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestMain runs more tests at once than there are CPUs: they wait for elections, cuts and ends.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestRun_GroupOfOne(t *testing.T) { conformance.Run(t, open) }

// recorder is a conformance.T that notes instead of failing.
type recorder struct {
	ctx  context.Context
	mu   sync.Mutex
	said []string
}

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }
func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// broken is a working store with some methods replaced.
type broken struct {
	group.Store
	get    func(ctx context.Context, key string) (group.KV, bool, group.Revision, error)
	list   func(ctx context.Context, prefix string) ([]group.KV, group.Revision, error)
	txn    func(ctx context.Context, x group.Txn) (group.Result, error)
	sync   func(ctx context.Context) (group.Snapshot, error)
	watch  func(from uint64, prefix string) (group.Watch, error)
	wait   func(ctx context.Context, index uint64) error
	verify func(ctx context.Context) error
	lead   func(ctx context.Context, work func(context.Context)) error
}

func (b *broken) Get(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
	if b.get != nil {
		return b.get(ctx, key)
	}
	return b.Store.Get(ctx, key)
}
func (b *broken) List(ctx context.Context, prefix string) ([]group.KV, group.Revision, error) {
	if b.list != nil {
		return b.list(ctx, prefix)
	}
	return b.Store.List(ctx, prefix)
}
func (b *broken) Txn(ctx context.Context, x group.Txn) (group.Result, error) {
	if b.txn != nil {
		return b.txn(ctx, x)
	}
	return b.Store.Txn(ctx, x)
}
func (b *broken) Sync(ctx context.Context) (group.Snapshot, error) {
	if b.sync != nil {
		return b.sync(ctx)
	}
	return b.Store.Sync(ctx)
}
func (b *broken) Watch(from uint64, prefix string) (group.Watch, error) {
	if b.watch != nil {
		return b.watch(from, prefix)
	}
	return b.Store.Watch(from, prefix)
}
func (b *broken) WaitFor(ctx context.Context, index uint64) error {
	if b.wait != nil {
		return b.wait(ctx, index)
	}
	return b.Store.WaitFor(ctx, index)
}
func (b *broken) VerifyLeader(ctx context.Context) error {
	if b.verify != nil {
		return b.verify(ctx)
	}
	return b.Store.VerifyLeader(ctx)
}
func (b *broken) RunLeader(ctx context.Context, work func(context.Context)) error {
	if b.lead != nil {
		return b.lead(ctx, work)
	}
	return b.Store.RunLeader(ctx, work)
}

// brokenWatch changes what Next returns.
type brokenWatch struct {
	group.Watch
	next func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error)
}

func (b *brokenWatch) Next(ctx context.Context) ([]group.Event, group.Revision, error) {
	return b.next(b.Watch, ctx)
}

func breakNext(s group.Store, next func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error)) group.Store {
	return &broken{Store: s, watch: func(from uint64, prefix string) (group.Watch, error) {
		w, err := s.Watch(from, prefix)
		if err != nil {
			return nil, err
		}
		return &brokenWatch{w, next}, nil
	}}
}

// live is a Snapshot that goes on changing.
type live struct{ s group.Store }

func (l live) Revision() group.Revision              { return l.s.Local().Revision() }
func (l live) Get(key string) (group.KV, bool)       { return l.s.Local().Get(key) }
func (l live) List(prefix string) iter.Seq[group.KV] { return l.s.Local().List(prefix) }
func (l live) Len() int                              { return l.s.Local().Len() }

// Each row breaks one thing that the named check is there for. Every check must
// have at least one row.
var breakages = []struct {
	check, how string
	wrap       func(s group.Store) group.Store
}{
	{"reads", "list in reverse", func(s group.Store) group.Store {
		return &broken{Store: s, list: func(ctx context.Context, prefix string) ([]group.KV, group.Revision, error) {
			kvs, rev, err := s.List(ctx, prefix)
			for i, j := 0, len(kvs)-1; i < j; i, j = i+1, j-1 {
				kvs[i], kvs[j] = kvs[j], kvs[i]
			}
			return kvs, rev, err
		}}
	}},
	{"compares", "only the first compare counts", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			if len(x.Compares) > 1 {
				x.Compares = x.Compares[:1]
			}
			return s.Txn(ctx, x)
		}}
	}},
	{"compares", "the index of the failed compare is lost", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, x)
			r.Failed = min(r.Failed, 0)
			return r, err
		}}
	}},
	{"atomicity", "one transaction per op", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (r group.Result, err error) {
			for _, op := range x.Ops {
				if r, err = s.Txn(ctx, group.Txn{Ops: []group.Op{op}}); err != nil {
					break
				}
			}
			return r, err
		}}
	}},
	{"transfers", "only the first compare counts", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			if len(x.Compares) > 1 {
				x.Compares = x.Compares[:1]
			}
			return s.Txn(ctx, x)
		}}
	}},
	{"transfers", "compares are made before the changes, not with them", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, group.Txn{Compares: x.Compares})
			if err != nil || !r.Succeeded {
				return r, err
			}
			runtime.Gosched()
			return s.Txn(ctx, group.Txn{Ops: x.Ops})
		}}
	}},
	{"bulk_is_one", "a bulk is committed in parts", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (r group.Result, err error) {
			for len(x.Ops) > 0 && err == nil {
				n := min(len(x.Ops), 128)
				r, err = s.Txn(ctx, group.Txn{Ops: x.Ops[:n]})
				x.Ops = x.Ops[n:]
			}
			return r, err
		}}
	}},
	{"revisions", "index skips, as a raft index does", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, x)
			r.Revision.Index *= 2
			return r, err
		}}
	}},
	{"revisions", "time goes back", func(s group.Store) group.Store {
		var n atomic.Int64
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, x)
			r.Time = r.Time.Add(-time.Hour * time.Duration(n.Add(1)))
			return r, err
		}}
	}},
	{"deletes", "delete takes the prefix", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			for i := range x.Ops {
				if x.Ops[i].Delete {
					x.Ops[i].Delete, x.Ops[i].DeletePrefix = false, true
				}
			}
			return s.Txn(ctx, x)
		}}
	}},
	{"snapshots", "a snapshot goes on changing", func(s group.Store) group.Store {
		return &broken{Store: s, sync: func(ctx context.Context) (group.Snapshot, error) {
			_, err := s.Sync(ctx)
			return live{s}, err
		}}
	}},
	{"values_are_copied", "values are shared with the caller", func(s group.Store) group.Store {
		var mu sync.Mutex
		shared := map[string][]byte{}
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			mu.Lock()
			for _, op := range x.Ops {
				shared[op.Key] = op.Value
			}
			mu.Unlock()
			return s.Txn(ctx, x)
		}, get: func(ctx context.Context, key string) (group.KV, bool, group.Revision, error) {
			kv, ok, rev, err := s.Get(ctx, key)
			mu.Lock()
			kv.Value = shared[key]
			mu.Unlock()
			return kv, ok, rev, err
		}}
	}},
	{"linearizable_counter", "compares are not made", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			x.Compares = nil
			return s.Txn(ctx, x)
		}}
	}},
	{"linearizable_counter", "a retry is applied again", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, x)
			if err == nil && r.Succeeded {
				x.Compares = nil
				return s.Txn(ctx, x)
			}
			return r, err
		}}
	}},
	{"request_ids", "request ids are forgotten", forgetIDs},
	{"request_ids", "failed results are forgotten", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			id := x.RequestID
			x.RequestID = ""
			if len(x.Compares) == 1 && x.Compares[0].Exists {
				return s.Txn(ctx, x)
			}
			x.RequestID = id
			return s.Txn(ctx, x)
		}}
	}},
	{"request_id_race", "request ids are forgotten", forgetIDs},
	{"limits", "keys are cut to fit", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			for i := range x.Ops {
				x.Ops[i].Key = x.Ops[i].Key[:min(len(x.Ops[i].Key), group.MaxKey)]
			}
			return s.Txn(ctx, x)
		}}
	}},
	{"overlap", "the last op on a key wins", func(s group.Store) group.Store {
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			seen := map[string]int{}
			var kept []group.Op
			for _, op := range x.Ops {
				if i, ok := seen[op.Key]; ok {
					kept[i] = op
					continue
				}
				seen[op.Key] = len(kept)
				kept = append(kept, op)
			}
			x.Ops = kept
			return s.Txn(ctx, x)
		}}
	}},
	{"watch_content", "previous values are missing", func(s group.Store) group.Store {
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			for i := range events {
				events[i].Prev = nil
			}
			return events, rev, err
		})
	}},
	{"watch_content", "deletes are dropped", func(s group.Store) group.Store {
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			var kept []group.Event
			for _, e := range events {
				if !e.Delete {
					kept = append(kept, e)
				}
			}
			return kept, rev, err
		})
	}},
	{"watch_under_writes", "one event is lost", func(s group.Store) group.Store {
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			if rev.Index > 20 && len(events) > 1 {
				events = events[1:]
			}
			return events, rev, err
		})
	}},
	{"watch_under_writes", "a revision is repeated", func(s group.Store) group.Store {
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			return append(append([]group.Event{}, events...), events...), rev, err
		})
	}},
	{"watch_under_writes", "a revision comes apart", func(s group.Store) group.Store {
		var mu sync.Mutex
		held := map[group.Watch][]group.Event{}
		at := map[group.Watch]group.Revision{}
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			mu.Lock()
			rest, rev := held[w], at[w]
			delete(held, w)
			mu.Unlock()
			if len(rest) > 0 {
				return rest, rev, nil
			}
			events, rev, err := w.Next(ctx)
			if len(events) < 2 {
				return events, rev, err
			}
			mu.Lock()
			held[w], at[w] = events[1:], rev
			mu.Unlock()
			return events[:1], rev, err
		})
	}},
	{"watch_prefix", "the prefix is ignored", func(s group.Store) group.Store {
		return &broken{Store: s, watch: func(from uint64, _ string) (group.Watch, error) { return s.Watch(from, "") }}
	}},
	{"watch_from", "a watch begins one too late", func(s group.Store) group.Store {
		return &broken{Store: s, watch: func(from uint64, prefix string) (group.Watch, error) { return s.Watch(from+1, prefix) }}
	}},
	{"watch_from", "a watch always begins at 1", func(s group.Store) group.Store {
		return &broken{Store: s, watch: func(_ uint64, prefix string) (group.Watch, error) { return s.Watch(1, prefix) }}
	}},
	{"watch_compacted", "a watch that fell out goes on with a gap", func(s group.Store) group.Store {
		return &broken{Store: s, watch: func(from uint64, prefix string) (group.Watch, error) {
			w, err := s.Watch(from, prefix)
			if err != nil {
				w, err = s.Watch(s.Local().Revision().Index+1, prefix)
			}
			return w, err
		}}
	}},
	{"watch_ends", "an event is lost to an ended ctx", func(s group.Store) group.Store {
		var skip atomic.Bool
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			if skip.Swap(false) {
				_, _, _ = w.Next(ctx)
			}
			events, rev, err := w.Next(ctx)
			skip.Store(err != nil)
			return events, rev, err
		})
	}},
	{"wait_for", "it does not wait", func(s group.Store) group.Store {
		return &broken{Store: s, wait: func(context.Context, uint64) error { return nil }}
	}},
	{"wait_for", "it waits for ever", func(s group.Store) group.Store {
		return &broken{Store: s, wait: func(ctx context.Context, _ uint64) error { <-ctx.Done(); return ctx.Err() }}
	}},
	{"leadership", "work is called twice", func(s group.Store) group.Store {
		return &broken{Store: s, lead: func(ctx context.Context, work func(context.Context)) error {
			var wg sync.WaitGroup
			wg.Go(func() { work(ctx) })
			defer wg.Wait()
			return s.RunLeader(ctx, work)
		}}
	}},
	{"leadership", "leadership is never confirmed", func(s group.Store) group.Store {
		return &broken{Store: s, verify: func(context.Context) error { return context.DeadlineExceeded }}
	}},
}

func forgetIDs(s group.Store) group.Store {
	return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
		x.RequestID = ""
		return s.Txn(ctx, x)
	}}
}

// TestChecks_CanFail: a check that passes whatever the store does is a defect.
func TestChecks_CanFail(t *testing.T) {
	checks := map[string]conformance.Check{}
	covered := map[string]bool{}
	for _, c := range conformance.Checks() {
		checks[c.Name] = c
	}
	for _, b := range breakages {
		covered[b.check] = true
		t.Run(b.check+"/"+b.how, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			if err := s.WaitFor(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for _, err := s.Sync(t.Context()); err != nil; _, err = s.Sync(t.Context()) {
				t.Log(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // some breakages hang
			defer cancel()
			rec := &recorder{ctx: ctx}
			var wg sync.WaitGroup
			wg.Go(func() { checks[b.check].Run(rec, b.wrap(s)) })
			wg.Wait()
			if len(rec.said) == 0 {
				t.Errorf("%s with %q: got no failure reported, want one", b.check, b.how)
			} else {
				t.Logf("reported: %.200s", rec.said[0])
			}
		})
	}
	for name := range checks {
		if !covered[name] {
			t.Errorf("check %s: got no breakage that it notices, want at least one", name)
		}
	}
}
