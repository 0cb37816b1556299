package pki_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

const spec = `
installation: test.example
primary_zone: emea
identity_ttl: 20s
zones: [{name: emea, jurisdiction: EEA}, {name: us, jurisdiction: US}]
regions:
  - {name: eu-west, zone: emea, country: IE, jurisdiction: EEA}
  - {name: eu-north, zone: emea, control_only: true}
  - {name: us-east, zone: us}
control_nodes:
  - {name: emea-1, zone: emea, region: eu-west, admin: "https://127.0.0.1:7001", peer: "127.0.0.1:7101"}
  - {name: emea-2, zone: emea, region: eu-north, admin: "https://127.0.0.1:7002", peer: "127.0.0.1:7102"}
  - {name: us-1, zone: us, region: us-east, admin: "https://127.0.0.1:7003", peer: "127.0.0.1:7103"}
`

func initDir(t *testing.T) (string, *pki.Installation) {
	t.Helper()
	s, err := pki.ParseSpec([]byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in, err := pki.Init(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, in
}

func TestParseSpec_RefusesWithAField(t *testing.T) {
	for _, tc := range []struct{ old, new, field string }{
		{"installation: test.example", "installation: Test", "installation"},
		{"primary_zone: emea", "primary_zone: apac", "primary_zone"},
		{"identity_ttl: 20s", "identity_ttl: 1s", "identity_ttl"},
		{"name: us, jurisdiction", "name: emea, jurisdiction", "zones[1].name"},
		{"name: us-east, zone: us", "name: us-east, zone: apac", "regions[2].zone"},
		{"name: us-east, zone: us", "name: eu-west, zone: us", "regions[2].name"},
		{"us-1, zone: us, region: us-east", "us-1, zone: us, region: eu-west", "control_nodes[2].region"},
		{"us-1, zone: us, region: us-east", "us-1, zone: emea, region: eu-west", "zones[1]"},
		{"{name: emea-2", "{name: emea-1", "control_nodes[1].name"},
		{"{name: emea-2", "{name: root", "control_nodes[1].name"},
		{`"https://127.0.0.1:7002"`, `"http://127.0.0.1:7002"`, "control_nodes[1].admin"},
		{`"127.0.0.1:7102"`, `"7102"`, "control_nodes[1].peer"},
		{"country: IE", "county: IE", ""},
	} {
		text := strings.Replace(spec, tc.old, tc.new, 1)
		if text == spec {
			t.Fatalf("%q is not in the spec", tc.old)
		}
		_, err := pki.ParseSpec([]byte(text))
		fe, ok := fault.As(err)
		if !ok || fe.Kind != fault.Invalid || fe.Field != tc.field {
			t.Errorf("%q: got %v (field %q), want invalid at %q", tc.new, err, fe.Field, tc.field)
		}
	}
}

func TestInit_KitsLoadAndHoldOnlyTheirZone(t *testing.T) {
	dir, in := initDir(t)
	kit := func(node string) string { return filepath.Join(dir, node, "identity") }
	got, secrets, ca, err := pki.Load(kit("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "test.example" || got.PrimaryZone != "emea" || got.IdentityTTL != 20*time.Second || len(got.Zones) != 2 || len(got.ControlNodes) != 3 {
		t.Errorf("installation: got %+v", got)
	}
	if ca.TrustDomain() != "emea.test.example" {
		t.Errorf("authority: got %s", ca.TrustDomain())
	}
	_, same, _, err := pki.Load(kit("emea-2"))
	if err != nil || !bytes.Equal(same.Pepper, secrets.Pepper) || !same.Signer.Equal(secrets.Signer) {
		t.Errorf("nodes of one zone hold different secrets (%v)", err)
	}
	_, us, _, err := pki.Load(kit("us-1"))
	if err != nil || bytes.Equal(us.Pepper, secrets.Pepper) || bytes.Equal(secrets.Pepper, secrets.CertSeal) {
		t.Errorf("secrets are shared across zones or labels (%v)", err)
	}
	if s := fmt.Sprintf("%v %+v %#v", secrets, secrets, secrets); strings.Contains(s, fmt.Sprint(secrets.Pepper)) || !strings.Contains(s, "[zone secrets]") {
		t.Error("secrets print themselves")
	}
	src, err := identity.Load(kit("us-1"))
	if err != nil || src.Name().String() != "spiffe://us.test.example/region/us-east/control/us-1" {
		t.Errorf("first certificate: got %v %v", src.Name(), err)
	}
	if life := src.NotAfter().Sub(src.NotBefore()); life < 20*time.Second || life > 23*time.Second {
		t.Errorf("lifetime of the first certificate: got %s, want about 20s", life)
	}
	// No zone's key lies in another zone's kit, and nothing is readable by others.
	emeaKey, _ := os.ReadFile(filepath.Join(kit("emea-1"), "zone.key"))
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, _ := d.Info()
		if info.Mode().Perm()&0o077 != 0 && p != dir {
			t.Errorf("%s: mode %v, want no access for others", p, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(p)
		if strings.Contains(p, "us-1") && bytes.Contains(data, bytes.TrimSpace(emeaKey)) {
			t.Errorf("%s holds the key of emea", p)
		}
		if !strings.HasPrefix(p, filepath.Join(dir, "root")) && filepath.Base(p) == "root.key" {
			t.Errorf("%s: the root key is in a kit", p)
		}
		return nil
	})
	if _, err := pki.Init(mustSpec(t), dir); err == nil {
		t.Error("second init: got no error, want refused")
	}
	_ = in
}

func mustSpec(t *testing.T) pki.Spec {
	t.Helper()
	s, err := pki.ParseSpec([]byte(spec))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoad_RefusesMixedKits(t *testing.T) {
	dir, _ := initDir(t)
	emea, us := filepath.Join(dir, "emea-1", "identity"), filepath.Join(dir, "us-1", "identity")
	for _, name := range []string{"zone.key", "ca.pem", "ca.key.sealed", "installation.json"} {
		path := filepath.Join(emea, name)
		keep, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := os.ReadFile(filepath.Join(us, name))
		for what, data := range map[string][]byte{"other zone's": other, "empty": {}, "cut": keep[:len(keep)/2]} {
			if name == "installation.json" && what == "other zone's" {
				continue // the same in every kit
			}
			os.WriteFile(path, data, 0o600)
			if _, _, _, err := pki.Load(emea); err == nil {
				t.Errorf("%s %s: got loaded, want refused", what, name)
			}
		}
		os.WriteFile(path, keep, 0o600)
	}
	if _, _, _, err := pki.Load(emea); err != nil {
		t.Fatalf("restored kit: %v", err)
	}
}

func leafOf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode(chain)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCA_SignsNothingElse(t *testing.T) {
	dir, _ := initDir(t)
	home := filepath.Join(dir, "emea-1", "identity")
	_, _, ca, err := pki.Load(home)
	if err != nil {
		t.Fatal(err)
	}
	roots, _ := os.ReadFile(filepath.Join(home, "roots.pem"))
	key, csr, _ := identity.NewKeyAndCSR()
	name := identity.Name{Zone: "emea", Installation: "test.example", Region: "eu-west", Kind: identity.Edge, Node: "e1"}
	chain, err := ca.SignNode(csr, name, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := identity.New(chain, key, roots); err != nil || s.Name() != name {
		t.Fatalf("node certificate: %v", err)
	}
	us := name
	us.Zone = "us"
	if _, err := ca.SignNode(csr, us, time.Hour, time.Now()); err == nil {
		t.Error("a name of another zone: got signed")
	}
	if _, err := ca.SignNode(append(csr[:len(csr)-1:len(csr)-1], csr[len(csr)-1]^1), name, time.Hour, time.Now()); fault.ReasonOf(err) != pki.ReasonCSR {
		t.Errorf("spoilt request: got %v, want %s", err, pki.ReasonCSR)
	}
	host, err := ca.SignHost(csr, []string{"orders.emea.example.test", "127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, host)
	if len(leaf.URIs) != 0 || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || leaf.IsCA {
		t.Errorf("host certificate: got URIs %v, usages %v, CA %v", leaf.URIs, leaf.ExtKeyUsage, leaf.IsCA)
	}
	if _, err := identity.New(host, key, roots); err == nil {
		t.Error("host certificate as an identity: got accepted")
	}
	for _, bad := range [][]string{nil, {"*.example.test"}, {"a..b"}, {"spiffe://x"}, {""}, {"A.example"}} {
		if _, err := ca.SignHost(csr, bad, time.Hour, time.Now()); err == nil {
			t.Errorf("hosts %q: got signed", bad)
		}
	}

	cfg, err := ca.AdminTLS([]string{"127.0.0.1", "localhost"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool, _, err := identity.ParseRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	for _, name := range []string{"127.0.0.1", "localhost"} {
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: pool, ServerName: name})
		if err != nil {
			t.Errorf("admin port as %s: %v", name, err)
			continue
		}
		c.Close()
	}
	if c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "other.example"}); err == nil {
		c.Close()
		t.Error("admin port as other.example: got accepted")
	}
}
