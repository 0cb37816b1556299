package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func (a *app) usageLatencyCommand() *cobra.Command {
	req := &adminv1.QueryLatencyRequest{}
	var since, until, zoneName string
	c := &cobra.Command{Use: "latency", Short: "Show how long answers took, by API, route and region that served them", Args: cobra.NoArgs,
		Long: `Show how long answers took, as the edges measured it, by API, route and served region: of all customers of one zone
together. Quantiles are within 1 % of the true value. What is older than 35 days is kept by the hour, not the minute.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			var err error
			if req.Since, err = instant(since, now); err != nil {
				return misuse("--since: %v", err)
			}
			if req.Until, err = instant(until, now); err != nil {
				return misuse("--until: %v", err)
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := inZone(ctx, c, zoneName, false, func(ctx context.Context, n api) (*adminv1.QueryLatencyResponse, error) {
					return n.QueryLatency(ctx, req)
				})
				if err != nil {
					return err
				}
				return a.printLatency(resp)
			})
		}}
	c.Flags().StringVar(&req.Api, "api", "", "only this API")
	c.Flags().StringVar(&req.Route, "route", "", "only this route")
	c.Flags().StringVar(&since, "since", "1h", "from when: an age, a date or a time")
	c.Flags().StringVar(&until, "until", "", "until when; default now")
	c.Flags().Float64SliceVar(&req.Quantiles, "quantiles", nil, "comma separated, thousandths at the finest; default 0.5,0.9,0.99")
	c.Flags().StringVar(&zoneName, "zone", "", "which zone; default that of the first control node")
	return c
}

func (a *app) printLatency(resp *adminv1.QueryLatencyResponse) error {
	type row struct {
		API          string    `json:"api"`
		Route        string    `json:"route"`
		ServedRegion string    `json:"served_region"`
		Count        int64     `json:"count"`
		Seconds      []float64 `json:"seconds"`
	}
	out := struct {
		Quantiles       []float64 `json:"quantiles"`
		Rows            []row     `json:"rows"`
		CompleteThrough moment    `json:"complete_through"`
	}{resp.GetQuantiles(), []row{}, moment(clock(resp.GetCompleteThrough()))}
	heading := "API ROUTE SERVED COUNT"
	for _, q := range out.Quantiles {
		heading += " P" + strconv.FormatFloat(100*q, 'g', 4, 64)
	}
	var lines [][]string
	for _, r := range resp.GetRows() {
		out.Rows = append(out.Rows, row{r.GetApi(), r.GetRoute(), r.GetServedRegion(), r.GetCount(), r.GetSeconds()})
		line := []string{r.GetApi(), r.GetRoute(), r.GetServedRegion(), number(r.GetCount())}
		for _, s := range r.GetSeconds() {
			line = append(line, strconv.FormatFloat(1000*s, 'f', 1, 64)+"ms")
		}
		lines = append(lines, line)
	}
	return a.print(out, func(w io.Writer) {
		rows(w, heading, lines)
		fmt.Fprintf(w, "complete through %s\n", or(string(out.CompleteThrough), "no time yet: not every edge has reported"))
	})
}

func (a *app) usageForecastCommand() *cobra.Command {
	var customer, zoneName string
	c := &cobra.Command{Use: "forecast [--customer NAME]", Short: "Show when quotas will be used up, and how often limits are met; who runs out first comes first", Args: cobra.NoArgs,
		Long: `Show for each subscription with a quota when it will be used up at the pace of the last seven local days, the present
one counted by the part of it that has passed and time before the first use left out:

  pace = units of those days / time that has passed of them
  used up = now + (limit - used) / pace, if that is before the period ends

LIMITED is how many requests a rate limit or quota refused in those days, DAYS on how many of them that happened.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.timeout = max(a.timeout, 2*traceTimeout) // so that a node that hangs does not take all of it
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = traceTimeout
				resp, err := inZone(ctx, c, zoneName, customer != "", func(ctx context.Context, n api) (*adminv1.ForecastResponse, error) {
					return n.Forecast(ctx, &adminv1.ForecastRequest{Customer: customer})
				})
				if err != nil {
					return err
				}
				return a.printForecast(resp.GetSubscriptions())
			})
		}}
	c.Flags().StringVar(&customer, "customer", "", "only this customer's; default every customer's of the zone")
	c.Flags().StringVar(&zoneName, "zone", "", "which zone; default the customer's, or that of the first control node")
	return c
}

func (a *app) printForecast(all []*adminv1.SubscriptionForecast) error {
	type forecast struct {
		Customer     string  `json:"customer"`
		Subscription string  `json:"subscription"`
		Plan         string  `json:"plan"`
		Limit        int64   `json:"limit"`
		Used         int64   `json:"used"`
		UnitsPerDay  float64 `json:"units_per_day"`
		ExhaustedAt  moment  `json:"exhausted_at"`
		PeriodEnd    moment  `json:"period_end"`
		Limited      int64   `json:"limited_7d"`
		DaysLimited  int64   `json:"days_limited_7d"`
		Requests     int64   `json:"requests_7d"`
	}
	out := []forecast{}
	var lines [][]string
	for _, f := range all {
		one := forecast{f.GetCustomer(), f.GetSubscription(), f.GetPlan(), f.GetLimit(), f.GetUsed(), f.GetUnitsPerDay(), moment(clock(f.GetExhaustedAt())),
			moment(clock(f.GetPeriodEnd())), f.GetLimited_7D(), f.GetDaysLimited_7D(), f.GetRequests_7D()}
		out = append(out, one)
		share := ""
		if one.Limit > 0 {
			share = strconv.FormatFloat(100*float64(one.Used)/float64(one.Limit), 'f', 1, 64) + "%"
		}
		end := or(string(one.ExhaustedAt), "not in this period")
		lines = append(lines, []string{one.Customer, one.Subscription, number(one.Limit), number(one.Used), share, strconv.FormatFloat(one.UnitsPerDay, 'f', 1, 64),
			end, string(one.PeriodEnd), number(one.Limited), number(one.DaysLimited), number(one.Requests)})
	}
	return a.print(out, func(w io.Writer) {
		rows(w, "CUSTOMER SUBSCRIPTION LIMIT USED SHARE UNITS/DAY USED-UP PERIOD-END LIMITED DAYS REQUESTS", lines)
	})
}
