package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// The shapes below are an interface (design.md §7); numbers are JSON numbers, which protojson would quote.
type usageTotal struct {
	Requests int64 `json:"requests"`
	Billable int64 `json:"billable"`
	Limited  int64 `json:"limited"`
	Errors   int64 `json:"errors"`
	Units    int64 `json:"units"`
}
type usageRow struct {
	Cell         string `json:"cell"`
	API          string `json:"api"`
	Route        string `json:"route"`
	Plan         string `json:"plan"`
	ServedRegion string `json:"served_region"`
	Outcome      string `json:"outcome"`
	Requests     int64  `json:"requests"`
	Units        int64  `json:"units"`
	Correction   bool   `json:"correction,omitempty"` // booked by an operator, or late for a closed day
}
type usageReport struct {
	Total           usageTotal `json:"total"`
	Rows            []usageRow `json:"rows"`
	CompleteThrough moment     `json:"complete_through"`
	Gaps            []usageGap `json:"gaps,omitempty"`
}
type usageGap struct {
	Edge       string `json:"edge"`
	Epoch      uint64 `json:"epoch"`
	AppliedSeq uint64 `json:"applied_seq"`
	SealedSeq  uint64 `json:"sealed_seq"`
}
type zoneTotals struct {
	Zone            string      `json:"zone"`
	Total           usageTotal  `json:"total"`
	Rows            []totalsRow `json:"rows"`
	CompleteThrough moment      `json:"complete_through"`
	AgeSeconds      float64     `json:"age_seconds"`
	Error           string      `json:"error"`
}
type totalsRow struct {
	Product      string `json:"product"`
	Plan         string `json:"plan"`
	API          string `json:"api"`
	ServedRegion string `json:"served_region"`
	Outcome      string `json:"outcome"`
	Requests     int64  `json:"requests"`
	Units        int64  `json:"units"`
}

// moment is a time as text; one that is not known yet is null in JSON, so that no reader takes it for a time.
type moment string

func (m moment) MarshalJSON() ([]byte, error) {
	if m == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(m))
}

func totalOf(t *adminv1.UsageTotal) usageTotal {
	return usageTotal{t.GetRequests(), t.GetBillable(), t.GetLimited(), t.GetErrors(), t.GetUnits()}
}

func (a *app) usageCommand() *cobra.Command {
	var customer, since, until, zoneName, timeZone string
	var by []string
	var all bool
	c := &cobra.Command{Use: "usage --customer NAME | --all-zones", Short: "Show usage: a customer's, or the sums of every zone", Args: cobra.NoArgs,
		Annotations: map[string]string{hasCSV: "yes"},
		Long: `Show usage: a customer's, or the sums of every zone. Times are an age (1h, 36h, 30d), a date or an RFC 3339 time. The
ledger's cells are 15 minutes wide and never split: usage is shown from the cell that holds --since.

--by sums rows by one of hour, day and month and by any of subscription, plan, product, api, route, served_region
and outcome. Hours, days and months are those of the customer's time zone, or of --time-zone. On a terminal a line of
each group's requests over time follows.

CSV (-o csv) is RFC 4180 with one heading; its columns keep their places, new ones come at the end. A name that a
spreadsheet would take for a formula begins with an apostrophe.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (customer == "") == !all {
				return misuse("usage needs one of --customer NAME and --all-zones")
			}
			if !cmd.Flags().Changed("since") && slices.ContainsFunc(by, isTime) {
				since = "" // the server knows where a local day begins
			}
			now := time.Now()
			from, err := instant(since, now)
			if err != nil {
				return misuse("--since: %v", err)
			}
			to, err := instant(until, now)
			if err != nil {
				return misuse("--until: %v", err)
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if all {
					return a.totals(ctx, c, &adminv1.QueryTotalsRequest{Since: from, Until: to, AllZones: true, GroupBy: by, TimeZone: timeZone})
				}
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.QueryUsageResponse, error) {
					return n.QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: customer, Since: from, Until: to, GroupBy: by, TimeZone: timeZone})
				})
				if err != nil {
					return err
				}
				if len(by) > 0 {
					return a.printFolded(resp, by)
				}
				return a.printUsage(resp)
			})
		}}
	c.AddCommand(a.ledgerCommands()...)
	c.Flags().StringVar(&customer, "customer", "", "whose usage")
	c.Flags().BoolVar(&all, "all-zones", false, "the sums of every zone, without customers")
	c.Flags().StringVar(&since, "since", "1h", "from when; by default with --by hour the last 24, --by day 30, --by month 12")
	c.Flags().StringVar(&until, "until", "", "until when; default now")
	c.Flags().StringSliceVar(&by, "by", nil, "sum by these, comma separated")
	c.Flags().StringVar(&timeZone, "time-zone", "", "IANA name, for --by; default the customer's, and UTC for --all-zones")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	c.AddCommand(a.usageWatchCommand(), a.usageLatencyCommand(), a.usageForecastCommand(), a.usageTraceCommand())
	return c
}

// instant reads an age, a date or a time; nil for "".
func instant(text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return timestamppb.New(now.Add(-d)), nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return timestamppb.New(now.Add(-time.Duration(n) * 24 * time.Hour)), nil
		}
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, fmt.Errorf("%q is neither an age such as 1h or 30d, a date such as 2026-11-23, nor a time such as 2026-11-23T10:00:00Z", text)
}

func (a *app) printUsage(resp *adminv1.QueryUsageResponse) error {
	out := usageReport{Total: totalOf(resp.GetTotal()), Rows: []usageRow{}, CompleteThrough: moment(clock(resp.GetCompleteThrough()))}
	for _, r := range resp.GetRows() {
		out.Rows = append(out.Rows, usageRow{clock(r.GetCell()), r.GetApi(), r.GetRoute(), r.GetPlan(), r.GetServedRegion(), r.GetOutcome(), r.GetRequests(), r.GetUnits(), r.GetCorrection()})
	}
	out.Gaps = a.warnGaps(resp.GetGaps())
	if a.output == "csv" {
		return a.printCSV(cellHeading, cellRecords(resp.GetRows()))
	}
	return a.print(out, func(w io.Writer) {
		var lines [][]string
		for _, r := range out.Rows {
			if r.Correction {
				r.Outcome += " (corrected or late)"
			}
			lines = append(lines, []string{r.Cell, r.API, r.Route, r.Plan, r.ServedRegion, r.Outcome, number(r.Requests), number(r.Units)})
		}
		rows(w, "CELL API ROUTE PLAN SERVED OUTCOME REQUESTS UNITS", lines)
		printTotal(w, out.Total)
		fmt.Fprintf(w, "complete through %s\n", or(string(out.CompleteThrough), "no time yet: not every edge has reported"))
	})
}

// warnGaps says on stderr what is known to be lost.
func (a *app) warnGaps(gaps []*adminv1.Gap) []usageGap {
	var out []usageGap
	for _, g := range gaps {
		out = append(out, usageGap{g.GetEdge(), g.GetEpoch(), g.GetAppliedSeq(), g.GetSealedSeq()})
		fmt.Fprintf(a.err, "warning: usage is missing: blocks %d to %d of epoch %d of edge %s\n", g.GetAppliedSeq()+1, g.GetSealedSeq(), g.GetEpoch(), g.GetEdge())
	}
	return out
}

func printTotal(w io.Writer, t usageTotal) {
	fmt.Fprintf(w, "total: %d requests, %d billable, %d limited, %d errors, %d units\n", t.Requests, t.Billable, t.Limited, t.Errors, t.Units)
}

func (a *app) totals(ctx context.Context, c *client, req *adminv1.QueryTotalsRequest) error {
	resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.QueryTotalsResponse, error) { return n.QueryTotals(ctx, req) })
	if err != nil {
		return err
	}
	if by := req.GetGroupBy(); len(by) > 0 {
		return a.printFoldedTotals(resp, by)
	}
	out := struct {
		Zones []zoneTotals `json:"zones"`
	}{[]zoneTotals{}}
	for _, z := range resp.GetZones() {
		one := zoneTotals{Zone: z.GetZone(), Total: totalOf(z.GetTotal()), Rows: []totalsRow{}, CompleteThrough: moment(clock(z.GetCompleteThrough())),
			AgeSeconds: z.GetAge().AsDuration().Seconds(), Error: z.GetError()}
		for _, r := range z.GetRows() {
			one.Rows = append(one.Rows, totalsRow{r.GetProduct(), r.GetPlan(), r.GetApi(), r.GetServedRegion(), r.GetOutcome(), r.GetRequests(), r.GetUnits()})
		}
		out.Zones = append(out.Zones, one)
	}
	if a.output == "csv" {
		return a.printCSV(totalsHeading, totalsRecords(resp.GetZones()))
	}
	return a.print(out, func(w io.Writer) {
		for _, z := range out.Zones {
			fmt.Fprintf(w, "zone %s, complete through %s", z.Zone, or(string(z.CompleteThrough), "no time yet"))
			if z.Error != "" {
				fmt.Fprintf(w, ", %v old: %s", time.Duration(z.AgeSeconds*float64(time.Second)).Round(time.Second), z.Error)
			}
			fmt.Fprintln(w)
			var lines [][]string
			for _, r := range z.Rows {
				lines = append(lines, []string{r.Product, r.Plan, r.API, r.ServedRegion, r.Outcome, number(r.Requests), number(r.Units)})
			}
			rows(w, "PRODUCT PLAN API SERVED OUTCOME REQUESTS UNITS", lines)
			printTotal(w, z.Total)
		}
	})
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
