package adminapi

import (
	"cmp"
	"context"
	"slices"

	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/uptime"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/regions/answer"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Regions tells how the zone's edges see each of its regions, whether their DNS answers name it, and what still
// happens there: what a drain has come to. It rests on what edges reported last and asks none. Other zones' regions
// are in the catalog; only their own control nodes know more of them.
func (s *server) Regions(ctx context.Context, _ *adminv1.RegionsRequest) (*adminv1.RegionsResponse, error) {
	cat := state{snap: s.freshOrLocal(ctx, s.Catalog)}
	var nodes []model.Node
	for kv := range cat.snap.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	reports, err := s.reportsByEdge(ctx)
	if err != nil {
		return nil, err
	}
	doors, err := edgesOf(cat, s.Zone)
	if err != nil {
		return nil, err
	}
	world, _, err := worldOf(cat, model.API{Zone: s.Zone}, doors)
	if err != nil {
		return nil, err
	}
	drains, err := s.drains(ctx, &world)
	if err != nil {
		return nil, err
	}
	for _, r := range world.Regions { // of no API in particular: as if one were everywhere
		world.Deployed = append(world.Deployed, r.Name)
	}
	out := &adminv1.RegionsResponse{}
	for kv := range cat.snap.List(model.PrefixRegion) {
		r, err := model.Decode[model.Region](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if r.Zone != s.Zone {
			continue
		}
		row := &adminv1.RegionState{Name: r.Name, Zone: r.Zone, ControlOnly: r.ControlOnly, Drain: cmp.Or(drains[r.Name].Reason, r.Drain)}
		_, byZone := drains[r.Name]
		know := func(e *peerv1.EdgeReport) bool { return knows(e, r, kv.ModIndex, byZone) }
		for _, n := range nodes {
			if n.Kind == "edge" && n.Zone == s.Zone {
				see(row, n, reports[n.Name], know)
			}
		}
		for _, n := range doors {
			if !n.Doors.DNS || !reports[n.Name].GetConnected() {
				continue
			}
			row.Names++
			behind := !know(reports[n.Name]) // what it answers follows from the region as it was
			named, share := names(world, n, reports[n.Name], r.Name)
			if behind && row.Drain != "" || !behind && named {
				row.Naming++
			}
			if share > 0 && (row.Share == 0 || share < row.Share) {
				row.Share = share
			}
		}
		slices.SortFunc(row.Views, func(a, b *adminv1.RegionView) int { return cmp.Compare(a.Edge, b.Edge) })
		r.Drain = row.Drain
		for _, judged := range uptime.Judge(s.Zone, []model.Region{r}, outlooks(row)) { // none of one that is control only
			row.State = judged.State
		}
		out.Regions = append(out.Regions, row)
	}
	return out, nil
}

// outlooks are what edges think of a region, for the one place that judges it.
func outlooks(row *adminv1.RegionState) (out []uptime.Outlook) {
	for _, v := range row.Views {
		out = append(out, uptime.Outlook{Edge: v.Edge, Alive: map[string]bool{row.Name: v.Healthy}})
	}
	return out
}

// knows says whether an edge holds a region as it stands: as the catalog wrote it last, at, and with what its zone says
// of a drain. Of the latter the edge itself tells whether it has it, since what is deleted rests nowhere.
func knows(e *peerv1.EdgeReport, r model.Region, at uint64, byZone bool) bool {
	if e.GetCatalog().GetIndex() < at {
		return false
	}
	if r.Drain != "" {
		return true
	}
	for _, v := range e.GetStatus().GetOutlook().GetRegions() {
		if v.GetRegion() == r.Name {
			return v.GetDrained() == byZone
		}
	}
	return !byZone
}

// see adds what an edge tells to a region's row.
func see(row *adminv1.RegionState, n model.Node, r *peerv1.EdgeReport, know func(*peerv1.EdgeReport) bool) {
	if n.Region == row.Name {
		row.Edges++
	}
	if !r.GetConnected() {
		return
	}
	row.EdgesAlive++
	if know(r) {
		row.EdgesAcked++
	}
	if n.Region == row.Name {
		row.EdgesConnected++
		load := r.GetStatus().GetLoad()
		row.Accepted += load.GetAccepted()
		row.RelaysOut += load.GetRelaysOut()
		row.RelaysIn += load.GetRelaysIn()
	}
	for _, v := range r.GetStatus().GetOutlook().GetRegions() {
		if v.GetRegion() != row.Name {
			continue
		}
		view := &adminv1.RegionView{Edge: n.Name, Region: n.Region, Healthy: v.GetHealthy(), Why: verdictWords(v)}
		if ms := v.GetSinceUnixMs(); ms != 0 {
			view.Since = &timestamppb.Timestamp{Seconds: ms / 1000, Nanos: int32(ms%1000) * 1_000_000}
		}
		row.Views = append(row.Views, view)
	}
}

// names says whether an edge's answers name a region, by the region as it stands and the edge's own verdicts, and, if
// it returns, in how many percent of them.
func names(w answer.World, n model.Node, r *peerv1.EdgeReport, region string) (named bool, share int32) {
	for _, v := range edgeAnswer(w, n, r, "A").GetRegions() {
		if v.GetRegion() == region {
			return v.GetAnswered(), v.GetShare()
		}
	}
	return false, 0
}

// reportsByEdge is what edges reported last; none if nobody knows.
func (s *server) reportsByEdge(ctx context.Context) (map[string]*peerv1.EdgeReport, error) {
	out := map[string]*peerv1.EdgeReport{}
	if s.Edges == nil {
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
	defer cancel()
	reports, _, err := s.Edges.Reports(ctx)
	if err != nil {
		s.Logger.WarnContext(ctx, "edge reports unavailable", "err", err)
	}
	for _, r := range reports {
		out[r.GetEdge()] = r
	}
	return out, nil
}
