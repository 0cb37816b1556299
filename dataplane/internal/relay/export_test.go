package relay

import (
	"context"
	"net"
	"sync"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
	"bailiwick/shared/identity"
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

// Amid begins a relay in the middle of a sweep: newer happens once that has begun and waits for the flights. It says whether the
// sweep cut the relay to that peer, which newer permits.
func (c *Client) Amid(api *policy.API, to, peer string, newer func()) bool {
	f := &flight{Flight: flightOf(api, c.from, to)}
	f.Peer = peer
	return amid(&c.mu, c.flights, f, c.Enforce, newer)
}

// Amid is the same at the receiver, of a relay from peer under g.
func (s *Server) Amid(api *policy.API, peer identity.Name, g *grant.Grant, newer func()) bool {
	f := &flight{Flight: flightOf(api, peer.Region, s.self.Region), grant: g}
	f.Peer = peer.Node
	return amid(&s.mu, s.flights, f, s.Enforce, newer)
}

func amid(mu *sync.Mutex, flights map[*flight]struct{}, f *flight, sweep, newer func()) (cut bool) {
	f.cut = func() { cut = true }
	mu.Lock()
	var over sync.WaitGroup
	over.Go(sweep)
	time.Sleep(20 * time.Millisecond) // for it to wait; one that has not come yet does nothing wrong
	newer()
	flights[f] = struct{}{}
	mu.Unlock()
	over.Wait()
	mu.Lock()
	delete(flights, f)
	mu.Unlock()
	return cut
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
