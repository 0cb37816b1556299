package edgetls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/edgetls"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/identity/shelf"
)

// zone is the shelf and the authority that the edges of a zone share.
type zone struct {
	in     *identitytest.Installation
	issued atomic.Int32
	loads  atomic.Int32
	hang   atomic.Bool // the authority never answers
	ttl    time.Duration

	mu     sync.Mutex
	away   bool
	vals   map[string][]byte
	vers   map[string]uint64
	locks  map[string]heldLock
	fence  uint64
	stale  int            // writes under a lease that was lost
	asked  map[string]int // orders by host that the zone gave leave for
	refuse time.Duration  // to wait after an order that failed
}

type heldLock struct {
	holder string
	until  time.Time
	fence  uint64
}

func newZone(t testing.TB) *zone {
	return &zone{in: identitytest.New(t, "test.example", "emea"), ttl: time.Hour, refuse: time.Minute,
		vals: map[string][]byte{}, vers: map[string]uint64{}, locks: map[string]heldLock{}, asked: map[string]int{}}
}

var errLost = fault.New(fault.Conflict, "LOCK_LOST", "the lock is another's")

// leased is what a control node checks before it writes.
func (z *zone) leased(l *joinv1.Lease, key string) error {
	h := z.locks[l.GetName()]
	if l == nil || !shelf.Guards(l.GetName(), key) {
		return fault.New(fault.Invalid, "LOCK_REQUIRED", "%s is not written under %q", key, l.GetName())
	}
	if h.holder != l.GetHolder() || h.fence != l.GetFence() {
		z.stale++
		return errLost
	}
	return nil
}

func (z *zone) Order(_ context.Context, r *joinv1.OrderRequest) (*joinv1.OrderResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if r.GetLease().GetName() != shelf.IssueLock(r.GetHost()) || r.GetTries() == 0 {
		return nil, fault.New(fault.Invalid, "LOCK_REQUIRED", "an order of %s under %q", r.GetHost(), r.GetLease().GetName())
	}
	z.asked[r.GetHost()]++
	return &joinv1.OrderResponse{Granted: true}, nil
}

func (z *zone) Ordered(_ context.Context, r *joinv1.OrderedRequest) (*joinv1.OrderedResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if r.GetOutcome() == joinv1.OrderOutcome_ORDER_OUTCOME_FAILED {
		return &joinv1.OrderedResponse{RetryAfterMs: z.refuse.Milliseconds()}, nil
	}
	return &joinv1.OrderedResponse{}, nil
}

// begin locks, and fails while the control plane is away.
func (z *zone) begin() (func(), error) {
	z.mu.Lock()
	if z.away {
		z.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "AWAY", "the control plane is away")
	}
	return z.mu.Unlock, nil
}

func (z *zone) setAway(away bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.away = away
}

var errNotFound = fault.New(fault.NotFound, "CERT_NOT_FOUND", "absent")

func (z *zone) Store(_ context.Context, r *joinv1.StoreRequest) (*joinv1.StoreResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if bytes.Contains(r.Value, []byte("PRIVATE KEY")) {
		return nil, fault.New(fault.Invalid, "CERT_KEY_NOT_SEALED", "plaintext")
	}
	if v := r.GetIfVersion(); v == 0 || r.GetLease() != nil {
		if err := z.leased(r.GetLease(), r.GetKey()); err != nil {
			return nil, err
		}
	} else if v != z.vers[r.Key] {
		return nil, fault.New(fault.Conflict, "CERT_REPLACED", "replaced")
	}
	z.vals[r.Key] = r.Value
	z.vers[r.Key]++
	return &joinv1.StoreResponse{}, nil
}

func (z *zone) Load(_ context.Context, r *joinv1.LoadRequest) (*joinv1.LoadResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	z.loads.Add(1)
	v, ok := z.vals[r.Key]
	if !ok {
		return nil, errNotFound
	}
	return &joinv1.LoadResponse{Value: v, Version: z.vers[r.Key]}, nil
}

func (z *zone) Delete(_ context.Context, r *joinv1.DeleteRequest) (*joinv1.DeleteResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if err := z.leased(r.GetLease(), r.GetKey()); err != nil {
		return nil, err
	}
	for k := range z.vals {
		if k == r.Key || strings.HasPrefix(k, r.Key+"/") {
			delete(z.vals, k)
		}
	}
	return &joinv1.DeleteResponse{}, nil
}

func (z *zone) List(_ context.Context, r *joinv1.ListRequest) (*joinv1.ListResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	children := map[string]bool{}
	for k := range z.vals {
		if below, ok := strings.CutPrefix(k, r.Prefix+"/"); ok {
			if !r.Recursive {
				below, _, _ = strings.Cut(below, "/")
			}
			children[r.Prefix+"/"+below] = true
		}
	}
	if len(children) == 0 {
		return nil, errNotFound
	}
	return &joinv1.ListResponse{Keys: slices.Sorted(maps.Keys(children))}, nil
}

func (z *zone) Stat(_ context.Context, r *joinv1.StatRequest) (*joinv1.StatResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	v, ok := z.vals[r.Key]
	if !ok {
		return nil, errNotFound
	}
	return &joinv1.StatResponse{Key: r.Key, Size: int64(len(v)), Terminal: true}, nil
}

func (z *zone) Lock(_ context.Context, r *joinv1.LockRequest) (*joinv1.LockResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	l := z.locks[r.Name]
	if l.holder != "" && l.holder != r.Holder && time.Now().Before(l.until) {
		return &joinv1.LockResponse{}, nil
	}
	if l.holder != r.Holder {
		z.fence++
		l.fence = z.fence
	}
	l.holder, l.until = r.Holder, time.Now().Add(time.Duration(r.TtlMs)*time.Millisecond)
	z.locks[r.Name] = l
	return &joinv1.LockResponse{Held: true, Fence: l.fence}, nil
}

func (z *zone) Unlock(_ context.Context, r *joinv1.UnlockRequest) (*joinv1.UnlockResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if z.locks[r.Name].holder == r.Holder {
		delete(z.locks, r.Name)
	}
	return &joinv1.UnlockResponse{}, nil
}

func (z *zone) IssueHost(ctx context.Context, r *joinv1.IssueHostRequest) (*joinv1.IssueHostResponse, error) {
	end, err := z.begin()
	if err != nil {
		return nil, err
	}
	end()
	z.issued.Add(1)
	if z.hang.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(100 * time.Millisecond) // long enough for another edge to try as well
	csr, err := x509.ParseCertificateRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	chain, err := z.in.Sign(r.Csr, "emea", z.in.Node("emea", "r", identity.Edge, "x"), z.ttl, func(c *x509.Certificate) {
		c.URIs, c.DNSNames, c.ExtKeyUsage = nil, csr.DNSNames, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	return &joinv1.IssueHostResponse{CertificateChain: chain}, err
}

// edge starts a manager and returns it with its stop.
func (z *zone) edge(t testing.TB, dir, node string) (*edgetls.Manager, func()) {
	t.Helper()
	return z.edgeAt(t, dir, node, nil)
}

// edgeAt is edge with a border that its session tickets rest on.
func (z *zone) edgeAt(t testing.TB, dir, node string, border func(string) string) (*edgetls.Manager, func()) {
	t.Helper()
	return z.edgeThat(t, dir, node, func(c *edgetls.Config) { c.Border = border })
}

func (z *zone) edgeThat(t testing.TB, dir, node string, mod func(*edgetls.Config)) (*edgetls.Manager, func()) {
	t.Helper()
	cfg := edgetls.Config{
		Dir: dir, Node: node, Seal: bytes.Repeat([]byte{7}, 32), Shelf: z, Issuer: z,
		RenewCheck: 100 * time.Millisecond, CallLimit: time.Second,
	}
	mod(&cfg)
	m, err := edgetls.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: got %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return m, stop
}

func (z *zone) roots(t testing.TB) *x509.CertPool {
	t.Helper()
	p, _, err := identity.ParseRoots(z.in.RootsPEM)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (z *zone) dial(t *testing.T, server *tls.Config, host string) (*x509.Certificate, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Server(a, server).Handshake()
	c := tls.Client(b, &tls.Config{RootCAs: z.roots(t), ServerName: host, NextProtos: []string{"h2"}})
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const host = "orders.emea.example.test"

func TestManager_TwoEdgesShareOneCertificate(t *testing.T) {
	z := newZone(t)
	dir := t.TempDir()
	a, _ := z.edge(t, filepath.Join(dir, "a"), "a")
	b, _ := z.edge(t, filepath.Join(dir, "b"), "b")
	a.Manage([]string{host})
	b.Manage([]string{"Orders.emea.example.test"})
	wait(t, "both edges have the certificate", func() bool { return len(a.Missing())+len(b.Missing()) == 0 })
	if n := z.issued.Load(); n != 1 {
		t.Errorf("issuer called %d times, want once", n)
	}
	ca, err := z.dial(t, a.TLSConfig(), host)
	if err != nil {
		t.Fatal(err)
	}
	cb, err := z.dial(t, b.QUICTLSConfig(), host)
	if err == nil || cb != nil {
		// net.Pipe offers h2 only: the QUIC policy must not take it.
		t.Errorf("h2 on the QUIC policy: got %v, want no common protocol", err)
	}
	if cb, err = z.dial(t, b.TLSConfig(), host); err != nil || !ca.Equal(cb) {
		t.Errorf("the edges serve different certificates (%v)", err)
	}
	if !a.Expires().Equal(ca.NotAfter) {
		t.Errorf("expires: got %v, want %v", a.Expires(), ca.NotAfter)
	}
	// At rest, here and there, no key is readable.
	seen := 0
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		info, _ := d.Info()
		if info.Mode().Perm()&0o077 != 0 && p != dir {
			t.Errorf("%s: mode %v, want no access for others", p, info.Mode())
		}
		if !d.IsDir() {
			seen++
			if data, _ := os.ReadFile(p); bytes.Contains(data, []byte("PRIVATE")) || bytes.Contains(data, []byte("CERTIFICATE")) {
				t.Errorf("%s is not sealed", p)
			}
		}
		return nil
	})
	if seen < 6 {
		t.Errorf("got %d files on both disks, want 6", seen)
	}
}

func TestManager_ServesWithoutControlPlaneAfterRestart(t *testing.T) {
	z := newZone(t)
	dir := t.TempDir()
	a, stop := z.edge(t, dir, "a")
	a.Manage([]string{host})
	wait(t, "certificate", func() bool { return len(a.Missing()) == 0 })
	stop()
	z.setAway(true)
	again, stop := z.edge(t, dir, "a")
	again.Manage([]string{host, "new.emea.example.test"})
	wait(t, "certificate from the disk", func() bool { return len(again.Missing()) == 1 })
	if _, err := z.dial(t, again.TLSConfig(), host); err != nil {
		t.Fatalf("with the control plane away: %v", err)
	}
	// A known host without a certificate, then the control plane is back.
	if _, err := z.dial(t, again.TLSConfig(), "new.emea.example.test"); err == nil {
		t.Error("host without a certificate: got a handshake")
	}
	z.setAway(false)
	wait(t, "the new host's certificate", func() bool { return len(again.Missing()) == 0 })
	stop()

	// Each spoilt file is refused, and replaced from the shelf.
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			data, _ := os.ReadFile(p)
			data[len(data)-1] ^= 1
			os.WriteFile(p, data, 0o600)
		}
		return nil
	})
	n := z.issued.Load()
	healed, _ := z.edge(t, dir, "a")
	healed.Manage([]string{host})
	wait(t, "certificate from the shelf", func() bool { return len(healed.Missing()) == 0 })
	if z.issued.Load() != n {
		t.Errorf("issuer called again for a spoilt file")
	}
}

func TestManager_DiskDoesNotWaitForHangingAuthority(t *testing.T) {
	z := newZone(t)
	dir := t.TempDir()
	a, stop := z.edge(t, dir, "a")
	a.Manage([]string{host})
	wait(t, "certificate", func() bool { return len(a.Missing()) == 0 })
	stop()
	z.hang.Store(true)
	a, _ = z.edge(t, dir, "a")
	var hosts []string
	for i := range 30 {
		hosts = append(hosts, fmt.Sprintf("new-%d.emea.example.test", i))
	}
	a.Manage(hosts)
	wait(t, "orders hang", func() bool { return z.issued.Load() > 8 })
	a.Manage(append(hosts, host))
	wait(t, "certificate from the disk", func() bool { return len(a.Missing()) == len(hosts) })
}

func TestManager_UnknownHostIsUnrecognizedName(t *testing.T) {
	z := newZone(t)
	m, _ := z.edge(t, t.TempDir(), "a")
	m.Manage([]string{host, "gone.emea.example.test"})
	wait(t, "certificates", func() bool { return len(m.Missing()) == 0 })
	const unrecognizedName = tls.AlertError(112)
	for _, h := range []string{"unknown.example.test", "sub." + host, "emea.example.test"} {
		var alert tls.AlertError
		if _, err := z.dial(t, m.TLSConfig(), h); !errors.As(err, &alert) || alert != unrecognizedName {
			// crypto/tls gives a remote alert as *net.OpError around it.
			if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%s: got %v, want unrecognized_name", h, err)
			}
		}
	}
	if n := m.TicketHosts(); n != 0 {
		t.Errorf("ticket keys for %d hosts that are not served: whoever names hosts fills the memory", n)
	}
	if _, err := z.dial(t, m.TLSConfig(), strings.ToUpper(host)); err != nil {
		t.Errorf("capital letters: got %v, want served", err)
	}
	m.Manage([]string{host})
	if _, err := z.dial(t, m.TLSConfig(), "gone.emea.example.test"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("removed host: got %v, want unrecognized_name at once", err)
	}
	if _, err := z.dial(t, m.TLSConfig(), host); err != nil {
		t.Errorf("host that stays: got %v", err)
	}
}

func TestManager_Renews(t *testing.T) {
	t.Parallel()
	z := newZone(t)
	z.ttl = 7 * time.Second // renewed when a third is left
	a, _ := z.edge(t, t.TempDir(), "a")
	b, _ := z.edge(t, t.TempDir(), "b")
	a.Manage([]string{host})
	b.Manage([]string{host})
	wait(t, "certificates", func() bool { return len(a.Missing())+len(b.Missing()) == 0 })
	first, began := a.Expires(), time.Now()
	renewed := func() bool { return a.Expires().After(first) && b.Expires().After(first) }
	for time.Now().Before(first.Add(time.Second)) || !renewed() {
		for _, m := range []*edgetls.Manager{a, b} {
			_, err := z.dial(t, m.TLSConfig(), host)
			// On a machine that is too slow for certificates of seven seconds one may end before the next is there: that is
			// no finding, as long as the next comes.
			if err != nil && time.Now().Before(m.Expires()) {
				t.Fatalf("handshake while renewing: %v (now %v, expires %v)", err, time.Now(), m.Expires())
			}
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("a certificate was not renewed: %v and %v, the first until %v", a.Expires(), b.Expires(), first)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// One for both edges each time, and a time is not before two thirds of a life have passed.
	if n, most := z.issued.Load(), 2+int32(time.Since(began)/(4*time.Second)); n > most {
		t.Errorf("issuer called %d times in %v for certificates of %v, want %d at most: one for both edges each time", n, time.Since(began), z.ttl, most)
	}
}

func TestConfig_Validate(t *testing.T) {
	if _, err := edgetls.New(edgetls.Config{}); err == nil {
		t.Error("empty configuration: got accepted")
	}
	z := newZone(t)
	_, err := edgetls.New(edgetls.Config{Dir: t.TempDir(), Node: "a", Seal: make([]byte, 32), Shelf: z, ACME: edgetls.ACME{Directory: "https://127.0.0.1:1/dir", RootsPEM: []byte("noise")}})
	if err == nil {
		t.Error("unparsable ACME roots: got accepted")
	}
}
