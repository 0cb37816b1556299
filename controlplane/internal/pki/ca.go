package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// CA is the authority of one zone.
type CA struct {
	zone, installation string
	cert               *x509.Certificate
	key                *ecdsa.PrivateKey
	chainPEM           []byte
}

// Zone is the zone whose authority it is.
func (ca *CA) Zone() string { return ca.zone }

// TrustDomain is <zone>.<installation>, the only domain it can name nodes in.
func (ca *CA) TrustDomain() string { return ca.zone + "." + ca.installation }

// ReasonCSR is the reason of a request that cannot be signed; kind Invalid.
const ReasonCSR = "CSR_INVALID"

const maxRSABits = 4096

// parseCSR checks that the sender holds the key. Only the key counts from then on.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, ReasonCSR, "read certificate request: %w", err)
	}
	// Strangers send requests: the check of an RSA signature takes seconds if the key has what 64 KiB hold.
	if key, ok := csr.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
		return nil, fault.New(fault.Invalid, ReasonCSR, "check certificate request: an RSA key of %d bits, at most %d are taken", key.N.BitLen(), maxRSABits)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.Invalid, ReasonCSR, "check certificate request: %w", err)
	}
	return csr, nil
}

// SignNode certifies a node's name. The request's own names are ignored.
func (ca *CA) SignNode(csrDER []byte, name identity.Name, ttl time.Duration, now time.Time) (chainPEM []byte, err error) {
	if err := name.Validate(); err != nil {
		return nil, fmt.Errorf("sign node certificate: %w", err)
	}
	if name.TrustDomain() != ca.TrustDomain() {
		return nil, fmt.Errorf("sign node certificate: %s is not of %s", name, ca.TrustDomain())
	}
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fault.New(fault.Invalid, ReasonCSR, "sign node certificate: key is a %T, want ECDSA", csr.PublicKey)
	}
	return ca.sign(csr, &x509.Certificate{
		// Backdated for clocks that are behind, but little, so that short
		// lifetimes stay what they say: renewal is timed by them.
		NotBefore: now.Add(-min(time.Minute, ttl/20)), NotAfter: now.Add(ttl),
		URIs:        []*url.URL{name.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// SignHost certifies host names and IP addresses for a server that strangers
// talk to. It can never be taken for a node: no URI, no client use.
func (ca *CA) SignHost(csrDER []byte, hosts []string, ttl time.Duration, now time.Time) (chainPEM []byte, err error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(ttl),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if hostName(h) {
			c.DNSNames = append(c.DNSNames, h)
		} else {
			return nil, fault.New(fault.Invalid, ReasonCSR, "sign host certificate: %.80q is not a host name", h)
		}
	}
	if len(hosts) == 0 {
		return nil, fault.New(fault.Invalid, ReasonCSR, "sign host certificate: no host is named")
	}
	return ca.sign(csr, c)
}

func (ca *CA) sign(csr *x509.CertificateRequest, c *x509.Certificate) ([]byte, error) {
	c.SerialNumber = newSerial()
	c.Subject = pkix.Name{} // names are in the SAN; with an empty subject it is critical
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.BasicConstraintsValid = true
	if c.NotAfter.After(ca.cert.NotAfter) {
		c.NotAfter = ca.cert.NotAfter
	}
	if !c.NotAfter.After(c.NotBefore) {
		return nil, errors.New("sign certificate: lifetime is not positive, or the authority has expired")
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return append(encodeCert(der), ca.chainPEM...), nil
}

// CertifySigner says that a key is the zone's signing key, for auditors who know the installation's root alone. Its
// name, spiffe://<zone>.<installation>/signer, is no node's, and it may neither serve nor call.
func (ca *CA) CertifySigner(key ed25519.PublicKey, now time.Time) (chainPEM []byte, err error) {
	name := &url.URL{Scheme: "spiffe", Host: ca.TrustDomain(), Path: "/signer"}
	return ca.sign(&x509.CertificateRequest{PublicKey: key}, &x509.Certificate{NotBefore: now.Add(-time.Minute), NotAfter: ca.cert.NotAfter, URIs: []*url.URL{name}})
}

// hostName is lower-case letters, digits, hyphens and dots, no wildcard.
func hostName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := range len(l) {
			if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// AdminTLS is the TLS of a control node's admin port: a host certificate that
// the node issues to itself, in memory, anew when a third of its life is left.
// hosts are the host of its admin URL and whatever else it is called.
func (ca *CA) AdminTLS(hosts []string, ttl time.Duration) (*tls.Config, error) {
	a := &adminCert{ca: ca, hosts: slices.Clone(hosts), ttl: ttl}
	if a.ttl == 0 {
		a.ttl = 7 * 24 * time.Hour
	}
	if _, err := a.get(time.Now()); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.get(time.Now())
		},
		SessionTicketsDisabled: true,
	}, nil
}

type adminCert struct {
	ca    *CA
	hosts []string
	ttl   time.Duration

	mu  sync.Mutex // covers cur; signing under it takes microseconds
	cur *tls.Certificate
}

func (a *adminCert) get(now time.Time) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cur != nil && a.cur.Leaf.NotAfter.Sub(now) > a.ttl/3 {
		return a.cur, nil
	}
	keyPEM, csr, err := identity.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	chain, err := a.ca.SignHost(csr, a.hosts, a.ttl, now)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load admin certificate: %w", err)
	}
	a.cur = &cert
	return a.cur, nil
}
