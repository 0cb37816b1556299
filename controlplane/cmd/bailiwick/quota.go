package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type quotaStatus struct {
	Customer     string        `json:"customer"`
	Subscription string        `json:"subscription"`
	Plan         string        `json:"plan"`
	Mode         string        `json:"mode"`
	Period       string        `json:"period"`
	PeriodStart  moment        `json:"period_start"`
	PeriodEnd    moment        `json:"period_end"`
	Limit        int64         `json:"limit"`
	ToppedUp     int64         `json:"topped_up"`
	Used         int64         `json:"used"`
	Held         int64         `json:"held"`
	Remaining    int64         `json:"remaining"`
	Holders      []quotaHolder `json:"holders"`
}
type quotaHolder struct {
	Edge      string `json:"edge"`
	Epoch     uint64 `json:"epoch"`
	Held      int64  `json:"held"`
	LastHeard moment `json:"last_heard"`
}

func quotaOf(q *adminv1.QuotaStatus) quotaStatus {
	out := quotaStatus{Customer: q.GetCustomer(), Subscription: q.GetSubscription(), Plan: q.GetPlan(), Mode: q.GetMode(), Period: q.GetPeriod(),
		PeriodStart: moment(clock(q.GetPeriodStart())), PeriodEnd: moment(clock(q.GetPeriodEnd())), Limit: q.GetLimit(), ToppedUp: q.GetToppedUp(),
		Used: q.GetUsed(), Held: q.GetHeld(), Remaining: q.GetRemaining(), Holders: []quotaHolder{}}
	for _, h := range q.GetHolders() {
		out.Holders = append(out.Holders, quotaHolder{h.GetEdge(), h.GetEpoch(), h.GetHeld(), moment(clock(h.GetLastHeard()))})
	}
	return out
}

func (a *app) quotaCommand() *cobra.Command {
	var customer, zoneName string
	show := &cobra.Command{Use: "show --customer NAME", Short: "Show what is used, held and left of a customer's quotas", Args: cobra.NoArgs,
		Long: `Show what is used, held and left of a customer's quotas. Held units are leased to edges and not accounted for yet:
they count as spent until the edge that holds them says otherwise or its epoch is closed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.GetQuotasResponse, error) {
					return n.GetQuotas(ctx, &adminv1.GetQuotasRequest{Customer: customer})
				})
				if err != nil {
					return err
				}
				return a.printQuotas(resp.GetQuotas())
			})
		}}
	var topUpsOf, topUpsZone string
	topUps := &cobra.Command{Use: "top-ups --customer NAME", Short: "List what was added to a customer's quotas, by whom and why; the newest 1000", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, topUpsZone, func(ctx context.Context, n api) (*adminv1.GetQuotasResponse, error) {
					return n.GetQuotas(ctx, &adminv1.GetQuotasRequest{Customer: topUpsOf})
				})
				if err != nil {
					return err
				}
				return a.printTopUps(resp.GetTopUps())
			})
		}}
	topUps.Flags().StringVar(&topUpsOf, "customer", "", "whose quotas")
	topUps.Flags().StringVar(&topUpsZone, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	must(topUps.MarkFlagRequired("customer"))
	show.Flags().StringVar(&customer, "customer", "", "whose quotas")
	show.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	must(show.MarkFlagRequired("customer"))

	req := &adminv1.TopUpRequest{}
	top := &cobra.Command{Use: "top-up --customer NAME --units N", Short: "Add units to the present period of a quota, to a rolling one for one window, or to a prepaid balance", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.RequestId == "" {
				req.RequestId = rand.Text()
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.TopUpResponse, error) { return n.TopUp(ctx, req) })
				if err != nil {
					return err
				}
				q := quotaOf(resp.GetQuota())
				return a.print(struct {
					RequestID string      `json:"request_id"`
					Repeated  bool        `json:"repeated"`
					Quota     quotaStatus `json:"quota"`
				}{req.GetRequestId(), resp.GetRepeated(), q}, func(w io.Writer) {
					if resp.GetRepeated() {
						fmt.Fprintf(w, "This request id has topped up before: nothing was added again.\n")
					}
					fmt.Fprintf(w, "%s/%s: limit %d (%d topped up), %d used, %d held, %d left\n", q.Customer, q.Subscription, q.Limit, q.ToppedUp, q.Used, q.Held, q.Remaining)
				})
			})
		}}
	top.Flags().StringVar(&req.Customer, "customer", "", "whose quota")
	top.Flags().StringVar(&req.Subscription, "subscription", "", "which subscription; may be left out if one alone has a quota")
	top.Flags().Int64Var(&req.Units, "units", 0, "how many units")
	top.Flags().StringVar(&req.Reason, "reason", "", "why; kept with the top-up")
	top.Flags().StringVar(&req.RequestId, "request-id", "", "the same id tops up once, however often it is sent; by default a new one")
	top.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	must(top.MarkFlagRequired("customer"))
	must(top.MarkFlagRequired("units"))
	return group("quota", "Quotas of customers", show, top, topUps)
}

func (a *app) printQuotas(list []*adminv1.QuotaStatus) error {
	out := []quotaStatus{}
	for _, q := range list {
		out = append(out, quotaOf(q))
	}
	return a.print(out, func(w io.Writer) {
		if len(out) == 0 {
			fmt.Fprintln(w, "No plan of this customer has a quota.")
			return
		}
		var lines, holders [][]string
		n := func(v int64) string { return strconv.FormatInt(v, 10) }
		for _, q := range out {
			lines = append(lines, []string{q.Subscription, q.Plan, q.Mode, q.Period, string(q.PeriodEnd), n(q.Limit), n(q.ToppedUp), n(q.Used), n(q.Held), n(q.Remaining)})
			for _, h := range q.Holders {
				holders = append(holders, []string{q.Subscription, h.Edge, strconv.FormatUint(h.Epoch, 10), n(h.Held), string(h.LastHeard)})
			}
		}
		rows(w, "SUBSCRIPTION PLAN MODE PERIOD ENDS LIMIT TOPPED_UP USED HELD LEFT", lines)
		if len(holders) > 0 {
			fmt.Fprintln(w)
			rows(w, "SUBSCRIPTION EDGE EPOCH HELD LAST_HEARD", holders)
		}
	})
}

func (a *app) printTopUps(list []*adminv1.ToppedUp) error {
	type topUp struct {
		At           string `json:"at"`
		Subscription string `json:"subscription"`
		PeriodStart  moment `json:"period_start"`
		Units        int64  `json:"units"`
		By           string `json:"by"`
		Reason       string `json:"reason"`
		RequestID    string `json:"request_id"`
	}
	out := []topUp{}
	var lines [][]string
	for _, t := range list {
		one := topUp{clock(t.GetAt()), t.GetSubscription(), moment(clock(t.GetPeriodStart())), t.GetUnits(), t.GetBy(), t.GetReason(), t.GetRequestId()}
		out = append(out, one)
		lines = append(lines, []string{one.At, one.Subscription, string(one.PeriodStart), number(one.Units), one.By, one.RequestID, one.Reason})
	}
	return a.print(out, func(w io.Writer) { rows(w, "AT SUBSCRIPTION PERIOD UNITS BY REQUEST-ID REASON", lines) })
}
