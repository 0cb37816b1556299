package model

import (
	"fmt"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"bailiwick/shared/table"
	"bailiwick/shared/table/schema"
)

// Shaping is what is done to requests and answers beside sending them on: of an API, or of one of its routes in its place.
type Shaping struct {
	CORS       *CORS       `json:"cors,omitempty"`
	Rewrite    *Rewrite    `json:"rewrite,omitempty"`
	Validation *Validation `json:"validation,omitempty"`
}

// CORS says which pages' scripts may use an API.
type CORS struct {
	Origins     []string      `json:"origins"`
	Methods     []string      `json:"methods,omitempty"`
	Headers     []string      `json:"headers,omitempty"`
	Expose      []string      `json:"expose,omitempty"`
	Credentials bool          `json:"credentials,omitempty"`
	MaxAge      time.Duration `json:"max_age,omitempty"`
}

// Rewrite changes requests on their way to upstreams, and their answers.
type Rewrite struct {
	Strip    string `json:"strip,omitempty"`
	Put      string `json:"put,omitempty"`
	Host     string `json:"host,omitempty"`
	Request  Fields `json:"request,omitzero"`
	Response Fields `json:"response,omitzero"`
}

// Fields are changed in this order: remove, set, add.
type Fields struct {
	Remove []string `json:"remove,omitempty"`
	Set    []Field  `json:"set,omitempty"`
	Add    []Field  `json:"add,omitempty"`
}

type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Validation is what requests are held against.
type Validation struct {
	Requests string `json:"requests,omitempty"` // "", openapi, none
	Schema   string `json:"schema,omitempty"`
}

// GraphQL bounds what one request may ask; 0 is the default.
type GraphQL struct {
	MaxDepth      int   `json:"max_depth,omitempty"`
	MaxAliases    int   `json:"max_aliases,omitempty"`
	MaxRootFields int   `json:"max_root_fields,omitempty"`
	MaxCost       int64 `json:"max_cost,omitempty"`
	MaxBatch      int   `json:"max_batch,omitempty"`
	Introspection bool  `json:"introspection,omitempty"`
}

// Bounds and defaults.
const (
	DefaultCORSAge   = 10 * time.Minute
	MaxCORSAge       = 24 * time.Hour
	DefaultDepth     = 12
	MaxDepth         = 200
	DefaultAliases   = 20
	DefaultRoots     = 20
	MaxCounted       = 10_000 // aliases, root fields
	DefaultQueryCost = 1000
	MaxQueryCost     = 1_000_000_000
	MaxBatch         = 100
)

func (s Shaping) validate(what, at string) error {
	if err := s.CORS.validate(what, at+"cors"); err != nil {
		return err
	}
	if err := s.Rewrite.validate(what, at+"rewrite"); err != nil {
		return err
	}
	return s.Validation.validate(what, at+"validation")
}

func (v *Validation) validate(what, at string) error {
	switch {
	case v == nil:
		return nil
	case !slices.Contains([]string{"", "openapi", "none"}, v.Requests):
		return bad(at+".requests", "VALIDATION_INVALID", "%s: requests %q is none of openapi, none", what, v.Requests)
	case v.Requests == "" && v.Schema == "":
		return bad(at, "VALIDATION_INVALID", "%s: validation names nothing that requests are held against: a schema, or requests: openapi", what)
	case v.Requests != "" && v.Schema != "":
		return bad(at+".schema", "VALIDATION_INVALID", "%s: requests are held against a schema or against the openapi document, not against both", what)
	case v.Schema != "":
		if _, err := schema.Compile(v.Schema); err != nil {
			return bad(at+".schema", "SCHEMA_INVALID", "%s: schema: %w", what, err)
		}
	}
	return nil
}

// document compiles the API's document, if any requests are held against it.
func (a API) document() error {
	holds := func(v *Validation) bool { return v != nil && v.Requests == "openapi" }
	if !holds(a.Validation) && !slices.ContainsFunc(a.Routes, func(r Route) bool { return holds(r.Validation) }) {
		return nil
	}
	if a.OpenAPI == "" {
		return bad("spec.openapi", "OPENAPI_MISSING", "API %s: requests are to be held against its openapi document, and there is none", a.Name)
	}
	if _, err := schema.CompileOpenAPI(a.OpenAPI); err != nil {
		return bad("spec.openapi", "OPENAPI_INVALID", "API %s: openapi: %w", a.Name, err)
	}
	return nil
}

func (c *CORS) validate(what, at string) error {
	if c == nil {
		return nil
	}
	if len(c.Origins) == 0 {
		return bad(at+".origins", "ORIGIN_MISSING", "%s: cors names no origin: leave it out where no page's scripts may use the API", what)
	}
	for i, o := range c.Origins {
		if err := origin(o); err != nil {
			return bad(fmt.Sprintf("%s.origins[%d]", at, i), "ORIGIN_INVALID", "%s: %w", what, err)
		}
		if o == "*" && c.Credentials {
			return bad(at+".credentials", "CREDENTIALS_FOR_ALL", "%s: with origin * every page that a customer's browser opens could use the customer's cookies: name the origins, or leave credentials out", what)
		}
	}
	for i, m := range c.Methods {
		if m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || m == "CONNECT" || m == "TRACE" {
			return bad(fmt.Sprintf("%s.methods[%d]", at, i), "METHOD_INVALID", "%s: method %q is none that a script may use", what, m)
		}
	}
	for _, list := range []struct {
		field string
		names []string
	}{{"headers", c.Headers}, {"expose", c.Expose}} {
		for i, h := range list.names {
			if err := fieldName(h); err != nil {
				return bad(fmt.Sprintf("%s.%s[%d]", at, list.field, i), "HEADER_INVALID", "%s: %w", what, err)
			}
		}
	}
	if c.MaxAge < 0 || c.MaxAge > MaxCORSAge {
		return bad(at+".max_age", "MAX_AGE_INVALID", "%s: a max_age of %v is outside 0s (%v) to %v", what, c.MaxAge, DefaultCORSAge, MaxCORSAge)
	}
	return nil
}

// origin takes what a browser sends as Origin, and * in place of the first labels of its host.
func origin(o string) error {
	if o == "*" {
		return nil
	}
	u, err := url.Parse(strings.Replace(o, "://*.", "://", 1))
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(o, "#"):
		return fmt.Errorf("origin %q is no https://host, https://host:port, https://*.host or *", o)
	case strings.Contains(u.Host, "*"):
		return fmt.Errorf("origin %q: * stands for whole names in front of a host alone, as in https://*.example.com", o)
	case strings.HasSuffix(u.Host, ":443") && u.Scheme == "https", strings.HasSuffix(u.Host, ":80") && u.Scheme == "http", strings.HasSuffix(u.Host, ":"):
		return fmt.Errorf("origin %q names the usual port: browsers leave it out, so write it without", o)
	case strings.Contains(o, "://*.") && !strings.Contains(u.Hostname(), "."):
		return fmt.Errorf("origin %q would take every host of a top-level domain", o)
	case u.Hostname() == "localhost", u.Hostname() == "127.0.0.1", u.Hostname() == "::1":
		return nil
	}
	if err := hostName(u.Hostname()); err != nil {
		return fmt.Errorf("origin %q: %w", o, err)
	}
	return nil
}

// fieldName takes a header's name as HTTP does, but for '_' and other bytes that some servers take for '-'.
func fieldName(name string) error {
	if name == "" {
		return fmt.Errorf("a header has no name")
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("header %q holds %q: only letters, digits and '-' are allowed", name, c)
		}
	}
	return nil
}

// untouched are headers that no rewriting reaches: they belong to one connection, say how a message is read, tell who asks, or
// are the edge's own word.
var untouched = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Proxy-Authenticate", "Proxy-Authorization",
	"Expect", "Content-Length", "Content-Encoding", "Content-Range", "Host", "Authorization", "X-Api-Key", "Forwarded", "X-Real-Ip", "X-Original-Url", "X-Rewrite-Url", "X-Request-Id", "Via", "Date", "Age", "Alt-Svc",
	"Cache-Status", "Ratelimit", "Ratelimit-Policy", "Retry-After", "Vary", "Grpc-Status", "Grpc-Message", "Grpc-Timeout", "Sec-Websocket-Key", "Sec-Websocket-Accept", "Sec-Websocket-Extensions", "Sec-Websocket-Protocol", "Sec-Websocket-Version",
	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}

func (r *Rewrite) validate(what, at string) error {
	if r == nil {
		return nil
	}
	for _, p := range []struct{ field, path string }{{"strip", r.Strip}, {"put", r.Put}} {
		if err := pathField(at+".path."+p.field, what, p.path); err != nil {
			return err
		}
		if strings.ContainsAny(p.path, "%\\;") {
			return bad(at+".path."+p.field, "PATH_INVALID", "%s: path %q of a rewriting holds '%%', '\\' or ';', which two servers may read in two ways", what, p.path)
		}
	}
	if r.Host != "" {
		host, port, has := strings.Cut(r.Host, ":")
		if has && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
			return bad(at+".host", "HOST_INVALID", "%s: host %q has a port that is no number", what, r.Host)
		}
		if err := hostName(host); err != nil {
			return bad(at+".host", "HOST_INVALID", "%s: %w", what, err)
		}
	}
	if err := r.Request.validate(what, at+".request"); err != nil {
		return err
	}
	return r.Response.validate(what, at+".response")
}

func (f Fields) validate(what, at string) error {
	check := func(field, name, value string) error {
		if err := fieldName(name); err != nil {
			return bad(field, "HEADER_INVALID", "%s: %w", what, err)
		}
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if slices.Contains(untouched, canonical) || strings.HasPrefix(canonical, "Bailiwick-") || strings.HasPrefix(canonical, "X-Forwarded-") || strings.HasPrefix(canonical, "Access-Control-") {
			return bad(field, "HEADER_UNTOUCHABLE", "%s: header %s is not rewritten: it says how a message is read, who asks, or what the edge itself says (Access-Control-: see cors)", what, canonical)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 && r != '\t' || r >= 0x7f }) || strings.TrimSpace(value) != value {
			return bad(field, "HEADER_INVALID", "%s: the value of header %s holds control or non-ASCII characters, or white space at an end", what, canonical)
		}
		return nil
	}
	for i, name := range f.Remove {
		if err := check(fmt.Sprintf("%s.remove[%d]", at, i), name, ""); err != nil {
			return err
		}
	}
	for i, v := range f.Set {
		if err := check(fmt.Sprintf("%s.set[%d]", at, i), v.Name, v.Value); err != nil {
			return err
		}
		if slices.ContainsFunc(f.Set[:i], func(o Field) bool { return strings.EqualFold(o.Name, v.Name) }) {
			return bad(fmt.Sprintf("%s.set[%d]", at, i), "DUPLICATE", "%s: header %s is set twice", what, v.Name)
		}
	}
	for i, v := range f.Add {
		if err := check(fmt.Sprintf("%s.add[%d]", at, i), v.Name, v.Value); err != nil {
			return err
		}
	}
	return nil
}

func (g *GraphQL) validate(what, at string) error {
	if g == nil {
		return nil
	}
	for _, n := range []struct {
		field      string
		value, max int64
	}{{"max_depth", int64(g.MaxDepth), MaxDepth}, {"max_aliases", int64(g.MaxAliases), MaxCounted}, {"max_root_fields", int64(g.MaxRootFields), MaxCounted},
		{"max_cost", g.MaxCost, MaxQueryCost}, {"max_batch", int64(g.MaxBatch), MaxBatch}} {
		if n.value < 0 || n.value > n.max {
			return bad(at+"."+n.field, "GRAPHQL_INVALID", "%s: %s %d is outside 0 to %d", what, n.field, n.value, n.max)
		}
	}
	return nil
}

// Bounds is what edges need of it, defaults filled in.
func (g *GraphQL) Bounds() *table.GraphQL {
	if g == nil {
		return nil
	}
	or := func(n, fallback int) int {
		if n == 0 {
			return fallback
		}
		return n
	}
	return &table.GraphQL{Depth: or(g.MaxDepth, DefaultDepth), Aliases: or(g.MaxAliases, DefaultAliases), RootFields: or(g.MaxRootFields, DefaultRoots),
		Cost: int64(or(int(g.MaxCost), DefaultQueryCost)), Batch: g.MaxBatch, Introspection: g.Introspection}
}

// Shape is what edges need of it.
func (s Shaping) Shape() (cors *table.CORS, rewrite *table.Rewrite, validation *table.Validation) {
	canonical := func(names []string) []string {
		var out []string
		for _, n := range names {
			out = append(out, textproto.CanonicalMIMEHeaderKey(n))
		}
		return out
	}
	if c := s.CORS; c != nil {
		cors = &table.CORS{Origins: c.Origins, Methods: c.Methods, Headers: canonical(c.Headers), Expose: canonical(c.Expose), Credentials: c.Credentials, MaxAge: c.MaxAge}
		if cors.MaxAge == 0 {
			cors.MaxAge = DefaultCORSAge
		}
	}
	if r := s.Rewrite; r != nil {
		fields := func(f Fields) table.Fields {
			out := table.Fields{Remove: canonical(f.Remove)}
			for _, v := range f.Set {
				out.Set = append(out.Set, table.Field{Name: textproto.CanonicalMIMEHeaderKey(v.Name), Value: v.Value})
			}
			for _, v := range f.Add {
				out.Add = append(out.Add, table.Field{Name: textproto.CanonicalMIMEHeaderKey(v.Name), Value: v.Value})
			}
			return out
		}
		rewrite = &table.Rewrite{Strip: strings.TrimRight(r.Strip, "/"), Put: strings.TrimRight(r.Put, "/"), Host: r.Host, Request: fields(r.Request), Response: fields(r.Response)}
	}
	if v := s.Validation; v != nil {
		validation = &table.Validation{OpenAPI: v.Requests == "openapi", Schema: v.Schema}
	}
	return cors, rewrite, validation
}
