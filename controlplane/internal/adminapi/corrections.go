package adminapi

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/correction"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Correct books signed quantities on cells of a customer, or says what they would do.
func (s *server) Correct(ctx context.Context, req *adminv1.CorrectRequest) (*adminv1.CorrectResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	c := &correction.Correction{Producer: req.GetProducer(), RequestID: req.GetRequestId(), Kind: correction.Imported, Customer: req.GetCustomer(),
		Reason: req.GetReason(), By: operator(ctx), Node: s.Node, AtMS: time.Now().UnixMilli()}
	if c.Producer == "" {
		c.Producer, c.Kind = c.By, correction.Booked
	}
	if c.Rows, err = s.correctionRows(ctx, v, req.GetCustomer(), req.GetRows()); err != nil {
		return nil, err
	}
	return s.book(ctx, v, c, req.GetDryRun())
}

// UndoCorrection books the exact opposite of a correction and links the two.
func (s *server) UndoCorrection(ctx context.Context, req *adminv1.UndoCorrectionRequest) (*adminv1.CorrectResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	was, err := v.Correction(req.GetId())
	if err != nil {
		return nil, err
	}
	if was == nil {
		return nil, fault.New(fault.NotFound, ledger.ReasonNoCorrection, "undo correction %s: the ledger of zone %s has none of that id", req.GetId(), s.Zone).At("id")
	}
	c := &correction.Correction{Producer: operator(ctx), RequestID: req.GetRequestId(), Kind: correction.Booked, Customer: was.Customer, Reason: req.GetReason(),
		By: operator(ctx), Node: s.Node, AtMS: time.Now().UnixMilli(), Corrects: was.ID(), Rows: was.Opposite()}
	return s.book(ctx, v, c, req.GetDryRun())
}

// book shows the customer's total over the days that c touches before and after, and books c unless it is a dry
// run. What v would refuse is not signed.
func (s *server) book(ctx context.Context, v *ledger.View, c *correction.Correction, dry bool) (*adminv1.CorrectResponse, error) {
	repeated, err := v.TryCorrect(c)
	if err != nil {
		return nil, err
	}
	out := &adminv1.CorrectResponse{Before: &adminv1.UsageTotal{}, After: &adminv1.UsageTotal{}, Repeated: repeated}
	bills := biller(s.Catalog.Local())
	lo, hi := int64(math.MaxInt64), int64(math.MinInt64)
	for i := range c.Rows {
		lo, hi = min(lo, c.Rows[i].Start), max(hi, c.Rows[i].Start+usage.CellSeconds)
	}
	err = v.Cells(ctx, c.Customer, time.Unix(lo, 0), time.Unix(hi, 0), func(r ledger.Row) error {
		for _, t := range []*adminv1.UsageTotal{out.Before, out.After} {
			add(t, bills, r.Cell.Product, r.Cell.Outcome.String(), r.Cell.ServedRegion, r.Sums.Requests, r.Sums.Units)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !repeated {
		for i := range c.Rows {
			add(out.After, bills, c.Rows[i].Product, c.Rows[i].Outcome, c.Rows[i].ServedRegion, c.Rows[i].Requests, c.Rows[i].Units)
		}
	}
	if dry {
		out.Correction = correctionToProto(&ledger.Booked{Correction: *c})
		return out, nil
	}
	if s.Signer == nil {
		return nil, fault.New(fault.Unimplemented, "CORRECTIONS_OFF", "node %s holds no key of zone %s to sign corrections with", s.Node, s.Zone)
	}
	if err := c.Sign(s.Signer); err != nil {
		return nil, fault.New(fault.TooLarge, "CORRECTION_TOO_LARGE", "%v", err)
	}
	if out.Repeated, err = s.Ledger.Correct(ctx, c); err != nil {
		return nil, s.explainLedger(err)
	}
	after, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer after.Close()
	booked, err := after.Correction(c.ID())
	if err != nil || booked == nil {
		return nil, cmp.Or(err, outran())
	}
	out.Correction = correctionToProto(booked)
	return out, nil
}

// correctionRows judges rows against what the zone knows, and fills in what can only be one thing. Rows on one
// cell are summed.
func (s *server) correctionRows(ctx context.Context, v *ledger.View, customer string, rows []*adminv1.CorrectionRow) ([]correction.Row, error) {
	store, catalog := s.freshOrLocal(ctx, s.Store), s.freshOrLocal(ctx, s.Catalog)
	var subscriptions []model.Subscription
	if kv, ok := store.Get(model.PrefixCustomer + customer); ok {
		c, err := model.Decode[model.Customer](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		subscriptions = c.Subscriptions
	} else if _, was := store.Get(model.PrefixGone + customer); !was { // one who is gone may still be credited
		return nil, s.customerUnknown(customer)
	}
	first, used, err := v.FirstUsage()
	if err != nil {
		return nil, err
	}
	if !used {
		return nil, fault.New(fault.Invalid, "PERIOD_UNKNOWN", "correct usage: zone %s has no usage yet: there is no period to correct", s.Zone)
	}
	now := time.Now()
	at := make(map[correction.Row]int) // where a cell's row is, quantities aside
	var out []correction.Row
	for i, r := range rows {
		bad := func(field, reason, format string, args ...any) error {
			return fault.New(fault.Invalid, reason, "correct usage: row %d: "+format, append([]any{i + 1}, args...)...).At("rows[" + strconv.Itoa(i) + "]." + field)
		}
		if r.GetCell() == nil || r.GetCell().CheckValid() != nil {
			return nil, bad("cell", "CELL_INVALID", "cell, a time, is required")
		}
		row := correction.Row{Start: usage.CellStart(r.GetCell().AsTime().UnixMilli()), Subscription: r.GetSubscription(), Plan: r.GetPlan(), Product: r.GetProduct(),
			API: r.GetApi(), Route: r.GetRoute(), ServedRegion: r.GetServedRegion(), Outcome: cmp.Or(r.GetOutcome(), usage.OutcomeSuccess.String())}
		switch {
		case r.GetCell().AsTime().After(now):
			return nil, bad("cell", "PERIOD_IN_FUTURE", "%s is in the future", r.GetCell().AsTime().Format(time.RFC3339))
		case row.Start < first:
			return nil, bad("cell", "PERIOD_UNKNOWN", "%s is before the zone's first usage, which was at %s", r.GetCell().AsTime().Format(time.RFC3339), time.Unix(first, 0).UTC().Format(time.RFC3339))
		}
		if _, err := usage.ParseOutcome(row.Outcome); err != nil {
			return nil, bad("outcome", "OUTCOME_UNKNOWN", "%v", err)
		}
		if err := complete(&row, subscriptions, catalog, s.Zone, bad); err != nil {
			return nil, err
		}
		j, known := at[row]
		if !known {
			j = len(out)
			at[row] = j
			out = append(out, row)
		}
		if abs64(r.GetRequests()) > correction.MaxQuantity || abs64(r.GetUnits()) > correction.MaxQuantity {
			return nil, bad("units", "QUANTITY_TOO_LARGE", "a quantity is beyond %d", int64(correction.MaxQuantity))
		}
		out[j].Requests += r.GetRequests()
		out[j].Units += r.GetUnits()
	}
	return slices.DeleteFunc(out, func(r correction.Row) bool { return r.Requests == 0 && r.Units == 0 }), nil
}

func abs64(v int64) int64 {
	if v < 0 {
		return -max(v, -math.MaxInt64)
	}
	return v
}

// complete checks a row's names, and fills in those that follow from the others.
func complete(row *correction.Row, subscriptions []model.Subscription, catalog group.Snapshot, zone string, bad func(field, reason, format string, args ...any) error) error {
	if row.Subscription == "" && len(subscriptions) == 1 {
		row.Subscription = subscriptions[0].Name
	}
	i := slices.IndexFunc(subscriptions, func(sub model.Subscription) bool { return sub.Name == row.Subscription })
	switch {
	case row.Subscription == "":
		return bad("subscription", "SUBSCRIPTION_REQUIRED", "the customer has %d subscriptions: say which", len(subscriptions))
	case row.Plan == "" && i >= 0:
		row.Plan = subscriptions[i].Plan
	case row.Plan == "":
		return bad("plan", "PLAN_REQUIRED", "the customer has no subscription %s now: say which plan it had", row.Subscription)
	}
	kv, ok := catalog.Get(model.PrefixPlan + row.Plan)
	if !ok {
		return bad("plan", "PLAN_UNKNOWN", "plan %q does not exist", row.Plan)
	}
	plan, err := model.Decode[model.Plan](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	kv, ok = catalog.Get(model.APIKey(zone, row.API))
	if !ok {
		return bad("api", "API_UNKNOWN", "API %q does not exist in zone %s", row.API, zone)
	}
	api, err := model.Decode[model.API](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	if row.Route == "" && len(api.Routes) == 1 {
		row.Route = api.Routes[0].Name
	}
	if row.Route != "" && !slices.ContainsFunc(api.Routes, func(r model.Route) bool { return r.Name == row.Route }) {
		return bad("route", "ROUTE_UNKNOWN", "API %s has no route %q", row.API, row.Route)
	}
	if row.Product == "" {
		for _, name := range plan.Products {
			if kv, ok := catalog.Get(model.PrefixProduct + name); ok {
				if p, err := model.Decode[model.Product](kv.Key, kv.Value); err == nil && slices.Contains(p.APIs, row.API) {
					row.Product = name
					break
				}
			}
		}
	}
	if _, ok := catalog.Get(model.PrefixProduct + row.Product); !ok {
		return bad("product", "PRODUCT_UNKNOWN", "product %q does not exist, or none of plan %s holds API %s", row.Product, row.Plan, row.API)
	}
	answered := row.Outcome == "success" || row.Outcome == "client_error" || row.Outcome == "upstream_error"
	if row.ServedRegion == "" && answered {
		if len(api.Upstreams) != 1 {
			return bad("served_region", "REGION_REQUIRED", "API %s is served from %d regions: say which", row.API, len(api.Upstreams))
		}
		row.ServedRegion = api.Upstreams[0].Region
	}
	if _, ok := catalog.Get(model.PrefixRegion + row.ServedRegion); !ok && row.ServedRegion != "" {
		return bad("served_region", "REGION_UNKNOWN", "region %q does not exist", row.ServedRegion)
	}
	return nil
}

// ListCorrections lists what was booked by hand, in the order of its time.
func (s *server) ListCorrections(ctx context.Context, req *adminv1.ListCorrectionsRequest) (*adminv1.ListCorrectionsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	list, err := v.Corrections(ctx, req.GetCustomer())
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && req.GetCustomer() != "" {
		store := s.freshOrLocal(ctx, s.Store)
		_, is := store.Get(model.PrefixCustomer + req.GetCustomer())
		if _, was := store.Get(model.PrefixGone + req.GetCustomer()); !is && !was {
			return nil, s.customerUnknown(req.GetCustomer())
		}
	}
	out := &adminv1.ListCorrectionsResponse{Zone: s.Zone}
	for i := range list {
		out.Corrections = append(out.Corrections, correctionToProto(&list[i]))
	}
	return out, nil
}

func correctionToProto(b *ledger.Booked) *adminv1.Correction {
	out := &adminv1.Correction{Id: b.ID(), Customer: b.Customer, Reason: b.Reason, By: b.By, At: timestamppb.New(time.UnixMilli(b.AtMS)), Corrects: b.Corrects,
		UndoneBy: b.UndoneBy, Kind: b.Kind, Signature: b.Signature, Producer: b.Producer, RequestId: b.RequestID, Node: b.Node}
	for i := range b.Rows {
		r := &b.Rows[i]
		out.Rows = append(out.Rows, &adminv1.CorrectionRow{Cell: timestamppb.New(time.Unix(r.Start, 0)), Subscription: r.Subscription, Plan: r.Plan, Product: r.Product,
			Api: r.API, Route: r.Route, ServedRegion: r.ServedRegion, Outcome: r.Outcome, Requests: r.Requests, Units: r.Units})
	}
	return out
}

// within is the corrections that touch [since, until), and as one more of kind late what came for closed days.
func within(report *UsageReport, customer string, since, until time.Time) []*adminv1.Correction {
	var out []*adminv1.Correction
	for i := range report.Corrections {
		b := &report.Corrections[i]
		if slices.ContainsFunc(b.Rows, func(r correction.Row) bool {
			return time.Unix(r.Start+usage.CellSeconds, 0).After(since) && time.Unix(r.Start, 0).Before(until)
		}) {
			out = append(out, correctionToProto(b))
		}
	}
	if len(report.Late) == 0 {
		return out
	}
	late := &adminv1.Correction{Customer: customer, Kind: "late", Reason: "arrived after its day was closed"}
	for _, r := range report.Late {
		late.Rows = append(late.Rows, &adminv1.CorrectionRow{Cell: timestamppb.New(time.Unix(r.Cell.Start, 0)), Subscription: r.Cell.Subscription, Plan: r.Cell.Plan,
			Product: r.Cell.Product, Api: r.Cell.API, Route: r.Cell.Route, ServedRegion: r.Cell.ServedRegion, Outcome: r.Cell.Outcome.String(),
			Requests: r.Sums.Requests, Units: r.Sums.Units})
	}
	return append(out, late)
}
