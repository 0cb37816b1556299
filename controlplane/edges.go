package controlplane

import (
	"bytes"
	"context"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
	"bailiwick/controlplane/internal/uptime"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
)

// reportEvery is how often this node speaks of its edges when nothing changed; changes are told within
// reportSoon. The leader takes a node that is silent for five seconds for gone.
const (
	reportEvery = time.Second
	reportSoon  = 50 * time.Millisecond
)

// report tells the zone store's leader what this node knows of the edges connected to it: acknowledgements
// bring tightenings into force, and node list shows them.
func (n *Node) report(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := n.sync.ReportsChanged()
		n.tell(ctx)
		timer.Reset(reportEvery)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-changed:
			select { // gather what changes together
			case <-ctx.Done():
				return nil
			case <-time.After(reportSoon):
			}
		}
	}
}

func (n *Node) tell(ctx context.Context) {
	reports := n.sync.Reports()
	leader, self := n.store.Leader()
	var err error
	switch {
	case self:
		err = n.keeper.Report(reports)
	case leader != "":
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		err = n.carrier.Report(ctx, leader, reports)
	}
	if err != nil && ctx.Err() == nil {
		n.log.Debug("report edges", "leader", leader, "error", err)
	}
}

// zoneEdges answers for adminapi what the zone's leader knows; without a leader, what this node knows itself.
type zoneEdges struct{ *Node }

func (e zoneEdges) Reports(ctx context.Context) ([]*peerv1.EdgeReport, []*adminv1.Tightening, error) {
	leader, self := e.store.Leader()
	if leader != "" && !self {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if edges, tightenings, err := e.carrier.Reports(ctx, leader); err == nil {
			return edges, tightenings, nil
		}
	}
	if self {
		edges, err := e.keeper.Reports()
		if err == nil {
			tightenings, err := e.keeper.Tightenings()
			return edges, tightenings, err
		}
		if fault.ReasonOf(err) != "NOT_LEADER" {
			return nil, nil, err
		}
	}
	tightenings, err := e.keeper.Tightenings()
	return e.sync.Reports(), tightenings, err
}

func (n *Node) regions() (out []model.Region) {
	for kv := range n.catalog.Local().List(model.PrefixRegion) {
		if r, err := model.Decode[model.Region](kv.Key, kv.Value); err == nil {
			if d, there := n.store.Local().Get(model.PrefixDrain + r.Name); there && r.Drain == "" && r.Zone == n.self.Zone {
				if by, err := model.Decode[model.Drain](d.Key, d.Value); err == nil {
					r.Drain = by.Reason
				}
			}
			out = append(out, r)
		}
	}
	return out
}

// outlooks are those of connected edges, as this node knows them while it leads the zone store.
func (n *Node) outlooks() (out []uptime.Outlook, err error) {
	reports, err := n.keeper.Reports()
	for _, r := range reports {
		look := r.GetStatus().GetOutlook()
		if !r.GetConnected() || look == nil {
			continue
		}
		o := uptime.Outlook{Edge: r.GetEdge(), Alive: map[string]bool{}}
		for _, v := range look.GetRegions() {
			o.Alive[v.GetRegion()] = v.GetHealthy()
		}
		out = append(out, o)
	}
	return out, err
}

// rolloutReports is what roll-outs are judged by, as this node knows it while it leads the zone store.
func (n *Node) rolloutReports() (out []rollout.EdgeReport, err error) {
	reports, err := n.keeper.Reports()
	for _, r := range reports {
		status, held, want := r.GetStatus(), r.GetCatalog(), r.GetCatalogWant()
		e := rollout.EdgeReport{Epoch: held.GetEpoch(), Index: held.GetIndex(),
			Newest: held.GetEpoch() == want.GetEpoch() && bytes.Equal(held.GetSum(), want.GetSum()),
			Report: rollout.Report{Edge: r.GetEdge(), Region: r.GetRegion(), Connected: r.GetConnected(), Ready: status.GetReady(), Refuses: r.GetNackReason(), Unusable: status.GetQuarantinedTotal(),
				Judged: bytes.Equal(status.GetOutcomesSum(), held.GetSum())}}
		for _, o := range status.GetOutcomes() {
			e.Outcomes = append(e.Outcomes, rollout.Outcome{API: o.GetApi(), Kind: int(o.GetKind()), Requests: o.GetRequests(), Failed: o.GetFailed(),
				BeforeRequests: o.GetBeforeRequests(), BeforeFailing: o.GetBeforeFailed()})
		}
		out = append(out, e)
	}
	return out, err
}
