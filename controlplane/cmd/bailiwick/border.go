package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

type borderStatus struct {
	Zone        string       `json:"zone"`
	Adopted     adopted      `json:"adopted"`
	Crossing    string       `json:"crossing_closed,omitempty"` // since which recovery
	Pairs       []pair       `json:"pairs"`
	Tightenings []tightening `json:"tightenings"`
	Sentinels   []sentinel   `json:"sentinels"`
}

// sentinel is what an edge's second check stopped since the edge's start.
type sentinel struct {
	Edge       string `json:"edge"`
	Violations int64  `json:"violations"`
	Late       int64  `json:"late"`
}
type adopted struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}
type pair struct {
	Policy string `json:"policy"`
	From   string `json:"from"`
	To     string `json:"to"`
	Basis  string `json:"basis"`
}
type tightening struct {
	Policy      string   `json:"policy"`
	From        string   `json:"from"`
	To          string   `json:"to"`
	Why         string   `json:"why"`
	CommittedAt string   `json:"committed_at"`
	InForceAt   string   `json:"in_force_at"`
	WaitingFor  []string `json:"waiting_for"`
}

func (a *app) borderCommand() *cobra.Command {
	status := &cobra.Command{Use: "status", Short: "Show which relays each zone permits now, and which tightenings are in force", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.BorderStatusResponse, error) {
					return n.Status(ctx, &adminv1.BorderStatusRequest{})
				})
				if err != nil {
					return err
				}
				out := []borderStatus{}
				for _, name := range sorted(answers) {
					out = append(out, borderOf(name, answers[name]))
				}
				return a.print(out, func(w io.Writer) { printBorder(w, out) })
			})
		}}
	return group("border", "What may cross a region border", status)
}

func borderOf(name string, r *adminv1.BorderStatusResponse) borderStatus {
	out := borderStatus{Zone: name, Adopted: adopted{r.GetAdoptedCatalogEpoch(), r.GetAdoptedCatalogIndex()}, Crossing: r.GetCrossingClosed(), Pairs: []pair{}, Tightenings: []tightening{}, Sentinels: []sentinel{}}
	for _, x := range r.GetSentinels() {
		out.Sentinels = append(out.Sentinels, sentinel{x.GetEdge(), x.GetViolations(), x.GetLate()})
	}
	for _, p := range r.GetPairs() {
		out.Pairs = append(out.Pairs, pair{p.GetPolicy(), p.GetFrom(), p.GetTo(), p.GetBasis()})
	}
	for _, t := range r.GetTightenings() {
		out.Tightenings = append(out.Tightenings, tightening{t.GetPolicy(), t.GetFrom(), t.GetTo(), t.GetWhy(), clock(t.GetCommittedAt()), clock(t.GetInForceAt()), t.GetWaitingFor()})
	}
	return out
}

func printBorder(w io.Writer, zones []borderStatus) {
	for _, z := range zones {
		fmt.Fprintf(w, "zone %s, catalog %d.%d adopted\n", z.Zone, z.Adopted.Epoch, z.Adopted.Index)
		if z.Crossing != "" {
			fmt.Fprintf(w, "pairs that cross zones are closed since %s, until approved: bailiwick approval crossings\n", z.Crossing)
		}
		var lines [][]string
		for _, p := range z.Pairs {
			lines = append(lines, []string{p.From, p.To, p.Policy, p.Basis})
		}
		rows(w, "FROM TO POLICY BASIS", lines)
		if len(z.Sentinels) > 0 {
			var stopped int64
			for _, x := range z.Sentinels {
				if stopped += x.Violations; x.Violations > 0 {
					fmt.Fprintf(w, "SENTINEL of %s stopped %d times what the first check let pass: take it out of service\n", x.Edge, x.Violations)
				}
			}
			fmt.Fprintf(w, "sentinels of %d edges: %d violations\n", len(z.Sentinels), stopped)
		}
		if len(z.Tightenings) == 0 {
			continue
		}
		lines = nil
		for _, t := range z.Tightenings {
			lines = append(lines, []string{t.From, t.To, t.Policy, t.CommittedAt, t.InForceAt, strings.Join(t.WaitingFor, ",")})
		}
		rows(w, "CLOSED-FROM TO POLICY COMMITTED IN-FORCE WAITING-FOR", lines)
	}
}

func (a *app) closeCommand() *cobra.Command {
	closure := &adminv1.Closure{}
	var name string
	c := &cobra.Command{Use: "close [--from REGION] [--to REGION] [--basis BASIS] --reason TEXT", Short: "Close a pair or a legal basis at once, by the zone alone", Args: cobra.NoArgs,
		Long: `Close a pair or a legal basis at once. A closure needs the quorum of its zone and nothing else. A pair is closed in
the zone of --from; a legal basis in every zone, and a zone that does not answer is told as pending (exit 6).`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if closure.From == "" && closure.To == "" && closure.Basis == "" {
				return misuse("close needs one of --from, --to and --basis")
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error { return a.close(ctx, c, name, closure) })
		}}
	c.Flags().StringVar(&closure.From, "from", "", "region that relays leave")
	c.Flags().StringVar(&closure.To, "to", "", "region that relays reach")
	c.Flags().StringVar(&closure.Basis, "basis", "", "legal basis on which they rest")
	c.Flags().StringVar(&closure.Reason, "reason", "", "why, for the record")
	c.Flags().StringVar(&closure.Zone, "zone", "", "zone that closes; default that of --from, or every zone")
	c.Flags().StringVar(&name, "name", "", "of the closure; default close-FROM-TO-BASIS")
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) close(ctx context.Context, c *client, name string, spec *adminv1.Closure) error {
	if name == "" {
		parts := slices.DeleteFunc([]string{"close", spec.From, spec.To, spec.Basis}, func(s string) bool { return s == "" })
		name = strings.Join(parts, "-")
	}
	zones, err := c.zones(ctx)
	if err != nil {
		return err
	}
	only := spec.Zone
	if only == "" && spec.From != "" {
		if only, err = zoneOfRegion(ctx, c, spec.From); err != nil {
			return err
		}
	}
	if only != "" {
		zones = slices.DeleteFunc(zones, func(z zone) bool { return z.name != only && z.name != "" })
	}
	if len(zones) == 0 {
		return fault.New(fault.NotFound, "ZONE_NOT_FOUND", "zone %q does not exist", only)
	}
	result := &applied{Changes: []change{}, Warnings: []string{}, Flows: []flow{}}
	var pending error
	for _, z := range zones {
		closure := &adminv1.Closure{Zone: or(z.name, only), From: spec.From, To: spec.To, Basis: spec.Basis, Reason: spec.Reason}
		req := &adminv1.ApplyRequest{RequestId: rand.Text(), Resources: []*adminv1.Resource{{Name: name, Spec: &adminv1.Resource_Closure{Closure: closure}}}}
		resp, err := ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) })
		if fault.KindOf(err) == fault.Unavailable && err != nil {
			pending = fmt.Errorf("pending in zone %s, which may still relay: %w", z.name, err)
			fmt.Fprintln(a.err, "warning: "+describe(pending))
			continue
		}
		if err != nil {
			return fmt.Errorf("zone %s: %w", z.name, err)
		}
		result.add(resp, true)
	}
	if err := a.printApply(result, false); err != nil {
		return err
	}
	return pending
}

// zoneOfRegion asks the node registry, which any node answers without the catalog's quorum, and then the catalog.
func zoneOfRegion(ctx context.Context, c *client, region string) (string, error) {
	nodes, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ListNodesResponse, error) {
		return n.ListNodes(ctx, &adminv1.ListNodesRequest{})
	})
	if err != nil {
		return "", err
	}
	for _, n := range nodes.GetNodes() {
		if n.GetRegion() == region {
			return n.GetZone(), nil
		}
	}
	resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: "regions", Name: region})
	})
	if err != nil {
		return "", fmt.Errorf("find the zone of region %s (--zone names it): %w", region, err)
	}
	return resp.GetResource().GetRegion().GetZone(), nil
}

func (a *app) reopenCommand() *cobra.Command {
	var zoneName string
	c := &cobra.Command{Use: "reopen NAME", Short: "Delete a closure, in every zone that has it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error { return a.reopen(ctx, c, args[0], zoneName) })
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "in this zone only")
	return c
}

func (a *app) reopen(ctx context.Context, c *client, name, zoneName string) error {
	zones, err := c.zones(ctx)
	if zoneName != "" && err == nil {
		var one zone
		one, err = c.in(ctx, zoneName)
		zones = []zone{one}
	}
	if err != nil {
		return err
	}
	found := false
	var waits []waiting
	var absent, pending error
	for _, z := range zones {
		req := &adminv1.DeleteRequest{Kind: "closures", Name: name, RequestId: rand.Text()}
		resp, err := ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.DeleteResponse, error) { return n.Delete(ctx, req) })
		switch {
		case err == nil && resp.GetPending() != nil:
			found, waits = true, append(waits, waitingOf(resp.GetPending()))
		case err == nil:
			found = true
		case fault.KindOf(err) == fault.NotFound:
			absent = err
		case fault.KindOf(err) == fault.Unavailable:
			pending = fmt.Errorf("still closed in zone %s, if it was: %w", z.name, err)
		default:
			return fmt.Errorf("zone %s: %w", z.name, err)
		}
	}
	switch {
	case pending != nil:
		return pending
	case !found:
		return absent
	}
	if len(waits) > 0 {
		return a.printWaiting(waits)
	}
	return a.done("Closure", name, "deleted")
}
