package etcdgroup

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
	"bailiwick/shared/lifecycle/porttest"
)

// certificate is self-signed, for a loopback server and its client alike.
func certificate(t *testing.T) (certFile, keyFile string, cfg *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bailiwick"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, b := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13}
}

// With TLS in both directions and a user who may touch its prefix alone.
func TestStore_TLSAndAuthentication(t *testing.T) {
	t.Parallel()
	cert, key, tlsCfg := certificate(t)
	c := &cluster{t: t, token: "tls"}
	m := &member{name: "m1", dir: filepath.Join(t.TempDir(), "m1"), client: porttest.Addr(t), peer: porttest.Addr(t)}
	m.toClient, m.toPeer = newProxy(t, m.client), newProxy(t, m.peer)
	c.members = []*member{m}
	cfg := c.config(m)
	secure := func(u []url.URL) { u[0].Scheme = "https" }
	secure(cfg.ListenClientUrls)
	secure(cfg.AdvertiseClientUrls)
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile, cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = cert, key, cert, true
	cfg.BcryptCost = 4
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.etcd = e
	t.Cleanup(func() { c.kill(m) })
	<-e.Server.ReadyNotify()

	endpoints := []string{"https://" + m.toClient.ln.Addr().String()}
	root, err := clientv3.New((&Store{cfg: Config{Endpoints: endpoints, TLS: tlsCfg}}).clientConfig(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx := short(t)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(root.UserAdd(ctx, "root", "r"))
	must(root.UserGrantRole(ctx, "root", "root"))
	must(root.RoleAdd(ctx, "emea"))
	must(root.RoleGrantPermission(ctx, "emea", "p/", "p0", clientv3.PermissionType(clientv3.PermReadWrite)))
	must(root.UserAdd(ctx, "control", "secret-of-etcd"))
	must(root.UserGrantRole(ctx, "control", "emea"))
	must(root.AuthEnable(ctx))

	as := func(cfg *Config) {
		cfg.Endpoints, cfg.TLS, cfg.Username, cfg.Password = endpoints, tlsCfg, "control", "secret-of-etcd"
	}
	s, _ := c.node("n1", "p/", as)
	put(t, s, "a", "1")
	leads(t, s)
	wantValue(t, s, "a", "1")
	if err := s.VerifyLeader(short(t)); err != nil {
		t.Errorf("verify leader: got %v", err)
	}
	other, _ := c.node("n1", "q/", as)
	early, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = other.Txn(early, group.Txn{Ops: []group.Op{{Key: "secret-key", Value: []byte("x")}}})
	if fault.ReasonOf(err) != group.ReasonNoLeader || !strings.Contains(err.Error(), "grant the user read and write") || strings.Contains(err.Error(), "secret") {
		t.Errorf("write outside the user's prefix: got %v, want NO_LEADER that says what to grant and tells no secret", err)
	}
}
