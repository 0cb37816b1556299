package adminapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Detail is the detail on all control nodes of the zone.
type Detail interface {
	// Trace finds a customer's rows and counts each piece once, on however many nodes it rests.
	Trace(ctx context.Context, req *peerv1.TraceRequest) (*Traced, error)
	// Rows gives all rows of a customer, in pieces; it names the nodes that did not answer.
	Rows(ctx context.Context, customer string, each func([]*adminv1.TraceRow) error) (unreachable []string, err error)
	// Erase removes an erased customer's rows on every node that has applied the zone store's index.
	Erase(ctx context.Context, customer string, index uint64) []NodeErasure
}

// TraceCell is what ledger and detail are compared by.
type TraceCell struct {
	Start                                   int64 // unix s
	API, Route, Plan, ServedRegion, Outcome string
}

// TraceSums is what detail has of a cell.
type TraceSums struct {
	Requests, Units int64
	Blocks          []string // edge/epoch/seq
}

// Traced is what was found.
type Traced struct {
	Rows        []*adminv1.TraceRow // the earliest
	Truncated   bool
	Cells       map[TraceCell]*TraceSums
	Lost        []*adminv1.TraceLost
	KeptSince   time.Time
	Damaged     []string // node/file
	Unreachable []string // nodes
}

// NodeErasure is one node's part of an erasure.
type NodeErasure struct {
	Node          string   `json:"node"`
	Files         int64    `json:"files"`
	Rows          int64    `json:"rows"`
	Before, After []string `json:"-"`
	Err           error    `json:"-"`
}

const traceRows = 1000 // by default

// TraceUsage holds the ledger's cells against the rows of requests behind them.
func (s *server) TraceUsage(ctx context.Context, req *adminv1.TraceUsageRequest) (*adminv1.TraceUsageResponse, error) {
	if s.Usage == nil || s.Detail == nil {
		return nil, s.usageOff()
	}
	if o := req.GetOutcome(); o != "" {
		if _, err := usage.ParseOutcome(o); err != nil {
			return nil, fault.New(fault.Invalid, "OUTCOME_UNKNOWN", "%v", err).At("outcome")
		}
	}
	id, err := keptID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	since, until, err := span(req.GetSince(), req.GetUntil())
	if err != nil {
		return nil, err
	}
	if whole := until.Truncate(cell); whole.Before(until) {
		until = whole.Add(cell) // the ledger answers by whole cells, so the rows must be those of whole cells
	}
	report, err := s.Usage.Usage(ctx, UsageQuery{Customer: req.GetCustomer(), Since: since, Until: until})
	if err != nil {
		return nil, err
	}
	store := s.freshOrLocal(ctx, s.Store)
	gone, was, err := stored[model.Gone](store, model.PrefixGone+req.GetCustomer())
	if err != nil {
		return nil, err
	}
	if _, is := store.Get(model.PrefixCustomer + req.GetCustomer()); !is && !was && len(report.Rows) == 0 {
		return nil, s.customerUnknown(req.GetCustomer())
	}
	limit := req.GetLimit()
	if limit == 0 {
		limit = traceRows
	}
	found, err := s.Detail.Trace(ctx, &peerv1.TraceRequest{Customer: req.GetCustomer(), Since: timestamppb.New(since), Until: timestamppb.New(until),
		Api: req.GetApi(), Route: req.GetRoute(), Outcome: req.GetOutcome(), Limit: limit, RequestId: id})
	if err != nil {
		return nil, err
	}
	rows := report.Rows
	for _, r := range report.Late { // counted like any other, though reported beside what its closed day had
		rows = append(rows, UsageRow{Cell: time.Unix(r.Cell.Start, 0), API: r.Cell.API, Route: r.Cell.Route, Plan: r.Cell.Plan, ServedRegion: r.Cell.ServedRegion,
			Outcome: r.Cell.Outcome.String(), Requests: r.Sums.Requests, Units: r.Sums.Units})
	}
	return &adminv1.TraceUsageResponse{Cells: traceCells(req, rows, found.Cells), Rows: found.Rows, Truncated: found.Truncated, Unreachable: found.Unreachable,
		Lost: found.Lost, KeptSince: stamp(found.KeptSince), CompleteThrough: stamp(report.CompleteThrough), Damaged: found.Damaged, Erased: stamp(gone.Erased)}, nil
}

// keptID is what detail keeps of the request id that a client was answered with; none for "".
func keptID(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	plain := strings.ReplaceAll(text, "-", "")
	id, err := hex.DecodeString(plain)
	if err != nil || len(id) != 16 || len(text) != 32 && len(text) != 36 {
		return nil, fault.New(fault.Invalid, "REQUEST_ID_INVALID", "request id: want it as the header Bailiwick-Request-Id has it, 32 hexadecimal digits in five groups").At("request_id")
	}
	kept := usage.ShortID([16]byte(id))
	return kept[:], nil
}

// traceCells joins both sides; what one of them lacks is zero there. Corrections have no requests behind them.
func traceCells(req *adminv1.TraceUsageRequest, rows []UsageRow, found map[TraceCell]*TraceSums) []*adminv1.TraceCell {
	cells := map[TraceCell]*adminv1.TraceCell{}
	at := func(k TraceCell) *adminv1.TraceCell {
		if cells[k] == nil {
			cells[k] = &adminv1.TraceCell{Cell: timestamppb.New(time.Unix(k.Start, 0)), Api: k.API, Route: k.Route, Plan: k.Plan, ServedRegion: k.ServedRegion, Outcome: k.Outcome}
		}
		return cells[k]
	}
	for _, r := range rows {
		if r.Correction || !asked(req.GetApi(), r.API) || !asked(req.GetRoute(), r.Route) || !asked(req.GetOutcome(), r.Outcome) {
			continue
		}
		c := at(TraceCell{r.Cell.Unix(), r.API, r.Route, r.Plan, r.ServedRegion, r.Outcome})
		c.Requests, c.Units = c.Requests+r.Requests, c.Units+r.Units
	}
	for k, sums := range found {
		c := at(k)
		c.Rows, c.RowUnits, c.Blocks = sums.Requests, sums.Units, sums.Blocks
	}
	keys := make([]TraceCell, 0, len(cells))
	for k := range cells {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b TraceCell) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.API, b.API), cmp.Compare(a.Route, b.Route), cmp.Compare(a.Plan, b.Plan),
			cmp.Compare(a.ServedRegion, b.ServedRegion), cmp.Compare(a.Outcome, b.Outcome))
	})
	out := make([]*adminv1.TraceCell, 0, len(keys))
	for _, k := range keys {
		if req.GetRequestId() == "" || cells[k].Rows > 0 { // of a request: the cell that it is counted in
			out = append(out, cells[k])
		}
	}
	return out
}

func asked(want, is string) bool { return want == "" || want == is }
