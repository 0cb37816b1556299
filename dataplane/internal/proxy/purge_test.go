package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
)

// counting answers with how often it was asked, under tags.
func counting(tags string) http.HandlerFunc {
	var n atomic.Int64
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		rw.Header().Set("Cache-Tag", tags)
		rw.Header().Set("Surrogate-Key", "s1 s2")
		fmt.Fprintf(rw, "answer %d", n.Add(1))
	}
}

// failing fails for requests and not for probes: a bad one would have the next request served, and changed, in another region.
func failing(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) }

// purge puts a table in force with these purges of the API.
func (w *world) purge(p table.Purges) {
	p.API = "orders"
	o, err := table.Encode(table.KindPurges, p.API, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.objects = append(slices.DeleteFunc(w.objects, func(o table.Object) bool { return o.Kind == table.KindPurges }), o)
	w.west.tables.Swap(w.view(w.west, true))
}

// What a zone purges is given to no request that comes after the table which says so; what is not purged stays.
func TestPurge_EndsWhatIsKept(t *testing.T) {
	w := caching(t, table.Cache{}, true, counting("item-1, all"))
	want := func(what, path, body string) {
		t.Helper()
		a := w.send("GET", path, "")
		if a.status != 200 || a.body != body {
			t.Errorf("%s: got %d %q, want %q", what, a.status, a.body, body)
		}
		if a.header.Get("Cache-Tag") != "" || a.header.Get("Surrogate-Key") != "" {
			t.Errorf("%s: the client is told the tags: %v", what, a.header)
		}
	}
	want("first", "/v1/x?q=1", "answer 1")
	want("kept", "/v1/x?q=1", "answer 1")
	w.purge(table.Purges{Of: []table.Purge{{Seq: 1, What: table.PurgeTag("item-2")}}})
	want("another tag", "/v1/x?q=1", "answer 1")
	w.purge(table.Purges{Of: []table.Purge{{Seq: 1, What: table.PurgeTag("item-2")}, {Seq: 2, What: table.PurgeTag("item-1")}}})
	want("its tag", "/v1/x?q=1", "answer 2")
	want("kept again", "/v1/x?q=1", "answer 2")
	w.purge(table.Purges{Of: []table.Purge{{Seq: 2, What: table.PurgeTag("item-1")}, {Seq: 3, What: table.PurgeTag("s2")}}})
	want("its surrogate key", "/v1/x?q=1", "answer 3")
	want("another URL", "/v1/y", "answer 4")
	w.purge(table.Purges{Of: []table.Purge{{Seq: 3, What: table.PurgeTag("s2")}, {Seq: 4, What: table.PurgeURL("orders.test", "/v1/x", "q=1")}}})
	want("its URL", "/v1/x?q=1", "answer 5")
	want("another URL's is kept", "/v1/y", "answer 4")
	w.purge(table.Purges{All: 5})
	want("all", "/v1/y", "answer 6")
	want("as another client spells it", "/v1/%79", "answer 7")
	w.purge(table.Purges{All: 5, Of: []table.Purge{{Seq: 6, What: table.PurgeURL("orders.test", "/v1/y", "")}}})
	want("its URL, as another client spells it", "/v1/%79", "answer 8")
	w.objects = append(slices.DeleteFunc(w.objects, func(o table.Object) bool { return o.Kind == table.KindPurges }), table.Object{Kind: table.KindPurges, ID: "orders", Data: []byte("{")})
	w.west.tables.Swap(w.view(w.west, true))
	want("what cannot be read", "/v1/y", "answer 9")
	want("keeps nothing", "/v1/y", "answer 10")
}

// An answer on its way when its tag is purged was asked for before, and is not given to those who come after.
func TestPurge_ReachesWhatIsOnItsWay(t *testing.T) {
	arrived, over := make(chan struct{}), make(chan struct{})
	answers := counting("a")
	var held atomic.Bool
	w := caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		if held.CompareAndSwap(false, true) {
			close(arrived)
			<-over
		}
		answers(rw, r)
	})
	got := make(chan answer, 1)
	go func() { got <- w.send("GET", "/v1/x", "") }()
	<-arrived
	w.purge(table.Purges{Of: []table.Purge{{Seq: 1, What: table.PurgeTag("a")}}})
	w.send("GET", "/v1/elsewhere", "") // this edge hears of it
	close(over)
	<-got
	if a := w.send("GET", "/v1/x", ""); a.body != "answer 3" {
		t.Errorf("got %q, which was asked for before the purge", a.body)
	}
}

// Who asks about what is kept while it is purged is not given it because the upstream fails afterwards, nor who waited for an
// answer that was asked for before.
func TestPurge_ReachesWhoWaits(t *testing.T) {
	arrived, fail := make(chan struct{}, 1), make(chan struct{})
	var n atomic.Int64
	w := caching(t, table.Cache{StaleIfError: time.Hour}, false, func(rw http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			rw.Header().Set("Cache-Control", "max-age=0")
			rw.Header().Set("Etag", `"v"`)
			rw.Write([]byte("of before"))
			return
		}
		arrived <- struct{}{}
		<-fail
		rw.WriteHeader(500)
	})
	if a := w.send("GET", "/v1/x", ""); a.body != "of before" {
		t.Fatalf("first: got %+v", a)
	}
	got := make(chan answer, 1)
	go func() { got <- w.send("GET", "/v1/x", "") }()
	<-arrived
	w.purge(table.Purges{All: 1})
	close(fail)
	if a := <-got; a.status != 500 {
		t.Errorf("the upstream fails after the purge: got %d %q, want its 500", a.status, a.body)
	}

	arrived, over := make(chan struct{}), make(chan struct{})
	answers := counting("a")
	var held atomic.Bool
	w = caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		if held.CompareAndSwap(false, true) {
			close(arrived)
			<-over
			answers(rw, r)
			return
		}
		answers(rw, r)
	})
	go func() { got <- w.send("GET", "/v1/x", "") }()
	<-arrived
	waits := make(chan answer, 1)
	go func() { waits <- w.send("GET", "/v1/x", "") }()
	time.Sleep(20 * time.Millisecond) // long enough to wait, mostly; the verdict is the same if it has not come yet
	w.purge(table.Purges{All: 1})
	close(over)
	if a := <-got; a.body != "answer 1" {
		t.Errorf("who asked before: %+v", a)
	}
	if a := <-waits; a.body != "answer 2" {
		t.Errorf("who waited: got %q, which was asked for before the purge", a.body)
	}
}

// Upstreams are told by which scheme a client came, and lead those without TLS to it: no answer for who came with it.
func TestCache_IsOfOneScheme(t *testing.T) {
	w := caching(t, table.Cache{}, true, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		rw.Write([]byte(r.Header.Get("X-Forwarded-Proto")))
	})
	if a := w.send("GET", "/v1/x", ""); a.body != "http" {
		t.Fatalf("without TLS: got %+v", a)
	}
	server := httptest.NewTLSServer(w.west.proxy)
	defer server.Close()
	req, err := http.NewRequest("GET", server.URL+"/v1/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "orders.test"
	req.Header.Set("X-Api-Key", w.key)
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if said, err := io.ReadAll(resp.Body); string(said) != "https" {
		t.Errorf("with TLS: got %d %q, %v", resp.StatusCode, said, err)
	}
}

func TestPurge_SoftlyIsStale(t *testing.T) {
	w := caching(t, table.Cache{StaleIfError: time.Hour}, false, counting("a"))
	w.send("GET", "/v1/x", "")
	w.purge(table.Purges{Of: []table.Purge{{Seq: 1, What: table.PurgeTag("a"), Soft: true}}})
	w.west.up.does(failing)
	if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.body != "answer 1" {
		t.Errorf("while the upstream fails: got %d %q, want what was made stale", a.status, a.body)
	}
	w.west.up.does(nil)
	if a := w.send("GET", "/v1/x", ""); a.body == "answer 1" {
		t.Error("what was made stale is given without asking")
	}
}

// By default nobody is given what another key brought where upstreams are told who asks: they may answer by it. Where they are
// told nothing, keys of one subscription and plan share. A route may say otherwise.
func TestCache_IsOfOneKeyByDefault(t *testing.T) {
	for _, c := range []struct {
		scope             string
		anonymous         bool
		sameSub, samePlan bool // is given to another key of the subscription; to one of the same name on another plan
	}{
		{"", false, false, false},
		{"", true, true, false},
		{"key", true, false, false},
		{"subscription", false, true, false},
		{"customer", false, true, true},
		{"something newer", false, false, false},
	} {
		w := caching(t, table.Cache{Scope: c.scope}, true, counting("a"))
		usual := w.west.orders
		w.west.orders = func(a *table.API) {
			usual(a)
			a.Auth = &table.Auth{Anonymous: c.anonymous}
		}
		second, o := mint(t, "gold")
		other, o2 := mint(t, "platinum-class")
		w.objects = append(w.objects, o, o2)
		w.west.tables.Swap(w.view(w.west, true))
		w.send("GET", "/v1/x", "")
		for _, k := range []struct {
			key    string
			shares bool
		}{{second, c.sameSub}, {other, c.samePlan}} {
			if a := w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", k.key); a.status != 200 || (a.body == "answer 1") != k.shares {
				t.Errorf("scope %q, anonymous %v: another key got %d %q, want shared %v", c.scope, c.anonymous, a.status, a.body, k.shares)
			}
		}
	}
}

// A request that changes a resource ends what is kept of it for everybody at this edge (RFC 9111, 4.4), once it worked.
func TestCache_AChangeEndsWhatEverybodyIsGiven(t *testing.T) {
	w := caching(t, table.Cache{}, true, counting("a"))
	second, o := mint(t, "gold")
	w.objects = append(w.objects, o)
	w.west.tables.Swap(w.view(w.west, true))
	first := w.send("GET", "/v1/x", "").body
	w.west.up.does(failing)
	w.send("POST", "/v1/x", "change", "X-Api-Key", "", "X-Api-Key", second)
	if a := w.send("GET", "/v1/x", ""); a.body != first {
		t.Errorf("after one that failed: got %q, want %q", a.body, first)
	}
	w.west.up.does(counting("b"))
	w.send("POST", "/v1/x", "change", "X-Api-Key", "", "X-Api-Key", second)
	if a := w.send("GET", "/v1/x", ""); a.body == first {
		t.Error("after another key's change the old answer is given")
	}
}
