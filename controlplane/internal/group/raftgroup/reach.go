package raftgroup

import (
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// unreachedEvery is how often who waits for a member looks whether it is still to wait.
const unreachedEvery = time.Second

var errUnreached = errors.New("this node does not wait for that member any more: it leads no longer, or the member was removed")

// sender is what raft asks of the transport below.
type sender interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// reach is the transport that raft sees. raft sends entries to a member that does not answer after ever longer pauses, up to
// 10.24 s (v1.8.0, replication.go), and nothing shortens one: a member that comes back after ten seconds hears its leader's
// heartbeats at once and its first entry up to ten seconds later. Until then it answers no read, and counts for no quorum:
// whoever restarts the nodes one by one could take the second away before the first was one again.
//
// So entries for a member that failed to answer wait here, and not in raft, until a heartbeat to it succeeds; raft pauses half
// the heartbeat timeout at most between those. Waiting ends when the node leads no longer in the term of the call, when the
// member is no longer one, and when the node halts. It is safe for concurrent use.
type reach struct {
	sender
	halted <-chan struct{}
	raft   atomic.Pointer[raft.Raft] // nil until it is made: nobody waits before

	mu   sync.Mutex
	lost map[raft.ServerID]chan struct{} // who did not answer; closed when it does
}

func newReach(s sender, halted <-chan struct{}) *reach {
	return &reach{sender: s, halted: halted, lost: make(map[raft.ServerID]chan struct{})}
}

// AppendEntries is part of raft.Transport.
func (r *reach) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	beat := heartbeat(args)
	if !beat {
		if err := r.wait(id, args.Term); err != nil {
			return err
		}
	}
	err := r.sender.AppendEntries(id, to, args, resp)
	r.heard(id, beat, err)
	return err
}

// InstallSnapshot is part of raft.Transport.
func (r *reach) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := r.wait(id, args.Term); err != nil {
		return err
	}
	err := r.sender.InstallSnapshot(id, to, args, resp, data)
	r.heard(id, false, err)
	return err
}

// heartbeat tells a heartbeat from entries by what raft leaves out of it.
func heartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// heard notes how a call ended. Entries that fail close the way too: heartbeats come ten times in a heartbeat timeout, and the
// next one that succeeds opens it.
func (r *reach) heard(id raft.ServerID, beat bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	way, lost := r.lost[id]
	switch {
	case err != nil && !lost && r.member(id):
		r.lost[id] = make(chan struct{})
	case err == nil && lost && beat:
		close(way)
		delete(r.lost, id)
	}
}

// wait returns nil when id may be sent to.
func (r *reach) wait(id raft.ServerID, term uint64) error {
	for {
		r.mu.Lock()
		way, lost := r.lost[id]
		r.mu.Unlock()
		if !lost {
			return nil
		}
		if !r.wanted(id, term) {
			return errUnreached
		}
		look := time.NewTimer(unreachedEvery)
		select {
		case <-way:
		case <-look.C:
		case <-r.halted:
			look.Stop()
			return errUnreached
		}
		look.Stop()
	}
}

// wanted says whether this node still leads in term, and id is a member; and forgets who is none.
func (r *reach) wanted(id raft.ServerID, term uint64) bool {
	if !r.member(id) {
		r.mu.Lock()
		delete(r.lost, id)
		r.mu.Unlock()
		return false
	}
	n := r.raft.Load()
	return n.State() == raft.Leader && n.CurrentTerm() == term
}

func (r *reach) member(id raft.ServerID) bool {
	n := r.raft.Load()
	return n != nil && slices.ContainsFunc(n.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return s.ID == id })
}
