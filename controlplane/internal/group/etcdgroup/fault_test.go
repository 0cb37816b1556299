package etcdgroup

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// A bulk transaction is one to every reader, at whatever moment its keys are only partly written: also to a node that
// lists just then, and to the writer that finds it so.
func TestBulk_IsWholeWhereverItStops(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	a, end := c.node("n1", "p/")
	put(t, a, "k/00007", "old")
	bulk := group.Txn{Ops: []group.Op{{Key: "gone/", DeletePrefix: true}}}
	for i := range 500 {
		bulk.Ops = append(bulk.Ops, group.Op{Key: fmt.Sprintf("k/%05d", i), Value: []byte("new")})
	}
	put(t, a, "gone/1", "x")
	want, err := a.Txn(short(t), bulk)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := a.here()
	for p.bulk != nil { // spread by the writer itself
		time.Sleep(time.Millisecond)
		p, _ = a.here()
	}
	// The same state again, as a writer that died on the way leaves it: the head says bulk, a third of the keys is old.
	cl := c.raw()
	log, err := cl.Get(short(t), a.keyLog())
	if err != nil {
		t.Fatal(err)
	}
	torn, err := decodeEntry(log.Kvs[0].Value) // of the spreading: it has no records
	if err != nil || len(torn.records) != 0 {
		t.Fatalf("log: got %d records, %v, want none", len(torn.records), err)
	}
	h := p.head
	h.bulk, h.nonce = true, "torn"
	torn.head, torn.records = h.encode(), []record{{id: "x", failed: -1, ops: bulk.Ops}}
	ops := []clientv3.Op{clientv3.OpPut(a.keyHead(), string(torn.head)), clientv3.OpPut(a.keyLog(), string(torn.encode())), clientv3.OpPut(a.keyOf("gone/1"), string(encodeKV(group.KV{CreateIndex: 2, ModIndex: 2, Version: 1})))}
	for i := range 100 {
		ops = append(ops, clientv3.OpDelete(a.keyOf(fmt.Sprintf("k/%05d", 3*i))))
	}
	end() // it would rightly take what follows for an etcd that was set back
	if _, err := cl.Txn(short(t)).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	b, _ := c.node("n2", "p/")
	kvs, rev, err := b.List(short(t), "")
	if err != nil || len(kvs) != 500 || rev != want.Revision {
		t.Fatalf("list of a torn bulk: got %d keys at %v, %v, want 500 at %v", len(kvs), rev, err, want.Revision)
	}
	for _, kv := range kvs {
		if string(kv.Value) != "new" || kv.ModIndex != want.Revision.Index {
			t.Fatalf("%s: got %q of %d, want new of %d", kv.Key, kv.Value, kv.ModIndex, want.Revision.Index)
		}
	}
	put(t, b, "k/00000", "newer") // finishes it first
	d, _ := c.node("n3", "p/")
	wantValue(t, d, "k/00000", "newer")
	wantValue(t, d, "k/00003", "new")
	if n, err := cl.Get(short(t), a.keyOf(""), clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || n.Count != 500 {
		t.Errorf("keys in etcd: got %v, %v, want 500", n.Count, err)
	}
}

// With members killed, leader or not, and started again, connections cut and history compacted, every acknowledged write
// is there once, and every watch has seen all of it in order.
func TestStore_SurvivesItsMembers(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 3)
	var nodes []*Store
	for _, n := range []string{"n1", "n2", "n3"} {
		s, _ := c.node(n, "p/")
		nodes = append(nodes, s)
	}
	put(t, nodes[0], "n", "")
	cl := c.raw()
	stop := make(chan struct{})
	var acked, compacted atomic.Int64
	var wg sync.WaitGroup
	for i, s := range nodes {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("w/%d/%05d", i, n)
				r, err := s.Txn(short(t), group.Txn{Compares: []group.Compare{{Key: key}}, Ops: []group.Op{{Key: key}, {Key: fmt.Sprintf("last/%d", i), Value: []byte(key)}}})
				if err != nil || !r.Succeeded {
					t.Errorf("write %s: got %+v, %v", key, r, err)
					return
				}
				acked.Add(1)
				time.Sleep(2 * time.Millisecond)
			}
		})
		wg.Go(func() { // a watch that sees each revision once, or is told
			var from uint64 = 2
			for {
				w, err := s.Watch(from, "")
				for err == nil {
					var events []group.Event
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					events, _, err = w.Next(ctx)
					cancel()
					for _, e := range events {
						if e.Index != from && e.Index != from-1 {
							t.Errorf("node %d: got index %d after %d", i, e.Index, from-1)
							return
						}
						from = e.Index + 1
					}
				}
				select {
				case <-stop:
					return
				default:
				}
				if fault.ReasonOf(err) == group.ReasonCompacted {
					compacted.Add(1)
					_, rev, err := s.List(short(t), "")
					if err != nil {
						t.Error(err)
						return
					}
					from = rev.Index + 1
				}
			}
		})
	}
	between := func() {
		t.Helper()
		before := acked.Load()
		eventually(t, "writes go on", func() bool { return acked.Load() > before+6 })
	}
	between()
	for _, m := range []*member{c.leader(), c.members[0], c.leader()} {
		c.kill(m)
		between()
		c.begin(m)
		c.compact(cl)
		between()
	}
	for _, m := range c.members { // every connection of clients ends
		m.toClient.set(true)
		m.toClient.set(false)
	}
	between()
	close(stop)
	wg.Wait()
	for i, s := range nodes {
		kvs, rev, err := s.List(short(t), "w/")
		if err != nil || int64(len(kvs)) != acked.Load() || rev.Index != uint64(acked.Load())+1 {
			t.Errorf("node %d: got %d keys at %v, %v, want %d acknowledged writes, each a revision", i, len(kvs), rev, err, acked.Load())
		}
	}
	t.Logf("%d writes, %d watches told that they fell out", acked.Load(), compacted.Load())
}

// Without a quorum nothing is acknowledged, and what was proposed is either done once or not at all.
func TestStore_WithoutAQuorum(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 3)
	s, _ := c.node("n1", "p/")
	put(t, s, "a", "1")
	for _, m := range c.members {
		m.toPeer.set(true)
	}
	eventually(t, "no leader", func() bool {
		for _, m := range c.members {
			if m.etcd.Server.Leader() != 0 {
				return false
			}
		}
		return true
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := s.Txn(ctx, group.Txn{RequestID: "r", Ops: []group.Op{{Key: "b"}}}); fault.ReasonOf(err) != group.ReasonNoLeader && fault.ReasonOf(err) != group.ReasonOutcomeUnknown {
		t.Errorf("write: got %v, want NO_LEADER or OUTCOME_UNKNOWN", err)
	}
	if _, err := s.Sync(ctx); fault.ReasonOf(err) != group.ReasonNoLeader {
		t.Errorf("sync: got %v, want NO_LEADER", err)
	}
	if kv, ok := s.Local().Get("a"); !ok || string(kv.Value) != "1" {
		t.Errorf("local: got %q, %v, want 1", kv.Value, ok)
	}
	for _, m := range c.members {
		m.toPeer.set(false)
	}
	if r, err := s.Txn(short(t), group.Txn{RequestID: "r", Ops: []group.Op{{Key: "b"}}}); err != nil || !r.Succeeded {
		t.Fatalf("again: got %+v, %v", r, err)
	}
	if kv, _, _, _ := s.Get(short(t), "b"); kv.Version != 1 {
		t.Errorf("b: got version %d, want 1: one request, once", kv.Version)
	}
}

// A leader that etcd hears no more of stops its work before another begins.
func TestLeader_TurnsDoNotOverlap(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	own := newProxy(t, c.members[0].client)
	var working atomic.Int64
	turns := make(chan string, 16)
	lead := func(s *Store, name string) {
		go func() {
			_ = s.RunLeader(context.Background(), func(ctx context.Context) {
				if n := working.Add(1); n != 1 {
					t.Errorf("%d turns at once", n)
				}
				turns <- name
				<-ctx.Done()
				working.Add(-1)
			})
		}()
	}
	a, _ := c.node("a", "p/", func(cfg *Config) { cfg.Endpoints = []string{own.ln.Addr().String()}; cfg.LeaseTTL = 2 * time.Second })
	leads(t, a)
	lead(a, "a")
	if got := <-turns; got != "a" {
		t.Fatalf("got a turn of %s", got)
	}
	if err := a.VerifyLeader(short(t)); err != nil {
		t.Errorf("verify: got %v", err)
	}
	b, _ := c.node("b", "p/", func(cfg *Config) { cfg.LeaseTTL = 2 * time.Second })
	lead(b, "b")
	eventually(t, "b knows a", func() bool { name, _ := b.Leader(); return name == "a" })
	if err := b.VerifyLeader(short(t)); fault.ReasonOf(err) != group.ReasonNotLeader {
		t.Errorf("verify at b: got %v, want NOT_LEADER", err)
	}
	own.set(true)
	if got := <-turns; got != "b" {
		t.Fatalf("got a turn of %s, want b", got)
	}
	own.set(false)
	eventually(t, "a knows b", func() bool { name, self := a.Leader(); return name == "b" && !self })
	if err := a.VerifyLeader(short(t)); fault.ReasonOf(err) != group.ReasonNotLeader {
		t.Errorf("verify at a: got %v, want NOT_LEADER", err)
	}
}

// An etcd that is set back begins a new epoch, whoever finds it: a node that runs, and one that was just started.
func TestRestore_BeginsANewEpoch(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	var asked atomic.Int64
	seen := filepath.Join(t.TempDir(), "seen")
	change := func(cfg *Config) {
		cfg.Seen = seen
		cfg.Restored = func(r Restored) ([]group.Op, error) {
			asked.Add(1)
			if r.Why == "" || r.Opened.Epoch <= r.Found.Epoch {
				return nil, fmt.Errorf("asked with %+v", r)
			}
			return []group.Op{{Key: "restored", Value: []byte(r.Found.String())}}, nil
		}
	}
	s, end := c.node("n1", "p/", change)
	put(t, s, "a", "1")
	cl := c.raw()
	backup := c.backup(cl, "p/")
	lost := put(t, s, "a", "lost")
	restore := func() { c.restore(cl, "p/", backup) }
	w, err := s.Watch(lost.Revision.Index+1, "")
	if err != nil {
		t.Fatal(err)
	}
	restore()
	if _, _, err := w.Next(short(t)); fault.ReasonOf(err) != group.ReasonCompacted {
		t.Errorf("watch over a restore: got %v, want COMPACTED", err)
	}
	wantValue(t, s, "a", "1")
	wantValue(t, s, "restored", fmt.Sprintf("%d.1", lost.Revision.Epoch))
	after := put(t, s, "b", "1")
	if !lost.Revision.Less(after.Revision) || after.Revision.Epoch <= lost.Revision.Epoch {
		t.Errorf("after a restore: got %v after %v, want a later epoch", after.Revision, lost.Revision)
	}
	end()
	restore() // while nobody runs
	again, _ := c.node("n1", "p/", change)
	if _, rev, err := again.List(short(t), ""); err != nil || rev.Epoch <= after.Revision.Epoch {
		t.Errorf("a node started after a restore: got %v, %v, want an epoch after %v", rev, err, after.Revision)
	}
	if asked.Load() != 2 {
		t.Errorf("asked %d times what the new epoch begins with, want 2", asked.Load())
	}
}

// What etcd says of its own past tells a node without any memory.
func TestRestore_IsToldByEtcdsPast(t *testing.T) {
	t.Parallel()
	found := head{cluster: 7, term: 9, entry: 1000, rev: group.Revision{Epoch: 1, Index: 5}, serial: 5, nonce: "x"}
	c := newEtcd(t, 1)
	s, _ := c.node("n1", "p/")
	put(t, s, "a", "1")
	cluster, term, _ := s.past.now()
	for name, x := range map[string]struct {
		change func(h *head)
		want   string
	}{
		"another cluster":  {func(h *head) {}, "cluster 0000000000000007"},
		"a shorter log":    {func(h *head) { h.cluster, h.term, h.entry = cluster, term, 1<<40 }, "entries"},
		"the same, longer": {func(h *head) { h.cluster, h.term, h.entry = cluster, term, 1 }, ""},
	} {
		h := found
		x.change(&h)
		got := s.past.setBack(short(t), s, nil, &listing{pos: &position{head: h, raw: []byte("x"), mod: 1}, cluster: cluster, term: term})
		if got == "" && x.want != "" || !strings.Contains(got, x.want) {
			t.Errorf("%s: got %q, want %q in it", name, got, x.want)
		}
	}
	known := &position{head: head{serial: 6, nonce: "y", rev: found.rev}, raw: []byte("y")}
	if got := s.past.setBack(short(t), s, known, &listing{pos: &position{head: found}}); !strings.Contains(got, "commit 6") {
		t.Errorf("a node that has seen more: got %q", got)
	}
}

// What this engine cannot work with ends the node, with what to do.
func TestStore_RefusesWhatItCannotTrust(t *testing.T) {
	c := newEtcd(t, 1)
	s, _ := c.node("n1", "p/")
	put(t, s, "a", "1")
	cl := c.raw()
	for name, x := range map[string]struct {
		key, value string
		change     func(*Config)
		want       string
	}{
		"another group": {"", "", func(cfg *Config) { cfg.Name = "h" }, "holds group g: give each group a prefix of its own"},
		"a newer head":  {"q/head", "\x02zzz", func(cfg *Config) { cfg.Prefix = "q/" }, "run a newer bailiwick-control"},
		"a lost key":    {"p/k/b", string(encodeKV(group.KV{CreateIndex: 1, ModIndex: 1, Version: 1})), func(*Config) {}, "something else writes or deletes there"},
	} {
		if x.key != "" {
			if _, err := cl.Put(short(t), x.key, x.value); err != nil {
				t.Fatal(err)
			}
		}
		fatal := make(chan error, 1)
		_, end := c.node("n2", "p/", x.change, func(cfg *Config) { cfg.OnFatal = func(err error) { fatal <- err } })
		select {
		case err := <-fatal:
			if !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s: got %v, want it to say %q", name, err, x.want)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s: the node goes on", name)
		}
		end()
	}
	for err, want := range map[error]string{rpctypes.ErrTooManyOps: "--max-txn-ops 128", rpctypes.ErrRequestTooLarge: "--max-request-bytes", rpctypes.ErrNoSpace: "--quota-backend-bytes"} {
		if got := s.plain(err).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want it to say %q", err, got, want)
		}
	}
}
