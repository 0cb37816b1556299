package controlplane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/usage"
)

// quotaZone is a zone of many customers in some ten time zones, each of which used two routes four times a day in the last week.
func quotaZone(tb testing.TB, customers int, now time.Time) (store, catalog group.Snapshot, view *ledger.View) {
	tb.Helper()
	z := apitest.New(tb, time.Second).Zones["emea"]
	cat := apitest.NewStore("catalog")
	cat.Put(model.PrefixPlan+"free", model.Encode(model.Plan{Name: "free", Quota: &model.Quota{Units: 1000, Period: "month", Mode: "strict"}}))
	zones := []string{"", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Tokyo", "Australia/Sydney", "America/Sao_Paulo", "Africa/Nairobi", "Europe/London", "Asia/Kathmandu"}
	var ops []group.Op
	for i := range customers {
		c := model.Customer{Name: fmt.Sprintf("c%06d", i), Zone: "emea", TimeZone: zones[i%len(zones)], Subscriptions: []model.Subscription{{Name: "main", Plan: "free"}}}
		ops = append(ops, group.Op{Key: model.PrefixCustomer + c.Name, Value: model.Encode(c)})
	}
	for part := range slices.Chunk(ops, 1000) {
		if _, err := z.Store.Txn(tb.Context(), group.Txn{RequestID: part[0].Key, Ops: part}); err != nil {
			tb.Fatal(err)
		}
	}
	var prev [32]byte
	cells, seq := map[usage.Cell]usage.Sums{}, uint64(0)
	seal := func() {
		seq++
		b := ledger.Block{Block: usage.NewBlock("e1", 1, seq, prev, usage.EncodePayload(cells)), Region: "eu-west"}
		if _, err := z.Ledger.Append(tb.Context(), b); err != nil {
			tb.Fatal(err)
		}
		prev, cells = b.Hash, map[usage.Cell]usage.Sums{}
	}
	for i := range customers {
		for quarter := range 28 {
			for _, route := range []string{"get", "list"} {
				at := usage.CellStart(now.Add(-time.Duration(quarter) * 6 * time.Hour).UnixMilli())
				cells[usage.Cell{Start: at, Customer: fmt.Sprintf("c%06d", i), Subscription: "main", Plan: "free", Product: "core", API: "orders", Route: route,
					Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west"}] = usage.Sums{Requests: 1, Units: 1}
			}
		}
		if len(cells) > 4000 {
			seal()
		}
	}
	seal()
	view, err := z.Ledger.View(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(view.Close)
	return z.Store.Local(), cat.Local(), view
}

func TestForecast_IsOfEveryCustomerInItsOwnZone(t *testing.T) {
	now := time.Date(2026, 11, 25, 15, 0, 0, 0, time.UTC)
	store, catalog, view := quotaZone(t, 20, now)
	all, err := forecasts(t.Context(), store, catalog, view, now, "")
	if err != nil || len(all) != 20 {
		t.Fatalf("got %d forecasts, %v", len(all), err)
	}
	for _, f := range all {
		// Seven local days begin up to a day apart: 24 to 28 quarters of a day lie in them.
		if f.Requests < 2*24 || f.Requests > 2*28 || f.Limit != 1000 || f.UnitsPerDay < 7 || f.UnitsPerDay > 9 {
			t.Errorf("forecast of %s: %+v", f.Customer, f)
		}
	}
	one, err := forecasts(t.Context(), store, catalog, view, now, all[3].Customer)
	if err != nil || len(one) != 1 || one[0] != all[3] {
		t.Errorf("of one customer: got %v, %v, want %v", one, err, all[3])
	}
}

// What alerts read every two seconds, and what a forecast of a whole zone reads.
func BenchmarkStandings(b *testing.B) {
	for _, customers := range []int{1000, 10_000} {
		now := time.Now()
		store, catalog, view := quotaZone(b, customers, now)
		b.Run(fmt.Sprintf("alerts-%d", customers), func(b *testing.B) {
			for b.Loop() {
				if out, err := accounts(b.Context(), store, catalog, view, now); err != nil || len(out) != customers {
					b.Fatal(len(out), err)
				}
			}
		})
		b.Run(fmt.Sprintf("forecast-%d", customers), func(b *testing.B) {
			for b.Loop() {
				if out, err := forecasts(b.Context(), store, catalog, view, now, ""); err != nil || len(out) != customers {
					b.Fatal(len(out), err)
				}
			}
		})
	}
}
