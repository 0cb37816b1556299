package sso

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// published answers in the issuer's place.
type published struct {
	mu      sync.Mutex
	keys    map[string]ed25519.PrivateKey
	away    bool
	fetches int
}

func (p *published) RoundTrip(*http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fetches++; p.away {
		return nil, errors.New("away")
	}
	set := jose.JSONWebKeySet{}
	for id, key := range p.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id, Use: "sig"})
	}
	body, _ := json.Marshal(set)
	text := strings.Replace(string(body), "[", `[{"kty":"of another time"},`, 1)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(text))}, nil
}

func (p *published) with(id string, key ed25519.PrivateKey, away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away = away; key != nil {
		p.keys[id] = key
	} else {
		delete(p.keys, id)
	}
}

func (p *published) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

// A new key is good at once and one taken back not for long; strangers do not make this node besiege the issuer.
func TestKeys_FollowTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, first, _ := ed25519.GenerateKey(nil)
		_, second, _ := ed25519.GenerateKey(nil)
		_, strange, _ := ed25519.GenerateKey(nil)
		p := &published{keys: map[string]ed25519.PrivateKey{"1": first}}
		k := newKeys("https://issuer.example.test/keys", &http.Client{Transport: p})
		var running sync.WaitGroup
		running.Go(func() { k.run(ctx) })
		good := func(id string, key ed25519.PrivateKey) bool {
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", id))
			if err != nil {
				t.Fatal(err)
			}
			signed, err := signer.Sign([]byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := signed.CompactSerialize()
			if err != nil {
				t.Fatal(err)
			}
			_, err = k.VerifySignature(ctx, raw)
			return err == nil
		}
		synctest.Wait()
		if !good("1", first) || good("1", strange) {
			t.Error("of a key that is known: one is refused or a stranger's taken")
		}
		time.Sleep(Patience)
		p.with("2", second, false)
		if !good("2", second) {
			t.Error("a new key is refused")
		}
		before := p.count()
		for range 1000 {
			if good("3", strange) {
				t.Fatal("a stranger's key is taken")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := p.count() - before; got > 11 {
			t.Errorf("1000 strangers within 100 s made %d fetches, want one in %v", got, Patience)
		}
		p.with("1", nil, true)
		time.Sleep(2 * Refresh)
		if !good("1", first) {
			t.Error("the issuer is away, and its key forgotten")
		}
		p.with("1", nil, false)
		time.Sleep(Refresh + time.Second)
		if good("1", first) {
			t.Errorf("a key is good %v after its issuer took it back", Refresh)
		}
		cancel()
		running.Wait()
	})
}
