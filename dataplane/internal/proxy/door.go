package proxy

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/loop"
	"bailiwick/dataplane/internal/park"
)

// Door takes connections that speak HTTP/1.1, or over TLS HTTP/2. A goroutine serves one connection; it returns when that ends.
// Serve may be called once.
type Door struct {
	Handler http.Handler // of what is not common; set it before Serve
	// Others has what handshakes rest on: its TLSConfig is the door's, and its TLSNextProto serves what agreed on a protocol that
	// is neither HTTP/1.1 nor HTTP/2. It serves nothing itself. nil: there is no TLS.
	Others *http.Server

	// Linger is how long a door that shuts leaves connections alone on which nothing has come in yet: a client may be about to
	// ask, and is answered, and told that the connection ends. 0: not at all. Set it before Serve.
	Linger time.Duration

	fast      *Proxy // of what is; nil: nothing is
	log       *log.Logger
	maxHeader int
	busyPoll  time.Duration // of loops
	works     sync.Pool
	two       *http2.Server
	guests    *guests
	others    []*Door       // that share guests
	parkAfter time.Duration // for tests; 0: as few and many have it
	open      atomic.Int64  // connections
	unshaken  atomic.Int64  // handshakes that failed

	shut    atomic.Bool
	use     loopsInUse
	refuses atomic.Bool   // nor does it take connections that were accepted before it shut
	going   chan struct{} // closed when connections that last are told that it is shut
	told    sync.Once     // of going
	wg      sync.WaitGroup
	accepts sync.WaitGroup // Serve's loop

	mu       sync.Mutex // covers the rest
	lot      *park.Lot  // where connections wait that do nothing; nil: each waits by itself
	lotless  bool       // and there will be none
	listener net.Listener
	conns    map[*conn]struct{}
	turns    []*turn // loops of common requests over cleartext
	loopless bool    // and there will be none
	unlooped bool    // for tests: goroutines serve all
	dealt    int     // connections that were given to them
}

// Serve takes connections from l until the door is shut.
func (d *Door) Serve(l net.Listener) error {
	d.mu.Lock()
	if d.shut.Load() { // nobody would close l any more
		d.mu.Unlock()
		l.Close()
		return http.ErrServerClosed
	}
	d.listener = l
	d.accepts.Add(1)
	defer d.accepts.Done()
	d.mu.Unlock()
	var err error
	for wait := time.Duration(0); ; {
		var raw net.Conn
		if raw, err = l.Accept(); err == nil {
			wait = 0
			d.take(raw)
			continue
		}
		if d.shut.Load() {
			err = http.ErrServerClosed
			break
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() && !isExhausted(err) {
			break
		}
		wait = min(max(5*time.Millisecond, 2*wait), time.Second) // no descriptors, mostly: they come back
		time.Sleep(wait)
	}
	return err
}

func (d *Door) take(raw net.Conn) {
	d.admit(d.adopt(raw))
}

// admit takes a connection that a loop has, perhaps.
func (d *Door) admit(raw net.Conn, lc *loop.Conn, t *turn) {
	remote := raw.RemoteAddr().String()
	c := &conn{door: d, raw: raw, rwc: raw, lc: lc, remote: remote, client: addressOf(remote)}
	if !d.receive(c.client) {
		raw.Close()
		return
	}
	d.mu.Lock()
	if d.refuses.Load() || lc != nil && d.loopless { // its loop may have failed before it was one of conns: nothing would be heard of it
		d.mu.Unlock()
		d.guests.leave(c.client)
		raw.Close()
		return
	}
	d.conns[c] = struct{}{}
	d.open.Add(1)
	c.lot = d.lotFor(raw)
	if lc != nil {
		lc.Owner = c
		c.met, c.home, c.seat = true, t, d.dealt
		if c.turn = t; lc.Watch() { // a loop has it
			d.mu.Unlock()
			return
		}
		c.turn = nil
	}
	d.wg.Go(c.serve)
	d.mu.Unlock()
}

// speak has a connection speak HTTP/2. false: the door was shut meanwhile.
func (d *Door) speak(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !c.phase.CompareAndSwap(waiting, serving) {
		return false
	}
	c.two = d.two.NewConn(c.rwc, http2.Peer{Remote: c.remote, TLS: c.state, Pause: c.pause()}, c.stream)
	return true
}

func (d *Door) forget(c *conn) {
	d.mu.Lock()
	delete(d.conns, c)
	d.open.Add(-1)
	d.stopLoops()
	d.mu.Unlock()
}

// Shutdown takes no more connections and, once it has lingered, no more requests, and waits for those under way until ctx
// ends.
func (d *Door) Shutdown(ctx context.Context) error {
	d.told.Do(func() { close(d.going) })
	return d.Settle(ctx)
}

// Settle is Shutdown, but that connections that last, WebSockets, are not told yet: they may go on for long beside another process.
func (d *Door) Settle(ctx context.Context) error {
	d.close()
	lingered := make(chan struct{})
	if d.Linger > 0 {
		d.accepts.Wait() // what it has accepted by now is served
		time.AfterFunc(d.Linger, func() { close(lingered) })
	} else {
		d.refuses.Store(true)
		close(lingered)
	}
	var told []*conn
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		d.mu.Lock()
		select {
		case <-lingered:
			for c := range d.conns {
				if c.phase.CompareAndSwap(waiting, closed) {
					c.raw.Close()
					told = append(told, c)
				} else if c.two != nil {
					c.two.Drain()
					told = append(told, c)
				}
			}
		default:
		}
		left := len(d.conns)
		d.mu.Unlock()
		for _, c := range told { // whom nobody serves
			c.wake()
		}
		clear(told)
		told = told[:0]
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
	d.two.Close()
	d.parked().Close()
	d.mu.Lock()
	d.refuses.Store(true)
	d.stopLoops()
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// Outlast is End by a door that has settled: connections that last are told when ctx ends.
func (d *Door) Outlast(ctx context.Context) {
	if d.Settle(ctx) == nil {
		return
	}
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	d.End(soon)
}

// endWait is how long connections that were broken off have to count what passed on them.
const endWait = 2 * time.Second

// End is Shutdown, and Close where ctx ends before; then it waits for what was broken off to be counted, for a moment.
func (d *Door) End(ctx context.Context) {
	if d.Shutdown(ctx) == nil {
		return
	}
	d.Close()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	d.Shutdown(last)
}

func (d *Door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut.Store(true)
	if d.listener != nil {
		d.listener.Close()
	}
}

// Close ends everything at once.
func (d *Door) Close() error {
	d.told.Do(func() { close(d.going) })
	d.refuses.Store(true)
	d.close()
	d.two.Close()
	d.mu.Lock()
	for c := range d.conns {
		c.raw.Close()
		if c.lc.Take() {
			c.turn = nil
			c.Rouse()
		}
	}
	d.stopLoops()
	d.mu.Unlock()
	d.parked().Close()
	return nil
}

func isExhausted(err error) bool {
	return strings.Contains(err.Error(), "too many open files")
}
