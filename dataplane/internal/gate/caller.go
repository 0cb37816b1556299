package gate

import (
	"encoding/hex"
	"slices"
	"strings"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
)

// Shown is what a request shows beside Authorization and X-API-Key. It is asked where an API says so.
type Shown interface {
	Header(name string) []string // values as received, by a name in its canonical form
	Query(name string) []string  // decoded values of a parameter
	// Certificate is of the TLS connection; the client has proven that it has the key. until is when it ends (unix s); 0: never.
	Certificate() (spki [32]byte, until int64, ok bool)
}

// Tokens verifies tokens. It is what *token.Verifier does.
type Tokens interface {
	// until is when it ends (unix s); 0: never.
	Verify(api string, auth *table.Auth, raw, from string, unix int64) (issuer, subject, scopes string, until int64, err error)
}

// credential is what a caller showed: the text of a key, or something that a key is bound to.
type credential struct {
	text   string // of a key
	bearer bool   // it came as Authorization

	kind, bound string // else what it is bound to
	until       int64  // unix s, of a token or a certificate; 0: it does not end
	token       bool
	scopes      string // of a token, as what follows
	issuer      string
}

// show takes the one credential of a request. Of two that differ none is taken: whoever stands before or behind this edge
// might take the other. A certificate counts where nothing else is shown.
func (g *Gate) show(r *Request, api *policy.API) (c credential, p Problem) {
	if c.text, c.bearer, p = present(r); p.Status != 0 {
		return c, p
	}
	auth := api.Auth
	if auth == nil || r.Shown == nil {
		return c, c.missing(auth)
	}
	for _, values := range [...][]string{named(auth.KeyHeader, r.Shown.Header), named(auth.KeyQuery, r.Shown.Query)} {
		switch {
		case len(values) == 0:
			continue
		case len(values) > 1 || c.text != "" && strings.TrimSpace(values[0]) != c.text:
			return c, NewProblem(401, ReasonKeyConflict, "The request holds a key more than once; send one key, once.")
		}
		c.text = strings.TrimSpace(values[0])
	}
	if c.text == "" && auth.Certificates {
		if spki, until, ok := r.Shown.Certificate(); ok {
			return credential{kind: apikey.KindCertificate, bound: hex.EncodeToString(spki[:]), until: until}, p
		}
	}
	if p = c.missing(auth); p.Status != 0 || len(auth.Issuers) == 0 || g.Tokens == nil || !c.bearer || strings.HasPrefix(c.text, apikey.Prefix) {
		return c, p
	}
	issuer, subject, scopes, until, err := g.Tokens.Verify(api.Name, auth, c.text, speaker(r.Remote), r.Unix)
	if err != nil {
		return c, NewProblem(401, ReasonTokenInvalid, "The token is not taken: "+err.Error()+".")
	}
	return credential{bearer: true, kind: apikey.KindToken, bound: apikey.TokenText(issuer, subject), token: true, scopes: scopes, issuer: issuer, until: until}, p
}

// speaker is a host:port without its port.
func speaker(remote string) string {
	if i := strings.LastIndexByte(remote, ':'); i >= 0 {
		return remote[:i]
	}
	return remote
}

func named(name string, of func(string) []string) []string {
	if name == "" {
		return nil
	}
	return of(name)
}

// missing says how the API takes a key, where none came. The parameter of the query is not named: addresses end up in logs.
func (c *credential) missing(auth *table.Auth) Problem {
	if c.text != "" {
		return Problem{}
	}
	detail := "Send the key as Authorization: Bearer or as X-API-Key."
	if auth != nil {
		if auth.KeyHeader != "" {
			detail = "Send the key as Authorization: Bearer, as X-API-Key or as " + auth.KeyHeader + "."
		}
		if len(auth.Issuers) > 0 {
			detail += " A token of an issuer that the API trusts comes as Authorization: Bearer."
		}
		if auth.Certificates {
			detail += " A client certificate that a key is bound to needs neither."
		}
	}
	return NewProblem(401, ReasonKeyMissing, detail)
}

// key finds the key of a credential; false if there is none, in one time whether the id or the secret is unknown.
func (g *Gate) key(t *policy.Table, c *credential, v *Verdict, key *policy.Key) bool {
	var known bool
	var digest apikey.Digest
	if c.kind != "" {
		var id string
		id, digest = g.Hasher.Bound(c.kind, c.bound)
		known = t.Find(id, key)
	} else {
		zone, id, ok := apikey.Parse(c.text)
		if !ok {
			return false
		}
		if zone != t.Settings().Zone {
			// The hint is untrusted text: it picks a directory row and nothing else.
			if hosts := t.Directory(v.API.Name, zone); len(hosts) > 0 {
				v.refuse(421, ReasonKeyForeign, "The key belongs to another zone; send the request to one of the named hosts.")
				v.Problem.Hosts = hosts
			}
			return false
		}
		known = t.Find(id, key) // before the digest: of a million keys no cache holds it, and it comes while that is computed
		digest = g.Hasher.Sum(c.text)
	}
	// Without a key there are zeros to compare with. No digest is all zeros but by a chance of 2^-256.
	return apikey.Equal(digest, key.Digest) && known
}

// unknown is why a credential that is none is refused.
func (c *credential) unknown() Problem {
	switch c.kind {
	case apikey.KindCertificate:
		return NewProblem(401, ReasonKeyInvalid, "No key is bound to the client certificate; ask the provider of the API to bind one.")
	case apikey.KindToken:
		return NewProblem(401, ReasonKeyInvalid, "No key is bound to whom the token names; ask the provider of the API to bind one.")
	}
	return NewProblem(401, ReasonKeyInvalid, "The key is not valid at this host.")
}

// taken says whether an API whose callers are known by auth still takes what was shown to it once.
func (c *credential) taken(auth *table.Auth, unix int64) bool {
	if c.until != 0 && unix >= c.until {
		return false
	}
	switch c.kind {
	case apikey.KindCertificate:
		return auth != nil && auth.Certificates
	case apikey.KindToken:
		return auth != nil && slices.ContainsFunc(auth.Issuers, func(i table.Issuer) bool { return i.Issuer == c.issuer })
	}
	return true
}

// allows says whether the caller has a scope: what a token says, and what its key was given if it was given any.
func (c *credential) allows(scope string, b *policy.Bounds) bool {
	if !c.token {
		return b.HasScope(scope)
	}
	if b.Scoped() && !b.HasScope(scope) {
		return false
	}
	for rest := c.scopes; rest != ""; {
		var s string
		if s, rest, _ = strings.Cut(rest, " "); s == scope {
			return true
		}
	}
	return false
}
