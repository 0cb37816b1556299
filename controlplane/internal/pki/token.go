package pki

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

const (
	tokenPrefix = "bwj_"
	tokenDigits = 43 // base62 digits of 32 bytes
)

// CreateToken makes a join token bound to kind, region and name, valid once for
// ttl (zero and the most is MaxTokenTTL) of the leader's time. The text is
// returned here and exists nowhere else.
func (e *Enroll) CreateToken(ctx context.Context, kind, region, name string, ttl time.Duration) (token string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = MaxTokenTTL
	}
	bad := func(field, format string, args ...any) (string, time.Time, error) {
		return "", time.Time{}, fault.New(fault.Invalid, ReasonTokenInvalid, "create join token: "+format, args...).At(field)
	}
	switch {
	case kind != identity.Edge && kind != identity.Control:
		return bad("kind", "kind %.40q: choose edge or control", kind)
	case ttl < time.Second || ttl > MaxTokenTTL:
		return bad("ttl", "ttl %s is not between 1s and %s", ttl, MaxTokenTTL)
	}
	if err := e.name(kind, region, name).Validate(); err != nil {
		return bad("name", "%w", err)
	}
	tok := claimedToken{JoinToken: model.JoinToken{Kind: kind, Region: region, Name: name}}
	if err := e.checkRegion(ctx, kind, region); err != nil {
		return "", time.Time{}, err
	}
	if err := e.mayRegister(ctx, tok); err != nil {
		return "", time.Time{}, err
	}
	token = e.newToken()
	key := tokenKey(token)
	absent := []group.Compare{{Key: key}}
	// The first transaction changes nothing: it asks the leader for the time.
	res, err := e.cfg.ZoneStore.Txn(ctx, group.Txn{Compares: absent})
	if err != nil {
		return "", time.Time{}, err
	}
	tok.ExpiresAt = res.Time.Add(ttl).UTC()
	ops := append(e.expired(res.Time), group.Op{Key: key, Value: model.Encode(tok)})
	if _, err := e.cfg.ZoneStore.Txn(ctx, group.Txn{Compares: absent, Ops: ops}); err != nil {
		return "", time.Time{}, err
	}
	return token, tok.ExpiresAt, nil
}

func (e *Enroll) checkRegion(ctx context.Context, kind, region string) error {
	kv, ok, _, err := e.cfg.Catalog.Get(ctx, model.PrefixRegion+region)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(fault.Invalid, "REGION_UNKNOWN", "create join token: region %s does not exist: create it first", region).At("region")
	}
	r, err := model.Decode[model.Region](kv.Key, kv.Value)
	switch {
	case err != nil:
		return err
	case r.Zone != e.cfg.CA.Zone():
		return fault.New(fault.WrongZone, "REGION_OF_ANOTHER_ZONE", "create join token: region %s is of zone %s: ask a control node there", region, r.Zone).At("region").With("zone", r.Zone)
	case r.ControlOnly && kind == identity.Edge:
		return fault.New(fault.Invalid, "REGION_CONTROL_ONLY", "create join token: region %s is control-only: no edge runs there", region).At("region")
	}
	return nil
}

// expired deletes a bounded number of tokens that nobody will ask about again.
func (e *Enroll) expired(now time.Time) (ops []group.Op) {
	for kv := range e.cfg.ZoneStore.Local().List(model.PrefixJoinToken) {
		if t, err := model.Decode[claimedToken](kv.Key, kv.Value); err == nil && now.Sub(t.ExpiresAt) > tokenKept {
			if ops = append(ops, group.Op{Key: kv.Key, Delete: true}); len(ops) == 32 {
				break
			}
		}
	}
	return ops
}

func (e *Enroll) newToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	digits := new(big.Int).SetBytes(b).Text(62)
	return tokenPrefix + e.cfg.CA.Zone() + "_" + strings.Repeat("0", tokenDigits-len(digits)) + digits
}

// ours is a cheap look before any read: form and zone.
func (e *Enroll) ours(token string) bool {
	digits, ok := strings.CutPrefix(token, tokenPrefix+e.cfg.CA.Zone()+"_")
	return ok && len(digits) == tokenDigits
}

func tokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return model.PrefixJoinToken + hex.EncodeToString(sum[:])
}
