// Package profile owns the profiles of the running edge: processor time, memory, goroutines, locks and execution traces, as
// net/http/pprof has them.
//
// Stacks and samples hold addresses in the code, and a heap profile sizes, never contents; still they are told to this machine
// alone: the listener's address and the client's are loopback's, and the request names such an address, so that no page of a
// browser is led here by a name. It serves a mux of its own and nothing of net/http's default one. Nothing survives a crash. The
// handler may be used by any number of goroutines at once.
package profile

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
)

// Check says why an address is none to serve profiles at; nil: it is one.
func Check(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("profiles: %q is no host:port such as 127.0.0.1:6060", addr)
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.Unmap().IsLoopback() {
		return fmt.Errorf("profiles: %q is not a loopback address; profiles are told to this machine alone, at 127.0.0.1 or [::1] (use ssh -L from another)", addr)
	}
	return nil
}

// NewHandler serves below /debug/pprof/.
func NewHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !Local(r) {
			http.Error(w, "Only this machine is told, at a loopback address.", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Local says whether both ends of a connection are on this machine, and whether it was asked for by an address.
func Local(r *http.Request) bool {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !client.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}
