package lessor

import (
	"context"
	"sync/atomic"
	"time"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/quota"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
)

// Stats count since the start.
type Stats struct {
	Exchanges atomic.Int64 // that were committed
	Entries   atomic.Int64 // raft entries they took
	Looked    atomic.Int64 // answered without an entry
	Refused   atomic.Int64 // accounts that are not of this zone, or not known yet
	Stale     atomic.Int64 // exchanges that a newer one of their edge had overtaken
	Recalls   atomic.Int64 // answers that asked an edge to give back
}

// Stats is for metrics.
func (l *Lessor) Stats() *Stats { return &l.stats }

type job struct {
	order ledger.Exchange
	done  chan outcome // buffered
}

type outcome struct {
	leases ledger.Leases
	err    error
}

// decide has the ledger decide, and keeps its word.
func (l *Lessor) decide(ctx context.Context, x *request) error {
	j := &job{order: x.order, done: make(chan outcome, 1)}
	select {
	case l.jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second): // the term ended, and nobody takes jobs any more
		return notLeader()
	}
	var o outcome
	select {
	case o = <-j.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if o.err != nil {
		return o.err
	}
	if o.leases.Reason != "" {
		l.stats.Stale.Add(1)
		return fault.New(fault.Conflict, o.leases.Reason, "exchange %d of epoch %d of edge %s: the ledger has taken a newer one, or the epoch is over", x.order.Sequence, x.order.Epoch, x.order.Edge)
	}
	for _, s := range x.subjects {
		if s.mine >= 0 {
			s.lease = o.leases.Leases[s.mine]
		}
	}
	return nil
}

// commit puts the exchanges of a short while into one raft entry, one entry at a
// time: while one is on its way, the next gathers.
func (l *Lessor) commit(ctx context.Context) {
	for {
		var batch []*job
		select {
		case j := <-l.jobs:
			batch = append(batch, j)
		case <-ctx.Done():
			return
		}
		gather := time.NewTimer(l.cfg.Gather)
		for n := len(batch[0].order.Asks); n < maxAsks; {
			select {
			case j := <-l.jobs:
				batch, n = append(batch, j), n+len(j.order.Asks)
				continue
			case <-gather.C:
			case <-ctx.Done():
			}
			break
		}
		gather.Stop()
		l.propose(ctx, batch)
	}
}

func (l *Lessor) propose(ctx context.Context, batch []*job) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	now := time.Now()
	l.mu.Lock()
	var heard []string
	if l.term != nil {
		heard = l.term.heardLately(now)
	}
	l.mu.Unlock()
	xs := make([]ledger.Exchange, len(batch))
	for i, j := range batch {
		xs[i] = j.order
	}
	leases, err := l.cfg.Ledger.Exchange(ctx, now.Unix(), heard, xs)
	l.stats.Entries.Add(1)
	l.stats.Exchanges.Add(int64(len(batch)))
	for i, j := range batch {
		if err != nil {
			j.done <- outcome{err: err}
			continue
		}
		j.done <- outcome{leases: leases[i]}
	}
}

// answer says what the edge may do now.
func (l *Lessor) answer(x *request, region string, now time.Time) (*usagev1.ExchangeResponse, error) {
	l.mu.Lock()
	t := l.term
	if t == nil {
		l.mu.Unlock()
		return nil, notLeader()
	}
	t.hearSpent(x, now)
	read := map[ledger.AccountID]*ledger.Account{}
	for _, s := range x.subjects {
		if s.mine >= 0 && (s.dry() || t.othersTold(s.id(), x.order.Edge, now)) {
			read[s.id()] = nil
		}
	}
	l.mu.Unlock()
	if err := l.accounts(read, x); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t = l.term; t == nil {
		return nil, notLeader()
	}
	out := &usagev1.ExchangeResponse{Sequence: x.order.Sequence, LiveEdges: uint32(t.live(region, now))}
	for _, s := range x.subjects {
		id := s.id()
		state := &usagev1.AccountState{Customer: s.ask.GetCustomer(), Subscription: s.ask.GetSubscription(), Mode: or(s.terms.Mode, "none"),
			SharePpm: t.share(demandKey{id.Customer, id.Subscription, region}, x.order.Edge, now)}
		out.Accounts = append(out.Accounts, state)
		if s.mine < 0 {
			continue
		}
		state.Period, state.PeriodEnd = s.period.Start, s.period.End
		state.Leased, state.Limit, state.Used, state.Held, state.UsedHere = s.lease.Leased, s.lease.Limit, s.lease.Used, s.lease.Held, s.lease.Spent
		if acc := read[id]; acc != nil {
			n := t.underWay(acc, id, x.order.Edge, s.leasing(), now)
			state.Used = quota.Add(state.Used, n)
			if s.leasing() {
				state.Held = max(0, state.Held-n)
			}
		}
		if s.dry() {
			switch acc := read[id]; {
			case acc.Available > 0: // given back since the ledger's word: its holder has none any more, and who asks again gets it
			case !t.recallable(id, acc.Holders, x, now):
				state.Exhausted = true
			case s.ask.GetStarving():
				t.starve(id, acc.Holders, x.order.Edge, now)
			}
		}
		if state.Recall = t.recalls(id, x.order.Edge, now); state.Recall {
			l.stats.Recalls.Add(1)
		}
	}
	for _, id := range t.recalled(x, now) {
		l.stats.Recalls.Add(1)
		out.Recalled = append(out.Recalled, &usagev1.AccountName{Customer: id.Customer, Subscription: id.Subscription})
	}
	return out, nil
}

func (s *subject) leasing() bool {
	return s.mine >= 0 && (s.terms.Mode == "strict" || s.terms.Mode == "elastic")
}

// dry: nothing is left of what it wants.
func (s *subject) dry() bool { return s.leasing() && s.lease.Available == 0 && s.ask.GetWant() > 0 }

// accounts finds who holds units of these accounts. It reads a copy that is newer than the lease that was decided:
// entries of others may lie between, and exchanges of the same one behind it.
func (l *Lessor) accounts(read map[ledger.AccountID]*ledger.Account, x *request) error {
	if len(read) == 0 {
		return nil
	}
	view, err := l.cfg.Ledger.Local()
	if err != nil {
		return err
	}
	defer view.Close()
	for _, s := range x.subjects {
		if _, is := read[s.id()]; !is {
			continue
		}
		acc, err := view.Account(s.id(), s.terms, time.Now().Unix())
		if err != nil {
			return err
		}
		read[s.id()] = &acc
	}
	return nil
}

// idle says whether a holder has units that it did not say it has spent.
func (t *term) idle(id ledger.AccountID, h ledger.Holder) bool {
	return h.Held > t.told[id][h.Edge].beyond(h, h.Held)
}

// recallable says whether units may soon come back: another edge that is alive
// holds some, or an older epoch of this one whose blocks are on their way. What
// an edge holds that is not heard from is as good as spent until it is, and what
// an edge has told is spent.
func (t *term) recallable(id ledger.AccountID, holders []ledger.Holder, x *request, now time.Time) bool {
	for _, h := range holders {
		switch {
		case !t.idle(id, h) || h.Edge == x.order.Edge && h.Epoch == x.order.Epoch:
		case h.Edge == x.order.Edge, t.alive(h.Edge, now), now.Sub(t.since) <= liveFor:
			return true
		}
	}
	return false
}
