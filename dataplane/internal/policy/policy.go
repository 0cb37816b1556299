// Package policy owns what an edge knows: one immutable Table of APIs, plans, keys, pairs and directory
// rows, and the Holder through which everybody reads the current one.
//
// It never talks to the network or the disk (package subscribe fills and persists it), never reads a clock,
// and decides nothing: it answers lookups. Nothing of it survives a crash by itself. A Table never changes
// after it was made, so any number of goroutines may read it and what it returns; nobody may write to a
// value that came out of it. A request loads the table once and uses that one to its end, so that exactly
// one version decides it (invariant 28). Lookups do not allocate.
package policy

import (
	"sync"
	"sync/atomic"
)

// Holder holds the table in force. The zero Holder holds none. All methods may be called at once.
type Holder struct {
	current atomic.Pointer[Table]

	mu       sync.Mutex // covers the rest, and orders Swaps: readers of the table never take it
	changed  chan struct{}
	watchers []func()
}

// Load is the table in force; nil until there is one, and again after a withdrawal.
func (h *Holder) Load() *Table { return h.current.Load() }

// Swap puts t in force (nil: nothing is served), lets watchers look, and tells everybody who waits on Changed.
func (h *Holder) Swap(t *Table) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Store(t)
	for _, look := range h.watchers {
		look()
	}
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Watch has look called at every Swap, with that table in force and before the next one is: who must have seen each of them
// misses none, however soon another follows. It may Load, and nothing else of this Holder.
func (h *Holder) Watch(look func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers = append(h.watchers, look)
}

// Changed closes at the next Swap. Take the channel first, then Load: in that order no change is missed.
func (h *Holder) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}
