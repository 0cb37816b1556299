package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/table"
)

func TestDialer_GuardsEveryAddress(t *testing.T) {
	private := []string{"10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.1.2.3"}
	loopback := []string{"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"}
	never := []string{"169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "::", "0.1.2.3", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "100.100.100.200",
		"192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "168.63.129.16", "fec0::1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254", "2001:0:1::1"}
	everything := "private,loopback,0.0.0.0/0,::/0"
	for _, c := range []struct {
		allow   string
		ips     []string
		refused bool
	}{
		{"", private, true}, {"", loopback, true}, {"", never, true},
		{"private", private, false}, {"private", loopback, true}, {"private", never, true},
		{"loopback", loopback, false}, {"loopback", private, true},
		{"10.1.0.0/16", private[:1], false}, {"10.1.0.0/16", private[1:5], true},
		{everything, never, true}, {everything, private, false},
	} {
		allow, err := upstream.ParseAllow(c.allow)
		if err != nil {
			t.Fatal(err)
		}
		d := upstream.NewDialer(upstream.Config{Allow: allow})
		for _, ip := range c.ips {
			if err := upstream.NewGuard(allow, nil).Check(netip.MustParseAddr(ip)); errors.Is(err, upstream.ErrAddress) != c.refused {
				t.Errorf("allowed %q, %s: got %v, refused %v wanted", c.allow, ip, err, c.refused)
			}
			if !c.refused {
				continue // nobody is there
			}
			for _, at := range []upstream.Place{{}, {Pin: netip.MustParseAddr(ip)}} { // as written, and as what a name means
				addr := net.JoinHostPort(ip, "9")
				if at.Pin.IsValid() {
					addr = "public.example:9"
				}
				if _, err := d.Dial(t.Context(), at, addr); !errors.Is(err, upstream.ErrAddress) {
					t.Errorf("allowed %q, dial %s as %s: got %v, want it refused", c.allow, ip, addr, err)
				}
			}
		}
	}
	if _, err := upstream.ParseAllow("private, everything"); err == nil || !strings.Contains(err.Error(), `"everything"`) {
		t.Errorf("a word that is none: got %v", err)
	}
}

func TestDialer_AsksForPermissionByTheNameThatIsConfigured(t *testing.T) {
	var asked []string
	d := upstream.NewDialer(upstream.Config{Permit: func(addr string) error { asked = append(asked, addr); return errors.New("no") }})
	if _, err := d.Dial(t.Context(), upstream.Place{Pin: netip.MustParseAddr("192.0.2.1")}, "orders.example:443"); err == nil || err.Error() != "no" {
		t.Errorf("got %v, want the refusal", err)
	}
	if !slices.Equal(asked, []string{"orders.example:443"}) {
		t.Errorf("asked for %v", asked)
	}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (a *authority) issue(t *testing.T, names ...string) (crt, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func TestDialer_VerifiesUpstreamsAndShowsWhoItIs(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	crt, key := ca.issue(t, "orders.internal")
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	var mutual tls.ClientAuthType
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: mutual}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	dir := t.TempDir()
	crt, key = ca.issue(t, "an-edge")
	write := func(name string, data []byte, mode os.FileMode) {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), data, mode), os.Chmod(filepath.Join(dir, name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("orders.crt", crt, 0o644)
	write("orders.key", key, 0o600)
	write("open.crt", crt, 0o644)
	write("open.key", key, 0o644)
	try := func(certs *upstream.Certs, of table.UpstreamTLS) error {
		d := upstream.NewDialer(upstream.Config{Allow: upstream.Loopback(), Certs: certs, Timeout: time.Minute})
		at := upstream.Place{Base: "https://" + l.Addr().String(), TLS: of}
		cfg, err := d.TLS(at)
		if err != nil {
			return err
		}
		c, err := d.Dial(t.Context(), at, l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		tc := tls.Client(c, cfg)
		if err := tc.HandshakeContext(t.Context()); err != nil {
			return err
		}
		_, err = tc.Read(make([]byte, 1)) // TLS 1.3 tells of a refused client only here
		return err
	}
	for _, c := range []struct {
		name  string
		tls   table.UpstreamTLS
		certs *upstream.Certs
		auth  tls.ClientAuthType
		want  string // of the error; "": none
	}{
		{"own ca and name", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal"}, nil, tls.NoClientCert, ""},
		{"the system does not know the ca", table.UpstreamTLS{ServerName: "orders.internal"}, nil, tls.NoClientCert, "certificate"},
		{"another ca", table.UpstreamTLS{CA: other.pem, ServerName: "orders.internal"}, nil, tls.NoClientCert, "certificate"},
		{"another name", table.UpstreamTLS{CA: ca.pem, ServerName: "reports.internal"}, nil, tls.NoClientCert, "reports.internal"},
		{"the URL's name", table.UpstreamTLS{CA: ca.pem}, nil, tls.NoClientCert, "127.0.0.1"},
		{"a ca that is none", table.UpstreamTLS{CA: "x", ServerName: "orders.internal"}, nil, tls.NoClientCert, "no certificate"},
		{"asked who it is, with nothing to show", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal"}, nil, tls.RequireAndVerifyClientCert, "certificate"},
		{"asked who it is", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal", ClientCertificate: "orders"}, upstream.NewCerts(dir), tls.RequireAndVerifyClientCert, ""},
		{"no directory", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal", ClientCertificate: "orders"}, nil, tls.RequireAndVerifyClientCert, "no -upstream-certs"},
		{"no such file", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal", ClientCertificate: "none"}, upstream.NewCerts(dir), tls.RequireAndVerifyClientCert, "none.crt"},
		{"a key for everybody", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal", ClientCertificate: "open"}, upstream.NewCerts(dir), tls.RequireAndVerifyClientCert, "chmod"},
		{"a name that leads away", table.UpstreamTLS{CA: ca.pem, ServerName: "orders.internal", ClientCertificate: "../" + filepath.Base(dir) + "/orders"}, upstream.NewCerts(dir), tls.RequireAndVerifyClientCert, "escapes"},
	} {
		mutual = c.auth
		err := try(c.certs, c.tls)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestNames_KeepWhatWasKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		answer, fails, asked := []string{"192.0.2.2", "192.0.2.1", "2001:db8::1", "10.0.0.1"}, error(nil), 0
		n, err := upstream.NewNames(upstream.NamesConfig{Logger: slog.New(slog.DiscardHandler), Lookup: func(_ context.Context, host string) (out []netip.Addr, err error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if host != "orders.internal" {
				t.Errorf("asked for %s", host)
			}
			for _, a := range answer {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, fails
		}})
		if err != nil {
			t.Fatal(err)
		}
		set := func(err error, addrs ...string) {
			mu.Lock()
			defer mu.Unlock()
			answer, fails = addrs, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		defer func() { cancel(); <-done }()
		is := func(what string, want ...string) {
			t.Helper()
			var got []string
			for _, a := range n.Addrs("orders.internal") {
				got = append(got, a.String())
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", what, got, want)
			}
		}
		time.Sleep(time.Second)
		is("asked for nothing")
		changed := n.Changed()
		n.Want([]string{"orders.internal"})
		time.Sleep(time.Second)
		is("asked", "192.0.2.1", "192.0.2.2")
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		set(nil, "192.0.2.3")
		time.Sleep(6 * time.Second)
		is("changed", "192.0.2.3")
		changed = n.Changed()
		set(errors.New("server failure"))
		time.Sleep(10 * time.Minute)
		is("not resolved for ten minutes", "192.0.2.3")
		set(nil)
		time.Sleep(10 * time.Minute)
		is("empty for ten minutes", "192.0.2.3")
		set(nil, "169.254.169.254")
		time.Sleep(10 * time.Minute)
		is("turned to what may not be dialled", "192.0.2.3")
		select {
		case <-changed:
			t.Error("told of a change that was none")
		default:
		}
		mu.Lock()
		if asked < 40 || asked > 400 {
			t.Errorf("asked %d times in half an hour", asked)
		}
		mu.Unlock()
		set(nil, "2001:db8::2", "2001:db8::1")
		time.Sleep(time.Minute)
		is("IPv6 alone", "2001:db8::1", "2001:db8::2")
		n.Want(nil)
		is("no longer wanted")
	})
}

// A name that is not ASCII is dialled, permitted and verified as it is resolved, over HTTP/2 as over HTTP/1.1.
func TestDialer_NamesThatAreNotASCII(t *testing.T) {
	stop, asked := errors.New("seen"), ""
	d := upstream.NewDialer(upstream.Config{Permit: func(addr string) error { asked = addr; return stop }})
	for base, want := range map[string]string{"https://b\u00fccher.test": "xn--bcher-kva.test:443", "https://B\u00dcCHER.test:8443": "xn--bcher-kva.test:8443", "https://[2001:db8::1]:8443": "[2001:db8::1]:8443", "https://plain.test": "plain.test:443"} {
		at := upstream.Place{Base: base, Protocol: "h2"}
		if _, err := d.DialHTTP2(t.Context(), at); !errors.Is(err, stop) || asked != want {
			t.Errorf("%s: asked for %q (%v), want %q", base, asked, err, want)
		}
		host, _, _ := net.SplitHostPort(want)
		if cfg, err := d.TLS(at); err != nil || cfg.ServerName != host {
			t.Errorf("%s: verified as %q (%v), want %q", base, cfg.ServerName, err, host)
		}
	}
}

func TestDialer_SpeaksHTTP2OnlyWhereItIsAgreedOn(t *testing.T) {
	for _, speaks := range []bool{true, false} {
		srv := httptest.NewUnstartedServer(nil)
		srv.EnableHTTP2 = speaks
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		srv.StartTLS()
		defer srv.Close()
		roots := x509.NewCertPool()
		roots.AddCert(srv.Certificate())
		at := upstream.Place{Base: srv.URL, Protocol: "h2"}
		conn, err := upstream.NewDialer(upstream.Config{Allow: upstream.Loopback(), Roots: roots}).DialHTTP2(t.Context(), at)
		if (err == nil) != speaks {
			t.Errorf("a server that speaks it (%v): got %v", speaks, err)
		}
		if err == nil {
			conn.Close()
		}
		if _, err := upstream.NewDialer(upstream.Config{Allow: upstream.Loopback(), Roots: x509.NewCertPool()}).DialHTTP2(t.Context(), at); err == nil {
			t.Error("a server that nobody vouches for is spoken to")
		}
	}
}
