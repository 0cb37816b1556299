package etcdgroup

import (
	"fmt"
	"path/filepath"
	"testing"

	"bailiwick/controlplane/internal/group"
)

// What was committed while a node stood still is told to those who follow its store when it starts: all nodes may have
// stood still at once. Without a memory of its own, or beyond etcd's, it begins at the present.
func TestWatch_TellsWhatWasCommittedWhileTheNodeStoodStill(t *testing.T) {
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
