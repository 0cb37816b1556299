package adminapi

import (
	"context"
	"net/url"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/alert"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// defaultOverlap is how long the secret before the newest signs as well.
const defaultOverlap = 24 * time.Hour

func (s *server) alertsOff() error {
	if s.Alerts == nil {
		return fault.New(fault.Unimplemented, "ALERTS_OFF", "node %s tells no webhooks", s.Node)
	}
	return nil
}

func (s *server) CreateWebhook(ctx context.Context, req *adminv1.CreateWebhookRequest) (*adminv1.CreateWebhookResponse, error) {
	if err := s.alertsOff(); err != nil {
		return nil, err
	}
	w := alert.Webhook{Name: req.GetName(), URL: req.GetUrl(), Customer: req.GetCustomer()}
	for _, t := range req.GetThresholds() {
		w.Thresholds = append(w.Thresholds, int(t))
	}
	w, secret, err := s.Alerts.Create(ctx, w, requestID("webhook/"+req.GetName(), req.GetRequestId()))
	if err != nil {
		return nil, s.explain(s.Store, err)
	}
	return &adminv1.CreateWebhookResponse{Webhook: webhookToProto(w), Secret: secret}, nil
}

func webhookToProto(w alert.Webhook) *adminv1.Webhook {
	out := &adminv1.Webhook{Name: w.Name, Url: w.URL, Customer: w.Customer, CreatedAt: timestamppb.New(w.CreatedAt)}
	for _, t := range w.Thresholds {
		out.Thresholds = append(out.Thresholds, int32(t))
	}
	return out
}

// origin is what a viewer is shown of a URL: paths and queries of webhooks often hold their receiver's token.
func origin(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "…"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String() + "/…"
}

func (s *server) ListWebhooks(ctx context.Context, _ *adminv1.ListWebhooksRequest) (*adminv1.ListWebhooksResponse, error) {
	if err := s.alertsOff(); err != nil {
		return nil, err
	}
	all, err := s.Alerts.List(ctx)
	if err != nil {
		return nil, s.explain(s.Store, err)
	}
	out := &adminv1.ListWebhooksResponse{}
	for _, w := range all {
		one := webhookToProto(w)
		if !mayWrite(ctx) {
			one.Url = origin(w.URL)
		}
		out.Webhooks = append(out.Webhooks, one)
	}
	return out, nil
}

func (s *server) DeleteWebhook(ctx context.Context, req *adminv1.DeleteWebhookRequest) (*adminv1.DeleteWebhookResponse, error) {
	if err := s.alertsOff(); err != nil {
		return nil, err
	}
	if err := s.Alerts.Delete(ctx, req.GetName()); err != nil {
		return nil, s.explain(s.Store, err)
	}
	return &adminv1.DeleteWebhookResponse{}, nil
}

func (s *server) RotateWebhookSecret(ctx context.Context, req *adminv1.RotateWebhookSecretRequest) (*adminv1.RotateWebhookSecretResponse, error) {
	if err := s.alertsOff(); err != nil {
		return nil, err
	}
	overlap := req.GetOverlap()
	if overlap == nil {
		overlap = durationpb.New(defaultOverlap)
	}
	d, err := duration(overlap, "overlap")
	if err != nil {
		return nil, err
	}
	secret, err := s.Alerts.Rotate(ctx, req.GetName(), d)
	if err != nil {
		return nil, s.explain(s.Store, err)
	}
	return &adminv1.RotateWebhookSecretResponse{Secret: secret}, nil
}

func (s *server) ListAlerts(ctx context.Context, req *adminv1.ListAlertsRequest) (*adminv1.ListAlertsResponse, error) {
	if err := s.alertsOff(); err != nil {
		return nil, err
	}
	all, err := s.Alerts.Alerts(ctx, req.GetCustomer())
	if err != nil {
		return nil, s.explain(s.Store, err)
	}
	out := &adminv1.ListAlertsResponse{}
	for _, a := range all {
		one := &adminv1.Alert{Id: a.ID, Webhook: a.Webhook, Customer: a.Customer, Subscription: a.Subscription, Threshold: int32(a.Threshold),
			RaisedAt: stamp(a.RaisedAt), DeliveredAt: stamp(a.DeliveredAt), Attempts: int32(a.Attempts), LastError: a.LastError, Status: a.Status}
		if a.Period != usage.PeriodRolling && a.Period != usage.PeriodPrepaid {
			one.PeriodStart = timestamppb.New(time.Unix(a.Period, 0))
		}
		out.Alerts = append(out.Alerts, one)
	}
	return out, nil
}
