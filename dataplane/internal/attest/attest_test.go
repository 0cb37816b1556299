package attest_test

import (
	"encoding/json"
	"runtime"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/dataplane/internal/attest"
)

var (
	pepper = []byte("0123456789abcdef0123456789abcdef")
	acme   = attest.Caller{Customer: "acme", Subscription: "main", Plan: "gold", Key: "k1", API: "orders"}
)

func signer(t testing.TB, zone, region string, pepper []byte) *attest.Signer {
	t.Helper()
	s, err := attest.New(zone, region, pepper)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func token(t testing.TB, s *attest.Signer, c attest.Caller, now time.Time) string {
	t.Helper()
	text, err := s.Token(c, now)
	if err != nil || len(text) != 1 {
		t.Fatal(text, err)
	}
	return text[0]
}

func keys(t testing.TB, s *attest.Signer, now time.Time) (set jose.JSONWebKeySet) {
	t.Helper()
	data, err := s.Keys(now)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &set); err != nil {
		t.Fatal(err)
	}
	return set
}

// verify is what an upstream does, with a library of its own choice.
func verify(text string, set jose.JSONWebKeySet) (map[string]any, bool) {
	signed, err := jose.ParseSigned(text, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, false
	}
	for _, k := range set.Key(signed.Signatures[0].Header.KeyID) {
		if data, err := signed.Verify(k); err == nil {
			var says map[string]any
			return says, json.Unmarshal(data, &says) == nil
		}
	}
	return nil, false
}

func TestSigner_AnUpstreamBelievesItsZoneAlone(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := signer(t, "emea", "eu-west", pepper)
	says, ok := verify(token(t, s, acme, now), keys(t, signer(t, "emea", "eu-central", pepper), now)) // another edge of the zone publishes the same keys
	if !ok {
		t.Fatal("a token does not verify by the zone's keys")
	}
	want := map[string]any{"iss": "urn:bailiwick:zone:emea", "aud": "orders", "sub": "acme", "subscription": "main", "plan": "gold", "key": "k1", "region": "eu-west", "iat": 1.8e9, "nbf": 1.8e9 - 5, "exp": 1.8e9 + 90}
	for name, v := range want {
		if says[name] != v {
			t.Errorf("%s: got %v, want %v", name, says[name], v)
		}
	}
	if len(says) != len(want) {
		t.Errorf("it says %v", says)
	}
	for name, other := range map[string]*attest.Signer{"another zone": signer(t, "us", "us-east", pepper), "another pepper": signer(t, "emea", "eu-west", []byte("fedcba9876543210"))} {
		if _, ok := verify(token(t, other, acme, now), keys(t, s, now)); ok {
			t.Errorf("%s: its token verifies by this zone's keys", name)
		}
	}
}

// A key is published a period before it signs, and for one after.
func TestSigner_KeysRotate(t *testing.T) {
	s := signer(t, "emea", "eu-west", pepper)
	start := time.Unix(0, 0).Add(700 * attest.Period)
	first := token(t, s, acme, start)
	next := token(t, s, acme, start.Add(attest.Period))
	if first == next {
		t.Fatal("one token in two periods")
	}
	for _, c := range []struct {
		name, token string
		at          time.Duration
		ok          bool
	}{
		{"of now", first, 0, true}, {"of the last period", first, attest.Period, true}, {"of the period before that", first, 2 * attest.Period, false},
		{"of the next period", next, 0, true}, {"of the period after that", next, -attest.Period, false},
	} {
		if _, ok := verify(c.token, keys(t, s, start.Add(c.at))); ok != c.ok {
			t.Errorf("%s: verifies %v, want %v", c.name, ok, c.ok)
		}
	}
}

func TestSigner_SignsOnceForAWhile(t *testing.T) {
	s := signer(t, "emea", "eu-west", pepper)
	now := time.Unix(1_800_000_000, 0)
	a := token(t, s, acme, now)
	if b := token(t, s, acme, now.Add(attest.Renew-time.Second)); a != b {
		t.Error("a second token within 30 s")
	}
	if b := token(t, s, acme, now.Add(attest.Renew)); a == b {
		t.Error("one token for longer than 30 s")
	}
	other := acme
	other.Key = "k2"
	if b := token(t, s, other, now); a == b {
		t.Error("one token for two keys")
	}
	token(t, s, acme, now)
	if n := testing.AllocsPerRun(100, func() { s.Token(acme, now) }); n != 0 {
		t.Errorf("%v allocations for a token that was made, want 0", n)
	}
}

// A key's id lies in the memory of the table that it was found in. Tokens are kept for longer than tables.
func TestSigner_KeepsNoPieceOfATable(t *testing.T) {
	s := signer(t, "emea", "eu-west", pepper)
	of := func() weak.Pointer[[32 << 10]byte] {
		piece := new([32 << 10]byte)
		c := acme
		copy(piece[64:], "k1")
		c.Key = unsafe.String(&piece[64], 2)
		token(t, s, c, time.Unix(1_800_000_000, 0))
		return weak.Make(piece)
	}()
	runtime.GC()
	if of.Value() != nil {
		t.Error("a token that was made keeps the table in which its key was found")
	}
	runtime.KeepAlive(s)
}
