package cache_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/cache"
)

// The bound is one of memory, and not only of what is reckoned: whatever entries are like, the heap grows by no more than it.
func TestCache_ItsBoundIsTheHeaps(t *testing.T) {
	const bound = 3 << 20
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what finalizers and pools held
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for name, entry := range map[string]func(i int) (request, answer http.Header, body string){
		"of nothing": func(i int) (_, _ http.Header, _ string) { return nil, header("Cache-Control", "max-age=60"), "" },
		"of 100 bytes": func(i int) (_, _ http.Header, _ string) {
			return nil, header("Cache-Control", "max-age=60", "Content-Type", "text/plain", "Etag", fmt.Sprint(i)), strings.Repeat("x", 100)
		},
		"of 64 KiB": func(i int) (_, _ http.Header, _ string) {
			return nil, header("Cache-Control", "max-age=60"), strings.Repeat("x", 64<<10)
		},
		"of many fields": func(i int) (_, _ http.Header, _ string) {
			h := header("Cache-Control", "max-age=60")
			for j := range 40 {
				h.Add(fmt.Sprint("X-", j), "v")
			}
			return nil, h, ""
		},
		"of one URL, varying": func(i int) (_, _ http.Header, _ string) {
			return header("X-A", fmt.Sprint(i)), header("Cache-Control", "max-age=60", "Vary", "X-A"), strings.Repeat("x", 50)
		},
		"of tags": func(i int) (_, _ http.Header, _ string) {
			return nil, header("Cache-Control", "max-age=60", "Cache-Tag", strings.Repeat("a b ", 30)), ""
		},
	} {
		before := heap()
		c, err := cache.New(bound)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8_000 {
			if name == "of 64 KiB" && i > 100 {
				break
			}
			request, answer, body := entry(i)
			tags, _ := cache.Tags(answer)
			a := cache.Ask("GET", request, false)
			e := cache.Keeps(&a, request, cache.Answer{Status: 200, Header: answer, Sent: t0, Received: t0}, cache.Rules{})
			key := fmt.Sprint(i)
			if name == "of one URL, varying" {
				key = fmt.Sprint(i / 20)
			}
			c.Put(cache.KeyOf(key), e.Under(cache.About{API: "a", URL: key}, tags).With([]byte(body)))
		}
		for end := time.Now().Add(30 * time.Second); c.Bytes() > bound && time.Now().Before(end); time.Sleep(time.Millisecond) { // it makes room in the background
		}
		held := heap() - before
		t.Logf("%s: %d KiB of heap, %d KiB reckoned", name, held>>10, c.Bytes()>>10)
		if c.Bytes() > bound || held > bound+(256<<10) {
			t.Errorf("%s: the heap holds %d bytes of it, and it reckons with %d; the bound is %d", name, held, c.Bytes(), bound)
		}
		c.Close()
		runtime.KeepAlive(c)
	}
}

// A thousand find the same stale answer: one asks anew, and all others have the answer at once.
func TestFlight_OneOfACrowdRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := cache.New(0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		key, now := cache.KeyOf("a"), time.Now()
		kept := func(sent time.Time) *cache.Entry {
			a := cache.Ask("GET", nil, false)
			return cache.Keeps(&a, nil, cache.Answer{Status: 200, Header: header("Cache-Control", "max-age=10, stale-while-revalidate=60"), Sent: sent, Received: sent}, cache.Rules{}).With(nil)
		}
		c.Put(key, kept(now))
		time.Sleep(20 * time.Second)
		var asks, stale, fresh atomic.Int64
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // those after the first half second come when it is there
				a := cache.Ask("GET", nil, false)
				switch e := c.Get(key, nil); e.Judge(&a, time.Now()) {
				case cache.Fresh:
					fresh.Add(1)
				case cache.Revalidate:
					stale.Add(1)
					if f, leads := c.Join(key, time.Now()); leads {
						asks.Add(1)
						sent := time.Now()
						time.Sleep(500*time.Millisecond - time.Microsecond)
						c.Put(key, kept(sent))
						f.End(false, time.Now())
					}
				default:
					t.Error("somebody has to wait")
				}
			})
		}
		wg.Wait()
		if asks.Load() != 1 || stale.Load() != 500 || fresh.Load() != 500 {
			t.Errorf("%d asked, %d had a stale answer and %d a fresh one; want 1, 500, 500", asks.Load(), stale.Load(), fresh.Load())
		}
	})
}
