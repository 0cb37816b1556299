package raftgroup

import (
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// idle is a state machine that keeps nothing.
type idle struct{}

func (idle) Apply(*raft.Log) any                 { return nil }
func (idle) Snapshot() (raft.FSMSnapshot, error) { return nil, io.EOF }
func (idle) Restore(rc io.ReadCloser) error      { return rc.Close() }

// trio is three real rafts whose transports can be cut from each other, each behind its reach.
type trio struct {
	wires  []*raft.InmemTransport
	ways   []*reach
	rafts  []*raft.Raft
	halted chan struct{}
}

func id(i int) raft.ServerID { return raft.ServerID(fmt.Sprint("n", i)) }

func newTrio(t *testing.T) *trio {
	w := &trio{halted: make(chan struct{})}
	var all raft.Configuration
	for i := range 3 {
		_, wire := raft.NewInmemTransportWithTimeout(raft.ServerAddress(id(i)), time.Second)
		w.wires, w.ways = append(w.wires, wire), append(w.ways, newReach(wire, w.halted))
		all.Servers = append(all.Servers, raft.Server{ID: id(i), Address: raft.ServerAddress(id(i))})
	}
	for i := range 3 {
		w.join(i)
		cfg := Config{Group: "g", Timing: Regional()}.withDefaults().raftConfig(string(id(i)), nil)
		disk := raft.NewInmemStore()
		if err := raft.BootstrapCluster(cfg, disk, disk, raft.NewInmemSnapshotStore(), w.ways[i], all); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(cfg, idle{}, disk, disk, raft.NewInmemSnapshotStore(), w.ways[i])
		if err != nil {
			t.Fatal(err)
		}
		w.ways[i].raft.Store(r)
		w.rafts = append(w.rafts, r)
	}
	return w
}

func (w *trio) join(i int) {
	for j := range w.wires {
		if i != j {
			w.wires[i].Connect(raft.ServerAddress(id(j)), w.wires[j])
			w.wires[j].Connect(raft.ServerAddress(id(i)), w.wires[i])
		}
	}
}

func (w *trio) cut(i int) {
	w.wires[i].DisconnectAll()
	for j := range w.wires {
		w.wires[j].Disconnect(raft.ServerAddress(id(i)))
	}
}

func (w *trio) close() {
	close(w.halted)
	for _, r := range w.rafts {
		_ = r.Shutdown().Error()
	}
}

// leads waits for a leader, and names a follower too.
func (w *trio) leads(t *testing.T) (leader, follower int) {
	for range 600 {
		for i, r := range w.rafts {
			if r.State() == raft.Leader && r.VerifyLeader().Error() == nil {
				return i, (i + 1) % 3
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("no leader within a minute")
	return 0, 0
}

func (w *trio) write(t *testing.T, leader int) uint64 {
	f := w.rafts[leader].Apply([]byte("x"), 0)
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	return f.Index()
}

// However long a member was away, it has what was written meanwhile within the longest pause between two heartbeats and a
// little. raft by itself lets it wait for as long as it was away, up to 10.24 s.
func TestReach_AMemberThatReturnsIsSentToAtOnce(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 7 * time.Second, 12 * time.Second, 22 * time.Second, 10 * time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTrio(t)
				defer w.close()
				leader, follower := w.leads(t)
				w.write(t, leader)
				w.cut(follower)
				time.Sleep(away)
				leader, _ = w.leads(t)
				last := w.write(t, leader)
				w.join(follower)
				begin := time.Now()
				for w.rafts[follower].AppliedIndex() < last {
					if time.Since(begin) > time.Minute {
						t.Fatal("it never hears of what was written")
					}
					time.Sleep(10 * time.Millisecond)
				}
				if took, limit := time.Since(begin), Regional().Heartbeat; took > limit {
					t.Errorf("away for %s, it hears of what was written after %s, want %s at most", away, took, limit)
				}
			})
		})
	}
}

// Who waits for a member that never comes back ends with the leadership, with the membership, and with the node.
func TestReach_NobodyWaitsInVain(t *testing.T) {
	waits := func(w *trio, at, of int) bool {
		w.ways[at].mu.Lock()
		defer w.ways[at].mu.Unlock()
		return w.ways[at].lost[id(of)] != nil
	}
	send := func(w *trio, at, to int) error {
		args := &raft.AppendEntriesRequest{Term: w.rafts[at].CurrentTerm(), PrevLogEntry: 1, PrevLogTerm: 1}
		return w.ways[at].AppendEntries(id(to), raft.ServerAddress(id(to)), args, new(raft.AppendEntriesResponse))
	}
	begin := func(t *testing.T) (w *trio, leader, gone int, ended chan error) {
		w = newTrio(t)
		leader, gone = w.leads(t)
		w.cut(gone)
		time.Sleep(30 * time.Second)
		ended = make(chan error, 1)
		go func() { ended <- send(w, leader, gone) }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-ended:
			t.Errorf("a call to a member that is away ended (%v), want it to wait", err)
			ended <- err
		default:
		}
		return w, leader, gone, ended
	}
	t.Run("removed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, leader, gone, ended := begin(t)
			defer w.close()
			if err := w.rafts[leader].RemoveServer(id(gone), 0, 0).Error(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * unreachedEvery)
			if err := <-ended; err == nil {
				t.Error("a call to a removed member that is away succeeds")
			}
			if time.Sleep(time.Minute); waits(w, leader, gone) {
				t.Error("the removed member is still remembered")
			}
		})
	})
	t.Run("leads no longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, leader, _, ended := begin(t)
			defer w.close()
			w.cut(3 - leader - (leader+1)%3) // the third: no quorum is left
			time.Sleep(Regional().Lease + 2*unreachedEvery)
			select {
			case <-ended:
			default:
				t.Error("a node that leads no longer still waits for its member")
			}
		})
	})
	t.Run("halted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _, ended := begin(t)
			w.close() // ends raft too, whose own calls wait
			synctest.Wait()
			select {
			case <-ended:
			default:
				t.Error("a node that is closed still waits for a member")
			}
		})
	})
}

// Entries that fail while heartbeats pass wait for the next heartbeat and no longer.
func TestReach_HeartbeatsOpenTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.close()
		leader, follower := w.leads(t)
		synctest.Wait() // the last heartbeat has its answer
		w.ways[leader].heard(id(follower), false, io.EOF)
		begin := time.Now()
		if err := w.ways[leader].wait(id(follower), w.rafts[leader].CurrentTerm()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took == 0 || took > Regional().Heartbeat/5+time.Millisecond {
			t.Errorf("waited %s, want until the next heartbeat, up to %s", took, Regional().Heartbeat/5)
		}
	})
}
