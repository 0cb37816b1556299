package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/correction"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

func bookingOf(t testing.TB, c *correction.Correction) []byte {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{2, 6}, b...)
}

// The books: whatever is counted, corrected and undone in whatever order, the
// ledger's totals are those of a plain sum, no cell is ever negative, all nodes
// agree, and a snapshot carries all of it.
func TestMachine_CorrectionsKeepTheBooks(t *testing.T) {
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
		have := map[int]int64{} // units by cell
		booked := map[string]*correction.Correction{}
		undone := map[string]bool{}
		n := 0
		rowOf := func(cellN int, units int64) correction.Row {
			k := cell("acme", cellN)
			return correction.Row{Start: k.Start, Subscription: k.Subscription, Plan: k.Plan, Product: k.Product, API: k.API, Route: k.Route, ServedRegion: k.ServedRegion,
				Outcome: k.Outcome.String(), Units: units}
		}
		cellN := func(r *correction.Row) int { return int(r.Start-base.Unix())/900*4 + int(r.Route[2]-'0') }
		try := func(c *correction.Correction) {
			want := byte(0)
			sums := map[int]int64{}
			for i := range c.Rows {
				sums[cellN(&c.Rows[i])] += c.Rows[i].Units
			}
			for at, s := range sums {
				if have[at]+s < 0 {
					want = 2
				}
			}
			if got := feed(bookingOf(t, c))[1]; got != want {
				rt.Fatalf("booking %+v on %v: got code %d, want %d", c.Rows, have, got, want)
			}
			if want != 0 {
				return
			}
			for at, s := range sums {
				have[at] += s
			}
			booked[c.ID()] = c
			if c.Corrects != "" {
				undone[c.Corrects], undone[c.ID()] = true, true
			}
			if got := feed(bookingOf(t, c))[1]; got != 1 {
				rt.Fatalf("the same again: got code %d, want 1", got)
			}
		}
		next := func() correction.Correction {
			n++
			return correction.Correction{Producer: "ann", RequestID: fmt.Sprint(n), Kind: correction.Booked, Customer: "acme", Reason: "test", By: "ann", AtMS: int64(n)}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"count": func(rt *rapid.T) {
				at := rapid.IntRange(0, 5).Draw(rt, "cell")
				units := int64(rapid.IntRange(0, 9).Draw(rt, "units"))
				feed(ledger.EncodeAppend([]ledger.Block{c.next(map[usage.Cell]usage.Sums{cell("acme", at): {Requests: 1, Units: units}})}))
				have[at] += units
			},
			"correct": func(rt *rapid.T) {
				c := next()
				for range rapid.IntRange(1, 3).Draw(rt, "rows") {
					units := int64(rapid.IntRange(-9, 9).Filter(func(v int) bool { return v != 0 }).Draw(rt, "units"))
					c.Rows = append(c.Rows, rowOf(rapid.IntRange(0, 5).Draw(rt, "cell"), units))
				}
				try(&c)
			},
			"undo": func(rt *rapid.T) {
				for id, was := range booked {
					if !undone[id] {
						c := next()
						c.Corrects, c.Rows = id, was.Opposite()
						try(&c)
						return
					}
				}
				rt.Skip()
			},
			"": func(rt *rapid.T) {
				var want int64
				for _, v := range have {
					want += v
				}
				v, err := m.View()
				if err != nil {
					rt.Fatal(err)
				}
				defer v.Close()
				report, err := v.Usage(context.Background(), "acme", base, base.Add(time.Hour))
				if err != nil || report.Total.Units != want {
					rt.Fatalf("usage: got %d units, %v, want %d", report.Total.Units, err, want)
				}
				totals, err := v.Totals(context.Background(), base, base.Add(time.Hour))
				if err != nil || totals.Total.Units != want {
					rt.Fatalf("totals: got %d units, %v, want %d", totals.Total.Units, err, want)
				}
				list, err := v.Corrections(context.Background(), "acme")
				if err != nil || len(list) != len(booked) {
					rt.Fatalf("corrections: got %d, %v, want %d", len(list), err, len(booked))
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
		if stateHash(t, third) != stateHash(t, m) {
			rt.Fatal("state hash differs after a snapshot")
		}
	})
}
