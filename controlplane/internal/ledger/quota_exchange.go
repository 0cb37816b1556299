package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"bailiwick/controlplane/internal/quota"
)

// Limits of one edge's exchange. Beyond them the whole request is refused: to
// leave some accounts or epochs out would free what they hold.
const (
	MaxAsks    = 2048
	MaxPending = 1024
)

// Exchange is one edge's word on what it holds and its wish for more.
type Exchange struct {
	Edge            string // as its certificate says
	Epoch, Sequence uint64
	Pending         []Pending // older epochs with blocks that are not acknowledged
	Asks            []Ask
}

// Ask is about one account. The leader fills in ID, Terms and Sharers.
type Ask struct {
	ID    AccountID
	Terms Terms
	// Ceiling: (edge, epoch) has never spent more in this period, and will not
	// unless it is leased more. Negative: it does not know what it has spent, so
	// nothing is taken back, nor given unless it never had anything.
	Ceiling int64
	Want    int64
	Sharers int64 // edges that ask for this account, this one included
}

// Lease is the ledger's word on one ask, after it.
type Lease struct {
	ID        AccountID
	Leased    int64 // all that (edge, epoch) may spend in the period
	Spent     int64 // by (edge, epoch), of Used
	Limit     int64 // top-ups included
	Used      int64 // by all
	Held      int64 // by all
	Available int64
}

// Refusals of an exchange. Nothing of a refused one has any effect.
const (
	ExchangeOld    = "EXCHANGE_OLD"    // a newer one of this epoch was taken before
	ExchangeEpoch  = "EXCHANGE_EPOCH"  // a newer epoch of this edge asks
	ExchangeClosed = "EXCHANGE_CLOSED" // an operator closed the epoch
	ExchangeForked = "EXCHANGE_FORKED" // two spools speak for the epoch: both would spend one lease
)

var exchangeRefusals = []string{"", ExchangeOld, ExchangeEpoch, ExchangeClosed, ExchangeForked}

// Leases is the answer to one Exchange: Reason, or one Lease an Ask.
type Leases struct {
	Reason string
	Leases []Lease
}

// exchangeOrder is exchanges of several edges, decided one after the other. Now
// and Heard are the leader's word. Two exchanges of one order see each other.
type exchangeOrder struct {
	Now int64 // unix s
	// Heard are the edges heard from lately: an elastic quota waits for no other.
	// nil: the leader is too young to say, and all are waited for.
	Heard     []string
	Exchanges []Exchange
}

func (o *exchangeOrder) encode() []byte {
	n := 64
	for i := range o.Exchanges {
		n += 128 + 160*len(o.Exchanges[i].Asks)
	}
	b := append(make([]byte, 0, n), begin(kindExchange)...)
	b = binary.AppendUvarint(b, uint64(o.Now))
	b = append(b, boolByte(o.Heard != nil))
	b = binary.AppendUvarint(b, uint64(len(o.Heard)))
	for _, s := range o.Heard {
		b = appendText(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(o.Exchanges)))
	for i := range o.Exchanges {
		x := &o.Exchanges[i]
		b = binary.AppendUvarint(binary.AppendUvarint(appendText(b, x.Edge), x.Epoch), x.Sequence)
		b = appendPending(b, x.Pending)
		b = binary.AppendUvarint(b, uint64(len(x.Asks)))
		for j := range x.Asks {
			a := &x.Asks[j]
			b = appendTerms(appendAccountID(b, a.ID), &a.Terms)
			b = binary.AppendUvarint(b, uint64(max(a.Ceiling, -1)+1)) // 0: not known
			b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(max(0, a.Want))), uint64(max(0, a.Sharers)))
		}
	}
	return b
}

func appendAccountID(b []byte, id AccountID) []byte {
	return binary.AppendUvarint(appendText(appendText(b, id.Customer), id.Subscription), uint64(id.Period))
}

func (r *reader) accountID() AccountID {
	return AccountID{Customer: r.name(), Subscription: r.short(), Period: r.int64()}
}

func decodeExchange(r *reader) order {
	o := &exchangeOrder{Now: r.int64()}
	if r.take(1)[0] != 0 {
		o.Heard = []string{}
	}
	for range r.count(2) {
		o.Heard = append(o.Heard, r.name())
	}
	o.Exchanges = make([]Exchange, r.count(5))
	for i := range o.Exchanges {
		x := &o.Exchanges[i]
		x.Edge, x.Epoch, x.Sequence, x.Pending = r.name(), r.uvarint(), r.uvarint(), r.pending()
		x.Asks = make([]Ask, r.count(13))
		for j := range x.Asks {
			a := &x.Asks[j]
			a.ID, a.Terms = r.accountID(), r.terms()
			a.Ceiling, a.Want, a.Sharers = r.int64()-1, r.int64(), r.int64()
		}
	}
	return o
}

func (o *exchangeOrder) apply(t *tx) ([]byte, error) {
	books := make(map[AccountID]*book)
	sliding := make(map[AccountID]int64)
	regs := t.registers()
	out := append(make([]byte, 0, 256), resultVersion)
	for i := range o.Exchanges {
		x := &o.Exchanges[i]
		refusal, repeated, err := t.hear(x)
		if err != nil {
			return nil, err
		}
		out = append(out, refusal)
		if refusal != 0 {
			continue
		}
		for j := range x.Asks {
			a := &x.Asks[j]
			b := books[a.ID]
			if b == nil {
				// Also after an exchange of this entry: what another edge's older
				// epochs held becomes free with the next entry.
				if b, err = readBook(t.db, a.ID, regs); err != nil {
					return nil, err
				}
				b.rec.Terms = a.Terms
				if sliding[a.ID], err = b.sliding(t.db, o.Now); err != nil {
					return nil, err
				}
				books[a.ID] = b
			}
			b.rec.Terms = a.Terms
			h := b.holder(epochKey{x.Edge, x.Epoch})
			if !repeated {
				a.decide(b, h, sliding[a.ID], o.Heard)
			}
			out = appendLease(out, b, h, sliding[a.ID], o.Heard)
		}
	}
	return out, t.write(o.Now, slices.Collect(maps.Values(books))...)
}

// decide takes back and gives.
func (a *Ask) decide(b *book, h *holder, sliding int64, heard []string) {
	fresh := h.Leased == 0 && h.Spent == 0
	if a.Ceiling >= 0 {
		h.Lower(a.Ceiling)
	}
	if a.Terms.leased() { // what it took without a lease, while the plan was soft, is no debt to lease first
		h.Leased = max(h.Leased, h.Spent, a.Ceiling)
	}
	if a.Want <= 0 || !a.Terms.leased() || a.Ceiling < 0 && !fresh {
		return
	}
	acc := b.account(sliding, heard)
	h.Leased = quota.Add(h.Leased, quota.Grant(acc.Available(), a.Want, a.Sharers))
}

func appendLease(out []byte, b *book, h *holder, sliding int64, heard []string) []byte {
	acc := b.account(sliding, heard)
	for _, n := range [...]int64{h.Leased, h.Spent, acc.Limit, acc.Used(), acc.Held(), acc.Available()} {
		out = binary.AppendUvarint(out, uint64(n))
	}
	return out
}

// hear takes an edge's word on its epochs.
func (t *tx) hear(x *Exchange) (refusal byte, repeated bool, err error) {
	now, refusal, repeated := t.m.askers[x.Edge].weigh(x, t.m.latest[x.Edge], t.m.epochs[epochKey{x.Edge, x.Epoch}])
	if now == nil {
		return refusal, repeated, nil
	}
	t.m.askers[x.Edge] = now
	return 0, false, t.set(append([]byte(prefixAsker), x.Edge...), now.encode())
}

// weigh is what an exchange makes of what was known of its edge (old; nil: nothing): now, or a refusal. One with
// the newest number taken is answered again and changes nothing: raft may propose one twice. latest is the
// edge's newest epoch that has begun, e the exchange's own, if the ledger knows it.
func (old *asker) weigh(x *Exchange, latest uint64, e *epoch) (now *asker, refusal byte, repeated bool) {
	switch {
	case e == nil:
	case e.Closed:
		return nil, 3, false
	case e.Fork != nil:
		return nil, 4, false
	}
	switch {
	case x.Epoch == 0 || x.Epoch < latest || old != nil && x.Epoch < old.Epoch:
		return nil, 2, false
	case old != nil && x.Epoch == old.Epoch && x.Sequence < old.Sequence:
		return nil, 1, false
	case old != nil && x.Epoch == old.Epoch && x.Sequence == old.Sequence:
		return nil, 0, true
	}
	now = &asker{Epoch: x.Epoch, Sequence: x.Sequence}
	for _, p := range x.Pending {
		if p.Epoch >= x.Epoch || slices.ContainsFunc(now.Pending, func(q Pending) bool { return q.Epoch == p.Epoch }) {
			continue
		}
		now.Pending = append(now.Pending, p)
	}
	return now, 0, false
}

func (t *tx) registers() registers {
	return registers{
		asker: func(edge string) (*asker, error) { return t.m.askers[edge], nil },
		epoch: func(k epochKey) (*epoch, error) { return t.m.epochs[k], nil },
	}
}

func decodeLeases(out []byte, xs []Exchange) ([]Leases, error) {
	if len(out) == 0 || out[0] != resultVersion {
		return nil, errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: out[1:]}
	all := make([]Leases, len(xs))
	for i := range xs {
		refusal := r.take(1)[0]
		if int(refusal) >= len(exchangeRefusals) {
			return nil, errors.New("the ledger's answer holds an unknown refusal")
		}
		if all[i].Reason = exchangeRefusals[refusal]; refusal != 0 {
			continue
		}
		for j := range xs[i].Asks {
			all[i].Leases = append(all[i].Leases, Lease{ID: xs[i].Asks[j].ID, Leased: r.int64(), Spent: r.int64(), Limit: r.int64(), Used: r.int64(), Held: r.int64(), Available: r.int64()})
		}
	}
	return all, r.done("leases")
}

// Local is this node's copy, which may be behind the group's: View is the
// linearizable one. On a leader it holds what its term and those before committed.
func (l *Ledger) Local() (*View, error) { return l.cfg.Machine.View() }

// Exchange commits exchanges in one entry and answers each. now is unix seconds;
// it and heard are the leader's word. An error means that the outcome is
// unknown: the edges ask again, with lower ceilings, and what was granted in vain
// returns.
func (l *Ledger) Exchange(ctx context.Context, now int64, heard []string, xs []Exchange) ([]Leases, error) {
	for i := range xs {
		x := &xs[i]
		if err := checkName("edge", x.Edge); err != nil {
			return nil, err
		}
		if len(x.Asks) > 2*MaxAsks || len(x.Pending) > MaxPending { // each of a period that is over and of the present one
			return nil, fmt.Errorf("exchange of edge %s: %d asks and %d epochs, at most %d and %d are allowed", x.Edge, len(x.Asks), len(x.Pending), 2*MaxAsks, MaxPending)
		}
		for j := range x.Asks {
			if err := checkName("customer", x.Asks[j].ID.Customer); err != nil {
				return nil, err
			}
		}
	}
	o := &exchangeOrder{Now: now, Heard: heard, Exchanges: xs}
	out, err := l.propose(ctx, o.encode())
	if err != nil {
		return nil, fmt.Errorf("commit %d exchanges: %w", len(xs), err)
	}
	return decodeLeases(out, xs)
}
