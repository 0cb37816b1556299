// Package crew owns goroutines that are used again: each does one job at a time, waits a while for the next, and goes if none
// comes. A goroutine that has done a job before has a stack that is large enough for it.
//
// It knows nothing of the jobs, and bounds them by nothing: whoever gives them does. Nothing of it survives a crash.
package crew

import (
	"sync"
	"time"
)

// Crew does jobs, each on a goroutine of its own. Set the fields before the first; close it once no job comes any more. It may
// be used by all at once.
type Crew[J any] struct {
	Go   func(func()) // starts a goroutine that somebody waits for
	Work func(J)

	mu     sync.Mutex   // covers the rest
	idle   []*worker[J] // the last to have worked first to work again
	least  int          // how few were idle since the last sweep: so many are not needed
	swept  bool         // a sweep is due
	closed bool
}

const sweepEvery = 5 * time.Second

// worker does one job at a time.
type worker[J any] struct{ jobs chan J }

// Do has a job done. It does not wait.
func (c *Crew[J]) Do(j J) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		w := c.idle[n-1]
		c.idle[n-1], c.idle = nil, c.idle[:n-1]
		c.least = min(c.least, n-1)
		c.mu.Unlock()
		w.jobs <- j
		return
	}
	c.mu.Unlock()
	w := &worker[J]{make(chan J, 1)}
	w.jobs <- j
	c.Go(func() { c.run(w) })
}

func (c *Crew[J]) run(w *worker[J]) {
	for j := range w.jobs {
		c.Work(j)
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return
		}
		c.idle = append(c.idle, w)
		if !c.swept {
			c.swept, c.least = true, len(c.idle)
			time.AfterFunc(sweepEvery, c.sweep)
		}
		c.mu.Unlock()
	}
}

// sweep lets those go that nobody needed since the last one.
func (c *Crew[J]) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(c.least, len(c.idle))
	for _, w := range c.idle[:n] {
		close(w.jobs)
	}
	c.idle = append(c.idle[:0], c.idle[n:]...)
	clear(c.idle[len(c.idle):cap(c.idle)])
	c.least = len(c.idle)
	if c.swept = !c.closed && len(c.idle) > 0; c.swept {
		time.AfterFunc(sweepEvery, c.sweep)
	}
}

// Close lets all goroutines go that do nothing. Those that do follow when they are done.
func (c *Crew[J]) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, w := range c.idle {
		close(w.jobs)
	}
	c.idle = nil
}
