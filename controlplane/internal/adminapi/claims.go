package adminapi

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/claim"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// held is the status of a claim that nobody asked to release.
const held = "held"

// Claims is asked when a node does not start: this node's copy has to do if there is no quorum.
func (s *server) Claims(ctx context.Context, _ *adminv1.ClaimsRequest) (*adminv1.ClaimsResponse, error) {
	rows, releases, err := claim.List(s.freshOrLocal(ctx, s.Catalog))
	if err != nil {
		return nil, err
	}
	out := &adminv1.ClaimsResponse{}
	for _, row := range rows {
		c := &adminv1.Claim{Cluster: row.ID, Zone: row.Zone, Status: held}
		if r, ok := releases[row.ID]; ok && r.Status != model.ReleaseDone { // else it was claimed again since
			c = claimOf(r)
		}
		delete(releases, row.ID)
		out.Claims = append(out.Claims, c)
	}
	for _, id := range slices.Sorted(maps.Keys(releases)) {
		out.Claims = append(out.Claims, claimOf(releases[id]))
	}
	return out, nil
}

func claimOf(r model.Release) *adminv1.Claim {
	return &adminv1.Claim{Cluster: r.ID, Zone: r.Zone, Status: r.Status, Reason: r.Reason, By: r.By, Second: r.Second, At: timestamppb.New(r.At)}
}

// ReleaseClaim releases a zone's claim on a cluster of etcd. What asks for two operators is a policy of that zone that does.
func (s *server) ReleaseClaim(ctx context.Context, req *adminv1.ReleaseClaimRequest) (*adminv1.ReleaseClaimResponse, error) {
	snap, err := s.fresh(ctx, s.Catalog)
	if err != nil {
		return nil, err
	}
	row, mod, err := claim.Of(snap, req.GetCluster())
	if err != nil {
		return nil, err
	}
	if mod == 0 {
		return nil, claim.NotClaimed(req.GetCluster())
	}
	if row.Zone != s.Zone && caller(ctx).Role != RoleAdmin {
		return nil, fault.New(fault.Denied, "ROLE_INSUFFICIENT", "cluster %s is zone %s's: role %q releases claims of zone %s alone", row.ID, row.Zone, caller(ctx).Role, s.Zone)
	}
	w, err := catalogWorld(state{snap: snap})
	if err != nil {
		return nil, err
	}
	id := requestID("cluster/"+req.GetCluster(), req.GetRequestId())
	r, err := claim.Release(ctx, s.Catalog, claim.Request{Cluster: req.GetCluster(), Zone: row.Zone, Reason: req.GetReason(), From: s.Zone, At: time.Now(), Window: s.Objection,
		By:  evidence.Pseudonym(s.Pepper, s.Zone, strings.ToLower(operator(ctx))), // names that differ in case alone are one person's
		Two: slices.ContainsFunc(w.Policies, func(p model.Policy) bool { return p.TwoPerson && p.Zone == row.Zone }),
		Commit: func(ctx context.Context, t group.Txn) (group.Result, error) {
			// A call that is made again at another node goes on where the first was: steps are told apart by what they rest on, not
			// by how many there were, else the release would pass for the question, which was put before.
			t.RequestID = id
			for _, c := range t.Compares {
				t.RequestID += "/" + strconv.FormatUint(c.ModIndex, 36)
			}
			return s.commit(ctx, s.Catalog, t)
		}})
	if err != nil {
		return nil, s.explain(s.Catalog, err)
	}
	return &adminv1.ReleaseClaimResponse{Claim: claimOf(r)}, nil
}
