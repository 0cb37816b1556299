package adminapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// cell is the width of a ledger row.
const cell = 15 * time.Minute

// span is the time a query asks about, from the start of the cell that holds its beginning, since a cell is never split.
func span(since, until *timestamppb.Timestamp) (time.Time, time.Time, error) {
	from, to, err := interval(since, until)
	return from.Truncate(cell).UTC(), to.UTC(), err
}

// interval is the time a query asks about: the last hour by default.
func interval(since, until *timestamppb.Timestamp) (time.Time, time.Time, error) {
	for _, t := range []*timestamppb.Timestamp{since, until} {
		if t != nil && t.CheckValid() != nil {
			return time.Time{}, time.Time{}, fault.New(fault.Invalid, "RANGE_INVALID", "usage: a time is not between the years 1 and 9999")
		}
	}
	to := time.Now()
	if until != nil {
		to = until.AsTime()
	}
	from := to.Add(-time.Hour)
	if since != nil {
		from = since.AsTime()
	}
	if !from.Before(to) {
		return from, to, fault.New(fault.Invalid, "RANGE_INVALID", "usage since %s until %s: the range is empty", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339)).At("since")
	}
	return from.UTC(), to.UTC(), nil
}

func (s *server) usageOff() error {
	return fault.New(fault.Unimplemented, "USAGE_OFF", "node %s keeps no ledger", s.Node)
}

func (s *server) QueryUsage(ctx context.Context, req *adminv1.QueryUsageRequest) (*adminv1.QueryUsageResponse, error) {
	if s.Usage == nil {
		return nil, s.usageOff()
	}
	since, until, err := span(req.GetSince(), req.GetUntil())
	if err != nil {
		return nil, err
	}
	zone, err := s.timeZone(req.GetCustomer(), req.GetTimeZone())
	if err != nil {
		return nil, err
	}
	fold, err := newFolding(req.GetGroupBy(), zone)
	if err != nil {
		return nil, err
	}
	if req.GetSince() == nil {
		since = fold.since(since, until)
	}
	q := UsageQuery{Customer: req.GetCustomer(), Since: since, Until: until}
	if fold != nil {
		q.Fold = fold.row
	}
	report, err := s.Usage.Usage(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(report.Rows) == 0 { // a customer who is gone may still have usage
		store := s.freshOrLocal(ctx, s.Store)
		_, is := store.Get(model.PrefixCustomer + req.GetCustomer())
		if _, was := store.Get(model.PrefixGone + req.GetCustomer()); !is && !was {
			return nil, s.customerUnknown(req.GetCustomer())
		}
	}
	out := &adminv1.QueryUsageResponse{Total: &adminv1.UsageTotal{}, CompleteThrough: stamp(report.CompleteThrough)}
	bills := biller(s.Catalog.Local())
	for _, r := range report.Rows {
		add(out.Total, bills, r.Product, r.Outcome, r.ServedRegion, r.Requests, r.Units)
		if fold == nil {
			out.Rows = append(out.Rows, &adminv1.UsageRow{Cell: stamp(r.Cell), Api: r.API, Route: r.Route, Plan: r.Plan, ServedRegion: r.ServedRegion,
				Outcome: r.Outcome, Requests: r.Requests, Units: r.Units, Subscription: r.Subscription, Product: r.Product,
				BytesIn: r.BytesIn, BytesOut: r.BytesOut, Billable: bills(r.Product, r.Outcome, r.ServedRegion), Correction: r.Correction})
		}
	}
	if fold != nil {
		out.Rows, out.TimeZone = fold.usage(report.Rows, bills), zone.String()
	}
	out.Corrections = within(&report, req.GetCustomer(), since, until)
	for _, g := range report.Gaps {
		out.Gaps = append(out.Gaps, &adminv1.Gap{Edge: g.Edge, Epoch: g.Epoch, AppliedSeq: g.AppliedSeq, SealedSeq: g.SealedSeq})
	}
	return out, nil
}

// timeZone is the one asked for, or else the customer's.
func (s *server) timeZone(customer, asked string) (*time.Location, error) {
	if asked == "" {
		if kv, ok := s.Store.Local().Get(model.PrefixCustomer + customer); ok {
			c, err := model.Decode[model.Customer](kv.Key, kv.Value)
			if err != nil {
				return nil, err
			}
			asked = c.TimeZone
		}
	}
	return calendar.Load(asked)
}

func (s *server) QueryTotals(ctx context.Context, req *adminv1.QueryTotalsRequest) (*adminv1.QueryTotalsResponse, error) {
	if s.Usage == nil {
		return nil, s.usageOff()
	}
	since, until, err := span(req.GetSince(), req.GetUntil())
	if err != nil {
		return nil, err
	}
	zone, err := calendar.Load(req.GetTimeZone())
	if err != nil {
		return nil, err
	}
	fold, err := newFolding(req.GetGroupBy(), zone)
	if err != nil {
		return nil, err
	}
	if req.GetSince() == nil {
		since = fold.since(since, until)
	}
	q := TotalsQuery{Since: since, Until: until, Zone: zone}
	out := &adminv1.QueryTotalsResponse{}
	if fold != nil {
		q.Unit, out.TimeZone = fold.unit, zone.String()
	}
	var zones []ZoneTotals
	if req.GetAllZones() {
		zones, err = s.Usage.AllTotals(ctx, q)
	} else {
		var one ZoneTotals
		one, err = s.Usage.Totals(ctx, q)
		zones = []ZoneTotals{one}
	}
	if err != nil {
		return nil, err
	}
	bills := biller(s.Catalog.Local())
	for _, z := range zones {
		sums := totalsToProto(z, bills)
		if fold != nil {
			sums.Rows = fold.totals(z.Rows, bills)
		}
		out.Zones = append(out.Zones, sums)
	}
	return out, nil
}

func totalsToProto(z ZoneTotals, bills func(product, outcome, served string) bool) *adminv1.ZoneTotals {
	out := &adminv1.ZoneTotals{Zone: z.Zone, Total: &adminv1.UsageTotal{}, CompleteThrough: stamp(z.CompleteThrough), Age: durationpb.New(z.Age), Error: z.Error}
	for _, r := range z.Rows {
		add(out.Total, bills, r.Product, r.Outcome, r.ServedRegion, r.Requests, r.Units)
		out.Rows = append(out.Rows, &adminv1.TotalsRow{Start: stamp(r.Start), Product: r.Product, Plan: r.Plan, Api: r.API, ServedRegion: r.ServedRegion,
			Outcome: r.Outcome, Requests: r.Requests, Units: r.Units, Correction: r.Correction})
	}
	return out
}

// TotalsProto and TotalsFrom carry a zone's sums between control nodes. The total is left to whoever answers
// the operator: what a product bills is the catalog's word, which all of them hold.
func TotalsProto(z ZoneTotals) *adminv1.ZoneTotals {
	return totalsToProto(z, func(_, outcome, _ string) bool { return outcome == "success" })
}

// TotalsFrom is the inverse of TotalsProto.
func TotalsFrom(z *adminv1.ZoneTotals) ZoneTotals {
	out := ZoneTotals{Zone: z.GetZone(), Age: z.GetAge().AsDuration(), Error: z.GetError()}
	if z.GetCompleteThrough() != nil {
		out.CompleteThrough = z.GetCompleteThrough().AsTime()
	}
	for _, r := range z.GetRows() {
		row := TotalsRow{Product: r.GetProduct(), Plan: r.GetPlan(), API: r.GetApi(), ServedRegion: r.GetServedRegion(),
			Outcome: r.GetOutcome(), Correction: r.GetCorrection(), Requests: r.GetRequests(), Units: r.GetUnits()}
		if r.GetStart() != nil {
			row.Start = r.GetStart().AsTime()
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}

// biller reads which outcomes a product bills: of this node's copy of the catalog, so that usage never waits
// for the catalog's quorum. A product that is gone bills what one bills by default. What is booked on none (free routes,
// OPTIONS) is not billed.
func biller(snap group.Snapshot) func(product, outcome, served string) bool {
	products := map[string]model.Product{}
	for kv := range snap.List(model.PrefixProduct) {
		if p, err := model.Decode[model.Product](kv.Key, kv.Value); err == nil {
			products[p.Name] = p
		}
	}
	return func(product, outcome, served string) bool {
		return product != "" && products[product].Bills(outcome, served)
	}
}

// add counts as design.md §7 says: what was limited or refused is no request.
func add(t *adminv1.UsageTotal, bills func(product, outcome, served string) bool, product, outcome, served string, requests, units int64) {
	switch outcome {
	case "limited":
		t.Limited += requests
		return
	case "refused":
		return
	case "client_error", "upstream_error", "aborted", "unserved":
		t.Errors += requests
	}
	t.Requests += requests
	t.Units += units
	if bills(product, outcome, served) {
		t.Billable += requests
	}
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
