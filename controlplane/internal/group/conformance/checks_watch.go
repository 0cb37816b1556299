package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
)

func watchContent(t T, s group.Store) {
	write(t, s, put("a", "1"))
	write(t, s, put("a", "2"), put("b", "1"))
	write(t, s, del("a"), del("nothing"))
	last := write(t, s, delPrefix("b"), put("c", "1"))
	w := watch(t, s, 1, "")
	defer w.Close()
	var got []string
	for rev := (group.Revision{}); rev != last.Revision; {
		var events []group.Event
		events, rev = next(t, w)
		for _, e := range events {
			prev := "-"
			if e.Prev != nil {
				prev = fmt.Sprintf("%s@%d", e.Prev.Value, e.Prev.ModIndex)
			}
			got = append(got, fmt.Sprintf("%d %s del=%v %s@%d prev=%s", e.Index, e.KV.Key, e.Delete, e.KV.Value, e.KV.ModIndex, prev))
		}
		if rev.Epoch != last.Revision.Epoch || last.Revision.Less(rev) {
			t.Fatalf("watch: got revision %v, want at most %v", rev, last.Revision)
		}
	}
	want := []string{
		"1 a del=false 1@1 prev=-",
		"2 a del=false 2@2 prev=1@1",
		"2 b del=false 1@2 prev=-",
		"3 a del=true @3 prev=2@2",
		"4 b del=true @4 prev=1@2",
		"4 c del=false 1@4 prev=-",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events: got %q, want %q", got, want)
	}
}

// watchUnderWrites follows from several places while several write: every
// revision once, in order and whole.
func watchUnderWrites(t T, s group.Store) {
	const writers, each = 3, 30
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				ctx, cancel := limited(t)
				_, err := s.Txn(ctx, ops(put(fmt.Sprintf("w%d/a", i), fmt.Sprint(j)), put(fmt.Sprintf("w%d/b", i), fmt.Sprint(j))))
				cancel()
				if err != nil {
					t.Errorf("write: got error %v", err)
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			w, err := s.Watch(1, "")
			if err != nil {
				t.Errorf("watch: got error %v", err)
				return
			}
			defer w.Close()
			ctx, cancel := limited(t)
			defer cancel()
			for want := uint64(1); want <= writers*each; {
				events, rev, err := w.Next(ctx)
				if err != nil {
					t.Errorf("next at %d: got error %v", want, err)
					return
				}
				if rev.Index < want || len(events)%2 != 0 {
					t.Errorf("next at %d: got %d events up to %v, want whole revisions of 2 events", want, len(events), rev)
					return
				}
				for i, e := range events {
					if e.Index != want+uint64(i/2) {
						t.Errorf("next: got index %d, want %d: a gap or a repeat", e.Index, want+uint64(i/2))
						return
					}
				}
				want += uint64(len(events) / 2)
			}
		})
	}
	wg.Wait()
}

func watchPrefix(t T, s group.Store) {
	w := watch(t, s, 1, "p/")
	defer w.Close()
	write(t, s, put("p", "no"), put("p/1", "yes"), put("q/1", "no"))
	for range 5 {
		write(t, s, put("q/1", "no"))
	}
	last := write(t, s, put("p/2", "yes"), del("q/1"))
	var got []string
	for len(got) < 2 {
		events, rev := next(t, w)
		for _, e := range events {
			got = append(got, e.KV.Key)
		}
		if i := events[len(events)-1].Index; rev.Index < i {
			t.Errorf("next: got revision %v below its event %d", rev, i)
		}
	}
	if !slices.Equal(got, []string{"p/1", "p/2"}) {
		t.Errorf("events below p/: got %v, want [p/1 p/2] up to %v", got, last.Revision)
	}
}

func watchFrom(t T, s group.Store) {
	for i := range 5 {
		write(t, s, put("a", fmt.Sprint(i)))
	}
	for from, want := range map[uint64]uint64{0: 1, 1: 1, 3: 3, 5: 5, 6: 6, 8: 8} {
		w := watch(t, s, from, "")
		if want > 5 { // not written yet: wait for it
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if events, _, err := w.Next(ctx); err == nil {
				t.Errorf("watch from %d: got %d events, want it to wait", from, len(events))
			}
			cancel()
			w.Close()
			continue
		}
		if events, _ := next(t, w); events[0].Index != want {
			t.Errorf("watch from %d: got index %d first, want %d", from, events[0].Index, want)
		}
		w.Close()
	}
	w := watch(t, s, 7, "")
	defer w.Close()
	write(t, s, put("a", "6th"))
	write(t, s, put("a", "7th"))
	if events, _ := next(t, w); events[0].Index != 7 || string(events[0].KV.Value) != "7th" {
		t.Errorf("watch from 7: got index %d (%s) first, want 7", events[0].Index, events[0].KV.Value)
	}
}

func watchCompacted(t T, s group.Store) {
	slow := watch(t, s, 1, "")
	defer slow.Close()
	bulk := group.Txn{}
	for i := range 4000 {
		bulk.Ops = append(bulk.Ops, put(fmt.Sprintf("k/%04d", i), "x"))
	}
	var last group.Result
	for written := 0; written <= group.RememberedEvents+len(bulk.Ops); written += len(bulk.Ops) {
		last = txn(t, s, bulk)
	}
	ctx, cancel := limited(t)
	defer cancel()
	if err := s.WaitFor(ctx, last.Revision.Index); err != nil {
		t.Fatalf("wait for %v: got error %v", last.Revision, err)
	}
	if _, rev, err := slow.Next(ctx); reasonOf(err) != group.ReasonCompacted {
		t.Errorf("slow watch: got %v, %v, want reason %s rather than a gap", rev, err, group.ReasonCompacted)
	}
	w, err := s.Watch(1, "")
	if err == nil {
		_, _, err = w.Next(ctx)
		w.Close()
	}
	if reasonOf(err) != group.ReasonCompacted {
		t.Errorf("watch from 1: got %v, want reason %s", err, group.ReasonCompacted)
	}
	// What the error asks for works: list, then watch from there.
	_, rev := list(t, s, "k/0000")
	w = watch(t, s, rev.Index+1, "")
	defer w.Close()
	after := write(t, s, put("a", "1"))
	if events, rev := next(t, w); rev != after.Revision || len(events) != 1 {
		t.Errorf("after a new list: got %d events at %v, want 1 at %v", len(events), rev, after.Revision)
	}
}

func watchEnds(t T, s group.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := watch(t, s, 1, "")
	if _, _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("next with ended ctx: got %v, want context.Canceled", err)
	}
	write(t, s, put("a", "1"))
	if events, _ := next(t, w); len(events) != 1 { // an ended ctx costs nothing
		t.Errorf("next after an ended ctx: got %d events, want 1", len(events))
	}
	ended := make(chan error, 1)
	go func() { // ends with the watch, or with the check's ctx
		ctx, cancel := limited(t)
		defer cancel()
		_, _, err := w.Next(ctx)
		ended <- err
	}()
	w.Close()
	if err := <-ended; reasonOf(err) != group.ReasonClosed {
		t.Errorf("next when closed: got %v, want reason %s", err, group.ReasonClosed)
	}
	w.Close() // twice is fine
}

func waitFor(t T, s group.Store) {
	r := write(t, s, put("a", "1"))
	ctx, cancel := limited(t)
	defer cancel()
	if err := s.WaitFor(ctx, r.Revision.Index); err != nil {
		t.Errorf("wait for %v: got error %v", r.Revision, err)
	}
	if kv, ok := s.Local().Get("a"); !ok || kv.ModIndex != r.Revision.Index {
		t.Errorf("local after wait: got %+v, %v, want a at %v", kv, ok, r.Revision)
	}
	early, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := s.WaitFor(early, r.Revision.Index+1); err == nil {
		t.Errorf("wait for what is not written: got no error, want one at the deadline")
	}
	waited := make(chan error, 1)
	go func() { waited <- s.WaitFor(ctx, r.Revision.Index+1) }()
	write(t, s, put("a", "2"))
	if err := <-waited; err != nil {
		t.Errorf("wait for the next: got error %v", err)
	}
	if kv, _ := s.Local().Get("a"); string(kv.Value) != "2" {
		t.Errorf("local after wait: got %q, want 2", kv.Value)
	}
}

// leadership checks only what holds on any node: a follower's RunLeader waits.
func leadership(t T, s group.Store) {
	write(t, s, put("a", "1")) // so there is a leader
	ctx, cancel := limited(t)
	defer cancel()
	name, self := s.Leader()
	if name == "" {
		t.Errorf("leader: got none after a write")
	}
	if err := s.VerifyLeader(ctx); self != (err == nil) {
		t.Errorf("verify leader: got %v where Leader says self %v", err, self)
	} else if err != nil && reasonOf(err) != group.ReasonNotLeader {
		t.Errorf("verify leader: got reason %q, want %s", reasonOf(err), group.ReasonNotLeader)
	}
	rctx, stop := context.WithCancel(ctx)
	began := make(chan struct{}, 8)
	ended := make(chan error, 1)
	go func() {
		ended <- s.RunLeader(rctx, func(ctx context.Context) {
			began <- struct{}{}
			<-ctx.Done()
		})
	}()
	if self {
		select {
		case <-began:
		case <-ctx.Done():
			t.Errorf("run leader: work was not called on the leader")
		}
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("run leader: got %v when its ctx ended, want nil", err)
		}
	case <-ctx.Done():
		t.Errorf("run leader: it does not return when its ctx ends")
	}
	if n := len(began); n > 0 {
		t.Errorf("run leader: got %d calls more, want one a leadership", n)
	}
}
