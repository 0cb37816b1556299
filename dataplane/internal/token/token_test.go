package token_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/token"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// issuer publishes keys and signs tokens. It is an http.RoundTripper, so that it works in virtual time.
type issuer struct {
	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetches int
	down    bool
	answer  string // in place of the keys
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fetches++
	if i.down {
		return nil, errors.New("away")
	}
	body := i.answer
	switch {
	case strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration"):
		body = fmt.Sprintf(`{"issuer":%q,"jwks_uri":"https://keys.test/jwks"}`, strings.TrimSuffix(r.URL.String(), "/.well-known/openid-configuration"))
	case body == "":
		data, err := json.Marshal(jose.JSONWebKeySet{Keys: i.keys})
		if err != nil {
			return nil, err
		}
		body = string(data)
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}}, nil
}

func (i *issuer) set(f func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

var (
	rsaKey, _    = rsa.GenerateKey(rand.Reader, 2048)
	ecKey, _     = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	strangers, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, edKey, _  = ed25519.GenerateKey(rand.Reader)
	public       = func(k crypto.Signer, id, alg string) jose.JSONWebKey {
		return jose.JSONWebKey{Key: k.Public(), KeyID: id, Algorithm: alg, Use: "sig"}
	}
	now int64 = 1_800_000_000
)

// sign makes a token; nil values of says are left out.
func sign(t testing.TB, key any, alg jose.SignatureAlgorithm, id string, header, says map[string]any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	for k, v := range header {
		opts = opts.WithHeader(jose.HeaderKey(k), v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: id}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"iss": "https://id.test", "aud": "orders", "exp": now + 300, "iat": now, "sub": "acme", "scope": "orders:read orders:write"}
	for k, v := range says {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	data, _ := json.Marshal(all)
	signed, err := s.Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func holder(t testing.TB, issuers ...table.Issuer) (*policy.Holder, *table.Auth) {
	t.Helper()
	var h policy.Holder
	var objects []table.Object
	at := revision.Revision{Epoch: 1, Index: 1}
	for _, v := range []struct {
		kind table.Kind
		id   string
		v    any
	}{{table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"}},
		{table.KindAPI, "orders", table.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Auth: &table.Auth{Issuers: issuers}}}} {
		o, err := table.Encode(v.kind, v.id, v.v)
		if err != nil {
			t.Fatal(err)
		}
		objects, at.Sum = append(objects, o), at.Sum.Add(o.Sum())
	}
	tab, err := policy.NewTable(objects, at, revision.Revision{Epoch: 1, Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	h.Swap(tab)
	return &h, tab.API("orders.test").Auth
}

func trusted() table.Issuer {
	return table.Issuer{Issuer: "https://id.test", Audiences: []string{"orders", "all"}, Algorithms: []string{"RS256", "ES256"}, JWKSURL: "https://id.test/jwks", Claim: "sub", Leeway: time.Minute}
}

func run(t testing.TB, i *issuer, h *policy.Holder) (*token.Verifier, func()) {
	v, err := token.New(token.Config{Tables: h, Client: &http.Client{Transport: i}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); v.Run(ctx) }()
	return v, func() { cancel(); <-done }
}

func TestVerify_TakesWhatAnIssuerSignedForThisAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{keys: []jose.JSONWebKey{public(rsaKey, "r", "RS256"), public(ecKey, "e", "ES256"), public(edKey, "d", "EdDSA"), {Key: []byte("a shared secret of some length...."), KeyID: "h", Algorithm: "HS256"}}}
		other := trusted() // takes what the first does not
		other.Issuer, other.Algorithms = "https://other.test", []string{"EdDSA"}
		h, auth := holder(t, trusted(), other)
		v, end := run(t, i, h)
		defer end()
		synctest.Wait()
		der := rsaKey.PublicKey.N.Bytes()
		none := func(says string) string {
			e := base64.RawURLEncoding.EncodeToString
			return e([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + e([]byte(says)) + "."
		}
		good := sign(t, ecKey, jose.ES256, "e", nil, nil)
		for _, c := range []struct {
			name, raw string
			err       error
		}{
			{"ES256", good, nil},
			{"RS256", sign(t, rsaKey, jose.RS256, "r", nil, nil), nil},
			{"without a key id", sign(t, ecKey, jose.ES256, "", nil, nil), nil},
			{"one of several audiences", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"aud": []string{"x", "all"}}), nil},
			{"access token by its type", sign(t, ecKey, jose.ES256, "e", map[string]any{"typ": "at+jwt"}, nil), nil},
			{"just over, within the leeway", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": now - 59}), nil},
			{"just early, within the leeway", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"nbf": now + 60}), nil},
			{"none", none(`{"iss":"https://id.test","aud":"orders","exp":1900000000,"sub":"acme"}`), token.ErrMalformed},
			{"HS256 with the public key as its secret", sign(t, der, jose.HS256, "r", nil, nil), token.ErrMalformed},
			{"HS256 with a secret that the issuer publishes", sign(t, []byte("a shared secret of some length...."), jose.HS256, "h", nil, nil), token.ErrMalformed},
			{"an algorithm that is not pinned", sign(t, edKey, jose.EdDSA, "d", nil, nil), token.ErrMalformed},
			{"RS512 by a key for RS256", sign(t, rsaKey, jose.RS512, "r", nil, nil), token.ErrMalformed},
			{"a stranger's key under a known id", sign(t, strangers, jose.ES256, "e", nil, nil), token.ErrSignature},
			{"a stranger's key under its own", sign(t, strangers, jose.ES256, "s", nil, nil), token.ErrSignature},
			{"another issuer", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"iss": "https://id.test/"}), token.ErrIssuer},
			{"no issuer", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"iss": nil}), token.ErrIssuer},
			{"an issuer by another spelling", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"iss": nil, "ISS": "https://id.test"}), token.ErrIssuer},
			{"another audience", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"aud": "billing"}), token.ErrAudience},
			{"no audience", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"aud": nil}), token.ErrAudience},
			{"over", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": now - 60}), token.ErrExpired},
			{"for ever", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": nil}), token.ErrEndless},
			{"early", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"nbf": now + 61}), token.ErrEarly},
			{"issued in time to come", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"iat": now + 61}), token.ErrEarly},
			{"no subject", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"sub": nil}), token.ErrSubject},
			{"a subject that is no text", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"sub": 7}), token.ErrSubject},
			{"a subject of two lines", sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"sub": "acme\nother"}), token.ErrSubject},
			{"for a logout", sign(t, ecKey, jose.ES256, "e", map[string]any{"typ": "logout+jwt"}, nil), token.ErrMalformed},
			{"with a critical header nobody knows", sign(t, ecKey, jose.ES256, "e", map[string]any{"crit": []string{"x"}, "x": 1}, nil), token.ErrSignature},
			{"changed", good[:len(good)-90] + "A" + good[len(good)-89:], nil}, // see below
			{"cut", good[:strings.LastIndexByte(good, '.')], token.ErrMalformed},
			{"a key", "bw_emea_abc", token.ErrMalformed},
			{"endless", good + strings.Repeat("A", 9000), token.ErrMalformed},
		} {
			for range 2 { // the second time from memory, if at all
				issuer, subject, scopes, _, err := v.Verify("orders", auth, c.raw, "", now)
				if c.name == "changed" {
					if err == nil && c.raw != good {
						t.Errorf("%s: taken", c.name)
					}
					continue
				}
				if !errors.Is(err, c.err) || c.err != nil && err == nil {
					t.Errorf("%s: got %v, want %v", c.name, err, c.err)
				}
				if c.err == nil && (issuer != "https://id.test" || subject != "acme" || scopes != "orders:read orders:write") {
					t.Errorf("%s: got %s %s %s", c.name, issuer, subject, scopes)
				}
			}
		}
		if _, _, _, _, err := v.Verify("orders", auth, good, "", now+360); !errors.Is(err, token.ErrExpired) {
			t.Errorf("a token in memory, when its time is over: got %v, want it refused", err)
		}
		if _, _, _, _, err := v.Verify("orders", auth, good, "", now+359); err != nil {
			t.Errorf("a second before: got %v", err)
		}
		elsewhere := *auth
		elsewhere.Issuers = []table.Issuer{trusted()}
		elsewhere.Issuers[0].Audiences = []string{"billing"}
		if _, _, _, _, err := v.Verify("elsewhere", &elsewhere, good, "", now); !errors.Is(err, token.ErrAudience) {
			t.Errorf("a token in memory, at another API: got %v, want it judged anew", err)
		}
	})
}

// Keys are fetched in the background, again when they change, at most once for all tokens that name unknown ones, and serve on
// while their issuer is away, not for ever.
func TestVerifier_FollowsIssuers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}, down: true}
		is := trusted()
		is.JWKSURL = "" // by discovery
		h, auth := holder(t, is)
		v, end := run(t, i, h)
		defer end()
		good, next := sign(t, ecKey, jose.ES256, "e", nil, nil), sign(t, rsaKey, jose.RS256, "r", nil, nil)
		verify := func(raw string, want error) {
			t.Helper()
			synctest.Wait()
			if _, _, _, _, err := v.Verify("orders", auth, raw, "", now); !errors.Is(err, want) || want != nil && err == nil {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		verify(good, token.ErrKeys)
		i.set(func(i *issuer) { i.down = false })
		time.Sleep(15 * time.Second)
		verify(good, nil)
		i.set(func(i *issuer) { i.fetches = 0; i.keys = []jose.JSONWebKey{public(rsaKey, "r", "RS256")} })
		began := i.count()
		for i := range 200 {
			v.Verify("orders", auth, sign(t, strangers, jose.ES256, "unknown", nil, nil), fmt.Sprint("192.0.2.", i), now)
		}
		synctest.Wait()
		for i := range 200 {
			v.Verify("orders", auth, sign(t, strangers, jose.ES256, "unknown", nil, nil), fmt.Sprint("192.0.2.", i), now)
		}
		time.Sleep(9 * time.Second)
		verify(next, nil)
		if n := i.count() - began; n > 2 {
			t.Errorf("%d fetches for four hundred tokens of unknown keys within ten seconds, want one of two documents", n)
		}
		time.Sleep(2 * time.Second)
		if n := i.count() - began; n > 4 { // two fetches of two documents
			t.Errorf("%d fetches for two hundred tokens of unknown keys, want two of two documents at most", n) // the second for those that came during the first's ten seconds
		}
		verify(good, token.ErrSignature) // its key was taken back, and it is not in memory any more
		i.set(func(i *issuer) { i.answer = `{"keys":[]}` })
		time.Sleep(time.Hour)
		verify(next, nil) // an issuer's mishap refuses nobody
		i.set(func(i *issuer) { i.down, i.fetches = true, 0 })
		time.Sleep(22 * time.Hour)
		verify(next, nil)
		if n := i.count(); n > 22*60*3 {
			t.Errorf("%d fetches in 22 hours of an issuer that is away, want one in half a minute at most", n)
		}
		time.Sleep(2 * time.Hour)
		verify(next, token.ErrKeys)
		i.set(func(i *issuer) { i.down, i.answer = false, "" })
		time.Sleep(2 * time.Minute)
		verify(next, nil)
		// An issuer that the API does not trust any more: what it signed counts no more, in memory or not.
		h2, _ := holder(t)
		h.Swap(h2.Load())
		verify(next, token.ErrKeys)
	})
}

func TestVerifier_KeysInTheAPINeedNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{down: true}
		is := trusted()
		data, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}})
		is.JWKSURL, is.JWKS = "", string(data)
		h, auth := holder(t, is)
		v, end := run(t, i, h)
		defer end()
		synctest.Wait()
		time.Sleep(100 * time.Hour)
		if _, _, _, _, err := v.Verify("orders", auth, sign(t, ecKey, jose.ES256, "e", nil, nil), "", now); err != nil || i.count() != 0 {
			t.Errorf("got %v after %d fetches, want it verified and nothing fetched", err, i.count())
		}
	})
}

func TestVerify_KnownTokensCostNoAllocation(t *testing.T) {
	is := trusted()
	data, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}})
	is.JWKSURL, is.JWKS = "", string(data)
	h, auth := holder(t, is)
	v, end := run(t, &issuer{}, h)
	defer end()
	raw := sign(t, ecKey, jose.ES256, "e", nil, nil)
	for range 1000 {
		if _, _, _, _, err := v.Verify("orders", auth, raw, "", now); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, _, _, _, err := v.Verify("orders", auth, raw, "", now); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkVerify(b *testing.B) {
	is := trusted()
	data, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}})
	is.JWKSURL, is.JWKS = "", string(data)
	h, auth := holder(b, is)
	v, end := run(b, &issuer{}, h)
	defer end()
	time.Sleep(10 * time.Millisecond)
	raw, forged := sign(b, ecKey, jose.ES256, "e", nil, nil), sign(b, strangers, jose.ES256, "e", nil, nil)
	for name, text := range map[string]string{"known": raw, "forged": forged} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.Verify("orders", auth, text, "", now)
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	is := trusted()
	data, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}})
	is.JWKSURL, is.JWKS = "", string(data)
	h, auth := holder(f, is)
	v, end := run(f, &issuer{}, h)
	f.Cleanup(end)
	good := sign(f, ecKey, jose.ES256, "e", nil, nil)
	f.Add(good)
	f.Add("e30.e30.")
	f.Add(`{"payload":"e30","signatures":[]}`)
	parts := strings.Split(good, ".")
	f.Fuzz(func(t *testing.T, raw string) {
		if _, _, _, _, err := v.Verify("orders", auth, raw, "", now); err == nil && !strings.HasPrefix(raw, parts[0]+"."+parts[1]+".") {
			t.Fatalf("taken: %q", raw)
		}
	})
}

// Forged tokens cost signature checks up to a bound, for an address and for an API; who has verified is served all the while, and
// so is a new one from elsewhere.
func TestVerify_ForgedTokensCostLittle(t *testing.T) {
	is := trusted()
	data, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}})
	is.JWKSURL, is.JWKS = "", string(data)
	h, auth := holder(t, is)
	synctest.Test(t, func(t *testing.T) {
		v, end := run(t, &issuer{}, h)
		defer end()
		synctest.Wait()
		known := sign(t, ecKey, jose.ES256, "e", nil, nil)
		verify := func(raw, from string, at int64) error {
			_, _, _, _, err := v.Verify("orders", auth, raw, from, at)
			return err
		}
		if err := verify(known, "192.0.2.1", now); err != nil {
			t.Fatal(err)
		}
		forged := sign(t, strangers, jose.ES256, "e", nil, nil)
		flood := func(n int, from func(int) string, at int64) (looked int) {
			for i := range n {
				switch err := verify(forged, from(i), at); {
				case errors.Is(err, token.ErrSignature):
					looked++
				case !errors.Is(err, token.ErrTooMany):
					t.Fatal(err)
				}
			}
			return looked
		}
		one := func(int) string { return "192.0.2.1" }
		if n := flood(1000, one, now); n != 50 {
			t.Errorf("%d of 1000 forged tokens of one address were looked at, want 50", n)
		}
		if n := flood(1000, one, now+2); n != 10 {
			t.Errorf("%d two seconds later, want 10", n)
		}
		fresh := sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"jti": "2"})
		if err := verify(known, "192.0.2.1", now+2); err != nil {
			t.Errorf("a token that has verified, from there: %v", err)
		}
		if err := verify(fresh, "192.0.2.1", now+2); !errors.Is(err, token.ErrTooMany) {
			t.Errorf("a new token from there: %v, want it put off", err)
		}
		if err := verify(fresh, "198.51.100.7", now+2); err != nil {
			t.Errorf("a new token from elsewhere: %v", err)
		}
		if err := verify(sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"jti": "3"}), "192.0.2.1", now+13); err != nil {
			t.Errorf("a new token from there, ten seconds later: %v", err)
		}
		if n := flood(3000, func(i int) string { return fmt.Sprint("203.0.113.", i) }, now+60); n > 1000 || n < 900 {
			t.Errorf("%d of 3000 forged tokens of as many addresses were looked at, want 1000, or a few less where addresses share a place", n)
		}
		next := sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"jti": "4"})
		if err := verify(next, "198.51.100.8", now+60); !errors.Is(err, token.ErrTooMany) {
			t.Errorf("a new token in a flood, from where none has verified: %v, want it put off", err)
		}
		if err := verify(next, "198.51.100.7", now+60); err != nil {
			t.Errorf("a new token in a flood, from where one has verified: %v", err)
		}
		if n := flood(1000, func(int) string { return "198.51.100.7" }, now+60); n > 50 || n < 40 {
			t.Errorf("%d forged tokens from there were looked at, want 50 as from anywhere, or a few less where it shares a place", n)
		}
		if err := verify(known, "192.0.2.1", now+60); err != nil {
			t.Errorf("a token that has verified, in a flood: %v", err)
		}
		again := *auth // another table's
		again.Issuers = slices.Clone(auth.Issuers)
		auth = &again
		if err := verify(sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"jti": "5"}), "198.51.100.9", now+60); !errors.Is(err, token.ErrTooMany) {
			t.Errorf("a new token in a flood that is older than the table: %v, want it put off", err)
		}
		flood(1000, one, now+60)
		if err := verify(known, "192.0.2.1", now+60); err != nil {
			t.Errorf("a token that has verified, in a flood and under a new table: %v", err)
		}
		flood(3000, func(i int) string { return fmt.Sprint("203.0.113.", i) }, now+80)
		if err := verify(sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"jti": "6"}), "198.51.100.7", now+80); err != nil {
			t.Errorf("a new token in a flood, from where one has verified under the table before: %v", err)
		}
		flood(1000, one, now+7200)
		if n := flood(1000, one, now+3600); n != 50 {
			t.Errorf("%d were looked at once the clock was put back by an hour, want 50: nobody waits an hour for it", n)
		}
	})
}

// A token that its issuer signed and whose time is over, or has not come, costs one look: it is remembered as others are, and asked
// for its time again. So many of them as come from one address are paid for as forged ones, and none takes a place of one that holds.
func TestVerify_TokensOutOfTimeCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{keys: []jose.JSONWebKey{public(ecKey, "e", "ES256")}}
		h, auth := holder(t, trusted())
		v, end := run(t, i, h)
		defer end()
		synctest.Wait()
		verify := func(raw, from string, at int64) error {
			_, _, _, _, err := v.Verify("orders", auth, raw, from, at)
			return err
		}
		over := sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": now - 3600})
		early := sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"nbf": now + 3600, "exp": now + 7200})
		for name, c := range map[string]struct {
			raw string
			err error
		}{"over": {over, token.ErrExpired}, "early": {early, token.ErrEarly}} {
			if err := verify(c.raw, "192.0.2.1", now); !errors.Is(err, c.err) {
				t.Fatalf("%s: got %v, want %v", name, err, c.err)
			}
			if n := testing.AllocsPerRun(1000, func() {
				if err := verify(c.raw, "192.0.2.1", now); !errors.Is(err, c.err) {
					t.Fatalf("%s, again: got %v, want %v", name, err, c.err)
				}
			}); n != 0 {
				t.Errorf("%s: %v allocations each time that it is shown again, want 0: it is not verified anew", name, n)
			}
		}
		if err := verify(early, "192.0.2.1", now+3600); err != nil {
			t.Errorf("when its time has come: got %v", err)
		}
		looked := 0
		for n := range 200 {
			err := verify(sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": now - 3600, "jti": fmt.Sprint(n)}), "192.0.2.2", now)
			if errors.Is(err, token.ErrExpired) {
				looked++
			} else if !errors.Is(err, token.ErrTooMany) {
				t.Fatal(err)
			}
		}
		if looked != 50 {
			t.Errorf("%d of 200 old tokens of one address were looked at, want 50", looked)
		}
		good := sign(t, ecKey, jose.ES256, "e", nil, nil)
		if err := verify(good, "192.0.2.3", now); err != nil {
			t.Fatal(err)
		}
		slot := func(raw string) int { s := sha256.Sum256([]byte(raw)); return (int(s[0])<<8 | int(s[1])) % 4096 }
		beside := over
		for n := 0; slot(beside) != slot(good); n++ {
			beside = sign(t, ecKey, jose.ES256, "e", nil, map[string]any{"exp": now - 3600, "jti": fmt.Sprint("beside ", n)})
		}
		if err := verify(beside, "192.0.2.1", now); !errors.Is(err, token.ErrExpired) {
			t.Fatal(err)
		}
		known := v.Count(0)
		if err := verify(good, "192.0.2.3", now); err != nil || v.Count(0) != known+1 {
			t.Errorf("a good token whose place an old one would like: got %v, want it known still", err)
		}
		if err := verify(beside, "192.0.2.1", now+400); !errors.Is(err, token.ErrExpired) {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(10, func() { verify(beside, "192.0.2.1", now+400) }); n != 0 {
			t.Errorf("%v allocations for an old token in the place of one whose time is over as well, want 0", n)
		}
		i.set(func(i *issuer) { i.keys = []jose.JSONWebKey{public(rsaKey, "r", "RS256")} })
		time.Sleep(15 * time.Minute)
		if err := verify(over, "192.0.2.1", now); !errors.Is(err, token.ErrSignature) {
			t.Errorf("once its key is taken back: got %v, want %v", err, token.ErrSignature)
		}
		if err := verify(early, "192.0.2.1", now+3600); !errors.Is(err, token.ErrSignature) {
			t.Errorf("one whose time came, once its key is taken back: got %v, want %v", err, token.ErrSignature)
		}
	})
}

// An issuer that names its keys nowhere, or not in its tokens, changes them as others do: a token that none of those signed which
// it may mean has them fetched, at most once in ten seconds.
func TestVerifier_FollowsKeysWithoutNames(t *testing.T) {
	for name, c := range map[string]struct{ before, after []jose.JSONWebKey }{
		"nowhere":        {[]jose.JSONWebKey{public(strangers, "", "")}, []jose.JSONWebKey{public(ecKey, "", "")}},
		"not in tokens":  {[]jose.JSONWebKey{public(strangers, "a", "ES256")}, []jose.JSONWebKey{public(ecKey, "b", "ES256")}},
		"of other types": {[]jose.JSONWebKey{public(rsaKey, "", "")}, []jose.JSONWebKey{public(rsaKey, "", ""), public(ecKey, "", "")}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{keys: c.before}
				h, auth := holder(t, trusted())
				v, end := run(t, i, h)
				defer end()
				time.Sleep(15 * time.Second)
				raw := sign(t, ecKey, jose.ES256, "", nil, nil)
				verify := func() error {
					synctest.Wait()
					_, _, _, _, err := v.Verify("orders", auth, raw, "192.0.2.1", now)
					return err
				}
				i.set(func(i *issuer) { i.keys, i.fetches = c.after, 0 })
				if err := verify(); !errors.Is(err, token.ErrSignature) {
					t.Fatalf("before its key is fetched: got %v, want %v", err, token.ErrSignature)
				}
				if err := verify(); err != nil {
					t.Errorf("once it could be: got %v", err)
				}
				for n := range 200 {
					v.Verify("orders", auth, sign(t, strangers, jose.ES256, "", nil, nil), fmt.Sprint("192.0.2.", n), now)
					time.Sleep(100 * time.Millisecond)
				}
				if n := i.count(); n > 3 {
					t.Errorf("%d fetches in twenty seconds of forged tokens, want 3 at most", n)
				}
			})
		})
	}
}

// Keys that do not say what they are for are no keys for tokens that they cannot have signed: those are held against four.
func TestVerify_KeysOfAnotherTypeAreNotTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		var keys []jose.JSONWebKey
		for range 3 {
			keys = append(keys, public(rsaKey, "", ""), public(curve, "", ""), public(edKey, "", ""))
		}
		is := trusted()
		is.Algorithms = []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"}
		h, auth := holder(t, is)
		v, end := run(t, &issuer{keys: append(keys, public(ecKey, "", ""))}, h)
		defer end()
		synctest.Wait()
		for alg, key := range map[jose.SignatureAlgorithm]crypto.Signer{jose.RS256: rsaKey, jose.PS256: rsaKey, jose.ES256: ecKey, jose.ES384: curve, jose.EdDSA: edKey} {
			if _, _, _, _, err := v.Verify("orders", auth, sign(t, key, alg, "", nil, nil), "", now); err != nil {
				t.Errorf("%s: got %v", alg, err)
			}
		}
	})
}
