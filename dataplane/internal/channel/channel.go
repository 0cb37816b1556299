// Package channel owns the HTTP/2 connections to one upstream: how many there are, which request goes over which, and what is
// known of a request that failed.
//
// It never chooses an upstream, never verifies one (its Dial does) and never sends a request again that the upstream may have
// begun: what was refused (REFUSED_STREAM, or GOAWAY with a lower last stream) is sent anew, as HTTP/2 allows. A connection
// whose peer is silent is asked by PING and given up. Nothing survives a crash. A Pool may be used by any number of goroutines
// at once.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// ErrHead is the end of a request whose head, or trailer, is larger than its upstream says that it takes. It says nothing of the upstream.
var ErrHead = errors.New("the upstream takes no head as large as that")

const tooLarge = "request header list larger than peer's advertised limit" // the transport's word for it

// Limits.
const (
	DefaultMax = 8  // connections to an upstream
	crowded    = 64 // requests under way on each connection before another is opened
	maxHead    = 256 << 10
	idle       = 60 * time.Second
	pingAfter  = 10 * time.Second // of silence
	pingWait   = 5 * time.Second
	writeWait  = 10 * time.Second // without a byte taken
	window     = 256 << 10        // bytes of an answer that arrive before its client takes them
	refusals   = 3                // of one request, before it is said to be refused
	againAfter = 10 * time.Millisecond
)

// Config of a Pool. Dial is required.
type Config struct {
	// Dial opens a connection that speaks HTTP/2 from its first byte: TLS is set up, and h2 agreed on, where TLS says so.
	Dial func(ctx context.Context) (net.Conn, error)
	TLS  bool
	Max  int // connections; 0: DefaultMax
}

// Pool is the connections to one upstream. Each lane has one, of a transport of its own: so a request waits for a stream of the
// lane that it was given, and no more connections are opened than there are lanes.
type Pool struct {
	cfg Config

	mu    sync.Mutex // covers lanes and their busy
	lanes []*lane
}

type lane struct {
	tr   *http.Transport
	busy int // requests to the end of their answers
}

// New makes a Pool without connections.
func New(cfg Config) *Pool {
	if cfg.Max <= 0 {
		cfg.Max = DefaultMax
	}
	return &Pool{cfg: cfg}
}

func (p *Pool) open() *lane {
	var protocols http.Protocols
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return p.cfg.Dial(ctx) }
	tr := &http.Transport{DisableCompression: true, MaxResponseHeaderBytes: maxHead, IdleConnTimeout: idle, MaxConnsPerHost: 1, Protocols: &protocols,
		HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true, SendPingTimeout: pingAfter, PingTimeout: pingWait, WriteByteTimeout: writeWait, MaxReceiveBufferPerStream: window}}
	if p.cfg.TLS {
		protocols.SetHTTP2(true)
		tr.DialTLSContext = dial
	} else {
		protocols.SetUnencryptedHTTP2(true)
		tr.DialContext = dial
	}
	return &lane{tr: tr}
}

// enter takes the first lane with room, a new one if there is none, or the least busy.
func (p *Pool) enter() *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *lane
	for _, l := range p.lanes {
		if l.busy < crowded {
			best = l
			break
		}
		if best == nil || l.busy < best.busy {
			best = l
		}
	}
	if (best == nil || best.busy >= crowded) && len(p.lanes) < p.cfg.Max {
		best = p.open()
		p.lanes = append(p.lanes, best)
	}
	best.busy++
	return best
}

func (p *Pool) leave(l *lane) {
	p.mu.Lock()
	l.busy--
	p.mu.Unlock()
}

// RoundTrip implements http.RoundTripper.
func (p *Pool) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, _, err := p.Send(req.Context(), req)
	return resp, err
}

// Send sends a request. sent says of an error that the upstream may have begun it. The answer's body must be closed.
//
// A body is hidden from the transport's own repeating, which counts a stream reset with PROTOCOL_ERROR among those to send anew:
// an upstream may reset so what it has worked on.
func (p *Pool) Send(ctx context.Context, req *http.Request) (resp *http.Response, sent bool, err error) {
	again := req.GetBody
	for n := 1; ; n++ {
		once := *req
		once.GetBody = nil
		if resp, sent, err = p.send(ctx, &once); err == nil || sent || again == nil || n == refusals || !refused(err) {
			return resp, sent, err
		}
		wait := time.NewTimer(againAfter << (4 * (n - 1)))
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, false, context.Cause(ctx)
		case <-wait.C:
		}
		body, err := again()
		if err != nil {
			return nil, false, err
		}
		next := *req
		next.Body = body
		req = &next
	}
}

func (p *Pool) send(ctx context.Context, req *http.Request) (resp *http.Response, sent bool, err error) {
	l := p.enter()
	var given atomic.Bool // a connection
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { given.Store(true) }}
	resp, err = l.tr.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		p.leave(l)
		maybe := given.Load() && !refused(err)
		if strings.HasSuffix(err.Error(), tooLarge) {
			return nil, maybe && len(req.Trailer) > 0, fmt.Errorf("%w: %w", ErrHead, err) // a trailer that is too large comes behind what was sent
		}
		return nil, maybe, err
	}
	// The transport looks at ctx only between two pieces of the request's body: where nothing is sent just now, whoever waits
	// for the answer would wait on.
	answer := resp.Body
	stop := context.AfterFunc(ctx, func() { answer.Close() })
	resp.Body = &body{ReadCloser: answer, end: sync.OnceFunc(func() { stop(); p.leave(l) })}
	return resp, true, nil
}

// refused says that the peer did nothing for the request (RFC 9113, 8.7). Of one with a body the transport tells it in words
// alone; other words than these are no refusal.
func refused(err error) bool {
	if se, ok := errors.AsType[http2.StreamError](err); ok {
		return se.Code == http2.ErrCodeRefusedStream
	}
	text := err.Error()
	return strings.HasPrefix(text, "http2: Transport: cannot retry err [") &&
		(strings.Contains(text, "; REFUSED_STREAM; ") || strings.Contains(text, "graceful shutdown GOAWAY]"))
}

// CloseIdle closes connections without a request, and will not keep those that have one.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	lanes := p.lanes
	p.mu.Unlock()
	for _, l := range lanes {
		l.tr.CloseIdleConnections()
	}
}

type body struct {
	io.ReadCloser
	end func()
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}
