// Package lessor owns the leader's side of quotas: it takes what edges say of
// their leases and wish for, finds out which plan, limit and period that is
// about, has the ledger decide many of them in one raft entry, and answers. It
// also divides plans' rate limits between the edges of a region.
//
// It never counts a unit: all that keeps a strict quota from being exceeded is
// in the ledger's log, so a leader may be new, and there may for a moment be two.
// What it remembers (who was heard from when, who asks for how much) is lost with
// its term and makes leases smaller or later, never larger than what is left.
// Exchange may be called at once by any number of goroutines; Run is called once.
package lessor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
)

// Ledger is where leases are decided; *ledger.Ledger is one.
type Ledger interface {
	Exchange(ctx context.Context, now int64, heard []string, xs []ledger.Exchange) ([]ledger.Leases, error)
	// Local is this node's copy; on the leader it holds all that was committed.
	Local() (*ledger.View, error)
}

// Config of a Lessor.
type Config struct {
	Zone    string                // required
	Ledger  Ledger                // required
	Catalog func() group.Snapshot // required: this node's copy, for plans
	Store   func() group.Snapshot // required: this node's copy of the zone store, for customers
	// RunLeader calls work while this node leads the ledger's group. Required.
	RunLeader func(ctx context.Context, work func(ctx context.Context)) error
	Logger    *slog.Logger

	Gather time.Duration // exchanges of so long share a raft entry; 0: 2 ms
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Zone == "" || c.Ledger == nil || c.Catalog == nil || c.Store == nil || c.RunLeader == nil {
		return errors.New("lessor: Zone, Ledger, Catalog, Store and RunLeader are required")
	}
	return nil
}

// How long memory lasts. All of it is a leader's, and bounded by edges × accounts they asked for.
const (
	liveFor     = 3 * time.Second        // an edge counts as alive after it was heard from; edges beat every second
	patience    = 30 * time.Second       // an elastic quota waits so long for an edge that holds units
	starvingFor = 500 * time.Millisecond // others are asked to give back after a request for units found none
	maxAsks     = 4096                   // in one raft entry
	maxRecalled = 1024                   // accounts that an edge is told of without having asked about them
)

// ReasonNotLeader is of kind Unavailable: ask the leader.
const ReasonNotLeader = "NOT_LEADER"

// Lessor decides while its node leads.
type Lessor struct {
	cfg   Config
	jobs  chan *job
	zones zoneCache

	mu   sync.Mutex // covers term and what it points to
	term *term      // nil: this node does not lead

	stats Stats
}

// New returns a Lessor that decides while Run does.
func New(cfg Config) (*Lessor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Gather == 0 {
		cfg.Gather = 2 * time.Millisecond
	}
	return &Lessor{cfg: cfg, jobs: make(chan *job)}, nil
}

// Run takes part until ctx ends.
func (l *Lessor) Run(ctx context.Context) error {
	return l.cfg.RunLeader(ctx, func(ctx context.Context) {
		l.setTerm(newTerm(time.Now()))
		defer l.setTerm(nil)
		l.commit(ctx)
	})
}

func (l *Lessor) setTerm(t *term) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term = t
}

func notLeader() error {
	return fault.New(fault.Unavailable, ReasonNotLeader, "this node does not lead the zone ledger")
}

// Exchange answers one edge, as the carrying node authenticated it.
func (l *Lessor) Exchange(ctx context.Context, edge, region string, req *usagev1.ExchangeRequest) (*usagev1.ExchangeResponse, error) {
	if n := len(req.GetAccounts()); n > ledger.MaxAsks {
		return nil, fault.New(fault.Invalid, "TOO_MANY_ACCOUNTS", "exchange of edge %s: it names %d accounts, at most %d are taken: ask in turns", edge, n, ledger.MaxAsks)
	}
	if n := len(req.GetPending()); n > ledger.MaxPending {
		return nil, fault.New(fault.Invalid, "TOO_MANY_EPOCHS", "exchange of edge %s: it names %d unfinished epochs, at most %d are taken", edge, n, ledger.MaxPending)
	}
	now := time.Now()
	x := l.read(edge, req, now)
	l.mu.Lock()
	if l.term == nil {
		l.mu.Unlock()
		return nil, notLeader()
	}
	l.term.hear(edge, region, x.order.Epoch, now)
	l.term.want(x, region, now)
	l.mu.Unlock()

	view, err := l.cfg.Ledger.Local()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	must, err := x.mustCommit(view)
	if err != nil {
		return nil, err
	}
	if must {
		if err := l.decide(ctx, x); err != nil {
			return nil, err
		}
	} else {
		l.stats.Looked.Add(1)
		if err := x.lookUp(view); err != nil {
			return nil, err
		}
	}
	return l.answer(x, region, time.Now())
}
