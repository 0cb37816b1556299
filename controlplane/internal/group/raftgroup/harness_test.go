package raftgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// network is a set of nodes on loopback that can be cut from each other.
type network struct {
	mu    sync.Mutex
	addrs map[string]string
	wires map[string]string // under which name a node's group meets
	nodes map[string]*Store
	cut   map[string]bool
	conns map[string][]net.Conn
}

func newNetwork() *network {
	return &network{addrs: map[string]string{}, wires: map[string]string{}, nodes: map[string]*Store{}, cut: map[string]bool{}, conns: map[string][]net.Conn{}}
}

type netStream struct {
	net.Listener
	nw   *network
	self string
}

// listen is Config.Listen.
func (n *network) listen(t testing.TB, self string) func(string) Stream {
	return func(wire string) Stream { return n.stream(t, self, wire) }
}

func (n *network) stream(t testing.TB, self, wire string) *netStream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[self], n.wires[self] = l.Addr().String(), wire
	return &netStream{l, n, self}
}

func (s *netStream) keep(c net.Conn, names ...string) (net.Conn, error) {
	s.nw.mu.Lock()
	defer s.nw.mu.Unlock()
	for _, name := range names {
		if s.nw.cut[name] {
			c.Close()
			return nil, errors.New("cut off")
		}
		s.nw.conns[name] = append(s.nw.conns[name], c)
	}
	return c, nil
}

func (s *netStream) Dial(ctx context.Context, node string) (net.Conn, error) {
	s.nw.mu.Lock()
	addr, strange := s.nw.addrs[node], s.nw.wires[node] != s.nw.wires[s.self]
	s.nw.mu.Unlock()
	if strange { // as the peer port refuses the protocol
		return nil, errors.New("no common protocol")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return s.keep(c, s.self, node)
}

func (s *netStream) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, err := s.keep(c, s.self); err == nil {
			return c, nil
		}
	}
}

func (n *network) isolate(name string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[name] = cut
	for _, c := range n.conns[name] {
		c.Close()
	}
	n.conns[name] = nil
}

type netForward struct {
	nw   *network
	self string
}

func (f netForward) node(name string) (*Store, error) {
	f.nw.mu.Lock()
	defer f.nw.mu.Unlock()
	s := f.nw.nodes[name]
	if s == nil || f.nw.cut[name] || f.nw.cut[f.self] {
		return nil, fault.New(fault.Unavailable, "UNREACHABLE", "%s is out of reach", name)
	}
	return s, nil
}

func (f netForward) Propose(ctx context.Context, node, _ string, cmd []byte) ([]byte, error) {
	s, err := f.node(node)
	if err != nil {
		return nil, err
	}
	return s.node.HandlePropose(ctx, cmd)
}

func (f netForward) ReadIndex(ctx context.Context, node, _ string) (uint64, error) {
	s, err := f.node(node)
	if err != nil {
		return 0, err
	}
	return s.node.HandleReadIndex(ctx)
}

func (f netForward) Describe(_ context.Context, node, _ string) (Status, error) {
	s, err := f.node(node)
	if err != nil {
		return Status{}, err
	}
	return s.node.Status(), nil
}

// cluster is a whole group in one process.
type cluster struct {
	t      testing.TB
	nw     *network
	base   Config
	dir    string
	stores map[string]*Store
	stop   map[string]func() error

	forward func(Forwarder) Forwarder // of nodes that start from now on

	fatal chan error
}

func newCluster(t testing.TB, base Config) *cluster {
	t.Helper()
	if base.Group == "" {
		base.Group = "store/test"
	}
	if base.Timing == (Timing{}) {
		base.Timing = Local()
	}
	if base.Voters == nil {
		base.Voters = []string{"n1", "n2", "n3"}
	}
	if os.Getenv("RAFT_LOG") != "" {
		base.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c := &cluster{t: t, nw: newNetwork(), base: base, dir: t.TempDir(), stores: map[string]*Store{}, stop: map[string]func() error{}, fatal: make(chan error, 16)}
	for _, name := range append(append([]string{}, base.Voters...), base.Nonvoters...) {
		c.start(name)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, stop := range c.stop {
			wg.Go(func() { _ = stop() })
		}
		wg.Wait()
	})
	return c
}

func (c *cluster) config(name string) Config {
	cfg := c.base
	cfg.Node, cfg.Dir = name, filepath.Join(c.dir, name)
	cfg.Forward = netForward{c.nw, name}
	if c.forward != nil {
		cfg.Forward = c.forward(cfg.Forward)
	}
	cfg.OnFatal = func(err error) {
		c.nw.mu.Lock()
		s := c.nw.nodes[name]
		c.nw.mu.Unlock()
		if s != nil && s.node.fence != nil && !s.node.fence.up() {
			c.t.Errorf("%s: OnFatal is called before the fence is up", name)
		}
		c.fatal <- err
	}
	return cfg
}

func (c *cluster) start(name string) *Store {
	c.t.Helper()
	cfg := c.config(name)
	if !cfg.alone() {
		cfg.Listen = c.nw.listen(c.t, name)
	}
	s, err := NewStore(cfg)
	if err != nil {
		c.t.Fatalf("start %s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c.nw.mu.Lock()
	c.nw.nodes[name] = s
	c.nw.mu.Unlock()
	c.stores[name] = s
	var once sync.Once
	var result error
	c.stop[name] = func() error {
		once.Do(func() {
			c.nw.mu.Lock()
			delete(c.nw.nodes, name)
			c.nw.mu.Unlock()
			cancel()
			result = <-done
		})
		return result
	}
	return s
}

// kill is as near to SIGKILL as one process allows: cut off first, so that
// nothing is handed over in good order.
func (c *cluster) kill(name string) {
	c.t.Helper()
	c.nw.isolate(name, true)
	c.stores[name].Close()
	_ = c.stop[name]()
	delete(c.stores, name)
	c.nw.isolate(name, false)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// leader is the node all running voters agree on.
func (c *cluster) leader() *Store {
	c.t.Helper()
	var out *Store
	eventually(c.t, "one leader ready", func() bool {
		for _, s := range c.stores {
			if ctx, _, _ := s.node.turn.Look(); ctx != nil && s.VerifyLeader(short(c.t)) == nil {
				out = s
				return true
			}
		}
		return false
	})
	return out
}

func (c *cluster) follower() *Store {
	c.t.Helper()
	l := c.leader()
	for _, name := range c.base.Voters {
		if s := c.stores[name]; s != nil && s != l {
			return s
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func put(t testing.TB, s *Store, key, value string) group.Result {
	t.Helper()
	r, err := s.Txn(short(t), group.Txn{Ops: []group.Op{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s at %s: %v", key, s.node.cfg.Node, err)
	}
	return r
}

func wantValue(t testing.TB, s *Store, key, want string) {
	t.Helper()
	kv, ok, _, err := s.Get(short(t), key)
	if err != nil || !ok || string(kv.Value) != want {
		t.Errorf("get %s at %s: got %q, %v, %v, want %q", key, s.node.cfg.Node, kv.Value, ok, err, want)
	}
}

func (c *cluster) wantSameState() {
	c.t.Helper()
	eventually(c.t, "all nodes hold the same state", func() bool {
		seen := map[string]bool{}
		for _, s := range c.stores {
			rev, h := s.StateHash()
			seen[fmt.Sprint(rev, h)] = true
		}
		return len(seen) == 1
	})
}

func mustContain(t testing.TB, err error, want ...string) {
	t.Helper()
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error: got %v, want it to say %q", err, w)
		}
	}
}

func readerOf(t testing.TB, write func(io.Writer) error) io.Reader {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return &b
}
