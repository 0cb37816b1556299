package head

import (
	"net/http"
	"net/textproto"
	"strings"

	"bailiwick/dataplane/internal/http1"
)

const pseudos = 4 // of a request

// Parse makes the request of a block; false: it is malformed. ended: no body follows. declared is the length that the body
// has; -1: none was said.
func (h *Block) Parse(r *http1.Request, ended bool) (declared int64, ok bool) {
	fields := h.Fields
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
		if bit == 0 || seen&bit != 0 || !IsText(f.Value) {
			return 0, false
		}
		seen |= bit
	}
	if r.Method == "" || !IsToken(r.Method) {
		return 0, false
	}
	if r.Method == http.MethodConnect {
		if seen != 1|8 {
			return 0, false
		}
		r.Target = r.Authority // the proxy refuses it, in words
	} else if seen&7 != 7 || scheme != "https" && scheme != "http" || !r.Locate(path) {
		return 0, false
	}
	r.Fields = fields[n:]
	hosts, cookies, lengths := 0, 0, 0
	for i := range r.Fields {
		f := &r.Fields[i]
		if !IsName(f.Name) || !IsText(f.Value) {
			return 0, false
		}
		switch f.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return 0, false
		case "te":
			if f.Value != "trailers" {
				return 0, false
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
				return 0, false
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
			if http1.Alias(f.Name) {
				r.Aliases = true
			}
		}
	}
	switch {
	case hosts > 1, lengths > 1: // two that agree, too: over HTTP/1.1 they are refused
		return 0, false
	case hosts == 1 && seen&8 != 0:
		if !strings.EqualFold(host, r.Authority) {
			return 0, false
		}
	case hosts == 1:
		r.Authority = host
	}
	declared = -1
	if lengths > 0 {
		declared = r.Length
	} else if !ended {
		r.Length = http1.Chunked
	}
	if ended && declared > 0 {
		return 0, false
	}
	if cookies > 1 {
		h.cookies(r)
	}
	return declared, true
}

// cookies makes one field of those that a client may have sent apart (RFC 9113 §8.2.3).
func (h *Block) cookies(r *http1.Request) {
	at := len(h.Text)
	kept := r.Fields[:0]
	first := -1
	for _, f := range r.Fields {
		if f.Name != "cookie" {
			kept = append(kept, f)
			continue
		}
		if first < 0 {
			first = len(kept)
			kept = append(kept, f)
		} else {
			h.Text = append(h.Text, ';', ' ')
		}
		h.Text = append(h.Text, f.Value...)
	}
	kept[first].Value = view(h.Text[at:])
	r.Fields = kept
}

// Trailer is what a block behind a body has; false: it is malformed.
func (h *Block) Trailer() (http.Header, bool) {
	out := make(http.Header, len(h.Fields))
	for i := range h.Fields {
		f := &h.Fields[i]
		if !IsName(f.Name) || !IsText(f.Value) { // no name begins with a colon
			return nil, false
		}
		if !http1.Trails(f.Name) {
			return nil, false
		}
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(f.Name)) // which gives back its own bytes where nothing is to be changed
		out[name] = append(out[name], strings.Clone(f.Value))
	}
	return out, true
}

// IsName says whether a field may be called so.
func IsName(s string) bool {
	for i := range len(s) {
		if !named[s[i]] {
			return false
		}
	}
	return s != ""
}

// IsText says whether a field may have that value.
func IsText(s string) bool {
	for i := range len(s) {
		if !texts[s[i]] {
			return false
		}
	}
	return s == "" || s[0] > ' ' && s[len(s)-1] > ' '
}

// IsToken is IsName in whatever case.
func IsToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !named[Lower[c]] {
			return false
		}
	}
	return true
}
