package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// waiting is a change that waits, or waited, for a second operator.
type waiting struct {
	ID         string   `json:"id"`
	Status     string   `json:"status"`
	Zone       string   `json:"zone"`
	Documents  []string `json:"documents"`
	Opens      []string `json:"opens"`
	ProposedBy string   `json:"proposed_by"`
	ProposedAt string   `json:"proposed_at"`
	ExpiresAt  string   `json:"expires_at"`
	DecidedBy  string   `json:"decided_by,omitempty"`
	DecidedAt  string   `json:"decided_at,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Specs      []string `json:"specs,omitempty"`
}

func waitingOf(a *adminv1.Approval) waiting {
	return waiting{a.GetId(), a.GetStatus(), a.GetZone(), a.GetDocuments(), a.GetOpens(), a.GetProposedBy(), clock(a.GetProposedAt()), clock(a.GetExpiresAt()),
		a.GetDecidedBy(), clock(a.GetDecidedAt()), a.GetReason(), a.GetSpecs()}
}

func (p waiting) tell(w io.Writer, dry bool) {
	verb := "waits"
	if dry {
		verb = "would wait"
	}
	fmt.Fprintf(w, "%s %s for another operator of zone %s than %s, until %s: bailiwick approval approve %s\n", strings.Join(p.Documents, ", "), verb, p.Zone, p.ProposedBy, p.ExpiresAt, p.ID)
	for _, o := range p.Opens {
		fmt.Fprintf(w, "  %s\n", legible(o))
	}
}

func (a *app) printWaiting(all []waiting) error {
	return a.print(all, func(w io.Writer) {
		for _, p := range all {
			p.tell(w, false)
		}
	})
}

func (a *app) approvalCommand() *cobra.Command {
	var filter string
	list := &cobra.Command{Use: "list", Short: "List changes that wait for a second operator, and what became of others", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListApprovalsResponse, error) {
					return n.ListApprovals(ctx, &adminv1.ListApprovalsRequest{Filter: filter})
				})
				if err != nil {
					return err
				}
				out := []waiting{}
				for _, name := range sorted(answers) {
					for _, x := range answers[name].GetApprovals() {
						out = append(out, waitingOf(x))
					}
				}
				return a.print(out, func(w io.Writer) { printApprovals(w, out) })
			})
		}}
	approve := &cobra.Command{Use: "approve ID", Short: "Make a change that another operator proposed", Args: cobra.ExactArgs(1),
		Long: `Make a change that another operator proposed. The id stands for all that is approved, what is written and on top of
what: if anything that it rests on has changed since, it is refused (exit 4) and must be proposed again. approval list
-o yaml shows the documents.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.decide(cmd.Context(), func(ctx context.Context, n api) (*adminv1.Approval, error) {
				resp, err := n.Approve(ctx, &adminv1.ApproveRequest{Id: args[0]})
				return resp.GetApproval(), err
			})
		}}
	var reason string
	reject := &cobra.Command{Use: "reject ID", Short: "End a proposal; who made it may too", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.decide(cmd.Context(), func(ctx context.Context, n api) (*adminv1.Approval, error) {
				resp, err := n.Reject(ctx, &adminv1.RejectRequest{Id: args[0], Reason: reason})
				return resp.GetApproval(), err
			})
		}}
	reject.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return group("approval", "What waits for a second operator", filtered(list, &filter), approve, reject, a.crossingsCommand())
}

func (a *app) decide(ctx context.Context, call func(context.Context, api) (*adminv1.Approval, error)) error {
	return a.command(ctx, func(ctx context.Context, c *client) error {
		x, err := around(ctx, c, "", call)
		if err != nil {
			return err
		}
		out := waitingOf(x)
		return a.print(out, func(w io.Writer) {
			fmt.Fprintf(w, "%s: %s, proposed by %s, decided by %s\n", strings.Join(out.Documents, ", "), out.Status, out.ProposedBy, out.DecidedBy)
		})
	})
}

func (a *app) crossingsCommand() *cobra.Command {
	var zoneName, reason string
	c := &cobra.Command{Use: "crossings --reason TEXT", Short: "After a recovery, let pairs cross zones again", Args: cobra.NoArgs,
		Long: `Let pairs cross zones again which a recovery, of the catalog or of a zone's store, has closed. A zone whose policies ask
for two operators proposes it, like any other opening. border status says which zones are closed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error { return a.crossings(ctx, c, zoneName, reason) })
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "of this zone; default every zone that is closed")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) crossings(ctx context.Context, c *client, zoneName, reason string) error {
	zones, err := c.zones(ctx)
	if err != nil {
		return err
	}
	if zoneName != "" {
		if zones = slices.DeleteFunc(zones, func(z zone) bool { return z.name != zoneName }); len(zones) == 0 {
			return fault.New(fault.NotFound, "ZONE_NOT_FOUND", "zone %q does not exist", zoneName)
		}
	}
	var waits []waiting
	var opened []string
	var none error
	for _, z := range zones {
		resp, err := ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.OpenCrossingsResponse, error) {
			return n.OpenCrossings(ctx, &adminv1.OpenCrossingsRequest{Reason: reason})
		})
		switch {
		case fault.ReasonOf(err) == "CROSSINGS_OPEN":
			none = err
		case err != nil:
			return fmt.Errorf("zone %s: %w", z.name, err)
		case resp.GetPending() != nil:
			waits = append(waits, waitingOf(resp.GetPending()))
		default:
			opened = append(opened, z.name)
		}
	}
	switch {
	case len(waits) == 0 && len(opened) == 0:
		return none
	case len(opened) > 0:
		if err := a.done("Crossings", strings.Join(opened, ", "), "opened"); err != nil || len(waits) == 0 {
			return err
		}
	}
	return a.printWaiting(waits)
}

func printApprovals(w io.Writer, all []waiting) {
	var lines [][]string
	for _, p := range all {
		lines = append(lines, []string{p.ID, p.Status, p.Zone, strings.Join(p.Documents, ", "), p.ProposedBy, p.ExpiresAt, p.DecidedBy})
	}
	rows(w, "ID STATUS ZONE DOCUMENTS PROPOSED-BY UNTIL DECIDED-BY", lines)
	for _, p := range all {
		if p.Status == "pending" || p.Status == "approved" {
			fmt.Fprintf(w, "\n%s opens:\n", p.ID)
			for _, o := range p.Opens {
				fmt.Fprintf(w, "  %s\n", legible(o))
			}
		}
	}
}
