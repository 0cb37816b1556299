package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func (a *app) webhookCommand() *cobra.Command {
	req := &adminv1.CreateWebhookRequest{}
	var createZone string
	create := &cobra.Command{Use: "create NAME --url URL", Short: "Have a URL told when quotas come near their end; shows its signing secret, once", Args: cobra.ExactArgs(1),
		Long: `Have a URL told when a customer's quota is used to 50, 80 and 100 %, or to other thresholds. Messages are signed as
Standard Webhooks has it (webhook-id, webhook-timestamp, webhook-signature); one threshold has one webhook-id, however
often it is delivered. The URL must be https and public.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.RequestId = args[0], rand.Text()
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				call := func(ctx context.Context, n api) (*adminv1.CreateWebhookResponse, error) {
					return n.CreateWebhook(ctx, req)
				}
				resp, err := inZone(ctx, c, createZone, req.GetCustomer() != "", call)
				if err != nil {
					return err
				}
				out := struct {
					Name   string `json:"name"`
					Secret string `json:"secret"`
				}{resp.GetWebhook().GetName(), resp.GetSecret()}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "name:   %s\nsecret: %s\nKeep the secret now: it cannot be shown again.\n", out.Name, out.Secret)
				})
			})
		}}
	create.Flags().StringVar(&req.Url, "url", "", "where to send")
	create.Flags().Int32SliceVar(&req.Thresholds, "thresholds", nil, "percent of the quota, comma separated; default 50,80,100")
	create.Flags().StringVar(&req.Customer, "customer", "", "only this customer's quotas; default every customer's of the zone")
	create.Flags().StringVar(&createZone, "zone", "", "whose customers; default the customer's zone, or that of the first control node")
	must(create.MarkFlagRequired("url"))

	var listZone string
	list := &cobra.Command{Use: "list", Short: "List webhooks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := inZone(ctx, c, listZone, false, func(ctx context.Context, n api) (*adminv1.ListWebhooksResponse, error) {
					return n.ListWebhooks(ctx, &adminv1.ListWebhooksRequest{})
				})
				if err != nil {
					return err
				}
				return a.printWebhooks(resp.GetWebhooks())
			})
		}}
	list.Flags().StringVar(&listZone, "zone", "", "of this zone; default that of the first control node")

	var deleteZone string
	remove := &cobra.Command{Use: "delete NAME", Short: "Delete a webhook: what was not delivered never will be", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				_, err := around(ctx, c, deleteZone, func(ctx context.Context, n api) (*adminv1.DeleteWebhookResponse, error) {
					return n.DeleteWebhook(ctx, &adminv1.DeleteWebhookRequest{Name: args[0]})
				})
				if err != nil {
					return err
				}
				return a.done("Webhook", args[0], "deleted")
			})
		}}
	remove.Flags().StringVar(&deleteZone, "zone", "", "of this zone; left out, the zones are asked one by one")

	var rotateZone string
	var overlap time.Duration
	rotate := &cobra.Command{Use: "rotate-secret NAME", Short: "Make a new signing secret and show it, once; the old one signs as well until the overlap is over", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, rotateZone, func(ctx context.Context, n api) (*adminv1.RotateWebhookSecretResponse, error) {
					return n.RotateWebhookSecret(ctx, &adminv1.RotateWebhookSecretRequest{Name: args[0], Overlap: durationpb.New(overlap)})
				})
				if err != nil {
					return err
				}
				out := struct {
					Name   string `json:"name"`
					Secret string `json:"secret"`
				}{args[0], resp.GetSecret()}
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "secret: %s\nKeep the secret now: it cannot be shown again. The old one signs as well for %v.\n", out.Secret, overlap)
				})
			})
		}}
	rotate.Flags().StringVar(&rotateZone, "zone", "", "of this zone; left out, the zones are asked one by one")
	rotate.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long both secrets sign; at most 168h")
	return group("webhook", "URLs that are told when quotas come near their end", create, list, remove, rotate)
}

func (a *app) printWebhooks(hooks []*adminv1.Webhook) error {
	type webhook struct {
		Name       string  `json:"name"`
		URL        string  `json:"url"`
		Customer   string  `json:"customer"`
		Thresholds []int32 `json:"thresholds"`
		CreatedAt  string  `json:"created_at"`
	}
	out := []webhook{}
	var lines [][]string
	for _, h := range hooks {
		one := webhook{h.GetName(), h.GetUrl(), h.GetCustomer(), h.GetThresholds(), clock(h.GetCreatedAt())}
		out = append(out, one)
		var percent []string
		for _, t := range one.Thresholds {
			percent = append(percent, strconv.Itoa(int(t)))
		}
		lines = append(lines, []string{one.Name, one.URL, or(one.Customer, "all"), strings.Join(percent, ","), one.CreatedAt})
	}
	return a.print(out, func(w io.Writer) { rows(w, "NAME URL CUSTOMER THRESHOLDS CREATED", lines) })
}

func (a *app) alertCommand() *cobra.Command {
	var customer, listZone, filter string
	list := &cobra.Command{Use: "list", Short: "List what webhooks were told, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := inZone(ctx, c, listZone, false, func(ctx context.Context, n api) (*adminv1.ListAlertsResponse, error) {
					return n.ListAlerts(ctx, &adminv1.ListAlertsRequest{Customer: customer, Filter: filter})
				})
				if err != nil {
					return err
				}
				return a.printAlerts(resp.GetAlerts())
			})
		}}
	list.Flags().StringVar(&customer, "customer", "", "only this customer's")
	list.Flags().StringVar(&listZone, "zone", "", "of this zone; default that of the first control node")
	return group("alert", "Thresholds of quotas that were reached", filtered(list, &filter))
}

func (a *app) printAlerts(alerts []*adminv1.Alert) error {
	type alert struct {
		ID           string `json:"id"`
		Webhook      string `json:"webhook"`
		Customer     string `json:"customer"`
		Subscription string `json:"subscription"`
		PeriodStart  moment `json:"period_start"`
		Threshold    int32  `json:"threshold"`
		RaisedAt     string `json:"raised_at"`
		DeliveredAt  moment `json:"delivered_at"`
		Attempts     int32  `json:"attempts"`
		Status       string `json:"status"`
		LastError    string `json:"last_error"`
	}
	out := []alert{}
	var lines [][]string
	for _, x := range alerts {
		one := alert{x.GetId(), x.GetWebhook(), x.GetCustomer(), x.GetSubscription(), moment(clock(x.GetPeriodStart())), x.GetThreshold(), clock(x.GetRaisedAt()),
			moment(clock(x.GetDeliveredAt())), x.GetAttempts(), x.GetStatus(), x.GetLastError()}
		out = append(out, one)
		lines = append(lines, []string{one.RaisedAt, one.Webhook, one.Customer, one.Subscription, string(one.PeriodStart), strconv.Itoa(int(one.Threshold)) + "%", one.Status,
			strconv.Itoa(int(one.Attempts)), one.LastError})
	}
	return a.print(out, func(w io.Writer) {
		rows(w, "RAISED WEBHOOK CUSTOMER SUBSCRIPTION PERIOD THRESHOLD STATUS TRIES LAST-ERROR", lines)
	})
}

// inZone asks the zone that is named, or else the one that has the customer, or else the first.
func inZone[T any](ctx context.Context, c *client, only string, search bool, call func(context.Context, api) (T, error)) (T, error) {
	if only == "" && !search {
		return ask(ctx, c, c.urls, call)
	}
	return around(ctx, c, only, call)
}
