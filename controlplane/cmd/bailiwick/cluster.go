package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type groupMember struct {
	Group       string `json:"group"`
	Node        string `json:"node"`
	Server      string `json:"server"`
	Role        string `json:"role"`
	Reachable   bool   `json:"reachable"`
	Applied     uint64 `json:"applied"`
	Lag         uint64 `json:"lag"`
	Incarnation uint64 `json:"incarnation"`
	Version     string `json:"version"`
}

type takenBackup struct {
	Group   string `json:"group"`
	Node    string `json:"node"`
	Path    string `json:"path"`
	Epoch   uint64 `json:"epoch"`
	Index   uint64 `json:"index"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
	TakenAt string `json:"taken_at"`
}

// urlsOf are the control nodes that have a part in a group: "catalog" is everybody's, "store/emea" that zone's.
func (c *client) urlsOf(ctx context.Context, name string) ([]string, error) {
	_, zoneName, owned := strings.Cut(name, "/")
	if !owned {
		return c.urls, nil
	}
	zones, err := c.zones(ctx)
	if err != nil {
		return nil, err
	}
	for _, z := range zones {
		if z.name == zoneName {
			return z.urls, nil
		}
	}
	return nil, misuse("group %q: there is no zone %q", name, zoneName)
}

func (a *app) clusterCommand() *cobra.Command {
	var filter string
	members := &cobra.Command{Use: "members", Short: "Show who is a member of each group, who leads and who is behind", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListMembersResponse, error) {
					return n.ListMembers(ctx, &adminv1.ListMembersRequest{Filter: filter})
				})
				if err != nil {
					return err
				}
				return a.printMembers(mergeMembers(answers))
			})
		}}
	transfer := &cobra.Command{Use: "transfer GROUP [NODE]", Short: "Hand a group's leadership to another voter, by default the one least behind", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				req := &adminv1.TransferLeadershipRequest{Group: args[0]}
				if len(args) == 2 {
					req.Node = args[1]
				}
				urls, err := c.urlsOf(ctx, args[0])
				if err != nil {
					return err
				}
				got, err := ask(ctx, c, urls, func(ctx context.Context, n api) (*adminv1.TransferLeadershipResponse, error) {
					return n.TransferLeadership(ctx, req)
				})
				if err != nil {
					return err
				}
				return a.done("Group", args[0], "is led by "+got.GetLeader())
			})
		}}
	return group("cluster", "The groups that control nodes replicate", filtered(members, &filter), transfer, a.claimsCommand(), a.releaseCommand())
}

// releaseTimeout is more than a server takes, ten seconds of it for nodes to object.
const releaseTimeout = 35 * time.Second

type claimRow struct {
	Cluster string `json:"cluster"`
	Zone    string `json:"zone"`
	Status  string `json:"status"`
	By      string `json:"by,omitempty"`
	Second  string `json:"second,omitempty"`
	At      string `json:"at,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

func rowOf(c *adminv1.Claim) claimRow {
	row := claimRow{Cluster: c.GetCluster(), Zone: c.GetZone(), Status: c.GetStatus(), By: c.GetBy(), Second: c.GetSecond(), Reason: c.GetReason()}
	if c.GetAt() != nil {
		row.At = clock(c.GetAt())
	}
	return row
}

func (a *app) claimsCommand() *cobra.Command {
	return &cobra.Command{Use: "claims", Short: "Show which zone keeps its store in which cluster of etcd", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				got, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ClaimsResponse, error) {
					return n.Claims(ctx, &adminv1.ClaimsRequest{})
				})
				if err != nil {
					return err
				}
				claims := []claimRow{}
				for _, x := range got.GetClaims() {
					claims = append(claims, rowOf(x))
				}
				return a.print(claims, func(w io.Writer) {
					var lines [][]string
					for _, x := range claims {
						lines = append(lines, []string{x.Cluster, x.Zone, x.Status, x.By, x.Second, x.At, x.Reason})
					}
					rows(w, "CLUSTER ZONE STATUS BY SECOND AT REASON", lines)
				})
			})
		}}
}

func (a *app) releaseCommand() *cobra.Command {
	var reason string
	release := &cobra.Command{Use: "release CLUSTER", Short: "Release a zone's claim on a cluster of etcd, unless a node of the zone uses it: cluster claims lists them", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.timeout = max(a.timeout, releaseTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = releaseTimeout
				req := &adminv1.ReleaseClaimRequest{Cluster: args[0], Reason: reason, RequestId: rand.Text()}
				got, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ReleaseClaimResponse, error) {
					return n.ReleaseClaim(ctx, req)
				})
				if err != nil {
					return err
				}
				x := rowOf(got.GetClaim())
				if x.Status != "released" {
					return a.done("Claim on cluster", x.Cluster, "is to be released: a policy of zone "+x.Zone+" asks for a second operator, who says the same within three days")
				}
				return a.done("Claim on cluster", x.Cluster, "is released: it was zone "+x.Zone+"'s")
			})
		}}
	release.Flags().StringVar(&reason, "reason", "", "why, for the record")
	must(release.MarkFlagRequired("reason"))
	return release
}

// mergeMembers takes the catalog's members from the first zone that answered, and a zone's groups from that zone.
func mergeMembers(answers map[string]*adminv1.ListMembersResponse) []groupMember {
	out := []groupMember{}
	catalog := false
	for _, zoneName := range sorted(answers) {
		has := false
		for _, m := range answers[zoneName].GetMembers() {
			owned := strings.Contains(m.GetGroup(), "/")
			if !owned && catalog {
				continue
			}
			has = has || !owned
			out = append(out, groupMember{m.GetGroup(), m.GetNode(), m.GetServer(), m.GetRole(), m.GetReachable(), m.GetApplied(), m.GetLag(), m.GetIncarnation(), m.GetVersion()})
		}
		catalog = catalog || has
	}
	return out
}

func (a *app) printMembers(members []groupMember) error {
	return a.print(members, func(w io.Writer) {
		var lines [][]string
		for _, m := range members {
			state := "reachable"
			if !m.Reachable {
				state = "away"
			}
			lines = append(lines, []string{m.Group, m.Node, m.Server, m.Role, state, fmt.Sprint(m.Applied), fmt.Sprint(m.Lag), fmt.Sprint(m.Incarnation), m.Version})
		}
		rows(w, "GROUP NODE SERVER ROLE STATE APPLIED LAG INCARNATION VERSION", lines)
	})
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{Use: "backup GROUP...", Short: "Take a backup of catalog, store/ZONE or ledger/ZONE; it rests on the control node that took it, sealed under its zone's key", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				taken := []takenBackup{}
				for _, name := range args {
					urls, err := c.urlsOf(ctx, name)
					if err != nil {
						return err
					}
					b, err := ask(ctx, c, urls, func(ctx context.Context, n api) (*adminv1.BackupResponse, error) {
						return n.Backup(ctx, &adminv1.BackupRequest{Group: name})
					})
					if err != nil {
						return err
					}
					taken = append(taken, takenBackup{b.GetGroup(), b.GetNode(), b.GetPath(), b.GetEpoch(), b.GetIndex(), b.GetBytes(), b.GetSha256(), clock(b.GetTakenAt())})
				}
				return a.print(taken, func(w io.Writer) {
					var lines [][]string
					for _, b := range taken {
						lines = append(lines, []string{b.Group, b.Node, b.Path, fmt.Sprint(b.Bytes), b.SHA256})
					}
					rows(w, "GROUP NODE PATH BYTES SHA256", lines)
				})
			})
		}}
}
