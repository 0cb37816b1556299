package raftgroup

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group/conformance"
)

// slowDisk keeps every write waiting while slow is set, below the limit at which the node would stop.
type slowDisk struct {
	disk
	slow, broken *atomic.Bool
}

func (s *slowDisk) StoreLogs(logs []*raft.Log) error {
	if s.slow.Load() {
		time.Sleep(150 * time.Millisecond)
	}
	if s.broken.Load() {
		return fmt.Errorf("fdatasync raft.db: input/output error")
	}
	return s.disk.StoreLogs(logs)
}
func (s *slowDisk) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// Under kills, partitions, slow disks and at last a failing one, what clients at all nodes were told has an order. A
// campaign is BAILIWICK_HISTORY=<seconds> with BAILIWICK_SEED=<n> to repeat one: make histories.
func TestHistory_IsLinearizableUnderFaults(t *testing.T) {
	t.Parallel()
	length, seed := 4*time.Second, uint64(time.Now().UnixNano())
	if s, err := strconv.Atoi(os.Getenv("BAILIWICK_HISTORY")); err == nil {
		length = time.Duration(s) * time.Second
	}
	if n, err := strconv.ParseUint(os.Getenv("BAILIWICK_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("seed %d, for %s", seed, length)
	slow, broken := map[string]*atomic.Bool{}, map[string]*atomic.Bool{}
	base := Config{SnapshotThreshold: 60, SnapshotInterval: 50 * time.Millisecond, TrailingLogs: 20, CheckEvery: 50, LookEvery: 100 * time.Millisecond}
	var mu sync.Mutex // covers slow and broken
	flag := func(m map[string]*atomic.Bool, name string) *atomic.Bool {
		mu.Lock()
		defer mu.Unlock()
		if m[name] == nil {
			m[name] = new(atomic.Bool)
		}
		return m[name]
	}
	base.wrapDisk = func(d disk) disk {
		name := filepath.Base(filepath.Dir(d.(*boltDisk).path))
		return &slowDisk{disk: d, slow: flag(slow, name), broken: flag(broken, name)}
	}
	c := newCluster(t, base)
	c.leader()

	names := c.base.Voters
	var victim string
	begin := time.Now()
	history, faults := conformance.History(seed, length, c.running, func(rng *rand.Rand) {
		name := names[rng.IntN(len(names))]
		wait := time.Duration(100+rng.IntN(400)) * time.Millisecond
		switch kind := rng.IntN(3); {
		case time.Since(begin) > length-time.Second && victim == "": // the last: a disk that fails
			victim = c.leader().node.cfg.Node
			flag(broken, victim).Store(true)
			put(t, c.stores[names[(slices.Index(names, victim)+1)%len(names)]], "last", "1") // through the next leader
		case victim != "":
			time.Sleep(wait)
		case kind == 0:
			c.kill(name)
			time.Sleep(wait)
			c.start(name)
		case kind == 1:
			c.nw.isolate(name, true)
			time.Sleep(wait)
			c.nw.isolate(name, false)
		default:
			flag(slow, name).Store(true)
			time.Sleep(wait)
			flag(slow, name).Store(false)
		}
	})
	if victim == "" {
		victim = c.leader().node.cfg.Node
		flag(broken, victim).Store(true)
		put(t, c.stores[names[(slices.Index(names, victim)+1)%len(names)]], "last", "1")
	}
	mustContain(t, <-c.fatal, victim, "input/output error")
	_ = c.stop[victim]()
	delete(c.stores, victim)
	conformance.CheckHistory(t, history)
	t.Logf("%d operations, %d faults", len(history), faults)
	if len(history) < 50 || faults < 2 {
		t.Errorf("%d operations and %d faults prove little", len(history), faults)
	}
}
