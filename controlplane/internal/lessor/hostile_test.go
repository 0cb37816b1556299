package lessor_test

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
)

// An edge that names a period of its own making begins none, and makes nobody forget the present one.
func TestExchange_AnEdgeBeginsNoPeriod(t *testing.T) {
	w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 10, Period: "month", Mode: "strict"}}), store(customer("acme", "p")))
	honest, hostile := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}, &edge{t: t, w: w, name: "b", region: "eu-west", epoch: 1}
	first := honest.one(&usagev1.AccountAsk{Customer: "acme", Subscription: "p", Want: 1})
	for _, years := range []int{-1, 1, 2, 30} {
		at, _ := calendar.Span(time.Now().AddDate(years, 0, 0), calendar.Month, time.UTC)
		hostile.one(&usagev1.AccountAsk{Customer: "acme", Subscription: "p", Period: at.Unix()})
	}
	v, err := w.l.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	all, err := v.Accounts(t.Context(), "acme", time.Now().Unix())
	if err != nil || len(all) != 1 || all[0].ID.Period != first.Period || all[0].Held != first.Leased {
		t.Errorf("accounts: got %+v, %v, want the present one alone with %d held", all, err, first.Leased)
	}
}

// As many accounts as are allowed, all of a period that is over: two asks each, and still one exchange.
func TestExchange_AllAccountsOfAPeriodThatIsOver(t *testing.T) {
	var customers []model.Customer
	var asks []*usagev1.AccountAsk
	last, _ := calendar.Span(time.Now().AddDate(0, -2, 0), calendar.Month, time.UTC)
	for i := range ledger.MaxAsks {
		name := fmt.Sprintf("c%d", i)
		customers = append(customers, customer(name, "p"))
		asks = append(asks, &usagev1.AccountAsk{Customer: name, Subscription: "p", Period: last.Unix(), Want: 1})
	}
	w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 10, Period: "month", Mode: "strict"}}), store(customers...))
	out := (&edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}).ask(asks...)
	if len(out.Accounts) != ledger.MaxAsks || out.Accounts[0].Leased == 0 {
		t.Errorf("got %d accounts, the first %+v, want all leased to", len(out.Accounts), out.Accounts[0])
	}
}
