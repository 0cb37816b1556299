package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func (a *app) cacheCommand() *cobra.Command {
	req := &adminv1.PurgeCacheRequest{}
	var zone string
	purge := &cobra.Command{Use: "purge --api NAME (--tag TAG | --url URL | --all)", Short: "End what edges keep of an API's answers", Args: cobra.NoArgs,
		Long: `End what edges of the API's zone keep of its answers: under a tag that upstreams gave them (Cache-Tag, Surrogate-Key), of a
URL as clients ask for it, or all of it. An edge does it as soon as it hears of it, mostly within a second; one that is cut
off does it when it is reached. --soft makes answers stale: they are asked for anew, and given meanwhile where their route
has stale_while_revalidate or stale_if_error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.RequestId = rand.Text()
			if of, name, ok := strings.Cut(req.Api, "/"); ok { // as get apis shows it
				zone, req.Api = of, name
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zone, func(ctx context.Context, n api) (*adminv1.PurgeCacheResponse, error) { return n.PurgeCache(ctx, req) })
				if err != nil {
					return err
				}
				type row struct {
					Edge   string `json:"edge"`
					Region string `json:"region"`
					Status string `json:"status"`
					Done   bool   `json:"done"`
				}
				out := struct {
					Index uint64 `json:"index"`
					Seq   uint64 `json:"seq"`
					Edges []row  `json:"edges"`
				}{resp.GetIndex(), resp.GetSeq(), []row{}}
				var away []string
				for _, h := range resp.GetHolders() {
					out.Edges = append(out.Edges, row{h.GetEdge(), h.GetRegion(), h.GetStatus(), h.GetInSync()})
					if h.GetStatus() == "disconnected" {
						away = append(away, h.GetEdge())
					}
				}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "purge %d of API %s: %d edges have it to do; one has done it when its zone position (node list) is %d or beyond\n", out.Seq, req.GetApi(), len(out.Edges), out.Index)
					if len(away) > 0 {
						fmt.Fprintf(w, "not connected, and doing it later: %s\n", strings.Join(away, ", "))
					}
				})
			})
		}}
	purge.Flags().StringVar(&req.Api, "api", "", "whose answers: NAME, or ZONE/NAME")
	purge.Flags().StringSliceVar(&req.Tags, "tag", nil, "under this tag; may be repeated")
	purge.Flags().StringArrayVar(&req.Urls, "url", nil, "of this URL, https://host/path?query; may be repeated")
	purge.Flags().BoolVar(&req.All, "all", false, "all of it")
	purge.Flags().BoolVar(&req.Soft, "soft", false, "make it stale, and not gone")
	purge.Flags().StringVar(&zone, "zone", "", "of this zone; left out, the zones are asked one by one")
	must(purge.MarkFlagRequired("api"))
	cmd := &cobra.Command{Use: "cache", Short: "What edges keep of answers"}
	cmd.AddCommand(purge)
	return cmd
}
