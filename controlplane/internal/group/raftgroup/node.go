package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// Node is one member of a replicated group: a Machine behind a Raft log.
type Node struct {
	cfg     Config
	member  Member
	machine Machine
	fsm     *fsm
	disk    disk
	watch   *watchdog // n.disk, as what it is
	snaps   *snapshotStore
	fence   *fence // nil for a group of one
	trans   raft.Transport
	raft    *raft.Raft

	notify  chan bool
	leaders chan raft.Observation
	turn    *replica.Turn // of leadership
	levels  levels
	line    line // of proposals, while this node leads

	failOnce  sync.Once
	failed    chan struct{} // closed after the fence went up
	failErr   error         // set before failed closes
	closeOnce sync.Once
	haltOnce  sync.Once
	halted    chan struct{} // closed when the node fails or closes, whichever is first
	running   atomic.Bool
	left      atomic.Bool // behind: see leaveBehind
}

// New opens the group's files under cfg.Dir, refuses what it cannot trust, and
// joins the group. The Node takes part from here on; call Run, or Close.
func New(cfg Config, m Machine) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg: cfg, machine: m,
		notify:  make(chan bool, 64), // raft blocks on it
		leaders: make(chan raft.Observation, 16),
		failed:  make(chan struct{}), halted: make(chan struct{}),
	}
	n.turn = replica.NewTurn()
	n.fsm = &fsm{group: cfg.Group, machine: m, fail: n.fail, done: newProgress(), visible: newProgress()}
	defer func() {
		if err != nil {
			n.Close()
			err = fmt.Errorf("start group %s in %s: %w", cfg.Group, cfg.Dir, err)
		}
	}()
	if err := errors.Join(cfg.condemned(), cfg.beginAnew()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := n.openDisk(); err != nil {
		return nil, err
	}
	var way *reach // n.trans, as what it is; nil for a group of one
	if cfg.Listen == nil {
		_, n.trans = raft.NewInmemTransport(raft.ServerAddress(cfg.Node))
	} else {
		n.fence = newFence(cfg.Listen(wire(cfg.Group, n.member.Incarnation)), cfg.Node)
		way = newReach(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: n.fence, MaxPool: 3, Timeout: 10 * time.Second,
			MaxRPCsInFlight: 1, // pipelining wedged followers after a stall (raft#612)
			Logger:          newHclog(cfg.Logger),
		}), n.halted)
		n.trans = way
	}
	rc := cfg.raftConfig(n.member.Server, n.notify)
	logs, err := raft.NewLogCache(512, n.disk)
	if err != nil {
		return nil, err
	}
	if n.member.Since.IsZero() && slices.Contains(cfg.Voters, cfg.Node) {
		err := raft.BootstrapCluster(rc, logs, n.disk, n.snaps, n.trans, cfg.servers())
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, err
		}
	}
	commit, err := n.disk.GetCommitIndex()
	if err != nil {
		return nil, err
	}
	if err := n.replay(commit); err != nil {
		return nil, errors.Join(err, n.Err())
	}
	n.fsm.commit = n.disk.StageCommitIndex
	if n.raft, err = raft.NewRaft(rc, n.fsm, logs, n.disk, n.snaps, n.trans); err != nil {
		return nil, errors.Join(err, n.Err())
	}
	if way != nil {
		way.raft.Store(n.raft)
	}
	n.raft.RegisterObserver(raft.NewObserver(n.leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	return n, nil
}

// replay brings the Machine to commit, which the disk knows to be committed, before anybody may read this node's copy
// and before it hears from a leader: while the group has no quorum a restarted node would otherwise take
// itself for empty. Raft's own RestoreCommittedLogs forgets the configuration in the entries it restores
// (v1.8.0), after which a group that restarts as a whole elects nobody; raft replays the same entries once
// more and fsm skips them.
func (n *Node) replay(commit uint64) error {
	from := uint64(1)
	metas, err := n.snaps.List()
	if err != nil {
		return err
	}
	if len(metas) > 0 && metas[0].Index > n.machine.Applied() {
		_, rc, err := n.snaps.Open(metas[0].ID)
		if err != nil {
			return err
		}
		if err := n.fsm.Restore(rc); err != nil {
			return err
		}
	}
	if len(metas) > 0 {
		from = metas[0].Index + 1
	}
	first, err := n.disk.FirstIndex()
	if err != nil {
		return err
	}
	for i := max(from, first); i <= commit; i++ {
		var l raft.Log
		if err := n.disk.GetLog(i, &l); err != nil {
			return fmt.Errorf("read entry %d: %w", i, err)
		}
		switch l.Type {
		case raft.LogCommand:
			if a, ok := n.fsm.Apply(&l).(applied); ok && a.err != nil {
				return a.err
			}
		case raft.LogConfiguration:
			n.fsm.StoreConfiguration(l.Index, raft.Configuration{})
		}
	}
	return nil
}

// openDisk opens and proves log and snapshots, and that they join up: raft
// itself panics on an old snapshot behind a truncated log (raft#85).
func (n *Node) openDisk() error {
	path := filepath.Join(n.cfg.Dir, "raft.db")
	d, err := openDisk(path)
	if err != nil {
		return err
	}
	var inner disk = d
	if n.cfg.wrapDisk != nil {
		inner = n.cfg.wrapDisk(d)
	}
	n.watch = &watchdog{disk: inner, limit: n.cfg.StallLimit, fail: n.fail}
	n.disk = n.watch
	var joined bool
	if n.member, joined, err = d.Member(); err != nil {
		return err
	}
	if !joined {
		if !n.cfg.born() {
			return fault.New(fault.Invalid, "NOT_A_MEMBER", "node %s has no part in group %s: let it join with a token of kind control", n.cfg.Node, n.cfg.Group)
		}
		n.member = Member{Server: n.cfg.Node}
	}
	n.snaps, err = openSnapshots(n.cfg.Dir, n.cfg.Group, newHclog(n.cfg.Logger), n.snapshotFailed)
	if err != nil {
		return err
	}
	snap, bad, err := n.snaps.verifyAll()
	if err != nil {
		return err
	}
	for _, b := range bad {
		n.cfg.Logger.Error("snapshot is unreadable", "err", b)
	}
	first, err := d.FirstIndex()
	if err != nil {
		return err
	}
	last, err := d.LastIndex()
	if err != nil {
		return err
	}
	_, voteErr := d.GetUint64(termKey)
	const rejoin = "wipe the directory and let this node rejoin under a new name, or restore a backup"
	switch {
	case first == 0 && snap == 0 && len(bad) > 0:
		return fmt.Errorf("no log entry and no readable snapshot is left (%w): %s", errors.Join(bad...), rejoin)
	case first > snap+1:
		return fmt.Errorf("the log begins at entry %d but the newest readable snapshot ends at %d: entries between are gone (%w): %s",
			first, snap, errors.Join(append(bad, ErrCorrupt)...), rejoin)
	case n.machine.Applied() > max(last, snap):
		return fmt.Errorf("the state has applied entry %d but the log ends at %d: the log was lost: %s", n.machine.Applied(), max(last, snap), rejoin)
	case voteErr != nil && voteErr.Error() != errNotFound.Error():
		return voteErr
	case voteErr != nil && snap > 0:
		// It could vote twice in one term.
		return fmt.Errorf("there is a snapshot at entry %d but no term: log and vote were lost: %s", snap, rejoin)
	case last > 0 && last < snap:
		// Stopped between installing a leader's snapshot and dropping the log
		// it covers; appending to that would leave a gap.
		return n.disk.DeleteRange(first, last)
	}
	return nil
}

// fail is the one way down: fence first, so that the others elect another
// leader even while a thread of this process hangs in a disk write.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.failErr = fmt.Errorf("group %s on %s: %w", n.cfg.Group, n.cfg.Node, err)
		if n.fence != nil {
			n.fence.raise()
		}
		n.turn.End()
		close(n.failed)
		n.halt()
		if n.cfg.OnFatal != nil {
			n.cfg.OnFatal(n.failErr)
		}
	})
}

func (n *Node) halt() { n.haltOnce.Do(func() { close(n.halted) }) }

func (n *Node) isHalted() bool {
	select {
	case <-n.halted:
		return true
	default:
		return false
	}
}

// Err is why the node failed, nil while it has not.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.failErr
	default:
		return nil
	}
}

// snapshotFailed hands leadership on: a leader that cannot write or read
// snapshots can never help a follower that has fallen behind.
func (n *Node) snapshotFailed(err error) {
	n.cfg.Logger.Error("snapshot failed its proof reading", "err", err)
	if r := n.raft; r != nil && r.State() == raft.Leader {
		r.LeadershipTransfer() // the outcome shows in the leadership, not here
	}
}

// Run follows the node's leadership until ctx ends (nil) or the node fails. It
// then hands leadership over, leaves the group's network and closes its files.
func (n *Node) Run(ctx context.Context) error {
	if !n.running.CompareAndSwap(false, true) {
		return fmt.Errorf("run group %s: it runs already", n.cfg.Group)
	}
	var wg sync.WaitGroup
	around, unlook := context.WithCancel(ctx)
	wg.Go(func() { n.lookAround(around) })
	barrier, stop := context.WithCancel(context.Background())
	tick := time.NewTicker(time.Second) // raft says nothing when it shuts itself down
	wg.Go(func() { n.probe(around) })
	var err error
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case <-n.failed:
			err = n.failErr
			break loop
		case lead := <-n.notify:
			stop()
			barrier, stop = context.WithCancel(context.Background())
			n.turn.End()
			if lead {
				wg.Go(func() { n.takeTurn(barrier) })
			} else {
				n.cfg.Logger.Info("leadership lost")
			}
		case <-n.leaders:
			n.turn.Moved()
		case <-tick.C:
			if n.raft.State() == raft.Shutdown {
				err = fmt.Errorf("group %s: %s was removed from it", n.cfg.Group, n.cfg.Node)
				break loop
			}
		}
	}
	stop()
	tick.Stop()
	unlook()
	if err == nil {
		n.handOver()
	}
	closeErr := n.Close()
	wg.Wait()
	if err == nil {
		err = closeErr
	}
	return err
}

// probe has a leader's idle group write an empty entry now and then, on its own disk and its followers'. The watchdog sees
// writes alone, and a leader whose disk hangs while nobody writes would lead on, by its heartbeats, until the first write
// finds it: within ProbeAfter, a tick and StallLimit (6.5 s by default) it is fenced. An entry rather than a write beside the
// log, since only what goes the whole way through raft shows that the way is open.
func (n *Node) probe(ctx context.Context) {
	tick := time.NewTicker(min(time.Second, n.cfg.ProbeAfter/2))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.halted:
			return
		case <-tick.C:
		}
		if n.raft.State() == raft.Leader && n.watch.quiet(n.cfg.ProbeAfter) {
			_ = n.barrier(ctx, n.cfg.ProbeAfter) // whether it commits is no matter: it is written here first
		}
	}
}

// barrier writes an empty entry and returns when all before it is applied here. It is no Machine's, so the count of what is
// done is moved here: reads wait for it.
func (n *Node) barrier(ctx context.Context, timeout time.Duration) error {
	f, err := n.await(ctx, func() raft.Future { return n.raft.Barrier(timeout) })
	if i, ok := f.(raft.IndexFuture); ok && err == nil {
		n.fsm.done.advance(i.Index())
	}
	return err
}

// takeTurn opens a turn of leadership once all that earlier leaders committed
// is applied here.
func (n *Node) takeTurn(ctx context.Context) {
	for ctx.Err() == nil {
		if n.barrier(ctx, time.Second) == nil {
			n.turn.Begin(ctx)
			n.cfg.Logger.Info("leadership gained", "term", n.raft.CurrentTerm())
			return
		}
		if n.raft.State() != raft.Leader {
			return
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// handOver spares the others an election when this node stops in good order.
func (n *Node) handOver() {
	n.turn.End()
	if n.raft.State() != raft.Leader || len(n.voters()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*n.cfg.Timing.Election)
	defer cancel()
	if _, err := n.await(ctx, n.raft.LeadershipTransfer); err != nil {
		n.cfg.Logger.Info("leadership not handed over", "err", err)
	}
}

// Close leaves the group at once. Run calls it.
func (n *Node) Close() error {
	var err error
	n.closeOnce.Do(func() {
		n.halt()
		n.turn.End()
		if n.fence != nil {
			n.fence.raise() // ends RPCs that would hold raft's shutdown for 10 s
		}
		down := make(chan error, 1)
		go func() { // outlives Close only when a disk write hangs, and then so does the process
			var errs []error
			if n.raft != nil {
				err := n.raft.Shutdown().Error()
				errs = append(errs, err)
				// The log says how far it is committed some writes late; a node that stops in order says it to the end, for a
				// backup of it. Past the watchdog, and best effort: it stops either way. A raft that has heard from nobody
				// since it began knows less than the log does.
				if was, read := n.disk.GetCommitIndex(); err == nil && read == nil && n.Err() == nil && n.raft.CommitIndex() > was {
					_ = n.watch.disk.SetUint64(commitKey, n.raft.CommitIndex())
				}
			}
			if t, ok := n.trans.(raft.WithClose); ok {
				errs = append(errs, t.Close())
			}
			if n.disk != nil {
				errs = append(errs, n.disk.Close())
			}
			down <- errors.Join(errs...)
		}()
		limit := 10 * time.Second
		if n.Err() != nil {
			limit = 200 * time.Millisecond // raft may be parked for ever
		}
		select {
		case err = <-down:
		case <-time.After(limit):
			if n.Err() == nil {
				err = fmt.Errorf("close group %s: raft does not stop within %s", n.cfg.Group, limit)
			}
		}
	})
	return err
}

// Stats is what an operator is shown of a node.
type Stats struct {
	State       string // leader, follower, candidate, shutdown
	Leader      string
	Term        uint64
	LastLog     uint64
	FirstLog    uint64
	Commit      uint64
	Applied     uint64
	Snapshot    uint64
	LastContact time.Duration // with the leader; 0 on the leader, -1 if never
	Peers       int
}

// Stats is cheap but not free: a read of the log file.
func (n *Node) Stats() Stats {
	s := Stats{State: "stopped", Applied: n.Applied(), LastContact: -1}
	if n.isHalted() {
		return s
	}
	raw := n.raft.Stats()
	s.State = map[raft.RaftState]string{raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate", raft.Shutdown: "shutdown"}[n.raft.State()]
	s.Leader, _ = n.Leader()
	s.Term, s.LastLog, s.Commit = n.raft.CurrentTerm(), n.raft.LastIndex(), n.raft.CommitIndex()
	s.Snapshot, _ = strconv.ParseUint(raw["last_snapshot_index"], 10, 64)
	s.Peers, _ = strconv.Atoi(raw["num_peers"])
	if first, err := n.disk.FirstIndex(); err == nil {
		s.FirstLog = first
	}
	if s.State == "leader" {
		s.LastContact = 0
	} else if at := n.raft.LastContact(); !at.IsZero() {
		s.LastContact = time.Since(at)
	}
	return s
}

// voters are the voting members as this node knows them, by name.
func (n *Node) voters() (names []string) {
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			names = append(names, string(s.Address))
		}
	}
	return names
}

// Applied is the log index this node has applied.
func (n *Node) Applied() uint64 { return n.fsm.visible.get() }

// WaitApplied returns once this node has applied the log index.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.wrapWait(n.fsm.visible.wait(ctx, index, n.halted), "wait for applied entries")
}

// pause waits, or not if ctx ends first.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
