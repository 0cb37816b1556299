package quota

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/policy"
)

const shards = 1024

// Book holds the accounts of an edge. Make one with New; Run must run for anything to be leased.
//
// An account exists only for a subscription that presented a valid key under a plan with a quota or a rate
// limit, and goes when nobody has used it for ten minutes. What stays of it is its leases, a hundred bytes a
// period that has not ended: the ledger counts an epoch's units from its beginning, so the edge must too.
type Book struct {
	cfg  Config
	seed maphash.Seed
	born time.Time
	even atomic.Int64 // share of a rate limit where the leader named none, in millionths

	shard [shards]shard

	parked    atomic.Int64
	reachable atomic.Bool // the last exchange was answered

	hotMu sync.Mutex // covers hot and fresh
	hot   []*Account // they cannot wait for the next tick
	fresh []*Account // since the last scan
	wake  chan struct{}

	stats counters
	manager
}

// shard is copied when an account comes or goes, so that a request looks one up without a lock.
type shard struct {
	mu sync.Mutex // covers writing of m
	m  atomic.Pointer[map[ID]*Account]
}

// New makes an empty Book.
func New(cfg Config) (*Book, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxParked == 0 {
		cfg.MaxParked = 4096
	}
	if cfg.Beat == nil {
		cfg.Beat = beat.New()
	}
	if cfg.Pending == nil {
		cfg.Pending = func() []Pending { return nil }
	}
	b := &Book{cfg: cfg, seed: maphash.MakeSeed(), born: time.Now(), wake: make(chan struct{}, 1)}
	for i := range b.shard {
		b.shard[i].m.Store(&map[ID]*Account{})
	}
	b.even.Store(millionths)
	b.reachable.Store(true)
	b.past = map[ID][]*lease{}
	return b, nil
}

// Account is the account of a subscription whose key was valid, under the plan that its key names now. It
// allocates only when the account is new.
func (b *Book) Account(id ID, plan *policy.Plan) *Account {
	s := b.shardOf(id)
	a := (*s.m.Load())[id]
	if a == nil {
		a = s.add(b, id, plan)
	}
	a.under(plan)
	return a
}

// Found is an account as whoever found it may keep it for as long as it likes: it holds nothing of one that the book has let go.
type Found struct{ account atomic.Pointer[Account] }

// Found is the account for keeping.
func (a *Account) Found() *Found { return a.found }

// Again is the account that was found before, if it is what Account would find now; else nil. f may be nil.
func (b *Book) Again(f *Found, plan *policy.Plan) *Account {
	if f == nil {
		return nil
	}
	a := f.account.Load()
	if a == nil || a.book != b || a.dropped.Load() {
		return nil
	}
	a.under(plan)
	return a
}

func (a *Account) under(plan *policy.Plan) {
	if old := a.plan.Load(); old != plan && a.plan.CompareAndSwap(old, plan) {
		a.replanned()
	}
}

// replanned says that the quota may have become another: what was known to be used up may not be any more.
func (a *Account) replanned() {
	if l := a.lease.Load(); l != nil {
		l.exhausted.Store(false)
	}
	a.kick()
}

func (s *shard) add(b *Book, id ID, plan *policy.Plan) *Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.m.Load()
	if a := old[id]; a != nil {
		return a
	}
	a := &Account{id: id, book: b, found: &Found{}}
	a.found.account.Store(a)
	a.plan.Store(plan)
	a.used = time.Now()
	m := make(map[ID]*Account, len(old)+1)
	for id, a := range old {
		m[id] = a
	}
	m[id] = a
	s.m.Store(&m)
	b.hotMu.Lock()
	b.fresh = append(b.fresh, a)
	b.hotMu.Unlock()
	return a
}

// drop lets an account go unless somebody waits in it.
func (b *Book) drop(a *Account) bool {
	s := b.shardOf(a.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting.Len() > 0 {
		return false
	}
	a.dropped.Store(true)
	a.found.account.Store(nil)
	old := *s.m.Load()
	m := make(map[ID]*Account, len(old))
	for id, other := range old {
		if other != a {
			m[id] = other
		}
	}
	s.m.Store(&m)
	return true
}

func (b *Book) shardOf(id ID) *shard {
	return &b.shard[(maphash.String(b.seed, id.Customer)^maphash.String(b.seed, id.Subscription)*31)%shards]
}

// all calls f with every account.
func (b *Book) all(f func(a *Account)) {
	for i := range b.shard {
		m := *b.shard[i].m.Load()
		if len(m) == 0 { // most are, and beginning to look through a map costs more than one account
			continue
		}
		for _, a := range m {
			f(a)
		}
	}
}

// kick puts the account into the next exchange.
func (a *Account) kick() {
	if !a.hot.CompareAndSwap(false, true) {
		return
	}
	b := a.book
	b.hotMu.Lock()
	b.hot = append(b.hot, a)
	b.hotMu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
