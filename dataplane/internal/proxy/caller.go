package proxy

import (
	"crypto/sha256"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bailiwick/dataplane/internal/attest"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/table"
)

// shown is what a request shows of its caller beside Authorization and X-API-Key.
type shown struct{ r *http.Request }

func (s shown) Header(name string) []string { return s.r.Header[name] }

// Query gives the values of a parameter, by the name that it decodes to.
func (s shown) Query(name string) (values []string) {
	for part := range strings.SplitSeq(s.r.URL.RawQuery, "&") {
		if key, value, _ := strings.Cut(part, "="); isNamed(key, name) {
			v, err := url.QueryUnescape(value)
			if err != nil {
				v = value
			}
			values = append(values, v)
		}
	}
	return values
}

func isNamed(key, name string) bool {
	if !strings.ContainsAny(key, "%+") {
		return key == name
	}
	k, err := url.QueryUnescape(key)
	return err == nil && k == name
}

// Certificate is of a client that has proven its key in the handshake. Who vouches for it does not matter: it is the key that
// something is bound to. That it says of itself that its time is over does: also of what it opened before.
func (s shown) Certificate() (spki [32]byte, until int64, ok bool) {
	if s.r.TLS == nil || len(s.r.TLS.PeerCertificates) == 0 {
		return spki, 0, false
	}
	c := s.r.TLS.PeerCertificates[0]
	if now := time.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return spki, 0, false
	}
	return sha256.Sum256(c.RawSubjectPublicKeyInfo), c.NotAfter.Unix() + 1, true // its last second is its own (RFC 5280, section 4.1.2.5)
}

// conceal takes out of what goes on where the API's callers may have put their keys.
func (x *exchange) conceal(auth *table.Auth) {
	if auth == nil {
		return
	}
	if auth.KeyHeader != "" {
		delete(x.header, auth.KeyHeader)
		alone(x.header, auth.KeyHeader)
	}
	if auth.KeyQuery == "" {
		return
	}
	if said := x.header["Referer"]; len(said) > 0 { // the address of the page before, which may have come with a key
		pages := make([]string, len(said)) // the client's own are shared
		for i, page := range said {
			pages[i], _, _ = strings.Cut(page, "?")
		}
		x.header["Referer"] = pages
	}
	if x.r.URL.RawQuery == "" {
		return
	}
	var kept []string
	for part := range strings.SplitSeq(x.r.URL.RawQuery, "&") {
		if key, _, _ := strings.Cut(part, "="); !isNamed(key, auth.KeyQuery) {
			kept = append(kept, part)
		}
	}
	if rest := strings.Join(kept, "&"); rest != x.r.URL.RawQuery {
		u := *x.r.URL // of the client's request, which others may look at
		u.RawQuery, u.ForceQuery = rest, false
		r := *x.r
		r.URL = &u
		if x.came == nil {
			x.came = x.r
		}
		x.r = &r
	}
}

// identify tells an upstream who asks. What a client said in headers of these names is gone by now.
func (x *exchange) identify(auth *table.Auth) {
	if auth != nil && auth.Anonymous {
		return
	}
	said := []string{x.v.Customer, x.v.Subscription, x.v.Plan, strings.Clone(x.v.KeyID)} // the header stays for as long as an answer lasts
	for i := range said {
		x.header[relay.Identity[i]] = said[i : i+1 : i+1]
	}
	if auth == nil || !auth.Signed || x.p.cfg.Signer == nil {
		return
	}
	token, err := x.p.cfg.Signer.Token(attest.Caller{Customer: x.v.Customer, Subscription: x.v.Subscription, Plan: x.v.Plan, Key: x.v.KeyID, API: x.v.API.Name}, x.began)
	if err != nil { // an upstream that asks for it refuses: better than to believe what nobody signed
		x.p.cfg.Logger.Error("identity not signed", "request", x.name(), "error", err)
		return
	}
	x.header[relay.SignedIdentity] = token
}
