package spool_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
	"bailiwick/shared/usage"
)

// testdata/v1 was left by the program from before 2026-11-25, killed: 5 rows of
// acme in a block, 480 of zeta in a checkpoint, 7 of acme behind it.
func TestOpen_ReadsVersion1(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	if err := os.CopyFS(dir, os.DirFS("testdata/v1")); err != nil {
		t.Fatal(err)
	}
	d := newDetail(t, durabletest.New())
	cfg := spool.Config{Dir: dir, Detail: d}
	s := open(t, cfg)
	want(t, requests(t, pending(t, s)), "acme", 12)
	want(t, requests(t, pending(t, s)), "zeta", 480)
	add(t, s, "acme", 3)
	seal(t, s)
	s.Abandon()
	s = open(t, cfg) // what is written now is of this version, in files that say so
	want(t, requests(t, pending(t, s)), "acme", 15)
	if kept, lost := detailRows(t, d); kept["acme"] != 10 || lost != 0 {
		t.Errorf("detail of %d rows is kept and %d lost, want the 7 found and the 3 new ones, and none", kept["acme"], lost)
	}
}

// testdata/v2 was left by the program from before 2026-11-27, killed: 5 rows of acme in a block, 7 of acme and 2 of zeta behind it.
func TestOpen_ReadsVersion2(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	if err := os.CopyFS(dir, os.DirFS("testdata/v2")); err != nil {
		t.Fatal(err)
	}
	s := open(t, spool.Config{Dir: dir})
	want(t, requests(t, pending(t, s)), "acme", 12)
	want(t, requests(t, pending(t, s)), "zeta", 2)
}

func newDetail(t testing.TB, fsys durable.FS) *detail.Spool {
	t.Helper()
	d, err := detail.Open(detail.Config{Dir: "/detail", Edge: edge, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// detailRows reads all detail and insists that no request is in it twice.
func detailRows(t testing.TB, d *detail.Spool) (kept map[string]int64, lost int64) {
	t.Helper()
	kept = map[string]int64{}
	eachPiece(t, d, func(p *usage.Detail, rows []usage.Row) {
		for i := range rows {
			kept[rows[i].Customer]++
		}
	}, func(l *detail.Lost) { lost += l.Rows })
	return kept, lost
}

func eachPiece(t testing.TB, d *detail.Spool, piece func(*usage.Detail, []usage.Row), loss func(*detail.Lost)) {
	t.Helper()
	for _, e := range d.Epochs() {
		for n := e.Oldest; n <= e.Written; n++ {
			it, ok, err := d.Next(e.Epoch, n)
			if err != nil || !ok {
				t.Fatalf("detail %d/%d = %v, %v", e.Epoch, n, ok, err)
			}
			if it.Lost != nil {
				loss(it.Lost)
				n = it.Lost.To
				continue
			}
			rows, err := usage.DecodeDetail(it.Piece.Payload)
			if err != nil {
				t.Fatalf("detail %d/%d: %v", e.Epoch, n, err)
			}
			piece(&it.Piece, rows)
		}
	}
}

// A row comes out of the row log as it went in.
func TestAppend_KeepsEveryField(t *testing.T) {
	d := newDetail(t, durabletest.New())
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, Detail: d})
	r := row("acme")
	r.RequestID = [16]byte{1, 2, 3, 4, 5, 6, 0x70, 0, 0x80, 0, 0, 0, 0, 14, 15, 16}
	r.Period, r.KeyID, r.Status, r.UpstreamUS, r.Attempts, r.Flags, r.Actor, r.Address = 1761955200, "k-1", 201, 4, 2, usage.FlagRelayed|usage.FlagStreamed, 7, 1<<63+9
	if err := s.Append(&r); err != nil {
		t.Fatal(err)
	}
	seal(t, s)
	found := false
	eachPiece(t, d, func(p *usage.Detail, rows []usage.Row) {
		found = true
		if len(rows) != 1 || rows[0] != r.Kept() {
			t.Errorf("detail = %+v, want %+v", rows, r.Kept())
		}
		if p.Seq != 1 {
			t.Errorf("its block is %d, want 1", p.Seq)
		}
	}, func(*detail.Lost) {})
	p, err := usage.Decode(pending(t, s)[0].Payload)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	if _, ok := p.Cells[r.Cell()]; !ok || len(p.Cells) != 1 {
		t.Errorf("cells = %v, want the one of period %d", p.Cells, r.Period)
	}
	if k, _ := r.Latency(); len(p.Latency) != 1 || p.Latency[k] == nil || p.Latency[k].Count() != 1 || p.Latency[k].Quantile(500) != r.LatencyUS {
		t.Errorf("latencies = %v", p.Latency)
	}
}

// However the process is killed, whatever fails at the detail's disk: the detail
// of each block sums to the block, unless it is said how many rows are lost.
func TestSpool_DetailFollowsTheBlocks(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		m := durabletest.New()
		dir := t.TempDir()
		copies := 0
		d := newDetail(t, m)
		cfg := spool.Config{Dir: dir, Detail: d, MaxUnacked: 2 + r.IntN(3), SegmentBytes: 64 << 10}
		s := open(t, cfg)
		var id uint64
		appended, failed := int64(0), false
		blocks := map[string]usage.Block{}
		take := func() {
			for _, b := range pending(t, s) {
				blocks[fmt.Sprint(b.Epoch, "/", b.Seq)] = b
			}
		}
		appendRows := func(n int) {
			for range n {
				x := row([]string{"acme", "zeta"}[r.IntN(2)])
				id++
				x.RequestID = [16]byte{6: 0x70, 8: 0x80, 14: byte(id >> 8), 15: byte(id)}
				if err := s.Append(&x); err != nil {
					t.Fatal(err)
				}
				appended++
			}
		}
		for range 40 {
			switch r.IntN(12) {
			case 0, 1, 2, 3, 4:
				appendRows(r.IntN(200))
			case 5, 6, 7:
				seal(t, s)
				take()
			case 8:
				if bs := pending(t, s); len(bs) > 0 {
					take()
					b := bs[r.IntN(len(bs))]
					if err := s.Ack(b.Epoch, b.Seq, b.Hash); err != nil {
						t.Fatal(err)
					}
				}
			case 9: // the detail's disk fails for a while
				n := r.IntN(3)
				m.Inject(func(op, path string) error {
					if n--; n < 0 && (op == "write" || op == "sync") {
						failed = true
						return fs.ErrInvalid
					}
					return nil
				})
				seal(t, s)
				take()
				m.Inject(nil)
			case 10: // killed after the detail was kept and before the journal was: the journal is as it was before the seal
				s.GroupCommit()
				copies++
				before := filepath.Join(t.TempDir(), fmt.Sprint(copies))
				if err := os.CopyFS(before, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				seal(t, s)
				appendRows(r.IntN(20))
				s.GroupCommit()
				s.Abandon()
				after, _ := filepath.Glob(dir + "/rows-*")
				for _, path := range after {
					b, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(before, filepath.Base(path)), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cfg.Dir, dir = before, before
				d = newDetail(t, m)
				cfg.Detail = d
				s = open(t, cfg)
				take()
			default:
				s.Abandon()
				d = newDetail(t, m)
				cfg.Detail = d
				s = open(t, cfg)
				take()
			}
		}
		s.Abandon()
		m.Inject(nil)
		d = newDetail(t, m)
		cfg.Detail = d
		s = open(t, cfg)
		take()
		sums := map[string]map[usage.Cell]usage.Sums{}
		seen := map[[16]byte]bool{}
		var kept, lost int64
		eachPiece(t, d, func(p *usage.Detail, rows []usage.Row) {
			k := fmt.Sprint(p.Epoch, "/", p.Seq)
			if sums[k] == nil {
				sums[k] = map[usage.Cell]usage.Sums{}
			}
			for i := range rows {
				x := &rows[i]
				if seen[x.RequestID] {
					t.Fatalf("seed %d: request %x has two rows of detail", seed, x.RequestID)
				}
				seen[x.RequestID] = true
				sums[k][x.Cell()] = sums[k][x.Cell()].Add(x.Sums())
				kept++
			}
		}, func(l *detail.Lost) { lost += l.Rows })
		if kept+lost != appended || lost > 0 && !failed {
			t.Fatalf("seed %d: %d rows of detail kept, %d lost, of %d; failed: %v", seed, kept, lost, appended, failed)
		}
		total := int64(0)
		for k, b := range blocks {
			cells, err := usage.DecodePayload(b.Payload)
			if err != nil {
				t.Fatal(err)
			}
			for c, s := range cells {
				total += s.Requests
				if got := sums[k][c]; got != s && lost == 0 {
					t.Fatalf("seed %d: block %s has %+v in a cell, its detail %+v", seed, k, s, got)
				}
			}
		}
		if total != appended {
			t.Fatalf("seed %d: %d rows in blocks, want %d", seed, total, appended)
		}
		s.Abandon()
	}
}

// Under load blocks are sealed less often, but never later than SealMost; while
// it is quiet at once.
func TestPace(t *testing.T) {
	now := time.Unix(1_764_000_000, 0)
	p := spool.NewPace(now)
	rows, waited := int64(0), 0
	for range 12 {
		rows, now = rows+1000, now.Add(250*time.Millisecond)
		if p.Wait(rows, now) {
			waited++
		}
	}
	if waited != 10 {
		t.Errorf("12 looks in 3 s under load wait %d times, want 10: a seal every 1.5 s", waited)
	}
	if p.Wait(rows+1, now.Add(250*time.Millisecond)) {
		t.Error("a quiet moment waits")
	}
}
