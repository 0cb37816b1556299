package proxy

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http1"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/relay"
)

// canonicalHost is the host a request is for, in the one form the table knows: lower case, no port, no
// trailing dot. "" is no host.
func canonicalHost(host string) string {
	if host == "" || len(host) > 255+6 {
		return ""
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if !isPort(host[i+1:]) {
			return ""
		}
		host = host[:i] // which has no other colon, and no brackets, or is refused below
	}
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		c := host[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return strings.ToLower(plainHost(host))
		}
	}
	return host
}

// isPort says whether a host may have that port, which is then looked at no further: what forwards to this edge may listen at any. None
// behind the colon is none said (RFC 3986, 3.2.3). A number that is no port some would cut to one.
func isPort(s string) bool {
	n := 0
	for i := range len(s) {
		c := s[i] - '0'
		if n = n*10 + int(c); c > 9 || n > 65535 {
			return false
		}
	}
	return s == "" || n > 0
}

// plainHost refuses what is no host name even in capitals.
func plainHost(host string) string {
	for i := range len(host) {
		c := host[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return ""
		}
	}
	return host
}

// expects says whether the values of Expect are more than one 100-continue.
func expects(values []string) bool {
	return len(values) > 1 || len(values) == 1 && !strings.EqualFold(values[0], "100-continue")
}

// check refuses what two parsers could read as two different requests. It decides on the request line and
// headers alone.
func check(t *policy.Table, a *asked) gate.Problem {
	switch a.Method {
	case http.MethodGet, http.MethodPost:
	case http.MethodConnect, http.MethodTrace:
		return gate.NewProblem(405, gate.ReasonMethod, "This edge serves neither CONNECT nor TRACE.")
	default: // to some servers get is GET, and delete what only the route of DELETE may let through
		if strings.ToUpper(a.Method) != a.Method {
			return gate.NewProblem(405, gate.ReasonMethod, "Write the method in capital letters.")
		}
	}
	if a.Host == "" {
		return gate.NewProblem(400, gate.ReasonBadRequest, "The request names no valid host.")
	}
	if a.expects {
		return gate.NewProblem(417, gate.ReasonExpectation, "Send the request with no Expect but 100-continue.")
	}
	if a.sni != "" {
		// One connection may carry requests for several hosts of one API; for another's, TLS was set up
		// under other rules.
		if sni := canonicalHost(a.sni); sni != a.Host && (t.API(sni) == nil || t.API(sni) != t.API(a.Host)) {
			return gate.NewProblem(421, gate.ReasonSNI, "Open a new connection for this host.")
		}
	}
	if a.more || ambiguous(a.Path, a.raw) {
		return gate.NewProblem(400, gate.ReasonPathAmbiguous, "Send the path without empty or dot segments, encoded slashes, backslashes or control bytes, and encoded once.")
	}
	if strays(t, a) {
		return gate.NewProblem(400, gate.ReasonPathAmbiguous, "Send the path without what it says behind a ';', an encoded '?' or an encoded '#': without that it is another route's.")
	}
	if a.socket.opens(t, a) {
		return a.socket.problem()
	}
	if up := a.upgrade; len(up) > 0 {
		for _, u := range up {
			for p := range strings.SplitSeq(u, ",") {
				// An offer of h2c is declined by silence, as HTTP says; a client that wants a WebSocket should be told.
				if p = strings.TrimSpace(p); p != "" && !strings.EqualFold(p, "h2c") && !strings.HasPrefix(strings.ToLower(p), "tls/") {
					return gate.NewProblem(501, gate.ReasonUpgrade, "This route switches to no other protocol; WebSockets are opened over HTTP/1.1, at routes that have them.")
				}
			}
		}
	}
	return gate.Problem{}
}

// strays says whether a path would be another route's if it ended at a question mark or a number sign, which are encoded in it, as
// for servers that decode before they take the query off; or if segments ended at a ';' and empty ones were passed over, as they are
// for many a server; or both. Such a server serves what that other route's scope, limits or price are for.
func strays(t *policy.Table, a *asked) bool {
	if strings.IndexByte(a.Path, ';') < 0 && strings.IndexByte(a.Path, '?') < 0 && strings.IndexByte(a.Path, '#') < 0 {
		return false
	}
	api := t.API(a.Host)
	if api == nil {
		return false
	}
	route, match := api.Route(a.Method, a.Path)
	for _, end := range [...]string{"", "?", "#"} {
		p := a.Path
		if end != "" {
			before, _, ends := strings.Cut(p, end)
			if !ends {
				continue
			}
			p = before
		}
		for _, p := range [...]string{p, bare(p)} {
			if other, found := api.Route(a.Method, p); route != other || match != found {
				return true
			}
		}
	}
	return false
}

// bare is a path without what its segments say behind a ';', and without empty ones.
func bare(p string) string {
	var b strings.Builder
	for seg := range strings.SplitSeq(p, "/") {
		if seg, _, _ = strings.Cut(seg, ";"); seg != "" {
			b.WriteByte('/')
			b.WriteString(seg)
		}
	}
	return b.String()
}

// ambiguous says whether a path could be another path to somebody behind this edge. raw is its spelling, where that differs
// from the usual encoding.
func ambiguous(p, raw string) bool {
	if p == "" || p[0] != '/' {
		return true
	}
	start := 1 // of the current segment
	for i := 1; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			if p[i] < 0x20 || p[i] == 0x7f || p[i] == '\\' || p[i] == '%' && encoded(p[i:]) || p[i] >= 0xc0 && overlong(p[i:]) {
				return true
			}
			continue
		}
		switch seg := p[start:i]; {
		case seg != "" && seg[0] == '.' && dots(seg):
			return true
		case seg == "" && i < len(p): // an empty segment inside; a trailing slash is fine
			return true
		}
		start = i + 1
	}
	for {
		i := strings.IndexByte(raw, '%')
		if i < 0 || i+2 >= len(raw) {
			return false
		}
		switch strings.ToLower(raw[i+1 : i+3]) {
		case "2f", "5c", "2e", "00":
			return true
		}
		raw = raw[i+3:]
	}
}

// dots says whether a segment that begins with a dot is one or two of them to somebody: to whoever takes off what is behind a ';', and to
// whoever decodes before he takes the query off, what is behind a question mark or a number sign.
func dots(seg string) bool {
	rest := strings.TrimPrefix(seg[1:], ".")
	return rest == "" || strings.IndexByte(";?#", rest[0]) >= 0
}

// encoded says whether s, of a decoded path, begins with an encoding: somebody may decode it once more. A percent sign alone is one.
func encoded(s string) bool {
	return len(s) > 2 && isHex(s[1]) && isHex(s[2])
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

// overlong says whether s begins with a character in more bytes than UTF-8 has for it: to lenient decoders %c0%af is a slash.
func overlong(s string) bool {
	switch {
	case s[0] == 0xc0 || s[0] == 0xc1:
		return true
	case len(s) < 2:
		return false
	}
	switch next := s[1]; s[0] {
	case 0xe0:
		return next&0xe0 == 0x80
	case 0xf0:
		return next&0xf0 == 0x80
	case 0xf8: // of five bytes and six, which UTF-8 had once
		return next&0xf8 == 0x80
	case 0xfc:
		return next&0xfc == 0x80
	}
	return false
}

// hop are the headers that belong to one connection (RFC 9110 §7.6.1) and what nobody behind this edge may
// believe a client about.
var hop = map[string]bool{
	"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Http2-Settings": true, "Proxy-Authenticate": true,
	"Proxy-Authorization": true, "Expect": true, "Content-Length": true, "Host": true,
}

var claims = map[string]bool{
	"X-Api-Key": true, "Forwarded": true, "X-Forwarded-For": true, "X-Forwarded-Proto": true, "X-Forwarded-Host": true,
	"X-Forwarded-Port": true, "X-Forwarded-Prefix": true, "X-Forwarded-Server": true, "X-Real-Ip": true, "X-Original-Url": true, "X-Rewrite-Url": true,
	"X-Http-Method-Override": true, "X-Http-Method": true, "X-Method-Override": true, // the method is what decides, counts and may be tried again
	"X-Request-Id": true, // introduce writes it anew
	// Words of proxies and servers before somebody, which frameworks take for theirs.
	"X-Host": true, "X-Http-Host-Override": true, "X-Scheme": true, "X-Url-Scheme": true, "Front-End-Https": true,
	"Client-Ip": true, "X-Client-Ip": true, "True-Client-Ip": true, "Cf-Connecting-Ip": true, "Fastly-Client-Ip": true, "X-Cluster-Client-Ip": true,
	"Remote-Addr": true, "X-Remote-Addr": true, "Remote-User": true, "X-Remote-User": true, "X-Client-Cert": true, "Client-Cert": true, "Client-Cert-Chain": true, "X-Forwarded": true,
	"Proxy": true, // where names are handed on as CGI does, it is HTTP_PROXY, which programs send their own requests by
}

// claiming are beginnings of such names.
var claiming = [...]string{"X-Forwarded-", "X-Original-", "X-Ssl-Client-", "Ssl-Client-"}

// claimant says of a name, however its letters are written, that it begins as a claim does.
func claimant(name string) bool {
	if name == "" || name[0]|0x20 != 'x' && name[0]|0x20 != 's' {
		return false
	}
	for _, c := range claiming {
		if len(name) >= len(c) && strings.EqualFold(name[:len(c)], c) {
			return true
		}
	}
	return false
}

// telling are names, or with a dash at their end beginnings of names, of fields that frame, route, condition, authenticate or
// describe a request, to an edge or to whoever serves it, beside those that some class is about.
var telling = []string{"Content-", "If-", "Cookie", "Set-Cookie", "Cache-Control", "Max-Forwards", "Pragma", "Range", "Www-Authenticate", "Accept", "Accept-", "Origin", "Access-Control-",
	"Sec-", "X-Forwarded", "X-Forwarded-", "User-Agent", "From", "Referer", "Prefer", "Priority", "Traceparent", "Tracestate", "Baggage", "Grpc-", "X-Grpc-", "X-User-Agent", "Connect-"}

// tells says so of a field, by its canonical name.
func tells(name string) bool {
	return classOf(name) != passes || slices.ContainsFunc(telling, func(t string) bool {
		return name == t || t[len(t)-1] == '-' && strings.HasPrefix(name, t)
	})
}

// dashed is a name as many a server reads it. It costs memory only where it is an alias.
func dashed(name string) string {
	if !http1.Alias(name) {
		return name
	}
	return textproto.CanonicalMIMEHeaderKey(http1.Dashed(name))
}

// alone takes out of h whatever many a server would read as the field of that name, and is another.
func alone(h http.Header, name string) {
	for other := range h {
		if http1.Alias(other) && other != name && dashed(other) == dashed(name) {
			delete(h, other)
		}
	}
}

// sever takes out of a request what Connection says belongs to the connection, before anything is read of it: what is decided on,
// held against documents and kept is what goes on. The connection's own fields stay: they are read here, and go no further.
func sever(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); !hop[name] {
				delete(h, name)
			}
		}
	}
}

// forwardable makes the headers to send on: hop-by-hop ones, internal ones and forged claims are gone, and so is what tells
// anything when its name is read as many a server does. The values are shared, not copied.
func forwardable(in http.Header) http.Header {
	out := make(http.Header, len(in)+4)
	for name, values := range in {
		if hop[name] || claims[name] || claimant(name) || strings.HasPrefix(name, relay.Prefix) || name == "Authorization" && len(values) != 1 {
			continue
		}
		if http1.Alias(name) && tells(dashed(name)) {
			continue
		}
		out[name] = values
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // else the library would invent one
	}
	return out
}

// answerable copies what of an upstream's headers the client may see.
func answerable(dst, src http.Header) {
	for name, values := range src {
		switch {
		case hop[name] && name != "Content-Length", name == "Alt-Svc", strings.HasPrefix(name, relay.Prefix):
			continue // an upstream's Alt-Svc would lead clients past the edge
		}
		dst[name] = values
	}
	for _, v := range src["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.TrimString(name); name != "" && !strings.EqualFold(name, "Content-Length") && !strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(name), relay.Prefix) {
				dst.Del(name)
			}
		}
	}
}

// idempotent methods may be sent again (RFC 9110 §9.2.2); TRACE never comes this far.
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}
