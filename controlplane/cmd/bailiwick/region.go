package main

import (
	"context"
	"crypto/rand"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func (a *app) regionCommand() *cobra.Command {
	var reason string
	drain := &cobra.Command{Use: "drain NAME --reason TEXT", Short: "Lead clients elsewhere: DNS names the region no more, and who comes all the same is served", Args: cobra.ExactArgs(1),
		Long: `Lead clients elsewhere. DNS answers of the region's zone leave it out, unless no other region is well; requests that come
all the same are served, and the region still takes over for others. It is a change of the catalog.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return misuse("drain needs --reason: those who find the region empty will ask")
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error { return a.setDrain(ctx, c, args[0], reason, "drained") })
		}}
	drain.Flags().StringVar(&reason, "reason", "", "why, for whoever looks")
	undrain := &cobra.Command{Use: "undrain NAME", Short: "Let DNS name a drained region again", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error { return a.setDrain(ctx, c, args[0], "", "undrained") })
		}}
	return group("region", "Regions and where clients are led", drain, undrain)
}

// setDrain changes one field of a region as it stands: the etag makes it fail if somebody else changes another
// meanwhile.
func (a *app) setDrain(ctx context.Context, c *client, name, reason, what string) error {
	got, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: "regions", Name: name})
	})
	if err != nil {
		return err
	}
	r := got.GetResource()
	if r.GetRegion() == nil {
		return fault.New(fault.Internal, "NOT_A_REGION", "the node answers something else than region %s", name)
	}
	r.GetRegion().Drain, r.UpdatedAt = reason, nil
	req := &adminv1.ApplyRequest{Resources: []*adminv1.Resource{r}, RequestId: rand.Text()}
	if _, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) }); err != nil {
		return err
	}
	return a.done("Region", name, what)
}
