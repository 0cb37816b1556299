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
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
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
	HTTPPort  int    // port of this edge that port 80 leads to; zero keeps HTTP-01 off
	TLSPort   int    // port of this edge that port 443 leads to; zero keeps TLS-ALPN-01 off
}

// Config describes the certificates of an edge.
type Config struct {
	Dir    string                               // required: the data directory; copies are in its certs/
	Node   string                               // required: this edge's name, shown as a lock's holder
	Seal   []byte                               // required: the zone's 32-byte key that seals private keys
	Shelf  joinv1connect.CertStoreServiceClient // required: the zone's shelf
	Issuer Issuer                               // required unless ACME is set
	ACME   ACME
	FS     durable.FS // nil is the real disk

	// Border says what of the border rules a host's session tickets rest on: a
	// ticket from before it changed opens nothing. It is asked in handshakes and
	// must not block; nil: nothing.
	Border func(host string) string
	// Certificates says whether clients of a host are asked for a certificate;
	// asked like Border; nil: of none.
	Certificates func(host string) bool
	Logger       *slog.Logger // nil is silent

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
	case c.ACME.Directory != "" && c.ACME.HTTPPort == 0 && c.ACME.TLSPort == 0:
		return errors.New("edgetls: ACME needs HTTPPort or TLSPort: no challenge could be answered")
	}
	return nil
}

// Manager keeps a certificate for each host it is told of.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	cache *certmagic.Cache
	magic *certmagic.Config
	first *certmagic.Config     // magic as it is for the first certificate of a host: see silent
	acme  *certmagic.ACMEIssuer // nil with the installation's authority
	stop  net.Listener          // nil without acme: see doorstop
	shelf *shelf

	hosts   atomic.Pointer[map[string]bool] // wanted; never changed in place
	changed chan struct{}                   // holds one: wanted changed

	tickets tickets

	mu sync.Mutex // one Manage at a time

	waitMu sync.Mutex
	waits  map[string]time.Time // by host: no order before that, the zone says
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
	if cfg.Border == nil {
		cfg.Border = func(string) string { return "" }
	}
	if cfg.Certificates == nil {
		cfg.Certificates = func(string) bool { return false }
	}
	box, err := newBox(cfg.Seal)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), waits: map[string]time.Time{}}
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
	if cfg.ACME.Directory != "" {
		tmpl.OnEvent = m.onEvent
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
	m.first = m.magic
	if cfg.ACME.Directory != "" {
		if err = m.useACME(zlog); err != nil {
			m.cache.Stop()
			return nil, err
		}
		m.magic.Issuers = []certmagic.Issuer{m.acme}
		m.first = certmagic.New(m.cache, tmpl)
		m.first.Issuers = []certmagic.Issuer{silent{m.acme, m.shelf}}
	}
	return m, nil
}

// useACME makes the public authority. Its challenges are answered by the edge's
// own doors, through TLSConfig and HTTPHandler. certmagic would open a door
// itself wherever it finds none: on every address, though the edge was told to
// listen on one, or after the edge has shut its doors. It lets be what somebody
// listens on already: so it is shown a doorstop, a port of loopback that
// nothing is ever said on.
func (m *Manager) useACME(log *zap.Logger) error {
	cfg := m.cfg.ACME
	tmpl := certmagic.ACMEIssuer{
		CA: cfg.Directory, Email: cfg.Email, Agreed: true, Logger: log,
		DisableHTTPChallenge: cfg.HTTPPort == 0, DisableTLSALPNChallenge: cfg.TLSPort == 0,
	}
	if len(cfg.RootsPEM) > 0 {
		roots, _, err := identity.ParseRoots(cfg.RootsPEM)
		if err != nil {
			return fmt.Errorf("edgetls: roots of the ACME directory: %w", err)
		}
		tmpl.TrustedRoots = roots
	}
	stop, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("edgetls: listen on the doorstop: %w", err)
	}
	m.stop = stop
	tmpl.ListenHost = "127.0.0.1"
	tmpl.AltHTTPPort = stop.Addr().(*net.TCPAddr).Port
	tmpl.AltTLSALPNPort = tmpl.AltHTTPPort
	m.acme = certmagic.NewACMEIssuer(m.magic, tmpl)
	// A second directory to practise on would never be told that an order
	// replaces a certificate, which authorities exempt from their limits.
	m.acme.TestCA = ""
	return nil
}

// silent keeps certmagic from asking for an e-mail address on the terminal, as
// it does where an attempt is waited for and none is configured. Renewal by the
// cache's maintenance never asks, and needs the issuer's own type: only then is
// an order said to replace a certificate.
type silent struct {
	*certmagic.ACMEIssuer
	shelf *shelf
}

// Issue ends when the lock is lost: another edge orders then.
func (s silent) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	ctx, cancel := s.shelf.whileHeld(ctx, csr.DNSNames)
	defer cancel()
	return s.ACMEIssuer.Issue(ctx, csr)
}

func (s silent) PreCheck(ctx context.Context, names []string, _ bool) error {
	return s.ACMEIssuer.PreCheck(ctx, names, false)
}

// doorstop takes certmagic's knocks until it is shut.
func (m *Manager) doorstop() {
	for {
		c, err := m.stop.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.Close()
		}
	}
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
// Call it at every change of the border too: tickets from before are void then.
func (m *Manager) Manage(hosts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[string]bool, len(hosts))
	for _, h := range hosts {
		next[strings.ToLower(h)] = true
	}
	old := *m.hosts.Load()
	if maps.Equal(old, next) {
		m.refreshTickets()
		return
	}
	m.hosts.Store(&next)
	m.refreshTickets()
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
	if m.stop != nil {
		wg.Go(m.doorstop)
		defer m.stop.Close()
	}
	// Orders may hang on an authority; what is on the disk does not wait for them.
	loads, orders := make(chan struct{}, atOnce), make(chan struct{}, atOnce)
	busy := map[string]bool{}
	done := make(chan string)
	for {
		for h := range *m.hosts.Load() {
			if !busy[h] && !m.have(h) {
				busy[h] = true
				wg.Go(func() {
					m.obtain(ctx, h, loads, orders)
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
func (m *Manager) obtain(ctx context.Context, host string, loads, orders chan struct{}) {
	var wait time.Duration
	var orderAt time.Time // what a public authority grants is the zone's to share out; the shelf is looked at in between
	for {
		err := m.within(ctx, loads, func(ctx context.Context) error { return m.load(ctx, host) })
		if err != nil && !time.Now().Before(orderAt) {
			err = m.within(ctx, orders, func(ctx context.Context) error { return m.first.ManageSync(ctx, []string{host}) })
		}
		if !m.wanted(host) {
			m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host}})
			m.holdOff(host, 0)
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
		wait = min(max(2*wait, firstRetry), lastRetry)
		if at := m.noOrderBefore(host); at.After(time.Now()) {
			if !at.Equal(orderAt) {
				m.log.Warn("the authority refuses a certificate", "host", host, "error", err, "next_order", at)
			}
			orderAt = at
		} else if time.Now().After(orderAt) {
			m.log.Warn("host has no certificate yet", "host", host, "error", err, "retry_in", wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)):
		}
		if !m.wanted(host) {
			return
		}
	}
}

// within runs f when there is a slot, and not for long.
func (m *Manager) within(ctx context.Context, slots chan struct{}, f func(context.Context) error) error {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-slots }()
	ctx, cancel := context.WithTimeout(ctx, obtainLimit)
	defer cancel()
	return f(ctx)
}

// load serves what the disk or the shelf has, asking no authority: ManageSync
// would ask first when to renew, and wait for an answer before the next host.
// What is only due for renewal is left to the cache's maintenance.
func (m *Manager) load(ctx context.Context, host string) error {
	cert, err := m.magic.CacheManagedCertificate(ctx, host)
	if err == nil && cert.Expired() {
		m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: host}}) // ManageSync renews only what is not served yet
		return fmt.Errorf("the certificate of %s has expired", host)
	}
	return err
}

func (m *Manager) wanted(host string) bool { return (*m.hosts.Load())[strings.ToLower(host)] }

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

// HTTPHandler answers ACME's HTTP-01 challenges, whichever edge of the zone has
// ordered, and hands all else to next.
func (m *Manager) HTTPHandler(next http.Handler) http.Handler {
	if m.acme == nil || m.acme.DisableHTTPChallenge {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		// To look a token up is to ask a control node: a stranger does not get
		// that far by inventing hosts.
		if !m.wanted(host) || !m.acme.HandleHTTPChallenge(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// TLSConfig is for TCP: HTTP/2, HTTP/1.1 and ACME's TLS-ALPN-01 challenges.
func (m *Manager) TLSConfig() *tls.Config {
	c := m.config(tls.VersionTLS12, "h2", "http/1.1")
	if m.acme != nil && !m.acme.DisableTLSALPNChallenge {
		c.NextProtos = append(c.NextProtos, acmez.ACMETLS1Protocol)
	}
	return c
}

// QUICTLSConfig is for HTTP/3.
func (m *Manager) QUICTLSConfig() *tls.Config { return m.config(tls.VersionTLS13, "h3") }

// config is the one TLS policy of both transports. It gives no tickets itself:
// those are of a host, see tickets.
func (m *Manager) config(min uint16, protos ...string) *tls.Config {
	c := &tls.Config{MinVersion: min, NextProtos: protos, GetCertificate: m.certificate, SessionTicketsDisabled: true}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return m.forHost(c, hello), nil }
	return c
}

// certificate answers from memory. For a host that is not managed it returns
// neither certificate nor error, which crypto/tls turns into the alert
// unrecognized_name; certmagic's own error would become internal_error.
func (m *Manager) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !m.wanted(hello.ServerName) {
		return nil, nil
	}
	return m.magic.GetCertificate(hello)
}
