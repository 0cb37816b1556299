package adminapi

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
)

// Status tells what the zone has adopted less its closures, which is what its edges may do, and not what the
// catalog says. It reads this node's copy if the zone has no quorum.
func (s *server) Status(ctx context.Context, _ *adminv1.BorderStatusRequest) (*adminv1.BorderStatusResponse, error) {
	zone := state{snap: s.freshOrLocal(ctx, s.Store)}
	out := &adminv1.BorderStatusResponse{}
	var adopted model.Adopted
	if kv, ok := zone.snap.Get(model.KeyAdopted); ok {
		var err error
		if adopted, err = model.Decode[model.Adopted](kv.Key, kv.Value); err != nil {
			return nil, err
		}
	}
	out.AdoptedCatalogEpoch, out.AdoptedCatalogIndex = adopted.CatalogEpoch, adopted.CatalogIndex
	set, err := adopted.Compile()
	if err != nil {
		return nil, fault.New(fault.Internal, "ADOPTED_MALFORMED", "compile the adopted rules: %w", err)
	}
	closures, err := closuresOf(zone, adopted.CatalogEpoch)
	if err != nil {
		return nil, err
	}
	for _, p := range set.Pairs(time.Now(), closures) {
		from, _ := set.Region(p.From)
		to, _ := set.Region(p.To)
		if from.Zone == s.Zone || to.Zone == s.Zone {
			out.Pairs = append(out.Pairs, &adminv1.PermittedPair{Policy: p.Policy, From: p.From, To: p.To, Basis: p.Basis})
		}
	}
	if crossing, ok, err := stored[model.Crossing](zone.snap, model.KeyCrossing); err != nil {
		return nil, err
	} else if ok {
		out.CrossingClosed = crossing.Closed(adopted.CatalogEpoch, zone.snap.Revision().Epoch)
	}
	out.Tightenings, out.Sentinels, err = s.tightenings(ctx, zone)
	return out, err
}

// tightenings, and what sentinels stopped, come from the leader, who knows for whom they wait, or else from the log, which knows when each
// was in force.
func (s *server) tightenings(ctx context.Context, zone state) ([]*adminv1.Tightening, []*adminv1.Sentinel, error) {
	if s.Edges != nil {
		ctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
		defer cancel()
		if reports, live, err := s.Edges.Reports(ctx); err == nil {
			return live, sentinels(reports), nil
		}
	}
	var out []*adminv1.Tightening
	for kv := range zone.snap.List(model.PrefixInForce) {
		r, err := model.Decode[model.InForce](kv.Key, kv.Value)
		if err != nil {
			return nil, nil, err
		}
		t := &adminv1.Tightening{Policy: r.Policy, From: r.From, To: r.To, Why: r.Why, CommittedAt: timestamppb.New(r.CommittedAt)}
		if !r.At.IsZero() {
			t.InForceAt = timestamppb.New(r.At)
		}
		out = append(out, t)
	}
	slices.SortStableFunc(out, func(a, b *adminv1.Tightening) int {
		return cmp.Compare(b.CommittedAt.AsTime().UnixNano(), a.CommittedAt.AsTime().UnixNano())
	})
	return out[:min(len(out), 100)], nil, nil
}

// sentinels are what edges say of their second checks.
func sentinels(reports []*peerv1.EdgeReport) (out []*adminv1.Sentinel) {
	for _, r := range reports {
		if st := r.GetStatus(); st != nil {
			out = append(out, &adminv1.Sentinel{Edge: r.GetEdge(), Violations: st.GetSentinelViolations(), Late: st.GetSentinelLate()})
		}
	}
	slices.SortFunc(out, func(a, b *adminv1.Sentinel) int { return cmp.Compare(a.Edge, b.Edge) })
	return out
}
