// Package sso lets operators in whom an OpenID Connect issuer vouches for: it checks an ID token's signature, issuer,
// audience and end, and maps a claim to a role.
//
// It issues nothing, keeps no session and stores no token. What the issuer publishes, its endpoints and keys, is fetched
// in Run: keys every Refresh, so that one that the issuer took back is not good for ever, and sooner for a token that fits
// none, but no more often than every Patience, since anybody can show one. While the issuer is away, tokens under keys that
// are known are good, others are refused, and operators' own tokens work as ever. Nothing survives a crash. Verify may be
// called from several goroutines at once.
//
// A name is the same person as an operator's of that name who holds a token, also where two must decide. Nobody but the
// issuer can know that two names are one person's: name tokens as the issuer names people, and take no claim as the name
// that people choose themselves.
package sso

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"bailiwick/shared/fault"
)

// Limits.
const (
	MaxLife      = 24 * time.Hour // of a token, from when it was issued
	DefaultClaim = "groups"
	DefaultName  = "email"
	retry        = 15 * time.Second // between attempts to reach the issuer at the start
	fetch        = 5 * time.Second  // for one answer of the issuer
	maxToken     = 16 << 10         // bytes
	skew         = 5 * time.Minute  // of the issuer's clock
)

// Config of a Verifier.
type Config struct {
	Issuer   string // required: https URL, as it stands in tokens
	Audience string // required: this installation, as the issuer knows it
	Claim    string // whose values are mapped to roles, a text or a list of texts; "": DefaultClaim
	// Name is the claim that says who somebody is: the operator's name, which approvals compare. "": DefaultName, which
	// counts only if the issuer says that it verified it.
	Name  string
	Roles []Role       // required: the first that fits counts
	HTTP  *http.Client // nil: one with the system's roots
}

// Role is what a value of the claim stands for.
type Role struct{ Value, Role string }

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	if !strings.HasPrefix(c.Issuer, "https://") || c.Audience == "" || len(c.Roles) == 0 {
		return c, errors.New("single sign-on: an https issuer, an audience and at least one role are required")
	}
	if c.Claim == "" {
		c.Claim = DefaultClaim
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Timeout: fetch}
	}
	return c, nil
}

// ParseRoles reads value=role,value=role.
func ParseRoles(text string) (roles []Role, err error) {
	for part := range strings.SplitSeq(text, ",") {
		value, role, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || value == "" || role == "" {
			return nil, fmt.Errorf("%q is not value=role", part)
		}
		roles = append(roles, Role{value, role})
	}
	return roles, nil
}

// Verifier checks tokens of one issuer.
type Verifier struct {
	cfg      Config
	verifier atomic.Pointer[oidc.IDTokenVerifier] // nil until the issuer has answered once
}

// New checks the configuration; the issuer is asked in Run.
func New(cfg Config) (*Verifier, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	return &Verifier{cfg: cfg}, nil
}

// Run reaches the issuer, and then waits for ctx to end.
func (v *Verifier) Run(ctx context.Context) error {
	for {
		if k, err := v.discover(ctx); err == nil {
			v.verifier.Store(oidc.NewVerifier(v.cfg.Issuer, k, &oidc.Config{ClientID: v.cfg.Audience, SupportedSigningAlgs: []string{oidc.RS256, oidc.ES256, oidc.EdDSA}}))
			k.run(ctx)
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// discover asks the issuer where its keys are. The library's own set of keys fetches them at every token that fits none, and
// else never.
func (v *Verifier) discover(ctx context.Context) (*keys, error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, v.cfg.HTTP), v.cfg.Issuer)
	if err != nil {
		return nil, err
	}
	var says struct {
		Keys string `json:"jwks_uri"`
	}
	if err := p.Claims(&says); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(says.Keys, "https://") {
		return nil, fmt.Errorf("the issuer's keys are at %q, which is no https URL", says.Keys)
	}
	return newKeys(says.Keys, v.cfg.HTTP), nil
}

// Verify says who a token is of and in which role. It is refused with a reason of kind Unauthenticated, Denied or, while
// the issuer was never reached, Unavailable.
func (v *Verifier) Verify(ctx context.Context, raw string) (name, role string, err error) {
	check := v.verifier.Load()
	if check == nil {
		return "", "", fault.New(fault.Unavailable, "ISSUER_AWAY", "the issuer %s has not answered yet, so its tokens cannot be checked: an operator's own token works", v.cfg.Issuer)
	}
	if len(raw) > maxToken {
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_INVALID", "the token has %d bytes, at most %d are looked at", len(raw), maxToken)
	}
	ctx, cancel := context.WithTimeout(ctx, fetch)
	defer cancel()
	token, err := check.Verify(ctx, raw)
	if expired := (*oidc.TokenExpiredError)(nil); errors.As(err, &expired) {
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_EXPIRED", "this token of %s ended at %s: log in again", v.cfg.Issuer, expired.Expiry.UTC().Format(time.RFC3339))
	}
	if err != nil {
		// Why is for the log: the text may quote the token.
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_INVALID", "this is no token that %s issued for %s", v.cfg.Issuer, v.cfg.Audience)
	}
	// One that is said to be issued tomorrow would last longer than the limit.
	if token.IssuedAt.IsZero() || token.Expiry.Sub(token.IssuedAt) > MaxLife || time.Until(token.Expiry) > MaxLife+skew {
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_TOO_LONG", "tokens of %s must end within %s of being issued", v.cfg.Issuer, MaxLife)
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_INVALID", "the claims of this token do not read")
	}
	name, _ = claims[v.cfg.Name].(string)
	if v.cfg.Name == DefaultName && claims["email_verified"] != true {
		name = ""
	}
	if name = strings.ToLower(name); name == "" || len(name) > 128 {
		return "", "", fault.New(fault.Denied, "NAME_MISSING", "this token does not say who it is of: %s of %s is empty, or not verified", v.cfg.Name, v.cfg.Issuer)
	}
	// Two letters that look alike are two names, and two names may be the two operators of an approval.
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", "", fault.New(fault.Denied, "NAME_UNUSABLE", "the name that %s gives is not of plain letters, digits and signs without blanks: choose another claim (-oidc-name)", v.cfg.Issuer)
	}
	values := texts(claims[v.cfg.Claim])
	for _, r := range v.cfg.Roles {
		if slices.Contains(values, r.Value) {
			return name, r.Role, nil
		}
	}
	return "", "", fault.New(fault.Denied, "ROLE_MISSING", "no value of %s that %s gives %s stands for a role here", v.cfg.Claim, v.cfg.Issuer, name)
}

func texts(claim any) (out []string) {
	switch c := claim.(type) {
	case string:
		return []string{c}
	case []any:
		for _, x := range c {
			if s, ok := x.(string); ok {
				out = append(out, s)
			}
		}
	}
	return out
}
