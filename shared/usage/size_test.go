package usage_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/shared/usage"
	"bailiwick/shared/usage/usagetest"
)

var begin = time.Unix(1_764_000_000, 0)

func trafficRows(n int, rate float64) []usage.Row {
	t := usagetest.NewTraffic(1, begin, rate)
	rows := make([]usage.Row, n)
	for i := range rows {
		rows[i] = t.Next()
	}
	return rows
}

// Bytes a request of the payload alone; what QUIC adds, ship's benchmark measures.
func BenchmarkLedgerPart(b *testing.B) {
	for _, n := range []int{250, 1000, 1500, 4000} {
		p := usagetest.Sum(trafficRows(n, 1000))
		b.Run(time.Duration(n*int(time.Millisecond)).String()+"-at-1000rps", func(b *testing.B) {
			b.ReportAllocs()
			var enc []byte
			for b.Loop() {
				enc = usage.Encode(p)
			}
			only := usage.EncodePayload(p.Cells)
			b.ReportMetric(float64(len(enc))/float64(n), "B/request")
			b.ReportMetric(float64(len(enc)-len(only))/float64(n), "sketchB/request")
			b.ReportMetric(float64(len(p.Cells)), "cells")
		})
	}
}

func BenchmarkDecodeLedgerPart(b *testing.B) {
	p := usagetest.Sum(trafficRows(4000, 1000))
	enc := usage.Encode(p)
	for b.Loop() {
		if _, err := usage.Decode(enc); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(p.Cells)), "ns/cell")
}

func BenchmarkDetailPart(b *testing.B) {
	for _, n := range []int{250, 1000, 1500, 4000} {
		rows := trafficRows(n, 1000)
		b.Run(time.Duration(n*int(time.Millisecond)).String()+"-at-1000rps", func(b *testing.B) {
			var enc []byte
			for b.Loop() {
				enc = usage.EncodeDetail(rows)
			}
			b.ReportMetric(float64(len(enc))/float64(n), "B/request")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/row")
		})
	}
}

func BenchmarkDecodeDetailPart(b *testing.B) {
	rows := trafficRows(4000, 1000)
	enc := usage.EncodeDetail(rows)
	for b.Loop() {
		if _, err := usage.DecodeDetail(enc); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(rows)), "ns/row")
}

func BenchmarkDetailVersions(b *testing.B) {
	for _, n := range []int{250, 500, 1000, 1500, 4000, 8000} {
		rows := trafficRows(n, 1000)
		batch := usage.BatchOf(rows)
		for v, encode := range map[string]func() []byte{"1": func() []byte { return usage.EncodeDetail1(rows) }, "2": func() []byte { return batch.Encode2(0, n) }} {
			b.Run(fmt.Sprint(n, " rows, version ", v), func(b *testing.B) {
				b.ReportAllocs()
				var enc []byte
				for b.Loop() {
					enc = encode()
				}
				b.ReportMetric(float64(len(enc))/float64(n), "B/request")
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/row")
			})
		}
	}
}
