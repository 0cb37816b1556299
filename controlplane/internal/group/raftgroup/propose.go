package raftgroup

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
	"bailiwick/shared/fault"
)

// attemptLimit bounds one attempt at one leader: a leader whose process is
// paused accepts and never answers. A change of leader ends an attempt sooner.
const attemptLimit = 5 * time.Second

// await makes a raft future and waits for it no longer than ctx: raft's own know
// no context, and neither making nor waiting ends once its main loop is parked.
func (n *Node) await(ctx context.Context, call func() raft.Future) (raft.Future, error) {
	var f raft.Future
	done := make(chan error, 1)
	go func() { // ends with the future, at the latest at raft's shutdown
		f = call()
		done <- f.Error()
	}()
	select {
	case err := <-done:
		return f, err
	case <-n.failed:
		return nil, n.failErr
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func notLeader(group_ string) error {
	return fault.New(fault.Unavailable, group.ReasonNotLeader, "this node does not lead group %s", group_)
}

func unknownOutcome(name string, err error) error {
	return fault.New(fault.Unavailable, group.ReasonOutcomeUnknown,
		"change group %s: the outcome is unknown, retry with the same request id: %w", name, err)
}

// HandlePropose is the door for a forwarded Propose: it commits cmd if this node
// leads, and never forwards.
func (n *Node) HandlePropose(ctx context.Context, cmd []byte) ([]byte, error) {
	if n.isHalted() {
		return nil, replica.ErrStopped
	}
	if err := n.gate(cmd); err != nil {
		return nil, err
	}
	if c, ok := n.machine.(Checker); ok {
		if err := c.Check(cmd); err != nil {
			return nil, err
		}
	}
	if n.raft.State() != raft.Leader {
		return nil, notLeader(n.cfg.Group)
	}
	return n.submit(ctx, cmd)
}

// HandleReadIndex is the door for a forwarded ReadIndex.
//
// The order is the maintainers' (raft#603): the commit index first, then the
// proof of leadership. The other way round, a write committed by a newer leader
// between the two would be missed.
func (n *Node) HandleReadIndex(ctx context.Context) (uint64, error) {
	for {
		if n.isHalted() {
			return 0, replica.ErrStopped
		}
		turn, _, news := n.turn.Look()
		if turn != nil {
			break
		}
		if n.raft.State() != raft.Leader {
			return 0, notLeader(n.cfg.Group)
		}
		select { // elected, barrier under way
		case <-news:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, n.wrapWait(ctx.Err(), "wait for the new leader's barrier")
		}
	}
	commit := n.raft.CommitIndex()
	if err := n.VerifyLeader(ctx); err != nil {
		return 0, err
	}
	if err := n.fsm.done.wait(ctx, commit, n.halted); err != nil {
		return 0, n.wrapWait(err, "wait for committed entries")
	}
	// Not commit: the leader's own barrier is invisible to a follower's Machine.
	return n.fsm.visible.get(), nil
}

// VerifyLeader is group.Store's.
func (n *Node) VerifyLeader(ctx context.Context) error {
	if n.isHalted() {
		return replica.ErrStopped
	}
	if n.raft.State() != raft.Leader {
		return notLeader(n.cfg.Group)
	}
	switch _, err := n.await(ctx, n.raft.VerifyLeader); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return n.wrapWait(err, "verify leadership")
	default:
		return notLeader(n.cfg.Group)
	}
}

// Propose commits cmd through the leader, wherever it is, and returns the
// Machine's result. It retries, with the same bytes, until ctx ends, also when
// an attempt's outcome is unknown: see Machine.Apply.
func (n *Node) Propose(ctx context.Context, cmd []byte) ([]byte, error) {
	return atLeader(ctx, n, "change", func(ctx context.Context) ([]byte, error) { return n.HandlePropose(ctx, cmd) },
		func(ctx context.Context, leader string) ([]byte, error) {
			return n.cfg.Forward.Propose(ctx, leader, n.cfg.Group, cmd)
		})
}

// ReadIndex is the log index that a read begun now must see applied, confirmed
// by the leader and a quorum after the call began.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) {
	return atLeader(ctx, n, "read", n.HandleReadIndex,
		func(ctx context.Context, leader string) (uint64, error) {
			return n.cfg.Forward.ReadIndex(ctx, leader, n.cfg.Group)
		})
}

// atLeader calls here or there, whichever leads, until one answers for good.
func atLeader[T any](ctx context.Context, n *Node, verb string, here func(context.Context) (T, error), there func(context.Context, string) (T, error)) (T, error) {
	var zero T
	var unknown, last error // unknown: some attempt may have taken effect
	for backoff := 5 * time.Millisecond; ; backoff = min(2*backoff, 250*time.Millisecond) {
		if n.isHalted() {
			return zero, orUnknown(n.cfg.Group, unknown, replica.ErrStopped)
		}
		leader, self := n.Leader()
		_, _, news := n.turn.Look()
		if leader != "" {
			actx, cancel := context.WithTimeout(ctx, attemptLimit)
			var out T
			var err error
			if self {
				out, err = here(actx)
			} else {
				release := n.cancelWhenMoved(actx, cancel, leader)
				out, err = there(actx, leader)
				release()
			}
			cancel()
			if err == nil {
				return out, nil
			}
			last = err
			switch fault.KindOf(err) {
			case fault.Unavailable, fault.Internal, fault.Exhausted:
			default:
				return zero, err
			}
			switch fault.ReasonOf(err) {
			case group.ReasonNotLeader, group.ReasonNoLeader, group.ReasonStopped, group.ReasonBusy:
			default:
				unknown = err
			}
		}
		// News of the leader ends the wait early, jitter keeps a herd apart.
		wait := time.NewTimer(backoff/2 + rand.N(backoff/2+1))
		select {
		case <-wait.C:
		case <-news:
		case <-n.halted:
		case <-ctx.Done():
		}
		wait.Stop()
		if ctx.Err() != nil {
			if verb == "read" {
				unknown = nil // a read leaves nothing behind
			}
			if last == nil {
				last = ctx.Err()
			}
			return zero, orUnknown(n.cfg.Group, unknown, fault.New(fault.Unavailable, group.ReasonNoLeader,
				"%s group %s: no leader answers: %w", verb, n.cfg.Group, last))
		}
	}
}

func orUnknown(name string, unknown, err error) error {
	switch {
	case unknown == nil:
		return err
	case fault.ReasonOf(unknown) == group.ReasonOutcomeUnknown:
		return unknown
	}
	return unknownOutcome(name, unknown)
}

// cancelWhenMoved ends an attempt at a leader that is no longer the leader this
// node knows of. release waits for the watcher, so that none is left behind.
func (n *Node) cancelWhenMoved(ctx context.Context, cancel context.CancelFunc, leader string) (release func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, _, news := n.turn.Look()
			if now, _ := n.Leader(); now != "" && now != leader {
				cancel()
				return
			}
			select {
			case <-news:
			case <-n.halted:
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (n *Node) wrapWait(err error, what string) error {
	if err == nil || err == replica.ErrStopped {
		return err
	}
	return fault.New(fault.Unavailable, group.ReasonNoLeader, "%s in group %s: %w", what, n.cfg.Group, err)
}
