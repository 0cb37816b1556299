package lessor_test

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
)

// Eight edges that each ask for units as soon as they have an answer, over a raft
// of three nodes on loopback that sync every entry.
func BenchmarkExchange_OverRaft(b *testing.B) {
	catalog, store := catalog(strict(1<<49)), store(customer("acme", "p"))
	nw := &network{addrs: map[string]string{}, cut: map[string]bool{}, conns: map[string][]net.Conn{}, nodes: map[string]*node{}}
	dir := b.TempDir()
	for _, name := range voters {
		b.Cleanup(nw.start(b, dir, name, catalog, store).stop)
	}
	probe := &usagev1.ExchangeRequest{Epoch: 1}
	for {
		probe.Sequence++
		if x := nw.leader(); x != nil {
			if _, err := x.lessor.Exchange(b.Context(), "probe", "eu-west", probe); err == nil {
				break
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	leader := nw.leader()
	var mu sync.Mutex
	var took []time.Duration
	const edges = 8
	each := b.N/edges + 1
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range edges {
		wg.Go(func() {
			req := &usagev1.ExchangeRequest{Epoch: 1, Accounts: []*usagev1.AccountAsk{{Customer: "acme", Subscription: "p", Plan: "p", Want: 10}}}
			var mine []time.Duration
			for range each {
				req.Sequence++
				start := time.Now()
				out, err := leader.lessor.Exchange(b.Context(), fmt.Sprintf("e%d", i), "eu-west", req)
				if err != nil {
					b.Error(err)
					return
				}
				mine = append(mine, time.Since(start))
				req.Accounts[0].Period, req.Accounts[0].Ceiling = out.Accounts[0].Period, out.Accounts[0].Leased
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "exchanges/s")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
