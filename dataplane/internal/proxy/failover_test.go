package proxy_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/usage"
)

// load sends requests from a few clients until stop, each POST with a body of its own.
type load struct {
	mu      sync.Mutex
	answers []answer
	bodies  []string
	stop    chan struct{}
	wg      sync.WaitGroup
}

func (w *world) load(method string, clients int) *load {
	l := &load{stop: make(chan struct{})}
	for c := range clients {
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				body := ""
				if method == http.MethodPost {
					body = fmt.Sprintf("body-%d-%d", c, i)
				}
				a := w.send(method, fmt.Sprintf("/v1/%d/%d", c, i), body)
				l.mu.Lock()
				l.answers = append(l.answers, a)
				l.mu.Unlock()
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *load) end() []answer {
	close(l.stop)
	l.wg.Wait()
	return l.answers
}

func TestFailover_AnUpstreamDies(t *testing.T) {
	for _, way := range []struct {
		name    string
		die     func(u *upstream)
		recover func(t testing.TB, u *upstream)
	}{
		{"kill", (*upstream).kill, func(t testing.TB, u *upstream) { u.start(t, u.addr) }},
		{"pause", (*upstream).pause, func(_ testing.TB, u *upstream) { u.resume() }},
		{"503", func(u *upstream) { u.answer(503) }, func(_ testing.TB, u *upstream) { u.answer(0) }},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(way.name+" "+method, func(t *testing.T) {
				t.Parallel()
				const clients = 4
				var west *failover.Monitor
				w := newWorld(t, func(c *proxy.Config) {
					if c.Region == "eu-west" {
						west = c.Monitor
					}
				})
				if a := w.send(method, "/v1/first", "x"); a.status != 200 || a.served != "eu-west" || a.header.Get("Bailiwick-Edge") != "eu-west" {
					t.Fatalf("all well: got %+v, want 200 by eu-west", a)
				}
				l := w.load(method, clients)
				time.Sleep(300 * time.Millisecond)
				way.die(w.west.up)
				if method == http.MethodPost { // one that is sent in the moment of death may be lost, and this client's shall not be
					eventually(t, 30*time.Second, "eu-west's upstream is ejected", func() bool {
						for _, r := range west.Reports() {
							if r.Phase == "ejected" {
								return true
							}
						}
						return false
					})
				}
				during := 0
				// A request that can be repeated always gets its answer, and finds out. Only then one that cannot is safe.
				eventually(t, 30*time.Second, "an answer by eu-central", func() bool {
					a := w.send(http.MethodGet, "/v1/found", "")
					if during++; a.status != 200 {
						t.Errorf("upstream dead: got %d by %q %s, want 200", a.status, a.served, a.body)
					}
					return a.served == "eu-central"
				})
				during++
				if a := w.send(method, "/v1/during", "during"); a.status != 200 || a.served != "eu-central" {
					t.Errorf("upstream known to be dead: got %d by %q %s, want 200 by eu-central", a.status, a.served, a.body)
				}
				time.Sleep(300 * time.Millisecond)
				if way.name == "pause" { // what was swallowed must not hold the test for its 30 s
					w.west.up.kill()
				}
				bad := 0
				var worst time.Duration
				answers := l.end()
				for _, a := range answers {
					if a.status != 200 {
						bad++
						t.Logf("%d %v %v %s", a.status, a.err, a.took, a.body)
					}
					worst = max(worst, a.took)
				}
				// One client can lose what it had in flight at the moment of death, and only what cannot be repeated.
				most := 0
				if method == http.MethodPost {
					most = clients
				}
				if bad > most {
					t.Errorf("%d of %d failed, want at most %d", bad, len(answers), most)
				}
				if method == http.MethodGet && worst > 10*time.Second { // who waits for the dead one waits for 30 s
					t.Errorf("slowest answer took %v", worst)
				}
				for body, n := range both(w) {
					if n > 1 {
						t.Errorf("body %q reached upstreams %d times", body, n)
					}
				}
				eventually(t, 30*time.Second, "a row for each request", func() bool {
					n := 0
					for _, c := range w.west.meter.finals(t) {
						n += c
					}
					return n == len(answers)+1+during
				})
				if n := w.west.meter.finals(t)[usage.OutcomeSuccess]; n != len(answers)+1+during-bad {
					t.Errorf("got %d successes counted, want %d", n, len(answers)+1+during-bad)
				}
				if w.central.meter.len() != 0 {
					t.Error("the relay's receiver counted")
				}
				if w.west.evidence.n.Load() == 0 {
					t.Error("relays without evidence")
				}
			})
		}
	}
}

// both is how often each body came whole to an upstream.
func both(w *world) map[string]int {
	sum := map[string]int{}
	for _, u := range []*upstream{w.west.up, w.central.up} {
		u.mu.Lock()
		for b, n := range u.bodies {
			if strings.HasPrefix(b, "body-") {
				sum[b] += n
			}
		}
		u.mu.Unlock()
	}
	return sum
}

func TestFailover_ComesHome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.up.kill()
	eventually(t, 30*time.Second, "the pair", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	time.Sleep(time.Second)
	w.west.up.start(t, w.west.up.addr)
	back := time.Now()
	eventually(t, 60*time.Second, "home again", func() bool { return w.send("GET", "/v1/x", "").served == "eu-west" })
	if d := time.Since(back); d < 9*time.Second {
		t.Errorf("home after %v, want 10 s of health first", d)
	}
	time.Sleep(time.Until(back.Add(15 * time.Second)))
	for range 20 {
		if a := w.send("GET", "/v1/x", ""); a.served != "eu-west" {
			t.Fatalf("15 s after recovery: got %d by %q, want eu-west", a.status, a.served)
		}
	}
}

func TestFailover_BothDead(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "POST"} {
		w := newWorld(t, nil)
		w.west.up.kill()
		w.central.up.kill()
		for i := range 5 {
			a := w.send(method, "/v1/x", "")
			if a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, gate.ReasonNoRegion) || a.header.Get("Content-Type") != gate.ProblemType {
				t.Errorf("%s %d: got %d %v %s, want a 503 problem with Retry-After", method, i, a.status, a.header, a.body)
			}
		}
		if n := w.west.meter.finals(t)[usage.OutcomeUnserved]; n != 5 {
			t.Errorf("got %d unserved rows, want 5", n)
		}
	}
}

func TestFailover_NoPairMeansNoRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.tables.Swap(w.view(w.west, false))
	w.west.up.kill()
	for range 5 {
		if a := w.send("GET", "/v1/x", ""); a.status != 503 || a.served != "" {
			t.Errorf("got %d by %q, want 503", a.status, a.served)
		}
	}
	if w.central.up.count.Load() != 0 {
		t.Error("an upstream across a closed pair got a request")
	}
	// The receiver alone closing it is as good.
	w.west.tables.Swap(w.view(w.west, true))
	w.central.tables.Swap(w.view(w.central, false))
	if a := w.send("GET", "/v1/x", ""); a.status != 503 || w.central.up.count.Load() != 0 {
		t.Errorf("got %d, want 503 and nothing across", a.status)
	}
}

func TestFailover_ASlowAnswerStaysHome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(250 * time.Millisecond)
		fmt.Fprint(rw, "slow")
	})
	for range 3 {
		if a := w.send("GET", "/v1/x", ""); a.status != 200 || a.served != "eu-west" {
			t.Errorf("got %d by %q, want the slow home", a.status, a.served)
		}
	}
	if n := w.central.up.count.Load(); n != 0 {
		t.Errorf("%d slow requests were done twice", n)
	}
}

func TestFailover_TheUpstreamsOwn503IsShownWhenAllSayIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	mine := func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(503); fmt.Fprint(rw, "mine") }
	w.west.up.does(mine)
	w.central.up.does(mine)
	if a := w.send("GET", "/v1/x", ""); a.status != 503 || a.body != "mine" || a.served == "" {
		t.Errorf("got %d %q by %q, want the upstream's own", a.status, a.body, a.served)
	}
	if r := w.west.meter.last(); r.Outcome != usage.OutcomeUpstreamError || r.Units != 1 {
		t.Errorf("got row %+v, want an upstream error", r)
	}
	if a := w.send("POST", "/v1/x", "body-once"); a.status != 503 || both(w)["body-once"] != 1 {
		t.Errorf("POST: got %d, body came %d times, want the 503 and once", a.status, both(w)["body-once"])
	}
}

func TestFailover_TimesOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.west.tables.Swap(w.view(w.west, false))
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	a := w.send("POST", "/quick/x", "body")
	if a.status != 504 || a.took > 10*time.Second || !strings.Contains(a.body, gate.ReasonUpstreamLate) {
		t.Errorf("got %d after %v %s, want 504 after the route's 300 ms", a.status, a.took, a.body)
	}
}

// A client that breaks off its bodies spoils its own requests only: the pair stays there for all others.
func TestFailover_ABrokenBodyTakesThePairFromNobody(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.kill()
	eventually(t, 5*time.Second, "served by the pair", func() bool { return w.send("GET", "/", "").served == "eu-central" })
	for i := range 20 {
		conn, err := net.Dial("tcp", w.west.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /broken HTTP/1.1\r\nHost: orders.test\r\nX-Api-Key: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", w.key)
		if i%2 == 0 {
			fmt.Fprint(conn, "no length\r\n")
		}
		time.Sleep(10 * time.Millisecond) // it is on its way to the other region
		conn.Close()
		if got := w.send("POST", "/whole", "body"); got.served != "eu-central" {
			t.Fatalf("after %d broken bodies another client got %d, served by %q: %s", i+1, got.status, got.served, got.body)
		}
	}
}
