package raftgroup

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

func TestStore_WritesReadsAndForwards(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Nonvoters: []string{"n4"}})
	for i, name := range []string{"n1", "n2", "n3", "n4"} {
		key := fmt.Sprintf("k/%d", i)
		put(t, c.stores[name], key, name)
		for _, other := range c.stores { // linearizable everywhere, at once
			wantValue(t, other, key, name)
		}
	}
	c.wantSameState()
	if got := c.stores["n4"].node.Stats(); got.State != "follower" {
		t.Errorf("non-voter: got state %q, want follower", got.State)
	}
	if err := c.follower().VerifyLeader(short(t)); fault.ReasonOf(err) != group.ReasonNotLeader {
		t.Errorf("verify leader at a follower: got %v, want NOT_LEADER", err)
	}
}

func TestStore_LeaderKill(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	put(t, c.stores["n1"], "before", "1")
	old := c.leader().node.cfg.Node
	f := c.follower()
	w, err := f.Watch(1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	// Writers go on through the kill; each acked write must be there, each once.
	const writes = 60
	acked := make(chan string, writes)
	done := make(chan error, 1)
	go func() {
		for i := range writes {
			key := fmt.Sprintf("w/%03d", i)
			_, err := f.Txn(context.Background(), group.Txn{Compares: []group.Compare{{Key: key}}, Ops: []group.Op{{Key: key, Value: []byte("x")}}})
			if err != nil {
				done <- err
				return
			}
			acked <- key
		}
		done <- nil
	}()
	for range 10 {
		<-acked
	}
	c.kill(old)
	if err := <-done; err != nil {
		t.Fatalf("write through a leader's death: %v", err)
	}
	kvs, rev, err := f.List(short(t), "w/")
	if err != nil || len(kvs) != writes {
		t.Fatalf("list: got %d keys, %v, want %d", len(kvs), err, writes)
	}
	for _, kv := range kvs {
		if kv.Version != 1 {
			t.Errorf("%s: got version %d, want 1: a retry was applied twice", kv.Key, kv.Version)
		}
	}
	// The watch saw each revision once, across the change of leader.
	var got []uint64
	for len(got) < int(rev.Index) {
		events, _, err := w.Next(short(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			got = append(got, e.Index)
		}
	}
	for i, index := range got {
		if index != uint64(i+1) {
			t.Fatalf("watch: got indexes %v, want 1..%d without gap or repeat", got, rev.Index)
		}
	}
	back := c.start(old)
	wantValue(t, back, "w/059", "x") // right after its restart
	c.wantSameState()
}

func TestStore_RestartOfAll(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	var last group.Result
	for i := range 30 {
		last = put(t, c.leader(), "k", fmt.Sprint(i))
	}
	for _, name := range c.base.Voters {
		if err := c.stop[name](); err != nil {
			t.Errorf("stop %s: %v", name, err)
		}
	}
	for _, name := range c.base.Voters {
		c.start(name)
	}
	for _, s := range c.stores {
		kv, ok, rev, err := s.Get(short(t), "k")
		if err != nil || !ok || string(kv.Value) != "29" || rev != last.Revision {
			t.Errorf("get after restart: got %q at %v, %v, want 29 at %v", kv.Value, rev, err, last.Revision)
		}
	}
}

func TestStore_IsolatedLeaderAnswersNoRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	l := c.leader()
	put(t, l, "k", "old")
	c.nw.isolate(l.node.cfg.Node, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if kv, _, _, err := l.Get(ctx, "k"); err == nil {
		t.Errorf("read at an isolated leader: got %q, want an error", kv.Value)
	}
	if _, err := l.Txn(ctx, group.Txn{Ops: []group.Op{{Key: "k", Value: nil}}}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("write at an isolated leader: got %v, want unavailable", err)
	}
	if kv, ok := l.Local().Get("k"); !ok || string(kv.Value) != "old" {
		t.Errorf("local read: got %q, %v, want old", kv.Value, ok)
	}
	c.nw.isolate(l.node.cfg.Node, false)
	wantValue(t, l, "k", "old")
}

func TestStore_LaggingNodeCatchesUpBySnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Nonvoters: []string{"n4"}, SnapshotThreshold: 20, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: 10})
	put(t, c.leader(), "k/first", "1")
	lag := c.stores["n4"]
	if err := lag.WaitFor(short(t), 1); err != nil {
		t.Fatal(err)
	}
	w, err := lag.Watch(1, "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, _, err := w.Next(short(t)); err != nil {
		t.Fatal(err)
	}
	c.nw.isolate("n4", true)
	for i := range 200 {
		put(t, c.leader(), fmt.Sprintf("k/%03d", i), "v")
	}
	eventually(t, "the leader's log no longer begins at 1", func() bool { return c.leader().node.Stats().FirstLog > 100 })
	c.nw.isolate("n4", false)
	c.wantSameState()
	if _, _, err := w.Next(short(t)); fault.ReasonOf(err) != group.ReasonCompacted {
		t.Errorf("watch over an installed snapshot: got %v, want COMPACTED", err)
	}
	// The installed snapshot is enough to start from.
	if err := c.stop["n4"](); err != nil {
		t.Fatal(err)
	}
	c.start("n4")
	put(t, c.stores["n4"], "k/last", "v")
	c.wantSameState()
}

func TestStore_RequestIDSurvivesLeaderAndSnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{SnapshotThreshold: 5, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: 1})
	txn := group.Txn{RequestID: "r-1", Compares: []group.Compare{{Key: "a"}}, Ops: []group.Op{{Key: "a", Value: []byte("1")}}}
	first, err := c.leader().Txn(short(t), txn)
	if err != nil || !first.Succeeded || first.Replayed {
		t.Fatalf("first: got %+v, %v, want success", first, err)
	}
	for i := range 20 {
		put(t, c.leader(), fmt.Sprint("b/", i), "x")
	}
	eventually(t, "a snapshot exists everywhere", func() bool {
		return !slices.ContainsFunc(c.base.Voters, func(n string) bool { return c.stores[n].node.Stats().Snapshot == 0 })
	})
	for _, name := range c.base.Voters {
		_ = c.stop[name]()
	}
	for _, name := range c.base.Voters {
		c.start(name)
	}
	again, err := c.follower().Txn(short(t), txn)
	want := first
	want.Replayed = true
	if err != nil || again != want {
		t.Errorf("again: got %+v, %v, want %+v", again, err, want)
	}
}

// lossy loses the first answer to each of n changes, which were carried out.
type lossy struct {
	Forwarder
	n *atomic.Int32
}

func (l lossy) Propose(ctx context.Context, node, group string, cmd []byte) ([]byte, error) {
	out, err := l.Forwarder.Propose(ctx, node, group, cmd)
	if err == nil && l.n.Add(-1) >= 0 {
		return nil, fault.New(fault.Unavailable, "CONNECTION_LOST", "the answer is lost")
	}
	return out, err
}

// A store that asks again by itself, after an answer was lost, tells a caller without an id of no repetition: he has asked
// once. One with an id cannot be told whose repetition it was.
func TestStore_ItsOwnRepetitionIsNoReplay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Timing: calm})
	name := c.follower().node.cfg.Node
	c.kill(name)
	var lost atomic.Int32
	c.forward = func(f Forwarder) Forwarder { return lossy{f, &lost} }
	s := c.start(name)
	for _, given := range []bool{false, true} {
		n := 0
		eventually(t, "an answer is lost on its way from another node, which leads", func() bool {
			n++
			key, id := fmt.Sprint("k", given, n), ""
			if given {
				id = key
			}
			lost.Store(1)
			r, err := s.Txn(short(t), group.Txn{RequestID: id, Ops: []group.Op{{Key: key, Value: []byte("1")}}})
			twice := lost.Load() < 0
			if err != nil || !r.Succeeded || twice && r.Replayed != given {
				t.Errorf("id %q: got %+v, %v, want it to succeed, replayed %v", id, r, err, given)
			}
			if kv, _, _, err := s.Get(short(t), key); err != nil || kv.Version != 1 {
				t.Errorf("id %q: version %d, %v, want it carried out once", id, kv.Version, err)
			}
			return twice
		})
	}
}

func TestStore_RunLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	type turn struct {
		name string
		on   bool
	}
	turns := make(chan turn, 64)
	for name, s := range c.stores {
		go func() {
			_ = s.RunLeader(t.Context(), func(ctx context.Context) {
				turns <- turn{name, true}
				<-ctx.Done()
				turns <- turn{name, false}
			})
		}()
	}
	first := <-turns
	if l := c.leader().node.cfg.Node; !first.on || first.name != l {
		t.Fatalf("first turn: got %+v, want the leader %s", first, l)
	}
	if name, self := c.stores[first.name].Leader(); name != first.name || !self {
		t.Errorf("leader: got %s, %v, want %s, true", name, self, first.name)
	}
	c.nw.isolate(first.name, true)
	var off, on bool
	for !off || !on {
		switch next := <-turns; {
		case next.name == first.name && !next.on:
			off = true
		case next.name != first.name && next.on:
			on = true
		default:
			t.Fatalf("turn: got %+v", next)
		}
	}
	c.nw.isolate(first.name, false)
}

func TestStore_OpenEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{Voters: []string{"n1"}})
	s := c.leader()
	before := put(t, s, "a", "1").Revision
	w, err := s.Watch(before.Index+1, "")
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.OpenEpoch(short(t))
	if err != nil || rev.Epoch <= before.Epoch || rev.Index != before.Index+1 {
		t.Fatalf("open epoch after %v: got %v, %v", before, rev, err)
	}
	if _, _, err := w.Next(short(t)); fault.ReasonOf(err) != group.ReasonCompacted {
		t.Errorf("watch over a new epoch: got %v, want COMPACTED", err)
	}
	wantValue(t, s, "a", "1")
}

func TestStore_GracefulStopHandsOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	old := c.leader().node.cfg.Node
	f := c.follower()
	put(t, f, "a", "1")
	if err := c.stop[old](); err != nil {
		t.Fatalf("stop: %v", err)
	}
	delete(c.stores, old)
	put(t, f, "b", "2")
	wantValue(t, f, "b", "2")
}

func TestConfig_Validate(t *testing.T) {
	ok := Config{Group: "g", Node: "a", Dir: "d", Voters: []string{"a"}}
	if err := ok.Validate(); err != nil {
		t.Errorf("minimal config: got %v, want nil", err)
	}
	for name, change := range map[string]func(*Config){
		"Group is required":  func(c *Config) { c.Group = "" },
		"Node is required":   func(c *Config) { c.Node = "" },
		"Dir is required":    func(c *Config) { c.Dir = "" },
		"Voters is required": func(c *Config) { c.Voters = nil },
		"listed twice":       func(c *Config) { c.Nonvoters = []string{"a"} },
		"Listen and Forward": func(c *Config) { c.Voters = []string{"a", "b", "c"} },
		"lease ≤ heartbeat":  func(c *Config) { c.Timing = Timing{1, 2, 3, 4} },
	} {
		c := ok
		change(&c)
		mustContain(t, c.Validate(), name)
	}
}

// A node that starts while the group has no quorum knows its own disk, but for the last few writes: a follower
// hears of a commit with the next message, and writes that down with the entry after it.
func TestStore_RestartAloneKnowsItsState(t *testing.T) {
	t.Parallel()
	c := newCluster(t, Config{})
	first := c.stores[c.base.Voters[0]]
	for i := range 30 {
		// Waited for: under load a follower may be any number of writes behind.
		if err := first.WaitFor(short(t), put(t, c.leader(), "k", fmt.Sprint(i)).Revision.Index); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range c.base.Voters {
		if err := c.stop[name](); err != nil {
			t.Errorf("stop %s: %v", name, err)
		}
	}
	for round := range 2 { // also after a start that heard from nobody
		s := c.start(c.base.Voters[0])
		kv, ok := s.Local().Get("k")
		if got, err := strconv.Atoi(string(kv.Value)); !ok || err != nil || got < 26 {
			t.Errorf("start %d alone: local k = %q, %v, want at least 26: two messages and a write behind", round, kv.Value, ok)
		}
		if err := c.stop[c.base.Voters[0]](); err != nil {
			t.Error(err)
		}
	}
	for _, name := range c.base.Voters { // and nothing was applied twice when the others are back
		c.start(name)
	}
	last := put(t, c.leader(), "k", "30")
	if last.Revision.Index != 31 {
		t.Errorf("index after the 31st write = %d, want 31", last.Revision.Index)
	}
	c.wantSameState()
}
