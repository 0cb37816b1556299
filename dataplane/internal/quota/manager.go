package quota

import (
	"context"
	"slices"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/policy"
)

// manager is what only Run's goroutine touches. One exchange is under way at a time.
type manager struct {
	sequence uint64
	accounts []*Account      // all, as of the last scan
	past     map[ID][]*lease // of accounts that were let go
	forgot   int64           // unix s: leases of periods that ended by then may be forgotten
	queue    []*Account      // for the next exchange
	starved  []*Account      // the leader was asked and its answer may soon be another
	silent   bool            // units are held, as of the last scan, of accounts that had nothing to say then
	adopted  []*Account      // whose units the process before holds, until the leader has heard of all of them
	handed   []*Account      // of which Holding has said that units are held
	before   []Pending       // that process's epoch, and those that it was unsure of; empty: the leader has heard of all

	lastScan, lastSweep, lastStart time.Time
	nextScan                       time.Time
	notBefore                      time.Time // after a failure
	backoff                        time.Duration
}

// exchange is what the manager keeps of an account.
type exchange struct {
	queued bool
	again  time.Time // when to ask anew, while requests wait
	asked  time.Time // last
	used   time.Time // last: a request came or waits
	old    []*lease  // of other periods: units under way belong to them, and a plan may go back

	asPlan  *policy.Plan // of the newest ask
	planned time.Time    // since when, if there was another before

	known bool // the leader has answered for it
	heard bool // the leader has answered an exchange that named it
	gone  bool // dropped

	eager   int64     // units that it wants at least, since what it was leased was too little again and again
	waited  time.Time // when somebody last waited as it asked
	granted int64     // leased then

	lastOffered, lastWanted int64
	offerRate, wantRate     int64 // per 1000 s, smoothed over a second
	toldRate                int64 // the leader's word on offerRate
	recall                  bool
}

// Run exchanges until ctx ends, and then gives back what is left: an edge that stops in order may stay away for
// long. A leader that does not answer is asked again; nothing is ever returned but nil.
func (b *Book) Run(ctx context.Context) error {
	b.loop(ctx)
	b.leave(context.WithoutCancel(ctx))
	return nil
}

func (b *Book) loop(ctx context.Context) {
	alarm := b.cfg.Beat.Alarm()
	defer alarm.Stop()
	alarm.Set(time.Now(), 0, 0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-alarm.C:
		}
		next, late := b.step(ctx, time.Now())
		alarm.Set(next, 0, late)
	}
}

// leave gives back what nobody will take any more, if that can be said in one exchange.
func (b *Book) leave(ctx context.Context) {
	for _, a := range b.queue {
		a.queued = false // it may go on under another leader
	}
	clear(b.queue)
	b.queue = b.queue[:0]
	b.all(func(a *Account) {
		if l := a.lease.Load(); l != nil && l.free.Load() > 0 {
			a.used = time.Time{}
			b.enqueue(a)
		}
	})
	if len(b.queue) > 0 {
		b.trade(ctx, time.Now())
	}
}

// step does what is due and says when there is more to do, and how late that may be: what somebody waits for is not.
func (b *Book) step(ctx context.Context, now time.Time) (next time.Time, late time.Duration) {
	if !now.Before(b.nextScan) {
		b.scan(now, now.Sub(b.lastScan))
		b.lastScan, b.nextScan = now, b.cfg.Beat.After(now, tick)
	}
	b.takeHot(now)
	due := b.due()
	if !now.Before(due) {
		b.lastStart = now
		b.trade(ctx, now)
		due = b.due()
	}
	next = b.nextScan
	last := next.Add(beat.Late) // by what somebody waits for, or by then
	if len(b.queue) > 0 && due.Before(last) {
		last = due
	}
	for _, a := range b.starved {
		if a.again.Before(last) {
			last = a.again
		}
	}
	if due.Before(next) {
		next = due
	}
	if last.Before(next) {
		next = last
	}
	return next, min(last.Sub(next), beat.Late)
}

// due is when the next exchange is: soon if somebody is to be spoken of, else at the last tick within a beat.
func (b *Book) due() time.Time {
	due := b.cfg.Beat.After(b.lastStart.Add(b.beat()-tick), tick)
	if len(b.queue) > 0 {
		due = b.lastStart.Add(gap)
	}
	if due.Before(b.notBefore) {
		due = b.notBefore
	}
	return due
}

// beat is how long the edge goes without an exchange at most. Any answer may say that somebody starves for what is held
// here, so an empty question, which is no entry in the log and names no account, is asked in place of many full ones.
func (b *Book) beat() time.Duration {
	if b.silent {
		return pollEvery
	}
	return beatEvery
}

func (b *Book) enqueue(a *Account) {
	if !a.queued {
		a.queued = true
		b.queue = append(b.queue, a)
	}
}

// takeHot moves accounts that cannot wait for a tick into the queue.
func (b *Book) takeHot(now time.Time) {
	b.hotMu.Lock()
	hot := b.hot
	b.hot = nil
	b.hotMu.Unlock()
	for _, a := range hot {
		a.hot.Store(false)
		if !a.gone { // whoever waits finds the account that took its place
			a.used = now
			b.enqueue(a)
		}
	}
	keep := b.starved[:0]
	for _, a := range b.starved {
		switch {
		case a.waiters.Load() == 0 && !a.doubtful(now):
		case a.again.After(now):
			keep = append(keep, a)
		default:
			b.enqueue(a)
		}
	}
	clear(b.starved[len(keep):])
	b.starved = keep
}

// scan looks at all accounts: how much they are used, and which have something to say.
func (b *Book) scan(now time.Time, since time.Duration) {
	b.hotMu.Lock()
	b.accounts = append(b.accounts, b.fresh...)
	clear(b.fresh)
	b.fresh = b.fresh[:0]
	b.hotMu.Unlock()
	b.silent = false
	for _, a := range b.accounts {
		a.measure(now, since)
		if a.due(now) {
			b.enqueue(a)
		} else if l := a.lease.Load(); l != nil && l.free.Load() > 0 {
			b.silent = true
		}
	}
	if now.Sub(b.lastSweep) >= 10*time.Second {
		b.lastSweep = now
		b.sweep(now)
	}
}

// measure brings the rates up to date. They rise at once, since who waits for a rate to be believed is
// refused meanwhile, and fall over a second.
func (a *Account) measure(now time.Time, since time.Duration) {
	offered, wanted := a.offered.Load(), a.wanted.Load()
	more, units := offered-a.lastOffered, wanted-a.lastWanted
	a.lastOffered, a.lastWanted = offered, wanted
	if more > 0 || units > 0 || a.waiters.Load() > 0 {
		a.used = now
	}
	a.offerRate = smooth(a.offerRate, more, since)
	a.wantRate = smooth(a.wantRate, units, since)
}

// smooth is an exponential average with a time constant of a second, of n in since per 1000 s.
func smooth(rate, n int64, since time.Duration) int64 {
	ms := max(1, since.Milliseconds())
	return rate + (n*1_000_000/ms-rate)*ms/(1000+ms)
}

func (a *Account) inUse(now time.Time) bool { return now.Sub(a.used) < idleAfter }

// due says whether the account goes into the next exchange without anybody waiting in it.
func (a *Account) due(now time.Time) bool {
	l, since := a.lease.Load(), now.Sub(a.asked)
	switch {
	case l != nil && (l.leased != l.confirmed || a.recall):
		return true
	case l != nil && !a.known && (!a.heard || now.Sub(a.used) < dropAfter): // adopted, and told to nobody, whether or not it is used
		return since >= watchEvery-tick/2
	case !a.inUse(now): // what is held goes back, and so does the share of the rate
		if a.toldRate == 0 && a.keeps(now, l) {
			return since >= lookEvery
		}
		return a.toldRate > 0 || l != nil && l.free.Load() > 0
	case !a.known || l != nil && l.ended(now.Unix()):
		return true
	}
	every := a.pause(l)
	if every == ampleEvery && len(a.book.queue) > 0 { // an exchange is made anyway: later ones may be spared
		every -= every / 4
	}
	return since >= every-tick/2 // watchEvery: once in two or three ticks
}

// doubtful says that "used up" may be the word of a leader that has not heard of the account's newest plan: its
// copy of the zone store is some milliseconds behind the one that this edge's table came from, or ahead.
func (a *Account) doubtful(now time.Time) bool {
	l := a.lease.Load()
	return l != nil && l.exhausted.Load() && now.Sub(a.planned) < doubtFor && a.inUse(now)
}

// leases says whether the account's plan needs units to be leased.
func (a *Account) leases() bool { return Leases(a.plan.Load()) }

// trade makes one exchange.
func (b *Book) trade(ctx context.Context, now time.Time) {
	n := min(len(b.queue), maxAsks)
	batch := append([]*Account(nil), b.queue[:n]...)
	b.queue = slices.Delete(b.queue, 0, n)
	b.sequence++
	r := &Request{Epoch: b.cfg.Epoch, Sequence: b.sequence, Pending: b.pending(), Asks: make([]Ask, n)}
	for i, a := range batch {
		a.queued = false
		r.Asks[i] = a.ask(now)
	}
	attempt, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	response, err := b.cfg.Leader.Exchange(attempt, r)
	done := time.Now()
	b.stats.exchanges.Add(1)
	b.stats.latency.Store(int64(done.Sub(now)))
	if err != nil || response.Sequence != r.Sequence {
		if ctx.Err() != nil {
			return
		}
		b.stats.failed.Add(1)
		if b.reachable.Swap(false) {
			b.cfg.Logger.Warn("quota exchange", "error", err)
		}
		b.backoff = min(max(2*b.backoff, retryFirst), retryMost)
		b.notBefore = done.Add(b.backoff)
		for _, a := range batch { // their requests wait on; the rest is due again by itself
			if a.waiters.Load() > 0 {
				b.enqueue(a)
			}
		}
		return
	}
	b.backoff, b.notBefore = 0, time.Time{}
	if !b.reachable.Swap(true) {
		b.cfg.Logger.Info("quota exchange is answered again")
	}
	b.even.Store(millionths / max(1, response.LiveEdges))
	var states map[ID]*State
	for i, a := range batch {
		a.heard = true
		var s *State
		if i < len(response.States) && response.States[i].ID == a.id { // leaders answer in the order in which they were asked
			s = &response.States[i]
		} else {
			if states == nil {
				states = make(map[ID]*State, len(response.States))
				for i := range response.States {
					states[response.States[i].ID] = &response.States[i]
				}
			}
			if s = states[a.id]; s == nil {
				continue
			}
		}
		a.known, a.toldRate = true, r.Asks[i].Demand
		b.apply(a, s, done)
		if l := a.lease.Load(); a.recall && l != nil && l.free.Load() > 0 {
			b.enqueue(a)
		} else if a.waiters.Load() > 0 {
			a.again = done.Add(starveEvery)
			b.starved = append(b.starved, a)
		} else if a.doubtful(done) {
			a.again = done.Add(doubtEvery)
			b.starved = append(b.starved, a)
		}
	}
	for _, id := range response.Recalled {
		if a := (*b.shardOf(id).m.Load())[id]; a != nil {
			if l := a.lease.Load(); l != nil && l.free.Load() > 0 {
				a.recall = true
				b.enqueue(a)
			}
		}
	}
}

// ask lowers the local limit by what goes back, and then says so.
func (a *Account) ask(now time.Time) Ask {
	waiting, needed := a.waiters.Load(), a.needed.Load()
	plan := a.plan.Load()
	if plan != a.asPlan {
		if a.asPlan != nil {
			a.planned = now
		}
		a.asPlan = plan
	}
	k := Ask{ID: a.id, Plan: plan.Name, Starving: waiting > 0}
	if a.inUse(now) {
		k.Demand = a.offerRate
	}
	a.asked = now
	l := a.lease.Load()
	var want int64
	if Leases(plan) {
		// Who was asked to give back wants no more than what waits here already.
		if want = needed; !a.recall && a.inUse(now) {
			want = max(want, a.horizon(l)*a.wantRate/1000, a.growing(now, waiting > 0, needed), floor(l, plan))
		}
	}
	if l == nil {
		k.Want = want
		return k
	}
	if n := l.ceded.Swap(0); n > 0 {
		leased := min(n, max(0, l.leased))
		l.leased -= leased
		l.free.Add(n - leased) // of what was taken without a lease
	}
	free := l.free.Load()
	ended := l.ended(now.Unix())
	keeps := a.keeps(now, l)
	switch {
	case a.recall, ended, !a.inUse(now) && !keeps:
		l.leased -= l.reclaim(free)
	case free > 2*want && !keeps:
		l.leased -= l.reclaim(free - want)
	}
	a.recall = false
	free = l.free.Load()
	k.Period, k.Spent = l.period, l.spent.Load()
	k.Ceiling = l.leased - min(0, free)
	k.InFlight = max(0, l.leased-free-k.Spent)
	// Not before half of it is gone: each ask is an entry in the ledger's log.
	switch {
	case ended:
		k.Want = want
	case 2*free < want, waiting > 0 && free < want: // who waits needs more than there is, however much that is
		k.Want = want - max(0, free)
	}
	return k
}

// plenty says whether so many units are next to nothing of what is left of the quota: nobody misses them where they lie.
func plenty(l *lease, units int64) bool {
	return units <= max(0, l.limit.Load()-l.used.Load())>>plentyShift
}

// floor is what an account in use wants whatever its demand: one unit, or a few where they are plenty, so that who comes now
// and then does not wait at each request. l may be nil.
func floor(l *lease, plan *policy.Plan) int64 {
	rest := plan.QuotaUnits
	if l != nil {
		rest = l.limit.Load() - l.used.Load()
	}
	return min(max(1, rest>>plentyShift), floorMost)
}

// keeps says whether the account keeps what it holds although it does not need it now.
func (a *Account) keeps(now time.Time, l *lease) bool {
	if l == nil || a.recall || l.ended(now.Unix()) || now.Sub(a.used) >= keepFor || !a.leases() {
		return false
	}
	free := l.free.Load()
	return free > 0 && plenty(l, free)
}

// growing is how much an account wants that is in use, whatever is known of its demand: that is believed only by and by, and
// until then each lease that is too small holds up a request. Whoever waits again within a second of having been leased
// something wants four times as much as before. It is over with the first second in which nobody waits.
func (a *Account) growing(now time.Time, waits bool, needed int64) int64 {
	var leased int64
	if l := a.lease.Load(); l != nil {
		leased = l.leased
	}
	switch again := now.Sub(a.waited) < idleAfter; {
	case !again:
		a.eager = 0
	case waits && leased > a.granted: // else nothing has come of asking for more
		a.eager = min(max(growth*a.eager, eagerFirst*min(needed, eagerMost)), eagerMost)
	}
	if waits {
		a.waited, a.granted = now, leased
	}
	return a.eager
}

// apply takes the leader's word on an account.
func (b *Book) apply(a *Account, s *State, now time.Time) {
	a.share.Store(s.Share)
	a.recall = s.Recall
	if s.None {
		a.keep(a.lease.Swap(nil))
		a.settle(now.Unix())
		return
	}
	l := a.lease.Load()
	if l == nil || l.period != s.Period {
		a.keep(l)
		l = b.leaseOf(a, s)
	}
	if more := s.Leased - l.leased; more > 0 {
		l.leased += more
		l.free.Add(more)
	} else { // a ledger that knows of less, having lost some of its own past, is believed
		l.leased -= l.reclaim(-more)
	}
	l.confirmed = s.Leased
	l.limit.Store(s.Limit)
	l.used.Store(s.Used)
	l.usedHere.Store(s.UsedHere)
	l.exhausted.Store(s.Exhausted && s.Leases)
	end := s.PeriodEnd
	l.length.Store(0)
	if end != 0 {
		l.length.Store(end - s.Period)
		// The leader's clock rules: what it calls the current period is, a little longer, also when this edge's
		// clock says that it is over.
		end = max(end, now.Unix()+1)
	}
	l.until.Store(end)
	a.lease.Store(l)
	a.settle(now.Unix())
}

// keep remembers a lease of another period.
func (a *Account) keep(l *lease) {
	if l != nil {
		a.old = append(a.old, l)
	}
}

// leaseOf finds the account's lease of the period among those of before, or begins one. Where it may be one
// that was forgotten, all that the ledger has on record counts as taken: it may have been spent.
func (b *Book) leaseOf(a *Account, s *State) *lease {
	if known := b.past[a.id]; known != nil {
		a.old = append(a.old, known...)
		delete(b.past, a.id)
	}
	for i, l := range a.old {
		if l.period == s.Period {
			a.old = append(a.old[:i], a.old[i+1:]...)
			return l
		}
	}
	l := &lease{period: s.Period}
	if s.PeriodEnd != 0 && s.PeriodEnd <= b.forgot {
		l.leased = s.Leased
	}
	return l
}

// forget is how long after a period's end its lease is kept. A leader whose clock is further behind leases
// only what is new in that period (leaseOf).
const forget = time.Hour

// sweep lets go what nobody uses. Leases of periods that have not ended stay: an epoch's units are counted
// from its beginning, and an account that came back with none would be leased its old units once more.
func (b *Book) sweep(now time.Time) {
	over := func(l *lease) bool {
		end := l.until.Load()
		return end != 0 && now.Unix() > end+int64(forget.Seconds())
	}
	trim := func(leases []*lease) []*lease {
		kept := leases[:0]
		for _, l := range leases {
			if !over(l) {
				kept = append(kept, l)
			} else {
				b.forgot = max(b.forgot, l.until.Load())
			}
		}
		clear(leases[len(kept):])
		return kept
	}
	for id, leases := range b.past {
		if b.past[id] = trim(leases); len(b.past[id]) == 0 {
			delete(b.past, id)
		}
	}
	left := b.accounts[:0]
	for _, a := range b.accounts {
		a.old = trim(a.old)
		l := a.lease.Load()
		idle := now.Sub(a.used) >= dropAfter && !a.queued && a.toldRate == 0 && (l == nil || a.heard && l.free.Load() <= 0 && l.leased == l.confirmed)
		if !idle || !b.drop(a) {
			left = append(left, a)
			continue
		}
		a.gone = true
		a.keep(a.lease.Load())
		b.past[a.id] = append(b.past[a.id], a.old...)
	}
	clear(b.accounts[len(left):])
	b.accounts = left
}
