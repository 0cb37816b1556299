package quota_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/quota"
)

// ledger is a small reference of the other side of the protocol: what the ledger's machine and its leader
// decide, without raft.
type ledger struct {
	mu       sync.Mutex
	period   int64
	end      int64
	limits   map[quota.ID]int64
	accounts map[account]map[holderID]*holder
	length   int64         // of a period, s; 0: the one of period and end
	skew     time.Duration // of the leader's clock
	sequence map[holderID]uint64
	heard    map[string]time.Time // edges
	starving map[quota.ID]starver
	soft     bool
	none     bool
	generous bool // all that is wanted
	lingers  bool // units of a process before count twice until both epochs have been heard of, and rows of them may come before either
	sharing  bool // rate limits are shared by demand
	demands  map[string]demand
	asks     int
	last     map[string]*quota.Request
	broken   func(string, ...any)
}

type demand struct {
	milli int64
	at    time.Time
}

// share is what package quota of the control plane does: a floor of a tenth of an even share for every live
// edge, the rest by demand.
func (l *ledger) share(edge string, live int64) int64 {
	floor := 100_000 / live
	var sum int64
	for _, d := range l.demands {
		if time.Since(d.at) <= 3*time.Second {
			sum += d.milli
		}
	}
	if sum == 0 {
		return 1_000_000 / live
	}
	return floor + (1_000_000-floor*live)*l.demands[edge].milli/sum
}

// account is one quota of one period.
type account struct {
	quota.ID
	period int64
}

type starver struct {
	edge string
	at   time.Time
}

type holderID struct {
	edge  string
	epoch uint64
}

// holder counts units. applied is what blocks have brought; said is what the edge says of itself.
type holder struct{ leased, applied, said, inFlight int64 }

func newLedger(limit int64, ids ...quota.ID) *ledger {
	l := &ledger{period: 1000, limits: map[quota.ID]int64{}, accounts: map[account]map[holderID]*holder{}, sequence: map[holderID]uint64{},
		heard: map[string]time.Time{}, starving: map[quota.ID]starver{}, demands: map[string]demand{}, last: map[string]*quota.Request{}, broken: func(string, ...any) {}}
	for _, id := range ids {
		l.limits[id] = limit
	}
	return l
}

func (l *ledger) counted(id account) (n int64) {
	for _, h := range l.accounts[id] {
		n += max(h.leased, h.applied)
	}
	return n
}

func (l *ledger) used(id account) (n int64) {
	for _, h := range l.accounts[id] {
		n += h.applied
	}
	return n
}

func (l *ledger) holder(id account, at holderID) *holder {
	if l.accounts[id] == nil {
		l.accounts[id] = map[holderID]*holder{}
	}
	h := l.accounts[id][at]
	if h == nil {
		h = &holder{}
		l.accounts[id][at] = h
	}
	return h
}

// peek is what the ledger has of a holder now.
func (l *ledger) peek(id quota.ID, edge string) holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.holder(account{id, l.period}, holderID{edge, 7})
}

// asked is how many asks came so far.
func (l *ledger) asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asks
}

// apply is a block: all that the epoch has spent so far.
func (l *ledger) apply(id account, edge string, epoch uint64, spent int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holder(id, holderID{edge, epoch})
	h.applied = max(h.applied, spent)
	if h.applied > h.leased && !l.soft && !l.lingers {
		l.broken("edge %s epoch %d spent %d of %d leased", edge, epoch, h.applied, h.leased)
	}
}

var errOld = errors.New("an older request")

func (l *ledger) exchange(edge string, r *quota.Request) (*quota.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	me := holderID{edge, r.Epoch}
	if r.Sequence <= l.sequence[me] {
		return nil, errOld
	}
	now := time.Now()
	if l.length > 0 {
		unix := now.Add(l.skew).Unix()
		l.period = unix - unix%l.length
		l.end = l.period + l.length
	}
	l.sequence[me], l.heard[edge], l.last[edge] = r.Sequence, now, r
	l.asks += len(r.Asks)
	pending := map[uint64]bool{}
	for _, p := range r.Pending {
		pending[p.Epoch] = true
	}
	for _, holders := range l.accounts {
		for at, h := range holders {
			if at.edge == edge && at.epoch < r.Epoch && !pending[at.epoch] {
				h.leased = h.applied
			}
		}
	}
	out := &quota.Response{Sequence: r.Sequence}
	for _, at := range l.heard {
		if now.Sub(at) < 3*time.Second {
			out.LiveEdges++
		}
	}
	for _, k := range r.Asks {
		id := account{k.ID, l.period}
		if k.Period != l.period && k.Period != 0 {
			was := l.holder(account{k.ID, k.Period}, me)
			was.leased = min(was.leased, max(k.Ceiling, was.applied))
		}
		h := l.holder(id, me)
		if k.Period == l.period {
			h.leased = min(h.leased, max(k.Ceiling, h.applied))
			h.said, h.inFlight = k.Spent, k.InFlight
		}
		s := quota.State{ID: k.ID, Period: l.period, PeriodEnd: l.end, Limit: l.limits[k.ID], Leases: !l.soft && !l.none, None: l.none}
		if l.sharing {
			l.demands[edge] = demand{k.Demand, now}
			s.Share = l.share(edge, out.LiveEdges)
		}
		if s.Leases {
			if k.Period == l.period {
				h.leased = max(h.leased, h.applied, k.Ceiling) // taken without a lease, while it was only watched
			}
			available := max(0, s.Limit-l.counted(id))
			if k.Want > 0 && available > 0 {
				part := max(1, available/(2*out.LiveEdges))
				if l.generous {
					part = available
				}
				h.leased += min(k.Want, part)
			}
			available = max(0, s.Limit-l.counted(id))
			idle := int64(0) // others may give it back
			for at, o := range l.accounts[id] {
				if at != me {
					idle += max(0, o.leased-max(o.applied, o.said))
				}
			}
			if k.Starving && h.leased-k.Spent-k.InFlight <= 0 {
				l.starving[k.ID] = starver{edge, now}
			}
			if w := l.starving[k.ID]; available == 0 && w.edge != edge && now.Sub(w.at) < starvingFor {
				s.Recall = true
			}
			s.Exhausted = available == 0 && idle == 0
		}
		s.Leased, s.Used, s.UsedHere = h.leased, l.used(id), h.applied
		out.States = append(out.States, s)
		if n := l.counted(id); n > s.Limit && !l.soft && !l.lingers {
			l.broken("%v: leased or spent %d of %d", k.ID, n, s.Limit)
		}
	}
	for id, w := range l.starving {
		if h := l.holder(account{id, l.period}, me); w.edge != edge && now.Sub(w.at) < starvingFor && h.leased > max(h.applied, h.said) &&
			!slices.ContainsFunc(r.Asks, func(k quota.Ask) bool { return k.ID == id }) {
			out.Recalled = append(out.Recalled, id)
		}
	}
	return out, nil
}

// starvingFor is how long the lessor recalls.
const starvingFor = 500 * time.Millisecond

// link is an edge's way to the ledger.
type link struct {
	edge   string
	ledger *ledger
	rnd    *rand.Rand // nil: a perfect one

	mu    sync.Mutex
	cut   bool
	loss  float64 // of each direction
	twice float64 // a request is delivered once more, later
	delay time.Duration
	wg    sync.WaitGroup
	calls int
}

var errCut = errors.New("nobody answers")

func (l *link) Exchange(ctx context.Context, r *quota.Request) (*quota.Response, error) {
	l.mu.Lock()
	l.calls++
	cut, delay := l.cut, l.delay
	var lost, lostBack, twice bool
	var back, later time.Duration
	if l.rnd != nil {
		lost, lostBack, twice = l.rnd.Float64() < l.loss, l.rnd.Float64() < l.loss, l.rnd.Float64() < l.twice
		delay += time.Duration(l.rnd.Int64N(int64(20 * time.Millisecond)))
		if l.rnd.IntN(20) == 0 {
			delay += time.Duration(l.rnd.Int64N(int64(2 * time.Second))) // it comes after its successor
		}
		back, later = time.Duration(l.rnd.Int64N(int64(20*time.Millisecond))), time.Duration(l.rnd.Int64N(int64(3*time.Second)))
	}
	l.mu.Unlock()
	if cut {
		return nil, errCut
	}
	type answer struct {
		r   *quota.Response
		err error
	}
	got := make(chan answer, 1)
	if !lost {
		l.wg.Go(func() {
			time.Sleep(delay)
			response, err := l.ledger.exchange(l.edge, r)
			if lostBack {
				return
			}
			time.Sleep(back)
			got <- answer{response, err}
		})
	}
	if twice {
		l.wg.Go(func() {
			time.Sleep(later)
			l.ledger.exchange(l.edge, r)
		})
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-got:
		return a.r, a.err
	}
}

func (l *link) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}
