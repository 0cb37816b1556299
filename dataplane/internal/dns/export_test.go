package dns

// Detached is a server without sockets.
func Detached(cfg Config) (*Server, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	return newServer(cfg), nil
}
