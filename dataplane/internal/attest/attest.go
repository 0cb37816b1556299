// Package attest owns the signed word about who asks: a short-lived token (JWT, EdDSA) that an upstream can hold against the
// zone's published keys, so that it need not trust every hop of its own network.
//
// The keys are derived from the zone's pepper, which all its edges hold and nobody else but its control nodes: all of them sign
// alike and publish the same keys, and none is ever sent or stored. A key signs for 30 days; the next one is published before it
// signs, and the last one for as long after. Tokens name no person: a customer, a subscription, a plan and a key, by their ids.
// A token is made once in 30 s at most for one key and API, as long as no more than 16384 are in use at a time. Nothing survives
// a crash, and nothing has to. A Signer may be used by any number of goroutines at once; it reads no clock.
package attest

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// Life of a token. It is used again for Renew, and good for so long after.
	Life  = 90 * time.Second
	Renew = 30 * time.Second
	// Period is how long a key signs.
	Period = 30 * 24 * time.Hour

	slots = 16384
	early = 5 * time.Second // for upstreams whose clock is behind: tokens are good from so long before
)

// Caller is who asks, and what.
type Caller struct{ Customer, Subscription, Plan, Key, API string }

// Signer signs for a zone.
type Signer struct {
	zone, region string
	pepper       []byte
	seed         maphash.Seed
	keys         atomic.Pointer[ring]
	made         [slots]atomic.Pointer[made]
}

// ring is the keys of a period, of the one before and of the one after.
type ring struct {
	period int64
	header string // of tokens that the period's key signs
	key    ed25519.PrivateKey
	public []byte // JSON Web Key Set
}

type made struct {
	of    Caller
	until int64 // unix s
	ring  *ring
	text  []string
}

// New makes a signer of a region's edge.
func New(zone, region string, pepper []byte) (*Signer, error) {
	if zone == "" || region == "" || len(pepper) < 16 {
		return nil, errors.New("attest: a zone, a region and a pepper of at least 16 bytes are required")
	}
	return &Signer{zone: zone, region: region, pepper: pepper, seed: maphash.MakeSeed()}, nil
}

// key of a period. The purpose keeps it apart from whatever else the pepper is used for.
func (s *Signer) key(period int64) (ed25519.PrivateKey, string, error) {
	info := binary.BigEndian.AppendUint64([]byte("bailiwick identity of callers/1\n"+s.zone+"\n"), uint64(period))
	seed, err := hkdf.Key(sha256.New, s.pepper, nil, string(info), ed25519.SeedSize)
	if err != nil {
		return nil, "", fmt.Errorf("derive the key of period %d: %w", period, err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	return key, base64.RawURLEncoding.EncodeToString(sum[:12]), nil
}

func (s *Signer) at(now time.Time) (*ring, error) {
	period := now.Unix() / int64(Period/time.Second)
	if r := s.keys.Load(); r != nil && r.period == period {
		return r, nil
	}
	type jwk struct {
		Kty string `json:"kty"`
		Crv string `json:"crv"`
		Use string `json:"use"`
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		X   string `json:"x"`
	}
	r := &ring{period: period}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, p := range []int64{period, period + 1, period - 1} {
		key, id, err := s.key(p)
		if err != nil {
			return nil, err
		}
		if p == period {
			r.key = key
			r.header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","kid":"` + id + `","typ":"JWT"}`))
		}
		set.Keys = append(set.Keys, jwk{"OKP", "Ed25519", "sig", "EdDSA", id, base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))})
	}
	var err error
	if r.public, err = json.Marshal(set); err != nil {
		return nil, fmt.Errorf("write the zone's keys: %w", err)
	}
	s.keys.Store(r)
	return r, nil
}

// Keys are the zone's public keys, as a JSON Web Key Set.
func (s *Signer) Keys(now time.Time) ([]byte, error) {
	r, err := s.at(now)
	if err != nil {
		return nil, err
	}
	return r.public, nil
}

// Issuer is what tokens name as theirs.
func (s *Signer) Issuer() string { return "urn:bailiwick:zone:" + s.zone }

// Token is the value of a header: one text, shared by all who ask for the same; do not change it.
func (s *Signer) Token(c Caller, now time.Time) ([]string, error) {
	r, err := s.at(now)
	if err != nil {
		return nil, err
	}
	slot := &s.made[maphash.Comparable(s.seed, c)%slots]
	if m := slot.Load(); m != nil && m.of == c && m.ring == r && now.Unix() < m.until {
		return m.text, nil
	}
	says, err := json.Marshal(struct {
		Iss          string `json:"iss"`
		Aud          string `json:"aud"`
		Sub          string `json:"sub"`
		Subscription string `json:"subscription,omitempty"`
		Plan         string `json:"plan,omitempty"`
		Key          string `json:"key,omitempty"`
		Region       string `json:"region"`
		Iat          int64  `json:"iat"`
		Nbf          int64  `json:"nbf"`
		Exp          int64  `json:"exp"`
	}{s.Issuer(), c.API, c.Customer, c.Subscription, c.Plan, c.Key, s.region, now.Unix(), now.Add(-early).Unix(), now.Add(Life).Unix()})
	if err != nil {
		return nil, fmt.Errorf("write a token: %w", err)
	}
	text := r.header + "." + base64.RawURLEncoding.EncodeToString(says)
	c.Key = strings.Clone(c.Key) // it lies in a piece of the table, which would stay until another token takes this one's place
	m := &made{of: c, until: now.Add(Renew).Unix(), ring: r,
		text: []string{text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(r.key, []byte(text)))}}
	slot.Store(m)
	return m.text, nil
}
