package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/limit"
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
	var drain sync.WaitGroup
	for _, s := range []*proxy.Door{e.servers.HTTPS, e.servers.HTTP} {
		drain.Go(func() {
			s.End(grace)
		})
	}
	drain.Go(func() { e.servers.H3.End(grace) })
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
		fmt.Sprintf("detail waiting=%d lost_rows=%d disk=%d", detail.Pieces, detail.RowsLost, detail.Disk),
	}
}

// upstreams sums something up over all of them.
func (e *Edge) upstreams(of func(failover.Report) int64) func() float64 {
	return func() (sum float64) {
		for _, r := range e.monitor.Reports() {
			sum += float64(of(r))
		}
		return sum
	}
}

// waiting is how many wait: the upstreams of an API have one line.
func (e *Edge) waiting() (sum float64) {
	lines := map[string]int64{}
	for _, r := range e.monitor.Reports() {
		lines[r.API] = max(lines[r.API], r.Waiting)
	}
	for _, n := range lines {
		sum += float64(n)
	}
	return sum
}

func number(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

func (e *Edge) metrics() []telemetry.Metric {
	gauge := func(name, help string, read func() float64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Read: read}
	}
	counter := func(name, help string, read func() int64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Counter: true, Read: func() float64 { return float64(read()) }}
	}
	f := e.follow.Stats()
	return []telemetry.Metric{
		gauge("table_connected", "1 while a control node speaks to this edge.", func() float64 { return float64(f.Connected.Load()) }),
		counter("log_attributes_masked_total", "Attributes of log lines whose names are not on the list.", func() int64 { return telemetry.Masked(e.log) }),
		counter("table_snapshots_total", "Whole tables applied.", f.Snapshots.Load),
		counter("table_deltas_total", "Deltas applied.", f.Deltas.Load),
		counter("table_nacks_total", "Updates refused.", f.Nacks.Load),
		counter("table_refused_files_total", "Table files on disk that did not check out.", f.Refused.Load),
		counter("usage_rows_total", "Requests counted.", func() int64 { return e.spool.Stats().Rows }),
		counter("usage_blocks_sealed_total", "Blocks sealed.", func() int64 { return e.spool.Stats().BlocksSealed }),
		counter("usage_blocks_acked_total", "Blocks acknowledged by the ledger.", func() int64 { return e.spool.Stats().BlocksAcked }),
		gauge("usage_blocks_unacked", "Blocks waiting for the ledger.", func() float64 { return float64(e.spool.Stats().Unacked) }),
		gauge("usage_epochs_parked", "Epochs that the ledger refused; their blocks are kept.", func() float64 { return float64(e.spool.Stats().Parked) }),
		counter("detail_rows_kept_total", "Rows of detail kept for a control node.", func() int64 { return e.detail.Stats().RowsKept }),
		counter("detail_rows_lost_total", "Rows that are counted, but whose detail is lost: given up for want of space, or not written.", func() int64 { return e.detail.Stats().RowsLost }),
		counter("detail_bytes_total", "Bytes of detail kept, encoded.", func() int64 { return e.detail.Stats().BytesKept }),
		counter("detail_pieces_stored_total", "Pieces of detail that a control node has stored.", func() int64 { return e.detail.Stats().PiecesSent }),
		counter("detail_failures_total", "Writes of detail that failed.", func() int64 { return e.detail.Stats().Failures }),
		gauge("detail_pieces_waiting", "Pieces of detail that no control node has stored.", func() float64 { return float64(e.detail.Stats().Pieces) }),
		gauge("detail_disk_bytes", "Disk that detail takes.", func() float64 { return float64(e.detail.Stats().Disk) }),
		counter("traces_total", "Traces begun.", func() int64 { return e.traces.Stats().Traces }),
		counter("traces_withheld_total", "Traces not begun, though chosen, because there were as many in that second as there may be.", func() int64 { return e.traces.Stats().Withheld }),
		counter("trace_spans_sent_total", "Spans that the receiver took.", func() int64 { return e.traces.Stats().Sent }),
		counter("trace_spans_dropped_total", "Spans that found no room, or that the receiver did not take.", func() int64 { return e.traces.Stats().Dropped }),
		counter("trace_sends_failed_total", "Sendings of spans that failed; most are tried again.", func() int64 { return e.traces.Stats().Failures }),
		counter("access_log_dropped_total", "Lines of the access log that found no room or no disk.", e.access.Dropped),
		counter("unbilled_requests_total", "Requests served that could not be counted.", e.proxy.Unbilled),
		counter("requests_turned_away_total", "Requests turned away because an API's upstreams were short.", func() int64 { n, _ := e.proxy.Turned(); return n }),
		counter("requests_unseated_total", "Requests turned away because this edge was short.", func() int64 { _, n := e.proxy.Turned(); return n }),
		gauge("replay_bytes", "Bytes of request bodies kept in memory to be sent again.", func() float64 { return float64(e.proxy.ReplayBytes()) }),
		gauge("upstreams_known", "Upstreams that this edge has an opinion of.", e.upstreams(func(failover.Report) int64 { return 1 })),
		gauge("upstreams_unhealthy", "Of them, those that are not healthy.", e.upstreams(func(r failover.Report) int64 { return number(r.Phase != failover.Healthy.String()) })),
		gauge("upstreams_set_aside", "Of them, those set aside because they fail more than the others.", e.upstreams(func(r failover.Report) int64 { return number(r.Outlier) })),
		gauge("upstream_requests_in_flight", "Requests under way at upstreams.", e.upstreams(func(r failover.Report) int64 { return r.Busy })),
		gauge("upstream_requests_waiting", "Requests that wait in line for an upstream.", e.waiting),
		gauge("cache_bytes", "Memory that kept answers take.", func() float64 { return float64(e.cache.Bytes()) }),
		gauge("quota_accounts", "Subscriptions with a quota or a rate limit that this edge has an account of.", func() float64 { return float64(e.quotas.Stats().Accounts) }),
		gauge("quota_units_spent", "Units spent here in current periods, since the start.", func() float64 { return float64(e.quotas.Stats().Spent) }),
		gauge("quota_units_held", "Units leased to this edge that no request has taken.", func() float64 { return float64(e.quotas.Stats().Free) }),
		gauge("quota_parked", "Requests waiting for the first word on their quota.", func() float64 { return float64(e.quotas.Stats().Parked) }),
		counter("quota_exhausted_total", "Requests refused because the quota was used up.", func() int64 { return e.quotas.Stats().Exhausted }),
		counter("quota_unconfirmed_total", "Requests for whose quota nobody answered in time.", func() int64 { return e.quotas.Stats().Unconfirmed }),
		counter("quota_crowded_total", "Of them, those that could not wait because too many did.", func() int64 { return e.quotas.Stats().Crowded }),
		counter("quota_exchanges_total", "Exchanges with the zone ledger.", func() int64 { return e.quotas.Stats().Exchanges }),
		counter("quota_exchanges_failed_total", "Of them, those not answered.", func() int64 { return e.quotas.Stats().Failed }),
		gauge("quota_exchange_seconds", "How long the last exchange took.", func() float64 { return e.quotas.Stats().Latency.Seconds() }),
		gauge("rate_share", "Part of a rate limit that this edge uses where the leader named none.", func() float64 { return float64(e.quotas.Stats().Share) / limit.Whole }),
		counter("dns_answered_total", "DNS questions answered.", e.dnsCount(func(s *dns.Stats) int64 { return s.Answered.Load() })),
		counter("dns_refused_total", "DNS questions for names that are not this zone's, transfers and other classes.", e.dnsCount(func(s *dns.Stats) int64 { return s.Refused.Load() })),
		counter("dns_malformed_total", "DNS questions answered with an error.", e.dnsCount(func(s *dns.Stats) int64 { return s.Malformed.Load() })),
		counter("dns_limited_total", "DNS questions over the rate of their prefix, dropped or sent to TCP, and packets that are no question.", e.dnsCount(func(s *dns.Stats) int64 { return s.Dropped.Load() + s.Slipped.Load() })),
		counter("dns_desperate_total", "DNS answers that name regions which look dead, since none is well.", e.dnsCount(func(s *dns.Stats) int64 { return s.Desperate.Load() })),
		gauge("regions_dead", "Regions of the zone that this edge's DNS answers leave out.", func() float64 { return float64(len(e.observe.Outlook().Down)) }),
		counter("regions_held_total", "How often more than half of the zone's regions looked dead from here, so that none was declared so.", e.observe.Holds),
		gauge("grants_held", "Grants to relay that this edge holds.", func() float64 { return float64(len(e.grants.Held())) }),
		gauge("relays_out_in_flight", "Requests being served by another region.", func() float64 { return float64(e.relays.InFlight()) }),
		gauge("streams", "Connections that last: WebSockets, and those of APIs that are tcp, of clients and of other regions.", func() float64 { return float64(e.proxy.Streams()) }),
		gauge("relays_in_in_flight", "Requests being served for another region.", func() float64 { return float64(e.inbound.InFlight()) }),
		counter("relays_refused_total", "Relays refused, at either end of this edge.", func() int64 { return e.relays.Refusals() + e.inbound.Refusals() }),
		counter("relay_rows_dropped_total", "Segments of rows of relays that the budget of disk has cost.", func() int64 { return int64(e.evidence.DroppedSegments()) }),
		gauge("evidence_head_records", "Records of the zone's Merkle log under the head that this edge holds.", func() float64 { size, _ := e.witness.Held(); return float64(size) }),
		counter("evidence_heads_refused_total", "Heads of the zone's Merkle log that this edge did not take. Not 0: look at its readyz?verbose.", e.witness.Refused),
		counter("border_sentinel_violations_total", "What the first check at the border let pass and the sentinel stopped. Not 0: the edge is broken.", e.sentinel.Violations),
		counter("border_sentinel_late_total", "What the sentinel stopped because the rules had just changed.", e.sentinel.Late),
		gauge("certificate_expires_seconds", "When this edge's certificate expires, Unix time.", func() float64 { return float64(e.state.Source.NotAfter().Unix()) }),
	}
}
