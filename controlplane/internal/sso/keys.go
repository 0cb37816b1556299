package sso

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Limits of an issuer's keys.
const (
	Refresh  = 10 * time.Minute // so long is a key good that its issuer has taken back, while the issuer answers
	Patience = 10 * time.Second // between fetches because of tokens that fit no key: anybody can show such
	maxKeys  = 1 << 20          // bytes of what an issuer publishes
)

var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.EdDSA}

// keys are those that an issuer published last. They are an oidc.KeySet.
type keys struct {
	url     string
	http    *http.Client
	refresh time.Duration
	wake    chan struct{} // of one place: a token fits none

	// mu covers all below.
	mu    sync.Mutex
	known []jose.JSONWebKey
	at    time.Time     // of the last fetch's end
	over  chan struct{} // closes at the end of the next fetch
}

func newKeys(url string, client *http.Client) *keys {
	return &keys{url: url, http: client, refresh: Refresh, wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// run fetches them now and again, and sooner if a token fits none.
func (k *keys) run(ctx context.Context) {
	for ctx.Err() == nil {
		k.update(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(k.refresh):
		case <-k.wake:
		}
	}
}

// update keeps what is known if the issuer does not answer.
func (k *keys) update(ctx context.Context) {
	known, err := k.fetch(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.known = known
	}
	k.at = time.Now()
	close(k.over)
	k.over = make(chan struct{})
}

func (k *keys) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, fetch)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeys))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the issuer answers %s", resp.Status)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, err
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys { // a kind of key that is not known here is no reason to lose the others
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) == nil && key.IsPublic() && (key.Use == "" || key.Use == "sig") {
			out = append(out, key)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the issuer publishes no key")
	}
	return out, nil
}

// VerifySignature gives what a token says, if one of the keys signed it.
func (k *keys) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	token, err := jose.ParseSigned(raw, algorithms)
	if err != nil || len(token.Signatures) != 1 {
		return nil, errors.Join(errors.New("malformed"), err)
	}
	id := token.Signatures[0].Header.KeyID
	for again := true; ; again = false {
		k.mu.Lock()
		known, over, recent := slices.Clone(k.known), k.over, time.Since(k.at) < Patience
		k.mu.Unlock()
		for _, key := range known {
			if id == "" || key.KeyID == id {
				if says, err := token.Verify(key); err == nil {
					return says, nil
				}
			}
		}
		if recent || !again {
			return nil, errors.New("no key of the issuer signed it")
		}
		select {
		case k.wake <- struct{}{}:
		default: // it is asked for already
		}
		select {
		case <-over:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
