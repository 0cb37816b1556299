package scenario_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

const shownHost = "shown.emea.example.test"

// TestAPIs: what docs/apis.md lets an API say of kept answers, tokens, client certificates and documents, from the manifest to
// the client.
func TestAPIs(t *testing.T) {
	t.Parallel()
	x := newShown(t, harness.Start(t))
	t.Run("cache", x.cache)
	t.Run("tokens", x.tokens)
	t.Run("certificates", x.certificates)
	t.Run("validation", x.validation)
}

// shown is an API that says all of it, its upstream and the issuer that it trusts.
type shown struct {
	s      *harness.Sandbox
	issuer *issuer
	asked  atomic.Int64 // requests that reached the upstream
}

func newShown(t *testing.T, s *harness.Sandbox) *shown {
	x := &shown{s: s, issuer: newIssuer(t)}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
			return
		}
		body, _ := io.ReadAll(r.Body)
		n := x.asked.Add(1)
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Cache-Tag", r.URL.Query().Get("tag"))
		if strings.HasSuffix(r.URL.Path, "/none") {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprintf(w, "%d %s %s %s %s", n, r.Method, r.URL.Path, r.Header.Get("Bailiwick-Customer"), body)
	}))
	t.Cleanup(up.Close)
	var customers strings.Builder
	for _, name := range []string{"first", "keeps", "tokens", "certificates"} {
		fmt.Fprintf(&customers, "---\nkind: Customer\nname: shown-%s\nspec: {zone: emea, subscriptions: [{plan: shown}]}\n", name)
	}
	s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "shown.yaml", `kind: API
name: shown
spec:
  zone: emea
  hosts: [`+shownHost+`]
  policy: gdpr-emea
  auth:
    client_certificates: true
    issuers:
      - issuer: `+x.issuer.URL+`
        audiences: [shown]
        algorithms: [ES256]
        claim: client_id
  openapi: |
    openapi: 3.1.0
    info: {title: shown, version: "1"}
    paths:
      /orders:
        post:
          parameters: [{name: limit, in: query, schema: {type: integer, maximum: 9}}]
          requestBody:
            required: true
            content:
              application/json:
                schema: {type: object, required: [item], properties: {item: {type: string}, n: {type: integer}}}
          responses: {"200": {description: done}}
  routes:
    - {name: all, path_prefix: /}
    - {name: kept, path_prefix: /kept, cache: {}}
    - {name: orders, path_prefix: /orders, methods: [POST], validation: {requests: openapi}}
  upstreams: [{region: eu-west, url: "`+up.URL+`"}]
---
kind: Product
name: shown
spec: {apis: [shown], billable_outcomes: [success, client_error], free_cache_hits: true}
---
kind: Plan
name: shown
spec: {products: [shown]}
`+customers.String()))
	_, first := s.NewKey("emea", "shown-first", "shown")
	s.Eventually(30*time.Second, "the API at its edge", func() error {
		return ok(s.Do("eu-west", http.MethodGet, shownHost, "/", first, nil), "eu-west")
	})
	return x
}

// ask sends a request with headers; what client offers may be its credential.
func (x *shown) ask(t *testing.T, client *http.Client, method, path, body string, header ...string) harness.Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "https://"+shownHost+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		return harness.Answer{Err: err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return harness.Answer{Status: resp.StatusCode, Header: resp.Header, Body: data, Err: err}
}

func (x *shown) client() *http.Client { return x.s.Client(x.s.HTTPS("eu-west")) }

// key makes a customer's key, bound to what flags say, and gives its text if it has one.
func (x *shown) key(t *testing.T, customer string, flags ...string) string {
	t.Helper()
	var made struct{ ID, Key string }
	said := x.s.With(t).MustCLI("emea", append([]string{"key", "create", "--customer", customer, "--plan", "shown", "-o", "json"}, flags...)...)
	if err := json.Unmarshal([]byte(said), &made); err != nil || made.ID == "" || (made.Key == "") != (len(flags) > 0) {
		t.Fatalf("key create %v printed %d bytes, %v: want a text unless it is bound", flags, len(said), err)
	}
	return made.Key
}

// cache: an answer is asked for once and given until its tag is purged; each time it is counted, and hits are not billed.
func (x *shown) cache(t *testing.T) {
	s, key := x.s.With(t), x.key(t, "shown-keeps")
	var requests, hits int64
	get := func(path string) (body string, hit bool) {
		t.Helper()
		before := x.asked.Load()
		a := x.ask(t, x.client(), http.MethodGet, path, "", "X-API-Key", key)
		want := http.StatusOK
		if strings.HasSuffix(path, "/none") {
			want = http.StatusNotFound
		}
		if a.Err != nil || a.Status != want || a.Served() != "eu-west" {
			t.Fatalf("%s: %d by %q, %v: %.200s", path, a.Status, a.Served(), a.Err, a.Body)
		}
		requests++
		if hit = strings.HasPrefix(a.Header.Get("Cache-Status"), "bailiwick; hit"); hit {
			hits++
		}
		if n := x.asked.Load() - before; (n == 0) != hit || a.Header.Get("Cache-Tag") != "" {
			t.Errorf("%s: the upstream was asked %d times, and the answer says %v", path, n, a.Header)
		}
		return string(a.Body), hit
	}
	s.Eventually(10*time.Second, "the key at its edge", func() error {
		a := s.Do("eu-west", http.MethodGet, reportsEMEA, "/", key, nil) // refused for another reason than the key, and in no row
		return refused(a, http.StatusForbidden, "not-entitled")
	})
	tagged, other := "/kept/a?tag=item-7", "/kept/b?tag=item-8"
	bodies := map[string]string{}
	for _, path := range []string{tagged, other, "/kept/none", "/plain"} {
		first, hit := get(path)
		if hit {
			t.Errorf("%s is a hit before anything was kept", path)
		}
		bodies[path] = first
		if second, hit := get(path); hit != strings.HasPrefix(path, "/kept") || hit && second != first {
			t.Errorf("%s: got %q after %q, and a hit: %v", path, second, first, hit)
		}
	}
	s.MustCLI("emea", "cache", "purge", "--api", "shown", "--tag", "item-7")
	s.Eventually(10*time.Second, "the purge at the edge", func() error {
		if body, hit := get(tagged); hit || body == bodies[tagged] {
			return fmt.Errorf("got %q", body)
		}
		return nil
	})
	if body, hit := get(other); !hit || body != bodies[other] {
		t.Errorf("what has another tag: got %q, want it kept", body)
	}
	u := s.UsageThrough("emea", "shown-keeps", time.Now(), 30*time.Second)
	var unasked int64
	for _, r := range u.Rows {
		if r.ServedRegion == "" && r.Outcome != "refused" {
			unasked += r.Requests
		}
	}
	if u.Total.Requests != requests || u.Total.Billable != requests-hits || u.Total.Units != requests-hits || unasked != hits || hits < 4 {
		t.Errorf("usage is %+v, %d without an upstream, of %d requests and %d hits, which the product gives away: %+v", u.Total, unasked, requests, hits, u.Rows)
	}
}

// tokens: an issuer's token is a customer's key while it is for this API and its time is not over.
func (x *shown) tokens(t *testing.T) {
	x.key(t, "shown-tokens", "--token-issuer", x.issuer.URL, "--token-subject", "robot")
	with := func(change map[string]any) harness.Answer {
		return x.ask(t, x.client(), http.MethodGet, "/token", "", "Authorization", "Bearer "+x.issuer.token(t, change))
	}
	x.s.With(t).Eventually(20*time.Second, "a token is known", func() error { return ok(with(nil), "eu-west") })
	if a := with(nil); !strings.Contains(string(a.Body), " shown-tokens ") {
		t.Errorf("the upstream was told %q, want the customer", a.Body)
	}
	for name, c := range map[string]struct {
		claims map[string]any
		reason string
	}{
		"whose time is over":     {map[string]any{"iat": time.Now().Add(-time.Hour).Unix(), "exp": time.Now().Add(-10 * time.Minute).Unix()}, "token-invalid"},
		"for another service":    {map[string]any{"aud": "billing"}, "token-invalid"},
		"of another issuer":      {map[string]any{"iss": "http://127.0.0.1:1"}, "token-invalid"},
		"of somebody not known":  {map[string]any{"client_id": "nobody"}, "key-invalid"},
		"that somebody has made": {map[string]any{"forged": true}, "token-invalid"},
	} {
		before := x.asked.Load()
		if err := refused(with(c.claims), http.StatusUnauthorized, c.reason); err != nil || x.asked.Load() != before {
			t.Errorf("a token %s: %v, %d requests upstream", name, err, x.asked.Load()-before)
		}
	}
}

// certificates: a client is known by the public key of its certificate, whoever signed that, and without one by nothing.
func (x *shown) certificates(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mine := selfSigned(t, private, "robot")
	x.key(t, "shown-certificates", "--certificate", writeFile(t, "client.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mine.Certificate[0]}))))
	as := func(certificates ...tls.Certificate) *http.Client {
		c := x.s.NewClient(x.s.HTTPS("eu-west"))
		c.Transport.(*http.Transport).TLSClientConfig.Certificates = certificates
		t.Cleanup(c.CloseIdleConnections)
		return c
	}
	known := as(mine)
	x.s.With(t).Eventually(10*time.Second, "the certificate is known", func() error { return ok(x.ask(t, known, http.MethodGet, "/certificate", ""), "eu-west") })
	if a := x.ask(t, as(selfSigned(t, private, "renewed")), http.MethodGet, "/certificate", ""); ok(a, "eu-west") != nil || !strings.Contains(string(a.Body), " shown-certificates ") {
		t.Errorf("another certificate of the same key: %d %s", a.Status, a.Body)
	}
	before := x.asked.Load()
	if err := refused(x.ask(t, as(), http.MethodGet, "/certificate", ""), http.StatusUnauthorized, "key-missing"); err != nil {
		t.Errorf("without a certificate: %v", err)
	}
	if err := refused(x.ask(t, as(selfSigned(t, stranger, "robot")), http.MethodGet, "/certificate", ""), http.StatusUnauthorized, "key-invalid"); err != nil {
		t.Errorf("a stranger of the same name: %v", err)
	}
	if n := x.asked.Load() - before; n != 0 {
		t.Errorf("%d of those reached the upstream", n)
	}
}

// validation: what the document does not allow reaches no upstream, and the answer names the fields.
func (x *shown) validation(t *testing.T) {
	key := x.key(t, "shown-first")
	post := func(path, body string) harness.Answer {
		return x.ask(t, x.client(), http.MethodPost, path, body, "X-API-Key", key, "Content-Type", "application/json")
	}
	x.s.With(t).Eventually(10*time.Second, "an order is taken", func() error { return ok(post("/orders?limit=3", `{"item":"a","n":1}`), "eu-west") })
	for _, c := range []struct {
		path, body string
		want       []string
	}{
		{"/orders", `{"n":"one"}`, []string{"#", "#/n"}},
		{"/orders?limit=10", `{"item":"a"}`, []string{"query limit"}},
	} {
		before := x.asked.Load()
		a := post(c.path, c.body)
		var p struct {
			Errors []struct{ Pointer, Parameter, Detail string }
		}
		if err := refused(a, http.StatusBadRequest, "request-invalid"); err != nil {
			t.Errorf("%s %s: %v", c.path, c.body, err)
		} else if err := json.Unmarshal(a.Body, &p); err != nil {
			t.Error(err)
		}
		var at []string
		for _, e := range p.Errors {
			if at = append(at, e.Pointer+e.Parameter); e.Detail == "" {
				t.Errorf("%s %s: nothing is said of %s", c.path, c.body, at[len(at)-1])
			}
		}
		slices.Sort(at)
		if !slices.Equal(at, c.want) || x.asked.Load() != before {
			t.Errorf("%s %s: errors at %q, want %q; %d requests upstream", c.path, c.body, at, c.want, x.asked.Load()-before)
		}
	}
}

// selfSigned is a client's certificate that nobody vouches for.
func selfSigned(t *testing.T, key *ecdsa.PrivateKey, name string) tls.Certificate {
	t.Helper()
	made := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, made, made, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// issuer makes tokens, and publishes its key as OpenID Connect has it.
type issuer struct {
	URL string
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{URL: "http://" + l.Addr().String(), key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one",
			"x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:])}}})
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return i
}

// token is one for the API that is good for a while, but for what change says; "forged": with another signature.
func (i *issuer) token(t *testing.T, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": i.URL, "aud": "shown", "client_id": "robot", "iat": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix()}
	for name, v := range change {
		claims[name] = v
	}
	key := i.key
	if change["forged"] != nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"JWT","kid":"one"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}
