package pki_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"bailiwick/controlplane/internal/certstore"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	"bailiwick/controlplane/internal/pki"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
)

// The real doors over the real peer port: an edge joins, renews, buys a host
// certificate, uses the shelf, and is out once it is withdrawn.
func TestDoors_OverThePeerPort(t *testing.T) {
	w := newWorld(t)
	dir, _ := initDir(t) // another installation: its nodes are strangers here
	stranger, err := identity.Load(filepath.Join(dir, "emea-1", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	// The control node renews its own certificate with its own authority.
	name := identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Control, Node: "emea-1"}
	key, csr, _ := identity.NewKeyAndCSR()
	chain, err := w.e.RenewFor(name, csr)
	if err != nil {
		t.Fatal(err)
	}
	src, err := identity.New(chain, key, w.roots)
	if err != nil {
		t.Fatal(err)
	}
	shelf, err := certstore.New(w.zone, "emea.test.example", anyHost{})
	if err != nil {
		t.Fatal(err)
	}
	opts := connect.WithInterceptors(rpcfault.Server(slog.New(slog.DiscardHandler)))
	mux := http.NewServeMux()
	mux.Handle(joinv1connect.NewIdentityServiceHandler(w.e, opts))
	mux.Handle(joinv1connect.NewCertStoreServiceHandler(shelf, opts))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port, err := peer.New(peer.Config{
		Listener: ln, Source: src, Allow: pki.Registry{Catalog: w.catalog, Installation: w.in}.Allow, Handler: mux,
		Resolve: func(string) (string, bool) { return "", false },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- port.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	req, edgeKey := request(t, w.token(t, "eu-west", "e1", 0), "eu-west", "e1")
	resp, err := w.e.Join(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	edge, err := identity.New(resp.CertificateChain, edgeKey, resp.Roots)
	if err != nil {
		t.Fatal(err)
	}
	client := func(s *identity.Source) *http.Client {
		tr := &http.Transport{TLSClientConfig: s.ClientTLS([]string{"h2"}, identity.Only(identity.Control, "emea", "emea-1")), ForceAttemptHTTP2: true}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 5 * time.Second}
	}
	url := "https://" + ln.Addr().String()
	co := connect.WithInterceptors(rpcfault.Client())
	id := joinv1connect.NewIdentityServiceClient(client(edge), url, co)
	keep := joinv1connect.NewCertStoreServiceClient(client(edge), url, co)
	_, csr, _ = identity.NewKeyAndCSR()
	if _, err := id.Renew(t.Context(), &joinv1.RenewRequest{Csr: csr}); err != nil {
		t.Errorf("renew: %v", err)
	}
	if _, err := id.IssueHost(t.Context(), &joinv1.IssueHostRequest{Csr: csr}); fault.ReasonOf(err) != pki.ReasonCSR {
		t.Errorf("issue for no host: got %v, want %s", err, pki.ReasonCSR)
	}
	lock, err := keep.Lock(t.Context(), &joinv1.LockRequest{Name: "issue_cert_a.test", Holder: "e1", TtlMs: 60_000})
	if err != nil {
		t.Errorf("lock: %v", err)
	}
	if _, err := keep.Store(t.Context(), &joinv1.StoreRequest{Key: "certificates/ca/a.test/a.test.crt", Value: []byte("v"),
		Lease: &joinv1.Lease{Name: "issue_cert_a.test", Holder: "e1", Fence: lock.GetFence()}}); err != nil {
		t.Errorf("store: %v", err)
	}
	if _, err := joinv1connect.NewIdentityServiceClient(client(stranger), url, co).Renew(t.Context(), &joinv1.RenewRequest{Csr: csr}); err == nil {
		t.Error("a node of another installation: got an answer")
	}
	if _, err := w.catalog.Txn(t.Context(), group.Txn{Ops: []group.Op{{Key: model.PrefixNode + "e1", Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for port.Recheck() == 0 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := keep.Load(t.Context(), &joinv1.LoadRequest{Key: "certificates/ca/a.test/a.test.crt"}); err == nil {
		t.Error("withdrawn edge: got an answer")
	}
}

type anyHost struct{}

func (anyHost) Published(context.Context, string) (bool, error) { return true, nil }
