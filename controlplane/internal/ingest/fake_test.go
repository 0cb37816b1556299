package ingest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

var base = time.Date(2026, 11, 23, 12, 7, 0, 0, time.UTC)

// replica is a group of one: what is proposed is applied.
type replica struct {
	mu    sync.Mutex
	m     *ledger.Machine
	index uint64
	down  error
}

func (r *replica) Propose(_ context.Context, cmd []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down != nil {
		return nil, r.down
	}
	r.index++
	return r.m.Apply(r.index, base, cmd)
}

func (r *replica) ReadIndex(context.Context) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index, r.down
}

func (r *replica) WaitApplied(context.Context, uint64) error { return nil }

func (r *replica) setDown(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = err
}

// authority signs test identities; the common name is "edge/region".
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	c := a.sign(t, tmpl)
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(t *testing.T, tmpl *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	return a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"control"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
}

func peer(cs tls.ConnectionState) (edge, region string, err error) {
	if len(cs.VerifiedChains) == 0 {
		return "", "", errors.New("not verified")
	}
	edge, region, _ = strings.Cut(cs.PeerCertificates[0].Subject.CommonName, "/")
	if edge == "stranger" {
		return "", "", fault.New(fault.Denied, "NODE_UNKNOWN", "edge stranger is not registered")
	}
	return edge, region, nil
}

// world is a server of both transports over a real ledger.
type world struct {
	server  *ingest.Server
	ledger  *ledger.Ledger
	replica *replica
	ca      *authority
	addr    string // of QUIC

	mu        sync.Mutex
	withdrawn map[string]bool
	unsure    error
}

func (w *world) allow(edge, _ string, _ uint64, cells map[usage.Cell]usage.Sums) (string, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.withdrawn[edge] {
		return ingest.ReasonWithdrawn, "", nil
	}
	for c := range cells {
		if strings.HasPrefix(c.Customer, "us-") {
			return ingest.ReasonForeignCustomer, "a row names a foreign customer", nil
		}
	}
	return "", "", w.unsure
}

func (w *world) withdraw(edge string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.withdrawn[edge] = true
}

// extra changes the next world beyond its transport.
var extra = func(*ingest.Config) {}

func newWorld(t *testing.T, change func(*ingest.Config)) *world {
	t.Helper()
	w := &world{ca: newAuthority(t), withdrawn: map[string]bool{}}
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: t.TempDir() + "/ledger", OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	w.replica = &replica{m: m}
	if w.ledger, err = ledger.New(ledger.Config{Machine: m, Replica: w.replica, SealInterval: 20 * time.Millisecond, Timeout: time.Second}); err != nil {
		t.Fatal(err)
	}
	cfg := ingest.Config{Ledger: w.ledger, Allow: w.allow, Peer: peer, Now: func() time.Time { return base },
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{w.ca.issue(t, "control")}, ClientCAs: w.ca.pool, ClientAuth: tls.RequireAndVerifyClientCert}}
	change(&cfg)
	extra(&cfg)
	if cfg.Conn != nil {
		w.addr = cfg.Conn.LocalAddr().String()
	}
	if w.server, err = ingest.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	var led sync.WaitGroup
	led.Go(func() { w.ledger.Run(ctx) })
	go func() { ran <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				t.Errorf("Run: got %v, want nil", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return after its context ended")
		}
		led.Wait()
		if n := w.server.Stats().Sessions; n != 0 {
			eventually(t, "sessions end", func() bool { return w.server.Stats().Sessions == 0 })
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Errorf("%s: not within 30 s", what)
}

func (w *world) requests(t *testing.T, customer string) int64 {
	t.Helper()
	r, err := w.ledger.Usage(t.Context(), customer, base.AddDate(-1, 0, 0), base.AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return r.Total.Requests
}

func payload(customer string, start time.Time, n int64) []byte {
	return usage.EncodePayload(map[usage.Cell]usage.Sums{
		{Start: usage.CellStart(start.UnixMilli()), Customer: customer, Subscription: "s", Plan: "gold", PlanRev: 1, Product: "core", API: "orders",
			Route: "/orders/{id}", Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}: {Requests: n, Units: n}})
}

// chain of blocks of one edge.
type chain struct {
	edge  string
	epoch uint64
	seq   uint64
	head  [32]byte
}

func (c *chain) next(payload []byte) usage.Block {
	b := usage.NewBlock(c.edge, c.epoch, c.seq+1, c.head, payload)
	c.seq, c.head = b.Seq, b.Hash
	return b
}

func describe(reason string, epoch, seq uint64) string {
	return fmt.Sprintf("%s at %d/%d", reason, epoch, seq)
}

type fakeLedger struct{ ingest.Ledger }
