package cache_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/cache"
	"bailiwick/shared/table"
)

// tagged is an entry of API a that was asked for at an instant.
func tagged(sent time.Time, url string, tags ...string) *cache.Entry {
	a := cache.Ask("GET", nil, false)
	e := cache.Keeps(&a, nil, cache.Answer{Status: 200, Header: header("Cache-Control", "max-age=3600"), Sent: sent, Received: sent},
		cache.Rules{StaleWhileRevalidate: time.Minute, StaleIfError: time.Minute})
	return e.Under(cache.About{API: "a", URL: table.PurgeURL("h", url, "")}, tags).With(nil)
}

func TestPurge_EndsWhatWasAskedForBefore(t *testing.T) {
	const (
		there = "there"
		stale = "stale"
		gone  = "gone"
	)
	tag, url := table.PurgeTag, func(u string) string { return table.PurgeURL("h", u, "") }
	for _, c := range []struct {
		name   string
		purges []table.Purges // as tables bring them, a second apart from t0 on
		sent   time.Duration
		want   string
	}{
		{"nothing", nil, 0, there},
		{"its tag", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x")}}}}, -1, gone},
		{"at that moment", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x")}}}}, 0, gone},
		{"asked for after it", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x")}}}}, 1, there},
		{"another tag", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("z")}}}}, -1, there},
		{"its second tag", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("y")}}}}, -1, gone},
		{"its URL", []table.Purges{{Of: []table.Purge{{Seq: 1, What: url("/1")}}}}, -1, gone},
		{"a URL spelt as its tag", []table.Purges{{Of: []table.Purge{{Seq: 1, What: url("x")}}}}, -1, there},
		{"all", []table.Purges{{All: 1}}, -1, gone},
		{"all, asked for after it", []table.Purges{{All: 1}}, 1, there},
		{"softly", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x"), Soft: true}}}}, -1, stale},
		{"all softly", []table.Purges{{Of: []table.Purge{{Seq: 1, Soft: true}}}}, -1, stale},
		{"softly, then not", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x"), Soft: true}, {Seq: 2, What: tag("x")}}}}, -1, gone},
		{"what is done is not done again", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("x")}}}, {Of: []table.Purge{{Seq: 1, What: tag("x")}, {Seq: 2, What: tag("z")}}}}, 0.5e9, there},
		{"what a table of before says is not either", []table.Purges{{All: 7}, {Of: []table.Purge{{Seq: 3, What: tag("x")}}}}, 0.5e9, there},
		{"missed ones, folded into all", []table.Purges{{Of: []table.Purge{{Seq: 1, What: tag("z")}}}, {All: 5, Of: []table.Purge{{Seq: 6, What: tag("z")}}}}, 0.5e9, gone},
		{"folded ones that were done", []table.Purges{{Of: []table.Purge{{Seq: 5, What: tag("z")}}}, {All: 5, Of: []table.Purge{{Seq: 6, What: tag("z")}}}}, 0.5e9, there},
	} {
		k, err := cache.New(0)
		if err != nil {
			t.Fatal(err)
		}
		key := cache.KeyOf("k")
		k.Put(key, tagged(t0.Add(c.sent), "/1", "x", "y"))
		for i, p := range c.purges {
			p.API = "a"
			if !k.Heed("a", &p, 1, t0.Add(time.Duration(i)*time.Second)) {
				t.Errorf("%s: cannot be read", c.name)
			}
		}
		got, a := gone, cache.Ask("GET", nil, false)
		if e := k.Get(key, nil); e != nil {
			got = there
			if s := e.Judge(&a, t0.Add(10*time.Second)); s != cache.Fresh {
				got = stale
				if s != cache.Revalidate || e.Judge(&a, t0.Add(61*time.Second)) != cache.Expired || !e.IfError(&a, t0.Add(59*time.Second)) {
					t.Errorf("%s: not as if its time had ended then", c.name)
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
		k.Close()
	}
}

func TestPurge_OfAnotherEpochBeginsAnewAndWhatCannotBeReadKeepsNothing(t *testing.T) {
	k, err := cache.New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	key := cache.KeyOf("k")
	k.Heed("a", &table.Purges{All: 9}, 1, t0)
	k.Put(key, tagged(t0.Add(time.Second), "/1", "x"))
	k.Heed("a", &table.Purges{Of: []table.Purge{{Seq: 1, What: table.PurgeTag("x")}}}, 2, t0.Add(2*time.Second))
	if k.Get(key, nil) != nil {
		t.Error("the first purge after a recovery was taken for one that was done")
	}
	if k.Heed("a", &table.Purges{All: 10}, 1, t0.Add(time.Hour)); k.Get(key, nil) != nil {
		t.Error("a table of the epoch before undid it")
	}
	if k.Heed("a", &table.Purges{Unread: true}, 2, t0) || !k.Heed("a", nil, 2, t0) {
		t.Error("what cannot be read passes, or what is not there does not")
	}
}

// Any number of changed URLs takes bounded memory, each ends what is kept of it, and hardly anything else.
func TestPurge_EndsOfManyURLsAreBounded(t *testing.T) {
	k, err := cache.New(0)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const kept = 1000
	key := func(i int) cache.Key { return cache.KeyOf(fmt.Sprint(i)) }
	of := func(i int) string { return fmt.Sprint("/kept/", i) }
	for i := range kept {
		k.Put(key(i), tagged(t0, of(i)))
	}
	later := t0.Add(time.Second)
	for i := range 20_000 {
		k.End(cache.About{API: "a", URL: fmt.Sprint(i)}, 1, later)
	}
	left := func() (n int) {
		for i := range kept {
			if k.Get(key(i), nil) != nil {
				n++
			}
		}
		return n
	}
	if n := left(); k.Marks("a") > 16_384 || n < kept*3/4 { // 11,808 of 131,072 slots: nine of a hundred are expected to share one
		t.Errorf("%d marks are held, and %d of %d answers that nobody changed are there", k.Marks("a"), n, kept)
	}
	for i := range kept {
		k.End(cache.About{API: "a", URL: table.PurgeURL("h", of(i), "")}, 1, later)
	}
	if n := left(); n != 0 {
		t.Errorf("%d answers of URLs that were changed are there", n)
	}
	again := cache.KeyOf("again")
	k.Put(again, tagged(later.Add(time.Second), of(1)))
	if k.Get(again, nil) == nil {
		t.Error("what was asked for after the change is not kept")
	}
	// Old marks make room for new ones, and what is kept is as new.
	late := later.Add(400 * 24 * time.Hour)
	k.End(cache.About{API: "a", URL: "late"}, 1, late)
	if n := k.Marks("a"); n > 10 {
		t.Errorf("%d marks that nobody needs are held", n)
	}
	// As many APIs as you like.
	for api := range 30 {
		for i := range 10_000 {
			k.End(cache.About{API: fmt.Sprint("api", api), URL: fmt.Sprint(i)}, 1, later)
		}
	}
	if n := k.Tables(); n > 17 {
		t.Errorf("%d tables", n)
	}
	again = cache.KeyOf("of api29")
	k.Put(again, tagged(later, of(2)).Under(cache.About{API: "api29", URL: "kept"}, nil))
	k.End(cache.About{API: "api29", URL: "kept"}, 1, later)
	if k.Get(again, nil) != nil {
		t.Error("of an API without a table what was changed is there")
	}
}

func TestTags(t *testing.T) {
	h := header("Cache-Tag", "a, b,,c", "Surrogate-Key", "d  e,f", "X-A", "1")
	tags, fine := cache.Tags(h)
	if strings.Join(tags, "|") != "a|b|c|d|e,f" || !fine || len(h) != 1 {
		t.Errorf("got %v %v, and %v is left", tags, fine, h)
	}
	for _, bad := range []http.Header{header("Cache-Tag", strings.Repeat("x,", 65)), header("Surrogate-Key", strings.Repeat("x", 129))} {
		if tags, fine := cache.Tags(bad); fine || len(tags) > 64 {
			t.Errorf("%d tags: fine %v", len(tags), fine)
		}
	}
}
