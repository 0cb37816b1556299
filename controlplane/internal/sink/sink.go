// Package sink owns the way of counted usage out of the ledger to other systems:
// the contract of a sink, and the pump that feeds each from the ledger's outbox
// while this node leads the ledger's group.
//
// It never drops a block in silence: what a sink did not take within the outbox's
// budget is recorded with the sink in the ledger, and logged here. It keeps
// nothing on disk: positions are in the ledger, or with the sink's data. One Pump
// runs once; a Sink's methods are called by one goroutine at a time.
package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"bailiwick/controlplane/internal/ledger"
)

// Sink takes the zone's blocks in the order in which they were counted.
//
// It either stores its position atomically with the data, and then nothing is in
// it twice; or it declares at-least-once, and whoever reads it must drop
// repetitions by (edge, epoch, seq), which name a block for ever.
type Sink interface {
	// Name is what the sink's position is kept under. It never changes.
	Name() string
	// Position is that of the last block that the sink has, stored with the data; exact is false for a sink that
	// keeps none, which is at-least-once: the ledger's own record is used, and may be older than the truth.
	Position(ctx context.Context) (position uint64, exact bool, err error)
	// Commit stores blocks that follow each other. When it returns nil they are there for good; after an error they
	// are offered again, from the position then.
	Commit(ctx context.Context, blocks []ledger.OutBlock) error
}

// Ledger is what the pump needs of *ledger.Ledger.
type Ledger interface {
	View(ctx context.Context) (*ledger.View, error)
	RegisterSinks(ctx context.Context, budget int64, add, forget []string) error
	Sunk(ctx context.Context, name string, position uint64) error
}

// Config describes a Pump.
type Config struct {
	Ledger Ledger        // required
	Leader ledger.Leader // required
	Sinks  []Sink        // each is registered with the ledger when this node begins to lead
	Forget []string      // names of sinks that blocks are no longer kept for

	Budget  int64         // bytes of the outbox; 0: 1 GiB
	Batch   int           // bytes of one Commit, about; 0: 1 MiB
	Poll    time.Duration // between looks at an empty outbox; 0: 250 ms
	Backoff time.Duration // after a failed Commit, doubled up to 30 s; 0: 1 s
	Logger  *slog.Logger
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Ledger == nil || c.Leader == nil {
		return errors.New("sink pump: Ledger and Leader are required")
	}
	names := make(map[string]bool)
	for _, s := range c.Sinks {
		if names[s.Name()] {
			return fmt.Errorf("sink pump: two sinks are called %s", s.Name())
		}
		names[s.Name()] = true
	}
	for _, name := range c.Forget {
		if names[name] {
			return fmt.Errorf("sink pump: sink %s is both fed and forgotten", name)
		}
	}
	if c.Budget < 0 || c.Batch < 0 || c.Poll < 0 || c.Backoff < 0 {
		return errors.New("sink pump: a limit is negative")
	}
	return nil
}

// Pump feeds sinks while this node leads.
type Pump struct{ cfg Config }

// New returns a Pump that works while Run does.
func New(cfg Config) (*Pump, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Budget == 0 {
		cfg.Budget = ledger.DefaultOutbox
	}
	if cfg.Batch == 0 {
		cfg.Batch = 1 << 20
	}
	if cfg.Poll == 0 {
		cfg.Poll = 250 * time.Millisecond
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Pump{cfg}, nil
}

// Run works whenever this node leads, until ctx ends. Without sinks it does nothing.
func (p *Pump) Run(ctx context.Context) error {
	if len(p.cfg.Sinks) == 0 && len(p.cfg.Forget) == 0 {
		<-ctx.Done()
		return nil
	}
	return p.cfg.Leader.RunLeader(ctx, p.lead)
}

func (p *Pump) lead(ctx context.Context) {
	var names []string
	for _, s := range p.cfg.Sinks {
		names = append(names, s.Name())
	}
	p.insist(ctx, p.cfg.Logger, "sinks are not registered", func() error {
		return p.cfg.Ledger.RegisterSinks(ctx, p.cfg.Budget, names, p.cfg.Forget)
	})
	var wg sync.WaitGroup
	for _, s := range p.cfg.Sinks {
		wg.Go(func() { p.feed(ctx, s) })
	}
	wg.Wait()
	<-ctx.Done()
}

// insist tries until it works or ctx ends.
func (p *Pump) insist(ctx context.Context, log *slog.Logger, what string, try func() error) bool {
	for wait := p.cfg.Backoff; ; wait = min(2*wait, 30*time.Second) {
		err := try()
		if err == nil || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		log.Warn(what+", will retry", "error", err, "after", wait)
		if !pause(ctx, wait) {
			return false
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// feed moves blocks to one sink. After a failure it asks the sink anew how far it is: what failed may have been
// stored all the same.
func (p *Pump) feed(ctx context.Context, s Sink) {
	log := p.cfg.Logger.With("sink", s.Name())
	wait := p.cfg.Backoff
	for ctx.Err() == nil {
		var at uint64
		ok := p.insist(ctx, log, "the sink's position is not known", func() (err error) {
			at, err = p.position(ctx, s)
			return err
		})
		for ok {
			next, err := p.step(ctx, s, at, log)
			switch {
			case err != nil:
				if ctx.Err() == nil {
					log.Warn("usage is not stored in the sink, will retry", "error", err, "after", wait)
				}
				pause(ctx, wait)
				wait, ok = min(2*wait, 30*time.Second), false
			case next == at:
				ok = pause(ctx, p.cfg.Poll)
			default:
				at, wait = next, p.cfg.Backoff
				ok = p.insist(ctx, log, "the sink's position is not committed", func() error { return p.cfg.Ledger.Sunk(ctx, s.Name(), at) })
			}
		}
	}
}

func (p *Pump) position(ctx context.Context, s Sink) (uint64, error) {
	at, exact, err := s.Position(ctx)
	if err != nil || exact {
		return at, err
	}
	v, err := p.cfg.Ledger.View(ctx)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	sinks, err := v.Sinks(ctx)
	for _, known := range sinks {
		if known.Name == s.Name() {
			return known.Position, err
		}
	}
	return 0, errors.Join(err, errors.New("the ledger does not know it"))
}

// step moves one batch and says where the sink is then.
func (p *Pump) step(ctx context.Context, s Sink, at uint64, log *slog.Logger) (uint64, error) {
	v, err := p.cfg.Ledger.View(ctx)
	if err != nil {
		return at, err
	}
	blocks, err := v.Outbox(ctx, at, p.cfg.Batch)
	v.Close()
	if err != nil || len(blocks) == 0 {
		return at, err
	}
	if first := blocks[0].Position; first != at+1 {
		log.Error("the sink fell behind: blocks are gone from the ledger's outbox", "from", at+1, "to", first-1)
	}
	if err := s.Commit(ctx, blocks); err != nil {
		return at, err
	}
	return blocks[len(blocks)-1].Position, nil
}
