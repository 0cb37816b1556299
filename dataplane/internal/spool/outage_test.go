package spool_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage"
	"bailiwick/shared/usage/usagetest"
)

// 72 hours without a control node at 1,000 requests/s: billing is complete, and
// all of it and all detail take at most 3 GB. The clock is virtual, the files are
// real. In CI every 1000th request is made: the cells are nearly as many, since each
// customer still asks for each route in each quarter of an hour, and the detail is
// measured a request, which flatters nothing (requests further apart cost more
// bytes). OUTAGE_SCALE=1 makes them all (make outage).
func TestSpool_72HoursOfOutage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	scale, _ := strconv.Atoi(os.Getenv("OUTAGE_SCALE"))
	if scale <= 0 {
		scale = 1000
	}
	const hours, rate, limit = 72, 1000, 3_000_000_000
	total := hours * 3600 * rate / scale
	dir := t.TempDir()
	now := time.Unix(1_764_000_000, 0)
	traffic := usagetest.NewTraffic(1, now, rate/float64(scale))
	openBoth := func() (*spool.Spool, *detail.Spool) {
		d, err := detail.Open(detail.Config{Dir: filepath.Join(dir, "detail"), Edge: edge})
		if err != nil {
			t.Fatal(err)
		}
		return open(t, spool.Config{Dir: filepath.Join(dir, "spool"), SegmentBytes: 8 << 20, Detail: d, Now: func() time.Time { return now }}), d
	}
	s, d := openBoth()
	var want usage.Sums
	for n := range total {
		r := traffic.Next()
		now = time.UnixMilli(r.EndUnixMS)
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
		want = want.Add(r.Sums())
		if every := 1500; n < 70*every && n%every == 0 || n%8192 == 0 {
			seal(t, s)
		}
	}
	if s.Stats().Unacked != 64 {
		t.Errorf("%d blocks wait, want 64 and the rest open", s.Stats().Unacked)
	}
	s.Abandon() // and killed in the end
	d.Close()
	s, d = openBoth()
	var got usage.Sums
	for _, b := range pending(t, s) {
		cells, err := usage.DecodePayload(b.Payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, sum := range cells {
			got = got.Add(sum)
		}
	}
	if got != want {
		t.Errorf("the blocks sum to %+v, want %+v", got, want)
	}
	st := d.Stats()
	if int(st.Pieces) == 0 || st.RowsLost != 0 {
		t.Errorf("%d pieces of detail, %d rows lost", st.Pieces, st.RowsLost)
	}
	kept := 0
	eachPiece(t, d, func(_ *usage.Detail, rows []usage.Row) { kept += len(rows) }, func(l *detail.Lost) {})
	if kept != total {
		t.Errorf("detail of %d rows, want %d", kept, total)
	}
	ledger, details := du(t, filepath.Join(dir, "spool")), du(t, filepath.Join(dir, "detail"))
	whole := ledger + details*int64(scale)
	t.Logf("%d rows: ledger spool %d bytes in %d blocks; detail %.2f bytes a request; 72 h at %d/s: %d bytes", total, ledger, len(pending(t, s)), float64(details)/float64(total), rate, whole)
	if whole > limit {
		t.Errorf("72 h take %d bytes, want at most %d", whole, limit)
	}
}

func du(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		i, err := e.Info()
		n += i.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
