package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"bailiwick/shared/table"
)

// Classes of plans, the first to yield first.
var Classes = []string{"free", "bronze", "silver", "gold", "platinum"}

// Algorithms that a token may be signed by: none with a shared secret, which a public key could be taken for.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Bounds and defaults of what callers show.
const (
	DefaultLeeway = time.Minute
	MaxLeeway     = 5 * time.Minute
	DefaultUnits  = 100 // most that one request costs
	MaxUnits      = 1_000_000
)

// ours are headers that mean something already, or that nobody may choose.
var ours = []string{"Authorization", "Cookie", "Host", "Connection", "Content-Length", "Content-Type", "Transfer-Encoding", "Te", "Trailer", "Upgrade", "Expect", "Forwarded", "Via",
	"Date", "Proxy-Authorization", "Accept", "User-Agent"}

func headerName(name string) error {
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("header %q holds %q: only letters, digits and '-' are allowed", name, c)
		}
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	if slices.Contains(ours, canonical) || strings.HasPrefix(canonical, "Bailiwick-") || strings.HasPrefix(canonical, "X-Forwarded-") {
		return fmt.Errorf("header %s means something else already", canonical)
	}
	return nil
}

// spoken are headers of requests that edges or upstreams act on: whoever sent a key in one would ask for something by it, or
// would have it taken away as what it is (RFC 9110, 9111; https://www.iana.org/assignments/http-fields). Headers that end in a
// '-' are all that begin so.
var spoken = []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Cache-Control", "Pragma", "Age", "Warning", "Accept-",
	"Content-", "Access-Control-", "Sec-", "Origin", "Referer", "From", "Max-Forwards", "Keep-Alive", "Proxy-", "Http2-Settings", "Upgrade-Insecure-Requests", "Priority",
	"Early-Data", "Alt-Used", "Prefer", "Idempotency-Key", "Last-Event-Id", "Signature", "Signature-Input", "Dpop", "Set-Cookie", "Retry-After", "Ratelimit", "Ratelimit-Policy",
	"Grpc-", "Connect-", "Traceparent", "Tracestate", "Baggage", "X-Request-Id", "X-Real-Ip", "X-Original-", "X-Rewrite-", "X-Http-Method", "X-Http-Method-Override", "X-Method-Override"}

// keyHeader refuses a name that a key cannot come in. What is stored under one is served on: it is looked at when it is applied.
func keyHeader(name string) error {
	if err := headerName(name); err != nil {
		return err
	}
	canonical := textproto.CanonicalMIMEHeaderKey(name)
	if canonical == "X-Api-Key" {
		return errors.New("keys are taken from X-API-Key anyway: leave key_header out")
	}
	for _, s := range spoken {
		if canonical == s || strings.HasSuffix(s, "-") && strings.HasPrefix(canonical, s) {
			return fmt.Errorf("header %s means something else already, to edges, upstreams or what is in between: choose a name of your own, like X-Partner-Key", canonical)
		}
	}
	return nil
}

func (a *Auth) validate(what string) error {
	if a == nil {
		return nil
	}
	if err := keyHeader(a.KeyHeader); err != nil {
		return bad("spec.auth.key_header", "HEADER_INVALID", "%s: %w", what, err)
	}
	for i := range len(a.KeyQuery) {
		if c := a.KeyQuery[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return bad("spec.auth.key_query", "PARAMETER_INVALID", "%s: parameter %q holds %q: only letters, digits, '-' and '_' are allowed", what, a.KeyQuery, c)
		}
	}
	for i := range a.Issuers {
		at := fmt.Sprintf("spec.auth.issuers[%d]", i)
		if err := a.Issuers[i].validate(what, at); err != nil {
			return err
		}
		if slices.ContainsFunc(a.Issuers[:i], func(o Issuer) bool { return o.Issuer == a.Issuers[i].Issuer }) {
			return bad(at+".issuer", "DUPLICATE", "%s names issuer %s twice", what, a.Issuers[i].Issuer)
		}
	}
	return nil
}

func (i *Issuer) validate(what, at string) error {
	if err := issuerURL(i.Issuer); err != nil {
		return bad(at+".issuer", "URL_INVALID", "%s: issuer: %w", what, err)
	}
	if i.JWKSURL != "" {
		if err := issuerURL(i.JWKSURL); err != nil {
			return bad(at+".jwks_url", "URL_INVALID", "%s: jwks_url: %w", what, err)
		}
	}
	if len(i.Audiences) == 0 {
		return bad(at+".audiences", "AUDIENCE_MISSING", "%s: issuer %s: without an audience a token for any other service would be taken", what, i.Issuer)
	}
	for n, a := range i.Algorithms {
		if !slices.Contains(Algorithms, a) {
			return bad(fmt.Sprintf("%s.algorithms[%d]", at, n), "ALGORITHM_INVALID", "%s: issuer %s: algorithm %q is none of %s", what, i.Issuer, a, strings.Join(Algorithms, ", "))
		}
	}
	if i.Leeway < 0 || i.Leeway > MaxLeeway {
		return bad(at+".leeway", "LEEWAY_INVALID", "%s: issuer %s: a leeway of %v is outside 0s (%v) to %v", what, i.Issuer, i.Leeway, DefaultLeeway, MaxLeeway)
	}
	if i.JWKS == "" {
		return nil
	}
	if i.JWKSURL != "" {
		return bad(at+".jwks", "JWKS_INVALID", "%s: issuer %s: its keys come from jwks or from jwks_url, not from both", what, i.Issuer)
	}
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal([]byte(i.JWKS), &set); err != nil || len(set.Keys) == 0 {
		return bad(at+".jwks", "JWKS_INVALID", "%s: issuer %s: jwks is no JSON Web Key Set with a key in it", what, i.Issuer)
	}
	for _, k := range set.Keys {
		if k["d"] != nil || k["k"] != nil || k["p"] != nil { // this rests in every zone
			return bad(at+".jwks", "JWKS_PRIVATE", "%s: issuer %s: jwks holds a private or shared key: write the public part alone, and take the other out of use", what, i.Issuer)
		}
	}
	return nil
}

// issuerURL takes https, and http from this machine alone: whoever can change the keys on their way can sign any token.
func issuerURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsAny(s, " \t\r\n\x00"):
		return fmt.Errorf("%q is not a URL", s)
	case u.Scheme != "https" && !(u.Scheme == "http" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")):
		return fmt.Errorf("URL %q does not begin with https://", s)
	case u.Hostname() == "" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("URL %q names no host, or holds a user, a query or a fragment", s)
	}
	return nil
}

func (u *Units) validate(what, at string) error {
	if u == nil {
		return nil
	}
	sources := 0
	for _, said := range [...]bool{u.Header != "", u.PerBytes != 0, u.PerMessages != 0, u.GraphQL != ""} {
		if said {
			sources++
		}
	}
	switch {
	case sources == 0:
		return bad(at, "UNITS_INVALID", "%s: units come from a header of the answer, from bytes (per_bytes), from messages (per_messages), or from what a GraphQL document asks (graphql)", what)
	case sources > 1:
		return bad(at, "UNITS_INVALID", "%s: units come from a header of the answer, from bytes, from messages or from graphql, not from two of them", what)
	case u.GraphQL != "" && u.GraphQL != "fields" && u.GraphQL != "cost":
		return bad(at+".graphql", "UNITS_INVALID", "%s: graphql %q is neither fields nor cost", what, u.GraphQL)
	case u.PerBytes < 0:
		return bad(at+".per_bytes", "UNITS_INVALID", "%s: per_bytes %d is less than one", what, u.PerBytes)
	case u.PerMessages < 0:
		return bad(at+".per_messages", "UNITS_INVALID", "%s: per_messages %d is less than one", what, u.PerMessages)
	case u.Most < 0 || u.Most > MaxUnits:
		return bad(at+".most", "UNITS_INVALID", "%s: most %d is outside 0 (%d) to %d", what, u.Most, DefaultUnits, MaxUnits)
	}
	if err := headerName(u.Header); err != nil {
		return bad(at+".header", "HEADER_INVALID", "%s: %w", what, err)
	}
	return nil
}

// Callers is what edges need of it, defaults filled in.
func (a API) Callers() *table.Auth {
	v := a.Auth
	if v == nil {
		return nil
	}
	out := &table.Auth{KeyHeader: textproto.CanonicalMIMEHeaderKey(v.KeyHeader), KeyQuery: v.KeyQuery, Certificates: v.ClientCertificates, Anonymous: v.Identity == "none", Signed: v.Identity == "signed"}
	for _, i := range v.Issuers {
		t := table.Issuer(i)
		if len(t.Algorithms) == 0 {
			t.Algorithms = []string{"RS256", "ES256"}
		}
		if t.Claim == "" {
			t.Claim = "sub"
		}
		if t.Leeway == 0 {
			t.Leeway = DefaultLeeway
		}
		out.Issuers = append(out.Issuers, t)
	}
	return out
}

// Costs is what edges need of a route's units, defaults filled in.
func (r Route) Costs() *table.Units {
	if r.Units == nil {
		return nil
	}
	out := &table.Units{Header: textproto.CanonicalMIMEHeaderKey(r.Units.Header), PerBytes: r.Units.PerBytes, PerMessages: r.Units.PerMessages, Most: r.Units.Most, GraphQL: r.Units.GraphQL}
	if out.Most == 0 {
		out.Most = DefaultUnits
	}
	return out
}
