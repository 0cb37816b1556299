package ledger_test

import (
	"testing"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// month is a calendar period of these tests.
const month = 1_793_491_200

var acme = ledger.AccountID{Customer: "acme", Subscription: "s", Period: month}

func strictly(limit int64) ledger.Terms {
	return ledger.Terms{Plan: "p", Mode: "strict", Kind: "month", Limit: limit, End: month + 30*86400}
}

// bank feeds one machine.
type bank struct {
	t     testing.TB
	m     *ledger.Machine
	index uint64
	now   int64
	heard []string
}

func newBank(t testing.TB) *bank { return &bank{t: t, m: openMem(t), now: month + 5} }

func (b *bank) feed(cmd []byte) []byte {
	b.t.Helper()
	b.index++
	out, err := b.m.Apply(b.index, base, cmd)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bank) exchange(xs ...ledger.Exchange) []ledger.Leases {
	b.t.Helper()
	all, err := ledger.DecodeLeases(b.feed(ledger.EncodeExchangeHeard(b.now, b.heard, xs)), xs)
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// ask is one exchange about one account.
func (b *bank) ask(edge string, epoch, seq uint64, id ledger.AccountID, terms ledger.Terms, ceiling, want int64) ledger.Lease {
	b.t.Helper()
	a := b.exchange(ledger.Exchange{Edge: edge, Epoch: epoch, Sequence: seq, Asks: []ledger.Ask{{ID: id, Terms: terms, Ceiling: ceiling, Want: want, Sharers: 1}}})[0]
	if a.Reason != "" {
		b.t.Fatalf("exchange %d of epoch %d of %s: %s", seq, epoch, edge, a.Reason)
	}
	return a.Leases[0]
}

func (b *bank) ship(c *chain, id ledger.AccountID, start, units int64) {
	b.t.Helper()
	cell := usage.Cell{Start: start, Customer: id.Customer, Subscription: id.Subscription, Plan: "p", API: "a", Outcome: usage.OutcomeSuccess, Period: id.Period}
	k := c.next(map[usage.Cell]usage.Sums{cell: {Requests: 1, Units: units}})
	acks, err := ledger.DecodeAcks(b.feed(ledger.EncodeAppend([]ledger.Block{k})), []ledger.Block{k})
	if err != nil || acks[0].Reason != "" {
		b.t.Fatalf("append: %+v, %v", acks, err)
	}
}

func (b *bank) account(id ledger.AccountID, terms ledger.Terms) ledger.Account {
	b.t.Helper()
	v, err := b.m.View()
	if err != nil {
		b.t.Fatal(err)
	}
	defer v.Close()
	a, err := v.Account(id, terms, b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// Raft may apply one exchange twice, with others between. The second time must
// not take the lease back and size it anew.
func TestQuota_AnExchangeAppliedTwice(t *testing.T) {
	b := newBank(t)
	x := ledger.Exchange{Edge: "a", Epoch: 1, Sequence: 1, Asks: []ledger.Ask{{ID: acme, Terms: strictly(40), Ceiling: 0, Want: 10, Sharers: 1}}}
	first := b.exchange(x)[0].Leases[0]
	var took int64
	for seq := range uint64(20) {
		took = b.ask("b", 1, seq+1, acme, strictly(40), took, 40).Leased
	}
	if first.Leased != 10 || took != 30 {
		t.Fatalf("leased: got %d and %d, want 10 and the other 30", first.Leased, took)
	}
	if again := b.exchange(x)[0].Leases[0]; again.Leased != 10 {
		t.Errorf("applied again: got %d leased, want 10 still", again.Leased)
	}
}

func TestQuota_RefusesExchangesOfTheDead(t *testing.T) {
	b := newBank(t)
	b.ask("a", 5, 7, acme, strictly(40), 0, 4)
	for _, c := range []struct {
		epoch, seq uint64
		reason     string
	}{{5, 6, ledger.ExchangeOld}, {4, 9, ledger.ExchangeEpoch}, {0, 9, ledger.ExchangeEpoch}} {
		if got := b.exchange(ledger.Exchange{Edge: "a", Epoch: c.epoch, Sequence: c.seq})[0].Reason; got != c.reason {
			t.Errorf("epoch %d, sequence %d: got %q, want %s", c.epoch, c.seq, got, c.reason)
		}
	}
	b.feed(ledger.EncodeCloseBy("a", 5, 0, ledger.HeldReturn))
	if got := b.exchange(ledger.Exchange{Edge: "a", Epoch: 5, Sequence: 8})[0].Reason; got != ledger.ExchangeClosed {
		t.Errorf("a closed epoch: got %q, want %s", got, ledger.ExchangeClosed)
	}
	if a := b.account(acme, strictly(40)); a.Used != 0 || a.Held != 0 {
		t.Errorf("after a close that returns: got %+v, want nothing used or held", a)
	}
	b.ask("a", 6, 1, acme, strictly(40), 0, 4)
	b.feed(ledger.EncodeCloseBy("a", 6, 3, ledger.HeldAuto)) // three blocks are lost
	for range 2 {                                            // before and after it is folded into the account
		if a := b.account(acme, strictly(40)); a.Used != 4 || a.Held != 0 {
			t.Errorf("after a close with a gap: got %+v, want the 4 that were held counted as used", a)
		}
		b.ask("a", 7, 1, acme, strictly(40), 0, 0)
	}
}

// A disk is lost and nobody says so: the edge joins again and names no older
// epoch, but the ledger has heard of a block that it does not have.
func TestQuota_AForgottenEpochStaysHeld(t *testing.T) {
	b := newBank(t)
	c := &chain{edge: "a", epoch: 1}
	b.ask("a", 1, 1, acme, strictly(40), 0, 8)
	b.ship(c, acme, month, 3)
	b.feed(ledger.EncodeSealed([]ledger.Said{{Edge: "a", Epoch: 1, Sealed: 2}}))
	if l := b.ask("a", 2, 1, acme, strictly(40), 0, 0); l.Used != 3 || l.Held != 5 {
		t.Errorf("with a block outstanding: got %+v, want 3 used and 5 held", l)
	}
	b.ship(c, acme, month, 1)
	if l := b.ask("a", 2, 2, acme, strictly(40), 0, 0); l.Used != 4 || l.Held != 0 {
		t.Errorf("with all blocks: got %+v, want 4 used and none held", l)
	}
}

// Elastic does not wait for an edge that is silent, strict does.
func TestQuota_Elastic(t *testing.T) {
	for mode, want := range map[string]int64{"strict": 2, "elastic": 10} {
		b := newBank(t)
		terms := strictly(10)
		terms.Mode = mode
		b.ask("gone", 1, 1, acme, terms, 0, 5)
		b.ask("gone", 1, 2, acme, terms, 5, 5) // 2 more
		b.ask("gone", 1, 3, acme, terms, 7, 1)
		b.heard = []string{"here"}
		var got int64
		for seq := range uint64(20) {
			got = b.ask("here", 1, seq+1, acme, terms, got, 9).Leased
		}
		if got != want {
			t.Errorf("%s: got %d of 10 leased while a silent edge holds 8, want %d", mode, got, want)
		}
	}
}

func TestQuota_RollingSlides(t *testing.T) {
	b := newBank(t)
	id := ledger.AccountID{Customer: "acme", Subscription: "s", Period: usage.PeriodRolling}
	terms := ledger.Terms{Plan: "p", Mode: "strict", Kind: "rolling", Limit: 100, Window: 48 * 3600}
	c := &chain{edge: "a", epoch: 1}
	b.ask("a", 1, 1, id, terms, 0, 60)
	start := int64(month)
	b.ship(c, id, start, 10)
	b.ship(c, id, start+900, 20)
	b.now = start + 48*3600
	if a := b.account(id, terms); a.Used != 30 || a.Held != 20 || a.Available != 50 {
		t.Errorf("all inside: got %+v, want 30 used and 20 held", a)
	}
	b.now = start + 48*3600 + 900 // the first cell is out, whole
	if l := b.ask("a", 1, 2, id, terms, 30, 0); l.Used != 20 || l.Held != 0 {
		t.Errorf("the first cell is out: got %+v, want 20 used and none held", l)
	}
	b.now += 900
	if l := b.ask("a", 1, 3, id, terms, 30, 100); l.Used != 0 || l.Leased != 80 || l.Available != 50 {
		t.Errorf("all is out: got %+v, want none used and half of all leased", l)
	}
}

func TestQuota_TopUpOnce(t *testing.T) {
	b := newBank(t)
	prepaid := ledger.AccountID{Customer: "acme", Subscription: "s", Period: usage.PeriodPrepaid}
	terms := ledger.Terms{Plan: "p", Mode: "strict", Kind: "prepaid"}
	if l := b.ask("a", 1, 1, prepaid, terms, 0, 5); l.Leased != 0 || l.Limit != 0 {
		t.Errorf("an empty balance: got %+v", l)
	}
	for range 2 {
		b.feed(ledger.EncodeTopUp(ledger.TopUp{ID: prepaid, Terms: terms, Units: 7, RequestID: "r1"}))
	}
	if a := b.account(prepaid, terms); a.Limit != 7 || a.ToppedUp != 7 {
		t.Errorf("topped up twice with one id: got %+v, want 7", a)
	}
	if l := b.ask("a", 1, 2, prepaid, terms, 0, 5); l.Leased != 3 {
		t.Errorf("after a top-up: got %+v, want half of 7 leased", l)
	}
}

func TestView_Accounts(t *testing.T) {
	b := newBank(t)
	c := &chain{edge: "a", epoch: 1}
	soft := strictly(10)
	soft.Mode = "soft"
	b.ask("a", 1, 1, acme, soft, 0, 0)
	b.ship(c, acme, month, 4)
	b.ship(c, ledger.AccountID{Customer: "acme", Subscription: "s"}, month+900, 2)    // the edge did not know the period
	b.ship(c, ledger.AccountID{Customer: "acme", Subscription: "s"}, month-900, 1000) // before it
	b.ship(c, ledger.AccountID{Customer: "acme2", Subscription: "s", Period: month}, month, 9)
	v, err := b.m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	all, err := v.Accounts(t.Context(), "acme", b.now)
	if err != nil || len(all) != 1 || all[0].ID != acme || all[0].Used != 6 || all[0].Limit != 10 || all[0].Terms != soft || len(all[0].Holders) != 1 {
		t.Errorf("accounts: got %+v, %v, want acme's with 6 used", all, err)
	}
}

func TestQuota_OldPeriodsAreForgotten(t *testing.T) {
	b := newBank(t)
	at := func(days int64) ledger.AccountID {
		return ledger.AccountID{Customer: "acme", Subscription: "s", Period: month + days*86400}
	}
	rolling := ledger.AccountID{Customer: "acme", Subscription: "s", Period: usage.PeriodRolling}
	for i, id := range []ledger.AccountID{rolling, at(0), at(10), at(399), at(401), at(402)} {
		b.ask("a", 1, uint64(i+1), id, strictly(10), 0, 1)
	}
	v, err := b.m.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	all, err := v.Accounts(t.Context(), "acme", b.now)
	if err != nil || len(all) != 5 || all[0].ID != rolling || all[1].ID != at(10) {
		t.Errorf("accounts: got %+v, %v, want all but the one of 401 days before the newest but one", all, err)
	}
}
