package quota

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/policy"
)

// ID names an account: a subscription is unique only within its customer.
type ID struct{ Customer, Subscription string }

// Account is one subscription at this edge. A pointer to it may be kept for the length of a request.
type Account struct {
	// What a request looks at comes first, so that it lies together.
	book    *Book
	lease   atomic.Pointer[lease]       // of the current period; nil until the first answer
	plan    atomic.Pointer[policy.Plan] // of the newest request
	share   atomic.Int64                // of the rate limit, in millionths; 0: not told
	offered atomic.Int64                // requests that came to the rate limit
	wanted  atomic.Int64                // units that requests asked for
	waiters atomic.Int64                // length of waiting, for those who do not hold mu
	dropped atomic.Bool                 // not in the book any more: nobody would answer who waits here; written with mu held
	hot     atomic.Bool                 // on the book's list of accounts that cannot wait for the next tick

	id     ID
	found  *Found       // on its own: what keeps it keeps no account
	needed atomic.Int64 // units that those who wait ask for; written with mu held

	mu      sync.Mutex // covers waiting
	waiting list.List  // of *waiter, first come first served

	exchange // the manager's own
}

// lease is what (this edge, this epoch) may spend in one period of an account. At every moment
// leased = free + taken by requests under way + spent (+ forfeited), so taking is one compare-and-swap on
// free, and lowering leased by what was first taken out of free keeps the promise of a ceiling whatever
// happens in between.
type lease struct {
	period int64
	free   atomic.Int64 // negative by what requests took that need no lease
	spent  atomic.Int64 // Σ units of rows in the spool
	ceded  atomic.Int64 // units that are neither free nor taken any more, by which the manager has to lower leased (Sublet)

	until     atomic.Int64 // unix s; 0: no end
	length    atomic.Int64 // seconds; 0: no end
	exhausted atomic.Bool
	limit     atomic.Int64 // of the whole quota
	used      atomic.Int64 // by all edges, when the leader last said
	usedHere  atomic.Int64 // of it, by this edge and epoch

	leased    int64 // the manager's: the local limit
	confirmed int64 // the manager's: what the ledger has on record
}

func (l *lease) take(units int64) bool {
	for {
		free := l.free.Load()
		if free < units {
			return false
		}
		if l.free.CompareAndSwap(free, free-units) {
			return true
		}
	}
}

// reclaim takes up to units out of free for good; the manager lowers leased by what it returns.
func (l *lease) reclaim(units int64) int64 {
	for {
		free := l.free.Load()
		k := min(units, free)
		if k <= 0 {
			return 0
		}
		if l.free.CompareAndSwap(free, free-k) {
			return k
		}
	}
}

// taken is all that was ever taken and not given back. The manager's: leased is.
func (l *lease) taken() int64 { return l.leased - l.free.Load() }

func (l *lease) ended(unix int64) bool {
	end := l.until.Load()
	return end != 0 && unix >= end
}

// Decision is what asking for units came to.
type Decision uint8

const (
	Taken       Decision = iota // go on; the Ticket must be spent or released
	Wait                        // nothing is leased and nothing is known: Park may settle it
	Exhausted                   // the whole quota is used up
	Unconfirmed                 // nobody said in time
)

// Ticket is units in the hands of one request. The zero Ticket is none.
type Ticket struct {
	account *Account
	lease   *lease
	units   int64
}

// Units are what the ticket holds.
func (t Ticket) Units() int64 { return t.units }

// Period is what the row is stamped with; 0 for the zero Ticket.
func (t Ticket) Period() int64 {
	if t.lease == nil {
		return 0
	}
	return t.lease.period
}

// Spend says that the row with these units is in the spool. A ticket is spent or released once. One whose row
// could not be kept is neither: nobody knows whether the row is on disk, so its units stay taken until the
// epoch ends.
func (t Ticket) Spend() {
	if t.lease != nil {
		t.lease.spent.Add(t.units)
	}
}

// Release gives the units back to the edge: no upstream answered.
func (t Ticket) Release() {
	if t.lease == nil {
		return
	}
	t.lease.free.Add(t.units)
	if t.account.waiters.Load() > 0 {
		t.account.settle(time.Now().Unix())
	}
}

// Part gives back what the request did not come to, and is the ticket for the rest: of none, the zero Ticket.
func (t Ticket) Part(units int64) Ticket {
	back := t.units - max(units, 0)
	if t.lease == nil || back <= 0 {
		return t
	}
	Ticket{t.account, t.lease, back}.Release()
	if t.units -= back; t.units == 0 {
		return Ticket{}
	}
	return t
}

// Split is the ticket for so many of the units, and that for the rest, which stay taken.
func (t Ticket) Split(units int64) (part, rest Ticket) {
	switch units = max(units, 0); {
	case units >= t.units:
		return t, Ticket{}
	case units == 0:
		return Ticket{}, t
	}
	return Ticket{t.account, t.lease, units}, Ticket{t.account, t.lease, t.units - units}
}

// Offer counts a request that comes to the rate limit, and says which share of the limit is this edge's, in
// millionths.
func (a *Account) Offer() int64 {
	a.offered.Add(1)
	if share := a.share.Load(); share > 0 {
		return share
	}
	return a.book.even.Load()
}

// Take asks for units at unix (s). leased false is for plans whose quota is only watched: they are always
// Taken once the first period is known, with no period in the ticket when the one known is over. It does not
// block and does not allocate.
func (a *Account) Take(units int64, leased bool, unix int64) (Ticket, Decision) {
	a.wanted.Add(units)
	t, d := a.try(units, leased, unix)
	if d == Exhausted {
		a.book.stats.exhausted.Add(1)
	}
	return t, d
}

func (a *Account) try(units int64, leased bool, unix int64) (Ticket, Decision) {
	l := a.lease.Load()
	switch {
	case l == nil:
		return Ticket{}, Wait
	case !leased && l.ended(unix): // nobody is held up; whose period it is, the ledger knows by the time of the row
		return Ticket{}, Taken
	case !leased:
		l.free.Add(-units)
	case l.ended(unix):
		return Ticket{}, Wait
	case l.take(units):
	case l.exhausted.Load():
		return Ticket{}, Exhausted
	default:
		return Ticket{}, Wait
	}
	return Ticket{a, l, units}, Taken
}

// Whole is the whole quota as this edge knows it, never its share.
type Whole struct {
	Limit, Rest int64
	Length      int64 // of the period in seconds; 0: it has no end
	End         int64 // unix s; 0: none
}

// Whole is the leader's last word, less what was spent here since and holding units more. false: there is
// no word yet.
func (a *Account) Whole(holding int64) (Whole, bool) {
	l := a.lease.Load()
	if l == nil {
		return Whole{}, false
	}
	limit := l.limit.Load()
	here := max(0, l.spent.Load()-l.usedHere.Load()) + holding
	return Whole{Limit: limit, Rest: min(limit, max(0, limit-l.used.Load()-here)), Length: l.length.Load(), End: l.until.Load()}, true
}
