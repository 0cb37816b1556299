package relay

import (
	"context"
	"net"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
)

// Cuts are what a sweep would have in hand now.
func (s *Server) Cuts() (cuts []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.flights {
		cuts = append(cuts, f.cut)
	}
	return cuts
}

// Permitted is what Do asks before every attempt.
func (c *Client) Permitted(api *policy.API, to string) (*grant.Grant, string) {
	return c.permitted(api, to)
}

// Answers are those of an attempt, at any time.
type Answers struct{ answers }

func (a *Answers) Leave(t *policy.Table, held *grant.Held, api *policy.API, from, to string, born time.Time, now time.Duration) (*grant.Grant, string) {
	return a.leave(t, held, api, from, to, born, now)
}

func (a *Answers) Drop(t *policy.Table, held *grant.Held, now time.Duration) {
	a.drop(t.Mark(), held, now)
}

// Kept is how many answers are in memory.
func (a *Answers) Kept() (n int) {
	for i := range a.slots {
		if a.slots[i].Load() != nil {
			n++
		}
	}
	return n
}

// Anew is what Leave must say.
func Anew(t *policy.Table, held *grant.Held, api *policy.API, from, to string, now time.Time) (*grant.Grant, string) {
	return held.Leave(flightOf(api, from, to), rules{t}, now)
}

// Sessions is how many are open, or being opened.
func (c *Client) Sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Over is a context of a request that came over conn.
func Over(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}
