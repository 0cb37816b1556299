package quota

import (
	"context"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/table"
)

// Sublet is what a Book lets another Book have: that of the process before this one, whose requests go on there (package linger).
// To that Book it is the Leader; to the ledger its units are this Book's, taken by requests under way. It invents none and loses
// none: what the other may still spend is taken here, what it gives back or never spent goes back here, and a row of its is
// spent here, in this process's epoch. Methods may be called at once but Adopt, which comes before Run.
type Sublet struct {
	book *Book
	plan func(name string) *policy.Plan

	mu     sync.Mutex // covers the rest; never held while somebody waits
	held   map[heldKey]*held
	under  map[ID]*policy.Plan // that the other Book brought last
	newest uint64              // sequence of the newest exchange
	ended  bool                // nothing is let any more
}

type heldKey struct {
	ID
	period int64
}

// held is one account's in one period. The other Book counts from the beginning of its own epoch: leased there is spent plus
// the ticket's units.
type held struct {
	ticket Ticket
	spent  int64
}

// Holding is what this Book's requests hold and have no row for, by account, as of now: what a Sublet adopts. Of periods that
// are over it says nothing, since nobody can take units of those any more. Call it when Run has returned, and then RunUnder: a row may
// be in the spool whose request has not come to say so, and its unit is among those held here.
func (b *Book) Holding() []Ask {
	var all []Ask
	b.handed = nil
	b.all(func(a *Account) {
		l := a.lease.Load()
		if l == nil {
			return
		}
		k := Ask{ID: a.id, Plan: a.plan.Load().Name, Period: l.period, Spent: l.spent.Load()}
		k.Ceiling = l.leased - min(0, l.free.Load())
		if k.Ceiling > k.Spent {
			all, b.handed = append(all, k), append(b.handed, a)
		}
	})
	return all
}

// RunUnder exchanges with another leader, after Run has returned and until ctx ends. It says at once and at last what became of all that
// Holding has said is held, though nobody uses it: the leader gives to others what was neither spent nor given back when it ends.
func (b *Book) RunUnder(ctx context.Context, leader Leader) {
	b.cfg.Leader, b.cfg.Pending = leader, func() []Pending { return nil }
	b.backoff, b.notBefore = 0, time.Time{}
	speak := func() {
		for _, a := range b.handed {
			if !a.gone {
				b.enqueue(a)
			}
		}
	}
	speak()
	b.loop(ctx)
	speak()
	b.backoff = 0
	for range len(b.queue)/maxAsks + 1 {
		if len(b.queue) > 0 && b.backoff == 0 {
			b.trade(context.WithoutCancel(ctx), time.Now())
		}
	}
}

// Adopt begins a Sublet with what the other Book holds. before is the other's epoch, and what its Unheard says: the ledger is told that
// those epochs may hold units still until it has heard of all that was adopted, and of all their rows, since it gives their units to others in
// the moment in which they are over. plan finds a plan by its name, nil if there is none; it is asked from the first Exchange on.
func (b *Book) Adopt(before []Pending, holding []Ask, plan func(name string) *policy.Plan) *Sublet {
	s := &Sublet{book: b, plan: plan, held: map[heldKey]*held{}, under: map[ID]*policy.Plan{}}
	for _, k := range holding {
		units := k.Ceiling - k.Spent
		if units <= 0 {
			continue
		}
		// There may be no table yet: who asks next under the plan says what it is. Until then nothing is wanted of it, and what is
		// held was taken without a lease, which the ledger makes one of.
		s.under[k.ID] = &policy.Plan{Plan: table.Plan{Name: k.Plan}}
		a, l := b.Account(k.ID, s.under[k.ID]), &lease{period: k.Period}
		l.free.Store(-units)
		a.lease.Store(l)
		b.adopted = append(b.adopted, a)
		s.held[heldKey{k.ID, k.Period}] = &held{Ticket{a, l, units}, k.Spent}
	}
	b.before = before
	return s
}

// Unheard are epochs whose units the ledger must not take for free when another process comes after this one: of what this Book adopted
// of them, or of what was spent of that, it may not have heard. Whoever adopts keeps them on disk, for a process that is killed says
// nothing. Call it when Run has returned.
func (b *Book) Unheard() []Pending {
	b.pending()
	return b.before
}

// pending are older epochs that may hold units still.
func (b *Book) pending() []Pending {
	all := b.cfg.Pending()
	if len(b.before) == 0 {
		return all
	}
	unheard := slices.ContainsFunc(b.adopted, func(a *Account) bool { return !a.known && !a.gone })
	for _, p := range all { // what was spent of theirs since may lie in any epoch after them
		unheard = unheard || slices.ContainsFunc(b.before, func(q Pending) bool { return q.Epoch <= p.Epoch })
	}
	if !unheard {
		b.adopted, b.before = nil, nil
		return all
	}
	all = slices.Clone(all)
	for _, p := range b.before {
		if i := slices.IndexFunc(all, func(q Pending) bool { return q.Epoch == p.Epoch }); i >= 0 {
			all[i].Sealed = max(all[i].Sealed+1, p.Sealed) // more than there are: it is not over with the last
		} else {
			all = append(all, p)
		}
	}
	return all
}

// Exchange implements Leader. Whoever starves waits for an outcome, all of them together for less time than the other Book waits for
// the answer, which then asks anew. Of an exchange that was overtaken so nothing has an effect any more: its ceilings would take
// back what the newer one has let, and what is spent there already would be given to others.
func (s *Sublet) Exchange(ctx context.Context, r *Request) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, letTime)
	defer cancel()
	s.mu.Lock()
	s.newest = max(s.newest, r.Sequence)
	s.mu.Unlock()
	out := &Response{Sequence: r.Sequence, LiveEdges: 1}
	for i := range r.Asks {
		k := &r.Asks[i]
		a, p := s.account(k)
		if p == nil {
			continue // whoever waits there is told that nobody can say
		}
		if state, known := s.let(ctx, r.Sequence, k, a, p); known {
			out.States = append(out.States, state)
		}
	}
	return out, nil
}

// account is the one that is asked about, under the plan that the other Book has it under, unless requests here have come under another
// since: theirs is the newer, and each word of the other's would undo it, and what is known of it. No plan: it is gone.
func (s *Sublet) account(k *Ask) (*Account, *policy.Plan) {
	p := s.plan(k.Plan)
	if p == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := (*s.book.shardOf(k.ID).m.Load())[k.ID]; a != nil {
		if now := a.plan.Load(); now.Name != k.Plan && now != s.under[k.ID] {
			return a, now
		}
	}
	s.under[k.ID] = p
	return s.book.Account(k.ID, p), p
}

func (s *Sublet) let(ctx context.Context, sequence uint64, k *Ask, a *Account, p *policy.Plan) (_ State, known bool) {
	if p.QuotaMode == "" {
		return State{ID: k.ID, None: true}, true
	}
	if !s.settle(sequence, k, a) {
		return State{}, false
	}
	exhausted := false
	if Leases(p) && k.Want > 0 {
		t := a.some(k.Want, time.Now().Unix())
		if t.units == 0 {
			if l := a.lease.Load(); l != nil && l.exhausted.Load() {
				exhausted = true
			}
			a.kick()
			if k.Starving && !exhausted {
				var d Decision
				t, d = a.Park(ctx, 1, true)
				exhausted = d == Exhausted
			}
		}
		s.keep(sequence, k.ID, t)
	}
	l := a.lease.Load()
	if l == nil {
		a.kick()
		return State{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.of(heldKey{k.ID, l.period})
	return State{ID: k.ID, Period: l.period, PeriodEnd: l.until.Load(), Leased: h.spent + h.ticket.units, Limit: l.limit.Load(), Used: l.used.Load(), UsedHere: h.spent,
		Leases: Leases(p), Exhausted: exhausted}, true
}

// of is called with mu held.
func (s *Sublet) of(k heldKey) *held {
	h := s.held[k]
	if h == nil {
		h = &held{}
		s.held[k] = h
	}
	return h
}

// settle takes back what the other Book will not spend any more, and takes what it has taken of a quota that is only watched.
// What it says it has spent may be behind the rows that came from it, and ahead of them by rows that lie in its own epoch: the ledger
// counts those there. false: a newer exchange has come.
func (s *Sublet) settle(sequence uint64, k *Ask, a *Account) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case sequence != s.newest:
		return false
	case k.Period == 0 || s.ended:
		return true
	}
	h := s.of(heldKey{k.ID, k.Period})
	if own := k.Spent - h.spent; own > 0 {
		part, rest := h.ticket.Split(own)
		part.cede()
		h.spent, h.ticket = k.Spent, rest
	}
	switch want := max(0, k.Ceiling-h.spent); {
	case want < h.ticket.units:
		h.ticket = h.ticket.Part(want)
	case want > h.ticket.units:
		h.ticket = h.ticket.and(a.force(k.Period, want-h.ticket.units))
	}
	return true
}

// keep adds what was let.
func (s *Sublet) keep(sequence uint64, id ID, t Ticket) {
	if t.units == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || sequence != s.newest {
		t.Release()
		return
	}
	h := s.of(heldKey{id, t.Period()})
	h.ticket = h.ticket.and(t)
}

// Spent says that a row of the other Book's is in this process's spool.
func (s *Sublet) Spent(id ID, period, units int64) {
	if units <= 0 || period == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.of(heldKey{id, period})
	h.spent += units
	part, rest := h.ticket.Split(units)
	h.ticket = rest
	part.Spend()
	if short := units - part.units; short > 0 { // of a quota that is only watched: the other has not said yet that it took them
		if a := (*s.book.shardOf(id).m.Load())[id]; a != nil {
			a.force(period, short).Spend()
		}
	}
}

// Held is how many units the other Book may still spend.
func (s *Sublet) Held() (units int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		units += h.ticket.units
	}
	return units
}

// End takes back what is left: the other process has ended, or nothing that it serves can be counted any more.
func (s *Sublet) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, h := range s.held {
		h.ticket.Release()
		h.ticket = Ticket{}
	}
}

// cede gives up units that another epoch has spent: the ledger had leased them twice, so they are nobody's here.
func (t Ticket) cede() {
	if t.units > 0 {
		t.lease.ceded.Add(t.units)
		t.account.kick()
	}
}

// some takes as many of the units as are free.
func (a *Account) some(units, unix int64) Ticket {
	a.wanted.Add(1) // somebody uses it; how much, the other Book says in what it wants
	l := a.lease.Load()
	if l == nil || l.ended(unix) {
		return Ticket{}
	}
	k := l.reclaim(units)
	if k == 0 {
		return Ticket{}
	}
	a.wanted.Add(k - 1)
	return Ticket{a, l, k}
}

// force takes units that were taken elsewhere already, if the period is the one that is known: of another the ledger counts them by
// their rows.
func (a *Account) force(period, units int64) Ticket {
	l := a.lease.Load()
	if l == nil || l.period != period || units <= 0 {
		return Ticket{}
	}
	l.free.Add(-units)
	a.wanted.Add(units)
	return Ticket{a, l, units}
}

// and is one ticket for both, which are of one account and period.
func (t Ticket) and(u Ticket) Ticket {
	switch {
	case u.lease == nil:
		return t
	case t.lease != nil && t.lease != u.lease: // of a period that was forgotten and is named again: what is held stays so
		u.Release()
		return t
	}
	u.units += t.units
	return u
}
