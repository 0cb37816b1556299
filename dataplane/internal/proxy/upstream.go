package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/channel"
	"bailiwick/dataplane/internal/upstream"
)

// UpstreamConfig of Upstreams. Dialer is required.
type UpstreamConfig struct {
	Dialer  *upstream.Dialer
	MaxIdle int // 0: 512 idle connections to a target
}

// Upstreams holds the connections to this region's upstreams, and probes them. Each place has its own: what differs in
// how it is verified shares nothing.
type Upstreams struct {
	cfg     UpstreamConfig
	dropped atomic.Uint64 // pools: what somebody remembers of one may be of one that was

	mu    sync.RWMutex // covers all below
	pools map[upstream.Place]*pool
	left  []departure // the latest last
}

// departure is a place that was left. Who was on his way there then may still ask for it, and makes its pool anew: so it is
// left once more when nobody can be on his way any more.
type departure struct {
	at   upstream.Place
	when time.Time
}

// leftFor is longer than a request may look for an upstream (model.MaxRouteTimeout).
const leftFor = 10 * time.Minute

// pool is the connections to one place.
type pool struct {
	traffic *http.Transport
	probes  *http.Client  // connections of its own, for which no turn is waited: a probe must not queue behind traffic
	opens   opens         // of traffic's connections, and of what lasts
	origin  *origin       // connections of common requests; nil: to such a place none goes
	muxed   *channel.Pool // of a place that speaks HTTP/2, in place of traffic and origin; nil: of others
}

// NewUpstreams makes one.
func NewUpstreams(cfg UpstreamConfig) *Upstreams {
	if cfg.MaxIdle <= 0 {
		cfg.MaxIdle = 512
	}
	return &Upstreams{cfg: cfg, pools: map[upstream.Place]*pool{}}
}

func (u *Upstreams) pool(at upstream.Place) (*pool, error) {
	u.mu.RLock()
	p := u.pools[at]
	u.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	return u.open(at)
}

// open makes the pool of a place. It is not part of pool, which is asked for each request: what keeps at here has memory of its own.
func (u *Upstreams) open(at upstream.Place) (p *pool, err error) {
	cfg, err := u.cfg.Dialer.TLS(at)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at.Base, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sweep(time.Now())
	if p = u.pools[at]; p == nil {
		p = u.newPool(at, cfg)
		u.pools[at] = p
	}
	return p, nil
}

// newPool makes one without connections. It is not part of pool: there its closures would cost each request memory.
func (u *Upstreams) newPool(at upstream.Place, cfg *tls.Config) *pool {
	if at.Protocol != "" {
		dial := channel.Config{Dial: func(ctx context.Context) (net.Conn, error) { return u.cfg.Dialer.DialHTTP2(ctx, at) }, Max: at.Connections}
		p := &pool{muxed: channel.New(dial)}
		dial.Max = 1
		p.probes = &http.Client{Transport: channel.New(dial), CheckRedirect: noRedirect}
		return p
	}
	p := &pool{}
	p.traffic = u.transport(at, cfg, u.cfg.MaxIdle, p.opens.open)
	p.probes = &http.Client{Transport: u.transport(at, cfg, 2, atOnce), CheckRedirect: noRedirect}
	if addr := hostPort(at.Base); addr != "" {
		dial := func(ctx context.Context) (net.Conn, error) { return u.cfg.Dialer.Dial(ctx, at, addr) }
		p.origin = &origin{max: u.cfg.MaxIdle, dial: func(ctx context.Context) (net.Conn, error) { return p.opens.open(ctx, dial) }}
	}
	return p
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// turns has a connection opened when its turn has come.
type turns func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error)

// atOnce is the turn of who waits for none.
func atOnce(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	return dial(ctx)
}

func (u *Upstreams) transport(at upstream.Place, cfg *tls.Config, idle int, turn turns) *http.Transport {
	dial := func(ctx context.Context, addr string) (*wire, error) {
		c, err := u.cfg.Dialer.Dial(ctx, at, addr)
		if err != nil {
			return nil, err
		}
		return &wire{Conn: c}, nil
	}
	return &http.Transport{ // Proxy stays nil: the environment must not redirect customers' requests
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return turn(ctx, func(ctx context.Context) (net.Conn, error) {
				c, err := dial(ctx, addr)
				if err != nil {
					return nil, err
				}
				return &strictConn{Conn: c, wire: c}, nil
			})
		},
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) { // handshakes are what costs an upstream: they are part of the turn
			return turn(ctx, func(ctx context.Context) (net.Conn, error) {
				c, err := dial(ctx, addr)
				if err != nil {
					return nil, err
				}
				secure, err := handshake(ctx, c, cfg)
				if err != nil {
					return nil, err
				}
				return &strictConn{Conn: secure, wire: c}, nil
			})
		},
		MaxIdleConnsPerHost:    idle,
		IdleConnTimeout:        60 * time.Second,
		DisableCompression:     true, // bytes pass as they are
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// Left closes the connections to a place that is no target any more: idle ones now, those in use when their requests end.
func (u *Upstreams) Left(at upstream.Place) {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sweep(now)
	u.drop(at)
	u.left = append(u.left, departure{at, now})
}

// sweep drops what was made anew of places that were left long ago, with mu held. One that is a target again loses its idle
// connections, and no more.
func (u *Upstreams) sweep(now time.Time) {
	n := 0
	for ; n < len(u.left) && now.Sub(u.left[n].when) > leftFor; n++ {
		u.drop(u.left[n].at)
	}
	u.left = slices.Delete(u.left, 0, n)
}

// drop ends a place's pool, with mu held: closing idle connections waits for nothing.
func (u *Upstreams) drop(at upstream.Place) {
	if p := u.pools[at]; p != nil {
		delete(u.pools, at)
		u.dropped.Add(1)
		p.close()
	}
}

// CloseIdle closes idle connections, for the end.
func (u *Upstreams) CloseIdle() {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for _, p := range u.pools {
		p.close()
	}
}

func (p *pool) close() {
	if p.muxed != nil {
		p.muxed.CloseIdle()
		p.probes.Transport.(*channel.Pool).CloseIdle()
		return
	}
	p.traffic.CloseIdleConnections()
	p.probes.CloseIdleConnections()
	if p.origin != nil {
		p.origin.closeIdle()
	}
}

// hostPort is where a cleartext base URL leads; "": it is none, or its host's name must be rewritten first.
func hostPort(base string) string {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Hostname() == "" {
		return ""
	}
	for i := range len(u.Host) {
		if u.Host[i] >= 0x80 || u.Host[i] == '%' {
			return ""
		}
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80"))
}

// Probe implements failover.Prober.
func (u *Upstreams) Probe(ctx context.Context, at upstream.Place, url string) error {
	if strings.HasPrefix(at.Base, "tcp://") || strings.HasPrefix(at.Base, "tls://") { // it is well where it takes a connection
		conn, err := u.dial(ctx, at)
		if err != nil {
			return fmt.Errorf("probe %s: %w", at.Base, err)
		}
		return conn.Close()
	}
	p, err := u.pool(at)
	if err != nil {
		return err
	}
	if base, service, asks := strings.Cut(url, "#"); asks {
		return channel.Check(ctx, p.probes.Transport, base, service)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	t := tracker{method: req.Method}
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: t.gotConn}))
	req.Header.Set("User-Agent", "bailiwick-probe/1")
	resp, err := p.probes.Do(req)
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
	heard atomic.Bool // something came back since, or it ended
	hold  atomic.Pointer[hold]
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

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 || err != nil {
		w.heard.Store(true)
		if h := w.hold.Load(); h.begun() {
			w.letGo(h)
		}
	}
	return n, err
}

// Close implements net.Conn. The transport calls it when a request is taken back, while it reads.
func (w *wire) Close() error {
	h := w.hold.Load()
	if w.state.Load() != wireWritten || w.heard.Load() || !h.begin() {
		return w.Conn.Close()
	}
	if !tellEnd(w.Conn) {
		w.letGo(h)
		return nil
	}
	time.AfterFunc(letGoMost, func() { w.letGo(h) })
	if w.heard.Load() { // meanwhile: whoever read did not know
		w.letGo(h)
	}
	return nil
}

func (w *wire) letGo(h *hold) {
	w.Conn.Close()
	h.over()
}

// tracker follows one request to the connection it goes out on.
type tracker struct {
	method string
	hold   *hold
	conn   *wire
	before bool // an earlier connection of this same request was written to
}

func (t *tracker) gotConn(info httptrace.GotConnInfo) {
	if t.conn != nil && t.conn.state.Load() == wireWritten {
		t.before = true
	}
	t.conn = nil
	if c, ok := info.Conn.(*strictConn); ok {
		t.conn = c.wire
		t.conn.heard.Store(false)
		t.conn.hold.Store(t.hold)
		t.conn.state.Store(wireClean)
		c.begin(t.method)
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
func (u *Upstreams) send(ctx context.Context, at upstream.Place, ask channel.Ask, h *hold, interim func(int, textproto.MIMEHeader) error) (resp *http.Response, fate channel.Fate, err error) {
	p, err := u.pool(at)
	if err != nil {
		return nil, fate, err
	}
	if p.muxed != nil {
		ask.Bounded = h != nil
		return p.muxed.Send(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: interim}), ask)
	}
	var t tracker
	early := func(code int, h textproto.MIMEHeader) error {
		if t.conn != nil {
			t.conn.heard.Store(false) // that was no answer yet
		}
		return interim(code, h)
	}
	for range spentMost {
		t = tracker{method: ask.Method, hold: h}
		resp, err = p.traffic.RoundTrip(ask.WithContext(httptrace.WithClientTrace(opening(ctx, ask.Whose), &httptrace.ClientTrace{GotConn: t.gotConn, Got1xxResponse: early})))
		if err == nil {
			break
		}
		fate.Sent = t.sent()
		if !fate.Sent && errors.Is(err, errSpent) && (ask.Body == nil || ask.Body == noBody{}) { // it had taken a connection that is none any more
			continue
		}
		if t.conn == nil && ctx.Err() != nil && p.opens.crowd() > openCrowd { // its time was over before it had a connection
			err = fmt.Errorf("%w: %w", errOpens, err)
		}
		return nil, fate, err
	}
	if err != nil {
		return nil, fate, err
	}
	if t.conn != nil {
		t.conn.heard.Store(true)
	}
	return resp, channel.Fate{Sent: true}, nil
}

// spentMost is how many connections in a row a request may take on which nothing more can be asked, since something came behind the last
// answer there.
const spentMost = 16

// noBody is an empty body that the transport does not know to be empty, so that it never takes the request
// for one it may repeat.
type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }
func (noBody) Close() error             { return nil }
