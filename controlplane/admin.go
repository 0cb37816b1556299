package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
	"bailiwick/shared/telemetry"

	"connectrpc.com/connect"
)

// serveAdmin serves operators, and edges that join, until ctx ends.
func (n *Node) serveAdmin(ctx context.Context) error {
	var single adminapi.SSO // a nil *Verifier would not be a nil interface
	if n.sso != nil {
		single = n.sso
	}
	api, err := adminapi.Handler(adminapi.Config{SSO: single, Zone: n.self.Zone, Node: n.self.Name, PrimaryZone: n.in.PrimaryZone,
		Catalog: n.catalog, Store: n.store, Pepper: n.secrets.Pepper, Tokens: n.enroll, Edges: zoneEdges{n}, Usage: n.central, Insight: n.central, Alerts: n.alerts, Ledger: n.ledger,
		Signer: n.secrets.Signer, Evidence: zoneEvidence{n}, Cluster: n, Quota: zoneQuotas{n}, Detail: zoneDetail{n},
		Leaders: n.leaders, Alive: n.mux.Connected, Logger: n.log})
	if err != nil {
		return err
	}
	registry := telemetry.NewRegistry()
	telemetry.Register(registry, n.metrics()...)
	admin := telemetry.NewAdminMux(registry, n.ready)
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.Handle(joinv1connect.NewJoinServiceHandler(n.enroll, connect.WithInterceptors(rpcfault.Server(n.log)), connect.WithReadMaxBytes(64<<10)))
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/metrics"} {
		mux.Handle(path, admin)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	defer stop()
	n.log.Info("serving", "admin", n.adminListener.Addr().String(), "peer", n.self.Peer)
	if err := server.Serve(tls.NewListener(n.adminListener, n.adminTLS)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin port: %w", err)
	}
	return nil
}

func (n *Node) leaders() map[string]string {
	out := map[string]string{}
	out[catalogGroup], _ = n.catalog.Leader()
	out[storeGroup(n.self.Zone)], _ = n.store.Leader()
	out[ledgerGroup(n.self.Zone)], _ = n.replica.Leader()
	return out
}

// ready says whether this node can do its part: every group it has a part in has a leader and is applied, and
// the first operator can log in.
func (n *Node) ready(context.Context) []telemetry.Check {
	var checks []telemetry.Check
	for name, leader := range n.leaders() {
		c := telemetry.Check{Name: "leader of " + name, Detail: leader}
		if leader == "" {
			c.Err = errors.New("none is known")
		}
		checks = append(checks, c)
	}
	seeded := telemetry.Check{Name: "catalog"}
	if _, ok := n.catalog.Local().Get(model.PrefixZone + n.self.Zone); !ok {
		seeded.Err = fmt.Errorf("zone %s is not in it yet", n.self.Zone)
	}
	operators := telemetry.Check{Name: "operators", Err: errors.New("none is known yet")}
	for range n.store.Local().List(model.PrefixOperator) {
		operators.Err = nil
		break
	}
	until := telemetry.Check{Name: "certificate", Detail: "expires " + n.source.NotAfter().UTC().Format(time.RFC3339)}
	if time.Now().After(n.source.NotAfter()) {
		until.Err = errors.New("expired at " + n.source.NotAfter().UTC().Format(time.RFC3339))
	}
	return append(checks, seeded, operators, until)
}

// followRegistry cuts nodes off as soon as the registry no longer holds them. Sync streams end by themselves,
// with a word of farewell; this is for raft, RPCs and usage.
func (n *Node) followRegistry(ctx context.Context) error {
	recheck := func() {
		n.mux.Recheck()
		n.ingest.Recheck()
	}
	for ctx.Err() == nil {
		err := watchRegistry(ctx, n.catalog, recheck, n.cutWithdrawn)
		if ctx.Err() == nil {
			n.log.Warn("follow the node registry", "error", err) // compacted, most likely: start over from now
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

func watchRegistry(ctx context.Context, catalog group.Store, recheck func(), cut func(group.Event)) error {
	w, err := catalog.Watch(catalog.Local().Revision().Index+1, model.PrefixNode)
	if err != nil {
		return err
	}
	defer w.Close()
	recheck() // what happened before the watch began, and that no earlier one has told
	for {
		events, _, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			cut(e)
		}
	}
}

func (n *Node) cutWithdrawn(e group.Event) {
	if !e.Delete || e.Prev == nil {
		return
	}
	node, err := model.Decode[model.Node](e.KV.Key, e.Prev.Value)
	if err != nil {
		n.log.Error("read a withdrawn node", "error", err)
		n.mux.Recheck()
		return
	}
	n.ingest.Disconnect(node.Name)
	name := identity.Name{Zone: node.Zone, Installation: n.in.Name, Region: node.Region, Kind: node.Kind, Node: node.Name}
	if node.Kind == identity.Edge {
		// Its stream says Withdrawn first; what is left after that is cut.
		time.AfterFunc(500*time.Millisecond, func() { n.mux.CloseNode(name) })
		return
	}
	n.mux.CloseNode(name)
}

func (n *Node) metrics() []telemetry.Metric {
	gauge := func(name, help string, read func() float64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Read: read}
	}
	counter := func(name, help string, read func() int64) telemetry.Metric {
		return telemetry.Metric{Name: name, Help: help, Counter: true, Read: func() float64 { return float64(read()) }}
	}
	s, q := n.sync.Stats(), n.lessor.Stats()
	return []telemetry.Metric{
		counter("log_attributes_masked_total", "Attributes of log lines whose names are not on the list.", func() int64 { return telemetry.Masked(n.log) }),
		gauge("sync_streams", "Edges connected to this node.", func() float64 { return float64(s.Streams.Load()) }),
		counter("sync_snapshots_total", "Whole tables sent to edges.", s.Snapshots.Load),
		counter("sync_deltas_total", "Deltas sent to edges.", s.Deltas.Load),
		counter("sync_acks_total", "Tables acknowledged by edges.", s.Acks.Load),
		counter("sync_nacks_total", "Tables refused by edges.", s.Nacks.Load),
		counter("sync_dropped_deltas_total", "Deltas dropped by the fault hook of test builds.", s.Dropped.Load),
		counter("ingest_blocks_total", "Usage blocks acknowledged, repeats included.", func() int64 { return int64(n.ingest.Stats().Blocks) }),
		gauge("ingest_sessions", "Edges shipping usage to this node.", func() float64 { return float64(n.ingest.Stats().Sessions) }),
		gauge("ledger_outbox_bytes", "Usage that a sink has not acknowledged yet.", func() float64 { return float64(n.machine.OutboxBytes()) }),
		gauge("ledger_sinks_lost_blocks", "Blocks that the outbox gave up before a sink had taken them.", func() float64 { return float64(n.machine.SinksLost()) }),
		counter("ledger_state_agreed_total", "Checkpoints at which all nodes of the zone had one state, seen while this node led.", n.audit.Agreed.Load),
		counter("ledger_state_outvoted_total", "Checkpoints at which a node had another state than the majority, and was stopped.", n.audit.Outvoted.Load),
		counter("ledger_state_split_total", "Checkpoints at which states differed and no majority had one: nobody was stopped.", n.audit.Split.Load),
		gauge("ledger_quarantined_epochs", "Epochs of edges that two spools speak for; an operator must close them.", func() float64 { return float64(n.machine.Quarantined()) }),
		counter("ingest_detail_pieces_total", "Pieces of detail acknowledged, repeats included.", func() int64 { return int64(n.ingest.Stats().Pieces) }),
		counter("detail_rows_total", "Rows of detail stored.", func() int64 { return n.detail.Stats().Rows }),
		gauge("detail_bytes", "Parquet files of detail on disk, bytes.", func() float64 { return float64(n.detail.Stats().FileBytes) }),
		gauge("detail_files", "Parquet files of detail on disk.", func() float64 { return float64(n.detail.Stats().Files) }),
		gauge("detail_damaged_files", "Files of detail that do not check out.", func() float64 { return float64(n.detail.Stats().Damaged) }),
		counter("detail_expired_files_total", "Files of detail removed by age.", func() int64 { return n.detail.Stats().Expired }),
		counter("detail_over_budget_files_total", "Files of detail removed before their age by the disk budget.", func() int64 { return n.detail.Stats().OverBudget }),
		counter("detail_erased_rows_total", "Rows of erased customers that were dropped on arrival or from logs.", func() int64 { return n.detail.Stats().ErasedRows }),
		counter("quota_exchanges_total", "Exchanges of edges that this node, as the ledger's leader, had committed.", q.Exchanges.Load),
		counter("quota_entries_total", "Raft entries they took.", q.Entries.Load),
		counter("quota_looked_up_total", "Exchanges answered without an entry.", q.Looked.Load),
		counter("quota_stale_total", "Exchanges overtaken by a newer one of their edge, or of an epoch that is over.", q.Stale.Load),
		counter("quota_refused_accounts_total", "Accounts that edges asked for and that are not of this zone, or not known yet.", q.Refused.Load),
		counter("quota_recalls_total", "Answers that asked an edge to give back what it does not use.", q.Recalls.Load),
		counter("peer_refused_total", "Peer connections refused.", func() int64 { return int64(n.mux.Refused()) }),
		counter("alerts_raised_total", "Thresholds of quotas raised by this node.", n.alerts.Stats().Raised.Load),
		counter("alerts_delivered_total", "Webhook messages taken by their receiver.", n.alerts.Stats().Delivered.Load),
		counter("alerts_refused_total", "Tries of webhook messages that failed.", n.alerts.Stats().Refused.Load),
		gauge("evidence_records", "Records in this node's copy of the zone's Merkle log.", func() float64 { size, _ := n.evidence.Size(); return float64(size) }),
		gauge("evidence_split", "1 when this node's copy is not the log whose head the zone has signed.", func() float64 {
			if _, broken := n.evidence.Size(); broken != nil {
				return 1
			}
			return 0
		}),
		gauge("certificate_expires_seconds", "When this node's certificate expires, Unix time.", func() float64 { return float64(n.source.NotAfter().Unix()) }),
	}
}
