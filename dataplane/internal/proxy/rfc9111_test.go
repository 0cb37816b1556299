package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
)

// The rules of shared caches, each with where it is written, through an edge that keeps answers: what an upstream would say, what
// a client asks, and whether the upstream was asked. Ages are the upstream's Age, so that nobody waits for time to pass; those of
// the entry alone, and by the clock, are cache.TestEntry_Table's.
func TestCache_ByTheLetter(t *testing.T) {
	type script struct {
		status int
		header http.Header
		body   string
	}
	var mu sync.Mutex
	says, asked, heard := map[string]script{}, map[string]int{}, map[string]http.Header{}
	w := caching(t, table.Cache{}, false, func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		s := says[r.URL.Path]
		asked[r.URL.Path]++
		heard[r.URL.Path] = r.Header.Clone()
		mu.Unlock()
		for name, v := range s.header {
			rw.Header()[name] = v
		}
		if _, ok := s.header["Date"]; !ok {
			rw.Header()["Date"] = nil // else net/http invents one
		}
		rw.WriteHeader(s.status)
		if s.body != "" && s.status != 304 {
			io.WriteString(rw, s.body)
		}
	})
	w.west.server.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	type step struct {
		ask    string   // method; "": GET
		with   []string // headers
		up     string   // what the upstream says if asked: "status|Name: value|…|=body"; "": as before
		asks   bool     // the upstream is asked
		status int      // 0: 200
		body   string   // of the answer; "": not looked at
		has    string   // "Name: value" of the answer, or "!Name"
		heard  string   // likewise, of what the upstream heard
	}
	const (
		kept  = "200|Cache-Control: max-age=60|Etag: \"v\"|=one"
		later = "200|Cache-Control: max-age=60|Etag: \"w\"|=two"
		same  = "304|Etag: \"v\"|Cache-Control: max-age=60"
	)
	first := step{up: kept, asks: true, body: "one"}
	hit := step{up: later, body: "one"}
	miss := step{up: later, asks: true, body: "two"}
	says200 := func(h string) step { return step{up: "200|" + h + "|=one", asks: true, body: "one"} }
	for name, steps := range map[string][]step{
		// RFC 9111
		"3 a fresh answer is kept":                           {first, hit},
		"3 an answer to POST is not":                         {{ask: "POST", up: kept, asks: true}, miss},
		"3 nor one of a status that nobody here understands": {{up: "299|Cache-Control: max-age=60|=one", asks: true, status: 299}, miss},
		"3 nor one that says nothing of how long":            {says200("Etag: \"v\""), miss},
		"3 no-store":              {says200("Cache-Control: no-store, max-age=60"), miss},
		"3 private":               {says200("Cache-Control: private, max-age=60"), miss},
		"3 404 may be":            {{up: "404|Cache-Control: max-age=60|=one", asks: true, status: 404}, {up: later, status: 404, body: "one"}},
		"3 301 may be":            {{up: "301|Cache-Control: max-age=60|Location: /v1/x|=one", asks: true, status: 301}, {up: later, status: 301}},
		"3 302 with a word on it": {{up: "302|Cache-Control: max-age=60|Location: /v1/x", asks: true, status: 302}, {up: later, status: 302, has: "Location: /v1/x"}},
		"3 500 is not":            {{up: "500|Cache-Control: max-age=60", asks: true, status: 500}, miss},
		"3.1 fields of a connection are not kept":                         {says200("Cache-Control: max-age=60|Connection: X-Hop|X-Hop: 1|Proxy-Authenticate: Basic"), {up: later, body: "one", has: "!X-Hop"}, {up: later, has: "!Proxy-Authenticate"}},
		"3.1 other fields are":                                            {says200("Cache-Control: max-age=60|X-A: 1|Content-Type: text/x"), {up: later, has: "X-A: 1"}, {up: later, has: "Content-Type: text/x"}},
		"3.3 206 is not":                                                  {{with: []string{"Range", "bytes=0-0"}, up: "206|Cache-Control: max-age=60|Content-Range: bytes 0-0/3|=o", asks: true, status: 206, heard: "Range: bytes=0-0"}, miss},
		"3.3 nor is a range of what is kept made here":                    {first, {with: []string{"Range", "bytes=0-0"}, up: "206|Content-Range: bytes 0-0/3|=o", asks: true, status: 206, body: "o"}, hit},
		"3.5 credentials of the client's":                                 {{with: []string{"Authorization", "Basic eA=="}, up: kept, asks: true}, {with: []string{"Authorization", "Basic eA=="}, up: later, asks: true, body: "two"}},
		"3.5 credentials, and public":                                     {{with: []string{"Authorization", "Basic eA=="}, up: "200|Cache-Control: public, max-age=60|=one", asks: true}, {with: []string{"Authorization", "Basic eA=="}, up: later, body: "one"}},
		"4 a hit says its age (5.1)":                                      {says200("Cache-Control: max-age=60|Age: 20"), {up: later, body: "one", has: "Age: 20"}},
		"4.1 Vary: another value":                                         {{with: []string{"Accept-Language", "de"}, up: "200|Cache-Control: max-age=60|Vary: Accept-Language|=one", asks: true}, {with: []string{"Accept-Language", "fr"}, up: "200|Cache-Control: max-age=60|Vary: Accept-Language|=two", asks: true, body: "two"}, {with: []string{"Accept-Language", "de"}, up: later, body: "one"}, {with: []string{"Accept-Language", "fr"}, body: "two"}},
		"4.1 Vary: none given is a value":                                 {says200("Cache-Control: max-age=60|Vary: Accept-Language"), {with: []string{"Accept-Language", "de"}, up: later, asks: true}},
		"4.1 Vary: *":                                                     {says200("Cache-Control: max-age=60|Vary: *"), miss},
		"4.2.1 s-maxage before max-age":                                   {says200("Cache-Control: max-age=10, s-maxage=60|Age: 20"), hit},
		"4.2.1 max-age before Expires":                                    {says200("Cache-Control: max-age=60|Expires: " + date(-time.Hour)), hit},
		"4.2.1 of two the stricter":                                       {says200("Cache-Control: max-age=60, max-age=10|Age: 20"), miss},
		"4.2.2 nothing is guessed from Last-Modified":                     {says200("Last-Modified: " + date(-100*time.Hour)), miss},
		"4.2.3 Age counts":                                                {says200("Cache-Control: max-age=60|Age: 60"), miss},
		"4.2.3 Date counts":                                               {says200("Cache-Control: max-age=60|Date: " + date(-2*time.Minute)), miss},
		"4.2.3 a Date to come does not make it younger":                   {says200("Cache-Control: max-age=60|Age: 61|Date: " + date(time.Hour)), miss},
		"4.2.3 no Date":                                                   {says200("Cache-Control: max-age=60"), hit},
		"4.2.4 a stale answer is asked about first":                       {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {up: same, asks: true, body: "one"}},
		"4.2.4 and is none where the upstream fails and it must be asked": {says200("Cache-Control: max-age=10, must-revalidate, stale-if-error=600|Age: 20|Etag: \"v\""), {up: "500|=no", asks: true, status: 500}},
		"4.3.1 asks by tag and date":                                      {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\"|Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"), {up: same, asks: true, heard: "If-Modified-Since: Mon, 02 Jan 2006 15:04:05 GMT"}, {up: later, body: "one"}},
		"4.3.2 a client that has it":                                      {first, {with: []string{"If-None-Match", "\"v\""}, up: later, status: 304, has: "Etag: \"v\""}},
		"4.3.2 a client that has another":                                 {first, {with: []string{"If-None-Match", "\"u\""}, up: later, body: "one"}},
		"4.3.2 since a date":                                              {says200("Cache-Control: max-age=60|Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"), {with: []string{"If-Modified-Since", "Tue, 03 Jan 2006 15:04:05 GMT"}, up: later, status: 304}, {with: []string{"If-Modified-Since", "Sun, 01 Jan 2006 15:04:05 GMT"}, up: later, body: "one"}},
		"4.3.2 a tag goes before a date":                                  {says200("Cache-Control: max-age=60|Etag: \"v\"|Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT"), {with: []string{"If-None-Match", "\"u\"", "If-Modified-Since", "Tue, 03 Jan 2006 15:04:05 GMT"}, up: later, body: "one"}},
		"4.3.3 another answer takes its place":                            {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), miss, {up: kept, body: "two"}},
		"4.3.3 the upstream's error is shown":                             {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {up: "500|=no", asks: true, status: 500, body: "no"}},
		"4.3.4 304 renews fields":                                         {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\"|X-A: 1|Content-Type: text/x"), {up: "304|Etag: \"v\"|Cache-Control: max-age=60|X-A: 2|Content-Type: text/y", asks: true, body: "one", has: "X-A: 2"}, {up: later, body: "one", has: "X-A: 2"}, {up: later, has: "Content-Type: text/x"}},
		"4.3.4 304 of another tag renews nothing":                         {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {up: "304|Etag: \"other\"|Cache-Control: max-age=60", asks: true}, miss},
		"4.3.4 304 that may not be kept":                                  {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {up: "304|Etag: \"v\"|Cache-Control: no-store", asks: true, body: "one"}, miss},
		"4.3.5 HEAD is answered from GET's":                               {first, {ask: "HEAD", up: later, has: "Content-Length: 3"}},
		"4.3.5 HEAD keeps nothing":                                        {{ask: "HEAD", up: kept, asks: true}, miss},
		"4.4 a change ends it":                                            {first, {ask: "PUT", up: "204", asks: true, status: 204}, miss},
		"4.4 so does one that leads elsewhere":                            {first, {ask: "POST", up: "303|Location: /v1/x", asks: true, status: 303}, miss},
		"4.4 one that failed does not":                                    {first, {ask: "DELETE", up: "403", asks: true, status: 403}, hit},
		"4.4 OPTIONS changes nothing":                                     {first, {ask: "OPTIONS", up: "204", asks: true, status: 204}, hit},
		"4.4 a method nobody knows may":                                   {first, {ask: "PURGEALL", up: "200", asks: true}, miss},
		"5.1 an Age that is no number":                                    {says200("Cache-Control: max-age=60|Age: x"), hit},
		"5.2.1.1 max-age of the client's":                                 {says200("Cache-Control: max-age=60|Age: 20"), {with: []string{"Cache-Control", "max-age=10"}, up: later, asks: true, body: "two"}},
		"5.2.1.2 max-stale":                                               {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {with: []string{"Cache-Control", "max-stale=60"}, up: later, body: "one"}, {with: []string{"Cache-Control", "max-stale=5"}, up: later, asks: true}},
		"5.2.1.2 max-stale, of what must be asked about":                  {says200("Cache-Control: max-age=10, must-revalidate|Age: 20|Etag: \"v\""), {with: []string{"Cache-Control", "max-stale=60"}, up: later, asks: true}},
		"5.2.1.3 min-fresh":                                               {says200("Cache-Control: max-age=60|Age: 20"), {with: []string{"Cache-Control", "min-fresh=50"}, up: later, asks: true}},
		"5.2.1.4 no-cache":                                                {first, {with: []string{"Cache-Control", "no-cache"}, up: same, asks: true, body: "one"}},
		"5.2.1.5 no-store":                                                {{with: []string{"Cache-Control", "no-store"}, up: kept, asks: true}, miss},
		"5.2.1.6 no-transform changes nothing":                            {{with: []string{"Cache-Control", "no-transform"}, up: kept, asks: true}, hit},
		"5.2.1.7 only-if-cached, there":                                   {first, {with: []string{"Cache-Control", "only-if-cached"}, up: later, body: "one"}},
		"5.2.1.7 only-if-cached, not there":                               {{with: []string{"Cache-Control", "only-if-cached"}, up: later, status: 504}},
		"5.2.2.3 must-understand beside no-store":                         {says200("Cache-Control: must-understand, no-store, max-age=60"), miss}, // SHOULD ignore no-store then: here it counts
		"5.2.2.4 no-cache":                                                {says200("Cache-Control: no-cache, max-age=60|Etag: \"v\""), {up: same, asks: true, body: "one"}},
		"5.2.2.4 no-cache with names":                                     {says200("Cache-Control: no-cache=\"X-A\", max-age=60|Etag: \"v\""), {up: same, asks: true, body: "one"}},
		"5.2.2.7 private with names":                                      {says200("Cache-Control: private=\"X-A\", max-age=60"), miss},
		"5.2.2.8 proxy-revalidate":                                        {says200("Cache-Control: max-age=10, proxy-revalidate, stale-while-revalidate=600|Age: 20|Etag: \"v\""), {up: same, asks: true}},
		"5.2.2.10 s-maxage=0":                                             {says200("Cache-Control: max-age=60, s-maxage=0|Etag: \"v\""), {up: same, asks: true}},
		"5.2.3 an extension nobody knows":                                 {says200("Cache-Control: max-age=60, fancy=\"no-store, private\""), hit},
		"5.3 Expires":                                                     {says200("Date: " + date(0) + "|Expires: " + date(time.Hour)), hit},
		"5.3 Expires that is over":                                        {says200("Date: " + date(0) + "|Expires: " + date(0)), miss},
		"5.3 Expires that is no date":                                     {says200("Date: " + date(0) + "|Expires: -1"), miss},
		"5.3 Expires without Date":                                        {says200("Expires: " + date(time.Hour)), hit},
		"5.4 Pragma":                                                      {first, {with: []string{"Pragma", "no-cache"}, up: same, asks: true}},
		"7.3 what sets a cookie is not kept":                              {says200("Cache-Control: max-age=60|Set-Cookie: a=b"), miss},
		// RFC 9110
		"9110 8.8.3 a comma is the tag's":           {says200("Cache-Control: max-age=60|Etag: \"a,b\""), {with: []string{"If-None-Match", "\"x\", \"a,b\""}, up: later, status: 304}, {with: []string{"If-None-Match", "\"a\", \"b\""}, up: later, body: "one"}},
		"9110 8.8.3.2 tags are compared weakly":     {says200("Cache-Control: max-age=60|Etag: W/\"v\""), {with: []string{"If-None-Match", "\"v\""}, up: later, status: 304}},
		"9110 13.1.1 If-Match goes to the upstream": {first, {with: []string{"If-Match", "\"v\""}, up: "412", asks: true, status: 412, heard: "If-Match: \"v\""}},
		"9110 13.1.2 an asterisk":                   {first, {with: []string{"If-None-Match", "*"}, up: later, status: 304}},
		// RFC 5861
		"5861 3 stale-while-revalidate":   {says200("Cache-Control: max-age=10, stale-while-revalidate=600|Age: 20|Etag: \"v\""), {up: same, body: "one", has: "Age: 20"}},
		"5861 3 beyond it":                {says200("Cache-Control: max-age=10, stale-while-revalidate=5|Age: 20|Etag: \"v\""), {up: later, asks: true, body: "two"}},
		"5861 4 stale-if-error":           {says200("Cache-Control: max-age=10, stale-if-error=600|Age: 20|Etag: \"v\""), {up: "503|=no", asks: true, body: "one"}},
		"5861 4 beyond it":                {says200("Cache-Control: max-age=10, stale-if-error=5|Age: 20|Etag: \"v\""), {up: "503|=no", asks: true, status: 503}},
		"5861 4 of a 404 it says nothing": {says200("Cache-Control: max-age=10, stale-if-error=600|Age: 20|Etag: \"v\""), {up: "404|=no", asks: true, status: 404}},
		// RFC 9211
		"9211 2.1 a hit, and how long it is fresh":   {says200("Cache-Control: max-age=3600|Age: 20"), {up: later, has: "Cache-Status: bailiwick; hit; ttl=35"}},
		"9211 2.2 nothing of the URL, and kept":      {{up: kept, asks: true, has: "Cache-Status: bailiwick; fwd=uri-miss; stored"}},
		"9211 2.2 stale, and 304":                    {says200("Cache-Control: max-age=10|Age: 20|Etag: \"v\""), {up: same, asks: true, has: "Cache-Status: bailiwick; fwd=stale; fwd-status=304"}},
		"9211 2.2 stale, and no answer":              {says200("Cache-Control: max-age=10, stale-if-error=600|Age: 20|Etag: \"v\""), {up: "500|=no", asks: true, body: "one", has: "Cache-Status: bailiwick; fwd=stale; fwd-status=500"}},
		"9211 2.2 fresh, and the request wants more": {says200("Cache-Control: max-age=60|Etag: \"v\""), {with: []string{"Cache-Control", "no-cache"}, up: same, asks: true, has: "Cache-Status: bailiwick; fwd=request; fwd-status=304"}},
		"9211 2.2 a method":                          {{ask: "POST", up: "200", asks: true, has: "Cache-Status: bailiwick; fwd=method"}},
		"9211 2.2 bypass":                            {{with: []string{"Cookie", "a=b"}, up: kept, asks: true, has: "Cache-Status: bailiwick; fwd=bypass"}},
		"9211 2 who is nearer to the client is last": {says200("Cache-Control: max-age=60|Cache-Status: origin; hit"), {up: later, has: "Cache-Status: origin; hit"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			path := "/v1/" + strings.NewReplacer(" ", "-", ":", "", "'", "", "*", "", ",", "").Replace(name)
			for i, s := range steps {
				mu.Lock()
				if s.up != "" {
					parts := strings.Split(s.up, "|")
					next := script{header: http.Header{}}
					fmt.Sscan(parts[0], &next.status)
					for _, p := range parts[1:] {
						if body, ok := strings.CutPrefix(p, "="); ok {
							next.body = body
						} else if name, v, ok := strings.Cut(p, ": "); ok {
							next.header.Add(name, v)
						}
					}
					says[path] = next
				}
				before := asked[path]
				mu.Unlock()
				method, body := s.ask, ""
				if method == "" {
					method = "GET"
				} else if method == "POST" || method == "PUT" {
					body = "change"
				}
				a := w.send(method, path, body, s.with...)
				mu.Lock()
				n, said := asked[path]-before, heard[path]
				mu.Unlock()
				if s.status == 0 {
					s.status = 200
				}
				// What is asked in the background is asked by nobody here.
				if background := strings.Contains(a.header.Get("Cache-Status"), "hit; ttl=-"); a.err != nil || a.status != s.status || !background && (n > 0) != s.asks || n > 1 || s.body != "" && a.body != s.body {
					t.Fatalf("step %d: got %d %q, %v, the upstream asked %d times; want %d %q, asked: %v (%v)", i, a.status, a.body, a.err, n, s.status, s.body, s.asks, a.header)
				}
				for _, look := range []struct {
					want string
					in   http.Header
				}{{s.has, a.header}, {s.heard, said}} {
					name, v, _ := strings.Cut(look.want, ": ")
					if bare, not := strings.CutPrefix(name, "!"); look.want != "" && (not && look.in[bare] != nil || !not && (len(look.in[name]) == 0 || !strings.HasPrefix(look.in[name][0], v))) {
						t.Fatalf("step %d: %v, want %q", i, look.in, look.want)
					}
				}
			}
		})
	}
}

// A crowd that finds one stale answer has it at once, and one asks the upstream anew (RFC 5861, 3).
func TestCache_ACrowdRenewsOnce(t *testing.T) {
	release := make(chan struct{})
	var asked atomic.Int64
	w := caching(t, table.Cache{}, false, func(rw http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if n > 1 {
			<-release
		}
		rw.Header().Set("Cache-Control", fmt.Sprintf("max-age=%d, stale-while-revalidate=3600", 3600*(n-1)))
		rw.Header().Set("Etag", fmt.Sprintf(`"%d"`, n))
		fmt.Fprint(rw, "answer ", n)
	})
	w.send("GET", "/v1/x", "")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.body != "answer 1" {
					t.Errorf("while one asks: got %+v", a)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, 30*time.Second, "one at the upstream", func() bool { return asked.Load() == 2 })
	close(release)
	eventually(t, 30*time.Second, "the new answer", func() bool { return w.send("GET", "/v1/x", "").body == "answer 2" })
	if n := asked.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times, want 2", n)
	}
}
