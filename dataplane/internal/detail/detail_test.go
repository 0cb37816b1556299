package detail_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
	"bailiwick/shared/usage"
)

// row is the one with an ordinal, which it carries so that it can be told.
func row(ordinal uint64) usage.Row {
	return usage.Row{EndUnixMS: 1_764_000_000_000 + int64(ordinal), Customer: "acme", Subscription: "main", Plan: "gold", API: "orders", Route: "get", KeyID: "k1",
		Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Status: 200, Attempts: 1, Requests: 1, Units: 1, BytesIn: int64(ordinal), LatencyUS: 5}
}

func rows(from, to uint64) *usage.Batch {
	var out []usage.Row
	for n := from; n <= to; n++ {
		out = append(out, row(n))
	}
	return usage.BatchOf(out)
}

func open(t testing.TB, fsys durable.FS, cfg detail.Config) *detail.Spool {
	t.Helper()
	cfg.Dir, cfg.Edge, cfg.FS = "/d", "edge-1", fsys
	s, err := detail.Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

// walk reads an epoch from its oldest number on, as the shipper does, and insists
// that every ordinal after the stored ones is in one piece or inside one loss.
func walk(t testing.TB, s *detail.Spool, epoch, storedRows, total uint64) (kept, lost uint64) {
	t.Helper()
	for _, e := range s.Epochs() {
		if e.Epoch != epoch {
			continue
		}
		at := storedRows
		for n := e.Oldest; n <= e.Written; {
			it, ok, err := s.Next(epoch, n)
			if err != nil || !ok {
				t.Fatalf("number %d of %d..%d = %v, %v", n, e.Oldest, e.Written, ok, err)
			}
			if l := it.Lost; l != nil {
				if l.From > n || l.To < n {
					t.Fatalf("number %d is answered by the loss of %d..%d", n, l.From, l.To)
				}
				at, lost, n = at+uint64(l.Rows), lost+uint64(l.Rows), l.To+1
				continue
			}
			if !it.Piece.Intact() || it.Piece.Number != n {
				t.Fatalf("piece %d answers number %d", it.Piece.Number, n)
			}
			got, err := usage.DecodeDetail(it.Piece.Payload)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if at++; got[i].BytesIn != int64(at) {
					t.Fatalf("piece %d holds row %d where row %d belongs", n, got[i].BytesIn, at)
				}
				kept++
			}
			n++
		}
		if at != total {
			t.Fatalf("pieces and losses make %d rows, want %d", at, total)
		}
	}
	return kept, lost
}

func TestSpool_KeepsEachRowOnceHoweverOftenItComes(t *testing.T) {
	m := durabletest.New()
	s := open(t, m, detail.Config{})
	s.Keep(7, 1, 100, rows(1, 100))
	s.Keep(7, 1, 100, rows(1, 100))
	s.Keep(7, 2, 150, rows(51, 150))
	if kept, lost := walk(t, s, 7, 0, 150); kept != 150 || lost != 0 {
		t.Errorf("%d kept and %d lost, want 150 and 0", kept, lost)
	}
	it, _, _ := s.Next(7, 2)
	if it.Piece.Seq != 2 {
		t.Errorf("seq = %d, want 2", it.Piece.Seq)
	}
	m.Crash()
	s = open(t, m, detail.Config{})
	s.Keep(7, 3, 250, rows(101, 250)) // folded again from an older place
	s.Keep(7, 3, 300, rows(271, 300)) // and some never came
	if kept, lost := walk(t, s, 7, 0, 300); kept != 280 || lost != 20 {
		t.Errorf("%d kept and %d lost, want 280 and 20", kept, lost)
	}
	big := uint64(300 + 2*usage.MaxDetailRows + 5)
	s.Keep(7, 4, big, rows(301, big))
	if kept, _ := walk(t, s, 7, 0, big); kept != big-20 {
		t.Errorf("%d kept, want %d", kept, big-20)
	}
}

func TestSpool_TrimsWhatIsStored(t *testing.T) {
	m := durabletest.New()
	s := open(t, m, detail.Config{Budget: 1 << 20, FileBytes: 2048})
	for i := range uint64(100) {
		s.Keep(7, i+1, (i+1)*50, rows(i*50+1, (i+1)*50))
	}
	files := len(m.Files("/d"))
	if err := s.Mark(7, 60); err != nil {
		t.Fatal(err)
	}
	if got := len(m.Files("/d")); got >= files-2 {
		t.Errorf("%d files, %d before 60 of 100 pieces were stored", got, files)
	}
	walk(t, s, 7, 3000, 5000)
	for _, stored := range []uint64{math.MaxUint64, math.MaxUint64 - 1, math.MaxInt64} {
		if err := s.Mark(7, stored); err == nil {
			t.Errorf("a mark of %d is taken, behind which there is no room for numbers", stored)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, m, detail.Config{Budget: 1 << 20, FileBytes: 2048})
	walk(t, s, 7, 3000, 5000)
	if err := s.Mark(7, 100); err != nil {
		t.Fatal(err)
	}
	s.Keep(8, 1, 1, rows(1, 1))
	if es := s.Epochs(); len(es) != 1 || es[0] != (detail.Epoch{Epoch: 8, Oldest: 1, Written: 1}) {
		t.Errorf("epochs = %+v, want 8 alone", es)
	}
}

// Beyond the budget the oldest goes, counted to the row, and says from when to when it was.
func TestSpool_GivesUpTheOldestBeyondItsBudget(t *testing.T) {
	m := durabletest.New()
	cfg := detail.Config{Budget: 64 << 10}
	s := open(t, m, cfg)
	total := uint64(0)
	for i := range uint64(300) {
		s.Keep(7, i+1, total+100, rows(total+1, total+100))
		total += 100
		if st := s.Stats(); st.Disk > cfg.Budget+cfg.Budget/4 {
			t.Fatalf("%d bytes on disk with a budget of %d", st.Disk, cfg.Budget)
		}
	}
	kept, lost := walk(t, s, 7, 0, total)
	if lost == 0 || int64(lost) != s.Stats().RowsLost {
		t.Errorf("%d rows lost, the statistics say %d", lost, s.Stats().RowsLost)
	}
	it, _, err := s.Next(7, 1)
	if err != nil || it.Lost == nil || it.Lost.From != 1 || it.Lost.SinceMS != row(1).EndUnixMS || it.Lost.UntilMS != row(lost).EndUnixMS {
		t.Errorf("the loss = %+v, %v; want one from 1, from the first row's time to the last one's", it.Lost, err)
	}
	m.Crash()
	s = open(t, m, cfg)
	if k, l := walk(t, s, 7, 0, total); k != kept || l != lost {
		t.Errorf("after a crash %d kept and %d lost, want %d and %d", k, l, kept, lost)
	}
}

func TestSpool_DamageBecomesALoss(t *testing.T) {
	for name, reopen := range map[string]bool{"while it runs": false, "found at start": true} {
		m := durabletest.New()
		s := open(t, m, detail.Config{})
		for i := range uint64(5) {
			s.Keep(7, i+1, (i+1)*50, rows(i*50+1, (i+1)*50))
		}
		if reopen {
			s.Close()
			s = open(t, m, detail.Config{}) // a second file
			s.Keep(7, 6, 300, rows(251, 300))
			s.Close()
		}
		path := "/d/" + m.Files("/d")[0]
		if err := m.Corrupt(path, func(b []byte) []byte { b[len(b)/2] ^= 4; return b }); err != nil {
			if err := m.Corrupt(m.Files("/d")[0], func(b []byte) []byte { b[len(b)/2] ^= 4; return b }); err != nil {
				t.Fatal(err)
			}
		}
		total := uint64(250)
		if reopen {
			s, total = open(t, m, detail.Config{}), 300
		}
		kept, lost := walk(t, s, 7, 0, total)
		if lost == 0 || kept == 0 {
			t.Errorf("%s: %d kept and %d lost, want some of both", name, kept, lost)
		}
	}
}

// A damaged file may have been the only one that knew how far the numbers went. What the control node has under
// those numbers is other rows: what is here is lost aloud, and nothing behind it waits for ever.
func TestSpool_AMarkBeyondWhatDamageLeft(t *testing.T) {
	m := durabletest.New()
	s := open(t, m, detail.Config{})
	for i := range uint64(9) {
		s.Keep(7, i+1, (i+1)*50, rows(i*50+1, (i+1)*50))
	}
	if err := s.Mark(7, 8); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Corrupt(m.Files("/d")[0], func(b []byte) []byte { b[len(b)/3] ^= 4; return b }); err != nil {
		t.Fatal(err)
	}
	s = open(t, m, detail.Config{})
	s.Keep(7, 10, 460, rows(451, 460)) // the spool finishes its epoch
	s.Keep(8, 1, 10, rows(1, 10))
	if es := s.Epochs(); len(es) != 2 || es[0].Written >= 8 {
		t.Fatalf("epochs = %+v: the test does not reach what it is about", es)
	}
	if err := s.Mark(7, 8); err != nil {
		t.Fatalf("the control node's mark is not taken: nothing of this edge would ever be sent again: %v", err)
	}
	check := func() {
		t.Helper()
		es := s.Epochs()
		if len(es) != 2 || es[0] != (detail.Epoch{Epoch: 7, Oldest: 9, Written: 9}) {
			t.Fatalf("epochs = %+v, want number 9 of 7 to be sent", es)
		}
		it, ok, err := s.Next(7, 9)
		if err != nil || !ok || it.Lost == nil || it.Lost.Rows < 60 {
			t.Errorf("number 9 = %+v, %v, %v; want the loss of the 60 rows that no control node has", it.Lost, ok, err)
		}
	}
	check()
	m.Crash()
	s = open(t, m, detail.Config{})
	if es := s.Epochs(); es[0].Oldest > 9 { // the mark is not synced by itself, but the loss behind it is
		t.Errorf("epochs = %+v", es)
	}
	check()
	if err := s.Mark(7, 9); err != nil {
		t.Fatal(err)
	}
	if es := s.Epochs(); len(es) != 1 || es[0].Epoch != 8 {
		t.Errorf("epochs = %+v, want 8 alone", es)
	}
}

// Whatever fails and whenever the machine dies: every row of the log is in one
// piece or inside one loss, in order, and what nothing failed for is not lost.
func TestSpool_AnyFailureAndCrash(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 9))
		m := durabletest.New()
		cfg := detail.Config{Budget: 64 << 10, FileBytes: int64(300 + r.IntN(4000))}
		s := open(t, m, cfg)
		var total, seen, stored, storedRows uint64 // seen: from where the log is folded again
		failed := false
		for range 30 {

			switch r.IntN(10) {
			case 0, 1, 2, 3, 4: // rows are appended and folded
				from := total + 1
				total += uint64(1 + r.IntN(60))
				if r.IntN(8) == 0 { // and never come
					failed = true
					s.Keep(7, 1, total, nil)
					break
				}
				s.Keep(7, 1, total, rows(from, total))
			case 5: // the disk fails for a while
				n, err := r.IntN(4), []error{unix.ENOSPC, unix.EIO}[r.IntN(2)]
				m.Inject(func(op, path string) error {
					if op == "remove" || op == "open" {
						return nil
					}
					if n--; n < 0 {
						failed = true
						return err
					}
					return nil
				})
				from := total + 1
				total += uint64(1 + r.IntN(60))
				s.Keep(7, 1, total, rows(from, total))
				m.Inject(nil)
			case 6: // a control node stores some
				if es := s.Epochs(); len(es) > 0 && es[0].Written > es[0].Oldest {
					to := es[0].Oldest + uint64(r.IntN(int(es[0].Written-es[0].Oldest)))
					at := storedRows
					for n := es[0].Oldest; n <= to; {
						it, _, err := s.Next(7, n)
						if err != nil {
							t.Fatalf("seed %d: %v", seed, err)
						}
						if it.Lost != nil {
							at, n = at+uint64(it.Lost.Rows), it.Lost.To+1
							to = max(to, it.Lost.To)
							continue
						}
						got, _ := usage.DecodeDetail(it.Piece.Payload)
						at, n = at+uint64(len(got)), n+1
					}
					if err := s.Mark(7, to); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					stored, storedRows = to, at
				}
			case 7: // the commit of the ledger's spool: it will not fold again what is before
				seen = total
			default:
				if r.IntN(2) == 0 {
					m.Crash()
				} else {
					m.CrashTorn(r)
				}
				s = open(t, m, cfg)
				// The mark may be gone: the control node says it again.
				if err := s.Mark(7, stored); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if total > seen {
					s.Keep(7, 1, total, rows(seen+1, total))
				}
			}
		}
		if total == 0 {
			continue
		}
		total++
		s.Keep(7, 1, total, rows(total, total))
		if t.Failed() {
			return
		}
		_, lost := walk(t, s, 7, storedRows, total)
		if lost > 0 && !failed && s.Stats().Disk < cfg.Budget/2 {
			t.Errorf("seed %d: %d rows are lost, and nothing failed", seed, lost)
		}
	}
}

// What reached the disk although writing it seemed to fail was made up for, and must not come back.
func TestSpool_AFailedWriteIsNotFoundAgain(t *testing.T) {
	m := durabletest.New()
	s := open(t, m, detail.Config{})
	s.Keep(7, 1, 10, rows(1, 10))
	failSync := func(after int) {
		m.Inject(func(op, _ string) error {
			if op == "sync" {
				if after--; after < 0 {
					return unix.EIO
				}
			}
			return nil
		})
	}
	failSync(0)
	s.Keep(7, 1, 20, rows(11, 20))
	failSync(2) // a new file is begun with two
	s.Keep(7, 1, 30, rows(21, 30))
	m.Inject(nil)
	if n := s.Stats().Failures; n != 2 {
		t.Fatalf("%d failures, want 2: the test does not reach what it is about", n)
	}
	s.Keep(7, 1, 31, nil)
	walk(t, s, 7, 0, 31)
	s = open(t, m, detail.Config{}) // killed, but the machine lives: all that was written is there
	if kept, lost := walk(t, s, 7, 0, 31); kept != 10 || lost != 21 {
		t.Errorf("%d kept and %d lost, want 10 and 21", kept, lost)
	}
}

func TestConfig_Validate(t *testing.T) {
	for _, c := range []detail.Config{{}, {Dir: "/d"}, {Dir: "/d", Edge: "e", Budget: 1}, {Dir: "/d", Edge: "e", FileBytes: -1}} {
		if c.Validate() == nil {
			t.Errorf("%+v passes", c)
		}
	}
	if _, err := detail.Open(detail.Config{}); err == nil {
		t.Error("Open takes a config without a directory")
	}
	m := durabletest.New()
	m.Inject(func(op, _ string) error { return fmt.Errorf("no %s", op) })
	if _, err := detail.Open(detail.Config{Dir: "/d", Edge: "e", FS: m}); err == nil || errors.Is(err, durable.ErrCorrupt) {
		t.Errorf("open on a disk that does nothing = %v", err)
	}
}
