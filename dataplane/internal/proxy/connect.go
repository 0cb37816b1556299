package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"time"

	"bailiwick/dataplane/internal/upstream"
)

var usualPort = map[string]string{"http": "80", "https": "443"}

// connect opens a connection to a place that nobody shares, when its turn has come: for what lasts.
func (u *Upstreams) connect(ctx context.Context, at upstream.Place, whose string) (net.Conn, error) {
	p, err := u.pool(at)
	if err != nil {
		return nil, err
	}
	return p.opens.open(opening(ctx, whose), func(ctx context.Context) (net.Conn, error) { return u.dial(ctx, at) })
}

// dial opens it at once.
func (u *Upstreams) dial(ctx context.Context, at upstream.Place) (net.Conn, error) {
	base, err := url.Parse(at.Base)
	if err != nil || base.Hostname() == "" {
		return nil, fmt.Errorf("connect to %s: it names no host", at.Base)
	}
	host, port := upstream.Host(base), base.Port()
	if port == "" {
		port = usualPort[base.Scheme]
	}
	conn, err := u.cfg.Dialer.Dial(ctx, at, net.JoinHostPort(host, port))
	if err != nil || base.Scheme == "http" || base.Scheme == "tcp" {
		return conn, err
	}
	cfg, err := u.cfg.Dialer.TLS(at)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s: %w", at.Base, err)
	}
	if base.Scheme == "tls" {
		cfg.NextProtos = nil
	}
	secure, err := handshake(ctx, conn, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at.Base, err)
	}
	return secure, nil
}

// handshake makes a connection one of TLS, or ends it.
func handshake(ctx context.Context, conn net.Conn, cfg *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

const handshakeTimeout = 2 * time.Second // of TLS with an upstream
