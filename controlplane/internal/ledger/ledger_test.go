package ledger_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

func TestLedger_AppendsShareEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const edges = 40
		m, err := ledger.OpenOn(vfs.NewMem(), ledger.MachineConfig{Dir: "ledger"})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		r := &replica{m: m, gate: make(chan struct{})}
		l, err := ledger.New(ledger.Config{Machine: m, Replica: r})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx) })
		for i := range edges {
			wg.Go(func() {
				c := &chain{edge: fmt.Sprintf("e%d", i), epoch: 1}
				acks, err := l.Append(ctx, c.next(one("acme", 0, 1)), c.next(one("acme", 0, 1)))
				if err != nil || len(acks) != 2 || acks[1].Applied != 2 || acks[1].Edge != c.edge {
					t.Errorf("acks of %s: got %+v, %v", c.edge, acks, err)
				}
			})
		}
		gone, drop := context.WithCancel(ctx)
		wg.Go(func() {
			c := &chain{edge: "gone", epoch: 1}
			if _, err := l.Append(gone, c.next(one("acme", 0, 1))); err == nil {
				t.Error("append whose caller went away: got nil, want an error")
			}
		})
		synctest.Wait() // one entry is on its way, all others have gathered
		drop()
		for range 2 { // or one, if all had gathered before the first left
			select {
			case r.gate <- struct{}{}:
			default:
			}
			synctest.Wait()
		}
		if n := r.entries(); n > 2 {
			t.Errorf("entries: got %d for %d concurrent calls, want at most 2", n, edges)
		}
		if got := requests(t, m, "acme"); got < 2*edges || got > 2*edges+1 {
			t.Errorf("requests: got %d, want %d, or one more if the one that went was the first", got, 2*edges)
		}
		cancel()
		wg.Wait()
	})
}

func TestLedger_EntriesAreBounded(t *testing.T) {
	r := &replica{m: openMem(t)}
	l := startLedger(t, r, ledger.Config{EntryBytes: 1000})
	c := &chain{edge: "e", epoch: 1}
	var bs []ledger.Block
	for i := range 30 {
		bs = append(bs, c.next(one("acme", i, 1)))
	}
	acks, err := l.Append(t.Context(), bs...)
	if err != nil || len(acks) != 30 || acks[29].Applied != 30 {
		t.Fatalf("append: got %d acks, %v", len(acks), err)
	}
	for i, e := range r.log {
		if len(e) > 1100 {
			t.Errorf("entry %d: %d bytes, want about 1,000 at most", i, len(e))
		}
	}
	big := c.next(nil)
	big.Payload = make([]byte, usage.MaxPayload+1)
	if _, err := l.Append(t.Context(), big); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("a block beyond usage.MaxPayload: got %v, want TooLarge", err)
	}
	blank := c.next(nil)
	blank.Edge = ""
	if _, err := l.Append(t.Context(), blank); fault.ReasonOf(err) != ledger.ReasonBadEdge {
		t.Errorf("a block without an edge: got %v, want %s", err, ledger.ReasonBadEdge)
	}
}

func TestLedger_UnknownOutcomeIsSafeToRepeat(t *testing.T) {
	r := &replica{m: openMem(t), fail: fault.New(fault.Unavailable, "OUTCOME_UNKNOWN", "leadership lost")}
	l := startLedger(t, r, ledger.Config{})
	c := &chain{edge: "e", epoch: 1}
	b := c.next(one("acme", 0, 5))
	if _, err := l.Append(t.Context(), b); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("append: got %v, want Unavailable", err)
	}
	r.mu.Lock()
	r.fail = nil
	r.mu.Unlock()
	acks, err := l.Append(t.Context(), b)
	if err != nil || acks[0].Reason != "" || acks[0].Applied != 1 {
		t.Fatalf("append again: got %+v, %v, want watermark 1", acks, err)
	}
	if got := requests(t, r.m, "acme"); got != 5 {
		t.Errorf("requests: got %d, want 5", got)
	}
}

func TestLedger_SealedThroughIsOneEntryForAllEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := ledger.OpenOn(vfs.NewMem(), ledger.MachineConfig{Dir: "ledger"})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		r := &replica{m: m, refuse: fault.New(fault.Unavailable, "NO_LEADER", "no leader")}
		l, err := ledger.New(ledger.Config{Machine: m, Replica: r})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		for i := range 10 {
			l.NoteSealed(fmt.Sprintf("e%d", i), 1, 0, 0, base)
			l.NoteSealed(fmt.Sprintf("e%d", i), 1, 0, 0, base.Add(-time.Second)) // late: changes nothing
		}
		time.Sleep(6 * time.Second) // the first attempt fails
		if got := r.entries(); got != 0 {
			t.Errorf("entries without a leader: got %d, want 0", got)
		}
		r.mu.Lock()
		r.refuse = nil
		r.mu.Unlock()
		time.Sleep(20 * time.Second)
		if got := r.entries(); got != 1 {
			t.Errorf("entries: got %d, want 1 for ten edges", got)
		}
		at, err := l.CompleteThrough(t.Context(), []string{"e0", "e9"})
		if err != nil || !at.Equal(base) {
			t.Errorf("complete through: got %v, %v, want %v", at, err, base)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestView_CompleteThrough(t *testing.T) {
	said := func(edge string, epoch, sealed, seq uint64, ms int64) func(*testing.T, *ledger.Machine) {
		return func(t *testing.T, m *ledger.Machine) {
			applyCmd(t, m, ledger.EncodeSealed([]ledger.Said{{Edge: edge, Epoch: epoch, Sealed: sealed, Seq: seq, MS: ms}}))
		}
	}
	chains := map[string]*chain{}
	blk := func(edge string, epoch uint64) func(*testing.T, *ledger.Machine) {
		return func(t *testing.T, m *ledger.Machine) {
			k := fmt.Sprint(edge, epoch)
			if chains[k] == nil {
				chains[k] = &chain{edge: edge, epoch: epoch}
			}
			if a := apply(t, m, chains[k].next(one("acme", 0, 1)))[0]; a.Reason != "" {
				t.Fatalf("block: %s", a.Reason)
			}
		}
	}
	closeEpoch := func(edge string, epoch, sealed uint64) func(*testing.T, *ledger.Machine) {
		return func(t *testing.T, m *ledger.Machine) { applyCmd(t, m, ledger.EncodeClose(edge, epoch, sealed)) }
	}
	type steps []func(*testing.T, *ledger.Machine)
	for _, c := range []struct {
		name  string
		steps steps
		edges []string
		want  int64 // ms; 0: not known
	}{
		{"nobody asked about", nil, nil, 0},
		{"an edge never heard of", steps{said("a", 1, 0, 0, 100)}, []string{"a", "b"}, 0},
		{"silence is known", steps{said("a", 1, 0, 0, 100)}, []string{"a"}, 100},
		{"the least of two", steps{said("a", 1, 0, 0, 100), said("b", 1, 0, 0, 70)}, []string{"a", "b"}, 70},
		{"an edge that is not asked about", steps{said("a", 1, 0, 0, 100), said("b", 1, 0, 0, 70)}, []string{"a"}, 100},
		{"its block is not applied yet", steps{said("a", 1, 1, 1, 100)}, []string{"a"}, 0},
		{"its block is applied", steps{said("a", 1, 1, 1, 100), blk("a", 1)}, []string{"a"}, 100},
		{"never backwards", steps{said("a", 1, 0, 0, 100), said("a", 1, 0, 0, 90)}, []string{"a"}, 100},
		{"an edge always behind still advances", steps{blk("a", 1), said("a", 1, 2, 2, 100), said("a", 1, 9, 9, 200), said("a", 1, 10, 10, 300), blk("a", 1)}, []string{"a"}, 100},
		{"the newest counts once all is applied", steps{said("a", 1, 1, 1, 100), said("a", 1, 2, 2, 200), blk("a", 1), blk("a", 1)}, []string{"a"}, 200},
		{"an older epoch is outstanding", steps{said("a", 1, 0, 0, 50), said("a", 1, 1, 0, 0), said("a", 2, 0, 0, 100)}, []string{"a"}, 50},
		{"the older epoch is finished", steps{said("a", 1, 1, 0, 0), said("a", 2, 0, 0, 100), blk("a", 1)}, []string{"a"}, 100},
		{"the older epoch is closed", steps{said("a", 1, 5, 0, 0), said("a", 2, 0, 0, 100), closeEpoch("a", 1, 0)}, []string{"a"}, 100},
		{"a closed epoch hears nothing", steps{closeEpoch("a", 1, 3), said("a", 1, 9, 9, 100)}, []string{"a"}, 0},
		{"edges whose names begin alike", steps{said("a", 1, 0, 0, 100), said("ab", 1, 0, 0, 20)}, []string{"a"}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			clear(chains)
			m := openMem(t)
			for _, s := range c.steps {
				s(t, m)
			}
			v, err := m.View()
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			got, err := v.CompleteThrough(t.Context(), c.edges)
			want := time.Time{}
			if c.want > 0 {
				want = time.UnixMilli(c.want)
			}
			if err != nil || !got.Equal(want) {
				t.Errorf("complete through: got %v, %v, want %v", got, err, want)
			}
		})
	}
}

func TestLedger_ClosedEpochIsAPermanentGap(t *testing.T) {
	r := &replica{m: openMem(t)}
	l := startLedger(t, r, ledger.Config{})
	c := &chain{edge: "e", epoch: 4}
	if _, err := l.Append(t.Context(), c.next(one("acme", 0, 1))); err != nil {
		t.Fatal(err)
	}
	l.NoteSealed("e", 4, 6, 0, time.Time{})
	if err := l.FlushSeals(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeated: the same fact
		w, err := l.CloseEpoch(t.Context(), ledger.Closing{Edge: "e", Epoch: 4, Sealed: 5, At: base, By: "ann", Reason: "the disk is gone"})
		if err != nil || !w.Closed || w.Applied != 1 {
			t.Fatalf("close: got %+v, %v", w, err)
		}
	}
	gaps, err := l.Gaps(t.Context())
	if want := (ledger.Gap{Edge: "e", Epoch: 4, Applied: 1, Sealed: 6}); err != nil || len(gaps) != 1 || gaps[0] != want {
		t.Errorf("gaps: got %+v, %v, want %+v", gaps, err, want)
	}
	acks, err := l.Append(t.Context(), c.next(one("acme", 0, 1)))
	if err != nil || acks[0].Reason != ledger.ReasonEpochClosed {
		t.Errorf("append to a closed epoch: got %+v, %v, want %s", acks, err, ledger.ReasonEpochClosed)
	}
	edges, err := l.Edges(t.Context())
	if err != nil || len(edges) != 1 || !edges[0].Closed || edges[0].Region != "eu-west" || edges[0].Sealed != 6 {
		t.Errorf("edges: got %+v, %v", edges, err)
	}
	if _, err := l.CloseEpoch(t.Context(), ledger.Closing{Edge: "e"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("close epoch 0: got %v, want Invalid", err)
	}
}

func TestLedger_Reports(t *testing.T) {
	r := &replica{m: openMem(t)}
	l := startLedger(t, r, ledger.Config{})
	c := &chain{edge: "e", epoch: 1}
	cells := map[usage.Cell]usage.Sums{}
	put := func(customer string, quarter int, o usage.Outcome, n int64) {
		k := cell(customer, 4*quarter)
		k.Outcome = o
		cells[k] = usage.Sums{Requests: n, Units: 10 * n}
	}
	put("acme", 0, usage.OutcomeSuccess, 1)
	put("acme", 1, usage.OutcomeSuccess, 2)
	put("acme", 1, usage.OutcomeClientError, 4)
	put("acme", 1, usage.OutcomeUpstreamError, 8)
	put("acme", 1, usage.OutcomeAborted, 16)
	put("acme", 1, usage.OutcomeUnserved, 32)
	put("acme", 1, usage.OutcomeLimited, 64)
	put("acme", 1, usage.OutcomeRefused, 128)
	put("acme", 2, usage.OutcomeSuccess, 256)
	put("acme-2", 1, usage.OutcomeSuccess, 1000)
	put("acm", 1, usage.OutcomeSuccess, 2000)
	if _, err := l.Append(t.Context(), c.next(cells)); err != nil {
		t.Fatal(err)
	}
	q := func(n int, d time.Duration) time.Time { return base.Add(time.Duration(n)*15*time.Minute + d) }
	for _, c := range []struct {
		name         string
		since, until time.Time
		rows         int
		total        ledger.Total
	}{
		{"exactly one quarter", q(1, 0), q(2, 0), 7, ledger.Total{Requests: 62, Billable: 2, Limited: 64, Errors: 60, Units: 620}},
		{"begins inside a cell", q(0, 14*time.Minute), q(1, 0), 1, ledger.Total{Requests: 1, Billable: 1, Units: 10}},
		{"begins at its end", q(1, 0), q(1, 1), 7, ledger.Total{Requests: 62, Billable: 2, Limited: 64, Errors: 60, Units: 620}},
		{"all", q(-100, 0), q(100, 0), 9, ledger.Total{Requests: 319, Billable: 259, Limited: 64, Errors: 60, Units: 3190}},
		{"nothing yet", q(-2, 0), q(0, 0), 0, ledger.Total{}},
	} {
		rep, err := l.Usage(t.Context(), "acme", c.since, c.until)
		if err != nil || len(rep.Rows) != c.rows || rep.Total != c.total {
			t.Errorf("%s: got %d rows %+v, %v, want %d rows %+v", c.name, len(rep.Rows), rep.Total, err, c.rows, c.total)
		}
		for i := 1; i < len(rep.Rows); i++ {
			if rep.Rows[i].Cell.Start < rep.Rows[i-1].Cell.Start {
				t.Errorf("%s: rows are not in order of time", c.name)
			}
		}
	}
	z, err := l.Totals(t.Context(), q(1, 0), q(2, 0))
	if want := int64(62 + 3000); err != nil || len(z.Rows) != 7 || z.Total.Requests != want {
		t.Errorf("totals: got %d rows, %+v, %v, want 7 rows and %d requests", len(z.Rows), z.Total, err, want)
	}
	if len(z.Rows) > 0 {
		got := z.Rows[0]
		want := ledger.TotalsRow{Product: "core", Plan: "gold", API: "orders", ServedRegion: "eu-west", Outcome: usage.OutcomeSuccess, Sums: usage.Sums{Requests: 3002, Units: 30020}}
		if got != want {
			t.Errorf("first total: got %+v, want %+v", got, want)
		}
	}
	if _, err := l.Usage(t.Context(), "acme", q(1, 0), q(1, 0)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("empty range: got %v, want Invalid", err)
	}
	r.mu.Lock()
	r.readErr = fault.New(fault.Unavailable, "NO_LEADER", "no leader")
	r.mu.Unlock()
	if _, err := l.Usage(t.Context(), "acme", q(0, 0), q(1, 0)); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("read without a quorum: got %v, want Unavailable", err)
	}
}

// Rows applied in blocks of 8,000 to a database on disk, synced once an entry, alone and with the latencies of 200
// routes beside them.
func BenchmarkMachine_Apply(b *testing.B) {
	b.Run("cells", func(b *testing.B) { benchmarkApply(b, 0) })
	b.Run("latency", func(b *testing.B) { benchmarkApply(b, 200) })
}

func benchmarkApply(b *testing.B, routes int) {
	m, err := ledger.OpenMachine(ledger.MachineConfig{Dir: realDir(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	const rows, variants = 8000, 8
	c := &chain{edge: "e", epoch: 1}
	payloads := make([][]byte, variants)
	for v := range payloads {
		cells := make(map[usage.Cell]usage.Sums, rows)
		for i := range rows {
			k := cell(fmt.Sprintf("customer-%04d", i/4), i%4+4*v)
			cells[k] = usage.Sums{Requests: int64(i + 1), Units: int64(i + 1), BytesIn: 1000, BytesOut: 5000}
		}
		p := usage.Payload{Cells: cells, Latency: map[usage.LatencyKey]*usage.Sketch{}}
		for r := range routes {
			s := &usage.Sketch{}
			for i := range int64(40) {
				s.Add(2000+i*i*i, 1)
			}
			p.Latency[usage.LatencyKey{Minute: base.Unix() + int64(v)*60, API: "orders", Route: fmt.Sprint(r), ServedRegion: "eu-west"}] = s
		}
		payloads[v] = usage.Encode(p)
	}
	n := 0
	for b.Loop() {
		c.seq++
		k := block("e", 1, c.seq, c.head, payloads[n%variants])
		c.head = k.Hash
		n++
		if _, err := m.Apply(uint64(n), base, ledger.EncodeAppend([]ledger.Block{k})); err != nil {
			b.Fatal(err)
		}
		if err := m.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(rows)*float64(n)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(len(payloads[0]))/rows, "wire-bytes/row")
}
