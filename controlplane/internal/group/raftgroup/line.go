package raftgroup

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Batcher is an optional part of a Machine: what stands in line while an entry is on its way goes into
// the log as one command, each part of which is applied in order and answered alone. With an entry for each, 64 writers
// made as many fsyncs of as few commands as raft's loop happened to find ready, three nodes each. Called from any goroutine.
type Batcher interface {
	Versioned
	// Batch makes one command of several, each of which Check has passed.
	Batch(cmds [][]byte) []byte
	// Results is what Apply answered to a batch, one for each part.
	Results(out []byte) ([][]byte, error)
}

// The line of proposals. lineLimit refuses what a hung leader would otherwise pile up until it is fenced; the next two bound
// an entry, which a follower takes whole. Of batches one is under way at a time: whoever comes meanwhile is the next, so the
// slower the disks the larger it is. What goes one by one (a Machine without batches, a group of two releases) has as many
// under way as raft puts into one request.
const (
	lineLimit  = 8192
	batchLimit = 256
	batchBytes = 1 << 20
	oneByOne   = 64

	// gather is how long a batch waits for those whom the batch before it answered, where they were several: without it
	// the first to come back leaves alone, and all others wait for its two fsyncs. A single writer never waits.
	gather = 100 * time.Microsecond
)

// proposal is a command that stands in line, and who waits for its outcome.
type proposal struct {
	cmd  []byte
	gone atomic.Bool  // nobody waits any more: it need not be proposed
	done chan outcome // buffered: whoever carries it waits for nobody
}

type outcome struct {
	out []byte
	err error
}

// line is what waits to be proposed at this node.
type line struct {
	mu       sync.Mutex // covers the rest
	waiting  []*proposal
	carriers int
}

func (l *line) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting)
}

// join puts p at the end and says whether one more carrier is wanted.
func (l *line) join(p *proposal, most int) (carry bool, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= lineLimit {
		return false, false
	}
	l.waiting = append(l.waiting, p)
	if l.carriers < most {
		l.carriers++
		return true, true
	}
	return false, true
}

// take is the head of the line, up to limit proposals of which somebody waits; none ends the carrier that asks.
func (l *line) take(limit, most int) (batch []*proposal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size, i := 0, 0
	for ; i < len(l.waiting) && len(batch) < limit && l.carriers <= most; i++ {
		p := l.waiting[i]
		if p.gone.Load() {
			continue
		}
		if size += len(p.cmd); len(batch) > 0 && size > batchBytes {
			break
		}
		batch = append(batch, p)
	}
	clear(l.waiting[:i])
	if l.waiting = l.waiting[i:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	if len(batch) == 0 {
		l.carriers--
	}
	return batch
}

// batches says whether all members know a batch (b is nil if not), how many proposals an entry takes and how many entries
// are under way at most.
func (n *Node) batches() (b Batcher, limit, most int) {
	b, ok := n.machine.(Batcher)
	if !ok || n.gate(b.Batch(nil)) != nil {
		return nil, 1, oneByOne
	}
	return b, batchLimit, 1
}

// submit proposes cmd at this node, in line with others, and waits for its outcome no longer than ctx.
func (n *Node) submit(ctx context.Context, cmd []byte) ([]byte, error) {
	p := &proposal{cmd: cmd, done: make(chan outcome, 1)}
	_, _, most := n.batches()
	carry, ok := n.line.join(p, most)
	if !ok {
		return nil, fault.New(fault.Unavailable, group.ReasonBusy, "change group %s: %d changes wait at its leader already: try again in a moment", n.cfg.Group, lineLimit)
	}
	if carry {
		go n.carry() // ends with the line, at the latest with raft's shutdown
	}
	select {
	case o := <-p.done:
		return o.out, o.err
	case <-n.failed:
		return nil, unknownOutcome(n.cfg.Group, n.failErr)
	case <-ctx.Done():
		p.gone.Store(true)
		return nil, unknownOutcome(n.cfg.Group, ctx.Err())
	}
}

// carry proposes what stands in line until nothing does.
func (n *Node) carry() {
	answered := 0
	for {
		b, limit, most := n.batches()
		if b != nil && answered > 1 && n.line.len() < answered {
			time.Sleep(gather)
		}
		batch := n.line.take(limit, most)
		if len(batch) == 0 {
			return
		}
		for i, o := range n.commit(b, batch) {
			batch[i].done <- o
		}
		answered = len(batch)
	}
}

// commit makes one entry of what it is given.
func (n *Node) commit(b Batcher, batch []*proposal) []outcome {
	outcomes := make([]outcome, len(batch))
	all := func(err error) []outcome {
		for i := range outcomes {
			outcomes[i].err = err
		}
		return outcomes
	}
	cmd := batch[0].cmd
	if len(batch) > 1 {
		cmds := make([][]byte, len(batch))
		for i, p := range batch {
			cmds[i] = p.cmd
		}
		cmd = b.Batch(cmds)
	}
	f := n.raft.Apply(seal(time.Now(), cmd), time.Second)
	switch err := f.Error(); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return all(notLeader(n.cfg.Group))
	default:
		return all(unknownOutcome(n.cfg.Group, err))
	}
	a, ok := f.Response().(applied)
	if !ok {
		return all(unknownOutcome(n.cfg.Group, errors.New("raft returned no result")))
	}
	if a.err != nil {
		return all(unknownOutcome(n.cfg.Group, a.err))
	}
	if len(batch) == 1 {
		outcomes[0].out = a.out
		return outcomes
	}
	outs, err := b.Results(a.out)
	if err != nil || len(outs) != len(batch) {
		return all(unknownOutcome(n.cfg.Group, errors.Join(errors.New("a batch's results are malformed"), err)))
	}
	for i, out := range outs {
		outcomes[i].out = out
	}
	return outcomes
}
