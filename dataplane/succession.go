package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/accesslog"
	"bailiwick/dataplane/internal/cache"
	"bailiwick/dataplane/internal/handover"
	"bailiwick/dataplane/internal/upstream"
	"bailiwick/shared/lifecycle"
)

const (
	// drainTime is how long requests under way may take when the edge stops. When another process takes its place new connections
	// wait for that one meanwhile, so what takes longer than settleTime goes on beside it (lingering.go). Where it may not, all has
	// takeoverTime.
	drainTime    = 10 * time.Second
	takeoverTime = 3 * time.Second
	settleTime   = 250 * time.Millisecond

	// brokenTime is how long the process before has, behind the time in which it ends, for what it breaks off: to be told, and counted.
	// Its doors take twice two seconds at most.
	brokenTime = 5 * time.Second

	// lingerTime is how long a client may still ask on a connection that is about to be closed.
	lingerTime = 100 * time.Millisecond

	succeedTime = time.Minute     // for the process before to end all that it does; it ends itself after 45 s
	freedTime   = 5 * time.Second // for the system to let go of an ended process's locks
)

// succeed opens the book of sockets, and has the configuration judged. When this process is to take another's place it has all
// sockets of that one when it returns, and the other has let go of all else.
func (e *Edge) succeed(ctx context.Context) error {
	e.sockets = &handover.Sockets{}
	if len(e.cfg.Inherit) > 0 {
		var names []string
		var files []*os.File
		for _, in := range e.cfg.Inherit {
			names, files = append(names, in.Name), append(files, in.File)
		}
		e.sockets = handover.NewSockets(names, files)
	}
	run := filepath.Join(e.cfg.Dir, "run")
	e.offer = handover.NewOffer(run, "bailiwick-edge "+e.cfg.Version, e.sockets)
	var before *handover.Predecessor
	if e.cfg.Takeover {
		var err error
		if before, err = handover.Ask(ctx, run, e.sockets); err != nil {
			return err
		}
	}
	if err := e.judge(); err != nil {
		if before != nil {
			before.Stay()
			e.sockets.Forget()
			err = fmt.Errorf("%w; %s serves on", err, before.Program)
		}
		return err
	}
	if before == nil {
		return nil
	}
	began := time.Now()
	goesOn, err := before.Succeed(ctx, succeedTime)
	if err != nil {
		return err
	}
	e.took, e.before.conn = true, goesOn
	err = handover.Freed(ctx, freedTime, filepath.Join(run, "lock"), filepath.Join(e.cfg.Dir, "spool", "lock"))
	e.log.Info("taking another process's place", "from", before.Program, "waited_for", time.Since(began))
	return err
}

// judge makes all that rests on the configuration alone. Who has told another process to end has no way back: whatever may fail
// and needs nothing that the other holds fails before.
func (e *Edge) judge() (err error) {
	if e.allow, err = upstream.ParseAllow(e.cfg.UpstreamAllow); err != nil {
		return err
	}
	if e.foreign, err = upstream.ParseAllow(e.cfg.UpstreamAllowForeign); err != nil {
		return err
	}
	if e.cfg.AllowLoopbackUpstreams {
		e.allow, e.foreign = append(e.allow, upstream.Loopback()...), append(e.foreign, upstream.Loopback()...)
	}
	if e.tls, err = e.newTLS(); err != nil {
		return err
	}
	if e.cache, err = cache.New(e.cfg.CacheBytes); err != nil {
		return err
	}
	if e.cfg.AccessLog != "" {
		if e.access, err = accesslog.New(accesslog.Config{Path: e.cfg.AccessLog, Sample: e.cfg.AccessLogSample, MaxBytes: e.cfg.AccessLogBytes, Logger: e.log}); err != nil {
			return err
		}
	}
	if e.traces, err = e.newTraces(); err != nil {
		return err
	}
	if err = e.newDNS(); err != nil {
		return err
	}
	for _, s := range []struct{ network, name, address string }{{"tcp", "https", e.cfg.HTTPS}, {"udp", "h3", e.cfg.HTTPS}, {"tcp", "http", e.cfg.HTTP}, {"tcp", "relay", e.cfg.Relay},
		{"tcp", "admin", e.cfg.Admin}, {"tcp", "pprof", e.cfg.Pprof}, {"udp", "dns-udp", e.cfg.DNS.Listen}, {"tcp", "dns-tcp", e.cfg.DNS.Listen}} {
		if s.address == "" {
			continue
		}
		if err := e.sockets.Check(s.network, s.name, s.address); err != nil {
			return fmt.Errorf("listen as %s: %w", s.name, err)
		}
	}
	return nil
}

// awaitSuccessor ends this process in favour of another.
func (e *Edge) awaitSuccessor(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.open:
	}
	err := e.offer.Run(ctx)
	if errors.Is(err, handover.ErrTaken) {
		e.taken.Store(true)
	}
	return err
}

// grace is how long requests under way have when the doors shut.
func (e *Edge) grace() time.Duration {
	if e.taken.Load() {
		return takeoverTime
	}
	return drainTime
}

// counted makes parts count themselves while they run.
func (e *Edge) counted(parts []lifecycle.Part) *atomic.Int64 {
	var alive atomic.Int64
	for i := range parts {
		run := parts[i].Run
		parts[i].Run = func(ctx context.Context) error {
			alive.Add(1)
			defer alive.Add(-1)
			return run(ctx)
		}
	}
	return &alive
}

// giveUp lets go of all that has one owner, and tells the successor. If a part was left behind only the end of this process
// proves that nothing of it goes on: then nothing is said, and the successor waits for the locks. Where requests go on it returns
// when they have ended.
func (e *Edge) giveUp(ctx context.Context, alive *atomic.Int64) (err error) {
	if e.still.on.Load() {
		e.meter.Leave()
		defer func() { e.still.end(e, err) }()
	}
	if n := alive.Load(); n > 0 {
		return fmt.Errorf("hand over to another process: %d parts have not ended", n)
	}
	if err := e.spool.Close(); err != nil {
		return fmt.Errorf("hand over to another process: %w", err)
	}
	over := e.run.End
	if e.staying() {
		over = e.run.Leave
	}
	if err := over(); err != nil {
		return fmt.Errorf("hand over to another process: %w", err)
	}
	if e.still.on.Load() {
		return e.goOn(ctx)
	}
	return e.offer.Over()
}
