package cache

import (
	"net/http"
	"strings"
	"time"

	"bailiwick/dataplane/internal/http1"
)

// Rules are what a route says where an answer does not.
type Rules struct {
	TTL                  time.Duration // of answers that say nothing of their age; 0: they are not kept
	StaleWhileRevalidate time.Duration
	StaleIfError         time.Duration
	MaxBytes             int64 // of a body; 0: DefaultEntry
}

// Asked is what a request lets a cache do.
type Asked struct {
	Bypass bool // neither looked up nor kept
	d      directives
	none   []string // If-None-Match
	since  []string // If-Modified-Since
	credit bool     // it carries credentials that go upstream
}

// Ask reads a request as it will be sent upstream: without the edge's own key, with whatever else authorises it.
func Ask(method string, h http.Header, body bool) Asked {
	a := Asked{d: parse(h["Cache-Control"]), none: h["If-None-Match"], since: h["If-Modified-Since"], credit: len(h["Authorization"]) > 0}
	if len(h["Cache-Control"]) == 0 {
		for _, v := range h["Pragma"] {
			a.d.noCache = a.d.noCache || strings.Contains(strings.ToLower(v), "no-cache")
		}
	}
	a.Bypass = method != http.MethodGet && method != http.MethodHead || body || a.d.noStore
	// Of a range only the whole could be kept; a cookie says who somebody is.
	for _, name := range [...]string{"Range", "If-Range", "If-Match", "If-Unmodified-Since", "Cookie", "Upgrade"} {
		a.Bypass = a.Bypass || len(h[name]) > 0
	}
	// What makes another request of it to some servers, and is in no Vary. Some names are other names to many.
	for _, name := range [...]string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"} {
		a.Bypass = a.Bypass || len(h[name]) > 0
	}
	for name := range h {
		a.Bypass = a.Bypass || http1.Alias(name)
	}
	return a
}

// Conditional says whether the client has something of its own to compare with.
func (a *Asked) Conditional() bool { return len(a.none) > 0 || len(a.since) > 0 }

// Restore puts into a request what the client compares with.
func (a *Asked) Restore(h http.Header) {
	if len(a.none) > 0 {
		h["If-None-Match"] = a.none
	}
	if len(a.since) > 0 {
		h["If-Modified-Since"] = a.since
	}
}

// OnlyIfCached says that the client wants nothing else: 504 where nothing is there.
func (a *Asked) OnlyIfCached() bool { return a.d.onlyIfCached }

// understood are the statuses whose answers are kept, true where no age needs to be said (RFC 9110, 15.1).
var understood = map[int]bool{200: true, 203: true, 204: true, 300: true, 301: true, 308: true, 404: true, 405: true, 410: true, 414: true, 501: true, 302: false, 307: false}

// storable says whether an answer may be kept by a shared cache (RFC 9111, 3), and how long it is fresh from when it was made.
func storable(a *Asked, status int, h http.Header, r Rules, received time.Time) (d directives, lifetime time.Duration, ok bool) {
	d = parse(h["Cache-Control"])
	byDefault, known := understood[status]
	switch {
	case !known, d.noStore, d.private, len(h["Set-Cookie"]) > 0, len(h["Content-Range"]) > 0, len(h["Trailer"]) > 0:
		return d, 0, false
	case a.credit && !d.public && !d.mustRevalidate && d.sMaxAge < 0: // 3.5
		return d, 0, false
	}
	for _, v := range h["Vary"] {
		if strings.Contains(v, "*") {
			return d, 0, false
		}
	}
	switch {
	case d.sMaxAge >= 0:
		lifetime = d.sMaxAge
	case d.maxAge >= 0:
		lifetime = d.maxAge
	case len(h["Expires"]) > 0:
		expires, fine := date(h["Expires"])
		made, dated := date(h["Date"])
		if !dated {
			made = received
		}
		if fine {
			lifetime = max(0, expires.Sub(made))
		} // what is no date is in the past (5.3)
	case r.TTL > 0 && byDefault:
		lifetime = r.TTL
	default:
		return d, 0, false
	}
	// What is stale at once is worth keeping only to be asked about.
	return d, lifetime, lifetime > 0 && !d.noCache || len(h["Etag"]) == 1 || len(h["Last-Modified"]) == 1
}

// oldest bounds an age, so that sums of it with a time of day do not overflow: an age that did would be young again.
const oldest = 1 << 31 * time.Second

// initialAge is how old an answer is on arrival (4.2.3).
func initialAge(h http.Header, sent, received time.Time) time.Duration {
	apparent := time.Duration(0)
	if made, ok := date(h["Date"]); ok {
		apparent = max(0, received.Sub(made))
	}
	said := time.Duration(0)
	if v := h["Age"]; len(v) > 0 {
		first, _, _ := strings.Cut(v[0], ",")
		said = seconds(strings.TrimSpace(first))
	}
	return min(max(apparent, said+received.Sub(sent)), oldest)
}

// State is what may be done with an entry now.
type State uint8

const (
	Fresh      State = iota // answer with it
	Revalidate              // answer with it, and ask anew in the background
	Expired                 // ask first
)

// Judge says what an entry is good for.
func (e *Entry) Judge(a *Asked, now time.Time) State {
	age := e.Age(now)
	if e.noCache || a.d.noCache || a.d.maxAge >= 0 && age > a.d.maxAge {
		return Expired
	}
	left := e.lifetime - age
	switch {
	case left > 0 && left >= a.d.minFresh:
		return Fresh
	case left > 0 || e.mustRevalidate:
		return Expired
	case a.d.minFresh < 0 && -left < e.whileRevalidate:
		return Revalidate
	case a.d.maxStale >= 0 && -left < min(a.d.maxStale, maxStaleServed):
		return Fresh
	}
	return Expired
}

// maxStaleServed bounds what a client can ask for: an answer of last week is nobody's wish.
const maxStaleServed = time.Hour

// IfError says whether the entry may stand in for an answer that failed (RFC 5861, 4).
func (e *Entry) IfError(a *Asked, now time.Time) bool {
	return !e.noCache && !e.mustRevalidate && !a.d.noCache && e.Age(now)-e.lifetime < e.ifError
}

// Age is the entry's now (4.2.3).
func (e *Entry) Age(now time.Time) time.Duration {
	return e.initialAge + max(0, now.Sub(e.received))
}

// Left is for how long it is fresh, negative once it is stale.
func (e *Entry) Left(now time.Time) time.Duration { return e.lifetime - e.Age(now) }
