package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/regions/grant"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

type sessionKey struct{ to, node, addr string }

// session is one HTTP/2 connection to one edge of another region.
type session struct {
	key      sessionKey
	dialing  chan struct{} // a lock one can give up waiting for: held while dialling
	mu       sync.Mutex    // covers conn, spoke, left, cert, raws and closed
	conn     *http.ClientConn
	spoke    bool              // something was answered over conn
	left     bool              // its peer has said that it leaves: it takes no more
	cert     *x509.Certificate // that conn's peer showed
	raws     []*heardConn      // conn's, and those of connections that were full or told to go away and still drain
	closed   bool
	lastByte atomic.Int64 // ns since start, on the monotonic clock
	start    time.Time
}

var (
	errSessionClosed = errors.New("session is closed")
	errLeaving       = errors.New("peer takes no more relays")
)

// session gives a usable session to a peer of the grant, dialling where there is none. With once the peer
// has answered something within the last milliseconds.
func (c *Client) session(ctx context.Context, policyName string, grant *grant.Grant, once bool) (*session, error) {
	var errs []error
	checked := c.cfg.Sentinel.Now()
	for _, peer := range grant.Peers {
		key := sessionKey{grant.To, peer.Edge, peer.Addr}
		c.mu.Lock()
		if c.ended {
			c.mu.Unlock()
			return nil, errSessionClosed
		}
		s := c.sessions[key]
		if s == nil {
			s = &session{key: key, dialing: make(chan struct{}, 1), start: time.Now()}
			c.sessions[key] = s
		}
		c.mu.Unlock()
		err := c.ready(ctx, s, policyName, checked)
		if err == nil && once && s.silence() > c.cfg.ProofFor {
			if err = s.ping(ctx, c.cfg.PingWait); errors.Is(err, errLeaving) { // its next process may be there, or will in a moment
				err = c.ready(ctx, s, policyName, checked)
			}
		}
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("peer %s: %w", peer.Edge, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("the grant names no peer")
	}
	return nil, errors.Join(errs...)
}

func (s *session) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil && !s.left && s.conn.Err() == nil && s.conn.Available() > 0
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func (c *Client) ready(ctx context.Context, s *session, policyName string, checked time.Time) error {
	if s.usable() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	select {
	case s.dialing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.dialing }()
	if s.usable() {
		return nil
	}
	zone := ""
	for _, p := range c.cfg.Tables.Load().Pairs(policyName, c.from) {
		if p.To == s.key.to {
			zone = p.ToZone
		}
	}
	allow := func(n identity.Name) error {
		if n.Kind != identity.Edge || n.Node != s.key.node || n.Region != s.key.to || zone == "" || n.Zone != zone {
			return fault.New(fault.Denied, identity.ReasonWrongPeer, "peer is %s, want edge %s of region %s in zone %s", n, s.key.node, s.key.to, zone)
		}
		return nil
	}
	var raw *heardConn
	var cert *x509.Certificate
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	tr := &http.Transport{
		Protocols: &protocols,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := c.cfg.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			raw = &heardConn{Conn: conn, s: s}
			tc := tls.Client(raw, c.cfg.Identity.ClientTLS([]string{"h2"}, allow))
			if err := tc.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			cert = tc.ConnectionState().PeerCertificates[0]
			if err := c.cfg.Sentinel.Dialled(cert, checked); err != nil {
				conn.Close()
				return nil, err
			}
			return tc, nil
		},
		DisableCompression: true,
		// A peer that is paused or cut off is found out within three seconds even if nothing is asked of it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: time.Second, WriteByteTimeout: 5 * time.Second, MaxReceiveBufferPerStream: window},
	}
	conn, err := tr.NewClientConn(ctx, "https", s.key.addr)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return errSessionClosed
	}
	s.raws = slices.DeleteFunc(s.raws, func(c *heardConn) bool { return c.dead.Load() })
	s.conn, s.spoke, s.left, s.cert, s.raws = conn, false, false, cert, append(s.raws, raw)
	s.mu.Unlock()
	return nil
}

// leave has whoever comes next dial: the peer takes nothing more over conn. What is under way there goes on.
func (s *session) leave(conn *http.ClientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = s.left || s.conn == conn
}

// close ends the session for good: its streams end at once.
func (s *session) close() {
	s.mu.Lock()
	conn, raws := s.conn, s.raws
	s.closed = true
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	for _, raw := range raws {
		raw.Close()
	}
}

// send lets a relayed request leave, if the sentinel finds nothing wrong with what it carries and to whom. mute says of an
// error that nothing was ever answered over this connection, which is gone: the peer refuses whoever it takes this edge for,
// or something else stands there. One that did answer and broke says nothing of the peer, and whoever comes next dials;
// neither does a stream that it ended, for a rule or because its upstream did, nor a session that was closed here.
func (s *session) send(guard Sentinel, req *http.Request, checked time.Time) (resp *http.Response, conn *http.ClientConn, mute bool, err error) {
	s.mu.Lock()
	conn, cert := s.conn, s.cert
	s.mu.Unlock()
	signed, err := base64.StdEncoding.DecodeString(req.Header.Get(HeaderGrant))
	if err != nil {
		return nil, nil, false, fmt.Errorf("read back the grant: %w", err)
	}
	if err := guard.Leaves(cert, signed, req.Header.Get(HeaderAPI), req.Header.Get(HeaderHome), checked); err != nil {
		return nil, nil, false, errors.Join(errSentinel, err)
	}
	resp, err = conn.RoundTrip(req)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return nil, conn, s.conn == conn && !s.spoke && !s.closed && conn.Err() != nil, err
	}
	s.spoke = s.spoke || s.conn == conn
	return resp, conn, false, nil
}

var errSentinel = errors.New("stopped at the border")

// ping asks the peer for a sign of life.
func (s *session) ping(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://peer/", nil)
	if err != nil {
		return err
	}
	req.Header.Set(HeaderPing, "1")
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	resp, err := conn.RoundTrip(req)
	if err == nil && resp.Header.Get(HeaderLeaving) != "" {
		resp.Body.Close()
		s.leave(conn)
		return errLeaving
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.spoke = s.spoke || s.conn == conn
		return resp.Body.Close()
	case s.closed:
		return errSessionClosed
	}
	return fmt.Errorf("ping: %w", err)
}

func (s *session) silence() time.Duration {
	return time.Since(s.start) - time.Duration(s.lastByte.Load())
}

// heardConn notes when bytes came.
type heardConn struct {
	net.Conn
	s    *session
	dead atomic.Bool
}

func (c *heardConn) Close() error {
	c.dead.Store(true)
	return c.Conn.Close()
}

func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.s.lastByte.Store(int64(time.Since(c.s.start)))
	}
	return n, err
}
