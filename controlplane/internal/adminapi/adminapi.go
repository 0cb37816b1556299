// Package adminapi owns the operators' door: the Connect handlers of the admin API, from the bearer token to
// the committed transaction. Every call is authorised, validated, committed to one group at a time, and
// answered once this node has applied the result.
//
// It never replicates, grants, issues or counts by itself: stores, join tokens, edge reports and usage are
// given to it. It keeps no state; what it acknowledged is in a group's log and survives any crash of this
// node. The handler serves any number of calls at once. DESIGN.md says what is atomic and what is not.
package adminapi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

const (
	// MaxRequest bounds one request message.
	MaxRequest = 4 << 20
	// DefaultWait is how long a call waits for a quorum.
	DefaultWait = 5 * time.Second
	// softWait is how long a read that may fall back on this node's copy waits for a fresh one.
	softWait = time.Second
	// maxAttempts bounds the retries of an optimistic transaction.
	maxAttempts = 5
)

// Tokens mints join tokens.
type Tokens interface {
	CreateToken(ctx context.Context, kind, region, name string, ttl time.Duration) (token string, expires time.Time, err error)
}

// SSO says who a token of another issuer is of, and in which role.
type SSO interface {
	Verify(ctx context.Context, token string) (name, role string, err error)
}

// Edges tells what the zone's leader knows of the zone's edges.
type Edges interface {
	Reports(ctx context.Context) ([]*peerv1.EdgeReport, []*adminv1.Tightening, error)
}

// Usage reads ledgers. Rows outside [Since, Until) may be included where they share a cell with the range.
type Usage interface {
	Usage(ctx context.Context, q UsageQuery) (UsageReport, error)
	Totals(ctx context.Context, q TotalsQuery) (ZoneTotals, error)      // of this zone
	AllTotals(ctx context.Context, q TotalsQuery) ([]ZoneTotals, error) // of every zone, unreachable ones with Error
}

// UsageQuery asks for one customer's usage.
type UsageQuery struct {
	Customer     string
	Since, Until time.Time
	// Fold maps a row, its sums left out, to what it is summed by; nil: cells stay as they are. The ledger is read
	// cell by cell, so a year of a busy customer costs the memory of what it folds into.
	Fold func(UsageRow) UsageRow
}

// TotalsQuery asks for sums without a customer column.
type TotalsQuery struct {
	Since, Until time.Time
	Unit         string // of package calendar: rows are parted by it; "": they are summed over all the time
	Zone         *time.Location
}

// UsageReport is one customer's usage.
type UsageReport struct {
	Rows            []UsageRow
	CompleteThrough time.Time
	Gaps            []Gap
	Corrections     []ledger.Booked // all of the customer's; their sums are in Rows
	Late            []ledger.Row    // those of Rows that came for a closed day
}

// UsageRow is one cell of one customer, or a fold of several. Outcome is the text of shared/usage. Comparable.
type UsageRow struct {
	Cell                                                           time.Time
	Subscription, Product, API, Route, Plan, ServedRegion, Outcome string
	Correction                                                     bool
	Requests, Units, BytesIn, BytesOut                             int64
}

// Gap is usage known to be lost.
type Gap struct {
	Edge                         string
	Epoch, AppliedSeq, SealedSeq uint64
}

// ZoneTotals are a zone's sums, without a customer column.
type ZoneTotals struct {
	Zone            string
	Rows            []TotalsRow
	CompleteThrough time.Time
	Age             time.Duration // 0: answered now
	Error           string        // why it is old or missing
}

// TotalsRow sums over customers, and over a unit of time that begins at Start or over all of it.
type TotalsRow struct {
	Start                                     time.Time
	Product, Plan, API, ServedRegion, Outcome string
	Correction                                bool // booked by an operator, or late for a closed day
	Requests, Units                           int64
}

// Config of the handler. Fields marked optional may be nil.
type Config struct {
	Zone        string // required: of this node
	Node        string // required
	PrimaryZone string // whose quorum the catalog needs; named in errors
	Catalog     group.Store
	Store       group.Store        // of Zone
	Pepper      []byte             // required: the zone's, apikey.PepperLen bytes
	Tokens      Tokens             // optional: without it join tokens are Unimplemented
	Edges       Edges              // optional: without it no edge's status is known
	Usage       Usage              // optional: without it usage is Unimplemented
	Ledger      Ledger             // optional: without it what operators do to a ledger is Unimplemented
	Insight     Insight            // optional: without it latencies and forecasts are Unimplemented
	Alerts      *alert.Service     // optional: without it webhooks are Unimplemented
	Cluster     Cluster            // optional: without it what operators do to groups is Unimplemented
	Quota       Quotas             // optional: without it quotas are Unimplemented
	Signer      ed25519.PrivateKey // optional: the zone's; without it no correction is booked and nothing is erased
	Evidence    Evidence           // optional: without it no evidence is exported
	SSO         SSO                // optional: without it only operators' own tokens are known
	Detail      Detail             // optional: without it traces, exports and erasures are Unimplemented
	// Alive optionally says which control nodes of the zone this node hears from.
	Alive func() map[string]bool
	// Leaders optionally names the leader of each group this node knows; by default of Catalog and Store.
	Leaders func() map[string]string
	// Objection is how long nodes have to object to the release of their cluster of etcd; 0 means claim.Window.
	Objection time.Duration
	Wait      time.Duration // for a quorum; 0 means DefaultWait
	Rate      int           // calls a second of one operator at this node; 0 means DefaultRate
	Logger    *slog.Logger  // nil discards
}

// Validate checks what is required.
func (c Config) Validate() error {
	switch {
	case c.Zone == "" || c.Node == "":
		return errors.New("admin API: Zone and Node are required")
	case c.Catalog == nil || c.Store == nil:
		return errors.New("admin API: Catalog and Store are required")
	case c.Detail != nil && len(c.Signer) != ed25519.PrivateKeySize:
		return errors.New("admin API: Detail needs the zone's Signer")
	case len(c.Pepper) != apikey.PepperLen:
		return fmt.Errorf("admin API: the pepper has %d bytes, want %d", len(c.Pepper), apikey.PepperLen)
	}
	return nil
}

type server struct {
	Config
	hasher *apikey.Hasher
	meter  *meter
	mask   []byte // under which the zone's log names customers
	reads  *readBook
	rules  validation
}

// Handler serves all services of bailiwick.admin.v1 and gRPC reflection, at the root of its host.
func Handler(cfg Config) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	validator, err := protovalidate.New(protovalidate.WithMessages(requests()...))
	if err != nil {
		return nil, fmt.Errorf("build request validation: %w", err)
	}
	mask, err := evidence.MaskKey(cfg.Pepper)
	if err != nil {
		return nil, err
	}
	s := &server{Config: cfg, hasher: apikey.NewHasher(cfg.Pepper), meter: newMeter(cfg.Rate), mask: mask, reads: newReadBook(), rules: validation{validator}}
	gate := connect.WithRequestGate(s.authorise)
	opts := []connect.HandlerOption{
		gate,
		connect.WithReadMaxBytes(MaxRequest),
		connect.WithInterceptors(rpcfault.Server(cfg.Logger), bounded(cfg.Wait), s.rules, s.recorded(), s.paging()),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
	}
	mux := http.NewServeMux()
	mux.Handle(adminv1connect.NewResourceServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewKeyServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewNodeServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewCacheServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewClusterServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewBorderServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewApprovalServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewOperatorServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewRolloutServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewDNSServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewUsageServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewCustomerServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewEvidenceServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewAlertServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewLedgerServiceHandler(s, opts...))
	mux.Handle(adminv1connect.NewQuotaServiceHandler(s, opts...))
	reflector := grpcreflect.NewStaticReflector(adminv1connect.ResourceServiceName, adminv1connect.KeyServiceName,
		adminv1connect.NodeServiceName, adminv1connect.ClusterServiceName, adminv1connect.CacheServiceName, adminv1connect.BorderServiceName, adminv1connect.ApprovalServiceName, adminv1connect.OperatorServiceName, adminv1connect.RolloutServiceName, adminv1connect.DNSServiceName, adminv1connect.UsageServiceName, adminv1connect.AlertServiceName, adminv1connect.LedgerServiceName,
		adminv1connect.QuotaServiceName, adminv1connect.CustomerServiceName, adminv1connect.EvidenceServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector, gate))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, gate))
	return patient(exportStall, bodyLimit(mux, connect.NewErrorWriter(opts...)), adminv1connect.CustomerServiceExportProcedure,
		adminv1connect.EvidenceServiceExportEvidenceProcedure, adminv1connect.EvidenceServiceExportRelayRowsProcedure, adminv1connect.EvidenceServiceCheckEvidenceProcedure), nil
}

// bodyLimit answers a request that announces too much before it is read, with a reason; Connect's own limit
// stops the others without one.
func bodyLimit(next http.Handler, errs *connect.ErrorWriter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > MaxRequest+5 && errs.IsSupported(r) { // 5: gRPC's frame
			err := fault.New(fault.TooLarge, rpcfault.ReasonTooLarge, "the request holds %d bytes, at most %d are read: split it", r.ContentLength, MaxRequest)
			w.Header().Set("Connection", "close") // the rest of the body is not worth reading
			_ = errs.Write(w, r, rpcfault.ToConnect(err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// slow are the calls that read or rewrite files on all nodes of the zone, or a week of all its customers, and how long
// they may take.
var slow = map[string]time.Duration{
	adminv1connect.UsageServiceForecastProcedure:             40 * time.Second,
	adminv1connect.UsageServiceTraceUsageProcedure:           40 * time.Second,
	adminv1connect.CustomerServiceEraseProcedure:             50 * time.Second, // the admin port's server ends all in a minute
	adminv1connect.ClusterServiceBackupProcedure:             55 * time.Second,
	adminv1connect.ClusterServiceTransferLeadershipProcedure: 20 * time.Second,
	adminv1connect.ClusterServiceReleaseClaimProcedure:       30 * time.Second, // ten are for nodes to object
}

// bounded ends every call: a client without a deadline must not wait for a quorum for ever.
func bounded(wait time.Duration) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			ctx, cancel := context.WithTimeout(ctx, max(wait, slow[req.Spec().Procedure]))
			defer cancel()
			return next(ctx, req)
		}
	}
}
