package evidence_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"bailiwick/dataplane/internal/evidence"
	"bailiwick/shared/checkpoint"
)

func open(t *testing.T, dir string, segment int64) *evidence.Log {
	t.Helper()
	l, err := evidence.Open(evidence.Config{Dir: dir, Segment: segment, Budget: 3 * segment, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func rows(t *testing.T, dir string) (ids []string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range files {
		if err := evidence.Read(f, func(r checkpoint.Row) error {
			if r.From != "eu-west" || r.To != "eu-central" || r.Grant != "g1" || r.At.IsZero() {
				t.Errorf("row = %+v", r)
			}
			ids = append(ids, r.RequestID)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

func TestLog_RowSurvivesWithoutClose(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 0)
	for i := range 100 {
		if err := l.Relay(fmt.Sprintf("r%02d", i), "g1", "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
	}
	// No Run, no Close: what a kill leaves.
	if got := rows(t, dir); len(got) != 100 || got[99] != "r99" {
		t.Errorf("rows = %d, want 100", len(got))
	}
	// The next process goes on behind them.
	l = open(t, dir, 0)
	if err := l.Relay("again", "g1", "eu-west", "eu-central"); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, dir); len(got) != 101 {
		t.Errorf("rows = %d, want 101", len(got))
	}
}

func TestLog_TornAndDamaged(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 0)
	for i := range 3 {
		if err := l.Relay(fmt.Sprintf("r%d", i), "g1", "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], data[:len(data)-2], 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, 0)
	if got := rows(t, dir); len(got) != 2 {
		t.Errorf("after a torn tail: %d rows, want 2", len(got))
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, 0) // the damaged segment stays for the auditor; a new one begins
	if err := l.Relay("next", "g1", "eu-west", "eu-central"); err != nil {
		t.Fatal(err)
	}
	if err := evidence.Read(files[0], func(checkpoint.Row) error { return nil }); err == nil {
		t.Error("a damaged segment reads without an error")
	}
}

func TestLog_BudgetDropsTheOldest(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 512)
	for i := range 200 {
		if err := l.Relay(fmt.Sprintf("r%03d", i), "g1", "eu-west", "eu-central"); err != nil {
			t.Fatal(err)
		}
	}
	got := rows(t, dir)
	if len(got) == 0 || got[len(got)-1] != "r199" || len(got) >= 200 || l.DroppedSegments() == 0 {
		t.Errorf("kept %d rows, dropped %d segments; want the newest within 3 segments", len(got), l.DroppedSegments())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Relay("late", "g1", "eu-west", "eu-central"); err == nil {
		t.Error("a row into a closed log is accepted")
	}
}

func BenchmarkLog_Relay(b *testing.B) {
	l, err := evidence.Open(evidence.Config{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Relay("0190f5c2-0000-7000-8000-000000000000", "0123456789abcdef01234567", "eu-west", "eu-central"); err != nil {
			b.Fatal(err)
		}
	}
}
