package relay

// Cuts are what a sweep would have in hand now.
func (s *Server) Cuts() (cuts []func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.flights {
		cuts = append(cuts, f.cut)
	}
	return cuts
}
