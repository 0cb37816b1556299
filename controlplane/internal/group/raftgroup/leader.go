package raftgroup

import (
	"context"
	"sync"
)

// turn is the present turn of leadership, if this node has one, and the news
// that the group's leader may be another.
type turn struct {
	// mu covers all fields; it is never held across a call out.
	mu     sync.Mutex
	count  uint64          // turns begun so far
	ctx    context.Context // of the present turn, nil if none
	cancel context.CancelFunc
	news   chan struct{} // closed and replaced whenever something here changed
}

func (t *turn) init() { t.news = make(chan struct{}) }

func (t *turn) tell() {
	close(t.news)
	t.news = make(chan struct{})
}

// begin opens a turn unless its barrier's ctx ended meanwhile.
func (t *turn) begin(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	t.count++
	t.ctx, t.cancel = context.WithCancel(ctx)
	t.tell()
}

func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx != nil {
		t.cancel()
		t.ctx = nil
	}
	t.tell()
}

func (t *turn) leaderMoved() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
}

func (t *turn) look() (ctx context.Context, count uint64, news <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ctx, t.count, t.news
}

// Leader is the last leader this node knows of, "" if none, and whether it is
// this node.
func (n *Node) Leader() (name string, self bool) {
	if n.isHalted() {
		return "", false
	}
	at, _ := n.raft.LeaderWithID() // its address is its name; its id changes when it is replaced
	return string(at), string(at) == n.cfg.Node
}

// RunLeader is group.Store's.
func (n *Node) RunLeader(ctx context.Context, work func(ctx context.Context)) error {
	var served uint64
	for {
		turn, count, news := n.turn.look()
		if turn != nil && count > served && turn.Err() == nil {
			served = count
			wctx, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(turn, cancel)
			work(wctx)
			stop()
			cancel()
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		case <-n.halted:
			if err := n.Err(); err != nil {
				return err
			}
			return errStopped
		}
	}
}
