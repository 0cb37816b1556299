package replica

import (
	"context"
	"slices"
	"strings"
	"sync"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// revEvents is what one transaction changed.
type revEvents struct {
	rev    group.Revision
	events []group.Event
}

// History is the window of recent events. Watches read from it by index instead
// of being sent to: a slow one costs nothing and learns that it fell out.
type History struct {
	name   string
	window int

	// mu covers all below; it is held for slice arithmetic only.
	mu    sync.Mutex
	revs  []revEvents // contiguous: revs[i].rev.Index == revs[0].rev.Index + i
	count int         // events in revs
	last  group.Revision
	turns int           // resets so far
	grown chan struct{} // closed and replaced at each change
}

// NewHistory remembers at most window events.
func NewHistory(name string, window int) *History {
	return &History{name: name, window: window, grown: make(chan struct{})}
}

func (h *History) tell() {
	close(h.grown)
	h.grown = make(chan struct{})
}

// Add appends the next revision.
func (h *History) Add(rev group.Revision, events []group.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revs = append(h.revs, revEvents{rev, events})
	h.count += len(events)
	h.last = rev
	// Whole revisions go, and never the newest. append moves the slice along
	// and the collector takes what is before it; references are cleared so that
	// it takes the values now.
	for h.count > h.window && len(h.revs) > 1 {
		h.count -= len(h.revs[0].events)
		h.revs[0] = revEvents{}
		h.revs = h.revs[1:]
	}
	h.tell()
}

// Reset forgets everything up to and including rev.
func (h *History) Reset(rev group.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revs, h.count, h.last = nil, 0, rev
	h.turns++
	h.tell()
}

func (h *History) first() uint64 {
	if len(h.revs) > 0 {
		return h.revs[0].rev.Index
	}
	return h.last.Index + 1
}

// from is what is remembered from index on, a bounded part at a time and of one
// epoch, and the channel that tells of more. turns is what the caller has seen.
func (h *History) from(index uint64, turns int) ([]revEvents, <-chan struct{}, error) {
	const part = 1024
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.first()
	if index < first || turns != h.turns { // or a restore rewrote what the caller has seen
		return nil, nil, group.ErrCompacted(h.name, index, first)
	}
	if i := index - first; i < uint64(len(h.revs)) {
		// A copy, because Add clears what leaves the window.
		out := slices.Clone(h.revs[i:min(i+part, uint64(len(h.revs)))])
		other := func(r revEvents) bool { return r.rev.Epoch != out[0].rev.Epoch }
		if n := slices.IndexFunc(out, other); n > 0 {
			out = out[:n]
		}
		return out, nil, nil
	}
	return nil, h.grown, nil
}

type watch struct {
	hist   *History
	prefix string
	next   uint64
	turns  int
	halted <-chan struct{}

	once   sync.Once
	closed chan struct{}
}

// Watch is group.Store's; it ends when the node halts.
func (h *History) Watch(from uint64, prefix string, halted <-chan struct{}) (group.Watch, error) {
	from = max(from, 1)
	h.mu.Lock()
	turns := h.turns
	h.mu.Unlock()
	if _, _, err := h.from(from, turns); err != nil {
		return nil, err
	}
	return &watch{hist: h, prefix: prefix, next: from, turns: turns, halted: halted, closed: make(chan struct{})}, nil
}

// Close is part of group.Watch.
func (w *watch) Close() { w.once.Do(func() { close(w.closed) }) }

// Next is part of group.Watch.
func (w *watch) Next(ctx context.Context) ([]group.Event, group.Revision, error) {
	var zero group.Revision
	for {
		select {
		case <-w.closed:
			return nil, zero, fault.New(fault.Unavailable, group.ReasonClosed, "watch %s: it is closed", w.hist.name)
		default:
		}
		revs, grown, err := w.hist.from(w.next, w.turns)
		if err != nil {
			return nil, zero, err
		}
		var events []group.Event
		var rev group.Revision
		for _, r := range revs {
			for _, e := range r.events {
				if strings.HasPrefix(e.KV.Key, w.prefix) {
					events = append(events, e)
				}
			}
			rev = r.rev
			w.next = rev.Index + 1
		}
		if len(events) > 0 {
			return events, rev, nil
		}
		if grown == nil {
			continue // nothing for this prefix so far: look further
		}
		select {
		case <-grown:
		case <-w.closed:
		case <-w.halted:
			return nil, zero, ErrStopped
		case <-ctx.Done():
			return nil, zero, ctx.Err()
		}
	}
}

// WaitFor returns once index is applied, or the node halts, or ctx ends.
func (h *History) WaitFor(ctx context.Context, index uint64, halted <-chan struct{}) error {
	for {
		h.mu.Lock()
		at, grown := h.last.Index, h.grown
		h.mu.Unlock()
		if at >= index {
			return nil
		}
		select {
		case <-grown:
		case <-halted:
			return ErrStopped
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "NOT_APPLIED", "wait for index %d of group %s, this node has applied %d: %w", index, h.name, at, ctx.Err())
		}
	}
}
