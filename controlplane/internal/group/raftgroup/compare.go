package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// Nodes must hold one state at one revision. A Store hashes its state at every
// CheckEvery-th revision, beside its work; with each look around a node compares
// its hashes with the others', and one that a majority of all voters contradicts
// condemns itself: its memory or its program is not sound. Nobody is stopped by
// another's word, and where no majority agrees nobody is.

// Checkpoint is the hash of a state.
type Checkpoint struct {
	Epoch, Index uint64
	Sum          [32]byte
}

// ReasonDiffers is of a node that condemned itself; kind Internal.
const ReasonDiffers = "STATE_DIFFERS"

const (
	keptCheckpoints = 8
	condemnedMark   = "condemned" // in a group's directory: the node does not come back on it
)

// checks are what a Store has hashed and has yet to hash.
type checks struct {
	every  uint64        // revisions between two; 0: never
	signal chan struct{} // one waits; buffered

	mu   sync.Mutex // covers the rest; never held while hashing
	next func() Checkpoint
	done []Checkpoint // oldest first
}

// offer takes a state to be hashed; only the newest waits.
func (c *checks) offer(hash func() Checkpoint) {
	c.mu.Lock()
	c.next = hash
	c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

func (c *checks) take() func() Checkpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.next
	c.next = nil
	return next
}

// run hashes what is offered until ctx ends.
func (c *checks) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.signal:
		}
		hash := c.take()
		if hash == nil {
			continue
		}
		made := hash()
		c.mu.Lock()
		if c.done = append(c.done, made); len(c.done) > keptCheckpoints {
			c.done = c.done[1:]
		}
		c.mu.Unlock()
	}
}

func (c *checks) newest() []Checkpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Checkpoint(nil), c.done...)
}

// contradicted is the checkpoint of this node's that a majority of the voters has otherwise, and alike.
func contradicted(mine []Checkpoint, others map[string]Status, voters []string, self string) (Checkpoint, bool) {
	for _, c := range mine {
		said := map[[32]byte]int{}
		for _, v := range voters {
			if v == self {
				continue
			}
			for _, o := range others[v].Checkpoints {
				if o.Epoch == c.Epoch && o.Index == c.Index {
					said[o.Sum]++
					break
				}
			}
		}
		for sum, n := range said {
			if sum != c.Sum && 2*n > len(voters) {
				return c, true
			}
		}
	}
	return Checkpoint{}, false
}

// compare condemns this node if its state is not the group's.
func (n *Node) compare(around map[string]Status) {
	m, ok := n.machine.(*memory)
	if !ok {
		return
	}
	c, wrong := contradicted(m.checks.newest(), around, n.voters(), n.cfg.Node)
	if !wrong {
		return
	}
	err := errCondemned(fmt.Sprintf("%d.%d", c.Epoch, c.Index))
	// Marked first: fail may end the process.
	marked := durable.WriteFileAtomic(durable.OS(), filepath.Join(n.cfg.Dir, condemnedMark), fmt.Appendf(nil, "%d.%d", c.Epoch, c.Index), durable.FilePerm)
	n.fail(errors.Join(err, marked))
}

func errCondemned(at string) error {
	return fault.New(fault.Internal, ReasonDiffers, "the state of this node differs from that of the majority of its group, found at revision %s: "+
		"its memory, its disk or its program is not sound: let the node join anew (bailiwick-control join); the others have everything", at)
}

// condemned refuses a directory on which a node has condemned itself.
func (c Config) condemned() error {
	at, err := durable.ReadFile(durable.OS(), filepath.Join(c.Dir, condemnedMark), 64)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errCondemned(string(at))
}
