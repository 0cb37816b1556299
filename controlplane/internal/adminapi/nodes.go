package adminapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// MaxTokenTTL is the default and longest life of a join token.
const MaxTokenTTL = 15 * time.Minute

// What is known of a node.
const (
	statusConnected    = "connected"
	statusDisconnected = "disconnected"
	statusUnknown      = "unknown"
	statusNack         = "nack"
	statusTwins        = "twins" // two processes speak as this edge
)

// ListNodes shows the registry, and of this zone's edges what they have acknowledged. It is asked when things
// are down, so it answers from this node's copy if there is no quorum.
func (s *server) ListNodes(ctx context.Context, _ *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	reports := map[string]*peerv1.EdgeReport{}
	known := false
	if s.Edges != nil {
		rctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
		list, _, err := s.Edges.Reports(rctx)
		cancel()
		if known = err == nil; !known {
			s.Logger.WarnContext(ctx, "edge reports unavailable", "err", err)
		}
		for _, r := range list {
			reports[r.GetEdge()] = r
		}
	}
	var alive map[string]bool
	if s.Alive != nil {
		alive = s.Alive()
	}
	roles := s.roles(ctx)
	out := &adminv1.ListNodesResponse{}
	for kv := range s.freshOrLocal(ctx, s.Catalog).List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		row := &adminv1.Node{Name: n.Name, Kind: n.Kind, Region: n.Region, Zone: n.Zone, RelayAddr: n.RelayAddr, Status: statusUnknown, Groups: roles[n.Name]}
		switch {
		case n.Zone != s.Zone:
		case n.Kind == "edge":
			if r := reports[n.Name]; r != nil {
				fill(row, r)
			} else if known {
				row.Status = statusDisconnected
			}
		case n.Name == s.Node:
			row.Status = statusConnected
		case alive != nil && alive[n.Name]:
			row.Status = statusConnected
		case alive != nil:
			row.Status = statusDisconnected
		}
		out.Nodes = append(out.Nodes, row)
	}
	slices.SortFunc(out.Nodes, func(a, b *adminv1.Node) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// roles are what control nodes are in their groups, as far as this node is told in time.
func (s *server) roles(ctx context.Context) map[string][]string {
	out := map[string][]string{}
	if s.Cluster == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, min(softWait, s.Wait/2))
	defer cancel()
	members, err := s.Cluster.Members(ctx)
	if err != nil {
		s.Logger.WarnContext(ctx, "members of groups unavailable", "err", err)
	}
	for _, m := range members {
		text := m.Group + " " + m.Role
		switch {
		case !m.Reachable:
			text += ", away"
		case m.Lag > 0:
			text += fmt.Sprintf(", %d behind", m.Lag)
		}
		out[m.Node] = append(out[m.Node], text)
	}
	return out
}

func fill(row *adminv1.Node, r *peerv1.EdgeReport) {
	switch {
	case !r.GetConnected():
		row.Status = statusDisconnected
	case len(r.GetTwins()) > 0:
		row.Status = statusTwins
	case r.GetNackReason() != "":
		row.Status = statusNack
	default:
		row.Status = statusConnected
	}
	row.Catalog, row.CatalogWant = position(r.GetCatalog()), position(r.GetCatalogWant())
	row.ZonePosition, row.ZoneWant = position(r.GetZone()), position(r.GetZoneWant())
	row.NackReason, row.LastSeen, row.Version, row.ConnectedTo = r.GetNackReason(), r.GetLastSeen(), r.GetVersion(), r.GetControl()
	st := r.GetStatus()
	row.CertificateExpires, row.ServesAloneUntil = unixTime(st.GetCertificateExpiresUnix()), unixTime(st.GetServesAloneUntilUnix())
	row.SentinelViolations, row.SentinelLate = st.GetSentinelViolations(), st.GetSentinelLate()
	row.CertificateSerial, row.Degraded, row.Quarantined = st.GetCertificateSerial(), ailing(st), quarantined(st)
	if n := len(r.GetTwins()); n > 0 {
		row.Degraded = append(slices.Clip(row.Degraded), fmt.Sprintf("border: %d machines run as this edge (runs %s), from one disk or its copy; the one that came last may not relay. Stop one, and join a copy under a name of its own",
			n, strings.Join(r.GetTwins(), ", ")))
	}
	if st.GetRelayAddr() != "" {
		row.RelayAddr = st.GetRelayAddr()
	}
}

func position(p *syncv1.Position) *adminv1.Position {
	if p == nil {
		return nil
	}
	return &adminv1.Position{Epoch: p.GetEpoch(), Index: p.GetIndex(), Sum: fmt.Sprintf("%x", p.GetSum())}
}

func unixTime(s int64) *timestamppb.Timestamp {
	if s == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(s, 0))
}

// RemoveNode withdraws a node by deleting its registry row: every door asks the registry on each handshake.
func (s *server) RemoveNode(ctx context.Context, req *adminv1.RemoveNodeRequest) (*adminv1.RemoveNodeResponse, error) {
	id := requestID("node/"+req.GetName(), req.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Catalog)
		if err != nil {
			return nil, err
		}
		kv, ok := snap.Get(model.PrefixNode + req.GetName())
		if !ok {
			return nil, fault.New(fault.NotFound, "NODE_NOT_FOUND", "node %q is not in the registry", req.GetName())
		}
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if n.Zone != s.Zone && caller(ctx).Role != RoleAdmin {
			return nil, fault.New(fault.Denied, "ROLE_INSUFFICIENT", "node %s is of zone %s: role %q removes nodes of zone %s alone", n.Name, n.Zone, caller(ctx).Role, s.Zone)
		}
		txn := group.Txn{RequestID: id + "/" + strconv.Itoa(attempt),
			Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: kv.Key, Delete: true}, {Key: model.PrefixLevel + n.Name, Delete: true}}}
		if n.Kind == "control" {
			if err := s.mayLose(ctx, n); err != nil {
				return nil, err
			}
			if err := withoutURL(snap, n, &txn); err != nil {
				return nil, err
			}
		}
		res, err := s.commit(ctx, s.Catalog, txn)
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			return &adminv1.RemoveNodeResponse{}, nil
		}
	}
	return nil, outran()
}

// mayLose refuses to take a control node away that its groups cannot do without. It is asked in the node's own zone,
// which alone knows.
func (s *server) mayLose(ctx context.Context, n model.Node) error {
	switch {
	case n.Zone != s.Zone:
		return s.wrongZone("node "+n.Name, n.Zone)
	case s.Cluster == nil:
		return s.noCluster()
	}
	return s.Cluster.MayLose(ctx, n.Name)
}

// withoutURL takes the URL of a control node that leaves out of its zone's record, in the same transaction.
func withoutURL(snap group.Snapshot, n model.Node, txn *group.Txn) error {
	kv, ok := snap.Get(model.PrefixZone + n.Zone)
	if !ok || n.AdminURL == "" {
		return nil
	}
	z, err := model.Decode[model.Zone](kv.Key, kv.Value)
	if err != nil {
		return err
	}
	z.AdminURLs = slices.DeleteFunc(slices.Clone(z.AdminURLs), func(u string) bool { return u == n.AdminURL })
	txn.Compares = append(txn.Compares, group.Compare{Key: kv.Key, ModIndex: kv.ModIndex})
	txn.Ops = append(txn.Ops, group.Op{Key: kv.Key, Value: model.Encode(z)})
	return nil
}

func (s *server) CreateJoinToken(ctx context.Context, req *adminv1.CreateJoinTokenRequest) (*adminv1.CreateJoinTokenResponse, error) {
	if s.Tokens == nil {
		return nil, fault.New(fault.Unimplemented, "JOIN_TOKENS_OFF", "node %s does not mint join tokens", s.Node)
	}
	ttl, err := duration(req.GetTtl(), "ttl")
	if err != nil {
		return nil, err
	}
	if req.GetTtl() == nil {
		ttl = MaxTokenTTL
	}
	if ttl <= 0 || ttl > MaxTokenTTL {
		return nil, fault.New(fault.Invalid, "TTL_INVALID", "a join token lives more than 0s and at most %v", MaxTokenTTL).At("ttl")
	}
	kv, ok := s.freshOrLocal(ctx, s.Catalog).Get(model.PrefixRegion + req.GetRegion())
	if !ok {
		return nil, fault.New(fault.Invalid, "REGION_UNKNOWN", "region %q does not exist", req.GetRegion()).At("region")
	}
	r, err := model.Decode[model.Region](kv.Key, kv.Value)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Zone != s.Zone:
		return nil, s.wrongZone("region "+r.Name, r.Zone)
	case r.ControlOnly && req.GetKind() != "control":
		return nil, fault.New(fault.Invalid, "REGION_CONTROL_ONLY", "region %s is control-only: no edge joins there", r.Name).At("region")
	}
	if kv, ok := s.freshOrLocal(ctx, s.Catalog).Get(model.PrefixNode + req.GetName()); ok && req.GetKind() == "control" {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err == nil {
			err = s.mayLose(ctx, n) // it replaces the node of that name
		}
		if err != nil {
			return nil, err
		}
	}
	token, expires, err := s.Tokens.CreateToken(ctx, req.GetKind(), r.Name, req.GetName(), ttl)
	if err != nil {
		return nil, s.explain(s.Store, err)
	}
	return &adminv1.CreateJoinTokenResponse{Token: token, ExpiresAt: timestamppb.New(expires)}, nil
}

func (s *server) leaders() map[string]string {
	if s.Config.Leaders != nil {
		return s.Config.Leaders()
	}
	out := map[string]string{}
	for _, store := range []group.Store{s.Catalog, s.Store} {
		out[store.Name()], _ = store.Leader()
	}
	return out
}

func (s *server) Leaders(context.Context, *adminv1.LeadersRequest) (*adminv1.LeadersResponse, error) {
	return &adminv1.LeadersResponse{Leaders: s.leaders()}, nil
}
