package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// UpstreamConfig of Upstreams. The zero value serves.
type UpstreamConfig struct {
	// AllowLoopback permits upstreams on this machine. Off, a manifest cannot reach what listens here for
	// nobody else; the sandbox and side-by-side installations turn it on.
	AllowLoopback bool
	// Permit is asked before each dial with host:port as configured, and has the last word; nil: any address.
	Permit      func(addr string) error
	TLS         *tls.Config   // nil: the system's roots
	DialTimeout time.Duration // 0: 1 s
	MaxIdle     int           // 0: 512 idle connections to a target
}

// Upstreams holds the connections to this region's upstreams, and probes them. It is the only place that
// dials them, so its guard is the only one.
type Upstreams struct {
	traffic *http.Transport
	probes  *http.Client // connections of its own: a probe must not queue behind traffic
}

// NewUpstreams makes one.
func NewUpstreams(cfg UpstreamConfig) *Upstreams {
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = time.Second
	}
	if cfg.MaxIdle <= 0 {
		cfg.MaxIdle = 512
	}
	dialer := &net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 15 * time.Second, ControlContext: guard(cfg.AllowLoopback)}
	transport := func(idle int) *http.Transport {
		return &http.Transport{ // Proxy stays nil: the environment must not redirect customers' requests
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if cfg.Permit != nil {
					if err := cfg.Permit(addr); err != nil {
						return nil, err
					}
				}
				c, err := dialer.DialContext(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				return &wire{Conn: c}, nil
			},
			TLSClientConfig:        cfg.TLS,
			TLSHandshakeTimeout:    2 * cfg.DialTimeout,
			MaxIdleConnsPerHost:    idle,
			IdleConnTimeout:        60 * time.Second,
			DisableCompression:     true, // bytes pass as they are
			MaxResponseHeaderBytes: 256 << 10,
		}
	}
	return &Upstreams{
		traffic: transport(cfg.MaxIdle),
		probes: &http.Client{
			Transport:     transport(2),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// CloseIdle closes idle connections, for the end.
func (u *Upstreams) CloseIdle() {
	u.traffic.CloseIdleConnections()
	u.probes.CloseIdleConnections()
}

// ErrAddress is a resolved address that upstreams must not have.
var ErrAddress = errors.New("address is not allowed for upstreams")

// guard looks at the resolved address at every dial, so that neither a name that changes its mind
// (rebinding) nor an IPv4 address in IPv6 clothes gets past it.
func guard(loopback bool) func(ctx context.Context, network, address string, c syscall.RawConn) error {
	return func(_ context.Context, network, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, ErrAddress)
		}
		ip := ap.Addr().Unmap().WithZone("")
		switch {
		case ip.IsLinkLocalUnicast(), ip.IsUnspecified(), ip.IsMulticast(), ip.IsInterfaceLocalMulticast(),
			ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}),
			ip == netip.MustParseAddr("fd00:ec2::254"), // metadata service of one cloud, outside link-local
			nat64.Contains(ip): // an IPv4 address again, of whatever kind
			return fmt.Errorf("dial %s: %w", address, ErrAddress)
		case ip.IsLoopback() && !loopback:
			return fmt.Errorf("dial %s: loopback: %w", address, ErrAddress)
		}
		return nil
	}
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Probe implements failover.Prober.
func (u *Upstreams) Probe(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "bailiwick-probe/1")
	resp, err := u.probes.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode >= 500 {
		return fmt.Errorf("probe %s: status %d", url, resp.StatusCode)
	}
	return nil
}

// wire knows whether a request may have left on it. HTTP/1.1 has one request on a connection at a time, so
// three states do. Fencing makes the answer final: what has not been written then never will be.
type wire struct {
	net.Conn
	state atomic.Int32
}

const (
	wireClean   = iota // nothing written since the connection was given to a request
	wireWritten        // something may have left
	wireFenced         // nothing was written, and nothing will be
)

var errFenced = errors.New("connection was fenced")

func (w *wire) Write(p []byte) (int, error) {
	if !w.state.CompareAndSwap(wireClean, wireWritten) && w.state.Load() == wireFenced {
		return 0, errFenced
	}
	return w.Conn.Write(p)
}

// tracker follows one request to the connection it goes out on.
type tracker struct {
	conn   *wire
	before bool // an earlier connection of this same request was written to
}

func (t *tracker) gotConn(info httptrace.GotConnInfo) {
	if t.conn != nil && t.conn.state.Load() == wireWritten {
		t.before = true
	}
	c := info.Conn
	if tc, ok := c.(*tls.Conn); ok {
		c = tc.NetConn()
	}
	if t.conn, _ = c.(*wire); t.conn != nil {
		t.conn.state.Store(wireClean)
	} else {
		t.before = true // a connection of unknown kind: assume the worst
	}
}

// sent says whether any byte may have reached the upstream. Ask only after RoundTrip gave an error.
func (t *tracker) sent() bool {
	return t.before || t.conn != nil && !t.conn.state.CompareAndSwap(wireClean, wireFenced)
}

// send sends one request once. The transport would repeat some requests by itself on a connection that died
// while idle: those without body and with a method or header that says they may be. opaque hides that.
func (u *Upstreams) send(ctx context.Context, req *http.Request) (resp *http.Response, sent bool, err error) {
	var t tracker
	resp, err = u.traffic.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: t.gotConn})))
	if err != nil {
		return nil, t.sent(), err
	}
	return resp, true, nil
}

// noBody is an empty body that the transport does not know to be empty, so that it never takes the request
// for one it may repeat.
type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }
func (noBody) Close() error             { return nil }
