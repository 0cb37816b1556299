package dataplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"bailiwick/dataplane/internal/profile"
	"bailiwick/dataplane/internal/trace"
)

// newTraces is nil where nobody is to be told.
func (e *Edge) newTraces() (*trace.Tracer, error) {
	c := e.cfg.Traces
	if c.Endpoint == "" {
		if c.Ratio != 0 || len(c.Header) > 0 {
			return nil, errors.New("edge: Traces.Endpoint is required with a ratio or headers: nobody would be told")
		}
		return nil, nil
	}
	var roots *x509.CertPool
	if c.RootsPEM != nil {
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(c.RootsPEM) {
			return nil, errors.New("edge: Traces.RootsPEM holds no certificate")
		}
	}
	return trace.New(trace.Config{Endpoint: c.Endpoint, Ratio: c.Ratio, PerSecond: c.PerSecond, Header: c.Header, Roots: roots, Logger: e.log,
		Edge: trace.Edge{Name: e.self.Node, Region: e.self.Region, Zone: e.self.Zone, Version: e.cfg.Version}})
}

func (e *Edge) runTraces(ctx context.Context) error {
	if e.traces == nil {
		<-ctx.Done()
		return nil
	}
	return e.traces.Run(ctx)
}

// crowds are what comes in crowds, and holds memory while it is there.
func (e *Edge) crowds() []func() int64 {
	return []func() int64{
		func() int64 { n, _ := e.proxy.InFlight(); return n },
		func() int64 { return e.servers.Connections().Open },
	}
}

// servePprof has no limit of time for an answer: a profile takes as long as is asked for.
func (e *Edge) servePprof(ctx context.Context) error {
	if e.pprof == nil {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{Handler: profile.NewHandler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(e.pprof); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve profiles: %w", err)
	}
	return nil
}
