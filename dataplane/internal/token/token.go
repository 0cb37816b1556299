// Package token owns the tokens (JWT, RFC 7519) that callers show in place of a key: whether an issuer that the API trusts
// signed one for it, and what it says of its holder. The keys of issuers it fetches in the background alone.
//
// It never decides who may: it says which issuer and subject a token names, and the gate looks for the key that is bound to
// them. A token that does not verify leaves nothing behind, and starts at most one fetch in ten seconds and for each issuer,
// whatever it names. Nothing survives a crash: after a restart tokens are refused until their issuer's keys are here again,
// so whoever must not depend on an issuer that is away writes its keys into the API (jwks). Verify may be called by any
// number of goroutines at once and never waits; Run is called once.
package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash/maphash"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/table"
)

const (
	maxToken   = 8 << 10 // bytes
	maxSubject = 512     // bytes of what a key is bound to
	slots      = 4096    // tokens that are known to verify, be it out of their time; an older one makes room
	tries      = 4       // keys that one token without a key id is held against
)

// Config of a Verifier.
type Config struct {
	Tables *policy.Holder // required
	Client *http.Client   // required: guarded, follows no redirect
	Logger *slog.Logger   // required

	Refresh time.Duration // of an issuer's keys, more or less a fifth; 0: 10 minutes
	// Stale is how long keys serve on after their issuer last answered; 0: 24 hours.
	Stale time.Duration
	// Patience is the time between fetches because of tokens that name a key that is not known: anybody can make such; 0: 10 s.
	Patience time.Duration
}

// Verifier verifies tokens.
type Verifier struct {
	cfg   Config
	known [slots]atomic.Pointer[verified]

	failures failures
	results  [len(Results)]atomic.Int64

	mu      sync.RWMutex // covers sources; held for a lookup
	sources map[sourceID]*source
}

// New makes one; it knows no keys before Run but those that APIs hold themselves.
func New(cfg Config) (*Verifier, error) {
	if cfg.Tables == nil || cfg.Client == nil || cfg.Logger == nil {
		return nil, errors.New("token: Tables, Client and Logger are required")
	}
	if cfg.Refresh <= 0 {
		cfg.Refresh = 10 * time.Minute
	}
	if cfg.Stale <= 0 {
		cfg.Stale = 24 * time.Hour
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 10 * time.Second
	}
	return &Verifier{cfg: cfg, sources: map[sourceID]*source{}, failures: failures{seed: maphash.MakeSeed()}}, nil
}

// verified is a token that verified, once. It counts while the API asks the same of tokens and the issuer has the same keys.
type verified struct {
	sum           [sha256.Size]byte
	auth          *table.Auth
	keys          *keySet
	source        *source
	from, until   int64 // unix s, leeway and all
	issuer, value string
	scopes        string
}

// Why a token is refused, for the caller, who may as well have made it up.
var (
	ErrMalformed = errors.New("it is no signed token that this API takes")
	ErrIssuer    = errors.New("the API does not trust its issuer")
	ErrKeys      = errors.New("its issuer's keys are not known here; try again shortly")
	ErrSignature = errors.New("no key of its issuer signed it")
	ErrExpired   = errors.New("its time is over")
	ErrEndless   = errors.New("it does not say until when it holds (exp)")
	ErrEarly     = errors.New("its time has not come")
	ErrAudience  = errors.New("it is for another service")
	ErrTooMany   = errors.New("too many tokens that do not verify came from the same address, or for this API; try again in a few seconds")
	ErrSubject   = errors.New("it lacks the claim by which the API knows its callers")
)

// Results are what comes of looking at a token: it was known to verify, it verified, it did not, its issuer's keys are not known,
// or it was not looked at, since too many did not verify.
var Results = [...]string{"known", "verified", "refused", "keys_unknown", "put_off"}

// Count is how often that came of it since the start, by its place in Results.
func (v *Verifier) Count(result int) int64 { return v.results[result].Load() }

// Verify gives whom raw names, if it is for the API of that name, of which auth is, at a time of day (unix s): its issuer, the value of the claim
// that the API names, and its scopes, separated by spaces, and until when it is taken. It allocates nothing for a token that
// it has verified lately. from is the address that shows it: of one from which too much did not verify lately, no new token is
// looked at.
func (v *Verifier) Verify(api string, auth *table.Auth, raw, from string, unix int64) (issuer, subject, scopes string, until int64, err error) {
	if len(raw) > maxToken || strings.Count(raw, ".") != 2 {
		v.results[2].Add(1)
		return "", "", "", 0, ErrMalformed
	}
	var text [maxToken]byte
	sum := sha256.Sum256(text[:copy(text[:], raw)])
	slot := &v.known[(int(sum[0])<<8|int(sum[1]))%slots]
	if k := slot.Load(); k != nil && k.sum == sum && k.asked(auth, slot) && k.source.set.Load() == k.keys {
		issuer, subject, scopes, until, err = k.at(unix)
		if err != nil {
			v.results[2].Add(1)
		} else {
			v.results[0].Add(1)
		}
		return issuer, subject, scopes, until, err
	}
	if v.failures.full(api, from, unix) {
		v.results[4].Add(1)
		return "", "", "", 0, ErrTooMany
	}
	k, err := v.verify(auth, raw)
	if err != nil {
		if err == ErrKeys { // which is nobody's fault here
			v.results[3].Add(1)
		} else {
			v.results[2].Add(1)
			v.failures.add(api, from, unix)
		}
		return "", "", "", 0, err
	}
	k.sum = sum
	issuer, subject, scopes, until, err = k.at(unix)
	if err != nil { // verified for nothing, and remembered, lest it be so each time that it is shown
		v.results[2].Add(1)
		v.failures.add(api, from, unix)
		if old := slot.Load(); old == nil || !old.holds(unix) {
			slot.CompareAndSwap(old, k)
		}
		return "", "", "", 0, err
	}
	v.results[1].Add(1)
	slot.Store(k)
	v.failures.vouch(api, from, unix)
	return issuer, subject, scopes, until, nil
}

// holds says whether a token that is remembered would be taken: its place is not for one that is not.
func (k *verified) holds(unix int64) bool {
	_, _, _, _, err := k.at(unix)
	return err == nil && k.source.set.Load() == k.keys
}

// asked says whether auth asks what the token was held against, be it another table that asks it.
func (k *verified) asked(auth *table.Auth, slot *atomic.Pointer[verified]) bool {
	if k.auth == auth {
		return true
	}
	if !reflect.DeepEqual(k.auth, auth) {
		return false
	}
	again := *k
	again.auth = auth
	slot.CompareAndSwap(k, &again)
	return true
}

func (k *verified) at(unix int64) (issuer, subject, scopes string, until int64, err error) {
	switch {
	case unix >= k.until:
		return "", "", "", 0, ErrExpired
	case unix < k.from:
		return "", "", "", 0, ErrEarly
	}
	return k.issuer, k.value, k.scopes, k.until, nil
}

// verify reads a token and holds it against everything but the time. What it says is believed once its signature is.
func (v *Verifier) verify(auth *table.Auth, raw string) (*verified, error) {
	signed, err := jose.ParseSignedCompact(raw, all(auth))
	if err != nil || len(signed.Signatures) != 1 {
		return nil, ErrMalformed
	}
	header := signed.Signatures[0].Header
	var says claims
	if json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &says) != nil {
		return nil, ErrMalformed
	}
	at := slices.IndexFunc(auth.Issuers, func(i table.Issuer) bool { return i.Issuer == says.Issuer })
	if at < 0 {
		return nil, ErrIssuer
	}
	issuer := &auth.Issuers[at]
	if !slices.Contains(issuer.Algorithms, header.Algorithm) { // pinned for each issuer: another's algorithms are not this one's
		return nil, ErrMalformed
	}
	source := v.source(issuer)
	if source == nil {
		return nil, ErrKeys
	}
	keys := source.set.Load()
	if keys == nil {
		return nil, ErrKeys
	}
	fits, signedBy := 0, false
	for i := range keys.keys {
		key := &keys.keys[i]
		if header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm || !signs(key.Key, header.Algorithm) {
			continue
		}
		if fits++; fits > tries {
			break
		}
		if _, err := signed.Verify(key); err == nil {
			signedBy = true
			break
		}
	}
	if !signedBy {
		if fits == 0 || header.KeyID == "" { // which may mean a key that its issuer has only now
			source.want()
		}
		return nil, ErrSignature
	}
	return says.judge(issuer, header, &verified{auth: auth, source: source, keys: keys})
}

func all(auth *table.Auth) []jose.SignatureAlgorithm {
	var out []jose.SignatureAlgorithm
	for _, i := range auth.Issuers {
		for _, a := range i.Algorithms {
			if asymmetric[jose.SignatureAlgorithm(a)] {
				out = append(out, jose.SignatureAlgorithm(a))
			}
		}
	}
	return out
}

// asymmetric are all that are ever taken, whatever a table says: neither none nor what a public key could be the secret of.
var asymmetric = map[jose.SignatureAlgorithm]bool{jose.RS256: true, jose.RS384: true, jose.RS512: true, jose.PS256: true, jose.PS384: true, jose.PS512: true,
	jose.ES256: true, jose.ES384: true, jose.ES512: true, jose.EdDSA: true}

// signs says whether a public key is of the type that an algorithm takes: a key need not say what it is for.
func signs(key any, algorithm string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		bits := k.Params().BitSize
		return algorithm == "ES256" && bits == 256 || algorithm == "ES384" && bits == 384 || algorithm == "ES512" && bits == 521
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	}
	return false
}
