package failover_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
)

// Whoever looks for why nobody is served finds it: in the log when an upstream goes, and in Reports for as long as its probes
// are bad. Before, a wrong certificate, a refused address and a dead process looked alike.
func TestMonitor_SaysWhyAnUpstreamIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, []string{"http://home"}))
		var out bytes.Buffer // written by the monitor's goroutines, one at a time; read when all rest
		p := &prober{}
		m, err := failover.New(failover.Config{Tables: h, Prober: p, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		defer func() { cancel(); <-done }()
		r := failover.NewRouter(m, start(t, &leader{}, h), "eu-west")
		rest := func() failover.Report {
			time.Sleep(20 * time.Second)
			synctest.Wait()
			all := m.Reports()
			if len(all) != 1 || all[0].Zone != "emea" || all[0].API != "orders" {
				t.Fatalf("got %+v, want the upstream of emea/orders", all)
			}
			return all[0]
		}
		if r := rest(); r.Phase != "healthy" || r.Why != "" || out.Len() != 0 {
			t.Errorf("all well: got %+v, log %q", r, out.String())
		}
		p.set(errors.New("certificate is valid for other.internal"), false)
		if r := rest(); r.Phase != "ejected" || r.Why != "certificate is valid for other.internal" {
			t.Errorf("its probes fail: got %+v", r)
		}
		if said := out.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, `to=ejected fails=0 error="certificate is valid for other.internal"`) {
			t.Errorf("its probes fail: the log says %q", said)
		}
		p.set(nil, false)
		if r := rest(); r.Phase != "healthy" || r.Why != "" {
			t.Errorf("well again: got %+v", r)
		}
		out.Reset()
		for range 3 {
			a := r.Start(h.Load().API("orders.test"), nil, false)
			if c, ok := a.Next(ctx); ok && c.Home() {
				c.Target.Begin().End(failover.Unavailable)
			}
		}
		if said := out.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, `to=ejected fails=3 error="requests in a row failed there, or were answered 502, 503 or 504"`) {
			t.Errorf("requests fail, and probes do not: the log says %q", said)
		}
	})
}
