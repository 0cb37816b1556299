package cache

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Entry is one answer. It never changes.
type Entry struct {
	Status int
	Header http.Header // do not write to it
	Body   []byte      // likewise

	vary       []string    // canonical names
	asked      http.Header // what the request said under them
	sent       time.Time
	received   time.Time
	initialAge time.Duration
	lifetime   time.Duration

	whileRevalidate, ifError time.Duration
	noCache, mustRevalidate  bool
	size                     int

	api   string   // whose purges end it
	under []string // and what of them: its URL and its tags, as digests
}

// Answer is what an upstream answered, for keeping.
type Answer struct {
	Status         int
	Header         http.Header // as the client gets it: without what belongs to a connection
	Sent, Received time.Time   // when the request left, when the headers came
}

// Keeps makes the entry for an answer whose body is still to come; nil: it may not be kept.
func Keeps(a *Asked, request http.Header, ans Answer, r Rules) *Entry {
	d, lifetime, ok := storable(a, ans.Status, ans.Header, r, ans.Received)
	if !ok {
		return nil
	}
	e := &Entry{Status: ans.Status, Header: ans.Header.Clone(), sent: ans.Sent, received: ans.Received, initialAge: initialAge(ans.Header, ans.Sent, ans.Received)}
	delete(e.Header, "Age")
	e.age(d, lifetime, r)
	e.vary = varying(ans.Header)
	e.asked = http.Header{}
	for _, name := range e.vary {
		e.asked[name] = slices.Clone(request[name])
	}
	return e
}

func (e *Entry) age(d directives, lifetime time.Duration, r Rules) {
	e.lifetime, e.noCache = lifetime, d.noCache
	// s-maxage includes proxy-revalidate (5.2.2.10).
	e.mustRevalidate = d.mustRevalidate || d.sMaxAge >= 0
	e.whileRevalidate, e.ifError = r.StaleWhileRevalidate, r.StaleIfError
	if d.whileRevalidate >= 0 {
		e.whileRevalidate = d.whileRevalidate
	}
	if d.ifError >= 0 {
		e.ifError = d.ifError
	}
}

// With is the entry with its body.
func (e *Entry) With(body []byte) *Entry {
	n := *e
	n.Body = body
	n.size = overhead + len(body)
	for _, what := range n.under {
		n.size += len(what) + underCosts
	}
	if len(n.asked) > 0 {
		n.size += variesCosts
	}
	for _, h := range []http.Header{n.Header, n.asked} {
		for name, values := range h {
			n.size += len(name) + fieldCosts
			for _, v := range values {
				n.size += len(v) + valueCosts
			}
		}
	}
	return &n
}

// Renewed is the entry after its upstream said that nothing changed (4.3.4); nil: by the new headers it may not be kept.
func (e *Entry) Renewed(a *Asked, ans Answer, r Rules) *Entry {
	if was, is := e.Header["Etag"], ans.Header["Etag"]; len(was) == 1 && len(is) == 1 && strings.TrimPrefix(was[0], "W/") != strings.TrimPrefix(is[0], "W/") {
		return nil // it is of another answer than this
	}
	n := *e
	n.Header = e.Header.Clone()
	for name, values := range ans.Header {
		switch name {
		case "Content-Length", "Content-Encoding", "Content-Type", "Content-Range", "Age": // of the stored body, or of this message alone
		default:
			n.Header[name] = slices.Clone(values)
		}
	}
	d, lifetime, ok := storable(a, e.Status, n.Header, r, ans.Received)
	if !ok || !slices.Equal(varying(n.Header), e.vary) {
		return nil
	}
	n.sent, n.received, n.initialAge = ans.Sent, ans.Received, initialAge(ans.Header, ans.Sent, ans.Received)
	n.age(d, lifetime, r)
	return n.With(e.Body)
}

// NoCache says whether its upstream wants to be asked each time.
func (e *Entry) NoCache() bool { return e.noCache }

// Validate adds to a request what makes its upstream say whether the entry still holds; false: it could not.
func (e *Entry) Validate(h http.Header) bool {
	tag, changed := e.Header["Etag"], e.Header["Last-Modified"]
	if len(tag) == 1 {
		h["If-None-Match"] = tag
	}
	if len(changed) == 1 {
		h["If-Modified-Since"] = changed
	}
	return len(tag) == 1 || len(changed) == 1
}

// NotModified says whether the client has what the entry holds (RFC 9110, 13.1).
func (e *Entry) NotModified(a *Asked) bool {
	if e.Status != http.StatusOK {
		return false
	}
	if len(a.none) > 0 {
		tag := e.Header["Etag"]
		for _, list := range a.none {
			if strings.Trim(list, " \t") == "*" || len(tag) == 1 && lists(list, opaque(tag[0])) {
				return true
			}
		}
		return false
	}
	changed, ok := date(e.Header["Last-Modified"])
	since, fine := date(a.since)
	return ok && fine && !changed.After(since)
}

// opaque is what of a tag is compared: weakly (RFC 9110, 8.8.3.2).
func opaque(tag string) string { return strings.TrimPrefix(strings.Trim(tag, " \t"), "W/") }

// lists says whether a list of tags has one. A comma may be part of a tag (8.8.3).
func lists(list, tag string) bool {
	for list != "" {
		list = strings.TrimLeft(list, " \t,")
		one := strings.TrimPrefix(list, "W/")
		end := strings.IndexByte(one, ',')
		if strings.HasPrefix(one, `"`) {
			if end = strings.IndexByte(one[1:], '"'); end < 0 {
				return false
			}
			end += 2
		} else if end < 0 { // no tag, as some send them
			end = len(one)
		}
		if one != "" && strings.TrimRight(one[:end], " \t") == tag {
			return true
		}
		list = one[end:]
	}
	return false
}

// varying are the names in Vary, canonical, sorted and once.
func varying(h http.Header) []string {
	names := map[string]bool{}
	for _, v := range h["Vary"] {
		for one := range strings.SplitSeq(v, ",") {
			if one = strings.TrimSpace(one); one != "" {
				names[http.CanonicalHeaderKey(one)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// matches says whether a request asks as that did for which the entry is the answer (4.1). Fields that are written another
// way are not taken for the same: at worst that is an answer more to fetch.
func (e *Entry) matches(request http.Header) bool {
	for _, name := range e.vary {
		if !slices.Equal(e.asked[name], request[name]) {
			return false
		}
	}
	return true
}

// same says whether two entries answer the same requests.
func (e *Entry) same(o *Entry) bool {
	return slices.Equal(e.vary, o.vary) && e.matches(o.asked)
}
