package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/shared/durable"
)

// The files of an identity directory. Certificate and key are one file, so that
// one rename replaces both.
const (
	FileNode  = "node.pem"  // chain, leaf first, then the private key
	FileRoots = "roots.pem" // the roots this node trusts
)

const maxFile = 1 << 20

// material is one certificate with its key and roots; it never changes.
type material struct {
	name     Name
	cert     tls.Certificate // Leaf is set
	roots    *x509.CertPool
	nodePEM  []byte
	rootsPEM []byte
}

// Source is a node's current certificate, key and roots. TLS configurations
// made from it follow Replace: new handshakes use the new certificate, standing
// connections are not touched.
type Source struct {
	dir string // "" is memory only
	cur atomic.Pointer[material]

	since func(Name) time.Time // set before use, see RefuseOlder

	// mu lets one Replace at a time write the directory; readers never take it.
	mu sync.Mutex
}

// Load reads an identity directory. It refuses what could ever authenticate
// wrongly: a missing or unparsable bundle, a key that is not the certificate's,
// a chain that does not lead to the roots. It does not refuse an expired
// certificate: an edge serves home traffic without one, and its peers refuse it.
func Load(dir string) (*Source, error) {
	node, err := durable.ReadFile(durable.OS(), filepath.Join(dir, FileNode), maxFile)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	roots, err := durable.ReadFile(durable.OS(), filepath.Join(dir, FileRoots), maxFile)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	chain, key, err := splitNode(node)
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	m, err := parse(chain, key, roots)
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	s := &Source{dir: dir}
	s.cur.Store(m)
	return s, nil
}

// New is a Source that keeps nothing on disk.
func New(chainPEM, keyPEM, rootsPEM []byte) (*Source, error) {
	m, err := parse(chainPEM, keyPEM, rootsPEM)
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	s := &Source{}
	s.cur.Store(m)
	return s, nil
}

// WriteDir makes dir an identity directory (0700, files 0600) after the checks
// of Load, so that what cannot be loaded is never written.
func WriteDir(dir string, chainPEM, keyPEM, rootsPEM []byte) error {
	m, err := parse(chainPEM, keyPEM, rootsPEM)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	// Roots first: node.pem is what tells that a directory holds an identity.
	if err := write(dir, FileRoots, m.rootsPEM); err != nil {
		return err
	}
	return write(dir, FileNode, m.nodePEM)
}

func write(dir, name string, data []byte) error {
	return durable.WriteFileAtomic(durable.OS(), filepath.Join(dir, name), data, durable.FilePerm)
}

// Replace swaps in a renewed certificate, on disk first. The name cannot
// change: a renewal never makes a node another node.
func (s *Source) Replace(chainPEM, keyPEM, rootsPEM []byte) error {
	next, err := parse(chainPEM, keyPEM, rootsPEM)
	if err != nil {
		return fmt.Errorf("replace identity: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.cur.Load()
	if next.name != old.name {
		return fmt.Errorf("replace identity: new certificate is for %s, this node is %s", next.name, old.name)
	}
	if s.dir != "" {
		if err := persist(s.dir, old, next); err != nil {
			return err
		}
	}
	s.cur.Store(next)
	return nil
}

// persist writes new roots as the union with the old ones first, so that a
// crash between the files leaves a certificate that its roots still verify.
func persist(dir string, old, next *material) error {
	if bytes.Equal(old.rootsPEM, next.rootsPEM) {
		return write(dir, FileNode, next.nodePEM)
	}
	union := append(bytes.Clone(old.rootsPEM), next.rootsPEM...)
	if err := write(dir, FileRoots, union); err != nil {
		return err
	}
	if err := write(dir, FileNode, next.nodePEM); err != nil {
		return err
	}
	return write(dir, FileRoots, next.rootsPEM)
}

// Name is who this node is.
func (s *Source) Name() Name { return s.cur.Load().name }

// Serial is the serial number of the current certificate, hexadecimal.
func (s *Source) Serial() string { return s.cur.Load().cert.Leaf.SerialNumber.Text(16) }

// NotBefore is when the current certificate became valid.
func (s *Source) NotBefore() time.Time { return s.cur.Load().cert.Leaf.NotBefore }

// NotAfter is when the current certificate expires.
func (s *Source) NotAfter() time.Time { return s.cur.Load().cert.Leaf.NotAfter }

// Roots are the roots this node trusts now. Do not add to the pool.
func (s *Source) Roots() *x509.CertPool { return s.cur.Load().roots }

// RootsPEM is the text of Roots. Do not write to it.
func (s *Source) RootsPEM() []byte { return s.cur.Load().rootsPEM }

// NewKeyAndCSR draws a P-256 key and a request that proves its possession. The
// request names nobody: the issuer decides the name, not the message.
func NewKeyAndCSR() (keyPEM, csrDER []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("draw a node key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a node key: %w", err)
	}
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	csrDER, err = CSR(keyPEM)
	return keyPEM, csrDER, err
}

// CSR is a request for a key drawn earlier.
func CSR(keyPEM []byte) ([]byte, error) {
	key, _, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, nil
}

func parseKey(keyPEM []byte) (crypto.Signer, *pem.Block, error) {
	block, rest := pem.Decode(keyPEM)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, errors.New("read private key: not one PKCS #8 block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("read private key: a %T does not sign", key)
	}
	return signer, block, nil
}

// ParseRoots reads a CA bundle. x509.CertPool.AppendCertsFromPEM skips what it
// cannot read, and so trusts less or nothing without a word: here anything but
// certificates of authorities is an error, and so is an empty bundle.
func ParseRoots(rootsPEM []byte) (*x509.CertPool, []*x509.Certificate, error) {
	certs, err := parseCerts(rootsPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read CA bundle: %w", err)
	}
	pool := x509.NewCertPool()
	for i, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, nil, fmt.Errorf("read CA bundle: certificate %d is not an authority's", i)
		}
		pool.AddCert(c)
	}
	return pool, certs, nil
}

func parseCerts(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		// pem.Decode skips what it cannot read; a block must begin right here.
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, errors.New("text that is not PEM")
		}
		var b *pem.Block
		before := len(rest)
		if b, rest = pem.Decode(rest); b == nil || len(rest) == before {
			return nil, errors.New("PEM is cut short")
		}
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %.40q, want certificates only", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return certs, nil
}

// splitNode takes node.pem apart: the key is its last block.
func splitNode(text []byte) (chain, key []byte, err error) {
	i := bytes.LastIndex(text, []byte("-----BEGIN "))
	if i < 0 || !bytes.HasPrefix(text[i:], []byte("-----BEGIN PRIVATE KEY-----")) {
		return nil, nil, fmt.Errorf("%s does not end in a private key", FileNode)
	}
	return text[:i], text[i:], nil
}

func parse(chainPEM, keyPEM, rootsPEM []byte) (*material, error) {
	pool, _, err := ParseRoots(rootsPEM)
	if err != nil {
		return nil, err
	}
	chain, err := parseCerts(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("read certificate chain: %w", err)
	}
	leaf := chain[0]
	name, err := CertificateName(leaf)
	if err != nil {
		return nil, err
	}
	signer, block, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("private key is not the certificate's")
	}
	// At its own NotBefore, so that age alone never keeps a node from starting.
	if _, err := verify(chain, pool, x509.ExtKeyUsageAny, leaf.NotBefore); err != nil {
		return nil, err
	}
	m := &material{name: name, roots: pool, rootsPEM: bytes.Clone(rootsPEM)}
	for _, c := range chain {
		m.cert.Certificate = append(m.cert.Certificate, c.Raw)
		m.nodePEM = append(m.nodePEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	m.nodePEM = append(m.nodePEM, pem.EncodeToMemory(block)...)
	m.cert.PrivateKey, m.cert.Leaf = signer, leaf
	return m, nil
}
