package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

const dayLong = 24 * time.Hour

var midnight = base.Truncate(dayLong)

func onDay(n int, customer string, quarter, route int) usage.Cell {
	c := cell(customer, route)
	c.Start = midnight.Unix() + int64(n)*86400 + int64(quarter)*900
	return c
}

// all reads every row, and fails if they are not in the order of time.
func all(t testing.TB, m *ledger.Machine, customer string) map[ledger.Row]bool {
	t.Helper()
	v, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	out := map[ledger.Row]bool{}
	last := int64(0)
	err = v.Cells(context.Background(), customer, midnight.AddDate(0, 0, -9), midnight.AddDate(0, 0, 9), func(r ledger.Row) error {
		if r.Cell.Start < last {
			t.Errorf("rows: one of %d comes after one of %d", r.Cell.Start, last)
		}
		last = r.Cell.Start
		out[r] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Closing and folding days changes no number: what was counted in time stays
// so, what comes later is counted once as late, and however the folding is cut
// into steps, nodes agree and a snapshot carries all of it.
func TestMachine_ClosedDaysKeepTheBooks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m, other := open(t, vfs.NewMem()), open(t, vfs.NewMem())
		defer func() { shut(t, m); shut(t, other) }()
		feed := func(cmd []byte) []byte {
			out, err := m.Apply(m.Applied()+1, base, cmd)
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := other.Apply(other.Applied()+1, base, cmd); err != nil {
				rt.Fatal(err)
			}
			return out
		}
		c := &chain{edge: "e", epoch: 1}
		type place struct {
			c    usage.Cell
			kind ledger.RowKind
		}
		want := map[place]usage.Sums{}
		closed := -1
		folded := map[int]string{}
		rt.Repeat(map[string]func(*rapid.T){
			"count": func(rt *rapid.T) {
				cells := map[usage.Cell]usage.Sums{}
				for range rapid.IntRange(1, 5).Draw(rt, "cells") {
					day := rapid.IntRange(0, 3).Draw(rt, "day")
					k := onDay(day, fmt.Sprint("c", rapid.IntRange(0, 3).Draw(rt, "customer")), rapid.SampledFrom([]int{0, 40, 95}).Draw(rt, "quarter"), rapid.IntRange(0, 1).Draw(rt, "route"))
					cells[k] = usage.Sums{Requests: 1, Units: int64(rapid.IntRange(0, 9).Draw(rt, "units")), BytesIn: 3, BytesOut: 4}
				}
				feed(ledger.EncodeAppend([]ledger.Block{c.next(cells)}))
				for k, s := range cells {
					p := place{k, ledger.Counted}
					if int(k.Start-midnight.Unix())/86400 <= closed {
						p.kind = ledger.Late
					}
					want[p] = want[p].Add(s)
				}
			},
			"close": func(rt *rapid.T) {
				closed = max(closed, rapid.IntRange(0, 2).Draw(rt, "day")) // one that is not after the last changes nothing
				feed(ledger.EncodeCloseDay(&ledger.Period{Day: midnight.AddDate(0, 0, closed), ClosedAt: base, Why: ledger.WhyGrace, WaitedFor: []string{"e"}}))
			},
			"fold": func(rt *rapid.T) { // days in their order, as the leader does; a new leader begins a day again
				for day := 0; day <= closed; day++ {
					if folded[day] == "done" {
						continue
					}
					after := folded[day]
					if rapid.Bool().Draw(rt, "a new leader") {
						after = ""
					}
					step := ledger.DecodeFolded(feed(ledger.EncodeFold(midnight.AddDate(0, 0, day).Unix(), after, uint64(rapid.IntRange(1, 4).Draw(rt, "cells")))))
					if folded[day] = step.After; step.Done {
						folded[day] = "done"
					}
					return
				}
				rt.Skip()
			},
			"": func(rt *rapid.T) {
				got := map[place]usage.Sums{}
				for i := range 4 {
					for r := range all(t, m, fmt.Sprint("c", i)) {
						got[place{r.Cell, r.Kind}] = r.Sums
					}
				}
				if !maps.Equal(got, want) {
					rt.Fatalf("rows: got %v\nwant %v", got, want)
				}
				v, err := m.View()
				if err != nil {
					rt.Fatal(err)
				}
				defer v.Close()
				totals, err := v.Totals(context.Background(), midnight, midnight.AddDate(0, 0, 9))
				if err != nil {
					rt.Fatal(err)
				}
				var sum int64
				for _, s := range want {
					sum += s.Units
				}
				if totals.Total.Units != sum {
					rt.Fatalf("totals: got %d units, want %d", totals.Total.Units, sum)
				}
			},
		})
		if stateHash(t, m) != stateHash(t, other) {
			rt.Fatal("state hash: two machines fed the same log differ")
		}
		third := open(t, vfs.NewMem())
		defer func() { shut(t, third) }()
		if err := third.Restore(bytes.NewReader(snapshot(t, m))); err != nil {
			rt.Fatal(err)
		}
		late := ledger.EncodeAppend([]ledger.Block{c.next(map[usage.Cell]usage.Sums{onDay(0, "c0", 0, 0): {Requests: 1}})})
		for _, m := range []*ledger.Machine{m, third} { // what is closed is known after a restore, too
			if _, err := m.Apply(m.Applied()+1, base, late); err != nil {
				rt.Fatal(err)
			}
		}
		if stateHash(t, third) != stateHash(t, m) {
			rt.Fatal("state hash differs after a snapshot")
		}
	})
}

type alone struct{}

func (alone) RunLeader(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

func TestDays_CloseWhenCompleteOrGraceIsOver(t *testing.T) {
	m := openMem(t)
	r := &replica{m: m}
	l := startLedger(t, r, ledger.Config{})
	now := midnight.Add(dayLong).Add(time.Hour)
	days, err := ledger.NewDays(ledger.DaysConfig{Ledger: l, Leader: alone{}, Now: func() time.Time { return now }, FoldAfter: 5 * dayLong,
		Edges: func(context.Context, *ledger.View) ([]string, error) { return []string{"a", "b"}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	once := func(want ...string) {
		t.Helper()
		if err := days.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		v, err := m.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		list, err := v.Periods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range list {
			got = append(got, fmt.Sprint(p.Day.Format("02"), " ", p.Why, " ", p.WaitedFor, " ", p.Folded))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("periods: got %q, want %q", got, want)
		}
	}
	tell := func(edge string, at time.Time) {
		t.Helper()
		l.NoteSealed(edge, 1, 1, 1, at)
		if err := l.FlushSeals(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	once() // no usage, no days
	for _, edge := range []string{"a", "b"} {
		c := &chain{edge: edge, epoch: 1}
		if _, err := l.Append(t.Context(), c.next(map[usage.Cell]usage.Sums{onDay(0, "acme", 50, 0): {Requests: 1}})); err != nil {
			t.Fatal(err)
		}
	}
	once() // nobody has told
	tell("a", midnight.Add(dayLong))
	tell("b", midnight.Add(dayLong-time.Second))
	once() // b has not told all of it
	tell("b", midnight.Add(dayLong))
	once("23 complete [] false")
	now = midnight.Add(2*dayLong + 12*time.Hour - time.Second)
	tell("a", now)
	once("23 complete [] false") // b is silent, and grace is not over
	now = now.Add(time.Second)
	tell("a", now)
	once("23 complete [] false", "24 grace [b] false")
	now = midnight.Add(6 * dayLong)
	tell("b", now)
	tell("a", now)
	once("23 complete [] true", "24 grace [b] false", "25 complete [] false", "26 complete [] false", "27 complete [] false", "28 complete [] false")
	if got := requests(t, m, "acme"); got != 2 {
		t.Errorf("requests of a folded day: got %d, want 2", got)
	}
}

// Closing a day cannot be undone: one clock that is wrong must not do it.
func TestDays_ALeaderWhoseClockIsAheadClosesNoDayByGrace(t *testing.T) {
	m := openMem(t)
	l := startLedger(t, &replica{m: m}, ledger.Config{})
	edges := []string{"a", "b"}
	days, err := ledger.NewDays(ledger.DaysConfig{Ledger: l, Leader: alone{}, Now: func() time.Time { return midnight.Add(400 * dayLong) },
		Edges: func(context.Context, *ledger.View) ([]string, error) { return edges, nil }})
	if err != nil {
		t.Fatal(err)
	}
	closed := func() int {
		t.Helper()
		if err := days.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		v, err := m.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		list, err := v.Periods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	c := &chain{edge: "a", epoch: 1}
	if _, err := l.Append(t.Context(), c.next(map[usage.Cell]usage.Sums{onDay(0, "acme", 50, 0): {Requests: 1}})); err != nil {
		t.Fatal(err)
	}
	tell := func(at time.Time) {
		t.Helper()
		l.NoteSealed("a", 1, 9, 9, at) // its blocks are not here: it only says what time it is
		if err := l.FlushSeals(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := closed(); n != 0 {
		t.Errorf("%d days closed before any edge has told the time", n)
	}
	tell(midnight.Add(dayLong + 12*time.Hour - time.Second))
	if n := closed(); n != 0 {
		t.Errorf("%d days closed within grace by the edge's clock", n)
	}
	tell(midnight.Add(dayLong + 12*time.Hour))
	if n := closed(); n != 1 {
		t.Errorf("%d days closed when grace was over by both clocks, want 1", n)
	}
	edges = nil // all were removed: nobody is waited for
	if n := closed(); n < 300 {
		t.Errorf("%d days closed in a zone without edges, want all of a year", n)
	}
}

// What folding is for: the size of a day's cells, before and after.
func TestMachine_FoldingShrinksADay(t *testing.T) {
	m := openMem(t)
	c := &chain{edge: "e", epoch: 1}
	for quarter := range 96 {
		cells := map[usage.Cell]usage.Sums{}
		for customer := range 20 {
			for route := range 4 {
				cells[onDay(0, fmt.Sprint("customer-", customer), quarter, route)] = usage.Sums{Requests: int64(100 + customer*route), Units: int64(100 + customer*route), BytesIn: 5000, BytesOut: 90000 + int64(quarter)}
			}
		}
		apply(t, m, c.next(cells))
	}
	applyCmd(t, m, ledger.EncodeCloseDay(&ledger.Period{Day: midnight, ClosedAt: base, Why: ledger.WhyComplete}))
	var sum ledger.Folded
	steps := 0
	for !sum.Done {
		out, err := m.Apply(m.Applied()+1, base, ledger.EncodeFold(midnight.Unix(), sum.After, 1000))
		if err != nil {
			t.Fatal(err)
		}
		step := ledger.DecodeFolded(out)
		sum = ledger.Folded{Done: step.Done, After: step.After, Cells: sum.Cells + step.Cells, Before: sum.Before + step.Before, Bytes: sum.Bytes + step.Bytes}
		steps++
	}
	t.Logf("%d cells in %d steps: %d bytes before, %d after", sum.Cells, steps, sum.Before, sum.Bytes)
	if sum.Cells != 96*20*4+96*4/4 || sum.Bytes*10 > sum.Before {
		t.Errorf("folded: got %d cells, %d bytes of %d, want %d cells in a tenth of the bytes", sum.Cells, sum.Bytes, sum.Before, 96*20*4+96)
	}
}
