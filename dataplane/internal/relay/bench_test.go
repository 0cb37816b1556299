package relay_test

import "testing"

// BenchmarkBorderCheck is what each attempt asks before it leaves the region: the newest table, the API's policy, the
// pair, a live grant, and the clock for it. The goal is 50 ns and no allocation.
func BenchmarkBorderCheck(b *testing.B) {
	w := newBorder(b)
	api := w.west.Load().API("orders.test")
	b.ReportAllocs()
	for b.Loop() {
		if g, rule := w.client.Permitted(api, "eu-central"); g == nil {
			b.Fatalf("refused: %s", rule)
		}
	}
}

func TestClient_TheBorderCheckDoesNotAllocate(t *testing.T) {
	w := newBorder(t)
	api := w.west.Load().API("orders.test")
	if n := testing.AllocsPerRun(1000, func() { w.client.Permitted(api, "eu-central") }); n != 0 {
		t.Errorf("a check makes %v allocations, want none", n)
	}
}
