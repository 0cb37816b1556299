package http2

import (
	"net/http"
	"net/textproto"
	"strings"

	"bailiwick/dataplane/internal/http1"
)

const pseudos = 4 // of a request

// parse makes the request of a header block; false: it is malformed. ended: no body follows.
func (s *Stream) parse(ended bool) bool {
	r := &s.Request
	fields := s.block.fields
	*r = http1.Request{Minor: 1}
	seen, n := 0, 0
	scheme, path, host := "", "", ""
	for ; n < len(fields) && strings.HasPrefix(fields[n].Name, ":"); n++ {
		f := &fields[n]
		bit := 0
		switch f.Name {
		case ":method":
			bit, r.Method = 1, f.Value
		case ":scheme":
			bit, scheme = 2, f.Value
		case ":path":
			bit, path = 4, f.Value
		case ":authority":
			bit, r.Authority = 8, f.Value
		}
		if bit == 0 || seen&bit != 0 || !isText(f.Value) {
			return false
		}
		seen |= bit
	}
	if r.Method == "" || !isToken(r.Method) {
		return false
	}
	if r.Method == http.MethodConnect {
		if seen != 1|8 {
			return false
		}
		r.Target = r.Authority // the proxy refuses it, in words
	} else if seen&7 != 7 || scheme != "https" && scheme != "http" || !r.Locate(path) {
		return false
	}
	r.Fields = fields[n:]
	hosts, cookies, lengths := 0, 0, 0
	for i := range r.Fields {
		f := &r.Fields[i]
		if !isName(f.Name) || !isText(f.Value) {
			return false
		}
		switch f.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return false
		case "te":
			if f.Value != "trailers" {
				return false
			}
		case "host":
			f.Kind = http1.Host
			hosts++
			host = f.Value
		case "content-length":
			f.Kind = http1.ContentLength
			lengths++
			var ok bool
			if r.Length, ok = http1.Number(f.Value); !ok {
				return false
			}
		case "cookie":
			cookies++
		case "expect":
			f.Kind = http1.Expect
			if strings.EqualFold(f.Value, "100-continue") && !r.Expects {
				r.Continue = true
			} else {
				r.Expects = true
			}
		default:
			if strings.IndexByte(f.Name, '_') >= 0 {
				r.Aliases = true
			}
		}
	}
	switch {
	case hosts > 1, lengths > 1: // two that agree, too: over HTTP/1.1 they are refused
		return false
	case hosts == 1 && seen&8 != 0:
		if !strings.EqualFold(host, r.Authority) {
			return false
		}
	case hosts == 1:
		r.Authority = host
	}
	s.declared = -1
	if lengths > 0 {
		s.declared = r.Length
	} else if !ended {
		r.Length = http1.Chunked
	}
	if ended && s.declared > 0 {
		return false
	}
	if cookies > 1 {
		s.cookies()
	}
	return true
}

// cookies makes one field of those that a client may have sent apart (RFC 9113 §8.2.3).
func (s *Stream) cookies() {
	h := &s.block
	at := len(h.text)
	kept := s.Request.Fields[:0]
	first := -1
	for _, f := range s.Request.Fields {
		if f.Name != "cookie" {
			kept = append(kept, f)
			continue
		}
		if first < 0 {
			first = len(kept)
			kept = append(kept, f)
		} else {
			h.text = append(h.text, ';', ' ')
		}
		h.text = append(h.text, f.Value...)
	}
	kept[first].Value = view(h.text[at:])
	s.Request.Fields = kept
}

// trailer is what a block behind a body has; false: it is malformed.
func trailer(h *block) (http.Header, bool) {
	out := make(http.Header, len(h.fields))
	for i := range h.fields {
		f := &h.fields[i]
		if !isName(f.Name) || !isText(f.Value) { // no name begins with a colon
			return nil, false
		}
		switch f.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "te", "content-length", "host", "authorization", "trailer", "expect":
			return nil, false
		}
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(f.Name)) // which gives back its own bytes where nothing is to be changed
		out[name] = append(out[name], strings.Clone(f.Value))
	}
	return out, true
}

func isName(s string) bool {
	for i := range len(s) {
		if !named[s[i]] {
			return false
		}
	}
	return s != ""
}

func isText(s string) bool {
	for i := range len(s) {
		if !texts[s[i]] {
			return false
		}
	}
	return s == "" || s[0] > ' ' && s[len(s)-1] > ' '
}

func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !named[lower[c]] {
			return false
		}
	}
	return true
}
