// Package edgetls owns the certificates of API hosts on an edge: obtaining one
// for each host of the policy table, sharing it with the edges of the zone,
// renewing it, and the TLS configurations that strangers meet. It alone imports
// certmagic and zap.
//
// It never decides which hosts there are, and never lets a private key leave
// the process unsealed. What was obtained once is on this edge's disk: a
// restart serves it without any control node. Everything may be called from any
// goroutine at once; Run is called once.
package edgetls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/durable"
	"bailiwick/shared/identity"
)

const subdir = "certs"

// Issuer signs a certificate request with the installation's authority.
type Issuer interface {
	IssueHost(context.Context, *joinv1.IssueHostRequest) (*joinv1.IssueHostResponse, error)
}

// ACME makes a public authority the issuer.
type ACME struct {
	Directory string // URL of the directory; "" keeps the installation's authority
	Email     string
	RootsPEM  []byte // trusted for the directory; empty is the system's
	HTTPPort  int    // port of this edge that port 80 leads to; zero is 80
	TLSPort   int    // port of this edge that port 443 leads to; zero is 443
}

// Config describes the certificates of an edge.
type Config struct {
	Dir    string                               // required: the data directory; copies are in its certs/
	Node   string                               // required: this edge's name, shown as a lock's holder
	Seal   []byte                               // required: the zone's 32-byte key that seals private keys
	Shelf  joinv1connect.CertStoreServiceClient // required: the zone's shelf
	Issuer Issuer                               // required unless ACME is set
	ACME   ACME
	FS     durable.FS   // nil is the real disk
	Logger *slog.Logger // nil is silent

	RenewCheck time.Duration // how often certificates are looked at; zero is 10 minutes
	CallLimit  time.Duration // of one call to the shelf; zero is 5 s
}

// Validate tells what is missing.
func (c Config) Validate() error {
	switch {
	case c.Dir == "" || c.Node == "":
		return errors.New("edgetls: Dir and Node are required")
	case len(c.Seal) != 32:
		return fmt.Errorf("edgetls: Seal holds %d bytes, want 32", len(c.Seal))
	case c.Shelf == nil:
		return errors.New("edgetls: Shelf is required")
	case c.Issuer == nil && c.ACME.Directory == "":
		return errors.New("edgetls: Issuer or ACME is required")
	}
	return nil
}

// Manager keeps a certificate for each host it is told of.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	cache *certmagic.Cache
	magic *certmagic.Config
	acme  *certmagic.ACMEIssuer // nil with the installation's authority
	shelf *shelf

	hosts   atomic.Pointer[map[string]bool] // wanted; never changed in place
	changed chan struct{}                   // holds one: wanted changed

	mu sync.Mutex // one Manage at a time
}

// New makes a Manager; certificates begin to come with Manage and Run.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CallLimit == 0 {
		cfg.CallLimit = 5 * time.Second
	}
	box, err := newBox(cfg.Seal)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1)}
	m.hosts.Store(&map[string]bool{})
	m.shelf = newShelf(cfg.Shelf, box, cfg.Node, cfg.CallLimit, cfg.Logger)
	zlog := zap.New(&slogCore{log: cfg.Logger})
	tmpl := certmagic.Config{
		Storage:    m.shelf,
		LocalCache: &local{fs: cfg.FS, dir: filepath.Join(cfg.Dir, subdir), box: box},
		KeySource:  certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		// A certificate's files are stored one by one. With one key for good, an
		// edge killed between them leaves a pair that still belongs together;
		// otherwise the zone would be left with halves that nobody replaces.
		ReusePrivateKeys: true,
		// The check would write 10 KiB of noise to the zone's Raft log each time.
		DisableStorageCheck: true,
		OCSP:                certmagic.OCSPConfig{DisableStapling: true},
		DisableARI:          cfg.ACME.Directory == "",
		RenewalWindowRatio:  1.0 / 3,
		Logger:              zlog,
	}
	// certmagic fills what is empty from its process-wide Default; Issuers is set
	// before New so that its public default authority is never made.
	tmpl.Issuers = []certmagic.Issuer{caIssuer{cfg.Issuer}}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		RenewCheckInterval: cfg.RenewCheck,
		OCSPCheckInterval:  24 * time.Hour,
		Logger:             zlog,
	})
	m.magic = certmagic.New(m.cache, tmpl)
	if cfg.ACME.Directory != "" {
		if m.acme, err = newACME(m.magic, cfg.ACME, zlog); err != nil {
			m.cache.Stop()
			return nil, err
		}
		m.magic.Issuers = []certmagic.Issuer{m.acme}
	}
	return m, nil
}

func newACME(magic *certmagic.Config, cfg ACME, log *zap.Logger) (*certmagic.ACMEIssuer, error) {
	tmpl := certmagic.ACMEIssuer{
		CA: cfg.Directory, TestCA: cfg.Directory, Email: cfg.Email, Agreed: true,
		AltHTTPPort: cfg.HTTPPort, AltTLSALPNPort: cfg.TLSPort, Logger: log,
	}
	if len(cfg.RootsPEM) > 0 {
		roots, _, err := identity.ParseRoots(cfg.RootsPEM)
		if err != nil {
			return nil, fmt.Errorf("edgetls: roots of the ACME directory: %w", err)
		}
		tmpl.TrustedRoots = roots
	}
	return certmagic.NewACMEIssuer(magic, tmpl), nil
}

// caIssuer is the installation's authority as certmagic sees it.
type caIssuer struct{ issuer Issuer }

func (i caIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	resp, err := i.issuer.IssueHost(ctx, &joinv1.IssueHostRequest{Csr: csr.Raw})
	if err != nil {
		return nil, fmt.Errorf("ask the installation's authority: %w", err)
	}
	if b, _ := pem.Decode(resp.GetCertificateChain()); b == nil || b.Type != "CERTIFICATE" {
		return nil, errors.New("ask the installation's authority: the answer is not a certificate")
	}
	return &certmagic.IssuedCertificate{Certificate: resp.GetCertificateChain()}, nil
}

func (caIssuer) IssuerKey() string { return "installation" }

// Manage makes hosts the ones that are served, and no others: a host that is
// gone is refused from the next handshake on. It returns at once; Run obtains.
func (m *Manager) Manage(hosts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[string]bool, len(hosts))
	for _, h := range hosts {
		next[strings.ToLower(h)] = true
	}
	old := *m.hosts.Load()
	if maps.Equal(old, next) {
		return
	}
	m.hosts.Store(&next)
	var gone []certmagic.SubjectIssuer
	for h := range old {
		if !next[h] {
			gone = append(gone, certmagic.SubjectIssuer{Subject: h})
		}
	}
	m.cache.RemoveManaged(gone)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// certmagic's own retries begin at one minute, too long for a new host, and run
// in goroutines that nobody can wait for: so Run calls it one attempt at a time.
const (
	firstRetry  = 200 * time.Millisecond
	lastRetry   = 30 * time.Second
	obtainLimit = 2 * time.Minute // of one attempt, waiting for another edge's included
	atOnce      = 8
)

// Run obtains and renews until ctx ends; then it returns nil.
func (m *Manager) Run(ctx context.Context) error {
	defer m.shelf.close()
	defer m.cache.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, atOnce)
	busy := map[string]bool{}
	done := make(chan string)
	for {
		for h := range *m.hosts.Load() {
			if !busy[h] && !m.have(h) {
				busy[h] = true
				wg.Go(func() {
					m.obtain(ctx, h, slots)
					select {
					case done <- h:
					case <-ctx.Done():
					}
				})
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case h := <-done:
			delete(busy, h)
		case <-m.changed:
		}
	}
}

// obtain tries until the host has a certificate or is no longer wanted.
func (m *Manager) obtain(ctx context.Context, host string, slots chan struct{}) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		once, cancel := context.WithTimeout(ctx, obtainLimit)
		err := m.magic.ManageSync(once, []string{host})
		cancel()
		<-slots
		if !(*m.hosts.Load())[host] {
			m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host}})
			return
		}
		// Beside an error there may be a certificate: an old one whose renewal
		// fails. It is served; the cache's maintenance renews it.
		if m.have(host) {
			m.log.Info("host certificate ready", "host", host, "not_after", m.notAfter(host))
			return
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Warn("host has no certificate yet", "host", host, "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)):
		}
		if !(*m.hosts.Load())[host] {
			return
		}
	}
}

func (m *Manager) have(host string) bool { return !m.notAfter(host).IsZero() }

// notAfter is when the latest certificate of a host expires, zero if it has none.
func (m *Manager) notAfter(host string) (latest time.Time) {
	for _, c := range m.cache.AllMatchingCertificates(host) {
		if c.Leaf != nil && c.Leaf.NotAfter.After(latest) {
			latest = c.Leaf.NotAfter
		}
	}
	return latest
}

// Expires is when the first certificate of a managed host expires, zero when no
// host has one: until then this edge serves alone.
func (m *Manager) Expires() (first time.Time) {
	for h := range *m.hosts.Load() {
		if t := m.notAfter(h); !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// Missing lists the managed hosts that have no certificate yet.
func (m *Manager) Missing() []string {
	var missing []string
	for h := range *m.hosts.Load() {
		if !m.have(h) {
			missing = append(missing, h)
		}
	}
	slices.Sort(missing)
	return missing
}

// HTTPHandler answers ACME's HTTP-01 challenges and hands all else to next.
func (m *Manager) HTTPHandler(next http.Handler) http.Handler {
	if m.acme == nil {
		return next
	}
	return m.acme.HTTPChallengeHandler(next)
}

// TLSConfig is for TCP: HTTP/2 and HTTP/1.1.
func (m *Manager) TLSConfig() *tls.Config {
	c := m.config(tls.VersionTLS12, "h2", "http/1.1")
	if m.acme != nil {
		c.NextProtos = append(c.NextProtos, "acme-tls/1")
	}
	return c
}

// QUICTLSConfig is for HTTP/3.
func (m *Manager) QUICTLSConfig() *tls.Config { return m.config(tls.VersionTLS13, "h3") }

// config is the one TLS policy of both transports. Tickets are off: a ticket
// key shared by the edges of a zone would have to travel, one of its own would
// resume nothing after a fail-over, and 0-RTT stays off with them.
func (m *Manager) config(min uint16, protos ...string) *tls.Config {
	return &tls.Config{MinVersion: min, NextProtos: protos, GetCertificate: m.certificate, SessionTicketsDisabled: true}
}

// certificate answers from memory. For a host that is not managed it returns
// neither certificate nor error, which crypto/tls turns into the alert
// unrecognized_name; certmagic's own error would become internal_error.
func (m *Manager) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !(*m.hosts.Load())[strings.ToLower(hello.ServerName)] {
		return nil, nil
	}
	return m.magic.GetCertificate(hello)
}
