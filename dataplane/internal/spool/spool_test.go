package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

const edge = "eu-west-edge-1"

// row is with a period for every other customer: its place in the record is optional.
func row(customer string) usage.Row {
	return usage.Row{Customer: customer, Subscription: "main", Plan: "gold", PlanRev: 3, Product: "core", API: "orders", Route: "get",
		Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Requests: 1, Units: 1, BytesIn: 10, BytesOut: 100, LatencyUS: 5,
		Period: int64(len(customer)%2) * 1_761_955_200}
}

func open(t testing.TB, cfg spool.Config) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fill(cfg))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(s.Abandon)
	return s
}

func fill(cfg spool.Config) spool.Config {
	cfg.Edge = edge
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = 64 << 10
	}
	return cfg
}

func add(t testing.TB, s *spool.Spool, customer string, n int) {
	t.Helper()
	for range n {
		r := row(customer)
		if err := s.Append(&r); err != nil {
			t.Fatalf("append: %v", err)
		}
	}
}

func seal(t testing.TB, s *spool.Spool) {
	t.Helper()
	if err := s.Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
}

// pending reads every block that waits, and checks its chain.
func pending(t testing.TB, s *spool.Spool) (out []usage.Block) {
	t.Helper()
	for _, e := range s.Epochs() {
		blocks, err := s.Blocks(e.Epoch, 0, 1<<30)
		if err != nil {
			t.Fatalf("read blocks of epoch %d: %v", e.Epoch, err)
		}
		var prev *usage.Block
		for i := range blocks {
			b := &blocks[i]
			if !b.Intact() || b.Edge != edge || b.Epoch != e.Epoch {
				t.Fatalf("block %d/%d is not intact", b.Epoch, b.Seq)
			}
			if prev != nil && (b.Prev != prev.Hash || b.Seq != prev.Seq+1) || b.Seq == 1 && b.Prev != [32]byte{} {
				t.Fatalf("block %d/%d does not continue its chain", b.Epoch, b.Seq)
			}
			prev = b
		}
		if prev != nil && (prev.Hash != e.Head || prev.Seq != e.Sealed || blocks[0].Seq != e.Oldest) {
			t.Fatalf("epoch %+v does not match its blocks %d..%d", e, blocks[0].Seq, prev.Seq)
		}
		out = append(out, blocks...)
	}
	return out
}

func requests(t testing.TB, blocks []usage.Block) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for _, b := range blocks {
		cells, err := usage.DecodePayload(b.Payload)
		if err != nil {
			t.Fatalf("block %d/%d: %v", b.Epoch, b.Seq, err)
		}
		for c, s := range cells {
			out[c.Customer] += s.Requests
			if s.Units != s.Requests || s.BytesIn != 10*s.Requests || s.BytesOut != 100*s.Requests {
				t.Fatalf("block %d/%d: sums %+v do not belong to %d rows", b.Epoch, b.Seq, s, s.Requests)
			}
		}
	}
	return out
}

func want(t testing.TB, got map[string]int64, customer string, n int64) {
	t.Helper()
	if got[customer] != n {
		t.Errorf("counted %d rows of %s, want %d", got[customer], customer, n)
	}
}

func ackAll(t testing.TB, s *spool.Spool) {
	t.Helper()
	for _, b := range pending(t, s) {
		if err := s.Ack(b.Epoch, b.Seq, b.Hash); err != nil {
			t.Fatalf("ack %d/%d: %v", b.Epoch, b.Seq, err)
		}
	}
}

func files(t testing.TB, dir, prefix string) (names []string, bytes int64) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if info, err := d.Info(); err == nil && strings.HasPrefix(d.Name(), prefix) {
			names = append(names, filepath.Join(dir, d.Name()))
			bytes += info.Size()
		}
	}
	return names, bytes
}

func TestSpool_RowsBecomeOneBlockAndEmptyIntervalsNone(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir()})
	add(t, s, "acme", 3)
	add(t, s, "zeta", 2)
	changed := s.Changed()
	for range 4 {
		seal(t, s)
	}
	select {
	case <-changed:
	default:
		t.Error("Changed did not close at a seal")
	}
	blocks := pending(t, s)
	if len(blocks) != 1 {
		t.Fatalf("%d blocks, want 1: an empty interval makes none", len(blocks))
	}
	got := requests(t, blocks)
	want(t, got, "acme", 3)
	want(t, got, "zeta", 2)
}

func TestSpool_EpochsOverRestarts(t *testing.T) {
	dir := t.TempDir()
	now := time.UnixMilli(1_800_000_000_000)
	cfg := spool.Config{Dir: dir, Now: func() time.Time { return now }}
	total := int64(0)
	var epochs []uint64
	for i := range 5 {
		s := open(t, cfg)
		epochs = append(epochs, s.Stats().Epoch)
		if i > 0 && epochs[i] <= epochs[i-1] {
			t.Fatalf("epochs %v: each start needs a higher one", epochs)
		}
		add(t, s, "acme", 10)
		seal(t, s)
		add(t, s, "acme", i) // left behind, for the next Open
		total += 10 + int64(i)
		switch i % 3 {
		case 0:
			s.Abandon()
		default:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(-time.Minute) // the clock goes back: epochs still rise
	}
	s := open(t, cfg)
	blocks := pending(t, s)
	want(t, requests(t, blocks), "acme", total)
	for i := 1; i < len(blocks); i++ {
		if blocks[i].Epoch < blocks[i-1].Epoch {
			t.Errorf("block %d of epoch %d comes after epoch %d", i, blocks[i].Epoch, blocks[i-1].Epoch)
		}
	}
	if rows, _ := files(t, dir, "rows-"); len(rows) != 2 {
		t.Errorf("row segments %v: want the current one and the spare", rows)
	}
	ackAll(t, s)
	if e := s.Epochs(); len(e) != 1 || e[0].Epoch != s.Stats().Epoch || e[0].Sealed != 0 {
		t.Errorf("epochs after all is acknowledged = %+v, want the current one only", e)
	}
}

// A lost disk must not make the edge repeat numbers that the ledger has: those blocks would pass for repeats.
func TestSpool_EmptyDirectoryBeginsAboveEarlierEpochs(t *testing.T) {
	a := open(t, spool.Config{Dir: t.TempDir(), Now: func() time.Time { return time.UnixMilli(1000) }})
	b := open(t, spool.Config{Dir: t.TempDir(), Now: func() time.Time { return time.UnixMilli(2000) }})
	if x, y := a.Stats().Epoch, b.Stats().Epoch; y <= x {
		t.Errorf("epochs %d, then %d on an empty disk; want a higher one", x, y)
	}
}

func TestSpool_AckTrimsAndOutlivesRestart(t *testing.T) {
	dir := t.TempDir()
	cfg := spool.Config{Dir: dir, JournalBytes: 400}
	s := open(t, cfg)
	for range 20 {
		add(t, s, "acme", 1)
		seal(t, s)
	}
	blocks := pending(t, s)
	if len(blocks) != 20 {
		t.Fatalf("%d blocks, want 20", len(blocks))
	}
	many, _ := files(t, dir, "journal-")
	if err := s.Ack(blocks[0].Epoch, 15, blocks[14].Hash); err != nil {
		t.Fatal(err)
	}
	for range 3 { // repeats, and an old one that arrives late
		if err := s.Ack(blocks[0].Epoch, 15, blocks[14].Hash); err != nil {
			t.Errorf("a repeated ack: %v", err)
		}
		if err := s.Ack(blocks[0].Epoch, 4, blocks[3].Hash); err != nil {
			t.Errorf("a late ack: %v", err)
		}
	}
	few, _ := files(t, dir, "journal-")
	if len(few) >= len(many) {
		t.Errorf("%d journal files after the ack, %d before; want fewer", len(few), len(many))
	}
	s.Abandon()
	s = open(t, cfg)
	if got := pending(t, s); len(got) != 5 || got[0].Seq != 16 {
		t.Errorf("after a restart %d blocks wait, want 5 from 16", len(got))
	}
	ackAll(t, s)
	s.Abandon()
	if got := pending(t, open(t, cfg)); len(got) != 0 {
		t.Errorf("%d blocks wait after all were acknowledged", len(got))
	}
}

func TestSpool_AckOfAnotherHistoryIsRefused(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir()})
	add(t, s, "acme", 1)
	seal(t, s)
	b := pending(t, s)[0]
	for name, err := range map[string]error{
		"beyond the last block": s.Ack(b.Epoch, 2, b.Hash), "other hash": s.Ack(b.Epoch, 1, [32]byte{1}),
	} {
		if !errors.Is(err, spool.ErrFork) {
			t.Errorf("ack %s = %v, want ErrFork", name, err)
		}
	}
	if len(pending(t, s)) != 1 {
		t.Error("a refused ack let a block go")
	}
	if err := s.Ack(b.Epoch, 1, b.Hash); err != nil {
		t.Fatal(err)
	}
	if err := s.Ack(b.Epoch, 1, [32]byte{1}); !errors.Is(err, spool.ErrFork) {
		t.Errorf("ack of the last one with another hash = %v, want ErrFork", err)
	}
}

func TestSpool_NotSealingIsBoundedInSize(t *testing.T) {
	rows := 1_000_000
	if testing.Short() {
		rows = 100_000
	}
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, MaxUnacked: 3, SegmentBytes: 1 << 20})
	for range 3 {
		add(t, s, "acme", 1)
		seal(t, s)
	}
	before := s.SealedThrough()
	largest := int64(0)
	for i := range rows {
		r := row(fmt.Sprintf("customer-%d", i%20))
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
		if i%2000 == 0 {
			seal(t, s)
			_, n := files(t, dir, "")
			largest = max(largest, n)
		}
	}
	seal(t, s)
	st := s.Stats()
	if st.Unacked != 3 {
		t.Errorf("%d blocks wait, want 3: at the limit nothing is sealed", st.Unacked)
	}
	if limit := int64(8 << 20); largest > limit {
		t.Errorf("the directory grew to %d bytes under %d rows of %d bytes, want at most %d", largest, rows, st.RowBytes, limit)
	}
	if st.Checkpoints == 0 || st.OpenCells < 20 {
		t.Errorf("%d checkpoints, %d open cells", st.Checkpoints, st.OpenCells)
	}
	if got := s.SealedThrough(); got != before {
		t.Errorf("sealed through moved from %v to %v while rows wait", before, got)
	}
	// Killed here, or acknowledged here: not one row is lost or counted twice.
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	ackAll(t, s)
	seal(t, s)
	for name, s := range map[string]*spool.Spool{"acknowledged": s, "killed": open(t, spool.Config{Dir: copied, SegmentBytes: 1 << 20})} {
		got := requests(t, pending(t, s))
		for i := range 20 {
			if n := got[fmt.Sprintf("customer-%d", i)]; n != int64(rows/20) {
				t.Errorf("%s: counted %d rows of customer-%d, want %d", name, n, i, rows/20)
			}
		}
	}
}

func TestSpool_ParkedOldEpochDoesNotHoldUpSealing(t *testing.T) {
	dir := t.TempDir()
	cfg := spool.Config{Dir: dir, MaxUnacked: 2}
	s := open(t, cfg)
	for range 3 {
		add(t, s, "acme", 1)
		seal(t, s)
	}
	s.Abandon()
	s = open(t, cfg)
	old := s.Epochs()[0].Epoch
	add(t, s, "zeta", 1)
	seal(t, s)
	if n := s.Stats().Seq; n != 0 {
		t.Fatalf("sealed %d blocks with the limit reached", n)
	}
	s.Park(old, true)
	seal(t, s)
	if n := s.Stats().Seq; n != 1 {
		t.Errorf("sealed %d blocks, want 1: the old epoch is parked", n)
	}
	want(t, requests(t, pending(t, s)), "acme", 3)
}

func TestSpool_SplitsWhatPassesTheLimits(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir(), SegmentBytes: 8 << 20})
	long := strings.Repeat("x", 200)
	n := 20_000
	for i := range n {
		r := row(fmt.Sprintf("%s-%d", long, i))
		r.Route = fmt.Sprintf("%s-%d", r.Route, i)
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	seal(t, s)
	blocks := pending(t, s)
	if len(blocks) < 2 {
		t.Errorf("%d blocks, want several", len(blocks))
	}
	if got := requests(t, blocks); len(got) != n {
		t.Errorf("%d customers counted, want %d", len(got), n)
	}
	if one, err := s.Blocks(s.Stats().Epoch, 2, 1); err != nil || len(one) != 1 || one[0].Seq != 2 {
		t.Errorf("Blocks from 2 with a small limit = %d blocks, %v; want block 2 alone", len(one), err)
	}
}

func TestSpool_SealedThrough(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	s := open(t, spool.Config{Dir: t.TempDir(), Now: func() time.Time { return now }, MaxUnacked: 1})
	epoch := s.Stats().Epoch
	step := func(d time.Duration, seq uint64, at time.Time) {
		t.Helper()
		now = now.Add(d)
		seal(t, s)
		if got, w := s.SealedThrough(), (spool.Through{Epoch: epoch, Seq: seq, At: at}); got.Epoch != w.Epoch || got.Seq != w.Seq || !got.At.Equal(w.At) {
			t.Errorf("sealed through = %v, want %v", got, w)
		}
	}
	step(time.Second, 0, now.Add(time.Second)) // idle: moves with the clock
	add(t, s, "acme", 1)
	step(time.Second, 1, now.Add(time.Second)) // sealed
	add(t, s, "acme", 1)
	stay := now
	step(time.Second, 1, stay) // one block waits, the limit: stays put
	step(time.Second, 1, stay)
	ackAll(t, s)
	step(time.Second, 2, now.Add(time.Second))
	// The clock goes back: a row may not seem to have finished before what was promised complete.
	at := s.SealedThrough().At
	now = now.Add(-time.Minute)
	r := row("acme")
	if err := s.Append(&r); err != nil {
		t.Fatal(err)
	}
	if r.EndUnixMS < at.UnixMilli() {
		t.Errorf("a row is stamped %d, before %d, which was said to be complete", r.EndUnixMS, at.UnixMilli())
	}
}

func TestSpool_RefusesRowsNoLedgerWouldCount(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir()})
	bad := row("")
	if err := s.Append(&bad); err == nil {
		t.Error("a row without a customer is accepted: its block would be refused, and all after it")
	}
	seal(t, s)
	if n := s.Stats().Unacked; n != 0 {
		t.Errorf("%d blocks, want 0", n)
	}
}

func TestSpool_OneProcessADirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, spool.Config{Dir: dir})
	if s, err := spool.Open(fill(spool.Config{Dir: dir})); err == nil {
		s.Abandon()
		t.Error("a second spool opens the same directory")
	}
}

func TestSpool_BelongsToOneEdge(t *testing.T) {
	dir := t.TempDir()
	open(t, spool.Config{Dir: dir}).Abandon()
	if s, err := spool.Open(spool.Config{Dir: dir, Edge: "another"}); err == nil {
		s.Abandon()
		t.Error("another edge opens it")
	}
}

func TestSpool_RowsWithoutTheirJournalAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "acme", 1)
	s.Abandon()
	names, _ := files(t, dir, "journal-")
	for _, n := range names {
		os.Remove(n)
	}
	if s, err := spool.Open(fill(spool.Config{Dir: dir})); !errors.Is(err, durable.ErrCorrupt) {
		s.Abandon()
		t.Errorf("open = %v, want ErrCorrupt", err)
	}
}

func TestSpool_ClosedRefuses(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir()})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := row("acme")
	if err := s.Append(&r); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("append = %v, want ErrClosed", err)
	}
	if err := s.Close(); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("second close = %v, want ErrClosed", err)
	}
}

func TestSpool_AppendDoesNotAllocate(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir(), SegmentBytes: 8 << 20})
	r := row("acme")
	if n := testing.AllocsPerRun(1000, func() {
		if err := s.Append(&r); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("append allocates %v times, want 0", n)
	}
}

// As on an edge: the pages ahead are in memory, because Run was there in time.
func BenchmarkAppend(b *testing.B) {
	s := open(b, spool.Config{Dir: b.TempDir(), SegmentBytes: 8 << 20, MaxUnacked: 1 << 30})
	r := row("acme")
	b.ReportAllocs()
	for i := range b.N {
		if i%500 == 0 {
			b.StopTimer()
			if err := s.Provide(); err != nil {
				b.Fatal(err)
			}
			if i%20_000 == 0 {
				seal(b, s)
			}
			b.StartTimer()
		}
		if err := s.Append(&r); err != nil {
			b.Fatal(err)
		}
	}
}

// As fast as one goroutine can, against the disk.
func BenchmarkAppendSaturated(b *testing.B) {
	s := open(b, spool.Config{Dir: b.TempDir(), SegmentBytes: 8 << 20})
	_, stop := contextRun(b, s)
	defer stop()
	r := row("acme")
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Append(&r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal20Cells(b *testing.B) {
	s := open(b, spool.Config{Dir: b.TempDir(), SegmentBytes: 64 << 20, MaxUnacked: 1 << 30})
	b.ReportAllocs()
	rows := 0
	for b.Loop() {
		for i := range 1000 {
			r := row([]string{"a", "b", "c", "d"}[i&3])
			if err := s.Append(&r); err != nil {
				b.Fatal(err)
			}
			rows++
		}
		if err := s.Seal(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
}

// logged is a logger whose lines a test can look at.
func logged() (*slog.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	return slog.New(slog.NewTextHandler(&buf, nil)), &buf
}
