package lessor_test

import (
	"testing"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
)

// Used up is said as soon as the edges say that they have spent all, not when their blocks are in the ledger a
// second later: a client is told 429, and not for a second that nobody knows.
func TestExchange_UsedUpBeforeTheBlocksAreIn(t *testing.T) {
	w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 2, Period: "month", Mode: "strict"}}), store(customer("acme", "p")))
	a, b := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}, &edge{t: t, w: w, name: "b", region: "eu-central", epoch: 1}
	say := func(e *edge, period, spent, inFlight, want int64) *usagev1.AccountState {
		return e.one(&usagev1.AccountAsk{Customer: "acme", Subscription: "p", Period: period, Ceiling: spent + inFlight, Spent: spent, InFlight: inFlight, Want: want, Starving: want > 0})
	}
	month := say(a, 0, 0, 0, 1).Period
	say(b, 0, 0, 0, 1)
	say(b, month, 0, 1, 0) // under way: it may be given back yet
	if s := say(a, month, 1, 0, 1); s.Exhausted || s.Leased != 1 {
		t.Errorf("while b has a unit under way: got %+v, want it not used up", s)
	}
	say(b, month, 1, 0, 0)
	if s := say(a, month, 1, 0, 1); !s.Exhausted || s.Used != 1 {
		t.Errorf("both have said that they spent all: got %+v, want it used up before the ledger has a block", s)
	}
}

// What another edge gives back between the ledger's word and the answer is nobody's and not used up: both exchanges may
// be in one entry of the log, the one that asks before the one that gives back.
func TestExchange_GivenBackMeanwhileIsNotUsedUp(t *testing.T) {
	for _, mode := range []string{"strict", "elastic"} {
		t.Run(mode, func(t *testing.T) {
			q, terms := &model.Quota{Units: 4, Period: "month", Mode: "strict"}, ledger.Terms{Plan: "p", Mode: mode, Kind: "month", Limit: 4}
			if mode == "elastic" {
				q.Mode, q.Units, q.GracePercent, terms.Limit = "soft", 2, 100, 4
			}
			w := newWorld(t, catalog(map[string]*model.Quota{"p": q}), store(customer("acme", "p")))
			a := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
			b := &edge{t: t, w: w, name: "b", region: "eu-central", epoch: 1}
			s := a.one(ask(0, 0, 0, 4))
			for range 4 { // half of what is left at a time
				s = a.one(ask(s.Period, s.Leased, 0, 4))
			}
			if s.Leased != 4 || s.Mode != mode {
				t.Fatalf("got %v, want all 4 leased, %s", s, mode)
			}
			terms.End = s.PeriodEnd
			a.one(ask(s.Period, 4, 3, 0))
			if got := b.one(ask(s.Period, 0, 0, 1)); got.Exhausted || got.Leased != 0 {
				t.Fatalf("while a holds a unit: got %v, want neither a lease nor that it is used up", got)
			}
			a.seq++
			w.also.Store(&ledger.Exchange{Edge: "a", Epoch: 1, Sequence: a.seq, Asks: []ledger.Ask{{ID: ledger.AccountID{Customer: "acme", Subscription: "p", Period: s.Period}, Terms: terms, Ceiling: 3}}})
			got := b.one(ask(s.Period, 0, 0, 1))
			if w.also.Load() != nil {
				t.Fatal("a gave nothing back in the same entry")
			}
			if got.Exhausted || got.Leased != 0 {
				t.Errorf("a gave its unit back behind b's question: got %v, want neither a lease nor that it is used up", got)
			}
			if got = b.one(ask(s.Period, 0, 0, 1)); got.Leased != 1 {
				t.Errorf("b asks again: got %v, want the unit", got)
			}
			if got = b.one(ask(s.Period, 1, 1, 1)); !got.Exhausted {
				t.Errorf("all are spent: got %v, want it used up", got)
			}
		})
	}
}
