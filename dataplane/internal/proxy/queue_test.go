package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// within is a world whose API keeps answers for all, and gives each request so much time.
func within(t *testing.T, timeout time.Duration, rules table.Cache, answer http.HandlerFunc) *world {
	w := caching(t, rules, false, answer)
	w.west.orders = func(a *table.API) {
		a.HealthTimeout = time.Minute
		a.Routes = []table.Route{{Name: "all", Timeout: timeout, Cache: &rules}}
	}
	w.west.tables.Swap(w.view(w.west, false))
	return w
}

// crowd are so many requests for one URL at once, by what they were answered, and how long the slowest waited.
func (w *world) crowd(n int) (by map[string]int, slowest time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	by = map[string]int{}
	for range n {
		wg.Go(func() {
			a := w.send("GET", "/v1/hot", "")
			mu.Lock()
			defer mu.Unlock()
			by[fmt.Sprint(a.status, " of ", len(a.body))]++
			slowest = max(slowest, a.took)
		})
	}
	wg.Wait()
	return by, slowest
}

// leading is one client's request, which is at the upstream, and its end.
func (w *world) leading(key string) (leave func()) {
	w.t.Helper()
	before := w.asked()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.west.server.URL, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	c.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(c, "GET /v1/hot HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\n\r\n", key)
	eventually(w.t, 20*time.Second, "one at the upstream", func() bool { return w.asked() > before })
	return func() { c.Close() }
}

// One request that hangs at the upstream is one failure: who waits for it has time left to ask, and one asks for all who wait.
func TestQueue_AHungLeaderFailsAlone(t *testing.T) {
	w := within(t, 3*time.Second, table.Cache{Scope: "all"}, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if w.asked() == 1 {
			<-r.Context().Done()
			return
		}
		rw.Header().Set("Cache-Control", "max-age=3600")
		time.Sleep(50 * time.Millisecond)
		io.WriteString(rw, "hello")
	})
	defer w.leading(w.key)()
	by, slowest := w.crowd(20)
	if by["200 of 5"] != 20 || w.asked() != 2 {
		t.Errorf("beside a request that hangs: %v, and the upstream was asked %d times, want 20 of 200 and 2", by, w.asked())
	}
	if slowest > 2*time.Second {
		t.Errorf("the slowest took %v of three seconds", slowest)
	}
}

// Where all of them hang, each gives up early enough to ask alone.
func TestQueue_WhoWaitsInVainAsksAlone(t *testing.T) {
	w := within(t, 3*time.Second, table.Cache{Scope: "all"}, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if w.asked() <= 2 {
			<-r.Context().Done()
			return
		}
		rw.Header().Set("Cache-Control", "max-age=3600")
		time.Sleep(1600 * time.Millisecond) // more than half of what a request has
		io.WriteString(rw, "hello")
	})
	defer w.leading(w.key)()
	if by, _ := w.crowd(10); by["200 of 5"] != 9 {
		t.Errorf("beside two requests that hang, one of them in line: %v, want 9 of 200", by)
	}
}

// A client that takes nothing of a long answer keeps nobody who wants it too, however much time there is.
func TestQueue_AClientThatTakesNothingKeepsNobody(t *testing.T) {
	const long = 8 << 20
	w := within(t, time.Minute, table.Cache{Scope: "all", MaxBytes: 16 << 20}, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		rw.Header().Set("Content-Length", strconv.Itoa(long))
		rw.Write(make([]byte, long))
	})
	stranger := w.stranger()
	w.west.tables.Swap(w.view(w.west, false))
	defer w.leading(stranger)()
	by, slowest := w.crowd(10)
	if by[fmt.Sprint("200 of ", long)] != 10 || w.asked() != 2 {
		t.Errorf("got %v, and the upstream was asked %d times, want 10 whole answers and 2", by, w.asked())
	}
	if slowest > 3*time.Second { // an eighth of the time would be 5 s, since that is how long a flight is worth waiting for
		t.Errorf("the slowest took %v", slowest)
	}
}

// Nor of one that may not be kept, of which that is known when its head is here.
func TestQueue_NobodyWaitsForWhatMayNotBeKept(t *testing.T) {
	const long = 8 << 20
	w := within(t, time.Minute, table.Cache{Scope: "all", MaxBytes: 16 << 20}, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if rw.Header().Set("Cache-Control", "no-store"); w.asked() > 1 {
			io.WriteString(rw, "hello")
			return
		}
		rw.Header().Set("Content-Length", strconv.Itoa(long))
		rw.Write(make([]byte, long))
	})
	stranger := w.stranger()
	w.west.tables.Swap(w.view(w.west, false))
	defer w.leading(stranger)()
	if by, slowest := w.crowd(10); by["200 of 5"] != 10 || slowest > time.Second {
		t.Errorf("got %v within %v", by, slowest)
	}
}

// When the client who asked for all goes away, nothing is known of the answer: one of those in line asks next, and not all.
func TestQueue_OneLeadsNextWhenTheLeaderLeaves(t *testing.T) {
	for name, half := range map[string]bool{"before the answer": false, "within it": true} {
		t.Run(name, func(t *testing.T) {
			w := within(t, time.Minute, table.Cache{Scope: "all", MaxBytes: 16 << 20}, nil)
			w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Cache-Control", "max-age=3600")
				rw.Header().Set("Content-Length", "8")
				if w.asked() == 1 {
					if half {
						io.WriteString(rw, "half")
						rw.(http.Flusher).Flush()
					}
					<-r.Context().Done()
					return
				}
				time.Sleep(200 * time.Millisecond)
				io.WriteString(rw, "halfhalf")
			})
			leave := w.leading(w.key)
			time.AfterFunc(400*time.Millisecond, leave)
			if by, slowest := w.crowd(30); by["200 of 8"] != 30 || w.asked() != 2 || slowest > 4*time.Second {
				t.Errorf("got %v within %v, and the upstream was asked %d times, want 30 answers and 2", by, slowest, w.asked())
			}
		})
	}
}

// Nobody waits for one after another who leaves.
func TestQueue_WaitsForFewWhoLeave(t *testing.T) {
	w := within(t, time.Minute, table.Cache{Scope: "all"}, nil)
	var clients sync.Map // by what they call themselves
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		if name := r.Header.Get("X-Name"); name != "" {
			time.AfterFunc(200*time.Millisecond, func() {
				if cancel, ok := clients.Load(name); ok {
					cancel.(context.CancelFunc)()
				}
			})
			<-r.Context().Done()
			return
		}
		rw.Header().Set("Cache-Control", "max-age=3600")
		io.WriteString(rw, "hello")
	})
	var wg sync.WaitGroup
	leaves := func(name string) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		clients.Store(name, cancel)
		req, _ := http.NewRequestWithContext(ctx, "GET", w.west.server.URL+"/v1/hot", nil)
		req.Host = "orders.test"
		req.Header.Set("X-Api-Key", w.key)
		req.Header.Set("X-Name", name)
		if resp, err := w.west.server.Client().Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	wg.Go(func() { leaves("first") })
	eventually(t, 20*time.Second, "one at the upstream", func() bool { return w.asked() > 0 })
	line := func(from, to int) {
		for i := from; i < to; i++ {
			wg.Go(func() { leaves(strconv.Itoa(i)) })
		}
		time.Sleep(40 * time.Millisecond) // for them to be in line: in its middle, as Go wakes those at either end first
	}
	line(0, 20)
	wg.Go(func() {
		if by, slowest := w.crowd(1); by["200 of 5"] != 1 || slowest > 1400*time.Millisecond {
			t.Errorf("beside forty that leave one after another: %v within %v", by, slowest)
		}
	})
	time.Sleep(20 * time.Millisecond)
	line(20, 40)
	wg.Wait()
}

// What is kept and longer than the route lets through by now is asked for anew: an upstream's answer that is too long costs nothing,
// and nor does one that was kept.
func TestCache_AHitLongerThanTheRouteLetsThroughIsNone(t *testing.T) {
	w := caching(t, table.Cache{}, true, says("max-age=3600"))
	w.send("GET", "/v1/x", "")
	w.west.orders = func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Cache: &table.Cache{}, MaxResponseBytes: 7}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	if a, row := w.send("GET", "/v1/x", ""), w.west.meter.last(); a.status != 502 || row.Units != 0 || row.Outcome != usage.OutcomeUnserved || row.Flags&usage.FlagCached != 0 || w.asked() != 2 {
		t.Errorf("got %d %s, asked %d times, row %+v; want 502, and nothing to pay", a.status, a.body, w.asked(), row)
	}
	for _, c := range [][]string{{"HEAD"}, {"GET", "If-None-Match", `"v"`}} { // what has no body is not too long
		if a, row := w.send(c[0], "/v1/x", "", c[1:]...), w.west.meter.last(); a.status >= 400 || row.Flags&usage.FlagCached == 0 || row.Units != 1 {
			t.Errorf("%v: got %d %s, row %+v", c, a.status, a.body, row)
		}
	}
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		io.WriteString(rw, "short")
	})
	eventually(t, 30*time.Second, "a shorter one kept", func() bool {
		a := w.send("GET", "/v1/x", "")
		return a.body == "short" && strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit")
	})
}

// An answer of no declared length that turns out too long is known to be none to wait for.
func TestQueue_NobodyWaitsForWhatIsTooLong(t *testing.T) {
	w := within(t, time.Minute, table.Cache{Scope: "all", MaxBytes: 10}, nil)
	release := make(chan struct{})
	var hung atomic.Bool
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		io.WriteString(rw, "more than ten bytes")
		rw.(http.Flusher).Flush()
		if hung.CompareAndSwap(false, true) {
			<-release
		}
	})
	leave := w.leading(w.key)
	defer leave()
	defer close(release)
	if by, slowest := w.crowd(10); by["200 of 19"] != 10 || slowest > time.Second {
		t.Errorf("got %v within %v", by, slowest)
	}
}
