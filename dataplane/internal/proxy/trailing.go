package proxy

import (
	"encoding/base64"
	"net/http"
	"net/textproto"
	"strings"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/relay"
)

// What a client says behind a body of no declared length goes on behind it: in chunks over HTTP/1.1, and over HTTP/2, whether it
// was announced or not (servers that, like Go's, drop what was not hear nothing of it). Behind a declared length HTTP/1.1 has no
// place for it. A trailer may be read as part of the head by whoever gets it, at a time when all has been decided: so of what
// frames, routes, conditions, authenticates or describes the request nothing is taken from there (RFC 9110, 6.5.1), nor anything
// that the head has said or the edge has taken out of it.

const trailersMost = 64 // fields

// mayTrail says whether a field of that canonical name may stand behind a body.
func (x *exchange) mayTrail(name string) bool {
	said := name
	name = dashed(name)
	if !head.IsToken(name) || tells(name) { // what is announced may be anything, and net/http sends nothing that has a name which is none
		return false
	}
	for _, n := range [...]string{name, said} {
		if _, before := x.header[n]; before {
			return false
		}
	}
	if a := x.v.API.Auth; a != nil && strings.EqualFold(a.KeyHeader, name) {
		return false
	}
	if r := x.v.Route; r != nil && r.Rewrite != nil {
		for _, gone := range r.Rewrite.Request.Remove {
			if strings.EqualFold(gone, name) || strings.EqualFold(gone, said) {
				return false
			}
		}
	}
	return true
}

// trailing is what may be sent on of a trailer.
func (x *exchange) trailing(said http.Header) http.Header {
	out := http.Header{}
	for name, values := range said {
		if len(out) < trailersMost && len(values) > 0 && x.mayTrail(name) {
			out[name] = values
		}
	}
	return out
}

// behind is the trailer of the request, once its body has been read to its end.
func (x *exchange) behind() http.Header {
	r := x.r
	if x.came != nil {
		r = x.came
	}
	if !x.relayed {
		return x.trailing(r.Trailer)
	}
	packed := r.Trailer[relay.HeaderTrailer]
	if len(packed) != 1 {
		return nil
	}
	text, err := base64.StdEncoding.DecodeString(packed[0])
	if err != nil {
		return nil
	}
	out := http.Header{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			out.Add(name, value)
		}
	}
	return x.trailing(out)
}

// trail makes room for a trailer behind a body that is sent to an upstream, and fills it when the body has ended.
func (x *exchange) trail(s *stream) http.Header {
	if x.body.kept != nil || x.body.length >= 0 {
		return nil
	}
	t := http.Header{}
	for _, names := range x.r.Header["Trailer"] { // announced
		for name := range strings.SplitSeq(names, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); len(t) < trailersMost && name != "" && x.mayTrail(name) {
				t[name] = nil
			}
		}
	}
	for name := range x.r.Trailer { // likewise, by net/http's word
		if x.mayTrail(name) {
			t[name] = nil
		}
	}
	switch x.r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
	default: // an empty body is none there, which net/http finds out by itself: as in home, never where there is to be a trailer
		if len(t) == 0 {
			return nil
		}
	}
	s.ended = func() {
		for name, values := range x.behind() {
			t[name] = values
		}
	}
	return t
}

// trailAbroad does so for a relay. What is announced there is one field that holds all, since the other end would drop what was
// not.
func (x *exchange) trailAbroad(s *stream) http.Header {
	if x.body.kept != nil || x.body.length >= 0 {
		return nil
	}
	t := http.Header{relay.HeaderTrailer: nil}
	s.ended = func() {
		var b strings.Builder
		for name, values := range x.behind() {
			for _, v := range values {
				b.WriteString(name + ":" + clean(v) + "\n")
			}
		}
		if b.Len() > 0 {
			t[relay.HeaderTrailer] = []string{base64.StdEncoding.EncodeToString([]byte(b.String()))}
		}
	}
	return t
}
