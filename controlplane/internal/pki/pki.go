// Package pki owns the keys of an installation: the root and the authorities of
// zones that init writes, what follows from a zone key, the certificates that a
// zone's authority signs, and the doors where a node buys one with a join token
// or renews it.
//
// It never logs or returns a private key except in the files of init, and a
// zone's keys never enter another zone's kit. Join tokens rest in the zone
// store as hashes; a crash in the middle of a join leaves a token that the same
// key can use again. Everything may be called from any goroutine at once, Init
// apart.
package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"path/filepath"
	"strings"
	"time"

	"bailiwick/shared/durable"
	"bailiwick/shared/identity"
)

// The files of a kit beside those of package identity. Only ca.pem, roots.pem
// and installation.json are public.
const (
	fileZoneKey = "zone.key"          // 32 bytes, hexadecimal
	fileCA      = "ca.pem"            // the zone's authority
	fileCAKey   = "ca.key.sealed"     // its key, under the zone key
	fileInst    = "installation.json" // Installation
	fileRootKey = "root.key"          // offline: keep it nowhere a program runs
	rootDir     = "root"
)

var caKeyHeader = durable.Header{Magic: "bwcakey", Version: 1, Program: "bailiwick-control"}

const (
	rootYears = 20
	caYears   = 10
)

// Installation is what every node may know about the whole.
type Installation struct {
	Name         string        `json:"installation"`
	PrimaryZone  string        `json:"primary_zone"`
	IdentityTTL  time.Duration `json:"identity_ttl"` // nanoseconds
	Zones        []Zone        `json:"zones"`
	Regions      []Region      `json:"regions"`
	ControlNodes []ControlNode `json:"control_nodes"`
}

// Zone is a zone with the public key that its tables and records are signed with.
type Zone struct {
	Name         string            `json:"name"`
	Jurisdiction string            `json:"jurisdiction,omitempty"`
	SigningKey   ed25519.PublicKey `json:"signing_key"`
}

// Region is a region as of init; the catalog knows those added later.
type Region struct {
	Name         string `json:"name"`
	Zone         string `json:"zone"`
	Country      string `json:"country,omitempty"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
	Provider     string `json:"provider,omitempty"`
	ControlOnly  bool   `json:"control_only,omitempty"`
}

// ControlNode is a control node and where it is reached.
type ControlNode struct {
	Name   string `json:"name"`
	Zone   string `json:"zone"`
	Region string `json:"region"`
	Admin  string `json:"admin"`
	Peer   string `json:"peer"`
}

// Zone finds a zone by name.
func (in *Installation) Zone(name string) (Zone, bool) {
	for _, z := range in.Zones {
		if z.Name == name {
			return z, true
		}
	}
	return Zone{}, false
}

// Control finds a control node by name.
func (in *Installation) Control(name string) (ControlNode, bool) {
	for _, n := range in.ControlNodes {
		if n.Name == name {
			return n, true
		}
	}
	return ControlNode{}, false
}

// InZone lists the control nodes of a zone.
func (in *Installation) InZone(zone string) (nodes []ControlNode) {
	for _, n := range in.ControlNodes {
		if n.Zone == zone {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// ZoneSecrets is what follows from a zone key. Every control node of the zone
// holds it; edges get Pepper and CertSeal at join.
type ZoneSecrets struct {
	Pepper   []byte             // of API key digests
	HookSeal []byte             // seals the signing secrets of webhooks in the zone store; edges never get it
	CertSeal []byte             // seals private keys of host certificates in the zone store
	Backup   []byte             // seals backups
	Signer   ed25519.PrivateKey // signs tables and records
	caSeal   []byte
}

// String keeps the secrets out of messages and logs.
func (*ZoneSecrets) String() string       { return "[zone secrets]" }
func (*ZoneSecrets) GoString() string     { return "[zone secrets]" }
func (*ZoneSecrets) LogValue() slog.Value { return slog.StringValue("[zone secrets]") }
func (*ZoneSecrets) MarshalJSON() ([]byte, error) {
	return nil, errors.New("zone secrets are never encoded")
}

// DeriveSecrets makes the secrets of a 32-byte zone key (HKDF-SHA256, RFC 5869,
// without salt: the key is uniform already).
func DeriveSecrets(zoneKey []byte) (*ZoneSecrets, error) {
	if len(zoneKey) != 32 {
		return nil, fmt.Errorf("derive zone secrets: key holds %d bytes, want 32", len(zoneKey))
	}
	derive := func(label string) []byte {
		b, err := hkdf.Key(sha256.New, zoneKey, nil, label, 32)
		if err != nil {
			panic(err) // only for lengths over 255 hashes
		}
		return b
	}
	return &ZoneSecrets{
		Pepper:   derive("bailiwick pepper"),
		HookSeal: derive("bailiwick webhook seal"),
		CertSeal: derive("bailiwick cert seal"),
		Backup:   derive("bailiwick backup seal"),
		Signer:   ed25519.NewKeyFromSeed(derive("bailiwick signing")),
		caSeal:   derive("bailiwick ca seal"),
	}, nil
}

// Init writes a new installation below dir: root/ with the offline root key,
// and for each control node <node>/identity/, its kit. It refuses a dir that
// holds a root already: overwriting one would orphan every certificate.
func Init(spec Spec, dir string) (*Installation, error) {
	if spec.IdentityTTL == 0 {
		spec.IdentityTTL = defaultIdentityTTL
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	now := time.Now()
	root := filepath.Join(dir, rootDir)
	if _, err := durable.OS().Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("init %s: %s exists already: choose another directory or remove it", dir, root)
	}
	rootCert, rootKey, err := newAuthority(nil, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: spec.Installation + " root"}, NotAfter: now.AddDate(rootYears, 0, 0), MaxPathLen: 1,
	}, now)
	if err != nil {
		return nil, err
	}
	rootsPEM := encodeCert(rootCert.Raw)
	rootKeyPEM, err := encodeKey(rootKey)
	if err != nil {
		return nil, err
	}
	in := &Installation{Name: spec.Installation, PrimaryZone: spec.PrimaryZone, IdentityTTL: spec.IdentityTTL}
	for _, r := range spec.Regions {
		in.Regions = append(in.Regions, Region(r))
	}
	for _, n := range spec.ControlNodes {
		in.ControlNodes = append(in.ControlNodes, ControlNode(n))
	}
	zones := map[string]*zoneKit{}
	for _, z := range spec.Zones {
		kit, err := newZoneKit(spec.Installation, z.Name, rootCert, rootKey, now)
		if err != nil {
			return nil, err
		}
		zones[z.Name] = kit
		in.Zones = append(in.Zones, Zone{z.Name, z.Jurisdiction, kit.secrets.Signer.Public().(ed25519.PublicKey)})
	}
	public, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := writeFiles(root, map[string][]byte{fileRootKey: rootKeyPEM, identity.FileRoots: rootsPEM, fileInst: public}); err != nil {
		return nil, err
	}
	for _, n := range spec.ControlNodes {
		kit := zones[n.Zone]
		home := filepath.Join(dir, n.Name, "identity")
		keyPEM, csr, err := identity.NewKeyAndCSR()
		if err != nil {
			return nil, err
		}
		name := identity.Name{Zone: n.Zone, Installation: spec.Installation, Region: n.Region, Kind: identity.Control, Node: n.Name}
		chain, err := kit.ca.SignNode(csr, name, spec.IdentityTTL, now)
		if err != nil {
			return nil, err
		}
		if err := writeFiles(home, map[string][]byte{fileZoneKey: []byte(hex.EncodeToString(kit.key) + "\n"), fileCA: kit.ca.chainPEM, fileInst: public}); err != nil {
			return nil, err
		}
		if err := durable.WriteSealed(durable.OS(), filepath.Join(home, fileCAKey), caKeyHeader, kit.sealedKey); err != nil {
			return nil, err
		}
		if err := identity.WriteDir(home, chain, keyPEM, rootsPEM); err != nil {
			return nil, err
		}
	}
	return in, nil
}

type zoneKit struct {
	key       []byte
	secrets   *ZoneSecrets
	ca        *CA
	sealedKey []byte
}

func newZoneKit(installation, zone string, rootCert *x509.Certificate, rootKey *ecdsa.PrivateKey, now time.Time) (*zoneKit, error) {
	key := make([]byte, 32)
	rand.Read(key) // never fails (crypto/rand since Go 1.24)
	secrets, err := DeriveSecrets(key)
	if err != nil {
		return nil, err
	}
	domain := zone + "." + installation
	cert, caKey, err := newAuthority(rootCert, rootKey, &x509.Certificate{
		Subject: pkix.Name{CommonName: domain + " authority"}, NotAfter: now.AddDate(caYears, 0, 0), MaxPathLenZero: true,
		// The whole extension is critical: a verifier that does not know it must refuse.
		PermittedDNSDomainsCritical: true, PermittedURIDomains: []string{domain},
	}, now)
	if err != nil {
		return nil, err
	}
	ca := &CA{zone: zone, installation: installation, cert: cert, key: caKey, chainPEM: encodeCert(cert.Raw)}
	der, err := x509.MarshalPKCS8PrivateKey(caKey)
	if err != nil {
		return nil, fmt.Errorf("encode authority key of %s: %w", zone, err)
	}
	gcm, err := newGCM(secrets.caSeal)
	if err != nil {
		return nil, err
	}
	return &zoneKit{key, secrets, ca, gcm.Seal(nil, nil, der, cert.Raw)}, nil
}

// Load reads a kit. It refuses whatever does not belong together.
func Load(dir string) (*Installation, *ZoneSecrets, *CA, error) {
	in, secrets, ca, err := load(dir)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("load kit %s: %w", dir, err)
	}
	return in, secrets, ca, nil
}

func load(dir string) (*Installation, *ZoneSecrets, *CA, error) {
	read := func(name string) ([]byte, error) {
		return durable.ReadFile(durable.OS(), filepath.Join(dir, name), 1<<20)
	}
	public, err := read(fileInst)
	if err != nil {
		return nil, nil, nil, err
	}
	in := &Installation{}
	if err := json.Unmarshal(public, in); err != nil {
		return nil, nil, nil, fmt.Errorf("read %s: %w", fileInst, err)
	}
	text, err := read(fileZoneKey)
	if err != nil {
		return nil, nil, nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read %s: not hexadecimal", fileZoneKey) // the cause would quote the key
	}
	secrets, err := DeriveSecrets(key)
	if err != nil {
		return nil, nil, nil, err
	}
	caPEM, err := read(fileCA)
	if err != nil {
		return nil, nil, nil, err
	}
	ca, err := loadCA(dir, caPEM, secrets)
	if err != nil {
		return nil, nil, nil, err
	}
	z, ok := in.Zone(ca.zone)
	if !ok || in.Name != ca.installation || !secrets.Signer.Public().(ed25519.PublicKey).Equal(z.SigningKey) {
		return nil, nil, nil, fmt.Errorf("zone key, authority %s.%s and %s do not belong together", ca.zone, ca.installation, fileInst)
	}
	return in, secrets, ca, nil
}

func loadCA(dir string, caPEM []byte, secrets *ZoneSecrets) (*CA, error) {
	block, rest := pem.Decode(caPEM)
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("read %s: not one certificate", fileCA)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", fileCA, err)
	}
	if !cert.IsCA || len(cert.PermittedURIDomains) != 1 {
		return nil, fmt.Errorf("read %s: not the authority of one zone", fileCA)
	}
	zone, installation, ok := strings.Cut(cert.PermittedURIDomains[0], ".")
	if !ok {
		return nil, fmt.Errorf("read %s: trust domain %q is not <zone>.<installation>", fileCA, cert.PermittedURIDomains[0])
	}
	blob, _, err := durable.ReadSealed(durable.OS(), filepath.Join(dir, fileCAKey), caKeyHeader, 1<<16)
	if err != nil {
		return nil, err
	}
	gcm, err := newGCM(secrets.caSeal)
	if err != nil {
		return nil, err
	}
	der, err := gcm.Open(nil, nil, blob, cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("open %s: not sealed by this zone key for this authority", fileCAKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", fileCAKey, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("open %s: not the key of %s", fileCAKey, fileCA)
	}
	return &CA{zone: zone, installation: installation, cert: cert, key: key, chainPEM: encodeCert(cert.Raw)}, nil
}

// newAuthority issues an authority by parent, or a self-signed root.
func newAuthority(parent *x509.Certificate, by *ecdsa.PrivateKey, c *x509.Certificate, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("draw authority key: %w", err)
	}
	c.SerialNumber = newSerial()
	c.NotBefore = now.Add(-24 * time.Hour) // wide: no node's clock may be behind its authority
	c.IsCA, c.BasicConstraintsValid = true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		return nil, nil, fmt.Errorf("sign %s: %w", c.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// newSerial draws 127 bits: unpredictable, positive, within RFC 5280's 20 bytes.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func writeFiles(dir string, files map[string][]byte) error {
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	for name, data := range files {
		if err := durable.WriteFileAtomic(durable.OS(), filepath.Join(dir, name), data, durable.FilePerm); err != nil {
			return err
		}
	}
	return nil
}
