package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/lifecycle/porttest"
)

// Upstream is a service of the test's own: it remembers each request whose body reached it, and can die, be
// stopped like a process by SIGSTOP, or answer 503. Create it with NewUpstream.
type Upstream struct {
	Region  string
	Address string

	total  atomic.Int64
	broken atomic.Bool // answers 503

	mu     sync.Mutex // covers the rest
	seen   map[string]int
	server *http.Server
	gate   *gate
}

// NewUpstream listens on a port of its own until the test ends.
func NewUpstream(t T, region string) *Upstream {
	t.Helper()
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	u := &Upstream{Region: region, Address: l.Addr().String(), seen: map[string]int{}}
	u.serve(l)
	t.Cleanup(u.Kill)
	return u
}

func (u *Upstream) serve(l net.Listener) {
	g := &gate{conns: map[*gatedConn]struct{}{}}
	server := &http.Server{Handler: u, ReadHeaderTimeout: time.Minute}
	u.mu.Lock()
	u.server, u.gate = server, g
	u.mu.Unlock()
	go server.Serve(&gatedListener{l, g})
}

// ServeHTTP answers what the sandbox's upstream answers.
func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
		if u.broken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return
	}
	// A sender that waits for 100 Continue has not sent the body yet, and may take it elsewhere.
	if u.broken.Load() && r.Header.Get("Expect") != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it did not reach us
	}
	u.mu.Lock()
	u.seen[r.Method+" "+r.URL.Path]++
	u.mu.Unlock()
	u.total.Add(1) // before the answer leaves: what was answered was counted
	status := http.StatusOK
	if u.broken.Load() {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"api": "orders", "region": u.Region, "path": r.URL.Path, "method": r.Method})
}

// Total is how many requests reached it, probes not counted.
func (u *Upstream) Total() int64 { return u.total.Load() }

// Seen copies how often each "METHOD /path" reached it.
func (u *Upstream) Seen() map[string]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make(map[string]int, len(u.seen))
	for k, n := range u.seen {
		out[k] = n
	}
	return out
}

// Under sums what reached it under a path prefix.
func (u *Upstream) Under(prefix string) (n int64) {
	for k, c := range u.Seen() {
		if _, path, _ := strings.Cut(k, " "); strings.HasPrefix(path, prefix) {
			n += int64(c)
		}
	}
	return n
}

// Kill closes the listener and resets every connection, as the kernel does for a killed process.
func (u *Upstream) Kill() {
	u.mu.Lock()
	server, g := u.server, u.gate
	u.server = nil
	u.mu.Unlock()
	if server == nil {
		return
	}
	g.reset()
	server.Close()
	g.resume()
}

// Start listens again where it was.
func (u *Upstream) Start() error {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", u.Address); err == nil {
			u.serve(l)
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("start upstream %s again: %w", u.Region, err)
}

// Pause does what SIGSTOP does: connections are accepted by the kernel, bytes taken, and nothing is answered.
func (u *Upstream) Pause() { u.current().pause() }

// Resume goes on with whatever has arrived meanwhile, as SIGCONT does.
func (u *Upstream) Resume() { u.current().resume() }

// Break makes it answer 503, or behave again.
func (u *Upstream) Break(broken bool) { u.broken.Store(broken) }

func (u *Upstream) current() *gate {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.gate
}

// gate stops a listener and its connections between two system calls.
type gate struct {
	mu     sync.Mutex // covers the rest
	closed chan struct{}
	conns  map[*gatedConn]struct{}
}

func (g *gate) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

func (g *gate) wait() {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed != nil {
		<-closed
	}
}

func (g *gate) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if tcp, ok := c.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Conn.Close()
	}
}

type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.gate.wait()
	gated := &gatedConn{Conn: c, gate: l.gate}
	l.gate.mu.Lock()
	l.gate.conns[gated] = struct{}{}
	l.gate.mu.Unlock()
	return gated, nil
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(b []byte) (int, error) {
	c.gate.wait()
	n, err := c.Conn.Read(b)
	c.gate.wait() // what a stopped process has not read, it does not know
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	c.gate.wait()
	return c.Conn.Write(b)
}

func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
