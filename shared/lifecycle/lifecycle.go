// Package lifecycle owns the order in which the parts of a process start and
// stop, written once as data.
//
// It never restarts a part, recovers a panic or exits the process: a part that
// ends, ends the whole. It keeps nothing on disk. Run may be called at once for
// different sets of parts.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// DefaultStopTimeout is used by a Part that names none.
const DefaultStopTimeout = 10 * time.Second

// Part is long work with its place in the order.
type Part struct {
	Name string
	// Run works until ctx ends and returns only after all it started has
	// returned. Returning early, with an error or without, stops the process.
	Run func(ctx context.Context) error
	// Ready closes when the next part may start. nil: at once.
	Ready <-chan struct{}
	// StopTimeout is how long Run may take to return once its ctx ended.
	// Zero: DefaultStopTimeout.
	StopTimeout time.Duration
	// Why is the reason for this part's place in the order. It is logged when
	// the part misses its deadline, which is when somebody needs it.
	Why string
}

type exit struct {
	i   int
	err error
}

// Run starts the parts in order, each after the one before is ready. When ctx
// ends or any part returns it stops all in reverse order, each with its own
// deadline, and returns the first error: what the part that ended first
// returned, or else the first error met while stopping. It returns nil when ctx
// ended and every part stopped cleanly.
//
// A part sees its ctx end only when its turn comes, not when the outer ctx
// does: the listener drains while the spool below it still works. A part that
// misses its deadline is left behind, named in the error; the process is
// expected to exit then.
func Run(ctx context.Context, log *slog.Logger, parts ...Part) error {
	var (
		exits   = make(chan exit, len(parts)) // buffered: an abandoned part must not block for ever on its way out
		cancels = make([]context.CancelFunc, 0, len(parts))
		ended   = make([]bool, len(parts))
		first   error
	)
	note := func(e exit, stopping bool) {
		ended[e.i] = true
		p := parts[e.i]
		if e.err == nil || stopping && errors.Is(e.err, context.Canceled) {
			if !stopping {
				log.Info("part ended, stopping", "part", p.Name)
			}
			return
		}
		err := fmt.Errorf("run %s: %w", p.Name, e.err)
		if first == nil {
			first = err // returned, so not logged here
		} else {
			log.Error("part stops with an error", "part", p.Name, "error", e.err)
		}
	}

	base := context.WithoutCancel(ctx)
	running := ctx.Err() == nil
	for i := 0; i < len(parts) && running; i++ {
		p := parts[i]
		pctx, cancel := context.WithCancel(base)
		cancels = append(cancels, cancel)
		go func() { exits <- exit{i, p.Run(pctx)} }()
		if p.Ready == nil {
			continue
		}
		select {
		case <-p.Ready:
			log.Debug("part ready", "part", p.Name)
		case e := <-exits:
			note(e, false)
			running = false
		case <-ctx.Done():
			running = false
		}
	}
	if running {
		select {
		case e := <-exits:
			note(e, false)
		case <-ctx.Done():
		}
	}

	for i := len(cancels) - 1; i >= 0; i-- {
		p := parts[i]
		cancels[i]()
		began := time.Now()
		limit := p.StopTimeout
		if limit == 0 {
			limit = DefaultStopTimeout
		}
		deadline := time.NewTimer(limit)
		for late := false; !ended[i] && !late; {
			select {
			case e := <-exits:
				note(e, true)
			case <-deadline.C:
				late = true
				log.Error("part misses its deadline to stop", "part", p.Name, "limit", limit, "why_here", p.Why)
				if first == nil {
					first = fmt.Errorf("stop %s: still running after %v", p.Name, limit)
				}
			}
		}
		deadline.Stop()
		log.Debug("part stopped", "part", p.Name, "after", time.Since(began))
	}
	return first
}
