package alert

import (
	"net/http"
	"net/netip"
)

var (
	Sign    = sign
	Reached = reached
	Delays  = delays
)

// SendBy makes deliveries by f instead of the network.
func (s *Service) SendBy(f func(*http.Request) (*http.Response, error)) { s.send = sendFunc(f) }

type sendFunc func(*http.Request) (*http.Response, error)

func (f sendFunc) Do(r *http.Request) (*http.Response, error) { return f(r) }

// CheckURL and CheckAddress are the guard's two looks.
func CheckURL(allow []netip.Prefix, text string) error { return guard{allow}.checkURL(text) }

func CheckAddress(allow []netip.Prefix, text string, plain bool) error {
	return guard{allow}.check(netip.MustParseAddr(text), plain)
}
