package pki_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// rsaRequest is a certificate request with an RSA key of so many bits and a signature that is not one.
func rsaRequest(t *testing.T, bits int) []byte {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
	if err != nil {
		t.Fatal(err)
	}
	n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
	marshal := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 1<<31 - 1})
	if err != nil {
		t.Fatal(err)
	}
	body := marshal(struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []int `asn1:"tag:0"`
	}{0, asn1.RawValue{FullBytes: []byte{0x30, 0}}, asn1.RawValue{FullBytes: key}, nil})
	sig := new(big.Int).Rsh(n, 1).FillBytes(make([]byte, bits/8))
	return marshal(struct {
		Body asn1.RawValue
		Alg  pkix.AlgorithmIdentifier
		Sig  asn1.BitString
	}{asn1.RawValue{FullBytes: body}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}})
}

// Anybody may send a request to the join door, with any token that looks like one. A signature by a huge RSA key
// costs seconds to check: sixteen of them at once would keep a control node from its work.
func TestEnroll_AStrangersRequestCostsLittle(t *testing.T) {
	w := newWorld(t)
	req, _ := request(t, "bwj_emea_"+strings.Repeat("0", 43), "eu-west", "e1")
	if req.Csr = rsaRequest(t, 240_000); len(req.Csr) > 63<<10 {
		t.Fatalf("the request has %d bytes and would not pass the door", len(req.Csr))
	}
	_, err := w.e.Join(t.Context(), req)
	if fault.ReasonOf(err) != pki.ReasonCSR || !strings.Contains(err.Error(), "240000 bits") {
		t.Errorf("got %v, want %s for the size of the key, before its signature is checked", err, pki.ReasonCSR)
	}
}

// A name that was withdrawn is given to another machine. The first one's certificate, valid for weeks, must not
// become good again, or whoever stole it is back in the zone and can renew it for ever.
func TestEnroll_AWithdrawnCertificateDoesNotComeBackWithItsName(t *testing.T) {
	w := newWorld(t)
	join := func() *identity.Source {
		req, key := request(t, w.token(t, "eu-west", "e1", 0), "eu-west", "e1")
		resp, err := w.e.Join(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		src, err := identity.New(resp.CertificateChain, key, resp.Roots)
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	stolen := join()
	if _, err := w.catalog.Txn(t.Context(), group.Txn{Ops: []group.Op{{Key: model.PrefixNode + "e1", Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	heir := join()
	// The second join an hour later than the first.
	kv, _ := w.catalog.Local().Get(model.PrefixNode + "e1")
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	if n.JoinedAt.IsZero() {
		t.Fatal("the registry does not say when the node joined")
	}
	registry := pki.Registry{Catalog: w.catalog, Installation: w.in}
	self, err := identity.Load(filepath.Join(w.dir, "emea-1", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	later := time.Duration(0)
	self.RefuseOlder(func(n identity.Name) time.Time { return registry.Since(n).Add(later) })
	refused := func(src *identity.Source) error {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		go func() {
			c := tls.Client(a, src.ClientTLS([]string{"h2"}, nil))
			if c.Handshake() == nil {
				c.Read(make([]byte, 1)) // a refusal comes after the handshake
			}
		}()
		return tls.Server(b, self.ServerTLS([]string{"h2"}, registry.Allow)).Handshake()
	}
	if err := refused(heir); err != nil {
		t.Errorf("the node that joined: got %v, want accepted", err)
	}
	later = time.Hour
	if err := refused(stolen); fault.ReasonOf(err) != identity.ReasonOutdated {
		t.Errorf("the withdrawn certificate: got %v, want %s", err, identity.ReasonOutdated)
	}
}
