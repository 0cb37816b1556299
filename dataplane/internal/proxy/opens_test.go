package proxy_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/proxy"
)

// Of random customers who open and give up no more have a turn than may, nobody waits while one is free that he may have, and
// nothing is left of them.
func TestOpens_TurnsAreBoundedFairAndConserved(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var o proxy.Opens
			var mu sync.Mutex
			under, all, most, done := map[string]int{}, 0, 0, 0
			var wg sync.WaitGroup
			for range 2000 {
				whose := string(rune('a' + rnd.IntN(4)*rnd.IntN(2)))
				after, takes, patience := time.Duration(rnd.IntN(500))*time.Millisecond, time.Duration(rnd.IntN(100))*time.Millisecond, time.Duration(rnd.IntN(2000))*time.Millisecond
				wg.Go(func() {
					time.Sleep(after)
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					err := o.Open(ctx, whose, func(context.Context) (net.Conn, error) {
						mu.Lock()
						all++
						under[whose]++
						most = max(most, all)
						if all > proxy.OpenMost || under[whose] > proxy.OpenShare {
							t.Errorf("%d have a turn, %d of them one customer's", all, under[whose])
						}
						mu.Unlock()
						time.Sleep(takes)
						mu.Lock()
						defer mu.Unlock()
						all--
						under[whose]--
						done++
						return nil, nil
					})
					if err != nil && !errors.Is(err, proxy.ErrOpens) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if o.Left() != 0 || most < proxy.OpenMost || done < 1000 {
				t.Errorf("%d are left, %d had a turn at once, %d opened", o.Left(), most, done)
			}
		})
	}
}

// Whoever comes behind a long line of one customer's waits for none of it; that customer's own wait in order, and no longer than
// they may.
func TestOpens_ALineIsTheBusinessOfWhoseItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o proxy.Opens
		slow := func(context.Context) (net.Conn, error) { time.Sleep(300 * time.Millisecond); return nil, nil }
		var refused atomic.Int32
		var wg sync.WaitGroup
		const line = 1000
		for range line {
			wg.Go(func() {
				if err := o.Open(t.Context(), "one", slow); errors.Is(err, proxy.ErrOpens) {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		if err := o.Open(t.Context(), "another", slow); err != nil || time.Since(began) > 301*time.Millisecond {
			t.Errorf("another customer: %v after %v", err, time.Since(began))
		}
		wg.Wait()
		if n := int(refused.Load()); n != line-int(proxy.OpenWait/(300*time.Millisecond)+1)*proxy.OpenShare || time.Since(began) > proxy.OpenWait+301*time.Millisecond {
			t.Errorf("%d waited too long, all were done after %v", n, time.Since(began))
		}
	})
}

// A connection that is late says nothing where many were opened, and all where it was alone; one that is refused is refused.
func TestOpens_WhoIsLateAloneIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o proxy.Opens
		late := func(context.Context) (net.Conn, error) { time.Sleep(time.Second); return nil, os.ErrDeadlineExceeded }
		for _, c := range []struct {
			beside int
			err    error
			want   bool
		}{{0, os.ErrDeadlineExceeded, false}, {20, os.ErrDeadlineExceeded, true}, {20, errors.New("connection refused"), false}} {
			var wg sync.WaitGroup
			for range c.beside {
				wg.Go(func() { o.Open(t.Context(), "one", late) })
			}
			synctest.Wait()
			err := o.Open(t.Context(), "another", func(context.Context) (net.Conn, error) { return nil, c.err })
			if errors.Is(err, proxy.ErrOpens) != c.want || !errors.Is(err, c.err) {
				t.Errorf("beside %d: got %v", c.beside, err)
			}
			wg.Wait()
		}
	})
}

// One customer's many new connections take an upstream from nobody, however slowly the way there takes them: another's requests
// are answered by it, on connections that are there and on new ones, and it stays well.
func TestPath_OneCustomersNewConnectionsTakeAnUpstreamFromNobody(t *testing.T) {
	for _, uploads := range []bool{true, false} {
		t.Run(map[bool]string{true: "uploads that never come", false: "requests that last"}[uploads], func(t *testing.T) {
			var well atomic.Pointer[failover.Monitor]
			w := newWorld(t, func(cfg *proxy.Config) {
				if cfg.Region == "eu-west" {
					well.Store(cfg.Monitor)
				}
			})
			other := []string{"X-Api-Key", "", "X-Api-Key", w.stranger()}
			w.west.tables.Swap(w.view(w.west, false)) // nobody else serves them
			end := make(chan struct{})
			w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Held") != "" {
					<-end
				}
			})
			if a := w.send("GET", "/v1/x", "", other...); a.status != 200 {
				t.Fatalf("before: %d %s", a.status, a.body)
			}
			// The way takes one connection at a time, for 2 ms. How many it has taken is the measure of who waits for whom: a busy
			// machine makes all of it slower.
			const crowd, most = 1000, 400
			var way sync.Mutex
			var opened atomic.Int64
			slow := func() {
				way.Lock()
				defer way.Unlock()
				opened.Add(1)
				time.Sleep(2 * time.Millisecond)
			}
			w.west.opening.Store(&slow)
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			defer func() { cancel(); close(end); all.Wait() }()
			for range crowd {
				all.Go(func() {
					var body io.Reader
					if uploads {
						r, rw := io.Pipe()
						defer context.AfterFunc(ctx, func() { rw.Close() })()
						body = r
					}
					req, err := http.NewRequestWithContext(ctx, "POST", w.west.server.URL+"/v1/x", body)
					if err != nil {
						t.Error(err)
						return
					}
					req.Host = "orders.test"
					req.Header.Set("X-Api-Key", w.key)
					req.Header.Set("X-Held", "1")
					if resp, err := w.west.server.Client().Do(req); err == nil {
						resp.Body.Close()
					}
				})
			}
			eventually(t, 10*time.Second, "many connections on their way", func() bool { return opened.Load() > 30 })
			var worst atomic.Int64
			for began := time.Now(); opened.Load() < crowd*2/5 && time.Since(began) < 5*time.Second; {
				var some sync.WaitGroup
				for i := range 4 { // more at once than there are connections that rest
					some.Go(func() {
						method, body := "GET", ""
						if i%2 == 1 {
							method, body = "POST", "y"
						}
						before := opened.Load()
						a := w.send(method, "/v1/x", body, other...)
						behind := opened.Load() - before
						if a.status != 200 || a.served != "eu-west" {
							t.Errorf("another customer: %d by %q after %v: %v %s", a.status, a.served, a.took, a.err, a.body)
						}
						if behind > most {
							t.Errorf("another customer's request was answered behind %d connections of the crowd's, want %d at most", behind, most)
						}
						for old := worst.Load(); behind > old && !worst.CompareAndSwap(old, behind); old = worst.Load() {
						}
					})
				}
				some.Wait()
				for _, r := range well.Load().Reports() {
					if r.API == "orders" && r.Phase == "ejected" {
						t.Fatalf("the upstream is taken for dead: %+v", r)
					}
				}
				if t.Failed() {
					break
				}
			}
			if got := opened.Load(); got < crowd/4 {
				t.Errorf("%d connections of %d were opened: there was no crowd", got, crowd)
			}
			t.Logf("another customer waited behind %d connections at most, of %d", worst.Load(), opened.Load())
		})
	}
}
