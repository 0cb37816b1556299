package adminapi

import (
	"context"
	"time"

	"bailiwick/controlplane/internal/correction"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// Ledger is what operators may do to the zone's ledger; *ledger.Ledger is one.
type Ledger interface {
	View(ctx context.Context) (*ledger.View, error)
	CloseEpoch(ctx context.Context, c ledger.Closing) (ledger.Watermark, error)
	Correct(ctx context.Context, c *correction.Correction) (repeated bool, err error)
}

// view is linearizable: an operator sees what he has just done.
func (s *server) view(ctx context.Context) (*ledger.View, error) {
	if s.Ledger == nil {
		return nil, s.usageOff()
	}
	v, err := s.Ledger.View(ctx)
	if err != nil {
		return nil, s.explainLedger(err)
	}
	return v, nil
}

func (s *server) explainLedger(err error) error {
	if fault.KindOf(err) == fault.Unavailable {
		return fault.New(fault.Unavailable, fault.ReasonOf(err), "the ledger of zone %s does not answer: %v", s.Zone, err)
	}
	return err
}

// ListEpochs shows what the ledger knows of each edge's usage.
func (s *server) ListEpochs(ctx context.Context, req *adminv1.ListEpochsRequest) (*adminv1.ListEpochsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	epochs, err := v.Edges(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListEpochsResponse{}
	for i := range epochs {
		if req.GetEdge() == "" || req.GetEdge() == epochs[i].Edge {
			out.Epochs = append(out.Epochs, epochToProto(&epochs[i]))
		}
	}
	return out, nil
}

func epochToProto(e *ledger.EdgeEpoch) *adminv1.LedgerEpoch {
	return &adminv1.LedgerEpoch{Edge: e.Edge, Region: e.Region, Epoch: e.Epoch, AppliedSeq: e.Applied, SealedSeq: e.Sealed,
		Through: stamp(e.Through), Status: e.Status(), Gap: e.Gap, ForkedSeq: e.Forked,
		ClosedBy: e.ClosedBy, ClosedAt: stamp(e.ClosedAt), ClosedReason: e.ClosedWhy, Held: heldNames[e.Held]}
}

var heldNames = map[ledger.Held]string{ledger.HeldAuto: "auto", ledger.HeldReturn: "return", ledger.HeldForfeit: "forfeit"}

// CloseEpoch ends an epoch for good, so it is refused while its edge is connected and still fills it: what that
// edge has answered since would be lost. A quarantined one may be closed at any time, since nothing of it is
// taken any more.
func (s *server) CloseEpoch(ctx context.Context, req *adminv1.CloseEpochRequest) (*adminv1.CloseEpochResponse, error) {
	found, newest, err := s.epoch(ctx, req.GetEdge(), req.GetEpoch())
	if err != nil {
		return nil, err
	}
	switch {
	case found == nil && newest == 0 && !s.isEdge(req.GetEdge()):
		return nil, fault.New(fault.NotFound, "EDGE_NOT_FOUND", "edge %q is not in the registry, and the ledger of zone %s has no usage of it", req.GetEdge(), s.Zone).At("edge")
	case found == nil && req.GetSealedSeq() == 0:
		return nil, fault.New(fault.Invalid, "EPOCH_UNKNOWN", "the ledger knows no epoch %d of edge %s: if blocks of it are known to be lost, say up to which number (sealed_seq)", req.GetEpoch(), req.GetEdge()).At("epoch")
	case found != nil && !found.Closed && !found.Quarantined && req.GetEpoch() >= newest && s.connected(ctx, req.GetEdge()):
		return nil, fault.New(fault.Conflict, "EPOCH_IN_USE", "edge %s is connected and fills epoch %d: stop it or remove it first, or what it counts from now on is lost", req.GetEdge(), req.GetEpoch())
	}
	c := ledger.Closing{Edge: req.GetEdge(), Epoch: req.GetEpoch(), Sealed: req.GetSealedSeq(), At: time.Now(), By: operator(ctx), Reason: req.GetReason()}
	for held, name := range heldNames {
		if name == req.GetHeld() {
			c.Held = held
		}
	}
	if _, err := s.Ledger.CloseEpoch(ctx, c); err != nil {
		return nil, s.explainLedger(err)
	}
	found, _, err = s.epoch(ctx, req.GetEdge(), req.GetEpoch())
	if err != nil || found == nil {
		return nil, err
	}
	return &adminv1.CloseEpochResponse{Epoch: epochToProto(found)}, nil
}

// epoch finds one, and the newest that its edge has begun.
func (s *server) epoch(ctx context.Context, edge string, number uint64) (found *ledger.EdgeEpoch, newest uint64, err error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer v.Close()
	epochs, err := v.Edges(ctx)
	for i := range epochs {
		if e := &epochs[i]; e.Edge == edge {
			newest = max(newest, e.Epoch)
			if e.Epoch == number {
				found = e
			}
		}
	}
	return found, newest, err
}

func (s *server) isEdge(name string) bool {
	kv, ok := s.Catalog.Local().Get(model.PrefixNode + name)
	if !ok {
		return false
	}
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	return err == nil && n.Kind == "edge" && n.Zone == s.Zone
}

// connected is best effort: an edge of which nothing is known is taken for gone.
func (s *server) connected(ctx context.Context, edge string) bool {
	if s.Edges == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
	defer cancel()
	list, _, err := s.Edges.Reports(ctx)
	for _, r := range list {
		if r.GetEdge() == edge && r.GetConnected() {
			return err == nil
		}
	}
	return false
}

// ListRefusals counts what was refused, by edge and reason.
func (s *server) ListRefusals(ctx context.Context, _ *adminv1.ListRefusalsRequest) (*adminv1.ListRefusalsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	list, err := v.Refusals(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListRefusalsResponse{}
	for i := range list {
		r := &list[i]
		out.Refusals = append(out.Refusals, &adminv1.UsageRefusal{Edge: r.Edge, Reason: r.Reason, Count: r.Count, SampleEpoch: r.Epoch, SampleSeq: r.Seq,
			SampleDetail: r.Detail, First: stamp(r.First), Last: stamp(r.Last)})
	}
	return out, nil
}

// ListPeriods lists closed days, and why each was closed.
func (s *server) ListPeriods(ctx context.Context, _ *adminv1.ListPeriodsRequest) (*adminv1.ListPeriodsResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	list, err := v.Periods(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListPeriodsResponse{}
	for i := range list {
		p := &list[i]
		out.Periods = append(out.Periods, &adminv1.ClosedPeriod{Day: p.Day.Format(time.DateOnly), ClosedAt: stamp(p.ClosedAt), Why: p.Why.String(), WaitedFor: p.WaitedFor, Compacted: p.Folded})
	}
	return out, nil
}

func (s *server) ListSinks(ctx context.Context, _ *adminv1.ListSinksRequest) (*adminv1.ListSinksResponse, error) {
	v, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	list, err := v.Sinks(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListSinksResponse{}
	for _, k := range list {
		out.Sinks = append(out.Sinks, &adminv1.SinkPosition{Name: k.Name, Position: k.Position, Lost: k.Lost, LostFrom: k.LostFrom, LostTo: k.LostTo})
	}
	return out, nil
}
