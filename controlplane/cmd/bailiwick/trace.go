package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// The shapes below are an interface, as those of usage are.
type traceReport struct {
	Cells           []traceCell `json:"cells"`
	Rows            []traceRow  `json:"rows"`
	Truncated       bool        `json:"truncated"`
	CompleteThrough moment      `json:"complete_through"`
	KeptSince       moment      `json:"kept_since"`
	Erased          moment      `json:"erased"`
	Lost            []traceLost `json:"lost,omitempty"`
	Damaged         []string    `json:"damaged,omitempty"`
	Unreachable     []string    `json:"unreachable,omitempty"`
}
type traceCell struct {
	Cell         string   `json:"cell"`
	API          string   `json:"api"`
	Route        string   `json:"route"`
	Plan         string   `json:"plan"`
	ServedRegion string   `json:"served_region"`
	Outcome      string   `json:"outcome"`
	Requests     int64    `json:"requests"`
	Units        int64    `json:"units"`
	Found        int64    `json:"rows"`
	FoundUnits   int64    `json:"row_units"`
	Blocks       []string `json:"blocks"`
}
type traceRow struct {
	RequestID    string `json:"request_id"`
	End          string `json:"end"`
	Edge         string `json:"edge"`
	Epoch        uint64 `json:"epoch"`
	Seq          uint64 `json:"seq"`
	API          string `json:"api"`
	Route        string `json:"route"`
	Plan         string `json:"plan"`
	KeyID        string `json:"key_id"`
	Outcome      string `json:"outcome"`
	Status       int32  `json:"status"`
	ServedRegion string `json:"served_region"`
	Units        int64  `json:"units"`
	BytesIn      int64  `json:"bytes_in"`
	BytesOut     int64  `json:"bytes_out"`
	LatencyUS    int64  `json:"latency_us"`
	UpstreamUS   int64  `json:"upstream_us"`
	Attempts     int32  `json:"attempts"`
}
type traceLost struct {
	Edge  string `json:"edge"`
	Epoch uint64 `json:"epoch"`
	Rows  int64  `json:"rows"`
	Since string `json:"since"`
	Until string `json:"until"`
}

// traceTimeout is for one node, which asks all others of its zone.
const traceTimeout = 45 * time.Second

func (a *app) usageTraceCommand() *cobra.Command {
	var customer, since, until, zoneName, apiName, route, outcome, requestID string
	var limit int32
	c := &cobra.Command{Use: "trace --customer NAME", Short: "Show the requests behind a customer's usage", Args: cobra.NoArgs,
		Long: `Show the requests behind a customer's usage: each cell of the ledger beside what the rows of single requests add
up to, the blocks they came in, and the rows themselves, the earliest first. Rows rest on the control nodes of the
customer's zone for 35 days; what edges had to give up for want of space is told.

--request-id finds the request that a client was answered with in the header Bailiwick-Request-Id, from the minute that
the id tells. Detail keeps an id without the middle of its random part, so a row shows zeros there: of the header's id
the first 13 and the last 6 digits are the same. Two requests of one edge in one millisecond share them once in 16
million.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			from, err := instant(since, now)
			if err != nil {
				return misuse("--since: %v", err)
			}
			to, err := instant(until, now)
			if err != nil {
				return misuse("--until: %v", err)
			}
			if limit < 1 || limit > 100_000 {
				return misuse("--limit: %d is not between 1 and 100000", limit)
			}
			if at, ok := startOf(requestID); ok && !cmd.Flags().Changed("since") {
				from = timestamppb.New(at.Add(-time.Minute))
			}
			a.timeout = max(a.timeout, 2*traceTimeout) // so that a node that hangs does not take all of it
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = traceTimeout
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.TraceUsageResponse, error) {
					return n.TraceUsage(ctx, &adminv1.TraceUsageRequest{Customer: customer, Since: from, Until: to, Api: apiName, Route: route, Outcome: outcome, Limit: limit, RequestId: requestID})
				})
				if err != nil {
					return err
				}
				return a.printTrace(resp, requestID != "")
			})
		}}
	c.Flags().StringVar(&customer, "customer", "", "whose usage")
	c.Flags().StringVar(&since, "since", "1h", "from when")
	c.Flags().StringVar(&until, "until", "", "until when; default now")
	c.Flags().StringVar(&apiName, "api", "", "only this API")
	c.Flags().StringVar(&route, "route", "", "only this route")
	c.Flags().StringVar(&outcome, "outcome", "", "only this outcome: success, client_error, upstream_error, aborted, limited, refused, unserved")
	c.Flags().StringVar(&requestID, "request-id", "", "only the request that was answered with this Bailiwick-Request-Id")
	c.Flags().Int32Var(&limit, "limit", 20, "rows to show")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	_ = c.MarkFlagRequired("customer")
	return c
}

// startOf is when a request began, as its id tells: a UUID of version 7 begins with its Unix milliseconds.
func startOf(id string) (time.Time, bool) {
	plain := strings.ReplaceAll(id, "-", "")
	if len(plain) != 32 || plain[12] != '7' {
		return time.Time{}, false
	}
	ms, err := strconv.ParseInt(plain[:12], 16, 64)
	return time.UnixMilli(ms), err == nil
}

// printTrace shows what was found; of one request no cell is compared, since that holds others as well.
func (a *app) printTrace(resp *adminv1.TraceUsageResponse, one bool) error {
	out := traceReport{Cells: []traceCell{}, Rows: []traceRow{}, Truncated: resp.GetTruncated(), CompleteThrough: moment(clock(resp.GetCompleteThrough())),
		KeptSince: moment(clock(resp.GetKeptSince())), Erased: moment(clock(resp.GetErased())), Damaged: resp.GetDamaged(), Unreachable: resp.GetUnreachable()}
	for _, c := range resp.GetCells() {
		out.Cells = append(out.Cells, traceCell{clock(c.GetCell()), c.GetApi(), c.GetRoute(), c.GetPlan(), c.GetServedRegion(), c.GetOutcome(), c.GetRequests(), c.GetUnits(),
			c.GetRows(), c.GetRowUnits(), append([]string{}, c.GetBlocks()...)})
	}
	for _, r := range resp.GetRows() {
		out.Rows = append(out.Rows, traceRow{r.GetRequestId(), r.GetEnd().AsTime().UTC().Format("2006-01-02T15:04:05.000Z"), r.GetEdge(), r.GetEpoch(), r.GetSeq(), r.GetApi(), r.GetRoute(), r.GetPlan(), r.GetKeyId(),
			r.GetOutcome(), r.GetStatus(), r.GetServedRegion(), r.GetUnits(), r.GetBytesIn(), r.GetBytesOut(), r.GetLatencyUs(), r.GetUpstreamUs(), r.GetAttempts()})
	}
	for _, l := range resp.GetLost() {
		out.Lost = append(out.Lost, traceLost{l.GetEdge(), l.GetEpoch(), l.GetRows(), clock(l.GetSince()), clock(l.GetUntil())})
		fmt.Fprintf(a.err, "warning: edge %s gave up %d rows of all its customers between %s and %s for want of space; they are billed and cannot be traced\n",
			or(l.GetEdge(), "(several)"), l.GetRows(), clock(l.GetSince()), clock(l.GetUntil()))
	}
	for _, n := range out.Unreachable {
		fmt.Fprintf(a.err, "warning: node %s holds detail and does not answer: rows may be missing\n", n)
	}
	for _, f := range out.Damaged {
		fmt.Fprintf(a.err, "warning: %s is damaged: its rows are missing\n", f)
	}
	return a.print(out, func(w io.Writer) {
		var lines [][]string
		for _, c := range out.Cells {
			verdict := ""
			if !one {
				verdict = a.verdict(&out, c)
			}
			lines = append(lines, []string{c.Cell, c.API, c.Route, c.Plan, c.ServedRegion, c.Outcome, number(c.Requests), number(c.Found), number(c.Units), number(c.FoundUnits), verdict, few(c.Blocks)})
		}
		rows(w, "CELL API ROUTE PLAN SERVED OUTCOME REQUESTS FOUND UNITS FOUND VERDICT BLOCKS", lines)
		fmt.Fprintln(w)
		lines = nil
		for _, r := range out.Rows {
			lines = append(lines, []string{r.End, r.RequestID, r.API, r.Route, r.KeyID, r.Outcome, number(int64(r.Status)), r.ServedRegion, number(r.Units), number(r.LatencyUS),
				fmt.Sprintf("%s/%d/%d", r.Edge, r.Epoch, r.Seq)})
		}
		rows(w, "END REQUEST API ROUTE KEY OUTCOME STATUS SERVED UNITS LATENCY_US BLOCK", lines)
		if out.Truncated {
			fmt.Fprintln(w, "there are more rows: raise --limit, or narrow the range")
		}
		fmt.Fprintf(w, "complete through %s, rows kept since %s\n", or(string(out.CompleteThrough), "no time yet"), out.KeptSince)
	})
}

// verdict says what the comparison of a cell means, where it means something.
func (a *app) verdict(out *traceReport, c traceCell) string {
	start, _ := time.Parse(time.RFC3339, c.Cell)
	kept, _ := time.Parse(time.RFC3339, string(out.KeptSince))
	through, _ := time.Parse(time.RFC3339, string(out.CompleteThrough))
	switch {
	case c.Requests == c.Found && c.Units == c.FoundUnits:
		return "same"
	case out.Erased != "":
		return "erased"
	case start.Before(kept):
		return "expired"
	case through.Before(start.Add(15 * time.Minute)):
		return "open"
	case len(out.Unreachable) > 0 || len(out.Damaged) > 0:
		return "incomplete"
	case len(out.Lost) > 0 && c.Found < c.Requests:
		return "lost"
	}
	return "DIFFERS"
}

func few(list []string) string {
	if len(list) > 3 {
		return fmt.Sprintf("%s … %s (%d)", list[0], list[len(list)-1], len(list))
	}
	return strings.Join(list, " ")
}
