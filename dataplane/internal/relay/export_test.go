package relay

import (
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
