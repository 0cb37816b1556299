package etcdgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/lifecycle/porttest"
)

// cluster is an etcd of real members in this process. Clients and peers reach a member through proxies, which a test cuts.
type cluster struct {
	t       testing.TB
	members []*member
	token   string
	sync    bool // fsync, as in production
}

type member struct {
	name, dir    string
	client, peer string // where it listens
	toClient     *proxy
	toPeer       *proxy
	etcd         *embed.Etcd // nil while it is down
	dying        atomic.Bool
}

// proxy forwards connections until it is cut; then they end, and new ones hang.
type proxy struct {
	ln net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex // covers all below
	cut   bool
	conns map[net.Conn]bool
}

func newProxy(t testing.TB, to string) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() { ln.Close(); p.set(true); p.set(false); p.wg.Wait() })
	return p
}

func (p *proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		if !p.keep(c) {
			continue // hangs until the cut ends
		}
		p.wg.Go(func() {
			defer p.drop(c)
			d, err := net.Dial("tcp", p.to)
			if err != nil || !p.keep(d) {
				return
			}
			defer p.drop(d)
			done := make(chan struct{})
			p.wg.Go(func() { _, _ = io.Copy(d, c); d.Close(); close(done) })
			_, _ = io.Copy(c, d)
			c.Close()
			<-done
		})
	}
}

func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return !p.cut
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close()
}

func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func newEtcd(t testing.TB, n int) *cluster {
	t.Helper()
	c := &cluster{t: t}
	c.make(n)
	return c
}

func (c *cluster) make(n int) {
	t := c.t
	t.Helper()
	c.token = "t" + fmt.Sprint(counter.Add(1))
	dir := t.TempDir()
	for i := range n {
		m := &member{name: fmt.Sprint("m", i+1), client: porttest.Addr(t), peer: porttest.Addr(t)}
		m.dir = filepath.Join(dir, m.name)
		m.toClient, m.toPeer = newProxy(t, m.client), newProxy(t, m.peer)
		c.members = append(c.members, m)
	}
	c.startAll()
	t.Cleanup(func() {
		for _, m := range c.members {
			c.kill(m)
		}
	})
}

var counter atomic.Int64

func (c *cluster) config(m *member) *embed.Config {
	at := func(scheme, addr string) []url.URL { return []url.URL{{Scheme: scheme, Host: addr}} }
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = m.name, m.dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at("http", m.client), at("http", m.toClient.ln.Addr().String())
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at("http", m.peer), at("http", m.toPeer.ln.Addr().String())
	var all []string
	for _, o := range c.members {
		all = append(all, o.name+"=http://"+o.toPeer.ln.Addr().String())
	}
	cfg.InitialCluster, cfg.InitialClusterToken = strings.Join(all, ","), c.token
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.UnsafeNoFsync = !c.sync
	cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainUnaryInterceptor(m.crash)}
	cfg.LogOutputs, cfg.LogLevel = []string{"/dev/null"}, "fatal"
	return cfg
}

func (c *cluster) startAll() {
	for _, m := range c.members {
		c.begin(m)
	}
	for _, m := range c.members {
		select {
		case <-m.etcd.Server.ReadyNotify():
		case <-time.After(time.Minute):
			c.t.Fatalf("etcd %s is not ready after a minute", m.name)
		}
	}
}

func (c *cluster) begin(m *member) {
	c.t.Helper()
	m.dying.Store(false)
	e, err := embed.StartEtcd(c.config(m))
	if err != nil {
		c.t.Fatalf("start etcd %s: %v", m.name, err)
	}
	m.etcd = e
}

// crash: a request that comes while a member is killed finds its database gone, and the panic would end all of this process.
func (m *member) crash(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if m.dying.Load() && recover() != nil {
			err = status.Error(codes.Unavailable, "killed")
		}
	}()
	return handle(ctx, req)
}

// kill ends a member as a crash would: it hands nothing over.
func (c *cluster) kill(m *member) {
	if m.etcd == nil {
		return
	}
	m.dying.Store(true)
	m.etcd.Server.HardStop()
	m.etcd.Close()
	m.etcd = nil
}

func (c *cluster) leader() *member {
	for range 600 {
		for _, m := range c.members {
			if m.etcd != nil && m.etcd.Server.Leader() == m.etcd.Server.MemberID() {
				return m
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.t.Fatal("etcd has no leader")
	return nil
}

func (c *cluster) endpoints() (out []string) {
	for _, m := range c.members {
		out = append(out, m.toClient.ln.Addr().String())
	}
	return out
}

// raw is a client of the test's own.
func (c *cluster) raw() *clientv3.Client {
	c.t.Helper()
	cl, err := clientv3.New((&Store{cfg: Config{Endpoints: c.endpoints()}}).clientConfig(context.Background()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

// compact forgets etcd's history up to now.
func (c *cluster) compact(cl *clientv3.Client) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := cl.Get(ctx, "x")
	if err == nil {
		_, err = cl.Compact(ctx, resp.Header.Revision)
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) { // asked again by the client itself, after an answer was lost
		c.t.Fatalf("compact: %v", err)
	}
}

// node starts a Store; end stops it.
func (c *cluster) node(name, prefix string, change ...func(*Config)) (s *Store, end func()) {
	c.t.Helper()
	cfg := Config{Name: "g", Node: name, Endpoints: c.endpoints(), Prefix: prefix, LeaseTTL: time.Second, LookEvery: 500 * time.Millisecond}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	end = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil && cfg.OnFatal == nil {
				c.t.Errorf("run %s: %v", name, err)
			}
		})
	}
	c.t.Cleanup(end)
	return s, end
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not after 30 s", what)
}

func put(t testing.TB, s group.Store, key, value string) group.Result {
	t.Helper()
	r, err := s.Txn(short(t), group.Txn{Ops: []group.Op{{Key: key, Value: []byte(value)}}})
	if err != nil || !r.Succeeded {
		t.Fatalf("put %s: got %+v, %v", key, r, err)
	}
	return r
}

func wantValue(t testing.TB, s group.Store, key, want string) {
	t.Helper()
	kv, ok, _, err := s.Get(short(t), key)
	if err != nil || !ok || string(kv.Value) != want {
		t.Errorf("get %s: got %q, %v, %v, want %q", key, kv.Value, ok, err, want)
	}
}

func leads(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "it leads", func() bool { _, self := s.Leader(); return self })
}
