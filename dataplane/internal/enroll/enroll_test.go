package enroll_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"bailiwick/dataplane/internal/enroll"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
)

// control is a control node as an edge sees it: both ports.
type control struct {
	joinv1connect.UnimplementedIdentityServiceHandler
	joinv1connect.UnimplementedCertStoreServiceHandler
	in    *identitytest.Installation
	peers []string
	ttl   time.Duration

	mu     sync.Mutex
	usedBy string
	calls  int
	fail   func(call int) error
	renews atomic.Int32
}

func denied(reason string) error {
	err := connect.NewError(connect.CodePermissionDenied, errors.New("no"))
	d, _ := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: reason, Domain: "bailiwick"})
	err.AddDetail(d)
	return err
}

func (c *control) Join(_ context.Context, r *joinv1.JoinRequest) (*joinv1.JoinResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	csr, err := x509.ParseCertificateRequest(r.Csr)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	key := string(csr.RawSubjectPublicKeyInfo)
	if r.Token != "bwj_emea_good" {
		return nil, denied("TOKEN_UNKNOWN")
	}
	if c.usedBy != "" && c.usedBy != key {
		return nil, denied("TOKEN_USED")
	}
	c.usedBy = key
	if c.fail != nil { // after the token is spent
		if err := c.fail(c.calls); err != nil {
			return nil, err
		}
	}
	chain, err := c.in.Sign(r.Csr, "emea", c.in.Node("emea", r.Region, identity.Edge, r.Name), c.ttl, nil)
	return &joinv1.JoinResponse{
		CertificateChain: chain, Roots: c.in.RootsPEM, Name: r.Name, Region: r.Region, Zone: "emea", TrustDomain: "emea.test.example",
		TableSigningKey: make([]byte, ed25519.PublicKeySize), Pepper: make([]byte, 32), CertSealKey: make([]byte, 32), PeerAddrs: c.peers,
	}, err
}

func (c *control) Renew(_ context.Context, r *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
	c.renews.Add(1)
	chain, err := c.in.Sign(r.Csr, "emea", c.in.Node("emea", "eu-west", identity.Edge, "e1"), c.ttl, nil)
	return &joinv1.RenewResponse{CertificateChain: chain, Roots: c.in.RootsPEM}, err
}

func serve(t *testing.T, h http.Handler, cfg *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS, s.EnableHTTP2 = cfg, true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// start returns a control node and a configuration that joins it.
func start(t *testing.T, ttl time.Duration) (*control, enroll.Config) {
	t.Helper()
	c := &control{in: identitytest.New(t, "test.example", "emea", "us"), ttl: ttl}
	chain, key := c.in.Issue(t, c.in.Node("emea", "r", identity.Control, "x"), time.Hour, func(cert *x509.Certificate) {
		cert.URIs, cert.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(joinv1connect.NewJoinServiceHandler(c))
	admin := serve(t, mux, &tls.Config{Certificates: []tls.Certificate{pair}})
	mux = http.NewServeMux()
	mux.Handle(joinv1connect.NewIdentityServiceHandler(c))
	peer := serve(t, mux, c.in.Source(t, "emea", "eu-west", identity.Control, "emea-1").ServerTLS([]string{"h2"}, nil))
	c.peers = []string{"emea-0=127.0.0.1:1", "emea-1=" + peer} // the first never answers
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, c.in.RootsPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return c, enroll.Config{
		Dir: filepath.Join(dir, "edge"), Name: "e1", Region: "eu-west", RelayAddr: "127.0.0.1:7501", Token: "bwj_emea_good",
		ControlURLs: []string{"https://127.0.0.1:1", "https://" + admin}, CAFile: ca, Timeout: 10 * time.Second,
	}
}

func TestEnroll_JoinsOnceAndLoadsAfterwards(t *testing.T) {
	_, cfg := start(t, time.Hour)
	st, err := enroll.Enroll(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if st.Source.Name().Node != "e1" || len(st.Pepper) != 32 || len(st.CertSeal) != 32 || len(st.Peers) != 2 {
		t.Fatalf("state: got %v", st)
	}
	if s := fmt.Sprintf("%v %+v %#v", st, st, st); strings.Contains(s, "0 0 0 0") {
		t.Error("the state prints its secrets")
	}
	// No control node, no token, no CA file: a restart needs none of them.
	again, err := enroll.Enroll(t.Context(), enroll.Config{Dir: cfg.Dir, Name: "e1", Region: "eu-west"})
	if err != nil || again.Source.Serial() != st.Source.Serial() {
		t.Fatalf("restart: got %v", err)
	}
	if _, err := enroll.Enroll(t.Context(), enroll.Config{Dir: cfg.Dir, Name: "e2", Region: "eu-west"}); err == nil {
		t.Error("another name on this directory: got loaded")
	}
	filepath.WalkDir(cfg.Dir, func(p string, d os.DirEntry, err error) error {
		if info, _ := d.Info(); info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, want no access for others", p, info.Mode())
		}
		if d.Name() == "join.key" {
			t.Error("the key of the join is left behind")
		}
		return nil
	})
	// A spoilt file refuses.
	path := filepath.Join(cfg.Dir, "identity", "secrets")
	b, _ := os.ReadFile(path)
	b[len(b)-5] ^= 1
	os.WriteFile(path, b, 0o600)
	if _, err := enroll.Enroll(t.Context(), cfg); err == nil {
		t.Error("flipped byte in the secrets: got loaded")
	}
}

func TestEnroll_LostAnswerIsAskedForAgain(t *testing.T) {
	c, cfg := start(t, time.Hour)
	c.fail = func(call int) error {
		if call <= 2 {
			return connect.NewError(connect.CodeUnavailable, errors.New("leader died"))
		}
		return nil
	}
	// The process dies after the first attempt, with the token spent: the next
	// one has the same key.
	first := cfg
	first.Timeout = 50 * time.Millisecond
	if _, err := enroll.Enroll(t.Context(), first); err == nil {
		t.Fatal("first run: got joined, want an error")
	}
	if _, err := enroll.Enroll(t.Context(), cfg); err != nil {
		t.Fatalf("second run: %v", err)
	}
}

func TestEnroll_Refuses(t *testing.T) {
	c, cfg := start(t, time.Hour)
	for what, change := range map[string]func(*enroll.Config){
		"no CA file":         func(c *enroll.Config) { c.CAFile = filepath.Join(c.Dir, "absent") },
		"an empty CA file":   func(c *enroll.Config) { c.CAFile = os.DevNull },
		"another root":       func(c *enroll.Config) { c.CAFile = filepath.Join(filepath.Dir(c.Dir), "other.pem") },
		"no token":           func(c *enroll.Config) { c.Token = "" },
		"plain http":         func(c *enroll.Config) { c.ControlURLs = []string{"http://127.0.0.1:1"} },
		"bad relay address":  func(c *enroll.Config) { c.RelayAddr = "7501" },
		"no control URL":     func(c *enroll.Config) { c.ControlURLs = nil },
		"no region":          func(c *enroll.Config) { c.Region = "" },
		"unknown token file": func(c *enroll.Config) { c.Token, c.TokenFile = "", filepath.Join(c.Dir, "absent") },
	} {
		bad := cfg
		change(&bad)
		bad.Timeout = 300 * time.Millisecond
		os.WriteFile(filepath.Join(filepath.Dir(cfg.Dir), "other.pem"), identitytest.New(t, "test.example", "emea").RootsPEM, 0o600)
		if _, err := enroll.Enroll(t.Context(), bad); err == nil {
			t.Errorf("%s: got joined, want refused", what)
		}
	}
	if c.calls != 0 {
		t.Errorf("the token left for a stranger %d times", c.calls)
	}
	bad := cfg
	bad.Token, bad.ControlURLs = "bwj_emea_bad", cfg.ControlURLs[1:]
	if _, err := enroll.Enroll(t.Context(), bad); fault.ReasonOf(err) != "TOKEN_UNKNOWN" || fault.KindOf(err) != fault.Denied {
		t.Errorf("unknown token: got %v, want denied TOKEN_UNKNOWN", err)
	}
}

func TestClient_RenewsThroughWhoeverAnswers(t *testing.T) {
	c, cfg := start(t, 3*time.Second)
	st, err := enroll.Enroll(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cl := st.NewClient()
	defer cl.Close()
	serial := st.Source.Serial()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cl.Renewer(st.Source, nil).Run(ctx) }()
	deadline := time.Now().Add(time.Minute)
	for c.renews.Load() < 2 || st.Source.Serial() == serial {
		if time.Now().After(deadline) {
			t.Fatalf("got %d renewals, want 2", c.renews.Load())
		}
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: got %v", err)
	}
	again, err := enroll.Enroll(t.Context(), cfg)
	if err != nil || again.Source.Serial() == serial {
		t.Errorf("after renewal the disk holds the old certificate (%v)", err)
	}
	if _, err := cl.Load(t.Context(), &joinv1.LoadRequest{Key: "x"}); err == nil {
		t.Error("a service that is not there: got an answer")
	}
}
