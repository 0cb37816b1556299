package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// A plan that was soft for long and becomes strict: what was spent without a lease is not made up for by leases.
func TestQuota_AStrictPlanLeasesOnTopOfWhatASoftOneSpent(t *testing.T) {
	b := newBank(t)
	soft := strictly(1_000_000)
	soft.Mode = "soft"
	c := &chain{edge: "a", epoch: 1}
	b.ask("a", 1, 1, acme, soft, 0, 0)
	b.ship(c, acme, month, 500_000)
	b.ship(&chain{edge: "b", epoch: 1}, acme, month, 100_000)
	l := b.ask("a", 1, 2, acme, strictly(1_000_000), 500_003, 10) // three of its rows are on their way
	if l.Leased != 500_013 || l.Held != 13 || l.Used != 600_000 {
		t.Errorf("leased after the plan became strict: got %+v, want 10 more than the 500,003 that were taken", l)
	}
	if l := b.ask("b", 1, 1, acme, strictly(600_013), -1, 10); l.Available != 0 || l.Leased > l.Spent {
		t.Errorf("an edge that asks when nothing is left: got %+v, want nothing", l)
	}
}

// What an epoch held of a rolling quota and lost with its disk counts from the moment the epoch is closed.
func TestQuota_LostUnitsOfARollingQuotaAreNotLeasedAgain(t *testing.T) {
	b := newBank(t)
	id := ledger.AccountID{Customer: "acme", Subscription: "s", Period: usage.PeriodRolling}
	terms := ledger.Terms{Plan: "p", Mode: "strict", Kind: "rolling", Limit: 10, Window: 48 * 3600}
	b.ask("a", 1, 1, id, terms, 0, 5)
	b.feed(ledger.EncodeCloseBy("a", 1, 3, ledger.HeldAuto))
	var got int64
	for seq := range uint64(12) {
		l := b.ask("b", 1, seq+1, id, terms, got, 1)
		if got = l.Leased; l.Used != 5 {
			t.Errorf("exchange %d: got %d used, want the 5 that were lost", seq+1, l.Used)
		}
	}
	if got != 5 {
		t.Errorf("leased while 5 of 10 are lost: got %d, want 5", got)
	}
}

// Nodes that apply the same entry have the same state, though a new account forgets old ones and the entry
// names one of those too.
func TestQuota_NodesForgetTheSame(t *testing.T) {
	var first string
	for i := range 24 {
		b := newBank(t)
		old, before := acme, acme
		old.Period -= 410 * 86400
		before.Period -= 5 * 86400
		b.ask("b", 1, 1, before, strictly(10), 0, 1)
		b.exchange(ledger.Exchange{Edge: "a", Epoch: 1, Sequence: 1, Asks: []ledger.Ask{
			{ID: old, Terms: strictly(10), Ceiling: 3, Want: 3, Sharers: 1}, {ID: acme, Terms: strictly(10), Want: 3, Sharers: 1}}})
		v, err := b.m.View()
		if err != nil {
			t.Fatal(err)
		}
		all, err := v.Accounts(t.Context(), "acme", b.now)
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for _, a := range all {
			got += fmt.Sprintf("%d: %d held; ", a.ID.Period, a.Held)
		}
		if i == 0 {
			first = got
		} else if got != first {
			t.Fatalf("node %d: got accounts %q, the first node has %q", i, got, first)
		}
	}
}

// A leader whose clock is years ahead begins a period of then. What was used of the present one is not forgotten
// for it.
func TestQuota_APeriodOfAWrongClockForgetsNothing(t *testing.T) {
	b := newBank(t)
	b.ask("a", 1, 1, acme, strictly(10), 0, 5)
	b.ship(&chain{edge: "a", epoch: 1}, acme, month, 5)
	then := acme
	then.Period += 20 * 365 * 86400
	b.ask("a", 1, 2, then, strictly(10), 0, 1)
	if a := b.account(acme, strictly(10)); a.Used != 5 {
		t.Errorf("after a period twenty years ahead began: got %d used, want 5", a.Used)
	}
}

// Who gives back what it never had in a period that is over begins no account, however many it names.
func TestQuota_APeriodThatIsOverBeginsNoAccount(t *testing.T) {
	b := newBank(t)
	old := acme
	old.Period -= 30 * 86400
	terms := strictly(10)
	terms.End = acme.Period
	b.ask("a", 1, 1, old, terms, 0, 0)
	v, err := b.m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if all, err := v.Accounts(t.Context(), "acme", b.now); err != nil || len(all) != 0 {
		t.Errorf("accounts: got %+v, %v, want none", all, err)
	}
}

// What quotas sum beside accounts does not grow for ever: folding a day removes what no window and no period looks
// at, and nothing that one does.
func TestQuota_FoldingTrimsWhatNoWindowHolds(t *testing.T) {
	b := newBank(t)
	rolling, unknown := acme, acme
	rolling.Period, unknown.Period = usage.PeriodRolling, 0
	first := int64(month) - month%86400
	c := &chain{edge: "a", epoch: 1}
	const days = 70
	for d := range int64(days) {
		b.ship(c, rolling, first+d*86400+45_000, 1)
		b.ship(c, unknown, first+d*86400+900, 1)
	}
	b.now = first + days*86400
	window := ledger.Terms{Plan: "p", Mode: "strict", Kind: "rolling", Limit: 1000, Window: 31 * 86400}
	year := ledger.Terms{Plan: "p", Mode: "soft", Kind: "year", Limit: 1000, End: first + 366*86400}
	whole := acme
	whole.Period = first
	check := func(when string, spans int) {
		t.Helper()
		if a := b.account(rolling, window); a.Used != 31 {
			t.Errorf("%s: got %d used in the last 31 days, want 31", when, a.Used)
		}
		if a := b.account(whole, year); a.Used != days {
			t.Errorf("%s: got %d used in the year, want %d", when, a.Used, days)
		}
		if n, err := b.m.Spans(); err != nil || n != spans {
			t.Errorf("%s: got %d sums, %v, want %d", when, n, err, spans)
		}
	}
	check("before", 4*days)
	at := func(day int) time.Time { return time.Unix(first+int64(day)*86400, 0) }
	for d := range days {
		b.feed(ledger.EncodeCloseDay(&ledger.Period{Day: at(d), ClosedAt: at(d + 1), Why: ledger.WhyComplete}))
	}
	for d := range days { // also those that are younger than is usual
		b.feed(ledger.EncodeFold(at(d).Unix(), "", 1<<20))
	}
	check("after", 3*32+days)
}

// What is added to a rolling quota is for one window, not for each that follows.
func TestQuota_ATopUpSlidesOutOfARollingWindow(t *testing.T) {
	b := newBank(t)
	id := acme
	id.Period = usage.PeriodRolling
	terms := ledger.Terms{Plan: "p", Mode: "strict", Kind: "rolling", Limit: 10, Window: 48 * 3600}
	for range 2 {
		b.feed(ledger.EncodeTopUp(ledger.TopUp{ID: id, Terms: terms, Units: 5, RequestID: "r", At: b.now}))
	}
	if l := b.ask("a", 1, 1, id, terms, 0, 100); l.Limit != 15 || l.Leased != 7 {
		t.Errorf("topped up by 5: got %+v, want half of 15 leased", l)
	}
	b.now += 48*3600 + 900
	if a := b.account(id, terms); a.Limit != 10 || a.ToppedUp != 0 {
		t.Errorf("a window later: got %+v, want a limit of 10", a)
	}
}
