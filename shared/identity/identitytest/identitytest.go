// Package identitytest owns a throwaway certificate authority for tests that
// need nodes with identities.
//
// It is never linked into a program. It keeps nothing; its functions may be
// called at once.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"

	"bailiwick/shared/identity"
)

// Installation is a root with intermediates made on demand, one for each zone.
type Installation struct {
	Name     string
	RootsPEM []byte
	root     *authority
	zones    map[string]*authority
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an installation with the zones named.
func New(t testing.TB, name string, zones ...string) *Installation {
	t.Helper()
	in := &Installation{Name: name, zones: map[string]*authority{}}
	in.root = issueCA(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "test root"}, MaxPathLen: 1})
	in.RootsPEM = encode(in.root.cert)
	for _, z := range zones {
		in.zones[z] = issueCA(t, in.root, &x509.Certificate{
			Subject: pkix.Name{CommonName: "test " + z}, MaxPathLenZero: true,
			PermittedDNSDomainsCritical: true, PermittedURIDomains: []string{z + "." + name},
		})
	}
	return in
}

func issueCA(t testing.TB, by *authority, c *x509.Certificate) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = serial()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour*365)
	c.IsCA, c.BasicConstraintsValid = true, true
	c.KeyUsage = x509.KeyUsageCertSign
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// Node is the full name of a node of this installation.
func (in *Installation) Node(zone, region, kind, node string) identity.Name {
	return identity.Name{Zone: zone, Installation: in.Name, Region: region, Kind: kind, Node: node}
}

// Sign answers a request with a chain for n, valid from now for ttl. change, if
// not nil, may spoil the template.
func (in *Installation) Sign(csrDER []byte, zone string, n identity.Name, ttl time.Duration, change func(*x509.Certificate)) ([]byte, error) {
	ca, ok := in.zones[zone]
	if !ok {
		return nil, fmt.Errorf("no zone %q", zone)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial(), NotBefore: time.Now(), NotAfter: time.Now().Add(ttl),
		URIs: []*url.URL{n.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(chain, encode(ca.cert)...), nil
}

// Source is a node's identity in memory, valid for a day.
func (in *Installation) Source(t testing.TB, zone, region, kind, node string) *identity.Source {
	t.Helper()
	chain, key := in.Issue(t, in.Node(zone, region, kind, node), 24*time.Hour, nil)
	s, err := identity.New(chain, key, in.RootsPEM)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Issue draws a key and signs a certificate for n by the authority of n's zone.
func (in *Installation) Issue(t testing.TB, n identity.Name, ttl time.Duration, change func(*x509.Certificate)) (chainPEM, keyPEM []byte) {
	t.Helper()
	key, csr, err := identity.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := in.Sign(csr, n.Zone, n, ttl, change)
	if err != nil {
		t.Fatal(err)
	}
	return chain, key
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err)
	}
	return n
}
