package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/identitytest"
)

const inst = "test.example"

func TestParseName_AcceptsOneSpellingOnly(t *testing.T) {
	good := "spiffe://emea.test.example/region/eu-west/edge/eu-west-edge-1"
	u, _ := url.Parse(good)
	n, err := identity.ParseName(u)
	want := identity.Name{Zone: "emea", Installation: inst, Region: "eu-west", Kind: "edge", Node: "eu-west-edge-1"}
	if err != nil || n != want || n.String() != good || n.TrustDomain() != "emea.test.example" {
		t.Fatalf("got %+v %v, want %+v", n, err, want)
	}
	for _, bad := range []string{
		"https://emea.test.example/region/eu-west/edge/a", "spiffe://emea/region/eu-west/edge/a",
		"spiffe://emea.test.example/region/eu-west/edge/", "spiffe://emea.test.example/region/eu-west/edge/a/b",
		"spiffe://emea.test.example/region/eu-west/admin/a", "spiffe://emea.test.example:1/region/r/edge/a",
		"spiffe://u@emea.test.example/region/r/edge/a", "spiffe://emea.test.example/region/r/edge/a?x=1",
		"spiffe://emea.test.example/region/r/edge/a#f", "spiffe://EMEA.test.example/region/r/edge/a",
		"spiffe://emea.test.example/region/r/edge/%61", "spiffe://emea.test.example/region/../edge/a",
		"spiffe://.test.example/region/r/edge/a", "spiffe://emea./region/r/edge/a", "spiffe:/region/r/edge/a",
		"spiffe://emea.test.example/region/r/edge/a\u0430", "spiffe://emea.test.example//region/r/edge/a",
	} {
		u, err := url.Parse(bad)
		if err != nil {
			continue
		}
		if n, err := identity.ParseName(u); err == nil {
			t.Errorf("parse %q: got %+v, want an error", bad, n)
		}
	}
	if _, err := identity.ParseName(nil); err == nil {
		t.Error("parse nil: got no error")
	}
}

// shake runs one handshake and returns both ends' errors.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, sc, cc tls.ConnectionState) {
	t.Helper()
	a, b := net.Pipe()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("ok"))
		}
		if err != nil {
			a.Close()
		}
		done <- err
	}()
	clientErr = c.Handshake()
	if clientErr == nil {
		// In TLS 1.3 the client learns the server's refusal on its first read.
		_, clientErr = io.ReadFull(c, make([]byte, 2))
	}
	if clientErr != nil {
		b.Close()
	}
	serverErr = <-done
	sc, cc = s.ConnectionState(), c.ConnectionState()
	a.Close()
	b.Close()
	return
}

func TestSource_MutualTLS(t *testing.T) {
	in := identitytest.New(t, inst, "emea", "us")
	control := in.Source(t, "emea", "eu-west", identity.Control, "emea-1")
	edge := in.Source(t, "emea", "eu-west", identity.Edge, "edge-1")
	se, ce, sc, cc := shake(t, control.ServerTLS([]string{"h2"}, identity.Only(identity.Edge, "emea", "edge-1")),
		edge.ClientTLS([]string{"h2"}, identity.Only(identity.Control, "emea", "emea-1")))
	if se != nil || ce != nil {
		t.Fatalf("handshake: got server %v, client %v", se, ce)
	}
	if n, err := identity.PeerName(sc); err != nil || n != edge.Name() {
		t.Errorf("server sees %v %v, want %v", n, err, edge.Name())
	}
	if n, err := edge.Peer(cc); err != nil || n != control.Name() {
		t.Errorf("client sees %v %v, want %v", n, err, control.Name())
	}
	if _, err := identity.PeerName(cc); err == nil {
		t.Error("PeerName of a connection crypto/tls did not verify: got a name, want an error")
	}
	if sc.Version != tls.VersionTLS13 || sc.NegotiatedProtocol != "h2" || sc.DidResume {
		t.Errorf("got version %x, protocol %q, resumed %v", sc.Version, sc.NegotiatedProtocol, sc.DidResume)
	}
	old := edge.ClientTLS(nil, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if se, _, _, _ := shake(t, control.ServerTLS(nil, nil), old); se == nil {
		t.Error("TLS 1.2 client: got accepted, want refused")
	}
	if se, _, _, _ := shake(t, control.ServerTLS(nil, nil), &tls.Config{InsecureSkipVerify: true}); se == nil {
		t.Error("client without a certificate: got accepted, want refused")
	}
}

// wallet keeps any ticket that comes and offers it to whoever is dialled.
type wallet struct{ s *tls.ClientSessionState }

func (w *wallet) Get(string) (*tls.ClientSessionState, bool) { return w.s, w.s != nil }
func (w *wallet) Put(_ string, s *tls.ClientSessionState)    { w.s = s }

// A session between nodes would outlive a withdrawal, a tightening and a change of roots: none is ever resumed,
// neither by a client that wants to nor by one whose ticket comes from a laxer server of the same name.
func TestSource_ResumesNothing(t *testing.T) {
	in := identitytest.New(t, inst, "emea")
	a, b := in.Source(t, "emea", "eu-west", identity.Edge, "edge-1"), in.Source(t, "emea", "eu-central", identity.Edge, "edge-2")
	w := &wallet{}
	client := a.ClientTLS([]string{"h2"}, nil)
	client.SessionTicketsDisabled, client.ClientSessionCache = false, w
	for range 2 {
		if se, ce, sc, _ := shake(t, b.ServerTLS([]string{"h2"}, nil), client); se != nil || ce != nil || sc.DidResume || w.s != nil {
			t.Fatalf("got errors %v %v, resumed %v, a ticket %v; want a full handshake and no ticket", se, ce, sc.DidResume, w.s != nil)
		}
	}
	lax := b.ServerTLS([]string{"h2"}, nil)
	var key [32]byte
	lax.SetSessionTicketKeys([][32]byte{key})
	strict := lax.Clone()
	lax.GetConfigForClient, lax.SessionTicketsDisabled = nil, false
	shake(t, lax, client)
	if w.s == nil {
		t.Fatal("the client takes no ticket: the rest would prove nothing")
	}
	if se, ce, sc, _ := shake(t, strict, client); se != nil || ce != nil || sc.DidResume {
		t.Errorf("got errors %v %v, resumed %v; want a full handshake", se, ce, sc.DidResume)
	}
}

// Each spoilt certificate is refused as a client and as a server.
func TestSource_RefusesPeers(t *testing.T) {
	in := identitytest.New(t, inst, "emea", "us")
	other := identitytest.New(t, inst, "emea") // same names, another root
	foreign := identitytest.New(t, "other.example", "emea")
	good := in.Node("emea", "eu-west", identity.Edge, "edge-1")
	me := in.Source(t, "emea", "eu-west", identity.Control, "emea-1")
	allow := identity.Only(identity.Edge, "emea", "edge-1")

	cases := []struct {
		name   string
		by     *identitytest.Installation
		zone   string // whose authority signs
		n      identity.Name
		change func(*x509.Certificate)
	}{
		{"wrong zone", in, "us", in.Node("us", "us-east", identity.Edge, "edge-1"), nil},
		{"name of a zone signed by another zone's authority", in, "us", good, nil},
		{"wrong kind", in, "emea", in.Node("emea", "eu-west", identity.Control, "edge-1"), nil},
		{"wrong node", in, "emea", in.Node("emea", "eu-west", identity.Edge, "edge-2"), nil},
		{"another root", other, "emea", good, nil},
		{"another installation", foreign, "emea", foreign.Node("emea", "eu-west", identity.Edge, "edge-1"), nil},
		{"expired", in, "emea", good, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Minute), time.Now().Add(-time.Minute)
		}},
		{"not yet valid", in, "emea", good, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }},
		{"host certificate", in, "emea", good, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"edge-1"} }},
		{"two URIs", in, "emea", good, func(c *x509.Certificate) { c.URIs = append(c.URIs, good.URL()) }},
		{"a DNS name beside the URI", in, "emea", good, func(c *x509.Certificate) { c.DNSNames = []string{"a.example"} }},
		{"not for TLS", in, "emea", good, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			key, csr, err := identity.NewKeyAndCSR()
			if err != nil {
				t.Fatal(err)
			}
			chain, err := tc.by.Sign(csr, tc.zone, tc.n, time.Hour, tc.change)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(chain, key)
			if err != nil {
				t.Fatal(err)
			}
			bad := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
			if se, _, _, _ := shake(t, me.ServerTLS(nil, allow), bad); se == nil {
				t.Error("as a client: got accepted, want refused")
			}
			if _, ce, _, _ := shake(t, bad, me.ClientTLS(nil, allow)); ce == nil {
				t.Error("as a server: got accepted, want refused")
			}
		})
	}
	// The control: the same path accepts the node that is meant.
	if se, ce, _, _ := shake(t, me.ServerTLS(nil, allow), in.Source(t, "emea", "eu-west", identity.Edge, "edge-1").ClientTLS(nil, nil)); se != nil || ce != nil {
		t.Errorf("the right node: got %v %v, want accepted", se, ce)
	}
	if got := fault.ReasonOf(allow(in.Node("us", "r", identity.Edge, "edge-1"))); got != identity.ReasonWrongPeer {
		t.Errorf("reason: got %q, want %q", got, identity.ReasonWrongPeer)
	}
}

func TestLoad_FailsClosed(t *testing.T) {
	in := identitytest.New(t, inst, "emea")
	n := in.Node("emea", "eu-west", identity.Edge, "edge-1")
	chain, key := in.Issue(t, n, time.Hour, nil)
	_, key2 := in.Issue(t, n, time.Hour, nil)
	fresh := func() string {
		dir := filepath.Join(t.TempDir(), "identity")
		if err := identity.WriteDir(dir, chain, key, in.RootsPEM); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir := fresh()
	if s, err := identity.Load(dir); err != nil || s.Name() != n || s.Serial() == "" {
		t.Fatalf("load: got %v", err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, identity.FileNode: 0o600, identity.FileRoots: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode of %q: got %v %v, want %v", name, info.Mode(), err, want)
		}
	}
	spoil := map[string]func(dir string) error{
		"no roots":    func(d string) error { return os.Remove(filepath.Join(d, identity.FileRoots)) },
		"empty roots": func(d string) error { return os.WriteFile(filepath.Join(d, identity.FileRoots), nil, 0o600) },
		"noise": func(d string) error {
			return os.WriteFile(filepath.Join(d, identity.FileRoots), []byte("not a bundle"), 0o600)
		},
		"noise after": func(d string) error {
			return os.WriteFile(filepath.Join(d, identity.FileRoots), append(in.RootsPEM[:len(in.RootsPEM):len(in.RootsPEM)], "junk"...), 0o600)
		},
		"cut": func(d string) error {
			return os.WriteFile(filepath.Join(d, identity.FileRoots), in.RootsPEM[:len(in.RootsPEM)-30], 0o600)
		},
		"a leaf as a root": func(d string) error { return os.WriteFile(filepath.Join(d, identity.FileRoots), chain, 0o600) },
		"no certificate":   func(d string) error { return os.Remove(filepath.Join(d, identity.FileNode)) },
		"another key": func(d string) error {
			return os.WriteFile(filepath.Join(d, identity.FileNode), append(append([]byte{}, chain...), key2...), 0o600)
		},
		"no key": func(d string) error { return os.WriteFile(filepath.Join(d, identity.FileNode), chain, 0o600) },
		"another root": func(d string) error {
			return os.WriteFile(filepath.Join(d, identity.FileRoots), identitytest.New(t, inst, "emea").RootsPEM, 0o600)
		},
	}
	for name, do := range spoil {
		dir := fresh()
		if err := do(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.Load(dir); err == nil {
			t.Errorf("%s: got loaded, want refused", name)
		} else if strings.Contains(err.Error(), "PRIVATE KEY-----") {
			t.Errorf("%s: the error shows key material", name)
		}
	}
}

func TestSource_Replace(t *testing.T) {
	in := identitytest.New(t, inst, "emea")
	n := in.Node("emea", "eu-west", identity.Edge, "edge-1")
	chain, key := in.Issue(t, n, time.Hour, nil)
	dir := t.TempDir()
	if err := identity.WriteDir(dir, chain, key, in.RootsPEM); err != nil {
		t.Fatal(err)
	}
	s, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	serial := s.Serial()
	otherChain, otherKey := in.Issue(t, in.Node("emea", "eu-west", identity.Edge, "edge-2"), time.Hour, nil)
	if err := s.Replace(otherChain, otherKey, in.RootsPEM); err == nil || s.Serial() != serial {
		t.Fatalf("replace by another node's certificate: got %v, serial %s", err, s.Serial())
	}
	next, nextKey := in.Issue(t, n, time.Hour, nil)
	if err := s.Replace(next, key, in.RootsPEM); err == nil {
		t.Fatal("replace with the wrong key: got no error")
	}
	if err := s.Replace(next, nextKey, nil); err == nil {
		t.Fatal("replace with no roots: got no error")
	}
	if err := s.Replace(next, nextKey, in.RootsPEM); err != nil {
		t.Fatal(err)
	}
	again, err := identity.Load(dir)
	if err != nil || again.Serial() != s.Serial() || s.Serial() == serial {
		t.Fatalf("after replace: disk %v %v, memory %s, before %s", again.Serial(), err, s.Serial(), serial)
	}
	// New roots come into force at once, for configurations made before.
	server := in.Source(t, "emea", "eu-west", identity.Control, "emea-1")
	cfg := server.ServerTLS(nil, nil)
	in2 := identitytest.New(t, inst, "emea")
	sc, sk := in2.Issue(t, server.Name(), time.Hour, nil)
	if se, _, _, _ := shake(t, cfg, in2.Source(t, "emea", "r", identity.Edge, "e").ClientTLS(nil, nil)); se == nil {
		t.Fatal("other root before replace: got accepted")
	}
	if err := server.Replace(sc, sk, in2.RootsPEM); err != nil {
		t.Fatal(err)
	}
	if se, ce, _, _ := shake(t, cfg, in2.Source(t, "emea", "r", identity.Edge, "e").ClientTLS(nil, nil)); se != nil || ce != nil {
		t.Fatalf("other root after replace: got %v %v, want accepted", se, ce)
	}
}

// A minute of 3-second certificates: every handshake in it succeeds, though the
// issuer is away now and then, and the serial changes.
func TestRenewer_KeepsShortCertificatesValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := identitytest.New(t, inst, "emea")
		n := in.Node("emea", "eu-west", identity.Edge, "edge-1")
		chain, key := in.Issue(t, n, 3*time.Second, nil)
		s, err := identity.New(chain, key, in.RootsPEM)
		if err != nil {
			t.Fatal(err)
		}
		server := in.Source(t, "emea", "eu-west", identity.Control, "emea-1")
		calls := 0
		r := &identity.Renewer{Source: s, Issue: func(_ context.Context, csr []byte) ([]byte, []byte, error) {
			if calls++; calls%3 == 0 {
				return nil, nil, errors.New("away")
			}
			chain, err := in.Sign(csr, "emea", n, 3*time.Second, nil)
			return chain, nil, err
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		serials := map[string]bool{}
		sc, cc := server.ServerTLS(nil, nil), s.ClientTLS(nil, nil)
		for range 300 {
			time.Sleep(200 * time.Millisecond)
			if se, ce, _, _ := shake(t, sc, cc); se != nil || ce != nil {
				t.Fatalf("handshake: got %v %v (valid until %v, now %v)", se, ce, s.NotAfter(), time.Now())
			}
			serials[s.Serial()] = true
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil", err)
		}
		if len(serials) < 20 {
			t.Errorf("got %d serials in a minute, want at least 20", len(serials))
		}
		// The control: without the renewer the certificate expires and is refused.
		time.Sleep(4 * time.Second)
		if se, _, _, _ := shake(t, sc, cc); se == nil {
			t.Error("expired certificate: got accepted, want refused")
		}
	})
}

func TestRenewer_DueDaily(t *testing.T) {
	in := identitytest.New(t, inst, "emea")
	s := in.Source(t, "emea", "r", identity.Edge, "e")
	r := &identity.Renewer{Source: s}
	if got, want := r.Due().Sub(s.NotBefore()), 8*time.Hour; got.Round(time.Second) != want {
		t.Errorf("a day's certificate: due after %v, want %v", got, want)
	}
	chain, key := in.Issue(t, s.Name(), 30*24*time.Hour, nil)
	if err := s.Replace(chain, key, in.RootsPEM); err != nil {
		t.Fatal(err)
	}
	if got, want := r.Due().Sub(s.NotBefore()), 24*time.Hour; got != want {
		t.Errorf("a month's certificate: due after %v, want %v", got, want)
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("spiffe://emea.test.example/region/eu-west/edge/a")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		n, err := identity.ParseName(u)
		// Of u, not of s: url.Parse itself lowers the scheme and drops an empty fragment.
		if back, berr := identity.ParseName(n.URL()); err == nil && (n.String() != u.String() || berr != nil || back != n) {
			t.Errorf("%q parses as %q, and that as %q %v", s, n, back, berr)
		}
	})
}
