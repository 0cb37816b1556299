package dataplane

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"bailiwick/dataplane/internal/edgetls"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

func (e *Edge) newTLS() (*edgetls.Manager, error) {
	return edgetls.New(edgetls.Config{Dir: e.cfg.Dir, Node: e.self.Node, Seal: e.state.CertSeal, Shelf: e.control, Issuer: e.control, Logger: e.log, Border: e.border, Certificates: e.asksCertificates,
		ACME: edgetls.ACME{Directory: e.cfg.ACME.Directory, Email: e.cfg.ACME.Email, RootsPEM: e.cfg.ACME.RootsPEM, HTTPPort: port(e.cfg.HTTP), TLSPort: port(e.cfg.HTTPS)}})
}

// asksCertificates says whether clients of a host may show a certificate in place of a key.
func (e *Edge) asksCertificates(host string) bool {
	api := e.tables.Load().API(host)
	return api != nil && api.Auth != nil && api.Auth.Certificates
}

// border is what session tickets of a host rest on: where this region may relay its requests to. The catalog's
// position is in it, so that a pair which was closed and opened again is not the same one; the zone's is not,
// only its epoch, or every new key would cost all clients a full handshake.
func (e *Edge) border(host string) string {
	t := e.tables.Load()
	api := t.API(host)
	if api == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d/%d %d %s", e.self.Region, t.Catalog().Epoch, t.Catalog().Index, t.Epoch(), api.Policy)
	for _, p := range t.Pairs(api.Policy, e.self.Region) {
		fmt.Fprintf(&b, " %s=%s", p.To, p.Basis)
	}
	return b.String()
}

// resetKey lets this edge, after a restart, tell QUIC clients at once that their connections are gone. It is
// this edge's alone and never sent: another edge could end nobody's connections here.
func (e *Edge) resetKey() []byte {
	mac := hmac.New(sha256.New, e.state.CertSeal)
	mac.Write([]byte("bailiwick-quic-reset/1\n" + e.self.String()))
	return mac.Sum(nil)
}

// port is where an ACME authority's challenges arrive, behind whatever forwards ports 80 and 443 to here; 0
// when the address names none.
func port(address string) int {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

// runTLS keeps a certificate for each host that the table names.
func (e *Edge) runTLS(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			changed := e.tables.Changed()
			if t := e.tables.Load(); t != nil {
				e.tls.Manage(t.Hosts())
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	})
	return e.tls.Run(ctx)
}

// certificatesTime is how long the doors stay shut for want of a host's certificate: what is on disk is there at once, and the
// zone answers within it. An order at a public authority may need open doors, so nobody waits for that; only where another
// process has served just before are the certificates on disk, and shownTime enough to read them.
const (
	certificatesTime = 3 * time.Second
	shownTime        = 300 * time.Millisecond
)

// awaitCertificates waits for the certificates of the table's hosts, so that no client is told that there is none.
func (e *Edge) awaitCertificates(ctx context.Context) {
	limit := certificatesTime
	if e.cfg.ACME.Directory != "" {
		if limit = shownTime; !e.cfg.Takeover {
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	e.tls.Manage(e.tables.Load().Hosts())
	for len(e.tls.Missing()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// newShipper takes blocks to any control node of the zone: whichever carries them, the zone's ledger counts.
func (e *Edge) newShipper() (*ship.Shipper, error) {
	source := e.state.Source
	control := func(n identity.Name) error {
		if n.Kind != identity.Control || n.Zone != e.self.Zone {
			return fault.New(fault.Denied, identity.ReasonWrongPeer, "usage of zone %s is not for %s", e.self.Zone, n)
		}
		return nil
	}
	guarded := func(alpn []string) *tls.Config { // the first check, and then the sentinel's
		cfg := source.ClientTLS(alpn, control)
		first := cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := first(cs); err != nil {
				return err
			}
			return e.sentinel.Control(cs.PeerCertificates[0])
		}
		return cfg
	}
	var http2 http.Protocols
	http2.SetHTTP2(true)
	return ship.New(ship.Config{Spool: e.spool, Detail: e.detail, Addrs: e.usageAddrs, Drain: 2 * time.Second, Beat: e.beat, Logger: e.log,
		QUICTLS: func() *tls.Config { return guarded(nil) },
		HTTPClient: &http.Client{Transport: &http.Transport{Protocols: &http2, TLSClientConfig: guarded([]string{"h2"}), TLSHandshakeTimeout: 5 * time.Second,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 20 * time.Second}}}})
}
