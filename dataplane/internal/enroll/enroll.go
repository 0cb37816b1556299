// Package enroll owns an edge's entry into its zone: it buys the identity with
// a join token, keeps it and the zone's secrets on disk, renews it, and calls
// the zone's control nodes over mutual TLS.
//
// It never decides what the edge may serve. After a crash at any moment of a
// join the same key asks again with the same token; once joined, a start needs
// no control node. Everything returned may be used from any goroutine at once.
package enroll

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

const (
	subdir      = "identity"
	fileSecrets = "secrets"
	fileKey     = "join.key" // of a join that is not finished
)

var secretsHeader = durable.Header{Magic: "bwsecret", Version: 1, Program: "bailiwick-edge"}

// Config says who the edge is and how it gets in.
type Config struct {
	Dir       string // required: the data directory; the identity is in its identity/
	Name      string // required: the node's name
	Region    string // required
	RelayAddr string // host:port where other edges reach its relay; told at join

	// The rest is needed only until the edge has joined.
	Token       string   // the join token, or
	TokenFile   string   // a file that holds it
	ControlURLs []string // admin URLs of control nodes of the zone, tried in order
	CAFile      string   // the installation's roots; missing or unparsable refuses

	Timeout time.Duration          // how long to go on trying to join; zero is 2 minutes
	Logger  *slog.Logger           // nil is silent
	Options []connect.ClientOption // of the RPC client of the join
}

// Validate tells what is missing for a start with an identity.
func (c Config) Validate() error {
	if c.Dir == "" || c.Name == "" || c.Region == "" {
		return errors.New("enroll: Dir, Name and Region are required")
	}
	if c.RelayAddr != "" {
		if _, _, err := net.SplitHostPort(c.RelayAddr); err != nil {
			return fmt.Errorf("enroll: relay address %q is not host:port", c.RelayAddr)
		}
	}
	return nil
}

// Peer is a control node of the zone.
type Peer struct {
	Name string `json:"name"`
	Addr string `json:"addr"` // of its peer port
	// Region is blank for an edge that joined a control node from before 2026-11-25.
	Region string `json:"region,omitempty"`
}

// State is an edge that has joined.
type State struct {
	Source          *identity.Source
	TableSigningKey ed25519.PublicKey // verifies tables and records of the zone
	Pepper          []byte            // of API key digests
	CertSeal        []byte            // seals private keys in the zone store
	Peers           []Peer
}

// String keeps the secrets out of messages and logs.
func (s *State) String() string       { return "edge " + s.Source.Name().String() }
func (s *State) GoString() string     { return s.String() }
func (s *State) LogValue() slog.Value { return slog.StringValue(s.String()) }

// secrets is State as it rests.
type secrets struct {
	TableSigningKey []byte `json:"table_signing_key"`
	Pepper          []byte `json:"pepper"`
	CertSeal        []byte `json:"cert_seal"`
	Peers           []Peer `json:"peers"`
}

// Enroll loads the identity of Dir, or joins if there is none.
func Enroll(ctx context.Context, cfg Config) (*State, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Join(cfg.Dir, subdir)
	if _, err := durable.OS().Stat(filepath.Join(dir, identity.FileNode)); err == nil {
		return load(cfg, dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for an identity: %w", err)
	}
	return join(ctx, cfg, dir)
}

func load(cfg Config, dir string) (*State, error) {
	src, err := identity.Load(dir)
	if err != nil {
		return nil, err
	}
	if n := src.Name(); n.Node != cfg.Name || n.Region != cfg.Region || n.Kind != identity.Edge {
		return nil, fmt.Errorf("load identity from %s: it is %s, this edge is configured as %s in %s: use another directory", dir, n, cfg.Name, cfg.Region)
	}
	blob, _, err := durable.ReadSealed(durable.OS(), filepath.Join(dir, fileSecrets), secretsHeader, 1<<20)
	if err != nil {
		return nil, err
	}
	var sec secrets
	if err := json.Unmarshal(blob, &sec); err != nil {
		return nil, fmt.Errorf("read %s: %w", fileSecrets, err)
	}
	return newState(src, sec)
}

func newState(src *identity.Source, sec secrets) (*State, error) {
	if len(sec.TableSigningKey) != ed25519.PublicKeySize || len(sec.Pepper) < 16 || len(sec.CertSeal) != 32 || len(sec.Peers) == 0 {
		return nil, errors.New("read the zone's secrets: a key or the control nodes are missing")
	}
	return &State{Source: src, TableSigningKey: sec.TableSigningKey, Pepper: sec.Pepper, CertSeal: sec.CertSeal, Peers: sec.Peers}, nil
}

func join(ctx context.Context, cfg Config, dir string) (*State, error) {
	token, err := cfg.token()
	if err != nil {
		return nil, err
	}
	if len(cfg.ControlURLs) == 0 {
		return nil, errors.New("join: no control URL is configured")
	}
	caPEM, err := durable.ReadFile(durable.OS(), cfg.CAFile, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("join: read CA file: %w", err)
	}
	roots, _, err := identity.ParseRoots(caPEM)
	if err != nil {
		return nil, fmt.Errorf("join: CA file %s: %w", cfg.CAFile, err)
	}
	keyPEM, csr, err := pendingKey(dir)
	if err != nil {
		return nil, err
	}
	hc := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true},
		// The token goes to the configured node and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer hc.CloseIdleConnections()
	req := &joinv1.JoinRequest{Token: token, Csr: csr, Name: cfg.Name, Region: cfg.Region, RelayAddr: cfg.RelayAddr, Level: uint32(table.Current)}
	resp, err := cfg.askAll(ctx, hc, req)
	if err != nil {
		return nil, err
	}
	// Against the roots of the CA file, not those that came with the answer.
	src, err := identity.New(resp.GetCertificateChain(), keyPEM, caPEM)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if n := src.Name(); n.Node != cfg.Name || n.Region != cfg.Region || n.Kind != identity.Edge || n.TrustDomain() != resp.GetTrustDomain() {
		return nil, fmt.Errorf("join: the certificate is for %s, want edge %s of %s", n, cfg.Name, cfg.Region)
	}
	sec := secrets{TableSigningKey: resp.GetTableSigningKey(), Pepper: resp.GetPepper(), CertSeal: resp.GetCertSealKey()}
	for _, p := range resp.GetPeerAddrs() {
		name, addr, ok := strings.Cut(p, "=")
		if !ok {
			return nil, fmt.Errorf("join: control node %.100q is not name=host:port", p)
		}
		sec.Peers = append(sec.Peers, Peer{Name: name, Addr: addr, Region: resp.GetPeerRegions()[name]})
	}
	if _, err := newState(src, sec); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	blob, err := json.Marshal(sec)
	if err != nil {
		return nil, err
	}
	// Secrets before the certificate: node.pem is what says that the join is over.
	if err := durable.WriteSealed(durable.OS(), filepath.Join(dir, fileSecrets), secretsHeader, blob); err != nil {
		return nil, err
	}
	if err := identity.WriteDir(dir, resp.GetCertificateChain(), keyPEM, caPEM); err != nil {
		return nil, err
	}
	if err := durable.OS().Remove(filepath.Join(dir, fileKey)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove %s: %w", fileKey, err)
	}
	cfg.Logger.Info("joined", "name", src.Name().String(), "not_after", src.NotAfter())
	return load(cfg, dir)
}

func (c Config) token() (string, error) {
	if c.Token != "" {
		return c.Token, nil
	}
	if c.TokenFile == "" {
		return "", errors.New("join: this edge has no identity yet and no join token is configured")
	}
	b, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("join: read token file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// pendingKey is the key of this join, kept before the token is spent on it.
func pendingKey(dir string) (keyPEM, csr []byte, err error) {
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return nil, nil, fmt.Errorf("make %s: %w", dir, err)
	}
	path := filepath.Join(dir, fileKey)
	keyPEM, err = durable.ReadFile(durable.OS(), path, 1<<16)
	if err == nil {
		if csr, err = identity.CSR(keyPEM); err == nil {
			return keyPEM, csr, nil
		}
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if keyPEM, csr, err = identity.NewKeyAndCSR(); err != nil {
		return nil, nil, err
	}
	return keyPEM, csr, durable.WriteFileAtomic(durable.OS(), path, keyPEM, durable.FilePerm)
}

// askAll asks the control nodes in turn until one answers, none can ever, or
// time is over.
func (c Config) askAll(ctx context.Context, hc *http.Client, req *joinv1.JoinRequest) (*joinv1.JoinResponse, error) {
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		var last, unknown error
		strangers := 0
		for _, base := range c.ControlURLs {
			if u, err := url.Parse(base); err != nil || u.Scheme != "https" {
				return nil, fmt.Errorf("join: control URL %q is not https", base)
			}
			once, cancel := context.WithTimeout(ctx, 10*time.Second)
			resp, err := joinv1connect.NewJoinServiceClient(hc, base, c.Options...).Join(once, req)
			cancel()
			if err == nil {
				return resp, nil
			}
			last = rpcfault.From(err)
			switch k := fault.KindOf(last); {
			case fault.ReasonOf(last) == "TOKEN_UNKNOWN":
				// A node of another zone says so too: only if all do is it final.
				unknown = last
				strangers++
			case k == fault.Denied || k == fault.Invalid || k == fault.Conflict:
				return nil, fmt.Errorf("join: %w", last)
			default:
				c.Logger.Info("control node does not answer the join", "url", base, "error", last)
			}
		}
		if strangers == len(c.ControlURLs) {
			return nil, fmt.Errorf("join: %w", unknown)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("join: no control node answers: %w", errors.Join(last, ctx.Err()))
		case <-time.After(wait + rand.N(wait)):
		}
	}
}
