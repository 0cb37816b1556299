package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault/rpcfault"
)

// bearer is an operator's HTTP client.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// AdminHTTP is an HTTP client for admin URLs, with the operator's token unless anonymous, and connections of its own.
func (s *Sandbox) AdminHTTP(anonymous bool) *http.Client {
	s.t.Helper()
	if anonymous {
		return &http.Client{Timeout: 10 * time.Second, Transport: s.adminTransport()}
	}
	client, err := s.operator()
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

func (s *Sandbox) adminTransport() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}, ForceAttemptHTTP2: true}
}

func (s *Sandbox) operator() (*http.Client, error) {
	token, err := os.ReadFile(s.AdminToken)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: bearer{strings.TrimSpace(string(token)), s.adminTransport()}}, nil
}

// adminClient is the operator's client that all views of a sandbox share.
func (s *Sandbox) adminClient() (*http.Client, error) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.pool.admin == nil {
		client, err := s.operator()
		if err != nil {
			return nil, err
		}
		s.pool.admin = client
	}
	return s.pool.admin, nil
}

// AdminURLs of a zone.
func (s *Sandbox) AdminURLs(zone string) (urls []string) {
	for _, a := range s.Admin {
		if a.Zone == zone {
			urls = append(urls, a.URL)
		}
	}
	return urls
}

// KeyService of the admin API at one URL. Errors are faults.
func (s *Sandbox) KeyService(url string) adminv1connect.KeyServiceClient {
	return adminv1connect.NewKeyServiceClient(s.AdminHTTP(false), url, connect.WithInterceptors(rpcfault.Client()))
}

// NodeService of the admin API at one URL. Errors are faults.
func (s *Sandbox) NodeService(url string) adminv1connect.NodeServiceClient {
	return adminv1connect.NewNodeServiceClient(s.AdminHTTP(false), url, connect.WithInterceptors(rpcfault.Client()))
}

// JoinService at one URL, as a node that has no identity yet reaches it. Errors are faults.
func (s *Sandbox) JoinService(url string) joinv1connect.JoinServiceClient {
	return joinv1connect.NewJoinServiceClient(s.AdminHTTP(true), url, connect.WithInterceptors(rpcfault.Client()))
}

// Roots of the installation's CA.
func (s *Sandbox) Roots() *x509.CertPool { return s.roots }

// CreateKey makes a key over the admin API, without the CLI's own start.
func CreateKey(c adminv1connect.KeyServiceClient, customer, plan string) (id, key string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := c.CreateKey(ctx, &adminv1.CreateKeyRequest{Customer: customer, Plan: plan})
	return answer.GetId(), answer.GetKey(), err
}

// RevokeKey takes a key away over the admin API.
func RevokeKey(c adminv1connect.KeyServiceClient, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := c.RevokeKey(ctx, &adminv1.RevokeKeyRequest{Id: id})
	return err
}
