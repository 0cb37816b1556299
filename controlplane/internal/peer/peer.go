// Package peer owns the peer port of a control node: one TCP listener with
// mutual TLS whose negotiated protocol decides whether a connection carries one
// Raft group or RPCs, and the connections this node dials to other nodes.
//
// It never decides who is registered or a member (Allow functions do), resolves
// no name by itself and reads no message. It keeps nothing on disk. Every
// method may be called from any goroutine at once; Run is called once.
package peer

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

const (
	protoHTTP = "h2"
	protoRaft = "bailiwick-raft/" // and the group's name
)

// Reasons of errors; both kinds are Unavailable.
const (
	ReasonUnresolved  = "NODE_UNRESOLVED"  // no address is known for the node
	ReasonUnreachable = "NODE_UNREACHABLE" // it does not answer, or is not who it should be
)

// Config describes the peer port.
type Config struct {
	Listener net.Listener                             // required, TCP; Run closes it
	Source   *identity.Source                         // required
	Resolve  func(node string) (addr string, ok bool) // required: the peer address of a control node
	// Allow is the registry's word on a node: a withdrawn one is refused. It is
	// asked in every handshake, inbound and outbound, and must not block. Required.
	Allow func(identity.Name) error
	// Farewell allows nodes that Allow refuses to call RPCs all the same, so that
	// they can be told that they are withdrawn: an edge that was away at the time
	// would serve from its disk for ever. Handler must refuse them all else. nil
	// allows none.
	Farewell func(identity.Name) error
	Handler  http.Handler // required: the RPCs; which peer may call what is for each service to say
	Logger   *slog.Logger // nil is silent

	HandshakeTimeout time.Duration // zero is 5 s; also bounds a dial
	MaxHandshakes    int           // half-open connections; zero is 512. Beyond it the oldest is dropped: an honest one is done in milliseconds
	ShutdownTimeout  time.Duration // zero is 1 s: how long running RPCs may go on when Run's ctx ends
}

// Validate tells what is missing.
func (c Config) Validate() error {
	switch {
	case c.Listener == nil:
		return errors.New("peer: Listener is required")
	case c.Source == nil:
		return errors.New("peer: Source is required")
	case c.Resolve == nil || c.Allow == nil:
		return errors.New("peer: Resolve and Allow are required")
	case c.Handler == nil:
		return errors.New("peer: Handler is required")
	}
	return nil
}

// Mux is the peer port.
type Mux struct {
	cfg  Config
	log  *slog.Logger
	http *acceptor
	stop chan struct{} // closed when Run ends

	// mu covers the tables below. Nothing blocking is called under it.
	mu       sync.Mutex
	doors    map[string]*door // by protocol
	conns    map[*conn]struct{}
	halfOpen *list.List // of *conn, oldest first
	clients  map[string]*http.Client
	closed   bool

	refused  atomic.Uint64
	lastTold atomic.Int64 // unix seconds of the last refusal logged
}

// door is what one protocol leads to.
type door struct {
	allow func(identity.Name) error // beyond Config.Allow; nil allows all
	to    *acceptor
}

// New makes the port. Streams may be opened before Run and during it.
func New(cfg Config) (*Mux, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 5 * time.Second
	}
	if cfg.MaxHandshakes == 0 {
		cfg.MaxHandshakes = 512
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = time.Second
	}
	m := &Mux{
		cfg: cfg, log: cfg.Logger, stop: make(chan struct{}),
		doors: map[string]*door{}, conns: map[*conn]struct{}{}, halfOpen: list.New(), clients: map[string]*http.Client{},
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.http = newAcceptor(cfg.Listener.Addr())
	m.doors[protoHTTP] = &door{to: m.http}
	return m, nil
}

// Run serves until ctx ends, and returns when every connection is closed.
func (m *Mux) Run(ctx context.Context) error {
	srv := m.server()
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(m.http) })

	ended := make(chan error, 1)
	wg.Go(func() { ended <- m.acceptLoop(&wg) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	m.cfg.Listener.Close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.ShutdownTimeout)
	srv.Shutdown(grace) // the error is the deadline's; Close ends what is left
	cancel()
	srv.Close()
	m.closeAll()
	wg.Wait()
	return err
}

func (m *Mux) server() *http.Server {
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	return &http.Server{
		Handler: m.cfg.Handler, Protocols: protos,
		// No Read- and WriteTimeout: streams live for hours. Pings find dead peers.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		// A stream that nobody reads for a while, such as detail while its disk is slow, may fill its own buffer;
		// the connection's has room for several, so that it takes nothing from the streams beside it.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 8 << 20, MaxReceiveBufferPerStream: 1 << 20,
			SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 20 * time.Second},
		ErrorLog:    slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		ConnContext: connContext,
	}
}

type nameKey struct{}

func connContext(ctx context.Context, c net.Conn) context.Context {
	tc, ok := c.(*tls.Conn)
	if !ok {
		return ctx
	}
	n, err := identity.PeerName(tc.ConnectionState())
	if err != nil {
		return ctx
	}
	return WithName(ctx, n)
}

// NameFrom is the verified name of the peer that sent a request.
func NameFrom(ctx context.Context) (identity.Name, bool) {
	n, ok := ctx.Value(nameKey{}).(identity.Name)
	return n, ok
}

// WithName is for tests of services, and for callers within one process.
func WithName(ctx context.Context, n identity.Name) context.Context {
	return context.WithValue(ctx, nameKey{}, n)
}

func (m *Mux) acceptLoop(wg *sync.WaitGroup) error {
	var pause time.Duration
	for {
		raw, err := m.cfg.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors, most likely: wait for some to come back rather
			// than give up the port.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			m.log.Warn("accept on the peer port fails", "error", err, "retry_in", pause)
			select {
			case <-m.stop:
				return nil
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		c := m.track(raw, true)
		if c == nil {
			return nil
		}
		wg.Go(func() { m.handshake(c) })
	}
}

// handshake brings an accepted connection to its door, or closes it.
func (m *Mux) handshake(c *conn) {
	c.SetDeadline(time.Now().Add(m.cfg.HandshakeTimeout))
	tc := tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: m.configFor, SessionTicketsDisabled: true})
	err := tc.Handshake()
	m.opened(c)
	if err != nil {
		tc.Close()
		m.tellRefused(c.RemoteAddr(), err)
		return
	}
	c.SetDeadline(time.Time{})
	cs := tc.ConnectionState()
	name, err := identity.PeerName(cs)
	if err == nil {
		err = m.admit(c, name, m.inbound(cs.NegotiatedProtocol))
	}
	if err != nil {
		tc.Close()
		m.tellRefused(c.RemoteAddr(), err)
		return
	}
	m.mu.Lock()
	d := m.doors[cs.NegotiatedProtocol]
	m.mu.Unlock()
	if d == nil || !d.to.offer(tc, m.cfg.HandshakeTimeout) {
		tc.Close()
	}
}

// configFor picks the door by what the client offers, so that its Allow is part
// of the handshake: a stranger is refused before the first byte.
func (m *Mux) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	for _, proto := range hello.SupportedProtos {
		m.mu.Lock()
		d := m.doors[proto]
		m.mu.Unlock()
		if d != nil {
			return m.cfg.Source.ServerTLS([]string{proto}, both(m.inbound(proto), d.allow)), nil
		}
	}
	return nil, fmt.Errorf("no protocol of %.200q is served here", hello.SupportedProtos)
}

// inbound is who may come in by a protocol, as far as the registry goes.
func (m *Mux) inbound(proto string) func(identity.Name) error {
	if proto != protoHTTP || m.cfg.Farewell == nil {
		return m.cfg.Allow
	}
	return func(n identity.Name) error {
		err := m.cfg.Allow(n)
		if err != nil && m.cfg.Farewell(n) == nil {
			return nil
		}
		return err
	}
}

func both(a, b func(identity.Name) error) func(identity.Name) error {
	return func(n identity.Name) error {
		if err := a(n); err != nil || b == nil {
			return err
		}
		return b(n)
	}
}

func (m *Mux) tellRefused(addr net.Addr, err error) {
	n := m.refused.Add(1)
	// At most one line a second: whoever knocks must not fill the log.
	now, last := time.Now().Unix(), m.lastTold.Load()
	if now != last && m.lastTold.CompareAndSwap(last, now) {
		m.log.Info("peer connection refused", "from", addr.String(), "error", err, "refused_total", n)
	}
}

// Refused is how many inbound connections were refused since the start.
func (m *Mux) Refused() uint64 { return m.refused.Load() }

// Connected names the nodes that a connection stands with now, in either direction.
func (m *Mux) Connected() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]bool{}
	for c := range m.conns {
		if c.name != (identity.Name{}) {
			names[c.name.Node] = true
		}
	}
	return names
}

// CloseNode drops every connection with a node, both directions: call it when
// the registry no longer holds it, after Allow refuses it. It returns how many.
func (m *Mux) CloseNode(n identity.Name) int {
	m.mu.Lock()
	var hit []*conn
	for c := range m.conns {
		if c.name == n {
			hit = append(hit, c)
		}
	}
	m.mu.Unlock()
	for _, c := range hit {
		c.Close()
	}
	return len(hit)
}

// Recheck drops every connection whose peer Allow now refuses, and returns how
// many: for a registry that changed in ways one did not follow.
func (m *Mux) Recheck() int {
	m.mu.Lock()
	names := map[identity.Name]bool{}
	for c := range m.conns {
		if c.name != (identity.Name{}) {
			names[c.name] = true
		}
	}
	m.mu.Unlock()
	closed := 0
	for n := range names {
		if m.cfg.Allow(n) != nil {
			closed += m.CloseNode(n)
		}
	}
	return closed
}

func (m *Mux) closeAll() {
	m.mu.Lock()
	m.closed = true
	close(m.stop)
	var all []*conn
	for c := range m.conns {
		all = append(all, c)
	}
	var doors []*acceptor
	for _, d := range m.doors {
		doors = append(doors, d.to)
	}
	clients := m.clients
	m.mu.Unlock()
	for _, d := range doors {
		d.Close()
	}
	for _, c := range all {
		c.Close()
	}
	for _, c := range clients {
		c.CloseIdleConnections()
	}
}

// conn is a TCP connection that the mux can find again by its peer's name.
type conn struct {
	net.Conn
	mux  *Mux
	half *list.Element // under mux.mu; nil once the handshake is over
	name identity.Name // under mux.mu; zero until it is verified
}

// track is nil when the port is closed.
func (m *Mux) track(raw net.Conn, inbound bool) *conn {
	c := &conn{Conn: raw, mux: m}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		raw.Close()
		return nil
	}
	m.conns[c] = struct{}{}
	var oldest *conn
	if inbound {
		if m.halfOpen.Len() >= m.cfg.MaxHandshakes {
			oldest = m.halfOpen.Front().Value.(*conn)
		}
		c.half = m.halfOpen.PushBack(c)
	}
	m.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return c
}

func (m *Mux) opened(c *conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.half != nil {
		m.halfOpen.Remove(c.half)
		c.half = nil
	}
}

// admit enters the name and asks the registry once more: a withdrawal between
// the handshake and this entry would otherwise find no connection to close.
func (m *Mux) admit(c *conn, n identity.Name, allow func(identity.Name) error) error {
	m.mu.Lock()
	c.name = n
	m.mu.Unlock()
	return allow(n)
}

func (c *conn) Close() error {
	c.mux.mu.Lock()
	delete(c.mux.conns, c)
	if c.half != nil {
		c.mux.halfOpen.Remove(c.half)
		c.half = nil
	}
	c.mux.mu.Unlock()
	return c.Conn.Close()
}

// unreachable is the error of a dial.
func unreachable(node string, err error) error {
	return fault.New(fault.Unavailable, ReasonUnreachable, "reach node %s: %w", node, err)
}
