package replica

import (
	"context"
	"sync"
)

// Turn is the present turn of leadership, if this node has one, and the news
// that the group's leader may be another. NewTurn makes one.
type Turn struct {
	// mu covers all fields; it is never held across a call out.
	mu     sync.Mutex
	count  uint64          // turns begun so far
	ctx    context.Context // of the present turn, nil if none
	cancel context.CancelFunc
	news   chan struct{} // closed and replaced whenever something here changed
}

// NewTurn is a node that does not lead.
func NewTurn() *Turn { return &Turn{news: make(chan struct{})} }

func (t *Turn) tell() {
	close(t.news)
	t.news = make(chan struct{})
}

// Begin opens a turn unless ctx, with which it ends, ended meanwhile.
func (t *Turn) Begin(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	t.count++
	t.ctx, t.cancel = context.WithCancel(ctx)
	t.tell()
}

// End ends the present turn, if there is one.
func (t *Turn) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx != nil {
		t.cancel()
		t.ctx = nil
	}
	t.tell()
}

// Moved tells those who wait that the leader may be another.
func (t *Turn) Moved() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
}

// Look is the present turn, nil if this node has none, how many it has had, and
// a channel closed at the next news.
func (t *Turn) Look() (ctx context.Context, count uint64, news <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ctx, t.count, t.news
}

// Serve calls work once a turn until ctx ends (nil) or the node halts, when it
// returns what err says, or ErrStopped.
func (t *Turn) Serve(ctx context.Context, halted <-chan struct{}, err func() error, work func(context.Context)) error {
	var served uint64
	for {
		turn, count, news := t.Look()
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
		case <-halted:
			if err := err(); err != nil {
				return err
			}
			return ErrStopped
		}
	}
}
