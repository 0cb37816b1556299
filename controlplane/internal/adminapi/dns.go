package adminapi

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/regions/answer"
	"bailiwick/shared/fault"
)

// Explain tells what each edge answers for a host: the same function that edges answer by, over the catalog and
// what each edge last reported. It asks no edge. It is asked when things are down, so it answers from this node's
// copy if there is no quorum.
func (s *server) Explain(ctx context.Context, req *adminv1.ExplainDNSRequest) (*adminv1.ExplainDNSResponse, error) {
	client, err := clientOf(req.GetFrom())
	if err != nil {
		return nil, err
	}
	cat := state{snap: s.freshOrLocal(ctx, s.Catalog)}
	host := strings.ToLower(strings.TrimSuffix(req.GetHost(), "."))
	api, err := apiAt(cat, host)
	if err != nil {
		return nil, err
	}
	if api.Zone != s.Zone {
		return nil, s.wrongZone("host "+host, api.Zone)
	}
	nodes, err := edgesOf(cat, api.Zone)
	if err != nil {
		return nil, err
	}
	world, blocks, err := worldOf(cat, api, nodes)
	if err != nil {
		return nil, err
	}
	if _, err := s.drains(ctx, &world); err != nil {
		return nil, err
	}
	out := &adminv1.ExplainDNSResponse{Host: host, Api: api.Name, Zone: api.Zone}
	if client.IsValid() {
		world.Client, _ = answer.NewSubnets(blocks).Region(client)
		out.ClientRegion = world.Client
	}
	reports := map[string]*peerv1.EdgeReport{}
	if s.Edges != nil {
		rctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
		list, _, err := s.Edges.Reports(rctx)
		cancel()
		if err != nil {
			s.Logger.WarnContext(ctx, "edge reports unavailable", "err", err)
		}
		for _, r := range list {
			reports[r.GetEdge()] = r
		}
	}
	for _, n := range nodes {
		if n.Doors.DNS {
			out.Edges = append(out.Edges, edgeAnswer(world, n, reports[n.Name], or(req.GetType(), "A")))
		}
	}
	slices.SortFunc(out.Edges, func(a, b *adminv1.EdgeAnswer) int { return strings.Compare(a.Edge, b.Edge) })
	return out, nil
}

// clientOf reads an address or a block; the zero Prefix if none is given.
func clientOf(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fault.New(fault.Invalid, "SUBNET_INVALID", "%.64q is neither an address nor a CIDR block", text).At("from")
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func apiAt(cat state, host string) (model.API, error) {
	apis, err := list[model.API](cat, model.PrefixAPI)
	if err != nil {
		return model.API{}, err
	}
	for _, a := range apis {
		if slices.ContainsFunc(a.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
			return a, nil
		}
	}
	return model.API{}, fault.New(fault.NotFound, "HOST_NOT_FOUND", "no API is published at %q: edges refuse the question", host)
}

// edgesOf are a zone's edges that clients can be led to, or that answer DNS.
func edgesOf(cat state, zone string) (out []model.Node, err error) {
	for kv := range cat.snap.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if n.Kind == "edge" && n.Zone == zone && n.Doors != nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// worldOf is what the catalog says of an API's surroundings, and the client subnets of the zone's regions.
func worldOf(cat state, api model.API, nodes []model.Node) (answer.World, map[string][]string, error) {
	w := answer.World{Zone: api.Zone}
	for _, u := range api.Upstreams {
		w.Deployed = append(w.Deployed, u.Region)
	}
	regs, err := list[model.Region](cat, model.PrefixRegion)
	if err != nil {
		return w, nil, err
	}
	blocks := map[string][]string{}
	for _, r := range regs {
		if r.ControlOnly {
			continue
		}
		w.Regions = append(w.Regions, answer.Region{Name: r.Name, Zone: r.Zone, Drain: r.Drain})
		if r.Zone == api.Zone {
			blocks[r.Name] = r.ClientSubnets
		}
	}
	for _, n := range nodes {
		e := answer.Edge{Name: n.Name, Region: n.Region, Zone: n.Zone, Port: uint16(n.Doors.HTTPSPort)}
		for _, text := range n.Doors.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				e.Addresses = append(e.Addresses, a.Unmap())
			}
		}
		w.Edges = append(w.Edges, e)
	}
	return w, blocks, nil
}

// drains lays over a world what the zone itself drains, and gives it by region.
func (s *server) drains(ctx context.Context, w *answer.World) (map[string]model.Drain, error) {
	listed, err := list[model.Drain](state{snap: s.freshOrLocal(ctx, s.Store)}, model.PrefixDrain)
	if err != nil {
		return nil, err
	}
	out := map[string]model.Drain{}
	for _, d := range listed {
		out[d.Name] = d
		for i, r := range w.Regions {
			if r.Name == d.Name && r.Zone == d.Zone {
				w.Regions[i].Drain = d.Reason
			}
		}
	}
	return out, nil
}

// edgeAnswer is what one edge answers by its own outlook.
func edgeAnswer(w answer.World, n model.Node, r *peerv1.EdgeReport, qtype string) *adminv1.EdgeAnswer {
	out := &adminv1.EdgeAnswer{Edge: n.Name, Region: n.Region, Status: statusUnknown}
	var notes []string
	w.Down, w.Silent, w.Share = map[string]string{}, map[string]bool{}, map[string]int{}
	look := r.GetStatus().GetOutlook()
	switch {
	case r == nil || look == nil:
		notes = append(notes, "it has not told how it sees the regions: all are taken for well")
	default:
		out.ReportedAt = r.GetLastSeen()
		for _, v := range look.GetRegions() {
			if !v.GetHealthy() {
				w.Down[v.GetRegion()] = verdictWords(v)
			}
			if s := v.GetShare(); s > 0 {
				w.Share[v.GetRegion()] = int(s)
			}
		}
		for _, name := range look.GetSilentEdges() {
			w.Silent[name] = true
		}
		if look.GetHeld() {
			notes = append(notes, "it sees more than half of the regions dead, distrusts itself and declares no further one dead")
		}
	}
	if r != nil {
		out.Status = statusDisconnected
		if r.GetConnected() {
			out.Status = statusConnected
		}
	}
	c := answer.Choose(w)
	if c.Desperate {
		notes = append(notes, "no region is well: it answers what looks dead or is drained, and edges decide for themselves")
	}
	for _, v := range c.Regions {
		out.Regions = append(out.Regions, &adminv1.RegionAnswer{Region: v.Region, Answered: v.Named, Why: v.Why, Share: int32(v.Share)})
	}
	switch qtype {
	case "HTTPS":
		for _, v := range c.Services(0) {
			out.Records = append(out.Records, v.String())
		}
	default:
		for _, a := range c.Addresses(qtype == "AAAA", 0) {
			out.Records = append(out.Records, a.String())
		}
	}
	if len(c.Near) == 0 {
		notes = append(notes, "it knows no edge to name: it answers SERVFAIL")
	}
	out.Note = strings.Join(notes, "; ")
	return out
}
