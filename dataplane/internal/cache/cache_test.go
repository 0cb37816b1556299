package cache_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/cache"
)

var t0 = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// header makes one of "Name: value" lines.
func header(lines ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(lines); i += 2 {
		h.Add(lines[i], lines[i+1])
	}
	return h
}

func at(d time.Duration) string { return t0.Add(d).Format(http.TimeFormat) }

// Request, answer, and what may be done with it after so long (RFC 9111 by section).
func TestEntry_Table(t *testing.T) {
	const s = time.Second
	const (
		none       = "none" // not kept
		fresh      = "fresh"
		revalidate = "revalidate"
		expired    = "expired"
	)
	rules := cache.Rules{TTL: 30 * s}
	for _, c := range []struct {
		name    string
		request http.Header
		status  int
		answer  http.Header
		after   time.Duration
		want    string
	}{
		{"max-age", nil, 200, header("Cache-Control", "max-age=60"), 59 * s, fresh},
		{"max-age over", nil, 200, header("Cache-Control", "max-age=60"), 60 * s, expired},
		{"s-maxage before max-age (5.2.2.10)", nil, 200, header("Cache-Control", "max-age=60, s-maxage=10"), 20 * s, expired},
		{"max-age before Expires (5.3)", nil, 200, header("Cache-Control", "max-age=60", "Expires", at(10*s), "Date", at(0)), 20 * s, fresh},
		{"Expires", nil, 200, header("Expires", at(10*s), "Date", at(0)), 9 * s, fresh},
		{"Expires over", nil, 200, header("Expires", at(10*s), "Date", at(0)), 10 * s, expired + "?"},
		{"Expires that is no date is in the past", nil, 200, header("Expires", "0", "Date", at(0)), 0, none},
		{"two Expires", nil, 200, header("Expires", at(10*s), "Expires", at(20*s), "Date", at(0)), 0, none},
		{"two max-age: the smaller (4.2.1)", nil, 200, header("Cache-Control", "max-age=60", "Cache-Control", "max-age=5"), 10 * s, expired + "?"},
		{"max-age that is no number", nil, 200, header("Cache-Control", "max-age=-1"), 0, none},
		{"max-age quoted", nil, 200, header("Cache-Control", `max-age="60"`), 59 * s, fresh},
		{"max-age beyond all bounds", nil, 200, header("Cache-Control", "max-age=99999999999999999999"), 1000 * time.Hour, fresh},
		{"names in any case", nil, 200, header("Cache-Control", "MAX-AGE=60"), 59 * s, fresh},
		{"in a quote there is no directive", nil, 200, header("Cache-Control", `ext="a, no-store", max-age=60`), s, fresh},
		{"a quote that does not end", nil, 200, header("Cache-Control", `max-age=60, ext="a, no-store`), s, none},
		{"the route's own time where nothing is said", nil, 200, header(), 29 * s, fresh},
		{"and over", nil, 200, header(), 30 * s, expired + "?"},
		{"not of a status that needs it said", nil, 302, header(), 0, none},
		{"said of such a status", nil, 302, header("Cache-Control", "max-age=60"), s, fresh},
		{"404", nil, 404, header("Cache-Control", "max-age=60"), s, fresh},
		{"500 never", nil, 500, header("Cache-Control", "max-age=60"), 0, none},
		{"206 never", nil, 206, header("Cache-Control", "max-age=60", "Content-Range", "bytes 0-1/2"), 0, none},
		{"an unknown status never", nil, 299, header("Cache-Control", "max-age=60"), 0, none},
		{"no-store", nil, 200, header("Cache-Control", "no-store, max-age=60"), 0, none},
		{"private", nil, 200, header("Cache-Control", "private, max-age=60"), 0, none},
		{"private with fields is private", nil, 200, header("Cache-Control", `private="x-a", max-age=60`), 0, none},
		{"no-cache is asked each time (5.2.2.4)", nil, 200, header("Cache-Control", "no-cache, max-age=60", "Etag", `"a"`), s, expired},
		{"no-cache with nothing to ask by", nil, 200, header("Cache-Control", "no-cache, max-age=60"), 0, none},
		{"Set-Cookie", nil, 200, header("Cache-Control", "max-age=60", "Set-Cookie", "a=b"), 0, none},
		{"Vary: *", nil, 200, header("Cache-Control", "max-age=60", "Vary", "Accept, *"), 0, none},
		{"Age on arrival (4.2.3)", nil, 200, header("Cache-Control", "max-age=60", "Age", "50"), 11 * s, expired},
		{"a Date long ago", nil, 200, header("Cache-Control", "max-age=60", "Date", at(-50*s)), 11 * s, expired},
		{"a Date to come is no age", nil, 200, header("Cache-Control", "max-age=60", "Date", at(50*s)), 59 * s, fresh},
		{"credentials (3.5)", header("Authorization", "x"), 200, header("Cache-Control", "max-age=60"), 0, none},
		{"credentials, public", header("Authorization", "x"), 200, header("Cache-Control", "public, max-age=60"), s, fresh},
		{"credentials, s-maxage", header("Authorization", "x"), 200, header("Cache-Control", "s-maxage=60"), s, fresh},
		{"credentials, must-revalidate", header("Authorization", "x"), 200, header("Cache-Control", "must-revalidate, max-age=60"), s, fresh},
		{"stale-while-revalidate (RFC 5861)", nil, 200, header("Cache-Control", "max-age=60, stale-while-revalidate=30"), 80 * s, revalidate},
		{"and over", nil, 200, header("Cache-Control", "max-age=60, stale-while-revalidate=30"), 90 * s, expired},
		{"not with must-revalidate", nil, 200, header("Cache-Control", "max-age=60, stale-while-revalidate=30, must-revalidate"), 80 * s, expired},
		{"not with s-maxage", nil, 200, header("Cache-Control", "s-maxage=60, stale-while-revalidate=30"), 80 * s, expired},
		{"the client: no-cache", header("Cache-Control", "no-cache"), 200, header("Cache-Control", "max-age=60"), s, expired},
		{"the client: Pragma", header("Pragma", "no-cache"), 200, header("Cache-Control", "max-age=60"), s, expired},
		{"the client: Pragma beside Cache-Control", header("Pragma", "no-cache", "Cache-Control", "max-age=100"), 200, header("Cache-Control", "max-age=60"), s, fresh},
		{"the client: max-age", header("Cache-Control", "max-age=10"), 200, header("Cache-Control", "max-age=60"), 11 * s, expired},
		{"the client: min-fresh", header("Cache-Control", "min-fresh=30"), 200, header("Cache-Control", "max-age=60"), 31 * s, expired},
		{"the client: max-stale", header("Cache-Control", "max-stale=10"), 200, header("Cache-Control", "max-age=60"), 65 * s, fresh},
		{"the client: max-stale, of a must-revalidate", header("Cache-Control", "max-stale=10"), 200, header("Cache-Control", "max-age=60, must-revalidate"), 65 * s, expired},
		{"the client: any stale, and not for ever", header("Cache-Control", "max-stale"), 200, header("Cache-Control", "max-age=60"), 2 * time.Hour, expired},
		{"the client: no-store", header("Cache-Control", "no-store"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
		{"a range", header("Range", "bytes=0-1"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
		{"made before years were counted, no sooner", nil, 200, header("Cache-Control", "max-age=60", "Date", "Mon, 01 Jan 0001 00:00:00 GMT"), s, expired},
		{"made before years were counted, nor later", nil, 200, header("Cache-Control", "max-age=60", "Date", "Mon, 01 Jan 0001 00:00:00 GMT"), time.Hour, expired},
		{"directives apart by semicolons", nil, 200, header("Cache-Control", "no-store; private"), s, none},
		{"one that is no token", nil, 200, header("Cache-Control", "private; max-age=60"), s, none},
		{"an extension", nil, 200, header("Cache-Control", `max-age=60, x-ours="a, b"`), s, fresh},
		{"another method in a header", header("X-Http-Method-Override", "DELETE"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
		{"a header that many read as another", header("If_none_match", "*"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
		{"another of those", header("X.tenant", "a"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
		{"what the route sets for its upstream", header("X-Host", "orders.internal"), 200, header("Cache-Control", "max-age=60"), s, fresh},
		{"a cookie", header("Cookie", "a=b"), 200, header("Cache-Control", "max-age=60"), 0, "bypass"},
	} {
		a := cache.Ask("GET", c.request, false)
		got := none
		if e := cache.Keeps(&a, c.request, cache.Answer{Status: c.status, Header: c.answer, Sent: t0, Received: t0}, rules); a.Bypass {
			got = "bypass"
		} else if e != nil {
			got = []string{fresh, revalidate, expired}[e.Judge(&a, t0.Add(c.after))]
		}
		if got != c.want && got+"?" != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if a := cache.Ask(method, nil, false); !a.Bypass {
			t.Errorf("%s is looked up", method)
		}
	}
}

func keep(t *testing.T, request, answer http.Header, body string) *cache.Entry {
	t.Helper()
	a := cache.Ask("GET", request, false)
	e := cache.Keeps(&a, request, cache.Answer{Status: 200, Header: answer, Sent: t0, Received: t0}, cache.Rules{StaleIfError: time.Minute})
	if e == nil {
		t.Fatal("not kept")
	}
	return e.With([]byte(body))
}

func TestCache_VariesByWhatTheAnswerSays(t *testing.T) {
	c, err := cache.New(0)
	if err != nil {
		t.Fatal(err)
	}
	key := cache.KeyOf("a")
	for _, lang := range []string{"de", "fr", "de"} {
		c.Put(key, keep(t, header("Accept-Language", lang), header("Cache-Control", "max-age=60", "Vary", "accept-language"), lang))
	}
	for _, lang := range []string{"de", "fr"} {
		if e := c.Get(key, header("Accept-Language", lang)); e == nil || string(e.Body) != lang {
			t.Errorf("%s: got %v", lang, e)
		}
	}
	if e := c.Get(key, header("Accept-Language", "it")); e != nil {
		t.Errorf("a language nobody asked for: got %s", e.Body)
	}
	if e := c.Get(cache.KeyOf("b"), header("Accept-Language", "de")); e != nil {
		t.Error("another key has it")
	}
	if c.Drop(key, t0); c.Get(key, header("Accept-Language", "de")) != nil {
		t.Error("dropped, and still there")
	}
	if cache.KeyOf("ab", "c") == cache.KeyOf("a", "bc") {
		t.Error("two lists of parts have one key")
	}
}

func TestCache_HoldsNoMoreThanItMay(t *testing.T) {
	c, err := cache.New(100_000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		c.Put(cache.KeyOf(fmt.Sprint(i)), keep(t, nil, header("Cache-Control", "max-age=60"), string(make([]byte, 1000))))
	}
	for end := time.Now().Add(30 * time.Second); c.Bytes() > 100_000; time.Sleep(time.Millisecond) { // it makes room in the background
		if time.Now().After(end) {
			t.Fatalf("%d bytes are held, at most 100,000 may be", c.Bytes())
		}
	}
	if c.Bytes() < 50_000 {
		t.Errorf("%d bytes are held", c.Bytes())
	}
	// Of one key too.
	for i := range 100 {
		c.Put(cache.KeyOf("k"), keep(t, header("X-A", fmt.Sprint(i)), header("Cache-Control", "max-age=60", "Vary", "X-A"), "x"))
	}
	held := 0
	for i := range 100 {
		if c.Get(cache.KeyOf("k"), header("X-A", fmt.Sprint(i))) != nil {
			held++
		}
	}
	if held != 16 {
		t.Errorf("%d variants of one URL, want 16", held)
	}
}

func TestEntry_Validates(t *testing.T) {
	old := keep(t, nil, header("Cache-Control", "max-age=60", "Etag", `"v1"`, "Last-Modified", at(-time.Hour), "Content-Type", "text/plain", "X-A", "1"), "body")
	h := http.Header{}
	if !old.Validate(h) || h.Get("If-None-Match") != `"v1"` || h.Get("If-Modified-Since") != at(-time.Hour) {
		t.Errorf("asks with %v", h)
	}
	a := cache.Ask("GET", nil, false)
	later := t0.Add(2 * time.Minute)
	e := old.Renewed(&a, cache.Answer{Status: 304, Header: header("Cache-Control", "max-age=10", "X-A", "2", "Content-Length", "0"), Sent: later, Received: later}, cache.Rules{})
	if e == nil || string(e.Body) != "body" || e.Header.Get("X-A") != "2" || e.Header.Get("Content-Type") != "text/plain" || e.Header.Get("Content-Length") != "" {
		t.Fatalf("renewed: %+v", e)
	}
	if e.Judge(&a, later.Add(9*time.Second)) != cache.Fresh || e.Judge(&a, later.Add(11*time.Second)) != cache.Expired {
		t.Error("renewed: want it fresh for its new time")
	}
	if old.Header.Get("X-A") != "1" {
		t.Error("the old entry changed")
	}
	if old.Renewed(&a, cache.Answer{Status: 304, Header: header("Cache-Control", "no-store"), Sent: later, Received: later}, cache.Rules{}) != nil {
		t.Error("an answer that may not be kept any more is kept")
	}
	if old.Renewed(&a, cache.Answer{Status: 304, Header: header("Etag", `"v2"`), Sent: later, Received: later}, cache.Rules{TTL: time.Hour}) != nil {
		t.Error("another answer's tag is put on this one")
	}
	for _, c := range []struct {
		request http.Header
		want    bool
	}{
		{header("If-None-Match", `"v1"`), true}, {header("If-None-Match", `W/"v1"`), true}, {header("If-None-Match", `"v0", "v1"`), true}, {header("If-None-Match", "*"), true},
		{header("If-None-Match", `"v2"`), false}, {header("If-None-Match", `"v2"`, "If-Modified-Since", at(0)), false}, // the tag alone counts
		{header("If-Modified-Since", at(0)), true}, {header("If-Modified-Since", at(-2*time.Hour)), false}, {header("If-Modified-Since", "x"), false}, {header(), false},
	} {
		a := cache.Ask("GET", c.request, false)
		if got := old.NotModified(&a); got != c.want {
			t.Errorf("%v: not modified %v, want %v", c.request, got, c.want)
		}
	}
	if !old.IfError(&a, t0.Add(119*time.Second)) || old.IfError(&a, t0.Add(121*time.Second)) {
		t.Error("stands in for an error for a minute after its time: want that, and no more")
	}
}

func TestFlight_OneAsksAndTheOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := cache.New(0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		key := cache.KeyOf("k")
		lead, leads := c.Join(key, time.Now())
		if !leads {
			t.Fatal("the first does not lead")
		}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				f, leads := c.Join(key, time.Now())
				if leads || f == nil {
					t.Error("a further one does not wait")
					return
				}
				<-f.Done()
			})
		}
		synctest.Wait()
		if f, leads := c.Join(key, time.Now()); f != nil || leads {
			t.Error("one more than may wait: want it to go by itself")
		}
		lead.End(true, time.Now())
		lead.End(true, time.Now()) // once is enough
		wg.Wait()
		if f, leads := c.Join(key, time.Now()); f != nil || leads {
			t.Error("the last answer could not be kept: want requests to go by themselves")
		}
		time.Sleep(11 * time.Second)
		f, leads := c.Join(key, time.Now())
		if !leads {
			t.Error("later: want one to lead again")
		}
		time.Sleep(4 * time.Second)
		if w, leads := c.Join(key, time.Now()); leads || w == nil || w.Left(time.Now()) != time.Second {
			t.Error("four seconds later: want one to wait for a second")
		}
		time.Sleep(time.Second)
		if w, leads := c.Join(key, time.Now()); leads || w != nil {
			t.Error("five seconds later: want nobody to wait any more")
		}
		f.End(false, time.Now())
		if f, leads = c.Join(key, time.Now()); !leads {
			t.Error("the last answer was kept: want one to lead")
		}
		f.End(false, time.Now())
	})
}

// Whatever upstreams and clients write, nothing is kept against no-store, private or Vary: *, nothing is fresh beyond what was
// said, and nobody panics.
func FuzzEntry(f *testing.F) {
	f.Add("max-age=60", "", "", "Accept", "")
	f.Add(`private="a", s-maxage=99999999999999`, "min-fresh=5", "0", "*", "Thu, 26 Nov 2026 12:00:00 GMT")
	f.Add(`no-cache="x\", max-age=1`, "max-stale", "1,2", ",,", "x")
	f.Add(`stale-while-revalidate=10,stale-if-error=5,must-revalidate,max-age="5`, "only-if-cached", "-1", "a,b", "")
	f.Fuzz(func(t *testing.T, answer, request, age, vary, expires string) {
		h := http.Header{"Cache-Control": {answer}, "Age": {age}, "Vary": {vary}, "Etag": {`"x"`}}
		if expires != "" {
			h["Expires"] = []string{expires}
		}
		req := http.Header{"Cache-Control": {request}}
		a := cache.Ask("GET", req, false)
		e := cache.Keeps(&a, req, cache.Answer{Status: 200, Header: h, Sent: t0, Received: t0.Add(time.Second)}, cache.Rules{TTL: time.Minute})
		if e == nil {
			return
		}
		e = e.With(nil)
		if answer == "no-store" || answer == "private" || vary == "*" {
			t.Fatalf("kept against %q, Vary %q", answer, vary)
		}
		// An age only grows, and what is not fresh does not become it.
		was := cache.Fresh
		for _, d := range []time.Duration{0, time.Second, time.Minute, time.Hour, 1000 * time.Hour, 700000 * time.Hour} {
			now := e.Judge(&a, t0.Add(time.Second+d))
			if now < was {
				t.Fatalf("%q after %v: state %d after %d", answer, d, now, was)
			}
			was = now
		}
		if was != cache.Expired {
			t.Fatalf("%q is good for ever", answer)
		}
	})
}

// An answer that was under way when its key was dropped is not kept: it may be of before the change.
func TestCache_WhatWasAskedBeforeADropIsNotKept(t *testing.T) {
	c, err := cache.New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key := cache.KeyOf("a")
	asked := func(at time.Time) *cache.Entry {
		a := cache.Ask("GET", nil, false)
		return cache.Keeps(&a, nil, cache.Answer{Status: 200, Header: header("Cache-Control", "max-age=60"), Sent: at, Received: t0.Add(time.Minute)}, cache.Rules{}).With(nil)
	}
	c.Put(key, asked(t0))
	c.Drop(key, t0.Add(time.Second))
	for _, c1 := range []struct {
		sent time.Duration
		kept bool
	}{{0, false}, {time.Second, false}, {2 * time.Second, true}, {0, true}} { // the last is not kept, and what is stays
		c.Put(key, asked(t0.Add(c1.sent)))
		if got := c.Get(key, nil) != nil; got != c1.kept {
			t.Errorf("asked %v after: kept %v, want %v", c1.sent, got, c1.kept)
		}
	}
}

// One who waits asks beside who is silent for long, and one alone; who wants to lead next does so once nobody leads any more.
func TestFlight_OneOfThoseWhoWaitLeadsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := cache.New(0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		key := cache.KeyOf("k")
		over := func(f *cache.Flight) bool {
			select {
			case <-f.Done():
				return true
			default:
				return false
			}
		}
		f, _ := c.Join(key, time.Now())
		if time.Sleep(time.Second - 1); f.Relieve(time.Second, time.Now()) {
			t.Error("before its time: one leads beside who leads")
		}
		if time.Sleep(1); !f.Relieve(time.Second, time.Now()) || f.Relieve(time.Second, time.Now()) {
			t.Error("after it: want one, and one alone, to lead beside who leads")
		}
		if got := f.Left(time.Now()); got != 5*time.Second {
			t.Errorf("the next is worth waiting for for %v, want 5s", got)
		}
		if f.Leave(); over(f) {
			t.Error("one of two who lead has left, and it is over")
		}
		if f.Leave(); !over(f) || !f.Vacant() || f.Relieve(0, time.Now()) {
			t.Error("nobody leads any more: want it over and vacant")
		}
		next, leads := c.Join(key, time.Now())
		if !leads {
			t.Error("nobody leads any more: want one to lead next")
		}
		f.End(true, time.Now())
		if w, leads := c.Join(key, time.Now()); w != next || leads || over(next) {
			t.Error("the end of one that is over is told of another")
		}
		time.Sleep(time.Second)
		next.Relieve(time.Second, time.Now())
		if next.Fail(time.Now()); over(next) {
			t.Error("one of two who lead was given no answer, and it is over")
		}
		// An answer that is kept is what all wait for, whoever asked for it.
		if c.Put(key, tagged(time.Now(), "/1")); !over(next) || next.Vacant() {
			t.Error("there is an answer: want all who wait to go on to it")
		}
		last, _ := c.Join(key, time.Now())
		last.Fail(time.Now())
		if f, leads := c.Join(key, time.Now()); !over(last) || last.Vacant() || f != nil || leads {
			t.Error("nobody who led was given an answer: want all to go by themselves")
		}
	})
}

// What was asked for before does not take the place of what was asked for after it, whichever comes first.
func TestCache_KeepsTheLatest(t *testing.T) {
	c, err := cache.New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key := cache.KeyOf("k")
	first, second := tagged(t0, "/1").With([]byte("first")), tagged(t0.Add(time.Second), "/1").With([]byte("second"))
	for range 2 {
		c.Put(key, second)
		if c.Put(key, first); string(c.Get(key, nil).Body) != "second" {
			t.Error("an older answer took a newer one's place")
		}
		if c.Clear(); c.Get(key, nil) != nil {
			t.Error("cleared, and there is one")
		}
		if c.Put(key, first); string(c.Get(key, nil).Body) != "first" {
			t.Error("an older answer is not kept where there is none")
		}
	}
}
