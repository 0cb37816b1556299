package syncserver

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// Busy is how many streams a step waits for now.
func (s *Server) Busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pacing.busy
}

// crowd is a server that has a stream for each of n edges, and nothing that serves them.
func crowd(n int) (*Server, []*conn) {
	s, conns := &Server{cfg: Config{Now: time.Now}, edges: map[string]*edge{}}, make([]*conn, n)
	for i := range conns {
		conns[i] = &conn{wake: make(chan struct{}, 1), pace: &s.pacing}
		s.edges[fmt.Sprint("w", i)] = &edge{conn: conns[i]}
	}
	s.stats.Streams.Store(int64(n))
	return s, conns
}

// tellAll begins a step as the watch does, and says how long it took.
func (s *Server) tellAll(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	s.mu.Lock()
	for _, e := range s.edges {
		if e.conn != nil {
			e.conn.kick()
		}
	}
	s.mu.Unlock()
	if err := s.pace(t.Context()); err != nil {
		t.Error(err)
	}
	return time.Since(began)
}

// sends is what push does for a stream that has something to send, answers what receive does.
func (s *Server) sends(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.inflight {
		c.due, c.inflight = false, true
	}
	c.tally()
}

func (s *Server) answers(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.due, c.inflight, c.slow = false, false, false
	c.tally()
}

// A step ends with the answers of nearly all edges; a few that are silent hold up nobody, and many that are hold up the rest
// once, and not at the next step.
func TestPace_AStepEndsWithItsAnswers(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name          string
		edges, silent int
		answer        time.Duration
		want, next    time.Duration
	}{
		{"no edges", 0, 0, 0, 0, 0},
		{"quick answers", 1000, 0, 20 * ms, 50 * ms, 50 * ms},
		{"answers that take longer", 1000, 0, 120 * ms, 120 * ms, 120 * ms},
		{"a few are silent", 1000, 62, 120 * ms, 120 * ms, 120 * ms},
		{"more are silent", 1000, 63, 120 * ms, 250 * ms, 120 * ms},
		{"all are silent", 1000, 1000, 0, 250 * ms, 50 * ms},
		{"few edges far away", 20, 20, 0, 5 * ms, 1 * ms},
		{"one edge", 1, 1, 0, 250 * time.Microsecond, 50 * time.Microsecond},
		{"more edges than a node should have", 5000, 0, 400 * ms, 400 * ms, 400 * ms},
		{"and slower", 5000, 5000, 0, 500 * ms, 100 * ms},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, conns := crowd(c.edges)
			round := func() time.Duration {
				for i, x := range conns {
					time.AfterFunc(0, func() { s.sends(x) })
					if i >= c.silent {
						time.AfterFunc(c.answer, func() { s.answers(x) })
					}
				}
				return s.tellAll(t)
			}
			if got := round(); got != c.want {
				t.Errorf("%s: the first step took %v, want %v", c.name, got, c.want)
			}
			if got := round(); got != c.next {
				t.Errorf("%s: the next step took %v, want %v", c.name, got, c.next)
			}
		})
	}
}

// What leaves is not waited for, and who answers late is waited for again.
func TestPace_CountsWhoIsThere(t *testing.T) {
	const ms = time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		s, conns := crowd(160)
		quick, silent, leaving := conns[:100], conns[100:110], conns[110:]
		step := func(name string, late time.Duration, want time.Duration) {
			t.Helper()
			for _, c := range conns {
				time.AfterFunc(0, func() { s.sends(c) })
			}
			for _, c := range quick {
				time.AfterFunc(10*ms, func() { s.answers(c) })
			}
			for _, c := range silent {
				if late > 0 {
					time.AfterFunc(late, func() { s.answers(c) })
				}
			}
			if got := s.tellAll(t); got != want {
				t.Errorf("%s: the step took %v, want %v", name, got, want)
			}
		}
		for i, c := range leaving {
			e := s.edges[fmt.Sprint("w", 110+i)]
			time.AfterFunc(12*ms, func() { s.leave(e, c) })
		}
		step("a third leaves", 0, 12*ms)
		conns = conns[:110]
		step("ten of 110 are silent", 0, 110*waitStream)
		step("and are not waited for again", 0, 10*ms)
		for _, c := range silent {
			s.answers(c)
		}
		step("until they have answered", 20*ms, 20*ms)
		synctest.Wait()
		if s.pacing.busy != 0 || len(s.pacing.steps) != 0 {
			t.Errorf("%d streams are busy and %d steps wait when all have answered", s.pacing.busy, len(s.pacing.steps))
		}
	})
}
