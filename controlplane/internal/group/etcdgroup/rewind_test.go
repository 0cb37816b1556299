package etcdgroup

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// What was committed while a node stood still is told to those who follow its store when it starts: all nodes may have
// stood still at once. Without a memory of its own, or beyond etcd's, it begins at the present.
func TestWatch_TellsWhatWasCommittedWhileTheNodeStoodStill(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	seen := filepath.Join(t.TempDir(), "seen")
	with := func(cfg *Config) { cfg.Seen = seen }
	s, end := c.node("n1", "p/", with)
	first := put(t, s, "a", "1")
	end()
	other, endOther := c.node("n2", "p/")
	var last group.Result
	for i := range 5 {
		last = put(t, other, "b", fmt.Sprint(i))
	}
	endOther()

	s, end = c.node("n1", "p/", with)
	for end := time.Now().Add(30 * time.Second); s.Local().Len() == 0 && time.Now().Before(end); { // without a pause: it may last for less than a millisecond
	}
	if got := s.Local().Revision(); got != last.Revision { // an operator made meanwhile would be told that nobody knows them
		t.Errorf("the first state that it shows is %v, want nothing before %v", got, last.Revision)
	}
	wantValue(t, s, "b", "4") // it is at the present
	w, err := s.Watch(first.Revision.Index+1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := 0; i < 5; {
		events, _, err := w.Next(short(t))
		if err != nil {
			t.Fatalf("watch from before the node was started: %v, want the 5 writes since", err)
		}
		for _, e := range events {
			if want := first.Revision.Index + 1 + uint64(i); e.Index != want || string(e.KV.Value) != fmt.Sprint(i) {
				t.Errorf("event %d: got %d %q, want %d %q", i, e.Index, e.KV.Value, want, fmt.Sprint(i))
			}
			i++
		}
	}
	if again := put(t, s, "c", "1"); again.Revision.Index != last.Revision.Index+1 || again.Revision.Epoch != last.Revision.Epoch {
		t.Errorf("it goes on at %v after %v", again.Revision, last.Revision)
	}
	end()

	c.compact(c.raw())
	s, _ = c.node("n1", "p/", with)
	wantValue(t, s, "b", "4")
	if got := put(t, s, "c", "2").Revision.Index; got != last.Revision.Index+2 {
		t.Errorf("after a compaction it goes on at %d, want %d", got, last.Revision.Index+2)
	}
}

// Indexes are used again once etcd was set back: what a transaction that was under way meanwhile has read is not what the
// same index means now.
func TestRequest_ComparesInItsOwnEpoch(t *testing.T) {
	t.Parallel()
	write := func(st replica.State, key string) replica.State {
		st, _, _ = fold(st, time.Unix(1, 0), []record{{id: key, failed: -1, ops: []group.Op{{Key: key, Value: []byte("x")}}}})
		return st
	}
	before := write(replica.Empty(), "a")
	after := before
	after.Rev.Epoch = before.Rev.Epoch + 1
	a, _ := before.Get("a")
	for _, c := range []struct {
		name string
		cmp  []group.Compare
		in   uint64
		at   replica.State
		want int
	}{
		{"the same epoch", []group.Compare{{Key: "a", ModIndex: a.ModIndex}}, before.Rev.Epoch, before, -1},
		{"a later one", []group.Compare{{Key: "b"}, {Key: "a", ModIndex: a.ModIndex}}, before.Rev.Epoch, after, 1},
		{"a later one, of what is there or not", []group.Compare{{Key: "b"}, {Key: "a", Exists: true}}, before.Rev.Epoch, after, -1},
		{"a later one, and another fails first", []group.Compare{{Key: "a"}, {Key: "a", ModIndex: a.ModIndex}}, before.Rev.Epoch, after, 0},
		{"before any was known", []group.Compare{{Key: "a", ModIndex: a.ModIndex}}, 0, after, -1},
	} {
		r := &request{txn: group.Txn{Compares: c.cmp}, epoch: c.in}
		if got := r.failed(&c.at); got != c.want {
			t.Errorf("%s: compare %d fails, want %d", c.name, got, c.want)
		}
	}
}
