package syncserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/etcdgroup"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/shared/lifecycle/porttest"
)

// What make scale measures on: BAILIWICK_STORE is raft or etcd. Etcd's server is no part of this program nor of its tests: the
// sandbox, which BAILIWICK_SANDBOX names, runs as its members, in processes of their own.
const (
	storeEnv   = "BAILIWICK_STORE"
	sandboxEnv = "BAILIWICK_SANDBOX"
	membersEnv = "BAILIWICK_MEMBERS" // of etcd, on the processors of this machine as the node and the edges are
)

// engine opens the zone's store of a node, one after another on the same state.
type engine struct {
	t       *testing.T
	name    string
	dir     string
	members []*exec.Cmd
	urls    []string
}

func newEngine(t *testing.T, name string) *engine {
	e := &engine{t: t, name: name, dir: t.TempDir()}
	if name != "etcd" {
		return e
	}
	program := os.Getenv(sandboxEnv)
	if program == "" {
		t.Fatalf("%s=etcd needs %s, which runs etcd's members: make scale STORE=etcd", storeEnv, sandboxEnv)
	}
	var all, peers []string
	members := number(t, membersEnv, 3)
	for i := range members {
		e.urls, peers = append(e.urls, "http://"+porttest.Addr(t)), append(peers, "http://"+porttest.Addr(t))
		all = append(all, fmt.Sprintf("e%d=%s", i, peers[i]))
	}
	for i := range members {
		m := exec.Command(program, "etcd", "-name", fmt.Sprintf("e%d", i), "-dir", filepath.Join(e.dir, fmt.Sprintf("e%d", i)), "-token", "scale",
			"-cluster", strings.Join(all, ","), "-client", e.urls[i], "-peer", peers[i])
		m.Stderr = os.Stderr
		if err := m.Start(); err != nil {
			t.Fatalf("start a member of etcd: %v", err)
		}
		e.members = append(e.members, m)
		t.Cleanup(func() { _ = m.Process.Kill(); _ = m.Wait() })
	}
	return e
}

// open runs the store until close.
func (e *engine) open() (s group.Store, close func()) {
	e.t.Helper()
	var run func(context.Context) error
	log := slog.New(slog.DiscardHandler)
	switch e.name {
	case "raft":
		store, err := raftgroup.NewStore(raftgroup.Config{Group: "store/emea", Node: "n1", Dir: filepath.Join(e.dir, "n1"), Voters: []string{"n1"}, Timing: raftgroup.Local(), Logger: log})
		if err != nil {
			e.t.Fatal(err)
		}
		s, run = store, store.Run
	case "etcd":
		store, err := etcdgroup.Open(etcdgroup.Config{Name: "store/emea", Node: "n1", Endpoints: e.urls, Prefix: "scale/", Seen: filepath.Join(e.dir, "seen"), Logger: log})
		if err != nil {
			e.t.Fatal(err)
		}
		s, run = store, store.Run
	default:
		e.t.Fatalf("%s=%q is neither raft nor etcd", storeEnv, e.name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- run(ctx) }()
	return s, func() {
		cancel()
		if err := <-ran; err != nil {
			e.t.Errorf("run the store: %v", err)
		}
	}
}

// tell logs what etcd's own processes have had and taken; with raft the store is in this one.
func (e *engine) tell() {
	for i, m := range e.members {
		pid := strconv.Itoa(m.Process.Pid)
		e.t.Logf("member e%d of etcd has had %d MB at most, and %.1f s of the processor", i, peakOf(pid)>>20, usedBy(pid).Seconds())
	}
}

// commit writes ops and gives the index at which they stand.
func commit(t *testing.T, s group.Store, ops ...group.Op) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := s.Txn(ctx, group.Txn{Ops: ops})
	if err == nil && !r.Succeeded {
		err = errors.New("a transaction without compares did not succeed")
	}
	if err != nil {
		t.Error(err)
		return 0
	}
	return r.Revision.Index
}

// peakOf is the most memory that a process ever had, in bytes; 0: unknown.
func peakOf(pid string) int64 {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// usedBy is the processor's time that a process has had; 0: unknown.
func usedBy(pid string) time.Duration {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold anything
	var ticks int64
	for i, f := range strings.Fields(rest) {
		if i == 11 || i == 12 { // of 10 ms, on every Linux that Go runs on
			n, _ := strconv.ParseInt(f, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
