package proxy_test

import (
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/relay"
)

// A host has one form: who writes it in another way means the same, and what is none is none in capitals too.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"a.test", "A.Test:443", "a.test.", "a.test:", "[::1]:80", "a_b.test", "a.test:80:90", "a%41", "xn--a", "a.test:٣", "a.test:0", "a.test:65535", "a.test:65536", "a.test:99999999999", "a.test:00443", "[a.test]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := proxy.CanonicalHost(s)
		if h == "" {
			return
		}
		if again := proxy.CanonicalHost(h); again != h && !strings.HasSuffix(h, ".") {
			t.Fatalf("%q is %q, which is %q", s, h, again)
		}
		if strings.Trim(h, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
			t.Fatalf("%q is %q", s, h)
		}
		if upper := proxy.CanonicalHost(strings.ToUpper(s)); upper != h {
			t.Fatalf("%q is %q, in capitals %q", s, h, upper)
		}
		if _, port, ok := strings.Cut(s, ":"); ok && port != "" {
			if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
				t.Fatalf("%q has a port that is none", s)
			}
		}
		u, err := url.Parse("http://" + s + "/")
		if err != nil || !strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), h) {
			t.Fatalf("%q is %q here, and %v, %v to net/url", s, h, u, err)
		}
	})
}

// A path that is taken is one path to whoever reads it: decoded once more, cleaned, with backslashes or with parameters cut off.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v1/x", "/v1/%2e%2e/admin", "/v1/..;/admin", "/v1//x", "/v1/x%2fy", "/%5c..", "/a/.%2e/b", "/a;x=1/b", "/a/%zz", "/ü/%C3%BC", "/.", "/a/./", "/%252e", "/100%25", "/%25zz%2541", "/a%3fb", "/a/..%3Fb", "/.%23", "/a%23b;c", "/%253f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.ParseRequestURI(s)
		if err != nil || proxy.Ambiguous(u.Path, u.RawPath) {
			return
		}
		same := func(what, p string) {
			want := strings.TrimSuffix(u.Path, "/")
			if got := strings.TrimSuffix(path.Clean(p), "/"); got != want {
				t.Fatalf("%q: %s it is %q, which is %q and not %q", s, what, p, got, want)
			}
		}
		same("as it is", u.Path)
		if strings.ContainsRune(u.Path, '\\') {
			t.Fatalf("%q holds a backslash", s)
		}
		if twice, err := url.PathUnescape(u.Path); err == nil && twice != u.Path {
			t.Fatalf("%q decodes twice to %q", s, twice)
		}
		if v, err := url.ParseRequestURI(u.EscapedPath()); err != nil || v.Path != u.Path {
			t.Fatalf("%q is written as %q, which is read as %v, %v", s, u.EscapedPath(), v, err)
		}
		for segment := range strings.SplitSeq(u.Path, "/") {
			for _, end := range []string{";", "?", "#"} { // to who takes off what is behind it
				if bare, _, _ := strings.Cut(segment, end); bare == "." || bare == ".." {
					t.Fatalf("%q holds the segment %q", s, segment)
				}
			}
		}
	})
}

// What belongs to a connection, what is the edge's word and what nobody may claim goes to no upstream, however it is spelt, and
// whatever a client lists in Connection.
func FuzzForwardable(f *testing.F) {
	f.Add("X-Api-Key", "k", "close")
	f.Add("x_forwarded_for", "1.2.3.4", "")
	f.Add("Bailiwick_customer", "acme", "Bailiwick-Customer, X-Request-Id")
	f.Add("x-FORWARDED-ssl", "on", "X-Forwarded-Ssl")
	f.Add("X.Forwarded~Ssl", "on", "X.Forwarded~Ssl")
	f.Add("Ssl-Client-Cert", "x", "")
	f.Add("X-Mine", "v", "x-mine , ,")
	f.Add("TRANSFER_ENCODING", "chunked", "upgrade")
	f.Add("X.Api.Key", "k", "")
	f.Add("bailiwick~customer", "acme", "")
	f.Add("X-Forwarded-Ssl", "on", "x-forwarded.ssl")
	f.Add("X`Original|Uri", "/admin", "")
	f.Add("ssl.client-Cert", "c", "")
	f.Add("Proxy", "http://evil.test", "")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, name, value, connection string) {
		if name == "" { // no reader of any protocol takes a field without a name
			return
		}
		in := http.Header{textproto.CanonicalMIMEHeaderKey(name): {value}, "Connection": {connection}}
		out := proxy.Forwardable(in)
		for n := range out {
			alias := textproto.CanonicalMIMEHeaderKey(strings.Map(func(c rune) rune {
				if strings.ContainsRune("!#$%&'*+.^_`|~", c) {
					return '-'
				}
				return c
			}, n))
			for _, begins := range []string{"X-Forwarded-", "X-Original-", "Ssl-Client-", "X-Ssl-Client-"} {
				if strings.HasPrefix(alias, begins) {
					t.Fatalf("%q goes on as %q", name, n)
				}
			}
			for _, never := range append(proxy.Names(), "Connection") {
				if alias == never {
					t.Fatalf("%q goes on as %q", name, n)
				}
			}
			if strings.HasPrefix(alias, relay.Prefix) {
				t.Fatalf("%q goes on as %q", name, n)
			}
			for listed := range strings.SplitSeq(connection, ",") {
				if n != "User-Agent" && textproto.CanonicalMIMEHeaderKey(strings.Trim(listed, " \t")) == n {
					t.Fatalf("%q goes on though it belongs to the connection: %q", n, connection)
				}
			}
		}
	})
}

// A key in the query goes to no upstream, by whatever reader of queries it uses, and nothing else is lost.
func FuzzConceal(f *testing.F) {
	for _, q := range []string{"partner_key=s3cret", "a=1&partner_key=s3cret&b=2", "partner%5Fkey=s3cret", "partner_key", "%70artner_key=s3cret&&x", "a=b;partner_key=s3cret", "partner_key=%zz", "&"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, q string) {
		if !proxy.Conceals(q, "partner_key") { // no key in it that would be taken: it goes on as it is
			if left := proxy.Concealed(q, "partner_key"); left != q {
				t.Fatalf("%q became %q", q, left)
			}
			return
		}
		left := proxy.Concealed(q, "partner_key")
		values, _ := url.ParseQuery(left)
		if values.Has("partner_key") {
			t.Fatalf("of %q there is %q left", q, left)
		}
		before, _ := url.ParseQuery(q)
		for name, v := range before {
			if name != "partner_key" && !slices.Equal(values[name], v) {
				t.Fatalf("of %q %q is left: %q is %q", q, left, name, values[name])
			}
		}
	})
}
