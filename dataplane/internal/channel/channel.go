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
	"time"

	"golang.org/x/net/http2"
)

// ErrHead is the end of a request whose head, or trailer, is larger than its upstream says that it takes. It says nothing of the upstream.
var ErrHead = errors.New("the upstream takes no head as large as that")

// What the transport says in words alone.
const (
	tooLarge   = "request header list larger than peer's advertised limit"
	sentAway   = "http2: Transport received Server's graceful shutdown GOAWAY" // its last stream is lower
	unusable   = "http2: client conn not usable"                               // it went away before the request was its
	unbegun    = "http2: client conn could not be established"                 // likewise, before any
	headTooBig = "http2: " + tooLarge
)

// Limits.
const (
	DefaultMax = 8  // connections to an upstream
	crowded    = 64 // requests under way on each connection before another is opened
	maxHead    = 256 << 10
	idle       = 60 * time.Second
	pingAfter  = 10 * time.Second               // of silence, while somebody waits
	pingRarely = 5*time.Minute + 10*time.Second // of gRPC's silence, from the second on: its servers end a connection on which others come sooner
	pingWait   = 5 * time.Second
	writeWait  = 10 * time.Second // without a byte taken
	window     = 64 << 10         // bytes of an answer that arrive before its client takes them
	refusals   = 3                // of one request, before it is said to be refused
	againAfter = 10 * time.Millisecond
)

const grpcMedia = "application/grpc" // and what begins with it, in whatever spelling

// Config of a Pool. Dial is required.
type Config struct {
	// Dial opens a connection that speaks HTTP/2 from its first byte: TLS is set up, and h2 agreed on, where TLS says so.
	Dial func(ctx context.Context) (net.Conn, error)
	Max  int // connections; 0: DefaultMax
}

// Pool is the connections to one upstream. Each lane has one that takes requests: so a request waits for a stream of the lane that
// it was given, and no more connections are opened than there are lanes.
type Pool struct {
	cfg Config
	tr  *http2.Transport

	mu       sync.Mutex // covers all below, busy of lanes and under of links; held for no I/O
	lanes    []*lane
	apart    *lane   // of who takes much back; nil: nobody did
	draining []*link // that were retired for their resets and still have requests, the oldest first

	resets resets
}

// lane is a place for one connection.
type lane struct {
	busy    int           // requests to the end of their answers
	link    *link         // covered by Pool.mu; nil: none takes requests
	retired time.Time     // one of its for its resets; likewise
	dialing chan struct{} // a lock one can give up waiting for
}

// New makes a Pool without connections.
func New(cfg Config) *Pool {
	if cfg.Max <= 0 {
		cfg.Max = DefaultMax
	}
	of := &http.Transport{DisableCompression: true, IdleConnTimeout: idle,
		HTTP2: &http.HTTP2Config{WriteByteTimeout: writeWait, MaxReceiveBufferPerStream: window}}
	tr, err := http2.ConfigureTransports(of)
	if err != nil { // of has had no HTTP/2 before
		panic(err)
	}
	tr.StrictMaxConcurrentStreams, tr.MaxHeaderListSize = true, maxHead
	return &Pool{cfg: cfg, tr: tr}
}

// enter takes the first lane with room, a new one if there is none, or the least busy; one apart for who takes much back.
func (p *Pool) enter(whose string) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Max > 1 && p.resets.many(whose, time.Now()) {
		if p.apart == nil {
			p.apart = newLane()
		}
		p.apart.busy++
		return p.apart
	}
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
		best = newLane()
		p.lanes = append(p.lanes, best)
	}
	best.busy++
	return best
}

func newLane() *lane { return &lane{dialing: make(chan struct{}, 1)} }

func (p *Pool) leave(l *lane) {
	p.mu.Lock()
	l.busy--
	p.mu.Unlock()
}

// RoundTrip implements http.RoundTripper.
func (p *Pool) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, _, err := p.Send(req.Context(), Ask{Request: req})
	return resp, err
}

// Ask is one request, and what it is to whoever sends it. Its body is not closed for good: it may be sent once more if nothing
// was read of it.
type Ask struct {
	*http.Request
	Whose   string // of whom much that is taken back goes over a connection apart; "": nobody's
	Bounded bool   // Fate.LetGo will be asked
}

// Fate is what became of a request that has no answer.
type Fate struct {
	Sent   bool // the upstream may have begun it
	stream *stream
}

// Send sends a request. The answer's body must be closed.
func (p *Pool) Send(ctx context.Context, ask Ask) (resp *http.Response, fate Fate, err error) {
	again := ask.GetBody
	for n := 1; ; n++ {
		if resp, fate, err = p.send(ctx, ask); err == nil || fate.Sent || n == refusals {
			return resp, fate, err
		}
		switch {
		case wasted(err): // nobody has looked at the body
		case !refused(err), ask.Body != nil && again == nil:
			return resp, fate, err
		}
		wait := time.NewTimer(againAfter << (4 * (n - 1)))
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, Fate{}, context.Cause(ctx)
		case <-wait.C:
		}
		if again == nil {
			continue
		}
		next := *ask.Request
		if next.Body, err = again(); err != nil {
			return nil, Fate{}, err
		}
		ask.Request = &next
	}
}

func (p *Pool) send(ctx context.Context, ask Ask) (resp *http.Response, fate Fate, err error) {
	l := p.enter(ask.Whose)
	k, err := p.link(ctx, l)
	if err != nil {
		p.leave(l)
		return nil, Fate{}, err
	}
	if media := ask.Header.Get("Content-Type"); len(media) >= len(grpcMedia) && strings.EqualFold(media[:len(grpcMedia)], grpcMedia) {
		k.wire.grpc.Store(true)
	}
	s := &stream{link: k, whose: ask.Whose}
	if ask.Bounded {
		s.over = make(chan struct{})
	}
	resp, err = k.cc.RoundTrip(ask.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: s.wrote})))
	end := func() {
		p.mu.Lock()
		l.busy--
		over := p.dropped(k)
		p.mu.Unlock()
		if over {
			k.cc.Close()
		}
	}
	if err != nil {
		fate = Fate{Sent: !refused(err) && !wasted(err), stream: s}
		end()
		if strings.HasSuffix(err.Error(), tooLarge) {
			fate.Sent = fate.Sent && len(ask.Trailer) > 0 // a trailer that is too large comes behind what was sent
			return nil, fate, fmt.Errorf("%w: %w", ErrHead, err)
		}
		return nil, fate, err
	}
	// The transport looks at ctx only between two pieces of the request's body: where nothing is sent just now, whoever waits
	// for the answer would wait on.
	answer := resp.Body
	stop := context.AfterFunc(ctx, func() { answer.Close() })
	resp.Body = &body{ReadCloser: answer, end: sync.OnceFunc(func() { stop(); end() })}
	return resp, Fate{Sent: true}, nil
}

// refused says that the peer did nothing for the request (RFC 9113, 8.7). Other words than these are no refusal.
func refused(err error) bool {
	if se, ok := errors.AsType[http2.StreamError](err); ok {
		return se.Code == http2.ErrCodeRefusedStream
	}
	return err.Error() == sentAway
}

// wasted says that the connection was over before a byte of the request was written to it.
func wasted(err error) bool { return err.Error() == unusable || err.Error() == unbegun }

// CloseIdle closes connections without a request, and will not keep those that have one.
func (p *Pool) CloseIdle() {
	var over []*link
	p.mu.Lock()
	for _, l := range append(p.lanes[:len(p.lanes):len(p.lanes)], p.apart) {
		if l != nil && l.link != nil {
			if p.retire(l) {
				over = append(over, l.link)
			}
			l.link = nil
		}
	}
	p.mu.Unlock()
	for _, k := range over {
		k.cc.Close()
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
