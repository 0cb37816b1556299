package meter_test

import (
	"context"
	"errors"
	"regexp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/meter"
	"bailiwick/shared/usage"
)

type recorder struct {
	mu   sync.Mutex
	rows []usage.Row
	err  error
}

func (r *recorder) Append(row *usage.Row) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.rows = append(r.rows, *row)
	return nil
}

var gold = meter.Account{Customer: "acme", Subscription: "main", Plan: "gold", PlanRev: 3, Product: "core", API: "orders", Route: "get"}

func newMeter(t testing.TB, rec meter.Recorder) *meter.Meter {
	t.Helper()
	m, err := meter.New(meter.Config{Recorder: rec})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRequest_IsCountedExactlyOnce(t *testing.T) {
	rec := &recorder{}
	m := newMeter(t, rec)
	func() {
		r := m.Begin(&gold)
		defer r.Close()
		r.AddIn(7)
		r.Answered("eu-west", 200)
		r.AddOut(9)
		for range 3 {
			if err := r.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 2}); err != nil {
				t.Error(err)
			}
		}
		r.Finish(meter.Final{Outcome: usage.OutcomeAborted})
	}()
	if len(rec.rows) != 1 {
		t.Fatalf("%d rows, want 1", len(rec.rows))
	}
	got := rec.rows[0]
	want := usage.Row{RequestID: got.RequestID, LatencyUS: got.LatencyUS, Customer: "acme", Subscription: "main", Plan: "gold", PlanRev: 3, Product: "core", API: "orders", Route: "get",
		Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Requests: 1, Units: 2, BytesIn: 7, BytesOut: 9}
	if got != want {
		t.Errorf("row = %+v, want %+v", got, want)
	}
}

func TestRequest_AbortIsCountedByClose(t *testing.T) {
	rec := &recorder{}
	m := newMeter(t, rec)
	func() {
		defer func() { _ = recover() }()
		r := m.Begin(&gold)
		defer r.Close()
		r.Answered("eu-central", 200)
		r.AddOut(5)
		panic("the upstream died mid-body")
	}()
	if len(rec.rows) != 1 || rec.rows[0].Outcome != usage.OutcomeAborted || rec.rows[0].Units != 0 || rec.rows[0].Requests != 1 ||
		rec.rows[0].ServedRegion != "eu-central" || rec.rows[0].BytesOut != 5 {
		t.Errorf("rows = %+v, want one aborted without units", rec.rows)
	}
	if st := m.Stats(); st.Aborted != 1 || st.Finished != 1 || st.Begun != 1 {
		t.Errorf("stats = %+v", st)
	}
}

func TestRequest_RefusedRowIsSaidSo(t *testing.T) {
	full := errors.New("disk full")
	m := newMeter(t, &recorder{err: full})
	r := m.Begin(&gold)
	if err := r.Finish(meter.Final{Outcome: usage.OutcomeSuccess}); !errors.Is(err, full) {
		t.Errorf("finish = %v, want %v", err, full)
	}
	r.Close()
	if n := m.Stats().Failed; n != 1 {
		t.Errorf("failed = %d, want 1", n)
	}
}

// Over the life of a long request the rows' bytes add up, and it is one request.
func TestRun_InterimRowsCarryDeltas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		m := newMeter(t, rec)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		short := m.Begin(&gold)
		short.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 1})
		short.Close()
		quiet := m.Begin(&gold) // answers nothing: no interim rows
		long := m.Begin(&gold)
		long.Answered("eu-west", 200)
		for range 70 {
			time.Sleep(time.Second)
			long.AddOut(10)
		}
		long.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 1})
		id := long.ID()
		long.Close()
		time.Sleep(time.Minute) // it is over: no more rows
		quiet.Close()
		cancel()
		<-done
		var rows, requests, units, bytes int64
		for _, r := range rec.rows {
			if r.RequestID == id {
				rows, requests, units, bytes = rows+1, requests+r.Requests, units+r.Units, bytes+r.BytesOut
			}
		}
		if rows < 5 || rows > 6 || requests != 1 || units != 1 || bytes != 700 {
			t.Errorf("%d rows, %d requests, %d units, %d bytes; want 5 (one each 15 s, and the last), 1, 1, 700", rows, requests, units, bytes)
		}
		if n := len(rec.rows); n != int(rows)+2 {
			t.Errorf("%d rows in all, want %d", n, rows+2)
		}
	})
}

// Interim rows race with the end and the reuse of requests; still one final row each.
func TestRun_RacesWithFinish(t *testing.T) {
	rec := &recorder{}
	m, err := meter.New(meter.Config{Recorder: rec, Interim: time.Microsecond, Tick: 50 * time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	var wg sync.WaitGroup
	const workers, each = 8, 500
	for range workers {
		wg.Go(func() {
			for range each {
				r := m.Begin(&gold)
				r.Answered("eu-west", 200)
				r.AddOut(3)
				r.AddOut(4)
				r.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 1})
				r.Close()
			}
		})
	}
	wg.Wait()
	cancel()
	<-done
	ids := map[[16]byte]int64{}
	var bytes, requests int64
	for _, r := range rec.rows {
		ids[r.RequestID] += r.Requests
		bytes += r.BytesOut
		requests += r.Requests
	}
	if requests != workers*each || bytes != 7*workers*each || len(ids) != workers*each {
		t.Errorf("%d requests under %d ids, %d bytes; want %d and %d", requests, len(ids), bytes, workers*each, 7*workers*each)
	}
}

func TestNewID_IsVersion7(t *testing.T) {
	text := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[[16]byte]bool{}
	at := time.UnixMilli(0x0123456789ab)
	for range 10_000 {
		id := meter.NewID(at)
		if s := meter.IDText(id); !text.MatchString(s) || s[:13] != "01234567-89ab" {
			t.Fatalf("id = %s", s)
		}
		if seen[id] {
			t.Fatalf("id %x twice", id)
		}
		seen[id] = true
	}
}

type nothing struct{}

func (nothing) Append(*usage.Row) error { return nil }

func TestRequest_DoesNotAllocate(t *testing.T) {
	m := newMeter(t, nothing{})
	if n := testing.AllocsPerRun(1000, func() {
		r := m.Begin(&gold)
		r.Answered("eu-west", 200)
		r.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 1})
		r.Close()
	}); n > 0 {
		t.Errorf("a request allocates %v times, want 0", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	m := newMeter(b, nothing{})
	b.ReportAllocs()
	for b.Loop() {
		r := m.Begin(&gold)
		r.AddOut(100)
		r.Answered("eu-west", 200)
		r.Finish(meter.Final{Outcome: usage.OutcomeSuccess, Units: 1})
		r.Close()
	}
}
