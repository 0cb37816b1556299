// Package shape owns what an API has done to its requests and answers beside sending them on: which pages' scripts may use it
// (CORS), and how paths, hosts and header fields are rewritten.
//
// It decides nothing about who may: that is gate's. It never touches what says how a message is read, who asks, or what the
// edge itself says; manifests that would are refused when they are applied (model), and whoever calls Request writes identity
// afterwards. It keeps nothing, so nothing survives a crash, and all of it may be called by any number of goroutines at once.
package shape

import (
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/dataplane/internal/http1"
	"bailiwick/shared/table"
)

// Preflight says whether a request is what a browser asks before a script's request, and for which method.
func Preflight(method string, h http.Header) (asked string, ok bool) {
	if method != http.MethodOptions || len(h["Origin"]) != 1 || len(h["Access-Control-Request-Method"]) != 1 {
		return "", false
	}
	return h["Access-Control-Request-Method"][0], true
}

// simple methods need no word of an API (fetch.spec.whatwg.org, "CORS-safelisted method").
var simple = []string{http.MethodGet, http.MethodHead, http.MethodPost}

// AnswerPreflight writes what a script may do after it; nothing, if its page's origin is none that may.
func AnswerPreflight(c *table.CORS, out, asked http.Header) {
	vary(out, "Origin")
	vary(out, "Access-Control-Request-Method")
	vary(out, "Access-Control-Request-Headers")
	if !allow(c, out, asked["Origin"]) {
		return
	}
	out["Access-Control-Allow-Methods"] = []string{strings.Join(append(slices.Clone(simple), c.Methods...), ", ")}
	if len(c.Headers) > 0 {
		out["Access-Control-Allow-Headers"] = []string{strings.Join(c.Headers, ", ")}
	}
	out["Access-Control-Max-Age"] = []string{strconv.FormatInt(int64(c.MaxAge/time.Second), 10)}
}

// Share says in an answer whether the page of origin may read it. An upstream's own word on that is taken out. out may share
// values with what is kept elsewhere: they are replaced, never changed.
func Share(c *table.CORS, out http.Header, origin []string) {
	for name := range out {
		if strings.HasPrefix(name, "Access-Control-") {
			delete(out, name)
		}
	}
	if !slices.Contains(c.Origins, "*") {
		vary(out, "Origin") // also where there is none: a cache must not give that answer to a page
	}
	if allow(c, out, origin) && len(c.Expose) > 0 {
		out["Access-Control-Expose-Headers"] = []string{strings.Join(c.Expose, ", ")}
	}
}

func allow(c *table.CORS, out http.Header, origin []string) bool {
	if len(origin) != 1 {
		return false
	}
	if slices.Contains(c.Origins, "*") && !c.Credentials {
		out["Access-Control-Allow-Origin"] = []string{"*"}
		return true
	}
	if !slices.ContainsFunc(c.Origins, func(rule string) bool { return matches(rule, origin[0]) }) {
		return false
	}
	out["Access-Control-Allow-Origin"] = origin[:1:1]
	if c.Credentials {
		out["Access-Control-Allow-Credentials"] = []string{"true"}
	}
	return true
}

// Trusts says whether pages of an origin may use what a browser adds of itself to show who asks; c may be nil.
func Trusts(c *table.CORS, origin string) bool {
	return c != nil && c.Credentials && slices.ContainsFunc(c.Origins, func(rule string) bool { return matches(rule, origin) })
}

// matches compares as bytes: browsers send origins in one spelling.
func matches(rule, origin string) bool {
	scheme, host, any := strings.Cut(rule, "://*.")
	if !any {
		return rule == origin
	}
	rest, ok := strings.CutPrefix(origin, scheme+"://")
	below, fits := strings.CutSuffix(rest, "."+host)
	if !ok || !fits || below == "" || below[0] == '.' || strings.Contains(below, "..") {
		return false
	}
	return strings.Trim(below, "abcdefghijklmnopqrstuvwxyz0123456789-._") == "" // nothing that a URL could hide another host behind
}

// vary adds a name to Vary, unless it is there.
func vary(h http.Header, name string) {
	for _, line := range h["Vary"] {
		for v := range strings.SplitSeq(line, ",") {
			if v = strings.TrimSpace(v); v == "*" || strings.EqualFold(v, name) {
				return
			}
		}
	}
	h["Vary"] = append(slices.Clip(h["Vary"]), name)
}

// Header changes fields. Values are replaced, never changed in place. What is removed or set goes in each spelling: many a
// server reads X_Tenant or X.Tenant as X-Tenant, and would take the client's word for the edge's.
func Header(f *table.Fields, h http.Header) {
	for name := range h {
		if !http1.Alias(name) {
			continue
		}
		alias := textproto.CanonicalMIMEHeaderKey(http1.Dashed(name))
		if slices.Contains(f.Remove, alias) || slices.ContainsFunc(f.Set, func(v table.Field) bool { return v.Name == alias }) {
			delete(h, name)
		}
	}
	for _, name := range f.Remove {
		if name == "User-Agent" {
			h[name] = nil // else the library would invent one
			continue
		}
		delete(h, name)
	}
	for _, v := range f.Set {
		h[v.Name] = []string{v.Value}
	}
	for _, v := range f.Add {
		h[v.Name] = append(slices.Clip(h[v.Name]), v.Value)
	}
}

// Path is the path that upstreams are asked for, and its spelling where that is not the usual one. Both come as of url.URL,
// without ambiguous segments, so that a segment of one is a segment of the other.
func Path(r *table.Rewrite, path, raw string) (string, string) {
	if r.Strip == "" && r.Put == "" {
		return path, raw
	}
	rest, ok := strings.CutPrefix(path, r.Strip)
	strip := r.Strip
	if !ok || rest != "" && rest[0] != '/' {
		rest, strip = path, "" // put stands before it all the same: clients must not find what is beside it by leaving strip out
	}
	put := r.Put
	if rest == "" && put == "" {
		rest = "/"
	}
	if raw == "" {
		return put + rest, ""
	}
	for range strings.Count(strip, "/") { // the client may have spelt it in another way
		if i := strings.IndexByte(raw[1:], '/'); i >= 0 {
			raw = raw[1+i:]
		} else {
			raw = ""
			break
		}
	}
	if raw == "" && put == "" {
		raw = "/"
	}
	return put + rest, (&url.URL{Path: put}).EscapedPath() + raw
}
