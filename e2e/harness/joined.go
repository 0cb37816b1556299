package harness

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
)

// Joined is an edge of the test's own: it joined like any other and speaks the public protocols. It offers no
// relay address, so nobody relays to it.
type Joined struct {
	Name   string
	Source *identity.Source
	Answer *joinv1.JoinResponse
	Peers  map[string]string // control node → peer address
	HTTP   *http.Client      // to the first of them
	Base   string
}

// JoinToken makes a token for an edge.
func (s *Sandbox) JoinToken(zone, region, name string) string {
	s.t.Helper()
	var answer struct{ Token string }
	out := ""
	s.Eventually(30*time.Second, "a join token for "+name, func() error {
		// Of an outcome that is unknown a second token is the way out: the first, if there is one, ends unused.
		text, stderr, code := s.CLI(zone, "join-token", "create", "--kind", "edge", "--region", region, "--name", name, "-o", "json")
		if code != 0 && code != 6 {
			s.t.Fatalf("join-token create: exit code %d: %s", code, stderr)
		}
		if out = text; code != 0 {
			return fmt.Errorf("exit code %d: %s", code, stderr)
		}
		return nil
	})
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Token == "" {
		s.t.Fatalf("join-token create printed %d bytes and no token: %v", len(out), err)
	}
	return answer.Token
}

// Join joins as an edge; it leaves when the test ends.
func (s *Sandbox) Join(zone, region, name string) *Joined {
	s.t.Helper()
	key, csr, err := identity.NewKeyAndCSR()
	if err != nil {
		s.t.Fatal(err)
	}
	token := s.JoinToken(zone, region, name)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := s.JoinService(s.AdminURLs(zone)[0]).Join(ctx, &joinv1.JoinRequest{Token: token, Csr: csr, Name: name, Region: region})
	if err != nil {
		s.t.Fatalf("join as %s: %v", name, err)
	}
	s.t.Cleanup(func() { s.CLI(zone, "node", "remove", name) })
	source, err := identity.New(answer.GetCertificateChain(), key, answer.GetRoots())
	if err != nil {
		s.t.Fatalf("identity of %s: %v", name, err)
	}
	e := &Joined{Name: name, Source: source, Answer: answer, Peers: map[string]string{}}
	first := ""
	for _, p := range answer.GetPeerAddrs() {
		node, address, found := strings.Cut(p, "=")
		if !found {
			s.t.Fatalf("peer address %q is not name=host:port", p)
		}
		if e.Peers[node] = address; first == "" || node < first {
			first = node
		}
	}
	if first == "" {
		s.t.Fatalf("join as %s told no peer address", name)
	}
	e.Base = "https://" + e.Peers[first]
	e.HTTP = &http.Client{Transport: &http2.Transport{DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		d := tls.Dialer{Config: source.ClientTLS([]string{"h2"}, identity.Only(identity.Control, zone, first))}
		return d.DialContext(ctx, network, address)
	}}}
	s.t.Cleanup(e.HTTP.CloseIdleConnections)
	return e
}

// Ingest is the way in for usage.
func (e *Joined) Ingest() usagev1connect.IngestServiceClient {
	return usagev1connect.NewIngestServiceClient(e.HTTP, e.Base, connect.WithInterceptors(rpcfault.Client()))
}
