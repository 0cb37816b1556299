// Package upstream owns how this region's upstreams are reached: which addresses may be dialled, what a name means just
// now, and how the other side of a TLS connection is verified.
//
// It never chooses among upstreams (failover does), never sends a request and never dials what the table does not name:
// every dial is asked of Permit first, and every resolved address of the guard. Nothing survives a crash: names are
// resolved anew and client certificates read again. Everything may be called from any number of goroutines at once.
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/idna"

	"bailiwick/shared/table"
)

// Place is one thing to connect to. Places may be compared: what is equal may share connections, and nothing else may.
type Place struct {
	Base string     // scheme://host[:port], without a trailing slash
	Pin  netip.Addr // the one address meant; the zero Addr: any of the host's
	TLS  table.UpstreamTLS
	Zone string // whose API names it, where that is not the edge's own: it is trusted with less
	// Within are the region's networks as the table said: where they change, connections of before are not used again.
	Within string

	Protocol    string // h2, h2c; "": HTTP/1.1
	Connections int    // at most, of h2 and h2c; 0: channel.DefaultMax
}

// Config of a Dialer. The zero value dials public addresses.
type Config struct {
	// Allow are addresses beyond the public ones: private ranges, loopback. What could never be an upstream (link-local,
	// metadata services, multicast) stays forbidden.
	Allow []netip.Prefix
	// AllowForeign are likewise for what an API of another zone names: its operators know nothing of what is near this edge.
	AllowForeign []netip.Prefix
	// Networks are where this region's upstreams are; asked at each dial. nil: anywhere.
	Networks Networks
	// Permit is asked before each dial with host:port as configured, and has the last word; nil: any.
	Permit  func(addr string) error
	Roots   *x509.CertPool // for https where the place has no ca; nil: the system's
	Certs   *Certs         // client certificates; nil: there are none
	Timeout time.Duration  // 0: 1 s, of a connection
}

// Dialer makes connections to places.
type Dialer struct {
	cfg    Config
	dialer net.Dialer // of the own zone's upstreams
	others net.Dialer // of other zones'
	fetch  net.Dialer // of what is no upstream

	dials, failed atomic.Int64
}

// Dials is how many connections to upstreams were tried since the start, probes' own included, and how many of them failed.
func (d *Dialer) Dials() (all, failed int64) { return d.dials.Load(), d.failed.Load() }

// NewDialer makes one.
func NewDialer(cfg Config) *Dialer {
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Second
	}
	dialer := func(g *Guard) net.Dialer {
		return net.Dialer{Timeout: cfg.Timeout, KeepAlive: 15 * time.Second, ControlContext: g.control}
	}
	return &Dialer{cfg: cfg, dialer: dialer(NewGuard(cfg.Allow, cfg.Networks)), others: dialer(NewGuard(cfg.AllowForeign, cfg.Networks)), fetch: dialer(NewGuard(cfg.Allow, nil))}
}

// Dial opens a connection to host:port of the place, without TLS.
func (d *Dialer) Dial(ctx context.Context, at Place, addr string) (conn net.Conn, err error) {
	d.dials.Add(1)
	defer func() {
		if err != nil {
			d.failed.Add(1)
		}
	}()
	if d.cfg.Permit != nil {
		if err := d.cfg.Permit(addr); err != nil {
			return nil, err
		}
	}
	if at.Pin.IsValid() {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		addr = net.JoinHostPort(at.Pin.String(), port)
	}
	if at.Zone != "" {
		return d.others.DialContext(ctx, "tcp", addr)
	}
	return d.dialer.DialContext(ctx, "tcp", addr)
}

// Fetches is for what is public and no upstream's: the keys of tokens' issuers. The same guard of addresses stands at its dials;
// Permit is not asked, since nothing of a request or of a customer goes over it. It follows no redirect.
func (d *Dialer) Fetches() *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: d.fetch.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.cfg.Roots},
			TLSHandshakeTimeout: 5 * time.Second, MaxIdleConns: 8, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10},
	}
}

// TLS is how a connection to the place is verified. There is no way to leave that out.
func (d *Dialer) TLS(at Place) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: at.TLS.ServerName, RootCAs: d.cfg.Roots, NextProtos: []string{"http/1.1"}}
	if cfg.ServerName == "" {
		u, err := url.Parse(at.Base)
		if err != nil || u.Hostname() == "" {
			return nil, errors.New("the upstream's URL names no host to verify")
		}
		cfg.ServerName = Host(u)
	}
	if at.TLS.CA != "" {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(at.TLS.CA)) {
			// An empty pool trusts nobody: a text that cannot be read must not come to mean the system's.
			return nil, errors.New("the API's ca holds no certificate that can be read")
		}
	}
	if name := at.TLS.ClientCertificate; name != "" {
		if at.Zone != "" {
			if strings.ContainsAny(name, "/\\") { // its own control nodes see to that, and this edge is not theirs
				return nil, fmt.Errorf("client certificate %q of an API of zone %s is no name", name, at.Zone)
			}
			name = at.Zone + "/" + name // no zone shows this one's
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.cfg.Certs.get(name) }
	}
	return cfg, nil
}

// Host is the host of a URL as it is resolved, verified and permitted: in ASCII (RFC 5891).
func Host(u *url.URL) string {
	host := u.Hostname()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil && net.ParseIP(host) == nil {
		return ascii
	}
	return host
}

// DialHTTP2 opens a connection on which HTTP/2 can be spoken at once.
func (d *Dialer) DialHTTP2(ctx context.Context, at Place) (net.Conn, error) {
	u, err := url.Parse(at.Base)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("the upstream's URL names no host")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := d.Dial(ctx, at, net.JoinHostPort(Host(u), port))
	if err != nil {
		return nil, err
	}
	quit(conn, quitAfter)
	if at.Protocol == "h2c" {
		return conn, nil
	}
	cfg, err := d.TLS(at)
	if err != nil {
		conn.Close()
		return nil, err
	}
	cfg.NextProtos = []string{"h2"}
	t := tls.Client(conn, cfg)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	if p := t.ConnectionState().NegotiatedProtocol; p != "h2" {
		conn.Close()
		return nil, fmt.Errorf("upstream %s takes %q and not h2: its API's protocol is another", u.Host, p)
	}
	return t, nil
}

const (
	handshakeTimeout = 2 * time.Second
	quitAfter        = time.Minute // of a peer that takes nothing: three of the kernel's own questions are lost by then
)
