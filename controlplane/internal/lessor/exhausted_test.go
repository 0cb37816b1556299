package lessor_test

import (
	"testing"

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
