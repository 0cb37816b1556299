package syncserver

import (
	"context"
	"slices"
	"time"
)

// What is told to the streams at once is a step. Changes that come meanwhile wait for its end: while a thousand edges are being
// sent one, an edge that has answered would else be sent the next before its neighbours had this one, and each edge's way would
// be its own.
const (
	stepStream = 50 * time.Microsecond // a step's least for each stream: some of what it takes to send it an update
	stepLeast  = 100 * time.Millisecond
	waitStream = 250 * time.Microsecond // its most for each stream
	stepMost   = 500 * time.Millisecond
	stragglers = 16 // of so many streams one is not waited for
)

// pacer counts the streams that a step waits for. Covered by Server.mu.
type pacer struct {
	busy  int
	steps []*step // that wait
}

type step struct {
	enough int           // it ends when no more are busy
	ends   chan struct{} // closed then
}

// begin is a step that ends when no more than so many are busy.
func (p *pacer) begin(enough int) *step {
	st := &step{enough, make(chan struct{})}
	p.steps = append(p.steps, st)
	p.end()
	return st
}

// end ends the steps that can.
func (p *pacer) end() {
	p.steps = slices.DeleteFunc(p.steps, func(st *step) bool {
		if p.busy > st.enough {
			return false
		}
		close(st.ends)
		return true
	})
}

func (p *pacer) drop(st *step) {
	p.steps = slices.DeleteFunc(p.steps, func(x *step) bool { return x == st })
}

// tally counts a stream anew: it is busy from when it is told of something until its edge has answered. Caller holds Server.mu.
func (c *conn) tally() {
	busy := (c.due || c.inflight) && !c.slow
	if busy == c.busy {
		return
	}
	if c.busy = busy; busy {
		c.pace.busy++
		return
	}
	c.pace.busy--
	c.pace.end()
}

// pace ends a step that has begun: once nearly all edges have answered what they were told, within bounds that go with their
// number, so that a node of twenty edges waits milliseconds. An edge that has not answered by then is not waited for again
// until it has, and holds up nobody twice.
func (s *Server) pace(ctx context.Context) error {
	streams := s.stats.Streams.Load()
	if streams == 0 {
		return nil
	}
	least, most := min(time.Duration(streams)*stepStream, stepLeast), min(time.Duration(streams)*waitStream, stepMost)
	t := time.NewTimer(least)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	st := s.pacing.begin(int(streams / stragglers))
	s.mu.Unlock()
	t.Reset(most - least)
	select {
	case <-st.ends:
		return nil
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pacing.drop(st)
	for _, e := range s.edges {
		if c := e.conn; c != nil && c.inflight {
			c.slow = true
			c.tally()
		}
	}
	return nil
}
