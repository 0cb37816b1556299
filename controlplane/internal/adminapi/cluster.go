package adminapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// Cluster is what an operator may ask of the groups that this node has a part in.
type Cluster interface {
	Members(ctx context.Context) ([]Member, error)
	Transfer(ctx context.Context, group, node string) (leader string, err error)
	Backup(ctx context.Context, group string) (Backup, error)
	// MayLose refuses if a group would be left without a quorum that answers.
	MayLose(ctx context.Context, node string) error
}

// Member is one member of a group.
type Member struct {
	Group, Node, Server string
	Role                string // leader, voter, learner
	Reachable           bool
	Applied, Lag        uint64 // entries of the log
	Incarnation         uint64
	Version             string // of its program
}

// Backup is a backup that was taken, and where it rests.
type Backup struct {
	Node, Path, Group string
	Epoch, Index      uint64
	Bytes             int64
	SHA256            string
	TakenAt           time.Time
}

func (s *server) noCluster() error {
	return fault.New(fault.Unimplemented, "CLUSTER_OFF", "node %s has no groups to speak of", s.Node)
}

// ListMembers is asked when things are down: who does not answer is shown as such.
func (s *server) ListMembers(ctx context.Context, _ *adminv1.ListMembersRequest) (*adminv1.ListMembersResponse, error) {
	if s.Cluster == nil {
		return nil, s.noCluster()
	}
	members, err := s.Cluster.Members(ctx)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListMembersResponse{}
	for _, m := range members {
		out.Members = append(out.Members, &adminv1.GroupMember{Group: m.Group, Node: m.Node, Server: m.Server, Role: m.Role, Reachable: m.Reachable, Applied: m.Applied, Lag: m.Lag, Incarnation: m.Incarnation, Version: m.Version})
	}
	return out, nil
}

func (s *server) TransferLeadership(ctx context.Context, req *adminv1.TransferLeadershipRequest) (*adminv1.TransferLeadershipResponse, error) {
	if s.Cluster == nil {
		return nil, s.noCluster()
	}
	leader, err := s.Cluster.Transfer(ctx, req.GetGroup(), req.GetNode())
	if err != nil {
		return nil, err
	}
	return &adminv1.TransferLeadershipResponse{Leader: leader}, nil
}

func (s *server) Backup(ctx context.Context, req *adminv1.BackupRequest) (*adminv1.BackupResponse, error) {
	if s.Cluster == nil {
		return nil, s.noCluster()
	}
	b, err := s.Cluster.Backup(ctx, req.GetGroup())
	if err != nil {
		return nil, err
	}
	return &adminv1.BackupResponse{Node: b.Node, Path: b.Path, Group: b.Group, Epoch: b.Epoch, Index: b.Index, Bytes: b.Bytes, Sha256: b.SHA256, TakenAt: timestamppb.New(b.TakenAt)}, nil
}
