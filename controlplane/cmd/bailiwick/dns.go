package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type dnsExplained struct {
	Host         string      `json:"host"`
	API          string      `json:"api"`
	Zone         string      `json:"zone"`
	ClientRegion string      `json:"client_region"`
	Edges        []dnsAnswer `json:"edges"`
}
type dnsAnswer struct {
	Edge       string      `json:"edge"`
	Region     string      `json:"region"`
	Status     string      `json:"status"`
	ReportedAt string      `json:"reported_at"`
	Records    []string    `json:"records"`
	Regions    []dnsRegion `json:"regions"`
	Note       string      `json:"note"`
}
type dnsRegion struct {
	Region   string `json:"region"`
	Answered bool   `json:"answered"`
	Why      string `json:"why"`
}

func (a *app) dnsCommand() *cobra.Command {
	req := &adminv1.ExplainDNSRequest{}
	c := &cobra.Command{Use: "dns HOST [--from CIDR] [--type TYPE]", Short: "Show what each edge answers for a host, and why each region is named or not", Args: cobra.ExactArgs(1),
		Long: `Show what each edge of the host's zone answers in DNS, and why each region is named or left out. It is computed by
the function that edges answer by, from the catalog and what each edge last reported; no edge is asked. Where an
answer holds several addresses, edges take turns in their order.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Host = args[0]
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ExplainDNSResponse, error) { return n.Explain(ctx, req) })
				if err != nil {
					return err
				}
				return a.printDNS(dnsOf(resp), req.GetType())
			})
		}}
	c.Flags().StringVar(&req.From, "from", "", "address or subnet of the client; default: one that no region claims")
	c.Flags().StringVar(&req.Type, "type", "A", "A, AAAA or HTTPS")
	return c
}

func dnsOf(r *adminv1.ExplainDNSResponse) dnsExplained {
	out := dnsExplained{Host: r.GetHost(), API: r.GetApi(), Zone: r.GetZone(), ClientRegion: r.GetClientRegion(), Edges: []dnsAnswer{}}
	for _, e := range r.GetEdges() {
		answer := dnsAnswer{Edge: e.GetEdge(), Region: e.GetRegion(), Status: e.GetStatus(), ReportedAt: clock(e.GetReportedAt()),
			Records: append([]string{}, e.GetRecords()...), Regions: []dnsRegion{}, Note: e.GetNote()}
		for _, v := range e.GetRegions() {
			answer.Regions = append(answer.Regions, dnsRegion{v.GetRegion(), v.GetAnswered(), v.GetWhy()})
		}
		out.Edges = append(out.Edges, answer)
	}
	return out
}

func (a *app) printDNS(d dnsExplained, qtype string) error {
	return a.print(d, func(w io.Writer) {
		led := ""
		if d.ClientRegion != "" {
			led = ", client of " + d.ClientRegion
		}
		fmt.Fprintf(w, "%s %s: API %s of zone %s%s\n", d.Host, qtype, d.API, d.Zone, led)
		if len(d.Edges) == 0 {
			fmt.Fprintf(w, "no edge of zone %s answers DNS: start edges with -dns and -public\n", d.Zone)
		}
		for _, e := range d.Edges {
			fmt.Fprintf(w, "\n%s (%s, %s): %s\n", e.Edge, e.Region, e.Status, strings.Join(e.Records, " | "))
			if e.Note != "" {
				fmt.Fprintf(w, "  %s\n", e.Note)
			}
			var lines [][]string
			for _, r := range e.Regions {
				answered := "no"
				if r.Answered {
					answered = "yes"
				}
				lines = append(lines, []string{r.Region, answered, r.Why})
			}
			rows(w, "REGION ANSWERED WHY", lines)
		}
	})
}
