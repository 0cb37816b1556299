package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
)

// World is a group whose nodes a check may disturb. What an engine does not know
// is nil. Each function makes a fault and returns once it is over.
type World struct {
	Stores func() []group.Store // one a node, nil while it is down; always as many
	Cut    func()               // a node loses its connections, and history from before is forgotten by the others meanwhile
	Kill   func()               // whatever leads the group's quorum is killed, and begins again
	// Behind makes what the first node reads from fall behind what the group commits, while it answers still, until undo.
	Behind func() (undo func())
	// Restore sets the group back to an earlier state, as its operator does.
	Restore func()
}

// WorldCheck is one guarantee of a group under faults.
type WorldCheck struct {
	Name string
	Run  func(t T, w World)
}

// RunWorld runs every check on a world of its own.
func RunWorld(t *testing.T, open func(t *testing.T) World) {
	for _, c := range WorldChecks() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c.Run(t, open(t))
		})
	}
}

// WorldChecks is the suite.
func WorldChecks() []WorldCheck {
	return []WorldCheck{{"watch_unbroken", watchUnbroken}, {"restore", restore}, {"reads_behind", readsBehind}}
}

// validator follows a watch of everything and holds each event against all that came before: a gap, a repeat, a change
// of order and a wrong event are errors.
type validator struct {
	at    group.Revision
	keys  map[string]group.KV
	seen  map[string]bool // keys of revision at
	time  time.Time
	count int
}

func (v *validator) reset(kvs []group.KV, rev group.Revision) {
	v.at, v.keys, v.seen = rev, map[string]group.KV{}, map[string]bool{}
	for _, kv := range kvs {
		v.keys[kv.Key] = kv
	}
}

func (v *validator) events(events []group.Event, rev group.Revision) error {
	for _, e := range events {
		switch {
		case e.Index == v.at.Index+1:
			v.at.Index, v.seen = e.Index, map[string]bool{}
		case e.Index != v.at.Index:
			return fmt.Errorf("an event of index %d after %d", e.Index, v.at.Index)
		}
		if v.seen[e.KV.Key] {
			return fmt.Errorf("two events of %s at index %d", e.KV.Key, e.Index)
		}
		v.seen[e.KV.Key] = true
		was, there := v.keys[e.KV.Key]
		if there != (e.Prev != nil) || there && !sameKV(was, *e.Prev) {
			return fmt.Errorf("%s at index %d: got previous %+v, want %+v", e.KV.Key, e.Index, e.Prev, was)
		}
		if e.Time.Before(v.time) {
			return fmt.Errorf("index %d: time %v after %v", e.Index, e.Time, v.time)
		}
		v.time = e.Time
		if e.Delete {
			delete(v.keys, e.KV.Key)
			continue
		}
		want := group.KV{Key: e.KV.Key, Value: e.KV.Value, CreateIndex: e.Index, ModIndex: e.Index, Version: was.Version + 1}
		if there {
			want.CreateIndex = was.CreateIndex
		}
		if !sameKV(e.KV, want) {
			return fmt.Errorf("%s at index %d: got %+v, want %+v", e.KV.Key, e.Index, e.KV, want)
		}
		v.keys[e.KV.Key] = e.KV
	}
	if rev.Index != v.at.Index {
		return fmt.Errorf("looked up to %v after events up to index %d: every revision changes something", rev, v.at.Index)
	}
	v.at = rev
	v.count += len(events)
	return nil
}

func (v *validator) agrees(kvs []group.KV) error {
	if len(kvs) != len(v.keys) {
		return fmt.Errorf("%d keys were followed, the list holds %d", len(v.keys), len(kvs))
	}
	for _, kv := range kvs {
		if was, ok := v.keys[kv.Key]; !ok || !sameKV(was, kv) {
			return fmt.Errorf("%s: followed %+v, listed %+v", kv.Key, was, kv)
		}
	}
	return nil
}

// watchUnbroken writes at every node and follows at every node while nodes are cut off and killed.
func watchUnbroken(t T, w World) {
	n := len(w.Stores())
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	stop := make(chan struct{})
	var acked, relisted atomic.Int64
	var writers, followers sync.WaitGroup
	for i := range n {
		writers.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				case <-ctx.Done():
					return
				case <-time.After(time.Millisecond):
				}
				key := func(k int) string { return fmt.Sprintf("w%d/%d", i, k%7) }
				o := []group.Op{put(key(j), fmt.Sprint(j)), put(key(j+1), fmt.Sprint(j))}
				switch j % 5 {
				case 2:
					o = []group.Op{del(key(j - 1)), put(key(j+2), "x")}
				case 4:
					o = []group.Op{delPrefix(fmt.Sprintf("w%d/", i)), put("shared", fmt.Sprint(i, j))}
				}
				if s := w.Stores()[i]; s != nil {
					wctx, cancel := context.WithTimeout(ctx, 2*time.Second)
					if _, err := s.Txn(wctx, ops(o...)); err == nil {
						acked.Add(1)
					}
					cancel()
				}
			}
		})
	}
	last := make(chan struct{}) // closed when goal is set
	var goal group.Revision
	for i := range n {
		followers.Go(func() {
			v := &validator{}
			v.reset(nil, group.Revision{})
			for ctx.Err() == nil {
				again, err := v.follow(ctx, w.Stores()[i], last, &goal, &relisted)
				if err != nil {
					t.Errorf("node %d: %v", i, err)
				}
				if !again {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Errorf("node %d: the watch is at %v after %s", i, v.at, 6*patience)
		})
	}
	between := func() {
		for before := acked.Load(); acked.Load() < before+20 && ctx.Err() == nil; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	faults := 0
	for _, f := range []func(){w.Cut, w.Kill, w.Cut, w.Kill} {
		between()
		if f != nil {
			f()
			faults++
		}
	}
	between()
	close(stop)
	writers.Wait()
	for _, s := range w.Stores() {
		if s == nil {
			continue
		}
		if snap, err := s.Sync(ctx); err != nil {
			t.Errorf("sync: got error %v", err)
		} else {
			goal = snap.Revision()
		}
	}
	close(last)
	followers.Wait()
	if relisted.Load() > int64(n*(faults+1)) {
		t.Errorf("watches fell out %d times in %d faults at %d nodes", relisted.Load(), faults, n)
	}
}

// follow watches on from where v stands until the goal is reached, or the watch ends. again: with another.
func (v *validator) follow(ctx context.Context, s group.Store, last <-chan struct{}, goal *group.Revision, relisted *atomic.Int64) (again bool, err error) {
	if s == nil {
		return true, nil
	}
	watch, err := s.Watch(v.at.Index+1, "")
	for err == nil {
		select {
		case <-last:
			if !v.at.Less(*goal) {
				watch.Close()
				kvs, rev, err := s.List(ctx, "")
				if err != nil || rev != v.at {
					return false, fmt.Errorf("list at the end: got revision %v, %w, want %v", rev, err, v.at)
				}
				return false, v.agrees(kvs)
			}
		default:
		}
		var events []group.Event
		var rev group.Revision
		nctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		events, rev, err = watch.Next(nctx)
		cancel()
		if err == nil {
			if err := v.events(events, rev); err != nil {
				watch.Close()
				return false, err
			}
		} else if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = nil
		}
	}
	if watch != nil {
		watch.Close()
	}
	if reasonOf(err) == group.ReasonCompacted {
		if kvs, rev, err := s.List(ctx, ""); err == nil {
			if rev.Less(v.at) {
				return false, fmt.Errorf("a list at %v after events up to %v", rev, v.at)
			}
			v.reset(kvs, rev)
			relisted.Add(1)
		}
	}
	return true, nil
}

// readsBehind: a read that cannot see all that was acknowledged before it began says so, instead of what it sees.
func readsBehind(t T, w World) {
	if w.Behind == nil {
		return
	}
	all := w.Stores()
	first, last := all[0], all[len(all)-1]
	write(t, last, put("a", "0"))
	wantValue(t, first, "a", "0")
	undo := sync.OnceFunc(w.Behind())
	defer undo()
	for i := 1; i <= 2; i++ {
		want := fmt.Sprint(i)
		at := write(t, last, put("a", want)).Revision
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		stale := func(call string, rev group.Revision, value string, err error) {
			if err == nil && (rev.Less(at) || value != want) {
				t.Errorf("%s at a node that is behind: got %q at %v, want %q at %v, or an error", call, value, rev, want, at)
			}
		}
		var reads sync.WaitGroup
		reads.Go(func() {
			kv, _, rev, err := first.Get(ctx, "a")
			stale("get", rev, string(kv.Value), err)
		})
		reads.Go(func() {
			kvs, rev, err := first.List(ctx, "a")
			if len(kvs) == 1 {
				stale("list", rev, string(kvs[0].Value), err)
			} else if err == nil {
				t.Errorf("list: got %d keys, want 1", len(kvs))
			}
		})
		reads.Go(func() {
			snap, err := first.Sync(ctx)
			if err == nil {
				kv, _ := snap.Get("a")
				stale("sync", snap.Revision(), string(kv.Value), nil)
			}
		})
		reads.Wait()
		cancel()
	}
	undo()
	wantValue(t, first, "a", "2")
}

// restore: a revision given out before an operator set the group back is below every one after it, and no watch goes on
// as if nothing had happened.
func restore(t T, w World) {
	if w.Restore == nil {
		return
	}
	s := w.Stores()[0]
	for i := range 5 {
		write(t, s, put("a", fmt.Sprint(i)))
	}
	before := current(t, s).Revision()
	wt := watch(t, s, before.Index+1, "")
	defer wt.Close()
	w.Restore()
	ctx, cancel := limited(t)
	defer cancel()
	for {
		_, rev, err := wt.Next(ctx)
		if err != nil && ctx.Err() == nil {
			break // after what was written before the restore, if anything
		}
		if err != nil || rev.Epoch > before.Epoch {
			t.Errorf("a watch over a restore: got events up to %v, %v, want it to end", rev, err)
			break
		}
	}
	s = w.Stores()[0]
	found := current(t, s).Revision()
	if found.Epoch <= before.Epoch {
		t.Errorf("after a restore: got %v, want a later epoch than of %v", found, before)
	}
	r := write(t, s, put("b", "1"))
	if !before.Less(r.Revision) || !found.Less(r.Revision) {
		t.Errorf("written after a restore: got %v, want it above %v and %v", r.Revision, before, found)
	}
}
