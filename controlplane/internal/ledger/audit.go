package ledger

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// AuditConfig says how the states of a group's members are compared.
type AuditConfig struct {
	Ledger  *Ledger         // required
	Leader  Leader          // required
	Node    string          // required: this one
	Members func() []string // required: all voters of the group now, this node included
	// Ask asks another member for its hash of a checkpoint; ok is false while it has none. Required.
	Ask func(ctx context.Context, node string, index uint64) (sum [32]byte, ok bool, err error)

	Every    time.Duration // between checkpoints; 0: 10 min
	Entries  uint64        // or as many entries, whichever comes first; 0: 100,000
	Patience time.Duration // for the hashes of all members; 0: 2 min
	Look     time.Duration // between looks at what is due and who has answered; 0: 1 s
	Logger   *slog.Logger
}

// Validate says what is missing.
func (c AuditConfig) Validate() error {
	switch {
	case c.Ledger == nil || c.Leader == nil || c.Ask == nil:
		return errors.New("ledger audit: Ledger, Leader and Ask are required")
	case c.Node == "" || c.Members == nil:
		return errors.New("ledger audit: Node and Members are required")
	case c.Every < 0 || c.Patience < 0 || c.Look < 0:
		return errors.New("ledger audit: a duration is negative")
	}
	return nil
}

// Audit compares the states of a group's members while this node leads it. It
// decides only what a majority of all members says, answering or not; a group of
// which no majority agrees is an alarm, and stops nobody.
type Audit struct {
	cfg AuditConfig

	Agreed, Outvoted, Split atomic.Int64 // checkpoints: all alike; some outvoted; no majority
}

// NewAudit returns an Audit that works while Run does.
func NewAudit(cfg AuditConfig) (*Audit, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.Every, 10*time.Minute)
	def(&cfg.Patience, 2*time.Minute)
	def(&cfg.Look, time.Second)
	if cfg.Entries == 0 {
		cfg.Entries = 100_000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Audit{cfg: cfg}, nil
}

// Run works whenever this node leads, until ctx ends.
func (a *Audit) Run(ctx context.Context) error {
	return a.cfg.Leader.RunLeader(ctx, func(ctx context.Context) {
		tick := time.NewTicker(a.cfg.Look)
		defer tick.Stop()
		last, at := time.Now(), a.cfg.Ledger.cfg.Machine.Applied()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if time.Since(last) < a.cfg.Every && a.cfg.Ledger.cfg.Machine.Applied() < at+a.cfg.Entries {
				continue
			}
			last, at = time.Now(), a.cfg.Ledger.cfg.Machine.Applied()
			if err := a.Once(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Logger.Warn("the ledger's state is not compared now, will retry", "error", err)
			}
		}
	})
}

// Once takes one checkpoint, waits for the members' hashes and judges.
func (a *Audit) Once(ctx context.Context) error {
	l := a.cfg.Ledger
	out, err := l.propose(ctx, encodeCheckpoint(time.Now()))
	if err != nil {
		return err
	}
	if len(out) < 2 || out[0] != resultVersion {
		return errors.New("the ledger's answer is of an unknown version")
	}
	r := reader{b: out[1:]}
	index := r.uvarint()
	if r.err != nil {
		return r.err
	}
	members := a.cfg.Members()
	sums := a.gather(ctx, index, members)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	sum, outliers, v := judgeSums(sums, len(members))
	switch v {
	case allAlike:
		a.Agreed.Add(1)
	case outvoted:
		a.Outvoted.Add(1)
		a.cfg.Logger.Error("ledgers differ: a majority has one state, these nodes have another and will stop", "index", index, "nodes", outliers)
		_, err = l.propose(ctx, encodeVerdict(index, sum))
	case split:
		a.Split.Add(1)
		a.cfg.Logger.Error("ledgers differ and no majority has one state: nobody is stopped; compare their disks and memory", "index", index, "nodes", outliers)
	case tooFew:
		a.cfg.Logger.Info("too few nodes have hashed the ledger to compare", "index", index, "hashed", len(sums))
	}
	return err
}

// gather asks until all have answered or patience is over.
func (a *Audit) gather(ctx context.Context, index uint64, members []string) map[string][32]byte {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Patience)
	defer cancel()
	var mu sync.Mutex // covers sums
	sums := make(map[string][32]byte)
	for {
		var wg sync.WaitGroup
		for _, node := range members {
			if _, has := sums[node]; has {
				continue
			}
			wg.Go(func() {
				var sum [32]byte
				var ok bool
				if node == a.cfg.Node {
					_, sum, ok = a.cfg.Ledger.cfg.Machine.CheckpointSum(index)
				} else {
					sum, ok, _ = a.cfg.Ask(ctx, node, index) // one that is away is asked again
				}
				if ok {
					mu.Lock()
					defer mu.Unlock()
					sums[node] = sum
				}
			})
		}
		wg.Wait()
		if len(sums) == len(members) {
			return sums
		}
		select {
		case <-ctx.Done():
			return sums
		case <-time.After(a.cfg.Look):
		}
	}
}

const (
	tooFew = iota
	allAlike
	outvoted
	split
)

// judgeSums decides by a majority of all members: what fewer say could be the
// error of those few. outliers are in the order of their names.
func judgeSums(sums map[string][32]byte, members int) (sum [32]byte, outliers []string, verdict int) {
	count := make(map[[32]byte]int)
	for _, s := range sums {
		count[s]++
	}
	majority := false
	for s, n := range count {
		if 2*n > members {
			sum, majority = s, true
		}
	}
	for node, s := range sums {
		if !majority && len(count) > 1 || majority && s != sum {
			outliers = append(outliers, node)
		}
	}
	slices.Sort(outliers)
	switch {
	case majority && len(outliers) == 0:
		return sum, nil, allAlike
	case majority:
		return sum, outliers, outvoted
	case len(count) > 1:
		return sum, outliers, split
	}
	return sum, nil, tooFew
}
