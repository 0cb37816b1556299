package raftgroup

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"bailiwick/controlplane/internal/group"
)

// sickDisk misbehaves on demand.
type sickDisk struct {
	disk
	hang   *atomic.Bool // StoreLogs never returns
	ioerr  *atomic.Bool // StoreLogs fails as a failed fsync does
	stored *atomic.Int64
}

func (s *sickDisk) StoreLogs(logs []*raft.Log) error {
	if s.hang.Load() {
		select {}
	}
	if s.ioerr.Load() {
		return &os.PathError{Op: "fdatasync", Path: "raft.db", Err: syscall.EIO}
	}
	s.stored.Add(1)
	return s.disk.StoreLogs(logs)
}
func (s *sickDisk) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func sickCluster(t *testing.T) (c *cluster, sick map[string]*sickDisk) {
	sick = map[string]*sickDisk{}
	base := Config{StallLimit: 300 * time.Millisecond, ProbeAfter: 200 * time.Millisecond}
	base.wrapDisk = func(d disk) disk {
		s := &sickDisk{disk: d, hang: new(atomic.Bool), ioerr: new(atomic.Bool), stored: new(atomic.Int64)}
		sick[filepath.Base(filepath.Dir(d.(*boltDisk).path))] = s
		return s
	}
	return newCluster(t, base), sick
}

// A leader whose disk hangs keeps sending heartbeats: without the fence nobody
// would elect another, and this test would wait for ever.
func TestWatchdog_StalledLeaderIsFenced(t *testing.T) {
	t.Parallel()
	c, sick := sickCluster(t)
	l := c.leader()
	old, f := l.node.cfg.Node, c.follower()
	put(t, f, "a", "1")
	begin := time.Now()
	sick[old].hang.Store(true)
	put(t, f, "b", "2") // through the next leader
	took := time.Since(begin)
	if took > 30*time.Second {
		t.Errorf("write over a stalled leader: took %v, want it fenced after 300ms and another elected", took)
	}
	if took < 300*time.Millisecond {
		t.Errorf("write over a stalled leader: took %v, the stall was not in its way", took)
	}
	if name, _ := f.Leader(); name == old {
		t.Errorf("leader: got %s, which is stalled", name)
	}
	mustContain(t, <-c.fatal, old, "store raft log lasts longer than 300ms", "stalled")
	if !l.node.fence.up() {
		t.Error("fence: got down, want it up before OnFatal")
	}
	if _, err := l.node.fence.Dial("n1", time.Second); !errors.Is(err, errFenced) {
		t.Errorf("dial behind the fence: got %v, want errFenced", err)
	}
	mustContain(t, c.stop[old](), "stalled") // Run returned it
	mustContain(t, l.VerifyLeader(short(t)), "stopping")
	delete(c.stores, old)
	wantValue(t, f, "b", "2")
}

// Nobody writes, the process lives, heartbeats flow, and the log store's call blocks: the leader finds out by itself.
func TestWatchdog_AQuietLeadersStallIsNoticed(t *testing.T) {
	t.Parallel()
	c, sick := sickCluster(t)
	old := c.leader().node.cfg.Node
	sick[old].hang.Store(true)
	select {
	case err := <-c.fatal:
		mustContain(t, err, old, "stalled")
	case <-time.After(30 * time.Second):
		t.Fatal("a leader whose disk hangs leads on while nobody writes")
	}
	mustContain(t, c.stop[old](), "stalled")
	delete(c.stores, old)
	put(t, c.leader(), "a", "1")
}

func TestWatchdog_StalledFollowerIsFenced(t *testing.T) {
	t.Parallel()
	c, sick := sickCluster(t)
	f := c.follower()
	name := f.node.cfg.Node
	sick[name].hang.Store(true)
	put(t, c.leader(), "a", "1")
	mustContain(t, <-c.fatal, name, "stalled")
	delete(c.stores, name)
	put(t, c.leader(), "b", "2")
}

func TestWatchdog_FsyncErrorIsFatalOnce(t *testing.T) {
	c, sick := sickCluster(t)
	old, f := c.leader().node.cfg.Node, c.follower()
	put(t, f, "a", "1")
	sick[old].ioerr.Store(true)
	before := sick[old].stored.Load()
	put(t, f, "b", "2")
	mustContain(t, <-c.fatal, old, "fdatasync", "input/output error")
	sick[old].ioerr.Store(false) // as the kernel does: the next fsync would succeed
	mustContain(t, c.stop[old](), "fdatasync")
	if got := sick[old].stored.Load(); got != before {
		t.Errorf("writes after a failed fsync: got %d, want none", got-before)
	}
	delete(c.stores, old)
	wantValue(t, f, "b", "2")
}

// flip changes one byte of the record at index, in place.
func flip(t *testing.T, dir string, bucket []byte, at func(*bolt.Cursor) (k, v []byte)) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(dir, "raft.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		k, v := at(tx.Bucket(bucket).Cursor())
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return tx.Bucket(bucket).Put(bytes.Clone(k), v)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNew_RefusesCorruptLog(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]struct {
		bucket []byte
		at     func(*bolt.Cursor) (k, v []byte)
		want   string
	}{
		"first entry": {logBucket, (*bolt.Cursor).First, "entry 1 of"},
		"last entry":  {logBucket, (*bolt.Cursor).Last, "its checksum is"},
		"vote":        {stableBucket, (*bolt.Cursor).Last, "its checksum differs"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, Config{})
			put(t, c.leader(), "a", "1")
			victim := c.follower().node.cfg.Node
			_ = c.stop[victim]()
			delete(c.stores, victim)
			cfg := c.config(victim)
			flip(t, cfg.Dir, cut.bucket, cut.at)
			cfg.Listen = c.nw.listen(t, victim)
			_, err := NewStore(cfg)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("start: got %v, want ErrCorrupt", err)
			}
			mustContain(t, err, cut.want, "rejoin under a new name")
			put(t, c.leader(), "b", "2") // the others go on
		})
	}
}

// A record that goes bad while the node runs: it stops without reading past it.
func TestWatchdog_CorruptReadIsFatal(t *testing.T) {
	d, err := openDisk(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.StoreLogs([]*raft.Log{{Index: 7, Term: 1, Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	err = d.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(logBucket).Put(indexKey(8), encodeLog(&raft.Log{Index: 7, Term: 1, Data: []byte("x")}))
	})
	if err != nil {
		t.Fatal(err)
	}
	var l raft.Log
	if err := d.GetLog(7, &l); err != nil || string(l.Data) != "x" || l.Term != 1 || l.Index != 7 {
		t.Errorf("good record: got %+v, %v", l, err)
	}
	failed := make(chan error, 1)
	w := &watchdog{disk: d, limit: time.Second, fail: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}}
	if err := w.GetLog(9, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("absent record: got %v, want raft.ErrLogNotFound", err)
	}
	returned := make(chan struct{})
	go func() { // stays parked: that is the point
		_ = w.GetLog(8, &l) // entry 7's record in entry 8's place
		close(returned)
	}()
	if err := <-failed; !errors.Is(err, ErrCorrupt) {
		t.Errorf("misplaced record: got %v, want ErrCorrupt", err)
	} else {
		mustContain(t, err, "entry 8")
	}
	select {
	case <-returned:
		t.Error("raft got an answer from a corrupt log")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestWatchdog_DeletesInChunksWithoutGap(t *testing.T) {
	const n = 3*deleteChunk + 5
	for name, cut := range map[string][2]uint64{
		"prefix": {1, 2*deleteChunk + 7}, "suffix": {5, n}, "all": {1, n}, "one": {1, 1}, "last": {n, n},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := openDisk(filepath.Join(t.TempDir(), "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			logs := make([]*raft.Log, n)
			for i := range logs {
				logs[i] = &raft.Log{Index: uint64(i + 1), Term: 1}
			}
			if err := d.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
			w := &watchdog{disk: gapCheck{d, t}, limit: time.Minute, fail: func(err error) { t.Error(err) }}
			if err := w.DeleteRange(cut[0], cut[1]); err != nil {
				t.Fatal(err)
			}
			wantFirst, wantLast := uint64(1), cut[0]-1
			if cut[1] != n {
				wantFirst, wantLast = cut[1]+1, n
			}
			if wantLast == 0 {
				wantFirst = 0
			}
			first, _ := d.FirstIndex()
			last, _ := d.LastIndex()
			if first != wantFirst || last != wantLast {
				t.Errorf("after deleting %v: got %d..%d, want %d..%d", cut, first, last, wantFirst, wantLast)
			}
		})
	}
}

// gapCheck proves the file after each chunk, as a crash there would find it.
type gapCheck struct {
	*boltDisk
	t *testing.T
}

func (g gapCheck) DeleteRange(lo, hi uint64) error {
	if hi-lo >= deleteChunk {
		g.t.Errorf("chunk %d..%d: longer than %d", lo, hi, deleteChunk)
	}
	err := g.boltDisk.DeleteRange(lo, hi)
	if err := g.verify(); err != nil {
		g.t.Errorf("between chunks: %v", err)
	}
	return err
}

func TestNew_RefusesWhatDoesNotJoinUp(t *testing.T) {
	t.Parallel()
	base := Config{Voters: []string{"n1"}, SnapshotThreshold: 5, SnapshotInterval: 10 * time.Millisecond, TrailingLogs: 2}
	prepare := func(t *testing.T) Config {
		c := newCluster(t, base)
		s := c.leader()
		for i := range 40 {
			put(t, s, "k", string(rune('a'+i%26)))
		}
		eventually(t, "the log is truncated", func() bool { return s.node.Stats().FirstLog > 20 })
		if err := c.stop["n1"](); err != nil {
			t.Fatal(err)
		}
		return c.config("n1")
	}
	damage := func(t *testing.T, dir string, do func(state string)) {
		states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
		if err != nil || len(states) == 0 {
			t.Fatalf("snapshots of %s: got %v, %v", dir, states, err)
		}
		for _, s := range states {
			do(s)
		}
	}
	t.Run("intact", func(t *testing.T) {
		cfg := prepare(t)
		s, err := NewStore(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		modes := map[string]os.FileMode{cfg.Dir: 0o700, filepath.Join(cfg.Dir, "raft.db"): 0o600, filepath.Join(cfg.Dir, "snapshots"): 0o700}
		damage(t, cfg.Dir, func(s string) { modes[s] = 0o600; modes[filepath.Dir(s)] = 0o700 })
		for path, want := range modes {
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
				t.Errorf("mode of %s: got %v, %v, want %v", path, fi.Mode().Perm(), err, want)
			}
		}
	})
	t.Run("flipped snapshots", func(t *testing.T) {
		cfg := prepare(t)
		damage(t, cfg.Dir, func(s string) {
			b, err := os.ReadFile(s)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 4
			if err := os.WriteFile(s, b, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		_, err := NewStore(cfg)
		mustContain(t, err, "the newest readable snapshot ends at 0", "CRC", "rejoin under a new name")
	})
	t.Run("lost snapshots", func(t *testing.T) {
		cfg := prepare(t)
		damage(t, cfg.Dir, func(s string) { os.RemoveAll(filepath.Dir(s)) })
		_, err := NewStore(cfg)
		mustContain(t, err, "the log begins at entry", "entries between are gone")
	})
	t.Run("lost log", func(t *testing.T) {
		cfg := prepare(t)
		if err := os.Remove(filepath.Join(cfg.Dir, "raft.db")); err != nil {
			t.Fatal(err)
		}
		m := newMemory(cfg.Group, 10, 0)
		m.cur.Store(&state{applied: 1000, State: m.cur.Load().State})
		_, err := New(cfg, m)
		mustContain(t, err, "the state has applied entry 1000 but the log ends at", "the log was lost")
		_, err = NewStore(cfg)
		mustContain(t, err, "log and vote were lost")
	})
	t.Run("another process", func(t *testing.T) {
		cfg := prepare(t)
		s, err := NewStore(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = NewStore(cfg)
		mustContain(t, err, "another process holds it")
	})
	t.Run("another group", func(t *testing.T) {
		cfg := prepare(t)
		cfg.Group = "other"
		_, err := NewStore(cfg)
		mustContain(t, err, `belongs to group "store/test"`)
	})
	t.Run("newer file", func(t *testing.T) {
		cfg := prepare(t)
		db, err := bolt.Open(filepath.Join(cfg.Dir, "raft.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte{diskFormat + 1}) }); err != nil {
			t.Fatal(err)
		}
		db.Close()
		_, err = NewStore(cfg)
		mustContain(t, err, "written by a newer bailiwick-control")
	})
	t.Run("cut file", func(t *testing.T) {
		cfg := prepare(t)
		fi, err := os.Stat(filepath.Join(cfg.Dir, "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int64{fi.Size() / 2, 20_000, 9_000, 8_192, 5_000, 100} {
			if err := os.Truncate(filepath.Join(cfg.Dir, "raft.db"), size); err != nil {
				t.Fatal(err)
			}
			s, err := NewStore(cfg)
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("start on a log file cut to %d bytes: got %v, want ErrCorrupt", size, err)
			}
		}
	})
}

// A command from a newer program stops the node; it is not skipped.
func TestFSM_UnknownCommandStopsLoudly(t *testing.T) {
	t.Parallel()
	for name, cmd := range map[string][]byte{
		"envelope": append([]byte{99}, make([]byte, 20)...),
		"command":  seal(time.Now(), []byte{99, 1, 0}),
		"kind":     seal(time.Now(), []byte{commandVersion, 99, 0}),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, Config{})
			l := c.leader()
			put(t, l, "a", "1")
			l.node.raft.Apply(cmd, time.Second) // past the door, as a newer leader would
			// The leader stops, then whoever is elected and learns that the
			// command is committed; the third is left without a quorum.
			for range 2 {
				mustContain(t, <-c.fatal, "unknown", "run a newer bailiwick-control")
			}
			mustContain(t, c.stop[l.node.cfg.Node](), "unknown")
			if got := l.node.Applied(); got >= l.node.raft.LastIndex() {
				t.Errorf("applied: got %d, want it below the unknown command at %d", got, l.node.raft.LastIndex())
			}
		})
	}
}

func TestStore_DoorRefusesWhatNoMachineApplies(t *testing.T) {
	c := newCluster(t, Config{Voters: []string{"n1"}})
	s := c.leader()
	big := encodeTxn(group.Txn{Ops: []group.Op{{Key: "k", Value: make([]byte, group.MaxValue+1)}}})
	for name, cmd := range map[string][]byte{"empty": nil, "noise": []byte("noise"), "version": {99}, "cut": encodeTxn(group.Txn{Ops: []group.Op{{Key: "k"}}})[:5], "too large": big} {
		if _, err := s.node.HandlePropose(short(t), cmd); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	put(t, s, "a", "1")
}

func TestSnapshot_EveryFlippedByteIsNoticed(t *testing.T) {
	var buf bytes.Buffer
	want := bytes.Repeat([]byte("0123456789"), 300)
	err := writeSnapshot(&buf, snapshotHeader{group: "g", visible: 9, stamp: 5}, func(w io.Writer) error {
		_, err := w.Write(want)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) ([]byte, error) {
		r, err := newSnapshotReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := read(buf.Bytes()); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("intact: got %d bytes, %v, want %d", len(got), err, len(want))
	}
	for i := range buf.Bytes() {
		b := bytes.Clone(buf.Bytes())
		b[i] ^= 0x20
		if got, err := read(b); err == nil && !bytes.Equal(got, want) {
			t.Errorf("byte %d flipped: got other bytes and no error", i)
		}
		if _, err := read(buf.Bytes()[:i]); err == nil {
			t.Errorf("cut at byte %d: got no error", i)
		}
	}
}

// A snapshot that reads back wrong is no snapshot: raft keeps its log.
func TestSnapshotStore_BadSnapshotIsRemoved(t *testing.T) {
	var said error
	dir := t.TempDir()
	s, err := openSnapshots(dir, "g", newHclog(Config{}.withDefaults().Logger), func(err error) { said = err })
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("n1")
	sink, err := s.Create(1, 10, 1, raft.Configuration{}, 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("not what we write")); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err == nil || said == nil {
		t.Errorf("close: got %v, told %v, want an error both times", err, said)
	}
	if metas, err := s.List(); err != nil || len(metas) != 0 {
		t.Errorf("list: got %d snapshots, %v, want none", len(metas), err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "snapshots")); len(left) != 0 {
		t.Errorf("directory: got %v, want it empty", left)
	}
}
