package spool_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage"
)

// A second and a half of a busy edge, as e2e/benchedge makes it: what it costs, a row, to fold and seal 45,000 rows of 500
// customers and keep their detail, on a real disk, with so many keys in use.
func BenchmarkSealBusy(b *testing.B) {
	for _, keys := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(keys, " keys"), func(b *testing.B) {
			d, err := detail.Open(detail.Config{Dir: b.TempDir(), Edge: edge})
			if err != nil {
				b.Fatal(err)
			}
			s := open(b, spool.Config{Dir: b.TempDir(), SegmentBytes: 64 << 20, MaxUnacked: 1 << 30, Detail: d})
			r := rand.New(rand.NewPCG(1, 2))
			rows := make([]usage.Row, 45_000)
			size, seals := int64(0), 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				now := time.Now().UnixMilli()
				for i := range rows {
					k := r.IntN(keys)
					rows[i] = usage.Row{Customer: fmt.Sprintf("customer-%03d", k%500), Subscription: "main", Plan: "bench", PlanRev: 1, Product: "bench", API: "bench", Route: "all",
						Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Period: 1_761_955_200, Requests: 1, Units: 1, BytesOut: 256, Status: 200, Attempts: 1,
						KeyID: fmt.Sprintf("%012x", uint64(k)*0x9e3779b97f4a7c15>>16), LatencyUS: 150 + int64(r.ExpFloat64()*200), Address: 0x1234567890abcdef}
					rows[i].UpstreamUS = max(1, rows[i].LatencyUS-20-int64(r.ExpFloat64()*20))
					began := now - 1500 + int64(i)/30
					for j := range 6 {
						rows[i].RequestID[j] = byte(began >> (40 - 8*j))
					}
					for j := 6; j < 16; j++ {
						rows[i].RequestID[j] = byte(r.Uint32())
					}
					rows[i].RequestID[6], rows[i].RequestID[8] = rows[i].RequestID[6]&0x0f|0x70, rows[i].RequestID[8]&0x3f|0x80
				}
				for i := range rows {
					if err := s.Append(&rows[i]); err != nil {
						b.Fatal(err)
					}
				}
				if err := s.Provide(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := s.Seal(); err != nil {
					b.Fatal(err)
				}
				seals++
			}
			size = d.Stats().BytesKept
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seals)/float64(len(rows)), "ns/row")
			b.ReportMetric(float64(size)/float64(seals)/float64(len(rows)), "B/row")
		})
	}
}
