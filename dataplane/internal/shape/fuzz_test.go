package shape_test

import (
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/shape"
	"bailiwick/shared/table"
)

// A rewritten path is what was put in front and what is left of the asked one, and its spelling is one of that path.
func FuzzPath(f *testing.F) {
	f.Add("/v1/orders/1", "/v1", "/api")
	f.Add("/v%31/a%20b", "/v1", "")
	f.Add("/v1", "/v1", "")
	f.Add("/v10/x", "/v1", "/y")
	f.Add("/v1/a%2Cb/", "/v1/a,b", "/x y")
	f.Fuzz(func(t *testing.T, asked, strip, put string) {
		u, err := url.ParseRequestURI(asked)
		// As of the model: segments, none of them empty. And of the proxy: no path that is ambiguous.
		whole := func(p string) bool {
			return p == "" || p[0] == '/' && !strings.HasSuffix(p, "/") && !strings.Contains(p, "//") && !strings.ContainsAny(p, "\\%?#") && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
		}
		if err != nil || !whole(strip) || !whole(put) || !strings.HasPrefix(u.Path, "/") || strings.Contains(u.Path, "//") || strings.Contains(strings.ToLower(u.RawPath), "%2f") {
			return
		}
		path, raw := shape.Path(&table.Rewrite{Strip: strip, Put: put}, u.Path, u.RawPath)
		rest, ok := strings.CutPrefix(u.Path, strip)
		if !ok || rest != "" && rest[0] != '/' { // it does not begin with strip, and put stands before it all the same
			rest = u.Path
		}
		want := put + rest
		if want == "" {
			want = "/"
		}
		if path != want {
			t.Fatalf("%q without %q behind %q is %q, want %q", asked, strip, put, path, want)
		}
		if raw != "" {
			if back, err := url.PathUnescape(raw); err != nil || back != path {
				t.Fatalf("%q: %q is spelt %q, which is %q, %v", asked, path, raw, back, err)
			}
		}
		if out := (&url.URL{Path: path, RawPath: raw}).EscapedPath(); strings.ContainsAny(out, " \r\n?#") || out[0] != '/' {
			t.Fatalf("%q goes on as %q", asked, out)
		}
	})
}

// An origin is let in by a rule with an asterisk only if it is a host below the rule's, to whoever reads it as a URL.
func FuzzShare(f *testing.F) {
	for _, s := range []string{"https://a.shop.test", "https://shop.test", "https://evil.test#.shop.test", "https://evil.test/.shop.test", "https://a..shop.test", "http://a.shop.test", "https://x@a.shop.test", "null", "https://a.shop.test:444", "https://A.shop.test"} {
		f.Add(s)
	}
	c := &table.CORS{Origins: []string{"https://*.shop.test", "https://one.test"}, Credentials: true}
	f.Fuzz(func(t *testing.T, origin string) {
		h := http.Header{"Access-Control-Allow-Origin": {"*"}, "Vary": {"Accept"}}
		shape.Share(c, h, []string{origin})
		said := h["Access-Control-Allow-Origin"]
		if !strings.Contains(strings.Join(h["Vary"], ","), "Origin") {
			t.Fatalf("Vary is %q", h["Vary"])
		}
		if len(said) == 0 {
			return
		}
		u, err := url.Parse(origin)
		if said[0] != origin || err != nil || u.Scheme != "https" || u.Port() != "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Host != "one.test" && !strings.HasSuffix(u.Host, ".shop.test") {
			t.Fatalf("%q may read the answer: %q", origin, said)
		}
	})
}

// dash is a byte of a name as servers read it that have fields as variables.
func dash(c rune) rune {
	if strings.ContainsRune("!#$%&'*+.^_`|~", c) {
		return '-'
	}
	return c
}

// What a route removes or sets, no spelling of a client's gets past.
func FuzzHeader(f *testing.F) {
	f.Add("X_Tenant", "evil")
	f.Add("x-tenant", "evil")
	f.Add("X-Secret_", "a")
	f.Add("X_sEcret", "a")
	f.Add("X.Tenant", "evil")
	f.Add("x~secret", "a")
	f.Fuzz(func(t *testing.T, name, value string) {
		h := http.Header{textproto.CanonicalMIMEHeaderKey(name): {value}}
		shape.Header(&table.Fields{Remove: []string{"X-Secret"}, Set: []table.Field{{Name: "X-Tenant", Value: "ours"}}, Add: []table.Field{{Name: "X-More", Value: "m"}}}, h)
		for n, v := range h {
			switch alias := textproto.CanonicalMIMEHeaderKey(strings.Map(dash, n)); {
			case alias == "X-Secret", alias == "X-Tenant" && (n != "X-Tenant" || len(v) != 1 || v[0] != "ours"):
				t.Fatalf("%q got past as %q: %q", name, n, v)
			}
		}
		if got := h["X-More"]; len(got) == 0 || got[len(got)-1] != "m" {
			t.Fatalf("X-More is %q", got)
		}
	})
}
