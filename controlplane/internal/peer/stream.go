package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// Stream carries the connections of one Raft group, by node name.
type Stream struct {
	mux   *Mux
	proto string
	door  *door
}

// Stream opens the door of a group ("store/emea"). allow says who is a member;
// it is asked in every handshake of the group, in both directions, and must not
// block. A group has one Stream at a time.
func (m *Mux) Stream(group string, allow func(identity.Name) error) *Stream {
	s := &Stream{mux: m, proto: protoRaft + group, door: &door{allow: allow, to: newAcceptor(m.cfg.Listener.Addr())}}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doors[s.proto] = s.door
	if m.closed {
		s.door.to.Close()
	}
	return s
}

// Accept is the next connection from a member.
func (s *Stream) Accept() (net.Conn, error) { return s.door.to.Accept() }

// Addr is the port's address.
func (s *Stream) Addr() net.Addr { return s.door.to.Addr() }

// Close ends Accept and refuses new connections; those handed out stay.
func (s *Stream) Close() error {
	s.mux.mu.Lock()
	if s.mux.doors[s.proto] == s.door {
		delete(s.mux.doors, s.proto)
	}
	s.mux.mu.Unlock()
	return s.door.to.Close()
}

// Dial connects to a member and returns once it has proved its name.
func (s *Stream) Dial(ctx context.Context, node string) (net.Conn, error) {
	return s.mux.dial(ctx, node, s.proto, s.door.allow)
}

// dial connects to the control node of that name.
func (m *Mux) dial(ctx context.Context, node, proto string, allow func(identity.Name) error) (*tls.Conn, error) {
	addr, ok := m.cfg.Resolve(node)
	if !ok {
		return nil, fault.New(fault.Unavailable, ReasonUnresolved, "reach node %s: no address is known for it", node)
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, unreachable(node, err)
	}
	c := m.track(raw, false)
	if c == nil {
		return nil, unreachable(node, net.ErrClosed)
	}
	var peer identity.Name
	tc := tls.Client(c, m.cfg.Source.ClientTLS([]string{proto}, func(n identity.Name) error {
		// Whoever answers at the address: the certificate's name is what counts.
		if n.Kind != identity.Control || n.Node != node {
			return fault.New(fault.Denied, identity.ReasonWrongPeer, "%s answers in place of node %s", n, node)
		}
		peer = n
		return both(m.cfg.Allow, allow)(n)
	}))
	err = tc.HandshakeContext(ctx)
	if err == nil && tc.ConnectionState().NegotiatedProtocol != proto {
		err = errors.New("the node does not speak " + proto)
	}
	if err == nil {
		err = m.admit(c, peer, m.cfg.Allow)
	}
	if err != nil {
		tc.Close()
		return nil, unreachable(node, err)
	}
	return tc, nil
}

// URL is the base URL for RPCs to a node with its Client.
func URL(node string) string { return "https://" + node }

// Client is the HTTP client for one control node: HTTP/2 over mutual TLS, pooled.
// It reaches that node and no other, whatever host a URL holds.
func (m *Mux) Client(node string) *http.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.clients[node]; c != nil {
		return c
	}
	protos := new(http.Protocols)
	protos.SetHTTP2(true)
	c := &http.Client{
		Transport: &http.Transport{
			Protocols: protos, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 20 * time.Second},
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return m.dial(ctx, node, protoHTTP, nil)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	m.clients[node] = c
	return c
}

// acceptor is a net.Listener of connections that are ready.
type acceptor struct {
	addr net.Addr
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newAcceptor(addr net.Addr) *acceptor {
	return &acceptor{addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
}

func (a *acceptor) Addr() net.Addr { return a.addr }
func (a *acceptor) Close() error   { a.once.Do(func() { close(a.done) }); return nil }

func (a *acceptor) Accept() (net.Conn, error) {
	select {
	case <-a.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-a.ch:
		return c, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

// offer hands c over, and gives up after patience: a group that does not accept
// must not collect connections.
func (a *acceptor) offer(c net.Conn, patience time.Duration) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case a.ch <- c:
		return true
	case <-a.done:
	case <-t.C:
	}
	return false
}
