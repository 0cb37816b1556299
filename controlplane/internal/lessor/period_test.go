package lessor_test

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
)

// A period that is over only takes back; the answer names the present one. Both
// are worked out in the customer's time zone.
func TestLessor_PeriodsThatAreOver(t *testing.T) {
	c := customer("acme", "p")
	c.TimeZone = "Asia/Kathmandu" // 5:45 ahead
	w := newWorld(t, catalog(map[string]*model.Quota{"p": {Units: 100, Period: "day", Mode: "strict"}}), store(c))
	e := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	s := e.one(ask(0, 0, 0, 10))
	if at := time.Unix(s.Period, 0).UTC(); at.Hour() != 18 || at.Minute() != 15 || s.PeriodEnd-s.Period != 86400 {
		t.Fatalf("period: got %s of %d s, want midnight in Kathmandu and a day", at, s.PeriodEnd-s.Period)
	}
	yesterday := s.Period - 86400
	if now := e.one(ask(yesterday, 50, 20, 5)); now.Period != s.Period || now.Leased != 10 {
		t.Errorf("an ask about yesterday: got %v, want today's lease of 10 as it was", now)
	}
	if now := e.one(ask(s.PeriodEnd, 0, 0, 5)); now.Period != s.Period && time.Now().Unix() < s.PeriodEnd-10 {
		t.Errorf("an ask about tomorrow, more than 10 s ahead: got %v, want today's", now)
	}
	if now := e.one(ask(12345, 0, 0, 5)); now.Period != s.Period || now.Leased != 10 {
		t.Errorf("an ask about no period: got %v, want today's lease as it was", now)
	}
}

// Prepaid has no end, a rolling quota slides, a soft one with grace is enforced.
func TestLessor_OtherQuotas(t *testing.T) {
	w := newWorld(t, catalog(map[string]*model.Quota{
		"pre":   {Units: 4, Period: "prepaid", Mode: "strict"},
		"slide": {Units: 8, Period: "rolling", Mode: "elastic", Window: 45 * time.Minute},
		"grace": {Units: 10, Mode: "soft", GracePercent: 20},
	}), store(customer("a", "pre"), customer("b", "slide"), customer("c", "grace")))
	e := &edge{t: t, w: w, name: "a", region: "eu-west", epoch: 1}
	out := e.ask(&usagev1.AccountAsk{Customer: "a", Subscription: "pre", Want: 1}, &usagev1.AccountAsk{Customer: "b", Subscription: "slide", Want: 1}, &usagev1.AccountAsk{Customer: "c", Subscription: "grace", Want: 1})
	for i, want := range []struct {
		mode        string
		period, lim int64
	}{{"strict", 2, 4}, {"elastic", 1, 8}, {"elastic", 0, 12}} {
		s := out.Accounts[i]
		if s.Mode != want.mode || s.Limit != want.lim || s.Leased != 1 || want.period != 0 && (s.Period != want.period || s.PeriodEnd != 0) {
			t.Errorf("%s: got %v, want mode %s, limit %d, one leased", s.Subscription, s, want.mode, want.lim)
		}
	}
}

// The plan's rate is divided by demand among the edges of one region.
func TestLessor_SharesRates(t *testing.T) {
	w := newWorld(t, catalog(map[string]*model.Quota{"p": nil}), store(customer("acme", "p")))
	share := func(name, region string, demand int64) int64 {
		e := &edge{t: t, w: w, name: name, region: region, epoch: 1}
		return e.one(&usagev1.AccountAsk{Customer: "acme", Subscription: "p", DemandMilli: demand}).SharePpm
	}
	if got := share("a", "eu-west", 9000); got != 1_000_000 {
		t.Errorf("alone: got %d, want all", got)
	}
	share("b", "eu-west", 1000)
	share("far", "eu-central", 77_000) // another region's limit is its own
	if got := share("a", "eu-west", 9000); got != 50_000+810_000 {
		t.Errorf("nine parts of ten beside another edge: got %d, want 860000", got)
	}
}
