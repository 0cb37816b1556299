package conformance_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/conformance"
	"bailiwick/controlplane/internal/group/raftgroup"
)

// world is a group of one that nothing disturbs: what breaks is the wrapper.
func world(s group.Store, wrap func(group.Store) group.Store) conformance.World {
	all := []group.Store{wrap(s)}
	return conformance.World{Stores: func() []group.Store { return all }, Behind: func() func() { return func() {} }, Restore: func() {
		if _, err := s.(*raftgroup.Store).OpenEpoch(context.Background()); err != nil {
			panic(err)
		}
	}}
}

func TestRunWorld_GroupOfOne(t *testing.T) {
	conformance.RunWorld(t, func(t *testing.T) conformance.World {
		return world(open(t), func(s group.Store) group.Store { return s })
	})
}

// revisions takes what a watch says apart, so that a breakage can drop, repeat or reorder whole revisions.
func revisions(change func(all [][]group.Event) [][]group.Event) func(group.Store) group.Store {
	return func(s group.Store) group.Store {
		var calls atomic.Int64
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			if calls.Add(1) < 10 || err != nil {
				return events, rev, err
			}
			var all [][]group.Event
			for i, e := range events {
				if i == 0 || e.Index != events[i-1].Index {
					all = append(all, nil)
				}
				all[len(all)-1] = append(all[len(all)-1], e)
			}
			var out []group.Event
			for _, r := range change(all) {
				out = append(out, r...)
			}
			return out, rev, err
		})
	}
}

var worldBreakages = []struct {
	check, how string
	wrap       func(s group.Store) group.Store
}{
	{"watch_unbroken", "a revision is lost", revisions(func(all [][]group.Event) [][]group.Event { return all[1:] })},
	{"watch_unbroken", "a revision is repeated", revisions(func(all [][]group.Event) [][]group.Event { return append(all, all[len(all)-1]) })},
	{"watch_unbroken", "revisions change places", func(s group.Store) group.Store {
		var mu sync.Mutex
		var done bool // once: whatever comes at once, or one behind the other
		return breakNext(s, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
			events, rev, err := w.Next(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || done || rev.Index <= 20 || len(events) == 0 {
				return events, rev, err
			}
			first, last := events[0].Index, events[len(events)-1].Index
			if first == last {
				more, next, err := w.Next(ctx)
				if err != nil || len(more) == 0 {
					return events, rev, nil // an end is told again
				}
				events, rev = append(slices.Clone(events), more...), next
			}
			done = true
			return slices.Concat(slices.DeleteFunc(slices.Clone(events), func(e group.Event) bool { return e.Index == first }),
				slices.DeleteFunc(slices.Clone(events), func(e group.Event) bool { return e.Index != first })), rev, nil
		})
	}},
	{"watch_unbroken", "a watch that fell out goes on", func(s group.Store) group.Store {
		var n atomic.Int64
		return &broken{Store: s, watch: func(from uint64, prefix string) (group.Watch, error) {
			if n.Add(1) == 1 {
				w, err := s.Watch(from, prefix)
				return &brokenWatch{w, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
					if s.Local().Revision().Index > 20 {
						return nil, group.Revision{}, context.Canceled // ends, as on a lost connection
					}
					return w.Next(ctx)
				}}, err
			}
			return s.Watch(s.Local().Revision().Index+2, prefix)
		}}
	}},
	{"watch_unbroken", "a wrong previous value", revisions(func(all [][]group.Event) [][]group.Event {
		for i := range all[0] {
			if all[0][i].Prev != nil {
				prev := *all[0][i].Prev
				prev.Value = []byte("another")
				all[0][i].Prev = &prev
			}
		}
		return all
	})},
	{"reads_behind", "what is read is what this node has applied", func(s group.Store) group.Store {
		var first atomic.Pointer[group.Snapshot] // after which nothing more comes
		return &broken{Store: s, sync: func(ctx context.Context) (group.Snapshot, error) {
			if old := first.Load(); old != nil {
				return *old, nil
			}
			snap, err := s.Sync(ctx)
			if _, ok := snap.Get("a"); ok && err == nil {
				first.Store(&snap)
			}
			return snap, err
		}}
	}},
	{"restore", "the epoch stays", func(s group.Store) group.Store {
		flat := func(r group.Revision) group.Revision { r.Epoch = min(r.Epoch, 1); return r }
		return &broken{Store: s, txn: func(ctx context.Context, x group.Txn) (group.Result, error) {
			r, err := s.Txn(ctx, x)
			r.Revision = flat(r.Revision)
			return r, err
		}, sync: func(ctx context.Context) (group.Snapshot, error) {
			snap, err := s.Sync(ctx)
			return flatSnapshot{snap}, err
		}}
	}},
	{"restore", "a watch goes on over it", func(s group.Store) group.Store {
		return &broken{Store: s, watch: func(from uint64, prefix string) (group.Watch, error) {
			w, err := s.Watch(from, prefix)
			return &brokenWatch{w, func(w group.Watch, ctx context.Context) ([]group.Event, group.Revision, error) {
				if _, _, err := w.Next(ctx); err == nil {
					return nil, group.Revision{}, nil
				}
				return nil, s.Local().Revision(), nil
			}}, err
		}}
	}},
}

type flatSnapshot struct{ group.Snapshot }

func (f flatSnapshot) Revision() group.Revision {
	r := f.Snapshot.Revision()
	r.Epoch = min(r.Epoch, 1)
	return r
}

// TestWorldChecks_CanFail: each breakage is seen by its check.
func TestWorldChecks_CanFail(t *testing.T) {
	checks, covered := map[string]conformance.WorldCheck{}, map[string]bool{}
	for _, c := range conformance.WorldChecks() {
		checks[c.Name] = c
	}
	for _, b := range worldBreakages {
		covered[b.check] = true
		t.Run(b.check+"/"+b.how, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			for _, err := s.Sync(t.Context()); err != nil; _, err = s.Sync(t.Context()) {
				t.Log(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			rec := &recorder{ctx: ctx}
			var wg sync.WaitGroup
			wg.Go(func() { checks[b.check].Run(rec, world(s, b.wrap)) })
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
