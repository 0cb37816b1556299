package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/telemetry"
)

// serve opens the doors until ctx ends, then drains them: no new requests, and some time for those under way.
func (e *Edge) serve(ctx context.Context) error {
	e.awaitCertificates(ctx)
	if err := e.openDoors(); err != nil {
		return err
	}
	e.servers.HTTPS.Linger, e.servers.HTTP.Linger = lingerTime, lingerTime
	ended := make(chan error, 3)
	var wg sync.WaitGroup
	run := func(what string, serve func() error) {
		wg.Go(func() {
			if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				ended <- fmt.Errorf("serve %s: %w", what, err)
			}
		})
	}
	run("HTTPS", func() error { return e.servers.HTTPS.Serve(e.https) })
	if e.http != nil {
		run("HTTP", func() error { return e.servers.HTTP.Serve(e.http) })
	}
	run("HTTP/3", func() error { return e.servers.H3.Serve(e.h3) })
	e.serving.Store(true)
	e.opened.Store(true)
	close(e.open)
	if e.cfg.Serving != nil {
		e.cfg.Serving()
	}
	e.log.Info("serving", "https", e.https.Addr().String(), "region", e.self.Region, "zone", e.self.Zone)
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	e.serving.Store(false)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.grace())
	defer cancel()
	if e.taken.Load() && e.offer.Lets() && e.cfg.Linger > 0 {
		if e.settle(grace); !e.still.on.Load() {
			e.endDoors(grace)
			wg.Wait()
			e.ups.CloseIdle()
		}
		return err
	}
	e.before.hurry(e.grace())
	var drain sync.WaitGroup
	for _, s := range []*proxy.Door{e.servers.HTTPS, e.servers.HTTP} {
		drain.Go(func() {
			s.End(grace)
		})
	}
	drain.Go(func() { e.servers.H3.End(grace) })
	drain.Go(func() { e.inbound.Drain(grace) }) // what other regions' clients have asked has the same time
	drain.Wait()
	e.h3.Close()
	wg.Wait()
	e.ups.CloseIdle()
	return err
}

// ready is nil when the edge takes traffic.
func (e *Edge) ready() error {
	switch {
	case e.tables.Load() == nil:
		return errors.New("no table yet: no control node has sent one and none is on disk")
	case !e.serving.Load():
		return errors.New("the doors are shut")
	}
	return e.spool.Healthy()
}

func (e *Edge) serveAdmin(ctx context.Context) error {
	if e.admin == nil {
		<-ctx.Done()
		return nil
	}
	registry := telemetry.NewRegistry()
	telemetry.Register(registry, e.metrics()...)
	mux := telemetry.NewAdminMux(registry, e.checks, e.extra)
	e.debug(mux)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(e.admin); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}

func (e *Edge) checks(context.Context) []telemetry.Check {
	table := telemetry.Check{Name: "table"}
	if t := e.tables.Load(); t == nil {
		table.Err = errors.New("none yet: no control node has sent one and none is on disk")
	} else {
		table.Detail = fmt.Sprintf("catalog %s, zone %s", t.Catalog(), t.Zone())
	}
	doors := telemetry.Check{Name: "doors"}
	if !e.serving.Load() {
		doors.Err = errors.New("shut")
	}
	usage := telemetry.Check{Name: "spool", Err: e.spool.Healthy()}
	counted := telemetry.Check{Name: "usage", Degraded: e.ship.Stuck()} // what is served meanwhile is on disk: no reason to stop serving
	border := telemetry.Check{Name: "border"}
	if n := e.sentinel.Violations(); n > 0 {
		border.Degraded = fmt.Errorf("the sentinel stopped %d times what the first check let pass; take this edge out of service", n)
	}
	proved := telemetry.Check{Name: "evidence"}
	if _, refused := e.witness.Held(); refused != nil {
		proved.Degraded = fmt.Errorf("the newest head of the zone's log is not taken: %w", refused)
	}
	return []telemetry.Check{table, doors, usage, counted, border, proved}
}

// extra are lines of readyz?verbose that say more than pass or fail.
func (e *Edge) extra(context.Context) []string {
	s := e.status()
	stats, detail := e.spool.Stats(), e.detail.Stats()
	return []string{
		"serves_alone_until " + time.Unix(s.ServesAloneUntilUnix, 0).UTC().Format(time.RFC3339),
		"certificate " + s.CertificateSerial + " expires " + time.Unix(s.CertificateExpiresUnix, 0).UTC().Format(time.RFC3339),
		fmt.Sprintf("control connected=%v", e.follow.Stats().Connected.Load() == 1),
		fmt.Sprintf("usage epoch=%d seq=%d unacked=%d", stats.Epoch, stats.Seq, stats.Unacked),
		fmt.Sprintf("process %d", os.Getpid()),
		fmt.Sprintf("before processes=%d connections=%d", e.before.processes(), e.before.connections()),
		fmt.Sprintf("detail waiting=%d lost_rows=%d disk=%d", detail.Pieces, detail.RowsLost, detail.Disk),
	}
}
