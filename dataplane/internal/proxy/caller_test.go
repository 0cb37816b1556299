package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
)

// bind adds a key without a text.
func (w *world) bind(kind, text, subscription, scopes string) string {
	id, d := apikey.NewHasher(pepper).Bound(kind, text)
	o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: subscription, Plan: "callers", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	w.objects = append(w.objects, o)
	return id
}

// tokens takes one token, of one subject.
type tokens struct{}

func (tokens) Verify(api string, auth *table.Auth, raw, from string, unix int64) (issuer, subject, scopes string, until int64, err error) {
	if len(auth.Issuers) != 1 {
		panic("asked where no issuer is trusted")
	}
	subject, scopes, ok := strings.Cut(raw, "~")
	if !ok {
		return "", "", "", 0, errors.New("it was made up")
	}
	return auth.Issuers[0].Issuer, subject, scopes, 0, nil
}

func TestPath_CallersAreKnown(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Gate.Tokens = tokens{} })
	key, o := mint(t, "callers")
	w.objects = append(w.objects, o)
	subject := w.bind(apikey.KindToken, apikey.TokenText("https://id.test", "acme"), "tokens", "")
	w.bind(apikey.KindToken, apikey.TokenText("https://id.test", "narrow"), "tokens", "orders:write")
	w.west.tables.Swap(w.view(w.west, true))
	for _, c := range []struct {
		name   string
		host   string
		path   string
		header []string
		status int
		reason string
		told   string // customer/subscription/plan
	}{
		{"a key, as ever", "callers.test", "/x", []string{"X-Api-Key", key}, 200, "", "acme/main/callers"},
		{"a key in the API's header", "callers.test", "/x", []string{"X-Partner-Key", key}, 200, "", "acme/main/callers"},
		{"a key in the query", "callers.test", "/x?a=1&partner_key=" + key + "&b=2", nil, 200, "", "acme/main/callers"},
		{"a key in the query, its name encoded", "callers.test", "/x?a=1&partner%5fkey=" + key + "&b=2", nil, 200, "", "acme/main/callers"},
		{"the same twice", "callers.test", "/x", []string{"X-Partner-Key", key, "X-Api-Key", key}, 200, "", "acme/main/callers"},
		{"a key in the address of the page before", "callers.test", "/x", []string{"X-Api-Key", key, "Referer", "https://callers.test/y?a=1&partner%5Fkey=" + key}, 200, "", "acme/main/callers"},
		{"two that differ", "callers.test", "/x", []string{"X-Partner-Key", key, "X-Api-Key", w.key}, 401, gate.ReasonKeyConflict, ""},
		{"in the query and otherwise in the header", "callers.test", "/x?partner_key=" + key, []string{"X-Api-Key", w.key}, 401, gate.ReasonKeyConflict, ""},
		{"twice in the query", "callers.test", "/x?partner_key=" + key + "&partner_key=" + key, nil, 401, gate.ReasonKeyConflict, ""},
		{"in another API's header", "orders.test", "/v1/x", []string{"X-Partner-Key", w.key}, 401, gate.ReasonKeyMissing, ""},
		{"in the query where none is looked for", "orders.test", "/v1/x?partner_key=" + w.key, nil, 401, gate.ReasonKeyMissing, ""},
		{"a token", "callers.test", "/x", []string{"Authorization", "Bearer acme~"}, 200, "", "acme/tokens/callers"},
		{"a token of nobody", "callers.test", "/x", []string{"Authorization", "Bearer nobody~"}, 401, gate.ReasonKeyInvalid, ""},
		{"a token made up", "callers.test", "/x", []string{"Authorization", "Bearer acme"}, 401, gate.ReasonTokenInvalid, ""},
		{"a token as a key", "callers.test", "/x", []string{"X-Api-Key", "acme~"}, 401, gate.ReasonKeyInvalid, ""},
		{"the id of a bound key as a key", "callers.test", "/x", []string{"X-Api-Key", subject}, 401, gate.ReasonKeyInvalid, ""},
		{"a token and a key", "callers.test", "/x", []string{"Authorization", "Bearer acme~", "X-Api-Key", key}, 401, gate.ReasonKeyConflict, ""},
		{"a token where none is taken", "orders.test", "/v1/x", []string{"Authorization", "Bearer acme~"}, 401, gate.ReasonKeyInvalid, ""},
		{"a token with the scope", "callers.test", "/scoped", []string{"Authorization", "Bearer acme~orders:read x"}, 200, "", "acme/tokens/callers"},
		{"a token without", "callers.test", "/scoped", []string{"Authorization", "Bearer acme~orders x"}, 403, gate.ReasonScope, ""},
		{"a token with it, of a key that was given others", "callers.test", "/scoped", []string{"Authorization", "Bearer narrow~orders:read"}, 403, gate.ReasonScope, ""},
		{"forged words about who asks", "callers.test", "/x", []string{"X-Api-Key", key, "Bailiwick-Customer", "other", "Bailiwick_customer", "other", "X_partner_key", "other"}, 200, "", "acme/main/callers"},
		{"an upstream that is told nothing", "silent.test", "/x", []string{"X-Api-Key", key, "Bailiwick-Customer", "other"}, 200, "", "//"},
	} {
		a := w.send("GET", c.path, "", append([]string{"Host", c.host, "X-Api-Key", ""}, c.header...)...)
		if a.status != c.status || !strings.Contains(a.body, c.reason) {
			t.Errorf("%s: got %d %s, want %d %s", c.name, a.status, a.body, c.status, c.reason)
			continue
		}
		if c.status != 200 {
			continue
		}
		h, uri := w.west.up.last()
		if told := h.Get("Bailiwick-Customer") + "/" + h.Get("Bailiwick-Subscription") + "/" + h.Get("Bailiwick-Plan"); told != c.told {
			t.Errorf("%s: the upstream was told %s, want %s", c.name, told, c.told)
		}
		for name, values := range h {
			if text := strings.Join(values, " "); strings.Contains(text, key) || strings.Contains(text, "other") || strings.Contains(text, "acme~") {
				t.Errorf("%s: the upstream got %s: %s", c.name, name, text)
			}
		}
		if strings.Contains(uri, "key") || strings.Contains(c.path, "a=1") && uri != "/x?a=1&b=2" {
			t.Errorf("%s: the upstream got %s, want the key cut off", c.name, uri)
		}
	}
	// Upstreams of the own zone's other region are told the same.
	w.west.up.kill()
	a := w.send("GET", "/x", "", "Host", "callers.test", "X-Api-Key", "", "X-Api-Key", key)
	if h, _ := w.central.up.last(); a.served != "eu-central" || h.Get("Bailiwick-Customer") != "acme" || h.Get("Bailiwick-Relay-Grant") != "" {
		t.Errorf("over a relay: got %d by %s, which was told %q", a.status, a.served, h.Get("Bailiwick-Customer"))
	}
}

func TestPath_AClientCertificateIsAKey(t *testing.T) {
	w := newWorld(t, nil)
	client := func(from, to time.Time) (tls.Certificate, [32]byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	}
	now := time.Now()
	known, spki := client(now.Add(-time.Hour), now.Add(time.Hour))
	old, oldSPKI := client(now.Add(-2*time.Hour), now.Add(-time.Hour))
	stranger, _ := client(now.Add(-time.Hour), now.Add(time.Hour))
	w.bind(apikey.KindCertificate, hex.EncodeToString(spki[:]), "machines", "")
	w.bind(apikey.KindCertificate, hex.EncodeToString(oldSPKI[:]), "machines", "")
	w.west.tables.Swap(w.view(w.west, true))
	own := httptest.NewUnstartedServer(nil)
	own.StartTLS()
	t.Cleanup(own.Close)
	policy := &tls.Config{Certificates: own.TLS.Certificates}
	policy.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { // as edgetls has it, for hosts whose API takes certificates
		c := policy.Clone()
		c.GetConfigForClient, c.NextProtos = nil, []string{"h2", "http/1.1"}
		if hello.ServerName == "callers.test" {
			c.ClientAuth = tls.RequestClientCert
		}
		return c, nil
	}
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: policy, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", porttest.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { servers.HTTPS.Serve(l) })
	all.Go(func() { servers.H3.Serve(pc) })
	t.Cleanup(func() { servers.HTTPS.Close(); servers.H3.Close(); pc.Close(); all.Wait() })
	ask := func(over, host string, cert *tls.Certificate, header ...string) (int, string) {
		shows := &tls.Config{InsecureSkipVerify: true, ServerName: host}
		if cert != nil {
			shows.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		var protocols http.Protocols
		protocols.SetHTTP1(over == "HTTP/1.1")
		protocols.SetHTTP2(over == "HTTP/2")
		var rt http.RoundTripper
		if over == "HTTP/3" {
			three := &http3.Transport{TLSClientConfig: shows}
			defer three.Close()
			rt = three
		} else {
			tcp := &http.Transport{Protocols: &protocols, TLSClientConfig: shows}
			defer tcp.CloseIdleConnections()
			rt = tcp
		}
		req, err := http.NewRequestWithContext(context.Background(), "GET", "https://"+l.Addr().String()+"/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s over %s: %v", host, over, err)
		}
		defer resp.Body.Close()
		if spoken := map[string]int{"HTTP/1.1": 1, "HTTP/2": 2, "HTTP/3": 3}[over]; resp.ProtoMajor != spoken {
			t.Fatalf("over %s: %s was spoken", over, resp.Proto)
		}
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, c := range []struct {
		name   string
		host   string
		cert   *tls.Certificate
		header []string
		status int
		reason string
	}{
		{"known", "callers.test", &known, nil, 200, ""},
		{"not known", "callers.test", &stranger, nil, 401, gate.ReasonKeyInvalid},
		{"over", "callers.test", &old, nil, 401, gate.ReasonKeyMissing},
		{"none", "callers.test", nil, nil, 401, gate.ReasonKeyMissing},
		{"known, beside a key that is none", "callers.test", &known, []string{"X-Api-Key", "x"}, 401, gate.ReasonKeyInvalid},
		{"known, where none counts", "orders.test", &known, nil, 401, gate.ReasonKeyMissing},
		{"claimed in a header", "callers.test", nil, []string{"Client-Cert", ":AAAA:", "X-Client-Cert", hex.EncodeToString(spki[:])}, 401, gate.ReasonKeyMissing},
	} {
		for _, over := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
			if status, body := ask(over, c.host, c.cert, c.header...); status != c.status || !strings.Contains(body, c.reason) {
				t.Errorf("%s over %s: got %d %s, want %d %s", c.name, over, status, body, c.status, c.reason)
			}
		}
	}
	rows := w.west.meter.since(0)
	for _, row := range rows {
		if row.Customer != "acme" || row.Subscription != "machines" || row.Requests != 1 {
			t.Errorf("got the row %+v, want one of the subscription that the certificate is bound to", row)
		}
	}
	if len(rows) != 3 {
		t.Errorf("got %d rows, want one for each protocol", len(rows))
	}
}
