package ledger_test

import (
	"fmt"
	"testing"

	"bailiwick/controlplane/internal/ledger"
)

// One entry of 20 edges that ask for 50 accounts each, on a machine on disk.
func BenchmarkApplyExchange(b *testing.B) {
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: realDir(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	const edges, accounts = 20, 50
	terms := strictly(1 << 50)
	var index, seq uint64
	leased := make(map[string]int64)
	for b.Loop() {
		seq++
		xs := make([]ledger.Exchange, edges)
		for i := range xs {
			xs[i] = ledger.Exchange{Edge: fmt.Sprintf("eu-west-edge-%d", i), Epoch: 1, Sequence: seq}
			for j := range accounts {
				id := acme
				id.Customer = fmt.Sprintf("customer-%d", j)
				xs[i].Asks = append(xs[i].Asks, ledger.Ask{ID: id, Terms: terms, Ceiling: leased[id.Customer], Want: 100, Sharers: edges})
			}
		}
		index++
		out, err := m.Apply(index, base, ledger.EncodeExchange(month, xs))
		if err != nil {
			b.Fatal(err)
		}
		all, err := ledger.DecodeLeases(out, xs)
		if err != nil {
			b.Fatal(err)
		}
		for j, l := range all[0].Leases {
			leased[fmt.Sprintf("customer-%d", j)] = l.Leased
		}
	}
	b.ReportMetric(float64(b.N)*edges*accounts/b.Elapsed().Seconds(), "asks/s")
}
