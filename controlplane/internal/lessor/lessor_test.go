package lessor_test

import (
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/model"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
)

func strict(units int64) map[string]*model.Quota {
	return map[string]*model.Quota{"p": {Units: units, Period: "month", Mode: "strict"}}
}

func ask(period, ceiling, spent, want int64) *usagev1.AccountAsk {
	return &usagev1.AccountAsk{Customer: "acme", Subscription: "p", Plan: "p", Period: period, Ceiling: ceiling, Spent: spent, Want: want, Starving: want > 0}
}

// The whole of a lease: asked for, spent, shipped, given back, asked for by another.
func TestLessor_StrictMonth(t *testing.T) {
	w := newWorld(t, catalog(strict(10)), store(customer("acme", "p")))
	a := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	b := &edge{t: t, w: w, name: "b", region: "eu-west", epoch: 1}

	s := a.one(ask(0, 0, 0, 4))
	now := time.Now().UTC()
	month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	if s.Period != month.Unix() || s.PeriodEnd != month.AddDate(0, 1, 0).Unix() || s.Mode != "strict" || s.Limit != 10 || s.Leased != 4 || s.Used != 0 || s.Held != 4 || s.Exhausted {
		t.Fatalf("first lease: got %v", s)
	}
	p := s.Period
	a.ship("acme", "p", p, time.Now().Unix()/900*900, 3)
	if s := a.one(ask(p, 4, 3, 0)); s.Leased != 4 || s.Used != 3 || s.Held != 1 || s.UsedHere != 3 {
		t.Errorf("after 3 were shipped: got %v", s)
	}
	// b gets no more than half of an even share: 6 are left, two ask.
	if s := b.one(ask(p, 0, 0, 9)); s.Leased != 1 || s.Held != 2 {
		t.Errorf("b's first: got %v, want 1 leased", s)
	}
	var got int64 = 1
	for range 20 {
		got = b.one(ask(p, got, 0, 9)).Leased
	}
	if got != 6 {
		t.Errorf("b took all that is left: got %d, want 6", got)
	}
	last := b.one(ask(p, 6, 0, 1))
	if last.Exhausted || last.Leased != 6 {
		t.Errorf("b wants more while a holds one: got %v, want not exhausted", last)
	}
	if s := a.one(ask(p, 4, 3, 0)); !s.Recall {
		t.Errorf("a holds what b starves for: got %v, want a recall", s)
	}
	a.one(ask(p, 3, 3, 0)) // gives it back
	if s := b.one(ask(p, 6, 0, 1)); s.Leased != 7 {
		t.Errorf("b after a gave back: got %v, want 7", s)
	}
	if s := b.one(ask(p, 7, 0, 1)); s.Leased != 7 || !s.Exhausted {
		t.Errorf("nothing is left and nobody holds any but b: got %v, want exhausted", s)
	}
}

func TestLessor_RefusesTheUnknown(t *testing.T) {
	foreign := customer("far", "p")
	foreign.Zone = "us"
	w := newWorld(t, catalog(strict(10)), store(customer("acme", "p"), foreign))
	e := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	out := e.ask(&usagev1.AccountAsk{Customer: "acme", Subscription: "made-up", Plan: "p", Want: 1}, &usagev1.AccountAsk{Customer: "far", Subscription: "p", Plan: "p", Want: 1}, &usagev1.AccountAsk{Customer: "nobody", Subscription: "p", Plan: "p", Want: 1}, ask(0, 0, 0, 1))
	if len(out.Accounts) != 1 || out.Accounts[0].Customer != "acme" || out.Accounts[0].Leased != 1 {
		t.Errorf("customers of another zone and of none, and a subscription that nobody bought: got %v, want only acme answered", out.Accounts)
	}
	many := make([]*usagev1.AccountAsk, 2049)
	for i := range many {
		many[i] = ask(0, 0, 0, 1)
	}
	if _, err := w.Exchange(t.Context(), "a", "eu-west", &usagev1.ExchangeRequest{Epoch: 1, Sequence: 9, Accounts: many}); fault.ReasonOf(err) != "TOO_MANY_ACCOUNTS" {
		t.Errorf("2049 accounts: got %v, want TOO_MANY_ACCOUNTS", err)
	}
}

// A delayed request must not undo a newer one.
func TestLessor_OldExchangesHaveNoEffect(t *testing.T) {
	w := newWorld(t, catalog(strict(100)), store(customer("acme", "p")))
	e := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	p := e.one(ask(0, 0, 0, 10)).Period
	e.one(ask(p, 10, 0, 10))
	late := &usagev1.ExchangeRequest{Epoch: 1, Sequence: 1, Accounts: []*usagev1.AccountAsk{ask(p, 0, 0, 5)}}
	if _, err := w.Exchange(t.Context(), "a", "eu-west", late); fault.ReasonOf(err) != "EXCHANGE_OLD" {
		t.Errorf("an old exchange: got %v, want EXCHANGE_OLD", err)
	}
	again := &usagev1.ExchangeRequest{Epoch: 1, Sequence: 2, Accounts: []*usagev1.AccountAsk{ask(p, 10, 0, 10)}}
	if out, err := w.Exchange(t.Context(), "a", "eu-west", again); err != nil || out.Accounts[0].Leased != 20 {
		t.Errorf("the newest again: got %v, %v, want 20 leased and no more", out, err)
	}
}

// An edge that comes back in a new epoch frees what the old one held, once its
// blocks are in.
func TestLessor_NewEpoch(t *testing.T) {
	w := newWorld(t, catalog(strict(10)), store(customer("acme", "p")))
	old := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	p := old.one(ask(0, 0, 0, 5)).Period
	now := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 2, pending: []*usagev1.PendingEpoch{{Epoch: 1, SealedSeq: 1}}}
	if s := now.one(ask(p, 0, 0, 0)); s.Held != 5 {
		t.Errorf("while epoch 1 is pending: got %v, want 5 held", s)
	}
	old.ship("acme", "p", p, time.Now().Unix()/900*900, 3)
	if s := now.one(ask(p, 0, 0, 0)); s.Held != 0 || s.Used != 3 {
		t.Errorf("after its last block: got %v, want 3 used and none held", s)
	}
	if _, err := w.Exchange(t.Context(), "a", "eu-west", &usagev1.ExchangeRequest{Epoch: 1, Sequence: 99, Accounts: []*usagev1.AccountAsk{ask(p, 0, 0, 5)}}); fault.ReasonOf(err) != "EXCHANGE_EPOCH" {
		t.Errorf("the older epoch asks: got %v, want EXCHANGE_EPOCH", err)
	}
}

func TestLessor_SoftIsWatched(t *testing.T) {
	w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 10, Mode: "soft"}, "none": nil}), store(customer("acme", "p"), customer("free", "none")))
	e := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	s := e.one(ask(0, 0, 0, 1))
	if s.Mode != "soft" || s.Leased != 0 || s.Limit != 10 {
		t.Errorf("soft: got %v", s)
	}
	e.ship("acme", "p", 0, time.Now().Unix()/900*900, 3) // before it knew the period
	e.ship("acme", "p", s.Period, time.Now().Unix()/900*900, 20)
	if s := e.one(ask(s.Period, 0, 20, 0)); s.Used != 23 || s.Exhausted {
		t.Errorf("soft: got %v, want 23 used", s)
	}
	out := e.one(&usagev1.AccountAsk{Customer: "free", Subscription: "none", Plan: "none", DemandMilli: 5000})
	if out.Mode != "none" || out.SharePpm != 1_000_000 {
		t.Errorf("no quota: got %v, want the whole rate limit", out)
	}
}

// An edge that holds what another starves for is told so in the answer to whatever it asks, until it speaks of that account;
// nobody else hears of it.
func TestLessor_WhoHoldsIsToldUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // half a second tells what is said
		w := newWorld(t, catalog(strict(11)), store(customer("acme", "p"), customer("other", "p")))
		a := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
		b := &edge{t: t, w: w, name: "b", region: "eu-west", epoch: 1}
		c := &edge{t: t, w: w, name: "c", region: "eu-west", epoch: 1}
		d := &edge{t: t, w: w, name: "d", region: "eu-west", epoch: 1}
		told := func(e *edge, asks ...*usagev1.AccountAsk) int {
			t.Helper()
			out := e.ask(asks...)
			for _, n := range out.Recalled {
				if n.Customer != "acme" || n.Subscription != "p" {
					t.Errorf("%s is told of %v", e.name, n)
				}
			}
			return len(out.Recalled)
		}
		p := a.one(ask(0, 0, 0, 6)).Period
		if got := d.one(ask(p, 0, 0, 1)).Leased; got != 1 {
			t.Fatalf("d gets %d units, want 1", got)
		}
		d.one(ask(p, 1, 1, 0)) // holds what it has spent
		c.one(ask(0, 0, 0, 0)) // knows the account and holds nothing of it
		for got := int64(0); got < 4; {
			more := ask(p, got, 0, 9)
			more.Starving = false
			got = b.one(more).Leased
		}
		if n := told(a); n != 0 {
			t.Errorf("before anybody starves a is told of %d accounts, want none", n)
		}
		b.one(ask(p, 4, 4, 1))
		for range 2 { // the first answer may have been lost
			if n := told(a); n != 1 {
				t.Errorf("an empty ask of who holds what b starves for: told of %d accounts, want one", n)
			}
		}
		if n := told(a, &usagev1.AccountAsk{Customer: "other", Subscription: "p", Plan: "p"}); n != 1 {
			t.Errorf("an ask about another account: told of %d, want one", n)
		}
		if told(b) != 0 || told(c) != 0 || told(d) != 0 {
			t.Error("who starves itself, holds nothing or has spent it is told, want none of them")
		}
		if n := told(a, ask(p, 5, 0, 0)); n != 0 {
			t.Errorf("the answer about the account itself names it once more among %d", n)
		}
		if n := told(a); n != 0 {
			t.Errorf("after a spoke of it, it is told of %d, want none until b asks again", n)
		}
		b.one(ask(p, 4, 4, 1))
		time.Sleep(600 * time.Millisecond)
		if n := told(a); n != 0 {
			t.Errorf("half a second after b asked last a is told of %d accounts, want none", n)
		}
	})
}
