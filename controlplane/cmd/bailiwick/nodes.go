package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type position struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
	Sum   string `json:"sum"`
}

type node struct {
	Name               string    `json:"name"`
	Kind               string    `json:"kind"`
	Region             string    `json:"region"`
	Zone               string    `json:"zone"`
	Status             string    `json:"status"`
	InSync             bool      `json:"in_sync"`
	Catalog            *position `json:"catalog"`
	CatalogWant        *position `json:"catalog_want"`
	ZonePosition       *position `json:"zone_position"`
	ZoneWant           *position `json:"zone_want"`
	NackReason         string    `json:"nack_reason"`
	LastSeen           string    `json:"last_seen"`
	CertificateExpires string    `json:"certificate_expires"`
	CertificateSerial  string    `json:"certificate_serial"`
	ServesAloneUntil   string    `json:"serves_alone_until"`
	Version            string    `json:"version"`
	ConnectedTo        string    `json:"connected_to"`
	RelayAddr          string    `json:"relay_addr"`
	Degraded           []string  `json:"degraded"`
	SentinelViolations int64     `json:"sentinel_violations"`
	SentinelLate       int64     `json:"sentinel_late"`
	Groups             []string  `json:"groups"`
	Quarantined        []string  `json:"quarantined"`
}

func positionOf(p *adminv1.Position) *position {
	if p == nil {
		return nil
	}
	return &position{p.GetEpoch(), p.GetIndex(), p.GetSum()}
}

func nodeOf(n *adminv1.Node) node {
	out := node{Name: n.GetName(), Kind: n.GetKind(), Region: n.GetRegion(), Zone: n.GetZone(), Status: n.GetStatus(),
		Catalog: positionOf(n.GetCatalog()), CatalogWant: positionOf(n.GetCatalogWant()),
		ZonePosition: positionOf(n.GetZonePosition()), ZoneWant: positionOf(n.GetZoneWant()),
		NackReason: n.GetNackReason(), LastSeen: clock(n.GetLastSeen()), CertificateExpires: clock(n.GetCertificateExpires()),
		CertificateSerial: n.GetCertificateSerial(), ServesAloneUntil: clock(n.GetServesAloneUntil()), Version: n.GetVersion(),
		ConnectedTo: n.GetConnectedTo(), RelayAddr: n.GetRelayAddr(), Degraded: append([]string{}, n.GetDegraded()...),
		SentinelViolations: n.GetSentinelViolations(), SentinelLate: n.GetSentinelLate(), Groups: append([]string{}, n.GetGroups()...),
		Quarantined: append([]string{}, n.GetQuarantined()...)}
	out.InSync = out.Catalog != nil && out.CatalogWant != nil && *out.Catalog == *out.CatalogWant &&
		out.ZonePosition != nil && out.ZoneWant != nil && *out.ZonePosition == *out.ZoneWant
	return out
}

// String is epoch.index/ and enough of the sum to compare two by eye.
func (p *position) String() string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d/%.12s", p.Epoch, p.Index, p.Sum)
}

func (a *app) nodeCommand() *cobra.Command {
	var filter string
	list := &cobra.Command{Use: "list", Short: "List control nodes and edges, and whether each holds what it should", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListNodesResponse, error) {
					return n.ListNodes(ctx, &adminv1.ListNodesRequest{Filter: filter})
				})
				if err != nil {
					return err
				}
				return a.printNodes(merge(answers))
			})
		}}
	remove := &cobra.Command{Use: "remove NAME", Short: "Withdraw an edge: it is refused from then on", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				a.warnUnshipped(ctx, c, args[0])
				req := &adminv1.RemoveNodeRequest{Name: args[0], RequestId: rand.Text()}
				_, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.RemoveNodeResponse, error) { return n.RemoveNode(ctx, req) })
				if err != nil {
					return err
				}
				return a.done("Node", args[0], "removed")
			})
		}}
	return group("node", "Control nodes and edges", filtered(list, &filter), remove)
}

// merge takes each node's row from its own zone, which alone knows its state.
func merge(answers map[string]*adminv1.ListNodesResponse) []node {
	byName := map[string]node{}
	for _, zoneName := range sorted(answers) {
		for _, n := range answers[zoneName].GetNodes() {
			if _, known := byName[n.GetName()]; !known || n.GetZone() == zoneName {
				byName[n.GetName()] = nodeOf(n)
			}
		}
	}
	out := []node{}
	for _, n := range byName {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b node) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func (a *app) printNodes(nodes []node) error {
	return a.print(nodes, func(w io.Writer) {
		var lines [][]string
		for _, n := range nodes {
			status := n.Status
			if n.NackReason != "" {
				status += ": " + strings.ReplaceAll(n.NackReason, "\n", " ")
			}
			if len(n.Degraded) > 0 {
				status += ", degraded: " + strings.ReplaceAll(strings.Join(n.Degraded, "; "), "\n", " ")
			}
			if len(n.Quarantined) > 0 {
				status += ", quarantined: " + legible(strings.Join(n.Quarantined, "; "))
			}
			if len(n.Groups) > 0 {
				status += ": " + strings.Join(n.Groups, "; ")
			}
			inSync := ""
			switch {
			case n.InSync:
				inSync = "yes"
			case n.Catalog != nil && n.CatalogWant != nil:
				inSync = "no, wants " + n.CatalogWant.String() + " " + n.ZoneWant.String()
			}
			lines = append(lines, []string{n.Name, n.Kind, n.Region, status, n.Catalog.String(), n.ZonePosition.String(), inSync, n.ServesAloneUntil})
		}
		rows(w, "NAME KIND REGION STATUS CATALOG ZONE IN-SYNC SERVES-ALONE-UNTIL", lines)
	})
}

func (a *app) leadersCommand() *cobra.Command {
	return &cobra.Command{Use: "leaders", Short: "Show which node leads each group", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.LeadersResponse, error) {
					return n.Leaders(ctx, &adminv1.LeadersRequest{})
				})
				if err != nil {
					return err
				}
				leaders := map[string]string{}
				for _, zoneName := range sorted(answers) {
					for group, name := range answers[zoneName].GetLeaders() {
						if leaders[group] == "" {
							leaders[group] = name
						}
					}
				}
				return a.print(leaders, func(w io.Writer) {
					var lines [][]string
					for _, g := range sorted(leaders) {
						lines = append(lines, []string{g, leaders[g]})
					}
					rows(w, "GROUP LEADER", lines)
				})
			})
		}}
}
