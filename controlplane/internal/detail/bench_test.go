package detail_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/shared/usage"
	"bailiwick/shared/usage/usagetest"
)

// traffic is detail as two edges ship it at 1,000 requests/s: pieces of a second.
func traffic(tb testing.TB, seconds int) (pieces [][]byte, rows int) {
	tb.Helper()
	t := usagetest.NewTraffic(1, start, 1000)
	var batch []usage.Row
	for len(pieces) < seconds {
		r := t.Next()
		rows++
		if batch = append(batch, r); len(batch) == 1000 {
			pieces = append(pieces, usage.EncodeDetail(batch))
			batch = batch[:0]
		}
	}
	return pieces, rows
}

// BenchmarkStore stores, rolls and traces on the real disk. bytes/request is at rest, wire-bytes/request what came.
func BenchmarkStore(b *testing.B) {
	const seconds = 1000
	pieces, rows := traffic(b, seconds)
	wire := 0
	for _, p := range pieces {
		wire += len(p)
	}
	var stats detail.Stats
	var append1, roll, trace time.Duration
	for b.Loop() {
		cfg := detail.Config{Dir: b.TempDir(), Erased: func(string) bool { return false }, Now: func() time.Time { return start }}
		s, err := detail.Open(cfg)
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		began := time.Now()
		for i := 0; i < len(pieces); i += 50 { // some wait while one is synced
			var batch []detail.Entry
			for j, payload := range pieces[i : i+50] {
				edge := []string{"eu-west-edge-1", "eu-west-edge-2"}[0]
				p, err := detail.NewPiece(edge, "eu-west", 3, uint64(i+j+1), uint64(i+j+1), payload)
				if err != nil {
					b.Fatal(err)
				}
				batch = append(batch, detail.Entry{Piece: &p})
			}
			if _, err := s.Append(ctx, "eu-west-edge-1", 3, batch...); err != nil {
				b.Fatal(err)
			}
		}
		append1 += time.Since(began)
		began = time.Now()
		if err := detail.Hour(ctx, s); err != nil {
			b.Fatal(err)
		}
		roll += time.Since(began)
		began = time.Now()
		f, err := s.Trace(ctx, detail.Query{Customer: "delta-19", Since: start, Until: start.Add(time.Hour)}, 1000)
		if err != nil || len(f.Rows) == 0 {
			b.Fatalf("trace: %d rows, %v", len(f.Rows), err)
		}
		trace += time.Since(began)
		stats = s.Stats()
		stop()
		<-ended
		if testing.Verbose() {
			columns(b, cfg.Dir, rows)
		}
	}
	n := float64(b.N)
	b.ReportMetric(float64(stats.FileBytes)/float64(stats.FileRows), "bytes/request")
	b.ReportMetric(float64(wire)/float64(rows), "wire-bytes/request")
	b.ReportMetric(n*float64(rows)/append1.Seconds(), "taken/s")
	b.ReportMetric(n*float64(rows)/roll.Seconds(), "rolled/s")
	b.ReportMetric(trace.Seconds()/n*1000, "ms/trace")
}

// columns tells what each column costs.
func columns(b *testing.B, dir string, rows int) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.parquet"))
	cost := map[string]int64{}
	var order []string
	for _, name := range names {
		h, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		st, _ := h.Stat()
		f, err := parquet.OpenFile(h, st.Size())
		if err != nil {
			b.Fatal(err)
		}
		for _, g := range f.Metadata().RowGroups {
			for _, c := range g.Columns {
				name := c.MetaData.PathInSchema[0]
				if cost[name] == 0 {
					order = append(order, name)
				}
				cost[name] += c.MetaData.TotalCompressedSize
			}
		}
		h.Close()
	}
	for _, name := range order {
		b.Logf("%-14s %.3f", name, float64(cost[name])/float64(rows))
	}
}
