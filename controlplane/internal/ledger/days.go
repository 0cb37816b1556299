package ledger

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Leader runs work while this node leads the ledger's group; *raftgroup.Node is one.
type Leader interface {
	RunLeader(ctx context.Context, work func(ctx context.Context)) error
}

// DaysConfig says when days are closed and folded.
type DaysConfig struct {
	Ledger *Ledger // required
	Leader Leader  // required
	// Edges names those that must have told of a day before it is complete. Required.
	Edges func(ctx context.Context, v *View) ([]string, error)

	Grace     time.Duration // after a day's end, by the leader's clock and an edge's, then it is closed whoever else is silent; 0: 12 h
	FoldAfter time.Duration // after a closed day's end; 0: 35 days
	Every     time.Duration // between looks; 0: 1 min
	Now       func() time.Time
	Logger    *slog.Logger
}

// Validate says what is missing.
func (c DaysConfig) Validate() error {
	switch {
	case c.Ledger == nil || c.Leader == nil || c.Edges == nil:
		return errors.New("ledger days: Ledger, Leader and Edges are required")
	case c.Grace < 0 || c.FoldAfter < 0 || c.Every < 0:
		return errors.New("ledger days: a duration is negative")
	}
	return nil
}

// Days closes each UTC day once all its usage is in the ledger or grace is over,
// and folds closed days when they are old. Only the group's leader does so; what
// time it is, it says in the command. It keeps nothing: a new leader goes on from
// the ledger's own state.
type Days struct{ cfg DaysConfig }

// NewDays returns Days that work while Run does.
func NewDays(cfg DaysConfig) (*Days, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.Grace, 12*time.Hour)
	def(&cfg.FoldAfter, 35*24*time.Hour)
	def(&cfg.Every, time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Days{cfg}, nil
}

// Run works whenever this node leads, until ctx ends.
func (d *Days) Run(ctx context.Context) error {
	return d.cfg.Leader.RunLeader(ctx, func(ctx context.Context) {
		tick := time.NewTicker(d.cfg.Every)
		defer tick.Stop()
		for {
			if err := d.Once(ctx); err != nil && ctx.Err() == nil {
				d.cfg.Logger.Warn("days of the ledger are not closed now, will retry", "error", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

const (
	day = 24 * time.Hour
	// foldCells is how many cells one command folds: some 20 ms of Apply.
	foldCells = 10_000
	// foldPause lets blocks through between two of them.
	foldPause = 50 * time.Millisecond
)

// Once closes and folds what is due now.
func (d *Days) Once(ctx context.Context) error {
	due, old, err := d.due(ctx)
	if err != nil {
		return err
	}
	for _, p := range due {
		if err := d.cfg.Ledger.CloseDay(ctx, p); err != nil {
			return err
		}
		d.cfg.Logger.Info("a day of usage is closed", "day", p.Day.Format(time.DateOnly), "why", p.Why.String(), "waited_for", p.WaitedFor)
	}
	for _, p := range old {
		if err := d.fold(ctx, p.Day); err != nil {
			return err
		}
	}
	return nil
}

// due is which days to close, and which closed ones to fold.
func (d *Days) due(ctx context.Context) (due, old []Period, err error) {
	v, err := d.cfg.Ledger.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer v.Close()
	now := d.cfg.Now()
	closed, err := v.Periods(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range closed {
		if !p.Folded && !now.Before(p.Day.Add(day+d.cfg.FoldAfter)) {
			old = append(old, p)
		}
	}
	var next time.Time
	if n := len(closed); n > 0 {
		next = closed[n-1].Day.Add(day)
	} else if first, any, err := v.FirstUsage(); err != nil || !any {
		return nil, old, err
	} else {
		next = time.Unix(dayOf(first), 0).UTC()
	}
	if now.Before(next.Add(day)) {
		return nil, old, nil
	}
	edges, err := d.cfg.Edges(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	told := make([]time.Time, len(edges))
	for i, edge := range edges {
		ms, err := v.through(ctx, edge)
		if err != nil {
			return nil, nil, err
		}
		told[i] = time.UnixMilli(ms)
	}
	// Closing cannot be undone, so grace is over only when an edge's clock says so too: a leader whose clock is
	// ahead would make all that comes late. When every edge is silent there is nothing to close a day for.
	grace := now
	if len(edges) > 0 {
		ms, err := v.heard(ctx)
		if err != nil {
			return nil, nil, err
		}
		if heard := time.UnixMilli(ms); heard.Before(now) {
			grace = heard
		}
	}
	for ; !now.Before(next.Add(day)); next = next.Add(day) {
		end := next.Add(day)
		p := Period{Day: next, ClosedAt: now, Why: WhyComplete}
		for i, edge := range edges {
			if told[i].Before(end) {
				p.Why, p.WaitedFor = WhyGrace, append(p.WaitedFor, edge)
			}
		}
		if len(edges) == 0 {
			p.Why = WhyGrace // nobody could have told
		}
		if p.Why == WhyGrace && grace.Before(end.Add(d.cfg.Grace)) {
			break
		}
		due = append(due, p)
	}
	return due, old, nil
}

func (d *Days) fold(ctx context.Context, of time.Time) error {
	var sum Folded
	for !sum.Done {
		step, err := d.cfg.Ledger.FoldDay(ctx, of, sum.After, foldCells)
		if err != nil {
			return err
		}
		sum = Folded{step.Done, step.After, sum.Cells + step.Cells, sum.Before + step.Before, sum.Bytes + step.Bytes}
		select {
		case <-time.After(foldPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.cfg.Logger.Info("a closed day of usage is folded", "day", of.Format(time.DateOnly), "cells", sum.Cells, "bytes_before", sum.Before, "bytes", sum.Bytes)
	return nil
}
