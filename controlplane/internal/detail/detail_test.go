package detail_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// world is one node's disk and what its zone store says of customers.
type world struct {
	t      *testing.T
	fs     *durabletest.FS
	cfg    detail.Config
	s      *detail.Store
	stop   context.CancelFunc
	ended  chan error
	mu     sync.Mutex // covers the rest
	erased map[string]bool
	ahead  time.Duration // of the real clock: the library's decoders live longer than a synctest bubble
}

func newWorld(t *testing.T, change func(*detail.Config)) *world {
	w := &world{t: t, fs: durabletest.New(), erased: map[string]bool{}}
	w.cfg = detail.Config{Dir: "/detail", FS: w.fs, Erased: func(c string) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.erased[c]
	}}
	w.cfg.Now = w.now
	if change != nil {
		change(&w.cfg)
	}
	w.open()
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return start.Add(w.ahead)
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

func (w *world) tombstone(customer string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.erased[customer] = true
}

func (w *world) open() {
	w.t.Helper()
	s, err := detail.Open(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.s, w.stop, w.ended = s, cancel, make(chan error, 1)
	ended := w.ended
	go func() { ended <- s.Run(ctx) }()
}

func (w *world) close() {
	w.stop()
	<-w.ended
}

var start = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)

func row(at time.Time, customer string, i int) usage.Row {
	r := usage.Row{EndUnixMS: at.UnixMilli(), Customer: customer, Subscription: "main", Plan: "gold", PlanRev: 7, Product: "core", API: "orders",
		Route: []string{"get", "list"}[i%2], Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Period: usage.PeriodRolling, Requests: 1,
		Units: int64(1 + i%3), BytesIn: 3, BytesOut: int64(500 + i), LatencyUS: int64(2000 + i), KeyID: "k1", Status: 200, UpstreamUS: int64(1500 + i), Attempts: 2,
		Flags: usage.FlagRelayed, Actor: 1<<63 + 5, Address: ^uint64(0)}
	binary.BigEndian.PutUint64(r.RequestID[:], uint64(at.UnixMilli()-2)<<16|0x7abc)
	binary.BigEndian.PutUint64(r.RequestID[8:], 0xbfffffff_00000000+uint64(i))
	return r.Kept() // what an edge ships
}

func piece(t *testing.T, edge string, epoch, number uint64, rows ...usage.Row) detail.Entry {
	t.Helper()
	p, err := detail.NewPiece(edge, "eu-west", epoch, number, number, usage.EncodeDetail(rows))
	if err != nil {
		t.Fatal(err)
	}
	return detail.Entry{Piece: &p}
}

func (w *world) append(edge string, epoch uint64, entries ...detail.Entry) []detail.Answer {
	w.t.Helper()
	out, err := w.s.Append(w.t.Context(), edge, epoch, entries...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) found(customer string) detail.Found {
	w.t.Helper()
	f, err := w.s.Trace(w.t.Context(), detail.Query{Customer: customer, Since: w.now().Add(-1000 * time.Hour), Until: w.now().Add(1000 * time.Hour)}, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func requests(f detail.Found) (n int64) {
	for _, s := range f.Sums {
		for _, share := range s.Shares {
			n += share.Requests
		}
	}
	return n
}

// A log of before is read, and what comes now goes into one whose header says so: the program of before would take it for damage.
func TestStore_WhatIsNewGoesIntoANewLog(t *testing.T) {
	for _, pieces := range []int{0, 3} {
		w := newWorld(t, nil)
		for i := range pieces {
			w.append("e1", 5, piece(t, "e1", 5, uint64(i+1), row(start, "acme", i)))
		}
		w.close()
		path, head := "/detail/log-0000000000000001", durable.Header{Magic: "bwdtllog", Version: 2, Program: "p"}
		var records [][]byte
		if _, _, err := durable.ReadLog(w.fs, path, head, func(_ int64, b []byte) error {
			records = append(records, slices.Clone(b))
			return nil
		}); err != nil || len(records) != pieces {
			t.Fatalf("%d records, %v; want %d", len(records), err, pieces)
		}
		if err := w.fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		head.Version = 1
		old, _, err := durable.OpenLog(w.fs, path, head, nil)
		for _, r := range records {
			err = errors.Join(err, old.Append(r))
		}
		if err = errors.Join(err, old.Sync(), old.Close()); err != nil {
			t.Fatal(err)
		}
		w.open()
		rows := make([]usage.Row, 400)
		for i := range rows {
			rows[i] = row(start, "acme", i)
		}
		w.append("e1", 5, piece(t, "e1", 5, uint64(pieces+1), rows...))
		w.close()
		dir, err := w.fs.ReadDir("/detail")
		if err != nil {
			t.Fatal(err)
		}
		head.Version = 2
		held := map[uint32]int{}
		for _, f := range dir {
			if strings.HasPrefix(f.Name(), "log-") { // the old one may be Parquet by now
				n := 0
				found, _, err := durable.ReadLog(w.fs, "/detail/"+f.Name(), head, func(int64, []byte) error { n++; return nil })
				if err != nil {
					t.Fatal(err)
				}
				held[found.Version] += n
			}
		}
		if held[1] > pieces || held[2] != 1 {
			t.Errorf("logs of version 1 hold %d pieces and those of version 2 %d, want at most %d and 1", held[1], held[2], pieces)
		}
		w.open()
		if n := requests(w.found("acme")); n != int64(pieces+len(rows)) {
			t.Errorf("%d requests are found, want %d", n, pieces+len(rows))
		}
		w.roll()
		if n := requests(w.found("acme")); n != int64(pieces+len(rows)) {
			t.Errorf("%d requests are found in Parquet, want %d", n, pieces+len(rows))
		}
		w.close()
	}
}

// roll lets an hour pass: the log becomes Parquet.
func (w *world) roll() {
	w.t.Helper()
	w.pass(time.Hour)
	if err := detail.Hour(w.t.Context(), w.s); err != nil {
		w.t.Fatal(err)
	}
}

func TestStore_RowsAreTheSameWhereverTheyRest(t *testing.T) {
	w := newWorld(t, nil)
	at := w.now()
	var want []usage.Row
	for n := range 5 {
		var rows []usage.Row
		for i := range 4 {
			rows = append(rows, row(at.Add(time.Duration(4*n+i)*time.Second), "acme", 4*n+i), row(at, "globex", i))
			want = append(want, rows[2*i])
		}
		w.append("e1", 3, piece(t, "e1", 3, uint64(n+1), rows...))
	}
	check := func(where string) {
		t.Helper()
		f := w.found("acme")
		if len(f.Rows) != len(want) || requests(f) != int64(len(want)) {
			t.Fatalf("%s: %d rows, %d in sums, want %d", where, len(f.Rows), requests(f), len(want))
		}
		for i, r := range f.Rows {
			if r.Row != want[i] {
				t.Errorf("%s: row %d = %+v, want %+v", where, i, r.Row, want[i])
			}
			if n := uint64(i/4 + 1); r.Edge != "e1" || r.Region != "eu-west" || r.Epoch != 3 || r.Number != n || r.Seq != n {
				t.Errorf("%s: row %d came from %s/%d/%d, want e1/3/%d", where, i, r.Edge, r.Epoch, r.Number, n)
			}
		}
	}
	check("in the log")
	w.close()
	w.open()
	check("in the log, after a restart")
	w.roll()
	if st := w.s.Stats(); st.Files != 1 || st.WaitingTables != 1 || st.FileRows != 40 {
		t.Fatalf("after an hour: %+v, want one file of 40 rows", st)
	}
	check("in Parquet")
	w.close()
	w.open()
	check("in Parquet, after a restart")
	if m := w.s.Mark("e1", 3); m != 5 {
		t.Errorf("mark after rolling and a restart = %d, want 5", m)
	}
	f, _ := w.s.Trace(t.Context(), detail.Query{Customer: "acme", Since: at.Add(2 * time.Second), Until: at.Add(9 * time.Second), Route: "list"}, 2)
	if len(f.Rows) != 2 || !f.Truncated || requests(f) != 3 || f.Rows[0].Row != want[3] {
		t.Errorf("two rows of list in seven seconds: %d rows, truncated %v, %d in all, want 2, true, 3", len(f.Rows), f.Truncated, requests(f))
	}
	w.close()
}

func TestStore_NumbersDecide(t *testing.T) {
	w := newWorld(t, nil)
	defer w.close()
	at := w.now()
	one := func(n uint64) detail.Entry { return piece(t, "e1", 1, n, row(at, "acme", int(n))) }
	a := w.append("e1", 1, one(1), one(1), one(3), one(2))
	want := []detail.Answer{{Stored: 1}, {Stored: 1}, {Stored: 1, Gap: true, Expected: 2}, {Stored: 2}}
	if !slices.Equal(a, want) {
		t.Errorf("answers %v, want %v", a, want)
	}
	// What is below the floor rests on another node; another epoch counts for itself.
	floor := piece(t, "e1", 2, 7, row(at, "acme", 9))
	floor.Floor = 7
	if a := w.append("e1", 2, floor); a[0].Stored != 7 || a[0].Gap {
		t.Errorf("first number 7 with floor 7: %v", a)
	}
	lost := detail.Lost{Edge: "e1", Epoch: 1, From: 2, To: 9, Rows: 800, Since: at, Until: at.Add(time.Second)}
	if a := w.append("e1", 1, detail.Entry{Lost: &lost}, one(10)); a[0].Stored != 9 || a[1].Stored != 10 {
		t.Errorf("lost to 9, then 10: %v", a)
	}
	f := w.found("acme")
	if len(f.Facts.Lost) != 1 || f.Facts.Lost[0].From != 3 || f.Facts.Lost[0].Rows != 800 {
		t.Errorf("facts %+v, want one from 3 on (2 was stored) of 800 rows", f.Facts.Lost)
	}
	if n := requests(f); n != 4 {
		t.Errorf("%d requests, want 4: each number once", n)
	}
}

func TestStore_RetentionAndBudget(t *testing.T) {
	w := newWorld(t, func(c *detail.Config) { c.Retention = 48 * time.Hour })
	old := w.now()
	w.append("e1", 1, piece(t, "e1", 1, 1, row(old, "acme", 1), row(old.Add(-49*time.Hour), "acme", 2)))
	w.roll()
	if n := requests(w.found("acme")); n != 1 {
		t.Errorf("%d rows, want 1: the other was too old when it came", n)
	}
	w.pass(24 * time.Hour)
	second := w.now()
	w.append("e1", 1, piece(t, "e1", 1, 2, row(second, "acme", 3)))
	w.roll()
	if n := requests(w.found("acme")); n != 2 {
		t.Errorf("%d rows after a day, want 2", n)
	}
	w.pass(24 * time.Hour)
	w.roll()
	f := w.found("acme")
	if st := w.s.Stats(); requests(f) != 1 || st.Files != 1 || st.Expired != 1 || len(w.fs.Files("/detail")) != 3 {
		t.Errorf("%d rows, %+v, %v; want one row in one file, and the other file gone", requests(f), st, w.fs.Files("/detail"))
	}
	if !f.Facts.KeptSince.Equal(w.now().Add(-48 * time.Hour)) {
		t.Errorf("kept since %v, want 48 h ago", f.Facts.KeptSince)
	}
	w.close()

	// A budget of less than two files: the older goes, and it is said for good.
	w.cfg.Budget = w.s.Stats().FileBytes * 3 / 2
	w.open()
	last := w.now()
	w.append("e1", 1, piece(t, "e1", 1, 3, row(last, "acme", 4)))
	w.roll()
	if st := w.s.Stats(); st.Files != 1 || st.OverBudget != 1 {
		t.Errorf("%+v, want one file, one over the budget", st)
	}
	w.close()
	w.open()
	if f := w.found("acme"); requests(f) != 1 || !f.Facts.KeptSince.After(second) || f.Facts.KeptSince.After(last) {
		t.Errorf("%d rows, kept since %v: want 1, and a time after what was removed", requests(f), f.Facts.KeptSince)
	}
	w.close()
}

func TestStore_Erase(t *testing.T) {
	w := newWorld(t, nil)
	defer w.close()
	at := w.now()
	w.append("e1", 1, piece(t, "e1", 1, 1, row(at, "acme", 1), row(at, "person", 2)))
	w.roll()
	w.append("e1", 1, piece(t, "e1", 1, 2, row(at, "person", 3)))
	w.roll()
	w.append("e1", 1, piece(t, "e1", 1, 3, row(at, "person", 4), row(at, "acme", 5)))
	if _, err := w.s.Erase(t.Context(), "person"); fault.ReasonOf(err) != "NOT_ERASED" {
		t.Errorf("erasing a customer whose erasure is not known: %v", err)
	}
	before := w.fs.Files("/detail")
	w.tombstone("person")
	e, err := w.s.Erase(t.Context(), "person")
	if err != nil || e.Files != 3 || e.Rows != 3 || len(e.Before) != 3 || len(e.After) != 3 {
		t.Fatalf("erased %+v, %v; want 3 rows out of 3 files", e, err)
	}
	if e.After[0] != "" || e.After[1] == "" || e.After[1] == e.Before[1] || e.After[2] != "" {
		t.Errorf("before %v, after %v: want the log gone, one file rewritten, one gone", e.Before, e.After)
	}
	for _, name := range before {
		if slices.Contains(w.fs.Files("/detail"), name) && strings.Contains(name, "detail-v1") {
			t.Errorf("%s is still there", name)
		}
	}
	if n := requests(w.found("person")); n != 0 {
		t.Errorf("%d rows of the erased customer are found", n)
	}
	if n := requests(w.found("acme")); n != 2 {
		t.Errorf("%d rows of another customer, want 2", n)
	}
	// What comes late comes to rest nowhere, and its piece is acknowledged all the same.
	if a := w.append("e1", 1, piece(t, "e1", 1, 4, row(at, "person", 6), row(at, "acme", 7)), piece(t, "e1", 1, 5, row(at, "person", 8))); a[1].Stored != 5 {
		t.Errorf("late rows: %v, want them acknowledged", a)
	}
	if n := requests(w.found("person")); n != 0 || w.s.Stats().ErasedRows < 2 {
		t.Errorf("%d late rows of the erased customer are found, %d were dropped", n, w.s.Stats().ErasedRows)
	}
	// What came before the tombstone and was not asked to be erased goes when its log is rolled.
	w.append("e1", 1, piece(t, "e1", 1, 6, row(at, "leaver", 9), row(at, "globex", 9)))
	w.tombstone("leaver")
	w.roll()
	if n := requests(w.found("leaver")); n != 0 || requests(w.found("globex")) != 1 {
		t.Errorf("%d rows of a customer erased before the roll are found, and %d of another", n, requests(w.found("globex")))
	}
	if n := requests(w.found("acme")); n != 3 {
		t.Errorf("%d rows of another customer that came with late ones, want 3", n)
	}
	if e, err := w.s.Erase(t.Context(), "person"); err != nil || e.Files != 0 {
		t.Errorf("again: %+v, %v, want nothing to do", e, err)
	}
}

// A damaged file is named and does no further harm; an erasure takes it away, since nobody can show that it is
// free of the customer.
func TestStore_Damage(t *testing.T) {
	w := newWorld(t, nil)
	at := w.now()
	w.append("e1", 1, piece(t, "e1", 1, 1, row(at, "acme", 1)))
	w.roll()
	w.append("e1", 1, piece(t, "e1", 1, 2, row(at, "acme", 2)))
	w.roll()
	w.close()
	name := w.fs.Files("/detail")[1]
	if err := w.fs.Corrupt(name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	w.open()
	f := w.found("acme")
	if requests(f) != 1 || len(f.Facts.Damaged) != 1 || !strings.HasSuffix(name, f.Facts.Damaged[0]) {
		t.Errorf("%d rows, damaged %v; want 1 row and %s named", requests(f), f.Facts.Damaged, name)
	}
	w.tombstone("person")
	if e, err := w.s.Erase(t.Context(), "person"); err != nil || e.Files != 1 || e.After[0] != "" {
		t.Errorf("erasure: %+v, %v; want the damaged file gone", e, err)
	}
	if f := w.found("acme"); requests(f) != 1 || len(f.Facts.Damaged) != 0 {
		t.Errorf("then: %d rows, damaged %v", requests(f), f.Facts.Damaged)
	}
	w.close()
}

// A disk that cannot be read for a moment costs nobody's rows: the erasure fails, and goes on when it is repeated.
func TestErase_TakesNoFileForAnErrorOfTheDisk(t *testing.T) {
	for _, op := range []string{"open", "read"} {
		w := newWorld(t, nil)
		at := w.now()
		w.append("e1", 1, piece(t, "e1", 1, 1, row(at, "acme", 1), row(at, "person", 1)))
		w.roll()
		w.append("e1", 1, piece(t, "e1", 1, 2, row(at, "acme", 2)))
		w.roll()
		w.tombstone("person")
		w.fs.Inject(func(o, path string) error {
			if o == op && strings.HasSuffix(path, ".parquet") {
				return errDisk
			}
			return nil
		})
		if e, err := w.s.Erase(t.Context(), "person"); !errors.Is(err, errDisk) {
			t.Errorf("%s fails: erased %+v, %v, want the disk's error", op, e, err)
		}
		w.fs.Inject(nil)
		if f := w.found("acme"); requests(f) != 2 || len(f.Facts.Damaged) != 0 {
			t.Errorf("%s failed: %d rows of another customer are left, damaged %v; want 2", op, requests(f), f.Facts.Damaged)
		}
		if e, err := w.s.Erase(t.Context(), "person"); err != nil || e.Files != 1 || e.Rows != 1 {
			t.Errorf("again: %+v, %v", e, err)
		}
		w.close()
	}
}

// Readers, rolls and erasures at once: no row is missed or seen twice by a reader that began at any moment.
func TestStore_ReadersSeeEachRowOnce(t *testing.T) {
	w := newWorld(t, func(c *detail.Config) { c.RollBytes = 2 << 10 })
	defer w.close()
	at := w.now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := int64(0)
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				low := acked
				mu.Unlock()
				n := requests(w.found("acme"))
				mu.Lock()
				high := acked + 1 // one may be stored and not counted yet
				mu.Unlock()
				if n < low || n > high {
					t.Errorf("a reader found %d rows, want %d to %d", n, low, high)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for i := range 60 {
		w.append("e1", 1, piece(t, "e1", 1, uint64(i+1), row(at, "acme", i), row(at, fmt.Sprint("p", i/20), i)))
		mu.Lock()
		acked++
		mu.Unlock()
		if i%20 == 19 {
			w.tombstone(fmt.Sprint("p", i/20))
			if _, err := w.s.Erase(t.Context(), fmt.Sprint("p", i/20)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
}
