package controlplane

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/detail"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	traceTimeout = 30 * time.Second // of one node
	pageRows     = 2000             // of one message
	pageShares   = 20_000
)

// ownDetail answers from this node's disk.
type ownDetail struct{ *Node }

// Trace implements carrier.Detail.
func (o ownDetail) Trace(ctx context.Context, req *peerv1.TraceRequest, send func(*peerv1.TraceResponse) error) error {
	q := detail.Query{Customer: req.Customer, Since: req.Since.AsTime(), Until: req.Until.AsTime(), API: req.Api, Route: req.Route}
	if req.Customer == "" || req.Since == nil || req.Until == nil || req.Limit < -1 {
		return fault.New(fault.Invalid, "TRACE_INVALID", "a trace needs a customer, a time range and a limit of -1 or above")
	}
	switch len(req.RequestId) {
	case 0:
	case len(q.RequestID):
		q.RequestID = [16]byte(req.RequestId)
	default:
		return fault.New(fault.Invalid, "TRACE_INVALID", "a request id has %d bytes, not %d", len(req.RequestId), len(q.RequestID))
	}
	if req.Outcome != "" {
		var err error
		if q.Outcome, err = usage.ParseOutcome(req.Outcome); err != nil {
			return fault.New(fault.Invalid, "OUTCOME_UNKNOWN", "%v", err)
		}
	}
	var page []*adminv1.TraceRow
	flush := func(full int) error {
		if len(page) < full || len(page) == 0 {
			return nil
		}
		err := send(&peerv1.TraceResponse{Rows: page})
		page = nil
		return err
	}
	if req.Limit < 0 {
		facts, err := o.detail.Each(ctx, q, func(r *detail.Row) error {
			page = append(page, traceRow(r))
			return flush(pageRows)
		})
		if err == nil {
			err = flush(1)
		}
		if err != nil {
			return err
		}
		return send(&peerv1.TraceResponse{Facts: factsProto(facts)})
	}
	found, err := o.detail.Trace(ctx, q, int(req.Limit))
	if err != nil {
		return err
	}
	for i := range found.Rows {
		page = append(page, traceRow(&found.Rows[i]))
		if err := flush(pageRows); err != nil {
			return err
		}
	}
	if err := flush(1); err != nil {
		return err
	}
	var sums []*peerv1.TraceSum
	shares := 0
	for _, s := range found.Sums {
		for part := range slices.Chunk(s.Shares, pageShares) {
			sums, shares = append(sums, sumProto(s.Cell, part)), shares+len(part)
			if shares >= pageShares {
				if err := send(&peerv1.TraceResponse{Sums: sums}); err != nil {
					return err
				}
				sums, shares = nil, 0
			}
		}
	}
	return send(&peerv1.TraceResponse{Sums: sums, Truncated: found.Truncated, Facts: factsProto(found.Facts)})
}

func sumProto(c detail.Cell, shares []detail.Share) *peerv1.TraceSum {
	out := &peerv1.TraceSum{Cell: c.Start, Api: c.API, Route: c.Route, Plan: c.Plan, ServedRegion: c.ServedRegion, Outcome: c.Outcome.String()}
	for _, s := range shares {
		out.Shares = append(out.Shares, &peerv1.TraceShare{Edge: s.Edge, Epoch: s.Epoch, Number: s.Number, Seq: s.Seq, Requests: s.Requests, Units: s.Units})
	}
	return out
}

func factsProto(f detail.Facts) *peerv1.DetailFacts {
	out := &peerv1.DetailFacts{KeptSince: timestamppb.New(f.KeptSince), Damaged: f.Damaged}
	for _, l := range f.Lost {
		out.Lost = append(out.Lost, &adminv1.TraceLost{Edge: l.Edge, Epoch: l.Epoch, Rows: l.Rows, Since: timestamppb.New(l.Since), Until: timestamppb.New(l.Until)})
	}
	return out
}

func traceRow(r *detail.Row) *adminv1.TraceRow {
	id := r.RequestID
	return &adminv1.TraceRow{RequestId: fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), End: timestamppb.New(time.UnixMilli(r.EndUnixMS)),
		Edge: r.Edge, Epoch: r.Epoch, Seq: r.Seq, Number: r.Number, Region: r.Region, Api: r.API, Route: r.Route, Plan: r.Plan, PlanRev: r.PlanRev,
		Product: r.Product, Subscription: r.Subscription, KeyId: r.KeyID, Outcome: r.Outcome.String(), Status: int32(r.Status), ServedRegion: r.ServedRegion,
		Units: r.Units, BytesIn: r.BytesIn, BytesOut: r.BytesOut, LatencyUs: r.LatencyUS, UpstreamUs: r.UpstreamUS, Attempts: int32(r.Attempts),
		Actor: pseudonym(r.Actor), Address: pseudonym(r.Address)}
}

func pseudonym(v uint64) string {
	if v == 0 {
		return ""
	}
	return hex.EncodeToString([]byte{byte(v >> 56), byte(v >> 48), byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// Erase implements carrier.Detail.
func (o ownDetail) Erase(ctx context.Context, req *peerv1.EraseDetailRequest) (*peerv1.EraseDetailResponse, error) {
	if err := o.store.WaitFor(ctx, req.ZoneIndex); err != nil {
		return nil, fault.New(fault.Unavailable, "NOT_APPLIED_HERE", "node %s has not heard of the erasure of %s yet: %w", o.self.Name, req.Customer, err)
	}
	e, err := o.detail.Erase(ctx, req.Customer)
	if err != nil {
		return nil, err
	}
	return &peerv1.EraseDetailResponse{Files: e.Files, Rows: e.Rows, Before: e.Before, After: e.After}, nil
}

// zoneDetail asks every control node of the zone, this one without the detour over the wire.
type zoneDetail struct{ *Node }

func (z zoneDetail) trace(ctx context.Context, node string, req *peerv1.TraceRequest, each func(*peerv1.TraceResponse) error) error {
	complete := false
	take := func(m *peerv1.TraceResponse) error {
		complete = m.Facts != nil
		return each(m)
	}
	var err error
	if node == z.self.Name {
		err = ownDetail(z).Trace(ctx, req, take)
	} else {
		err = z.carrier.Trace(ctx, node, req, take)
	}
	if err == nil && !complete {
		err = fault.New(fault.Unavailable, "TRACE_CUT", "the answer of node %s broke off", node)
	}
	return err
}

type pieceKey struct {
	edge          string
	epoch, number uint64
}

// answer is one node's, put together.
type answer struct {
	rows      []*adminv1.TraceRow
	sums      []*peerv1.TraceSum
	truncated bool
	facts     *peerv1.DetailFacts
	err       error
}

// Trace implements adminapi.Detail.
func (z zoneDetail) Trace(ctx context.Context, req *peerv1.TraceRequest) (*adminapi.Traced, error) {
	nodes := z.zoneNodes(z.self.Zone)
	answers := make([]answer, len(nodes))
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() {
			a := &answers[i]
			a.err = z.trace(ctx, node.Name, req, func(m *peerv1.TraceResponse) error {
				a.rows, a.sums, a.truncated, a.facts = append(a.rows, m.Rows...), append(a.sums, m.Sums...), a.truncated || m.Truncated, m.Facts
				return nil
			})
		})
	}
	wg.Wait()
	var names []string
	for i, node := range nodes {
		names = append(names, node.Name)
		if err := answers[i].err; err != nil {
			z.log.Warn("trace of a node fails", "peer", node.Name, "error", err)
		}
	}
	return merge(names, answers, int(req.Limit))
}

// merge adds up the nodes' answers, each piece once: its copies are the same, so the first one counts.
func merge(nodes []string, answers []answer, limit int) (*adminapi.Traced, error) {
	out := &adminapi.Traced{Cells: map[adminapi.TraceCell]*adminapi.TraceSums{}}
	owner := map[pieceKey]int{} // the node whose copy of a piece counts
	for i, node := range nodes {
		a := &answers[i]
		switch {
		case fault.KindOf(a.err) == fault.TooLarge || fault.KindOf(a.err) == fault.Invalid:
			return nil, a.err
		case a.err != nil:
			out.Unreachable = append(out.Unreachable, node)
			continue
		}
		mine := func(edge string, epoch, number uint64) bool {
			k := pieceKey{edge, epoch, number}
			at, taken := owner[k]
			if !taken {
				owner[k] = i
			}
			return !taken || at == i
		}
		for _, l := range a.facts.Lost { // told to two nodes, as a piece may be
			if !slices.ContainsFunc(out.Lost, func(o *adminv1.TraceLost) bool { return proto.Equal(o, l) }) {
				out.Lost = append(out.Lost, l)
			}
		}
		if kept := a.facts.KeptSince.AsTime(); kept.After(out.KeptSince) {
			out.KeptSince = kept
		}
		for _, f := range a.facts.Damaged {
			out.Damaged = append(out.Damaged, node+"/"+f)
		}
		for _, s := range a.sums {
			addShares(out.Cells, s, mine)
		}
		for _, r := range a.rows {
			if mine(r.Edge, r.Epoch, r.Number) {
				out.Rows = append(out.Rows, r)
			}
		}
		out.Truncated = out.Truncated || a.truncated
	}
	slices.SortStableFunc(out.Rows, func(a, b *adminv1.TraceRow) int {
		return cmp.Or(a.End.AsTime().Compare(b.End.AsTime()), cmp.Compare(a.Edge, b.Edge), cmp.Compare(a.Number, b.Number))
	})
	if len(out.Rows) > limit {
		out.Rows, out.Truncated = out.Rows[:limit], true
	}
	if len(out.Unreachable) == len(nodes) {
		return nil, answers[0].err
	}
	return out, nil
}

func addShares(cells map[adminapi.TraceCell]*adminapi.TraceSums, s *peerv1.TraceSum, mine func(string, uint64, uint64) bool) {
	k := adminapi.TraceCell{Start: s.Cell, API: s.Api, Route: s.Route, Plan: s.Plan, ServedRegion: s.ServedRegion, Outcome: s.Outcome}
	sums := cells[k]
	if sums == nil {
		sums = &adminapi.TraceSums{}
		cells[k] = sums
	}
	for _, p := range s.Shares {
		if !mine(p.Edge, p.Epoch, p.Number) {
			continue
		}
		sums.Requests, sums.Units = sums.Requests+p.Requests, sums.Units+p.Units
		name := p.Edge + "/" + strconv.FormatUint(p.Epoch, 10) + "/" + strconv.FormatUint(p.Seq, 10)
		if n := len(sums.Blocks); n == 0 || sums.Blocks[n-1] != name { // shares come in order
			sums.Blocks = append(sums.Blocks, name)
		}
	}
}

// Rows implements adminapi.Detail: node after node, so that a piece that rests on two is known by then.
func (z zoneDetail) Rows(ctx context.Context, customer string, each func([]*adminv1.TraceRow) error) (unreachable []string, err error) {
	seen := map[pieceKey]string{}
	req := &peerv1.TraceRequest{Customer: customer, Since: timestamppb.New(time.Unix(0, 0)), Until: timestamppb.New(time.Now().Add(24 * time.Hour)), Limit: -1}
	var caller error
	for _, node := range z.zoneNodes(z.self.Zone) {
		err := z.trace(ctx, node.Name, req, func(m *peerv1.TraceResponse) error {
			rows := slices.DeleteFunc(m.Rows, func(r *adminv1.TraceRow) bool {
				k := pieceKey{r.Edge, r.Epoch, r.Number}
				if seen[k] == "" {
					seen[k] = node.Name
				}
				return seen[k] != node.Name
			})
			caller = each(rows)
			return caller
		})
		switch {
		case caller != nil || ctx.Err() != nil:
			return unreachable, errors.Join(caller, ctx.Err())
		case err != nil:
			z.log.Warn("export of a node's detail fails", "peer", node.Name, "error", err)
			unreachable = append(unreachable, node.Name)
		}
	}
	return unreachable, nil
}

// Erase implements adminapi.Detail.
func (z zoneDetail) Erase(ctx context.Context, customer string, index uint64) []adminapi.NodeErasure {
	nodes := z.zoneNodes(z.self.Zone)
	out := make([]adminapi.NodeErasure, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() {
			req := &peerv1.EraseDetailRequest{Customer: customer, ZoneIndex: index}
			var e *peerv1.EraseDetailResponse
			var err error
			if node.Name == z.self.Name {
				e, err = ownDetail(z).Erase(ctx, req)
			} else {
				e, err = z.carrier.EraseDetail(ctx, node.Name, req)
			}
			out[i] = adminapi.NodeErasure{Node: node.Name, Files: e.GetFiles(), Rows: e.GetRows(), Before: e.GetBefore(), After: e.GetAfter(), Err: err}
		})
	}
	wg.Wait()
	return out
}
