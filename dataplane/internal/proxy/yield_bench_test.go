package proxy_test

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/shared/table"
)

// BenchmarkFreeYields is how platinum fares at an upstream that works on 4 requests at a time, 20 ms each, while free clients
// offer three times what it can do: p99 of platinum alone and beside them, and how many of either were turned away. It tells
// figures and judges nothing.
//
//	go test -run '^$' -bench FreeYields -benchtime 1x ./dataplane/internal/proxy
func BenchmarkFreeYields(b *testing.B) {
	const (
		workers = 4
		work    = 20 * time.Millisecond
		each    = 8 * time.Second
	)
	w := newWorld(b, nil)
	free, o := mint(b, "free-class")
	paid, o2 := mint(b, "platinum-class")
	w.objects = append(w.objects, o, o2)
	w.west.orders = func(a *table.API) { a.Concurrency, a.HealthTimeout = &table.Concurrency{}, time.Minute }
	w.west.tables.Swap(w.view(w.west, false))
	at := make(chan struct{}, workers)
	w.west.up.does(func(http.ResponseWriter, *http.Request) {
		at <- struct{}{}
		time.Sleep(work)
		<-at
	})
	w.west.server.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
	platinum := func() (p99 time.Duration, shed int) {
		var took []time.Duration
		var mu sync.Mutex
		var wg sync.WaitGroup
		for end := time.Now().Add(each); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			wg.Go(func() {
				a := w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", paid)
				mu.Lock()
				defer mu.Unlock()
				if took = append(took, a.took); a.status != 200 {
					shed++
				}
			})
		}
		wg.Wait()
		slices.Sort(took)
		return took[len(took)*99/100], shed
	}
	for b.Loop() {
		idle, idleShed := platinum()
		var served, turned atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // three arrivals in the time that a worker's share takes, whether or not earlier ones are answered
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for began, n := time.Now(), 0; ; {
				select {
				case <-stop:
					return
				case now := <-tick.C:
					for ; n < int(now.Sub(began)*3*workers/work); n++ {
						wg.Go(func() {
							if w.send("GET", "/v1/x", "", "X-Api-Key", "", "X-Api-Key", free).status == 200 {
								served.Add(1)
							} else {
								turned.Add(1)
							}
						})
					}
				}
			}
		})
		busy, shed := platinum()
		close(stop)
		wg.Wait()
		b.ReportMetric(float64(idle.Microseconds())/1000, "idle-p99-ms")
		b.ReportMetric(float64(busy.Microseconds())/1000, "beside-p99-ms")
		b.ReportMetric(float64(shed+idleShed), "platinum-shed")
		b.ReportMetric(float64(served.Load())/each.Seconds(), "free-served/s")
		b.ReportMetric(float64(turned.Load())/each.Seconds(), "free-turned/s")
	}
}
