package dataplane

import (
	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/http2"
	"bailiwick/dataplane/internal/http3"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/token"
	"bailiwick/shared/telemetry"
)

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
		of := r.Zone + "/" + r.API
		lines[of] = max(lines[of], r.Waiting)
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

// metrics are all that /metrics says of the edge beside the Go runtime and the process. docs/metrics.md has a line of each.
func (e *Edge) metrics() []telemetry.Metric {
	gauge := func(name, help string, read func() float64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Read: read}
	}
	counter := func(name, help string, read func() int64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Counter: true, Read: func() float64 { return float64(read()) }}
	}
	f := e.follow.Stats()
	return append(e.labelled(), []telemetry.Metric{
		{Name: "request_duration_seconds", Help: "How long requests with a usage row took, from the head to the end of the answer.", Buckets: func() telemetry.Histogram {
			each, sum := e.proxy.Took()
			return telemetry.Histogram{Bounds: proxy.LatencyBounds[:], Each: each[:], Sum: sum.Seconds()}
		}},
		gauge("requests_in_flight", "Requests of clients under way.", func() float64 { n, _ := e.proxy.InFlight(); return float64(n) }),
		gauge("requests_in_flight_limit", "How many may be.", func() float64 { _, n := e.proxy.InFlight(); return float64(n) }),
		gauge("connections", "Connections of clients, over TCP and QUIC.", func() float64 { return float64(e.servers.Connections().Open) }),
		gauge("connections_limit", "How many there may be.", func() float64 { return float64(e.servers.Connections().Most) }),
		gauge("processes_before", "Processes whose place was taken, in which requests go on.", func() float64 { return float64(e.before.processes()) }),
		gauge("connections_before", "Connections of clients that the process before this one has.", func() float64 { return float64(e.before.connections()) }),
		counter("usage_rows_before_total", "Of the requests counted, those of processes before.", e.before.rows),
		counter("connections_total", "Connections of clients that were taken.", func() int64 { return e.servers.Connections().Taken }),
		counter("connections_crowded_total", "Connections refused because their address had as many as it may.", func() int64 { return e.servers.Connections().Crowded }),
		counter("connections_full_total", "Connections refused because there were as many as there may be, and none was idle.", func() int64 { return e.servers.Connections().Full }),
		counter("connections_yielded_total", "Idle connections that were closed for new ones.", func() int64 { return e.servers.Connections().Yielded }),
		counter("tls_handshakes_failed_total", "TLS handshakes over TCP that failed.", func() int64 { return e.servers.Connections().HandshakesFailed }),
		gauge("http2_connections", "Connections over HTTP/2.", func() float64 { return float64(e.servers.HTTP2().Open) }),
		counter("http2_connections_total", "Connections over HTTP/2 that there were.", func() int64 { return e.servers.HTTP2().Connections }),
		counter("http2_streams_reset_by_clients_total", "Requests over HTTP/2 that clients broke off.", func() int64 { return e.servers.HTTP2().ResetByClients }),
		gauge("http3_connections", "Connections over HTTP/3.", func() float64 { return float64(e.servers.HTTP3().Open) }),
		counter("http3_connections_total", "Connections over HTTP/3 that there were.", func() int64 { return e.servers.HTTP3().Connections }),
		gauge("streams_limit", "How many connections that last there may be.", func() float64 { return float64(e.proxy.StreamsLimit()) }),
		gauge("upstream_pools", "Upstreams that there are connections to.", func() float64 { return float64(e.ups.Count()) }),
		gauge("upstream_connections_idle", "Connections to upstreams over HTTP/1.1 that wait for a common request.", func() float64 { return float64(e.ups.Idle()) }),
		counter("upstream_answers_sought_total", "Answers of upstreams that came while a loop looked for them instead of sleeping.", func() int64 { return e.servers.Connections().Sought }),
		counter("upstream_answers_sought_in_vain_total", "Times that a loop looked for an answer that did not come within -busy-poll.", func() int64 { return e.servers.Connections().Vain }),
		counter("upstream_dials_total", "Connections to upstreams that were tried, probes' included.", func() int64 { n, _ := e.dialer.Dials(); return n }),
		counter("upstream_dials_failed_total", "Of them, those that were not made.", func() int64 { _, n := e.dialer.Dials(); return n }),
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
		gauge("relays_out_in_flight", "Requests being served by another region.", func() float64 { n, _ := e.crossing(); return float64(n) }),
		gauge("streams", "Connections that last: WebSockets, and those of APIs that are tcp, of clients and of other regions.", func() float64 { return float64(e.proxy.Streams()) }),
		gauge("relays_in_in_flight", "Requests being served for another region.", func() float64 { _, n := e.crossing(); return float64(n) }),
		counter("relays_refused_total", "Relays refused, at either end of this edge.", func() int64 { return e.relays.Refusals() + e.inbound.Refusals() }),
		counter("relay_rows_dropped_total", "Segments of rows of relays that the budget of disk has cost.", func() int64 { return int64(e.evidence.DroppedSegments()) }),
		gauge("evidence_head_records", "Records of the zone's Merkle log under the head that this edge holds.", func() float64 { size, _ := e.witness.Held(); return float64(size) }),
		counter("evidence_heads_refused_total", "Heads of the zone's Merkle log that this edge did not take. Not 0: look at its readyz?verbose.", e.witness.Refused),
		counter("border_sentinel_violations_total", "What the first check at the border let pass and the sentinel stopped. Not 0: the edge is broken.", e.sentinel.Violations),
		counter("border_sentinel_late_total", "What the sentinel stopped because the rules had just changed.", e.sentinel.Late),
		gauge("certificate_expires_seconds", "When this edge's certificate expires, Unix time.", func() float64 { return float64(e.state.Source.NotAfter().Unix()) }),
	}...)
}

// labelled are those that are told apart by labels, whose values are closed lists: all series of them are there from the start.
func (e *Edge) labelled() (all []telemetry.Metric) {
	for i, protocol := range proxy.CountedProtocols {
		for j, outcome := range proxy.CountedOutcomes {
			all = append(all, telemetry.Metric{Name: "requests_total", Help: "Requests that are over, by what brought them and how they ended, as in usage rows; uncounted have no row.", Counter: true,
				Labels: map[string]string{"protocol": protocol, "outcome": outcome}, Read: func() float64 { return float64(e.proxy.Ended(i, j)) }})
		}
	}
	for _, reason := range gate.Reasons() {
		all = append(all, telemetry.Metric{Name: "refusals_total", Help: "Answers of the edge itself, by the reason that they name.", Counter: true,
			Labels: map[string]string{"reason": reason}, Read: func() float64 { return float64(e.proxy.Refused(reason)) }})
	}
	for _, class := range priority.Classes() {
		for _, at := range [...]string{"upstream", "edge"} {
			all = append(all, telemetry.Metric{Name: "requests_shed_total", Help: "Requests turned away because an API's upstreams, or this edge, were short, by the class of the plan.", Counter: true,
				Labels: map[string]string{"class": class.String(), "at": at}, Read: func() float64 {
					upstream, edge := e.proxy.Shed(class)
					if at == "edge" {
						return float64(edge)
					}
					return float64(upstream)
				}})
		}
	}
	for i, result := range proxy.CacheResults {
		all = append(all, telemetry.Metric{Name: "cache_requests_total", Help: "Requests of routes that keep answers, by what came of looking for one (RFC 9211).", Counter: true,
			Labels: map[string]string{"result": result}, Read: func() float64 { return float64(e.proxy.Looked(i)) }})
	}
	for i, result := range token.Results {
		all = append(all, telemetry.Metric{Name: "token_checks_total", Help: "Tokens that callers showed, by what came of looking at them.", Counter: true,
			Labels: map[string]string{"result": result}, Read: func() float64 { return float64(e.tokens.Count(i)) }})
	}
	for i, code := range http2.Codes {
		all = append(all,
			telemetry.Metric{Name: "http2_connections_ended_total", Help: "Connections over HTTP/2 of which the client was told to go (GOAWAY), by code.", Counter: true, Labels: map[string]string{"code": code},
				Read: func() float64 { return float64(e.servers.HTTP2().Ended[i]) }},
			telemetry.Metric{Name: "http2_streams_reset_total", Help: "Requests over HTTP/2 that this edge broke off (RST_STREAM), by code.", Counter: true, Labels: map[string]string{"code": code},
				Read: func() float64 { return float64(e.servers.HTTP2().Reset[i]) }})
	}
	for i, code := range http3.Codes {
		all = append(all,
			telemetry.Metric{Name: "http3_connections_ended_total", Help: "Connections over HTTP/3 that this edge ended, by code.", Counter: true, Labels: map[string]string{"code": code},
				Read: func() float64 { return float64(e.servers.HTTP3().Ended[i]) }},
			telemetry.Metric{Name: "http3_streams_reset_total", Help: "Requests over HTTP/3 that this edge broke off, by code.", Counter: true, Labels: map[string]string{"code": code},
				Read: func() float64 { return float64(e.servers.HTTP3().Reset[i]) }})
	}
	return all
}
