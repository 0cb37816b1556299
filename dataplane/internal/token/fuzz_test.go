package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// What an issuer publishes, whatever it is: of it public keys for signatures are taken, and no others, so many at most; and they
// are those that are written there.
func FuzzKeys(f *testing.F) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	add := func(keys ...jose.JSONWebKey) {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(jose.JSONWebKey{Key: &ec.PublicKey, KeyID: "a", Algorithm: "ES256", Use: "sig"}, jose.JSONWebKey{Key: public, KeyID: "b"})
	add(jose.JSONWebKey{Key: private, KeyID: "c"}, jose.JSONWebKey{Key: []byte("a secret of both"), KeyID: "d"}, jose.JSONWebKey{Key: &ec.PublicKey, Use: "enc"})
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},null,1]}`))
	f.Add([]byte(`{"keys":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := read(data)
		if err != nil {
			if set != nil {
				t.Fatalf("%q: keys beside an error", data)
			}
			return
		}
		if len(set.keys) == 0 || len(set.keys) > maxKeys {
			t.Fatalf("%q: %d keys", data, len(set.keys))
		}
		for i := range set.keys {
			k := &set.keys[i]
			switch key := k.Key.(type) {
			case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
				if _, private := key.(crypto.Signer); private {
					t.Fatalf("%q: a private key", data)
				}
			default:
				t.Fatalf("%q: a key of type %T", data, key)
			}
			if k.Use != "" && k.Use != "sig" {
				t.Fatalf("%q: a key for %q", data, k.Use)
			}
		}
		again, err := json.Marshal(map[string]any{"keys": set.keys})
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if other, err := read(again); err != nil || !same(set, other) {
			t.Fatalf("%q is read as %q, which is read otherwise: %v", data, again, err)
		}
	})
}
