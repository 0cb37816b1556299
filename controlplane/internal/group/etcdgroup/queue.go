package etcdgroup

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// maxQueued is how many transactions may be under way at a node; the next waits for one to end.
const maxQueued = 4096

// queue holds the transactions that this node is to commit, in order of arrival.
type queue struct {
	places chan struct{}
	signal chan struct{} // buffered

	mu   sync.Mutex // covers wait
	wait []*request
}

func (q *queue) init() {
	q.places = make(chan struct{}, maxQueued)
	q.signal = make(chan struct{}, 1)
}

// add copies t: its caller may go away while it is under way.
func (q *queue) add(ctx context.Context, halted <-chan struct{}, t group.Txn, epoch uint64) (*request, error) {
	select {
	case <-halted:
		return nil, replica.ErrStopped
	default:
	}
	select {
	case q.places <- struct{}{}:
	case <-halted:
		return nil, replica.ErrStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r := &request{txn: t, epoch: epoch, done: make(chan struct{})}
	r.txn.Compares = slices.Clone(t.Compares)
	r.txn.Ops = slices.Clone(t.Ops)
	for i := range r.txn.Ops {
		r.txn.Ops[i].Value = slices.Clone(r.txn.Ops[i].Value)
	}
	if t.RequestID == "" {
		r.txn.RequestID, r.drawn = rand.Text(), true
	}
	q.mu.Lock()
	q.wait = append(q.wait, r)
	q.mu.Unlock()
	select {
	case q.signal <- struct{}{}:
	default:
	}
	return r, nil
}

func (q *queue) leave() { <-q.places }

func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.wait
	q.wait = nil
	return w
}

type standing int

const (
	queued    standing = iota
	maybe              // an attempt is under way or its outcome is not known
	answered           // done is closed, or about to be
	abandoned          // its caller has left
)

// request is one transaction under way.
type request struct {
	txn   group.Txn
	epoch uint64 // in which its caller read what it compares; 0: none was known
	drawn bool   // its id is this node's own: nobody asks for it again
	done  chan struct{}

	result group.Result // set before done closes
	err    error

	mu sync.Mutex // covers standing
	at standing
}

// failed is the first compare that does not hold, -1 if all do. One that names an index of another epoch does not: etcd was
// set back meanwhile, and gives the indexes of what is gone to other writes.
func (r *request) failed(st *replica.State) int {
	failed := st.Failed(r.txn.Compares)
	if r.epoch == 0 || r.epoch == st.Rev.Epoch {
		return failed
	}
	i := slices.IndexFunc(r.txn.Compares, func(c group.Compare) bool { return !c.Exists && c.ModIndex != 0 })
	if i >= 0 && (failed < 0 || i < failed) {
		return i
	}
	return failed
}

// giveUp says where it stood when its caller left.
func (r *request) giveUp() standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.at
	if at != answered {
		r.at = abandoned
	}
	return at
}

// begin is false if the caller has left. After an attempt that certainly did nothing, undo makes it queued again.
func (r *request) begin() bool { return r.move(maybe) }
func (r *request) undo() bool  { return r.move(queued) }

func (r *request) move(to standing) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == abandoned || r.at == answered {
		return false
	}
	r.at = to
	return true
}

func (r *request) answer(res group.Result, err error) {
	if r.move(answered) {
		r.result, r.err = res, err
		close(r.done)
	}
}
