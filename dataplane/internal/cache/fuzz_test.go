package cache_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/cache"
)

// Directives that stand plainly in a list are heeded, whatever stands before and behind them, but where they are in a quote.
func FuzzDirectives(f *testing.F) {
	f.Add("public", "x=\"a, b\"", uint16(60))
	f.Add("ext=\"unended", "", uint16(5))
	f.Add(",,=", "must-revalidate;", uint16(1))
	f.Add("MAX-AGE=\"7", "\\\"", uint16(9))
	f.Fuzz(func(t *testing.T, before, behind string, age uint16) {
		ask := cache.Ask("GET", nil, false)
		kept := func(plain string) *cache.Entry {
			h := http.Header{"Cache-Control": {before + ", " + plain + ", " + behind}, "Etag": {`"x"`}}
			return cache.Keeps(&ask, nil, cache.Answer{Status: 200, Header: h, Sent: t0, Received: t0}, cache.Rules{TTL: time.Hour, StaleIfError: time.Hour})
		}
		if strings.Count(before, `"`)%2 != 0 {
			return
		}
		if kept("no-store") != nil {
			t.Fatalf("kept against no-store: %q … %q", before, behind)
		}
		if kept("private") != nil {
			t.Fatalf("kept against private: %q … %q", before, behind)
		}
		// Of ages the smallest counts: no list makes an answer fresher than one of them says.
		if e := kept("s-maxage=" + strconv.Itoa(int(age))); e != nil && strings.Count(before, `"`) == 0 && e.Judge(&ask, t0.Add(time.Duration(age)*time.Second)) != cache.Expired {
			t.Fatalf("fresh or served stale beyond s-maxage=%d: %q … %q", age, before, behind)
		}
	})
}

// Tags are taken out of an answer, in bounds, and each of them is a piece of what was said.
func FuzzTags(f *testing.F) {
	f.Add("a,b c", "d e")
	f.Add(strings.Repeat("x ", 70), strings.Repeat("y", 200))
	f.Fuzz(func(t *testing.T, tag, key string) {
		h := http.Header{"Cache-Tag": {tag}, "Surrogate-Key": {key}}
		tags, fine := cache.Tags(h)
		if len(h) != 0 || len(tags) > 64 {
			t.Fatalf("%d tags; left %v", len(tags), h)
		}
		want := len(strings.FieldsFunc(tag, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })) + len(strings.FieldsFunc(key, func(r rune) bool { return r == ' ' || r == '\t' }))
		if fine && len(tags) != want {
			t.Fatalf("%q, %q: got %q, want %d", tag, key, tags, want)
		}
		for _, one := range tags {
			if one == "" || len(one) > 128 || strings.ContainsAny(one, " \t") || !strings.Contains(tag+" "+key, one) {
				t.Fatalf("tag %q", one)
			}
		}
	})
}

// What a client compares with never makes a whole answer of none: 304 only if one of its tags is the entry's.
func FuzzNotModified(f *testing.F) {
	f.Add(`"a"`, `W/"a", "b"`, "")
	f.Add(`W/"a"`, `*`, "")
	f.Add(`"a,b"`, `"a,b"`, at(0))
	f.Add("", "", at(-time.Second))
	f.Fuzz(func(t *testing.T, tag, none, since string) {
		req := http.Header{}
		if none != "" {
			req["If-None-Match"] = []string{none}
		}
		if since != "" {
			req["If-Modified-Since"] = []string{since}
		}
		h := http.Header{"Cache-Control": {"max-age=60"}, "Last-Modified": {at(0)}}
		if tag != "" {
			h["Etag"] = []string{tag}
		}
		a := cache.Ask("GET", req, false)
		e := cache.Keeps(&a, req, cache.Answer{Status: 200, Header: h, Sent: t0, Received: t0}, cache.Rules{})
		if e == nil {
			return
		}
		opaque := strings.TrimPrefix(tag, "W/")
		switch same := e.NotModified(&a); {
		case same && none != "" && !strings.Contains(none, "*") && (tag == "" || !strings.Contains(none, strings.TrimSpace(opaque))):
			t.Fatalf("%q is one of %q", tag, none)
		case same && none == "":
			if when, err := http.ParseTime(since); err != nil || when.Before(t0.Truncate(time.Second)) {
				t.Fatalf("not modified since %q", since)
			}
		case !same && none == tag && strings.HasPrefix(opaque, `"`) && strings.Count(opaque, `"`) == 2 && strings.HasSuffix(opaque, `"`) && len(opaque) > 1:
			t.Fatalf("%q is not itself", tag)
		}
	})
}
