package adminapi

import (
	"context"
	"math"
	"time"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"

	"bailiwick/controlplane/internal/model"
)

// Insight looks at a zone's ledger from further away than its cells.
type Insight interface {
	Latency(ctx context.Context, since, until time.Time, api, route string) (LatencyReport, error)
	// Forecast is of one customer, or of every one of the zone, who runs out first at the head.
	Forecast(ctx context.Context, customer string) ([]Forecast, error)
}

// LatencyReport is how long answers took, by API, route and served region, without a customer column.
type LatencyReport struct {
	Rows            []LatencyRow
	CompleteThrough time.Time
}

// LatencyRow tells the quantiles of one route as one region served it.
type LatencyRow struct {
	API, Route, ServedRegion string
	Count                    int64
	Quantile                 func(permille int) time.Duration
}

// Forecast is how long a subscription's quota will last.
type Forecast struct {
	Customer, Subscription, Plan   string
	Limit, Used                    int64
	UnitsPerDay                    float64
	ExhaustedAt, PeriodEnd         time.Time // zero: not in this period; it does not end
	Limited, DaysLimited, Requests int64     // of the last 7 days
}

var defaultQuantiles = []float64{0.5, 0.9, 0.99}

func (s *server) insightOff() error {
	if s.Insight == nil {
		return s.usageOff()
	}
	return nil
}

func (s *server) QueryLatency(ctx context.Context, req *adminv1.QueryLatencyRequest) (*adminv1.QueryLatencyResponse, error) {
	if err := s.insightOff(); err != nil {
		return nil, err
	}
	since, until, err := interval(req.GetSince(), req.GetUntil())
	if err != nil {
		return nil, err
	}
	out := &adminv1.QueryLatencyResponse{Quantiles: req.GetQuantiles()}
	if len(out.Quantiles) == 0 {
		out.Quantiles = defaultQuantiles
	}
	var permille []int
	for _, q := range out.Quantiles {
		p := math.Round(q * 1000)
		if math.IsNaN(q) || math.Abs(q*1000-p) > 1e-6 {
			return nil, fault.New(fault.Invalid, "QUANTILE_INVALID", "quantile %v: they are told in thousandths, 0.999 is the finest", q).At("quantiles")
		}
		permille = append(permille, int(p))
	}
	report, err := s.Insight.Latency(ctx, since, until, req.GetApi(), req.GetRoute())
	if err != nil {
		return nil, err
	}
	out.CompleteThrough = stamp(report.CompleteThrough)
	for _, r := range report.Rows {
		row := &adminv1.LatencyRow{Api: r.API, Route: r.Route, ServedRegion: r.ServedRegion, Count: r.Count}
		for _, p := range permille {
			row.Seconds = append(row.Seconds, r.Quantile(p).Seconds())
		}
		out.Rows = append(out.Rows, row)
	}
	return out, nil
}

func (s *server) Forecast(ctx context.Context, req *adminv1.ForecastRequest) (*adminv1.ForecastResponse, error) {
	if err := s.insightOff(); err != nil {
		return nil, err
	}
	if name := req.GetCustomer(); name != "" {
		if _, ok := s.freshOrLocal(ctx, s.Store).Get(model.PrefixCustomer + name); !ok {
			return nil, s.customerUnknown(name)
		}
	}
	all, err := s.Insight.Forecast(ctx, req.GetCustomer())
	if err != nil {
		return nil, err
	}
	out := &adminv1.ForecastResponse{}
	for _, f := range all {
		out.Subscriptions = append(out.Subscriptions, &adminv1.SubscriptionForecast{Customer: f.Customer, Subscription: f.Subscription, Plan: f.Plan,
			Limit: f.Limit, Used: f.Used, UnitsPerDay: f.UnitsPerDay, ExhaustedAt: stamp(f.ExhaustedAt), PeriodEnd: stamp(f.PeriodEnd),
			Limited_7D: f.Limited, DaysLimited_7D: f.DaysLimited, Requests_7D: f.Requests})
	}
	return out, nil
}
