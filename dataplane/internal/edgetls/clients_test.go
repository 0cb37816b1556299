package edgetls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/edgetls"
)

// Clients are asked for a certificate where the host's API takes one, over both transports and both versions, and nowhere
// else; one without is let in. A session of before neither keeps a certificate out nor brings one in.
func TestManager_AsksForCertificatesWhereTheyCount(t *testing.T) {
	const other = "reports.emea.example.test"
	var asks atomic.Bool
	asks.Store(true)
	z := newZone(t)
	m, _ := z.edgeThat(t, t.TempDir(), "a", func(c *edgetls.Config) { c.Certificates = func(h string) bool { return h == host && asks.Load() } })
	m.Manage([]string{host, other})
	wait(t, "certificates", func() bool { return len(m.Missing()) == 0 })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	mine := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	shake := func(server *tls.Config, name string, cert *tls.Certificate, w *wallet, most uint16) (shown int, resumed bool) {
		t.Helper()
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		seen := make(chan tls.ConnectionState, 1)
		go func() {
			s := tls.Server(a, server)
			if s.Handshake() == nil {
				s.Write([]byte("x"))
			}
			seen <- s.ConnectionState()
		}()
		cfg := &tls.Config{RootCAs: z.roots(t), ServerName: name, NextProtos: server.NextProtos, ClientSessionCache: w, MaxVersion: most,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if cert == nil {
					return &tls.Certificate{}, nil
				}
				return cert, nil
			}}
		c := tls.Client(b, cfg)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatalf("handshake with %s: %v", name, err)
		}
		s := <-seen
		return len(s.PeerCertificates), s.DidResume
	}
	for _, c := range []struct {
		name   string
		server *tls.Config
		most   uint16
	}{{"TCP", m.TLSConfig(), 0}, {"TCP, TLS 1.2", m.TLSConfig(), tls.VersionTLS12}, {"QUIC", m.QUICTLSConfig(), 0}} {
		asks.Store(true)
		if n, _ := shake(c.server, host, &mine, &wallet{}, c.most); n != 1 {
			t.Errorf("%s: the edge saw %d certificates of a client that has one, want it", c.name, n)
		}
		if n, _ := shake(c.server, host, nil, &wallet{}, c.most); n != 0 {
			t.Errorf("%s: the edge saw %d certificates of a client that has none", c.name, n)
		}
		if n, _ := shake(c.server, other, &mine, &wallet{}, c.most); n != 0 {
			t.Errorf("%s: another host asked for a certificate", c.name)
		}
		if c.most != 0 {
			continue // no tickets
		}
		w := &wallet{}
		shake(c.server, host, &mine, w, c.most)
		if n, resumed := shake(c.server, host, &mine, w, c.most); n != 1 || !resumed {
			t.Errorf("%s: a session that goes on shows %d certificates, resumed %v; want the one it began with", c.name, n, resumed)
		}
		asks.Store(false)
		if n, resumed := shake(c.server, host, &mine, w, c.most); n != 0 || resumed {
			t.Errorf("%s: none is asked for any more: got %d, resumed %v", c.name, n, resumed)
		}
	}
}
