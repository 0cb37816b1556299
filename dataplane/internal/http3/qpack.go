package http3

import (
	"errors"

	"bailiwick/dataplane/internal/head"
)

// The static table (RFC 9204, appendix A), from 0.
var static = [...]struct{ name, value string }{
	{":authority", ""}, {":path", "/"}, {"age", "0"}, {"content-disposition", ""}, {"content-length", "0"}, {"cookie", ""},
	{"date", ""}, {"etag", ""}, {"if-modified-since", ""}, {"if-none-match", ""}, {"last-modified", ""}, {"link", ""},
	{"location", ""}, {"referer", ""}, {"set-cookie", ""}, {":method", "CONNECT"}, {":method", "DELETE"}, {":method", "GET"},
	{":method", "HEAD"}, {":method", "OPTIONS"}, {":method", "POST"}, {":method", "PUT"}, {":scheme", "http"},
	{":scheme", "https"}, {":status", "103"}, {":status", "200"}, {":status", "304"}, {":status", "404"}, {":status", "503"},
	{"accept", "*/*"}, {"accept", "application/dns-message"}, {"accept-encoding", "gzip, deflate, br"},
	{"accept-ranges", "bytes"}, {"access-control-allow-headers", "cache-control"},
	{"access-control-allow-headers", "content-type"}, {"access-control-allow-origin", "*"}, {"cache-control", "max-age=0"},
	{"cache-control", "max-age=2592000"}, {"cache-control", "max-age=604800"}, {"cache-control", "no-cache"},
	{"cache-control", "no-store"}, {"cache-control", "public, max-age=31536000"}, {"content-encoding", "br"},
	{"content-encoding", "gzip"}, {"content-type", "application/dns-message"}, {"content-type", "application/javascript"},
	{"content-type", "application/json"}, {"content-type", "application/x-www-form-urlencoded"}, {"content-type", "image/gif"},
	{"content-type", "image/jpeg"}, {"content-type", "image/png"}, {"content-type", "text/css"},
	{"content-type", "text/html; charset=utf-8"}, {"content-type", "text/plain"}, {"content-type", "text/plain;charset=utf-8"},
	{"range", "bytes=0-"}, {"strict-transport-security", "max-age=31536000"},
	{"strict-transport-security", "max-age=31536000; includesubdomains"},
	{"strict-transport-security", "max-age=31536000; includesubdomains; preload"}, {"vary", "accept-encoding"},
	{"vary", "origin"}, {"x-content-type-options", "nosniff"}, {"x-xss-protection", "1; mode=block"}, {":status", "100"},
	{":status", "204"}, {":status", "206"}, {":status", "302"}, {":status", "400"}, {":status", "403"}, {":status", "421"},
	{":status", "425"}, {":status", "500"}, {"accept-language", ""}, {"access-control-allow-credentials", "FALSE"},
	{"access-control-allow-credentials", "TRUE"}, {"access-control-allow-headers", "*"}, {"access-control-allow-methods", "get"},
	{"access-control-allow-methods", "get, post, options"}, {"access-control-allow-methods", "options"},
	{"access-control-expose-headers", "content-length"}, {"access-control-request-headers", "content-type"},
	{"access-control-request-method", "get"}, {"access-control-request-method", "post"}, {"alt-svc", "clear"},
	{"authorization", ""}, {"content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"},
	{"early-data", "1"}, {"expect-ct", ""}, {"forwarded", ""}, {"if-range", ""}, {"origin", ""}, {"purpose", "prefetch"},
	{"server", ""}, {"timing-allow-origin", "*"}, {"upgrade-insecure-requests", "1"}, {"user-agent", ""}, {"x-forwarded-for", ""},
	{"x-frame-options", "deny"}, {"x-frame-options", "sameorigin"},
}

var errCompression = errors.New("a field section cannot be decompressed")

// decode reads a whole field section. There is no dynamic table on this side: whatever refers to one is an error.
func decode(b []byte, h *head.Block) error {
	needs, b, ok := head.Integer(b, 8)
	if !ok || needs != 0 {
		return errCompression
	}
	if len(b) == 0 || b[0]&0x80 != 0 { // a base below zero
		return errCompression
	}
	if _, b, ok = head.Integer(b, 7); !ok {
		return errCompression
	}
	for len(b) > 0 {
		kept := len(h.Text)
		var name, value string
		switch c := b[0]; {
		case c&0xc0 == 0xc0: // a field of the static table
			var n int
			if n, b, ok = head.Integer(b, 6); !ok || n >= len(static) {
				return errCompression
			}
			name, value = static[n].name, static[n].value
		case c&0xd0 == 0x50: // a name of it; whether the field may be kept in a table is not asked: there is none
			var n int
			if n, b, ok = head.Integer(b, 4); !ok || n >= len(static) {
				return errCompression
			}
			name = static[n].name
			if value, b, ok = h.Literal(b, 7); !ok {
				return errCompression
			}
		case c&0xe0 == 0x20: // none of a table
			if name, b, ok = h.Literal(b, 3); !ok {
				return errCompression
			}
			if value, b, ok = h.Literal(b, 7); !ok {
				return errCompression
			}
		default:
			return errCompression
		}
		if h.Add(name, value); h.TooBig {
			h.Text = h.Text[:kept] // passed over
		}
	}
	return nil
}

var indexes = head.NewIndex(func() (names []string) {
	for _, p := range static {
		names = append(names, p.name)
	}
	return names
}())

// AppendStatus begins the field section of an answer.
func AppendStatus(b []byte, status int) []byte {
	b = append(b, 0, 0) // it rests on no dynamic table
	switch status {
	case 103:
		return append(b, 0xc0|24)
	case 200:
		return append(b, 0xc0|25)
	case 304:
		return append(b, 0xc0|26)
	case 404:
		return append(b, 0xc0|27)
	case 503:
		return append(b, 0xc0|28)
	case 100:
		return append(b, 0xff, 0)
	case 204:
		return append(b, 0xff, 1)
	case 206:
		return append(b, 0xff, 2)
	case 400:
		return append(b, 0xff, 4)
	case 403:
		return append(b, 0xff, 5)
	case 500:
		return append(b, 0xff, 8)
	}
	return append(b, 0x5f, 24-15, 3, '0'+byte(status/100%10), '0'+byte(status/10%10), '0'+byte(status%10))
}

// AppendTrailer begins the field section of a trailer.
func AppendTrailer(b []byte) []byte { return append(b, 0, 0) }

// AppendName begins a field: an AppendLength, and so many bytes, must follow.
func AppendName(b []byte, name string) []byte {
	if at := indexes.Of(name); at >= 0 {
		return head.AppendInteger(b, 0x50, 4, at)
	}
	return head.AppendLower(head.AppendInteger(b, 0x20, 3, len(name)), name)
}

// AppendLength says how long the value is that follows.
func AppendLength(b []byte, n int) []byte { return head.AppendInteger(b, 0, 7, n) }

// AppendField adds a whole field. The name is written in lower case.
func AppendField(b []byte, name, value string) []byte {
	return append(AppendLength(AppendName(b, name), len(value)), value...)
}
