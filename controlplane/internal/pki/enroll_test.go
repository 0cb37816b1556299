package pki_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	"bailiwick/controlplane/internal/pki"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

func startStore(t *testing.T, name string) group.Store {
	t.Helper()
	s, err := raftgroup.NewStore(raftgroup.Config{Group: name, Node: "emea-1", Dir: t.TempDir(), Voters: []string{"emea-1"}, Timing: raftgroup.Local()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

type world struct {
	e             *pki.Enroll
	catalog, zone group.Store
	in            *pki.Installation
	roots         []byte
	dir           string // of the installation's kits
}

// failing lets a test lose the nth transaction's answer, or the transaction.
type failing struct {
	group.Store
	fail atomic.Int32 // 0: never; else counts down to the one that fails
}

func (f *failing) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	if f.fail.Load() > 0 && f.fail.Add(-1) == 0 {
		return group.Result{}, errors.New("the node dies here")
	}
	return f.Store.Txn(ctx, t)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, _ := initDir(t)
	home := filepath.Join(dir, "emea-1", "identity")
	in, secrets, ca, err := pki.Load(home)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{catalog: &failing{Store: startStore(t, "catalog")}, zone: &failing{Store: startStore(t, "store/emea")}, in: in, dir: dir}
	w.roots, _ = os.ReadFile(filepath.Join(home, "roots.pem"))
	var ops []group.Op
	for _, r := range in.Regions {
		ops = append(ops, group.Op{Key: model.PrefixRegion + r.Name, Value: model.Encode(model.Region{Name: r.Name, Zone: r.Zone, ControlOnly: r.ControlOnly})})
	}
	for _, n := range in.ControlNodes {
		ops = append(ops, group.Op{Key: model.PrefixNode + n.Name, Value: model.Encode(model.Node{Name: n.Name, Kind: "control", Region: n.Region, Zone: n.Zone, PeerAddr: n.Peer})})
	}
	ops = append(ops,
		group.Op{Key: model.PrefixAPI + "orders", Value: model.Encode(model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.emea.example.test"}})},
		group.Op{Key: model.PrefixAPI + "orders-us", Value: model.Encode(model.API{Name: "orders-us", Zone: "us", Hosts: []string{"orders.us.example.test"}})})
	if _, err := w.catalog.Txn(t.Context(), group.Txn{Ops: ops}); err != nil {
		t.Fatal(err)
	}
	w.e, err = pki.NewEnroll(pki.EnrollConfig{
		CA: ca, Secrets: secrets, Installation: in, RootsPEM: w.roots, Catalog: w.catalog, ZoneStore: w.zone,
		Allow: pki.Registry{Catalog: w.catalog, Installation: in}.Allow,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) token(t *testing.T, region, name string, ttl time.Duration) string {
	t.Helper()
	tok, expires, err := w.e.CreateToken(t.Context(), identity.Edge, region, name, ttl)
	if err != nil || time.Until(expires) > 15*time.Minute+time.Second {
		t.Fatalf("create token: %v, expires %v", err, expires)
	}
	return tok
}

func request(t *testing.T, token, region, name string) (*joinv1.JoinRequest, []byte) {
	t.Helper()
	key, csr, err := identity.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	return &joinv1.JoinRequest{Token: token, Csr: csr, Name: name, Region: region, RelayAddr: "127.0.0.1:7501"}, key
}

func TestEnroll_Join(t *testing.T) {
	w := newWorld(t)
	tok := w.token(t, "eu-west", "e1", 0)
	if !strings.HasPrefix(tok, "bwj_emea_") || len(tok) != len("bwj_emea_")+43 {
		t.Errorf("token form: got %q", tok[:9])
	}
	kvs, _, err := w.zone.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range kvs {
		if strings.Contains(kv.Key+string(kv.Value), tok) {
			t.Error("the token rests in the store as text")
		}
	}
	req, key := request(t, tok, "eu-west", "e1")
	resp, err := w.e.Join(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	src, err := identity.New(resp.CertificateChain, key, resp.Roots)
	if err != nil || src.Name().String() != "spiffe://emea.test.example/region/eu-west/edge/e1" {
		t.Fatalf("identity: got %v", err)
	}
	if got := strings.Join(resp.PeerAddrs, " "); got != "emea-1=127.0.0.1:7101 emea-2=127.0.0.1:7102" {
		t.Errorf("peer addresses: got %q", got)
	}
	if len(resp.Pepper) != 32 || len(resp.CertSealKey) != 32 || len(resp.TableSigningKey) != 32 || resp.TrustDomain != "emea.test.example" {
		t.Error("the answer lacks secrets or the trust domain")
	}
	kv, ok := w.catalog.Local().Get(model.PrefixNode + "e1")
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if !ok || err != nil || n.Kind != "edge" || n.Region != "eu-west" || n.Zone != "emea" || n.RelayAddr != "127.0.0.1:7501" {
		t.Errorf("registry: got %+v %v", n, err)
	}
	// A lost answer: the same key may ask again, another key may not.
	if _, err := w.e.Join(t.Context(), req); err != nil {
		t.Errorf("same token, same key: got %v, want answered", err)
	}
	other, _ := request(t, tok, "eu-west", "e1")
	if _, err := w.e.Join(t.Context(), other); fault.ReasonOf(err) != pki.ReasonTokenUsed || fault.KindOf(err) != fault.Denied {
		t.Errorf("same token, another key: got %v, want %s", err, pki.ReasonTokenUsed)
	}
	// A fresh token lets the node in again, with another relay address.
	again, _ := request(t, w.token(t, "eu-west", "e1", 0), "eu-west", "e1")
	again.RelayAddr = "127.0.0.1:7999"
	if _, err := w.e.Join(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	kv, _ = w.catalog.Local().Get(model.PrefixNode + "e1")
	if n, _ := model.Decode[model.Node](kv.Key, kv.Value); n.RelayAddr != "127.0.0.1:7999" {
		t.Errorf("re-join: relay address %q, want the new one", n.RelayAddr)
	}
	// Withdrawn: the used token does not bring it back.
	if _, err := w.catalog.Txn(t.Context(), group.Txn{Ops: []group.Op{{Key: model.PrefixNode + "e1", Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.e.Join(t.Context(), req); fault.ReasonOf(err) != pki.ReasonWithdrawn {
		t.Errorf("withdrawn node with its used token: got %v, want %s", err, pki.ReasonWithdrawn)
	}
}

func TestEnroll_JoinRefuses(t *testing.T) {
	w := newWorld(t)
	tok := w.token(t, "eu-west", "e1", 0)
	short := w.token(t, "eu-west", "e2", time.Second)
	time.Sleep(1100 * time.Millisecond) // the leader's stamp follows the real clock
	for _, tc := range []struct{ what, token, region, name, reason string }{
		{"noise", "hello", "eu-west", "e1", pki.ReasonTokenUnknown},
		{"another zone's", strings.Replace(tok, "emea", "us", 1), "eu-west", "e1", pki.ReasonTokenUnknown},
		{"well-formed, never made", tok[:len(tok)-4] + "0000", "eu-west", "e1", pki.ReasonTokenUnknown},
		{"another region", tok, "eu-north", "e1", pki.ReasonTokenRegion},
		{"another name", tok, "eu-west", "e9", pki.ReasonTokenName},
		{"expired", short, "eu-west", "e2", pki.ReasonTokenExpired},
	} {
		req, _ := request(t, tc.token, tc.region, tc.name)
		if _, err := w.e.Join(t.Context(), req); fault.ReasonOf(err) != tc.reason || fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: got %v, want denied %s", tc.what, err, tc.reason)
		}
	}
	req, _ := request(t, tok, "eu-west", "e1")
	req.Csr = []byte("noise")
	if _, err := w.e.Join(t.Context(), req); fault.ReasonOf(err) != pki.ReasonCSR {
		t.Errorf("no request: got %v, want %s", err, pki.ReasonCSR)
	}
	// None of these spent the token.
	req, _ = request(t, tok, "eu-west", "e1")
	if _, err := w.e.Join(t.Context(), req); err != nil {
		t.Errorf("after the refusals: got %v, want joined", err)
	}
	for _, tc := range []struct {
		kind, region, name string
		ttl                time.Duration
		reason             string
	}{
		{"console", "eu-west", "c1", 0, pki.ReasonTokenInvalid},
		{identity.Edge, "eu-west", "e3", time.Hour, pki.ReasonTokenInvalid},
		{identity.Edge, "eu-west", "E3", 0, pki.ReasonTokenInvalid},
		{identity.Edge, "nowhere", "e3", 0, "REGION_UNKNOWN"},
		{identity.Edge, "us-east", "e3", 0, "REGION_OF_ANOTHER_ZONE"},
		{identity.Edge, "eu-north", "e3", 0, "REGION_CONTROL_ONLY"},
		{identity.Edge, "eu-west", "us-1", 0, pki.ReasonNameTaken},
	} {
		if _, _, err := w.e.CreateToken(t.Context(), tc.kind, tc.region, tc.name, tc.ttl); fault.ReasonOf(err) != tc.reason {
			t.Errorf("create token %+v: got %v", tc, err)
		}
	}
}

// Two processes hold one token: one of them gets in.
func TestEnroll_TokenIsSingleUse(t *testing.T) {
	w := newWorld(t)
	for round := range 10 {
		tok := w.token(t, "eu-west", "e1", 0)
		var in atomic.Int32
		var wg sync.WaitGroup
		for range 6 {
			req, _ := request(t, tok, "eu-west", "e1")
			wg.Go(func() {
				_, err := w.e.Join(t.Context(), req)
				if err == nil {
					in.Add(1)
				} else if fault.ReasonOf(err) != pki.ReasonTokenUsed {
					t.Errorf("loser: got %v, want %s", err, pki.ReasonTokenUsed)
				}
			})
		}
		if wg.Wait(); in.Load() != 1 {
			t.Fatalf("round %d: %d keys joined with one token, want 1", round, in.Load())
		}
	}
}

// A crash at any transaction of a join leaves a token that the same key can use.
func TestEnroll_CrashInTheMiddle(t *testing.T) {
	w := newWorld(t)
	for i, store := range []*failing{w.zone.(*failing), w.catalog.(*failing), w.zone.(*failing)} {
		name := string(rune('a'+i)) + "1"
		req, _ := request(t, w.token(t, "eu-west", name, 0), "eu-west", name)
		store.fail.Store(map[int]int32{0: 1, 1: 1, 2: 2}[i])
		if _, err := w.e.Join(t.Context(), req); err == nil {
			t.Fatalf("crash %d: got joined, want an error", i)
		}
		if _, err := w.e.Join(t.Context(), req); err != nil {
			t.Errorf("again after crash %d: got %v, want joined", i, err)
		}
	}
}

func hostCSR(t *testing.T, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestEnroll_RenewAndIssueHost(t *testing.T) {
	w := newWorld(t)
	req, _ := request(t, w.token(t, "eu-west", "e1", 0), "eu-west", "e1")
	if _, err := w.e.Join(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	edge := identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Edge, Node: "e1"}
	as := func(n identity.Name) context.Context { return peer.WithName(t.Context(), n) }
	key, csr, _ := identity.NewKeyAndCSR()
	resp, err := w.e.Renew(as(edge), &joinv1.RenewRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := identity.New(resp.CertificateChain, key, resp.Roots); err != nil || s.Name() != edge {
		t.Errorf("renewed: got %v", err)
	}
	stranger, us, moved := edge, edge, edge
	stranger.Node, us.Zone, us.Node, moved.Region = "e2", "us", "us-1", "eu-north"
	for what, n := range map[string]identity.Name{"unregistered": stranger, "another zone": us, "another region than registered": moved} {
		if _, err := w.e.Renew(as(n), &joinv1.RenewRequest{Csr: csr}); fault.KindOf(err) != fault.Denied {
			t.Errorf("renew by %s: got %v, want denied", what, err)
		}
	}
	if _, err := w.e.Renew(t.Context(), &joinv1.RenewRequest{Csr: csr}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("renew without a peer: got %v, want unauthenticated", err)
	}

	own := &x509.CertificateRequest{DNSNames: []string{"orders.emea.example.test"}}
	host, err := w.e.IssueHost(as(edge), &joinv1.IssueHostRequest{Csr: hostCSR(t, own)})
	if err != nil {
		t.Fatal(err)
	}
	if leaf := leafOf(t, host.CertificateChain); len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != own.DNSNames[0] {
		t.Errorf("host certificate: got %v", leaf.DNSNames)
	}
	for what, tc := range map[string]struct {
		by     identity.Name
		csr    *x509.CertificateRequest
		reason string
	}{
		"another zone's host": {edge, &x509.CertificateRequest{DNSNames: []string{"orders.us.example.test"}}, pki.ReasonHost},
		"one of two":          {edge, &x509.CertificateRequest{DNSNames: []string{"orders.emea.example.test", "x.test"}}, pki.ReasonHost},
		"no name":             {edge, &x509.CertificateRequest{}, pki.ReasonCSR},
		"a node's URI too":    {edge, &x509.CertificateRequest{DNSNames: own.DNSNames, URIs: hostURIs(edge)}, pki.ReasonCSR},
		"a control node":      {identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Control, Node: "emea-1"}, own, pki.ReasonNotAnEdge},
	} {
		if _, err := w.e.IssueHost(as(tc.by), &joinv1.IssueHostRequest{Csr: hostCSR(t, tc.csr)}); fault.ReasonOf(err) != tc.reason {
			t.Errorf("%s: got %v, want %s", what, err, tc.reason)
		}
	}
}

func hostURIs(n identity.Name) []*url.URL { return []*url.URL{n.URL()} }
