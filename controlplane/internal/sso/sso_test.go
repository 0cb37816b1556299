package sso_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/controlplane/internal/sso"
	"bailiwick/shared/fault"
)

// issuer is an OpenID provider over TLS: discovery, keys, and tokens for whoever asks in the test.
type issuer struct {
	t   *testing.T
	srv *httptest.Server
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.srv.URL, "jwks_uri": i.srv.URL + "/keys", "authorization_endpoint": i.srv.URL + "/auth", "token_endpoint": i.srv.URL + "/token"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	i.srv = httptest.NewTLSServer(mux)
	t.Cleanup(i.srv.Close)
	return i
}

func (i *issuer) token(key any, alg jose.SignatureAlgorithm, claims map[string]any) string {
	i.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "1"))
	if err != nil {
		i.t.Fatal(err)
	}
	body, _ := json.Marshal(claims)
	sig, err := s.Sign(body)
	if err != nil {
		i.t.Fatal(err)
	}
	raw, err := sig.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return raw
}

func TestVerifier_TakesOnlyWhatItsIssuerSays(t *testing.T) {
	i := newIssuer(t)
	roles, err := sso.ParseRoles("platform=admin, emea-ops=zone-admin")
	if err != nil {
		t.Fatal(err)
	}
	v, err := sso.New(sso.Config{Issuer: i.srv.URL, Audience: "bailiwick", Roles: roles, HTTP: i.srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Verify(t.Context(), "a.b.c"); fault.ReasonOf(err) != "ISSUER_AWAY" {
		t.Errorf("before the issuer was reached: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, _, err := v.Verify(t.Context(), "a.b.c"); fault.ReasonOf(err) != "ISSUER_AWAY" {
			break
		}
	}
	now := time.Now()
	good := map[string]any{"iss": i.srv.URL, "aud": "bailiwick", "sub": "7", "email": "Bob@example.test", "email_verified": true, "groups": []string{"x", "emea-ops"}, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	with := func(changes ...any) map[string]any {
		c := maps.Clone(good)
		for i := 0; i < len(changes); i += 2 {
			k := changes[i].(string)
			if c[k] = changes[i+1]; c[k] == nil {
				delete(c, k)
			}
		}
		return c
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, raw, who, role, reason string
	}{
		{"a token", i.token(i.key, jose.ES256, good), "bob@example.test", "zone-admin", ""},
		{"the first role that fits", i.token(i.key, jose.ES256, with("groups", []string{"emea-ops", "platform"})), "bob@example.test", "admin", ""},
		{"one group as text", i.token(i.key, jose.ES256, with("groups", "platform")), "bob@example.test", "admin", ""},
		{"another's key", i.token(stranger, jose.ES256, good), "", "", "TOKEN_INVALID"},
		{"a shared secret", i.token([]byte("0123456789abcdef0123456789abcdef"), jose.HS256, good), "", "", "TOKEN_INVALID"},
		{"for another audience", i.token(i.key, jose.ES256, with("aud", "wiki")), "", "", "TOKEN_INVALID"},
		{"of another issuer", i.token(i.key, jose.ES256, with("iss", "https://evil.example.test")), "", "", "TOKEN_INVALID"},
		{"ended", i.token(i.key, jose.ES256, with("exp", now.Add(-time.Second).Unix())), "", "", "TOKEN_EXPIRED"},
		{"for a month", i.token(i.key, jose.ES256, with("exp", now.Add(30*24*time.Hour).Unix())), "", "", "TOKEN_TOO_LONG"},
		{"issued tomorrow", i.token(i.key, jose.ES256, with("iat", now.Add(20*time.Hour).Unix(), "exp", now.Add(40*time.Hour).Unix())), "", "", "TOKEN_TOO_LONG"},
		{"not yet", i.token(i.key, jose.ES256, with("nbf", now.Add(time.Hour).Unix())), "", "", "TOKEN_INVALID"},
		{"a name with letters that look like others", i.token(i.key, jose.ES256, with("email", "b\u043eb@example.test")), "", "", "NAME_UNUSABLE"},
		{"a name with a blank", i.token(i.key, jose.ES256, with("email", "bob@example.test ")), "", "", "NAME_UNUSABLE"},
		{"issued never", i.token(i.key, jose.ES256, with("iat", nil)), "", "", "TOKEN_TOO_LONG"},
		{"of nobody", i.token(i.key, jose.ES256, with("email", nil)), "", "", "NAME_MISSING"},
		{"an address that nobody verified", i.token(i.key, jose.ES256, with("email_verified", false)), "", "", "NAME_MISSING"},
		{"no group", i.token(i.key, jose.ES256, with("groups", nil)), "", "", "ROLE_MISSING"},
		{"groups of another form", i.token(i.key, jose.ES256, with("groups", map[string]any{"platform": true})), "", "", "ROLE_MISSING"},
		{"unsigned", "eyJhbGciOiJub25lIn0.e30.", "", "", "TOKEN_INVALID"},
		{"noise", "a.b.c", "", "", "TOKEN_INVALID"},
	} {
		who, role, err := v.Verify(t.Context(), c.raw)
		if who != c.who || role != c.role || fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: got %q, %q, %v; want %q, %q, %s", c.name, who, role, err, c.who, c.role, c.reason)
		}
	}
}
