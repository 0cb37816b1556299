package proxy_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/cache"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// caching is a world whose API keeps answers as of rules; paired says whether the other region may be asked.
func caching(t *testing.T, rules table.Cache, paired bool, answer http.HandlerFunc) *world {
	t.Helper()
	var p []*proxy.Proxy
	w := newWorld(t, func(c *proxy.Config) {
		patient(c)
		c.Gate.Tokens = tokens{}
		kept, err := cache.New(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(kept.Close)
		c.Cache = kept
	})
	p = append(p, w.west.proxy)
	w.west.orders = func(a *table.API) {
		a.HealthTimeout = time.Minute
		a.Routes = []table.Route{{Name: "all", Cache: &rules}, {Name: "plain", PathPrefix: "/plain"}}
	}
	w.west.tables.Swap(w.view(w.west, paired))
	w.west.up.does(answer)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p[0].Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

func says(cacheControl string) http.HandlerFunc {
	var n atomic.Int64
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", cacheControl)
		rw.Header().Set("Etag", `"v"`)
		if r.Header.Get("If-None-Match") == `"v"` {
			rw.WriteHeader(304)
			return
		}
		fmt.Fprintf(rw, "answer %d", n.Add(1))
	}
}

func (w *world) asked() int64 { return w.west.up.count.Load() }

// stranger is a key of another customer.
func (w *world) stranger() string {
	id, text, err := apikey.Mint("emea", rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	d := apikey.Sum(pepper, text.Reveal())
	o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "umbrella", Subscription: "main", Plan: "gold"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.objects = append(w.objects, o)
	w.west.tables.Swap(w.view(w.west, true))
	return text.Reveal()
}

// Some servers read a field whose name has an underscore, or a dot, as one with a dash, and no Vary and no condition says so: what such a request
// is answered is kept for nobody.
func TestCache_AnUnderscoreInANameGoesBy(t *testing.T) {
	w := caching(t, table.Cache{Scope: "all"}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["Cache-Control"], rw.Header()["Vary"] = []string{"max-age=3600"}, []string{"Accept-Language, X-Tenant"}
		fmt.Fprint(rw, r.Header)
	})
	for i, name := range []string{"X_tenant", "Accept_Language", "If_None_Match", "Cookie_law", "X.tenant", "Accept~Language"} {
		path := fmt.Sprint("/v1/x?", i)
		if a := w.send("GET", path, "", name, "odd"); a.status != 200 || !strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; fwd=") || strings.Contains(a.header.Get("Cache-Status"), "stored") && strings.Contains(a.body, "odd") {
			t.Errorf("%s: got %+v", name, a)
		}
		if a := w.send("GET", path, ""); a.status != 200 || strings.Contains(a.body, "odd") {
			t.Errorf("who asks after %s gets %+v", name, a)
		}
		if a := w.send("GET", path, ""); a.status != 200 || !strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit") {
			t.Errorf("then %+v", a)
		}
		if a := w.send("GET", path, "", name, "odd"); a.status != 200 || strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit") && (name == "X_tenant" || name == "Cookie_law" || name == "X.tenant") {
			t.Errorf("%s, while an answer is kept: got %+v", name, a)
		}
	}
}

func TestCache_AHitIsCountedAndAsksNobody(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=3600"))
	first, second := w.send("GET", "/v1/x?a=1", ""), w.send("GET", "/v1/x?a=1", "")
	if first.status != 200 || first.body != "answer 1" || first.header.Get("Cache-Status") != "bailiwick; fwd=uri-miss; stored" {
		t.Errorf("first: got %+v", first)
	}
	if second.status != 200 || second.body != "answer 1" || !strings.HasPrefix(second.header.Get("Cache-Status"), "bailiwick; hit; ttl=") || second.header.Get("Age") == "" || second.served != "eu-west" || second.header.Get("Content-Length") != "8" {
		t.Errorf("second: got %+v", second)
	}
	if first.header.Get("Bailiwick-Request-Id") == second.header.Get("Bailiwick-Request-Id") {
		t.Error("the second has the first's request id")
	}
	if n := w.asked(); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
	// Counted like the first, and told from it: nobody's upstream answered.
	rows := w.west.meter.since(0)
	if len(rows) != 2 || rows[1].Outcome != usage.OutcomeSuccess || rows[1].Requests != 1 || rows[1].Units != 1 || rows[1].ServedRegion != "" || rows[1].Flags&usage.FlagCached == 0 || rows[1].BytesOut != 8 || rows[1].Attempts != 0 {
		t.Errorf("rows %+v", rows)
	}
	if rows[0].Flags&usage.FlagCached != 0 || rows[0].ServedRegion != "eu-west" {
		t.Errorf("the first is counted as a hit: %+v", rows[0])
	}
	if a := w.send("HEAD", "/v1/x?a=1", ""); a.status != 200 || a.body != "" || a.header.Get("Content-Length") != "8" || w.asked() != 1 {
		t.Errorf("HEAD: got %+v, the upstream was asked %d times", a, w.asked())
	}
	if a := w.send("GET", "/v1/x?a=1", "", "If-None-Match", `W/"v"`); a.status != 304 || a.body != "" || w.asked() != 1 {
		t.Errorf("a client that has it: got %+v", a)
	}
	for _, other := range [][]string{{"GET", "/v1/x?a=2"}, {"GET", "/v1/X?a=1"}, {"GET", "/plain/x"}} {
		if a := w.send(other[0], other[1], ""); a.body == "answer 1" {
			t.Errorf("%s is answered with another's: %+v", other[1], a)
		}
	}
	if a := w.send("GET", "/v1/nothing", "", "Cache-Control", "only-if-cached"); a.status != 504 {
		t.Errorf("only-if-cached: got %d", a.status)
	}
	_, told := w.west.proxy.Outcomes()
	for _, o := range told { // a customer could take a change of the catalog back
		if o.Failed > 0 {
			t.Errorf("only-if-cached is told of as a failure of the API: %+v", o)
		}
	}
	before := w.asked()
	if a := w.send("GET", "/v1/x?a=1", "", "Cache-Control", "no-store"); a.header.Get("Cache-Status") != "bailiwick; fwd=bypass" || w.asked() != before+1 {
		t.Errorf("no-store: got %+v", a)
	}
	// What changes the resource ends what is kept of it, once it worked.
	w.send("POST", "/v1/x?a=1", "change")
	if a := w.send("GET", "/v1/x?a=1", ""); a.body == "answer 1" {
		t.Error("after a POST the old answer is given")
	}
	// A key that the gate refuses gets nothing of what is kept.
	if a := w.send("GET", "/v1/x?a=1", "", "X-Api-Key", ""); a.status != 401 {
		t.Errorf("without a key: got %d %s", a.status, a.body)
	}
}

func TestCache_IsOfOneCustomer(t *testing.T) {
	for scope, shared := range map[string]bool{"": false, "customer": false, "plan": true, "all": true} {
		w := caching(t, table.Cache{Scope: scope}, true, says("max-age=3600"))
		key := w.stranger()
		w.send("GET", "/v1/x", "")
		if a := w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", key); (a.body == "answer 1") != shared || a.status != 200 {
			t.Errorf("scope %q: another customer of the plan got %d %q", scope, a.status, a.body)
		}
	}
}

// Another generation of the route's cache begins with nothing.
func TestCache_AnotherGenerationForgets(t *testing.T) {
	rules := table.Cache{}
	w := caching(t, rules, true, says("max-age=3600"))
	w.send("GET", "/v1/x", "")
	w.west.orders = func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Cache: &table.Cache{Generation: 1}}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	if a := w.send("GET", "/v1/x", ""); a.body != "answer 2" {
		t.Errorf("got %q, want it asked for anew", a.body)
	}
}

// A product may give hits away: they are counted, and not billed.
func TestCache_FreeHitsHaveNoUnits(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=3600"))
	w.west.plan = func(p *table.Plan) { p.FreeHits = []string{"orders"} }
	w.west.tables.Swap(w.view(w.west, true))
	w.send("GET", "/v1/x", "")
	w.send("GET", "/v1/x", "")
	rows := w.west.meter.since(0)
	if len(rows) != 2 || rows[0].Units != 1 || rows[1].Units != 0 || rows[1].Requests != 1 || rows[1].Flags&usage.FlagCached == 0 {
		t.Errorf("rows %+v, want the first of one unit and the second of none", rows)
	}
}

// Nor is one of them that is so long that its units would be in rows before its end.
func TestCache_LongFreeHitsHaveNoUnits(t *testing.T) {
	w := caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		rw.Header().Set("Content-Length", "200000")
		rw.Write(make([]byte, 200_000))
	})
	kept := w.west.orders
	w.west.orders = func(a *table.API) {
		if kept != nil {
			kept(a)
		}
		for i := range a.Routes {
			a.Routes[i].Units = &table.Units{PerBytes: 10_000, Most: 50}
		}
	}
	w.west.plan = func(p *table.Plan) { p.FreeHits = []string{"orders"} }
	w.west.tables.Swap(w.view(w.west, true))
	for i, want := range []int64{20, 0} {
		before := w.west.meter.paid()
		a := w.send("GET", "/v1/x", "")
		if got := w.west.meter.paid() - before; got != want || a.status != 200 || len(a.body) != 200_000 || w.west.meter.last().Flags&usage.FlagCached != 0 != (i == 1) {
			t.Errorf("request %d: %d of %d bytes, %d units, want %d; the last row is %+v", i, a.status, len(a.body), got, want, w.west.meter.last())
		}
	}
}

// Cells do not say that a row is of a kept answer. One without a served region that was aborted got none; so a hit that is free
// is told from it by its outcome, also where its client leaves.
func TestCache_AFreeHitIsBookedAsWhatItSays(t *testing.T) {
	for _, free := range []bool{false, true} {
		const long = 15 << 20
		w := caching(t, table.Cache{MaxBytes: 16 << 20}, true, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/hangs" {
				<-r.Context().Done()
				return
			}
			rw.Header().Set("Cache-Control", "max-age=3600")
			rw.Header().Set("Content-Length", strconv.Itoa(long))
			rw.WriteHeader(404)
			rw.Write(make([]byte, long))
		})
		if free {
			w.west.plan = func(p *table.Plan) { p.FreeHits = []string{"orders"} }
			w.west.tables.Swap(w.view(w.west, true))
		}
		if a := w.send("GET", "/v1/x", ""); a.status != 404 || len(a.body) != long {
			t.Fatalf("got %d, %d bytes", a.status, len(a.body))
		}
		leaves := func(path string, reads bool) usage.Row {
			before := w.west.meter.len()
			nc, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", path, w.key)
			if reads {
				nc.Read(make([]byte, 1))
			} else {
				eventually(t, 10*time.Second, "the request upstream", func() bool { return w.asked() > 1 })
			}
			nc.Close()
			eventually(t, 10*time.Second, "its row", func() bool {
				for _, r := range w.west.meter.since(before) {
					if r.Requests > 0 {
						return true
					}
				}
				return false
			})
			return w.west.meter.last()
		}
		want := map[bool]usage.Outcome{false: usage.OutcomeAborted, true: usage.OutcomeClientError}[free]
		if row := leaves("/v1/x", true); row.Flags&usage.FlagCached == 0 || row.ServedRegion != "" || row.Requests != 1 || row.Outcome != want || row.Units > 0 == free || row.BytesOut >= long {
			t.Errorf("free %v: a client leaves within a hit: row %+v, want %v", free, row, want)
		}
		if row := leaves("/v1/hangs", false); row.Flags&usage.FlagCached != 0 || row.ServedRegion != "" || row.Requests != 1 || row.Outcome != usage.OutcomeAborted || row.Units != 0 {
			t.Errorf("free %v: a client leaves before there is an answer: row %+v, want it aborted", free, row)
		}
	}
}

func TestCache_AsksWhetherWhatIsStaleStillHolds(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=0"))
	w.send("GET", "/v1/x", "")
	a := w.send("GET", "/v1/x", "")
	if a.status != 200 || a.body != "answer 1" || !strings.Contains(a.header.Get("Cache-Status"), "fwd-status=304") {
		t.Errorf("got %+v, want the kept answer after a 304", a)
	}
	if row := w.west.meter.last(); row.ServedRegion != "eu-west" || row.Flags&usage.FlagCached != 0 || row.Units != 1 {
		t.Errorf("an upstream was asked, and the row is %+v", row)
	}
	if n := w.asked(); n != 2 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestCache_StaleWhileRevalidate(t *testing.T) {
	var version atomic.Int64
	version.Store(1)
	w := caching(t, table.Cache{StaleWhileRevalidate: time.Hour}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=0")
		rw.Header().Set("Etag", fmt.Sprintf(`"%d"`, version.Load()))
		fmt.Fprintf(rw, "version %d", version.Load())
	})
	w.send("GET", "/v1/x", "")
	for range 10 { // more than ask at a time: each is its own end alone
		w.west.proxy.Poison()
	}
	version.Store(2)
	if a := w.send("GET", "/v1/x", ""); a.body != "version 1" {
		t.Errorf("stale, within its time: got %q, want the kept answer at once", a.body)
	}
	eventually(t, 30*time.Second, "the answer asked for in the background", func() bool { return w.send("GET", "/v1/x", "").body == "version 2" })
	for _, row := range w.west.meter.since(1) {
		if row.ServedRegion != "" {
			t.Errorf("what the edge asks for itself is counted: %+v", row)
		}
	}
}

func TestCache_StaleIfError(t *testing.T) {
	w := caching(t, table.Cache{StaleIfError: time.Hour}, false, says("max-age=0"))
	w.send("GET", "/v1/x", "")
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(500) })
	a := w.send("GET", "/v1/x", "")
	if a.status != 200 || a.body != "answer 1" || !strings.Contains(a.header.Get("Cache-Status"), "bailiwick; fwd=stale; fwd-status=500") {
		t.Errorf("the upstream fails: got %+v, want what is kept", a)
	}
	if a := w.send("GET", "/v1/y", ""); a.status != 500 {
		t.Errorf("nothing is kept: got %d", a.status)
	}
	w.west.up.kill()
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.body != "answer 1" {
		t.Errorf("the upstream is dead: got %+v, want what is kept", a)
	}
}

// Invariant 13: what another region answered is kept neither where it was accepted nor where it was answered.
func TestCache_KeepsNothingOfAnotherRegion(t *testing.T) {
	w := caching(t, table.Cache{TTL: time.Hour}, true, says("max-age=3600"))
	w.central.orders = w.west.orders
	w.central.tables.Swap(w.view(w.central, true))
	w.central.up.does(says("max-age=3600"))
	w.west.up.kill()
	eventually(t, 30*time.Second, "an answer by eu-central", func() bool { return w.send("GET", "/v1/first", "").served == "eu-central" })
	for i := range 3 {
		before := w.central.up.count.Load()
		a := w.send("GET", "/v1/x", "")
		if a.status != 200 || a.served != "eu-central" || w.central.up.count.Load() != before+1 {
			t.Errorf("request %d: got %+v, want eu-central's upstream asked", i, a)
		}
	}
}

func TestCache_RequestsForOneAnswerWaitForOne(t *testing.T) {
	release := make(chan struct{})
	w := caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		<-release
		rw.Header().Set("Cache-Control", "max-age=3600")
		fmt.Fprint(rw, "once")
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.body != "once" {
				t.Errorf("got %+v", a)
			}
		})
	}
	eventually(t, 30*time.Second, "one at the upstream", func() bool { return w.asked() == 1 })
	close(release)
	wg.Wait()
	if n := w.asked(); n != 1 {
		t.Errorf("20 requests at once: the upstream was asked %d times", n)
	}
	if got := w.west.meter.finals(t)[usage.OutcomeSuccess]; got != 20 {
		t.Errorf("%d counted, want 20", got)
	}
}

// Half an answer is not kept, nor one that is longer than may be, nor one that says so.
func TestCache_KeepsWholeAnswersAlone(t *testing.T) {
	w := caching(t, table.Cache{MaxBytes: 100}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		switch r.URL.Path {
		case "/v1/half":
			rw.Header().Set("Content-Length", "50")
			rw.Write([]byte("half"))
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/v1/long":
			rw.Write(make([]byte, 101))
			rw.(http.Flusher).Flush()
		case "/v1/endless": // may be half or whole
			conn, _, err := rw.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Write([]byte("HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nConnection: close\r\n\r\nhalf"))
			conn.Close()
		case "/v1/trailer":
			rw.Write([]byte("x"))
			rw.(http.Flusher).Flush()
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		case "/v1/private":
			rw.Header().Set("Cache-Control", "private, max-age=3600")
			rw.Write([]byte("mine"))
		}
	})
	for _, path := range []string{"/v1/half", "/v1/long", "/v1/private", "/v1/endless", "/v1/trailer"} {
		for i := range int64(2) {
			before := w.asked()
			if w.send("GET", path, ""); w.asked() == before {
				t.Errorf("%s, request %d: it was kept", path, i)
			}
		}
	}
}

// What this region keeps is no matter of another one: its "not modified" would be an empty answer to a client that has nothing.
func TestCache_AsksNoOtherRegionWhetherWhatIsKeptHolds(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=0"))
	w.central.up.does(says("max-age=0"))
	w.send("GET", "/v1/x", "")
	w.west.up.kill()
	var a answer
	eventually(t, 30*time.Second, "an answer by eu-central", func() bool { a = w.send("GET", "/v1/x", ""); return a.served == "eu-central" })
	if a.status != 200 || a.body == "" {
		t.Errorf("got %d %q, want eu-central's whole answer", a.status, a.body)
	}
	if a := w.send("GET", "/v1/x", "", "If-None-Match", `"mine"`); a.status != 200 {
		t.Errorf("a client that has something else got %d", a.status)
	}
	if a := w.send("GET", "/v1/x", "", "If-None-Match", `"v"`); a.served == "eu-central" && a.status != 304 {
		t.Errorf("a client that has it got %d", a.status)
	}
}

// Copies of answers under way have a bound of their own: beyond it answers pass, and are not kept.
func TestCache_CopiesNoMoreThanItMay(t *testing.T) {
	w := caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		fmt.Fprint(rw, "some bytes")
		if r.URL.Path == "/v1/chunked" {
			rw.(http.Flusher).Flush()
		}
	})
	p := w.west.proxy
	for _, path := range []string{"/v1/declared", "/v1/chunked"} {
		p.Copying(proxy.MostCopied - 5)
		for range 2 {
			before := w.asked()
			if a := w.send("GET", path, ""); a.body != "some bytes" || w.asked() != before+1 {
				t.Errorf("%s without room: got %+v, or it was kept", path, a)
			}
		}
		p.Copying(5 - proxy.MostCopied)
		w.send("GET", path, "")
		before := w.asked()
		if a := w.send("GET", path, ""); a.body != "some bytes" || w.asked() != before {
			t.Errorf("%s with room: it was not kept", path)
		}
	}
	eventually(t, 30*time.Second, "no room taken for nothing", func() bool { return p.Copying(0) == 0 })
}

// Who shows a token is one of a customer's many, and an upstream is told which: what it says to one is not for another.
func TestCache_HoldersOfTokensShareNothing(t *testing.T) {
	for _, scope := range []string{"", "subscription", "customer"} {
		t.Run("scope "+scope, func(t *testing.T) { holdersShareNothing(t, scope) })
	}
}

func holdersShareNothing(t *testing.T, scope string) {
	w := caching(t, table.Cache{Scope: scope}, true, says("max-age=3600"))
	rules := w.west.orders
	w.west.orders = func(a *table.API) {
		rules(a)
		a.Auth = &table.Auth{Issuers: []table.Issuer{{Issuer: "https://id.test"}}}
	}
	for _, subject := range []string{"one", "two"} {
		id, d := apikey.NewHasher(pepper).Bound(apikey.KindToken, apikey.TokenText("https://id.test", subject))
		o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: "main", Plan: "gold"})
		if err != nil {
			t.Fatal(err)
		}
		w.objects = append(w.objects, o)
	}
	w.west.tables.Swap(w.view(w.west, true))
	for i, c := range []struct{ subject, want string }{{"one", "answer 1"}, {"two", "answer 2"}, {"one", "answer 1"}, {"two", "answer 2"}} {
		if a := w.send("GET", "/v1/me", "", "X-Api-Key", "", "Authorization", "Bearer "+c.subject+"~"); a.status != 200 || a.body != c.want {
			t.Errorf("request %d, of %s: got %d %s, want %s", i, c.subject, a.status, a.body, c.want)
		}
	}
}

// What is kept of a URL goes when it is changed, also by way of another route.
func TestCache_AChangeByAnotherRouteEndsWhatIsKept(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=3600"))
	w.west.orders = func(a *table.API) {
		a.Routes = []table.Route{{Name: "read", Methods: []string{"GET"}, Cache: &table.Cache{}}, {Name: "write", Methods: []string{"POST"}}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	w.send("GET", "/v1/x", "")
	if a := w.send("GET", "/v1/x", ""); a.body != "answer 1" {
		t.Fatalf("got %q, want what is kept", a.body)
	}
	w.send("POST", "/v1/x", "change")
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.body == "answer 1" {
		t.Errorf("after a POST: got %d %q", a.status, a.body)
	}
}

// Renewals may be long in line: what they were to ask is not asked once the API is another.
func TestCache_RenewsNothingOfAnAPIThatChanged(t *testing.T) {
	var stuck atomic.Bool
	var ninth atomic.Int64
	release := make(chan struct{})
	w := caching(t, table.Cache{StaleWhileRevalidate: time.Hour}, true, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/ninth" {
			ninth.Add(1)
		} else if stuck.Load() {
			<-release
		}
		rw.Header().Set("Cache-Control", "max-age=0")
		rw.Header().Set("Etag", `"v"`)
		fmt.Fprint(rw, "x")
	})
	var paths []string
	for i := range 8 {
		paths = append(paths, fmt.Sprint("/v1/", i))
	}
	for _, path := range append(paths, "/v1/ninth") {
		w.send("GET", path, "")
	}
	stuck.Store(true)
	for _, path := range paths {
		w.send("GET", path, "")
	}
	eventually(t, 30*time.Second, "eight renewals under way", func() bool { return w.asked() == 9+8 })
	w.send("GET", "/v1/ninth", "")
	rules := w.west.orders
	w.west.orders = func(a *table.API) { rules(a); a.Routes[0].Cache.Generation = 1 }
	w.west.tables.Swap(w.view(w.west, true))
	close(release)
	w.send("GET", "/v1/last", "")
	w.send("GET", "/v1/last", "")
	eventually(t, 30*time.Second, "a renewal behind it", func() bool { return w.asked() >= 9+8+2 })
	if n := ninth.Load(); n != 1 {
		t.Errorf("asked %d times, want the API that was to be asked by nobody any more", n)
	}
}
