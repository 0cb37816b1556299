package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault/rpcfault"
)

// What tests wait for is asked of the admin API from within: a start of the CLI costs some fifty times as much of a
// processor as the call that it makes, and tests that polled with it starved what they were waiting for. Where it is
// reached the CLI has the last word (Settle, UsageThrough), so what it prints is still read.

// tryFor is how long one control node is waited for, which may stand still, before the next is asked.
const tryFor = 2 * time.Second

// anyOf asks a zone's control nodes one after another until one answers.
func anyOf[R any](s *Sandbox, zone string, call func(ctx context.Context, client *http.Client, url string) (R, error)) (answer R, err error) {
	client, err := s.adminClient()
	if err != nil {
		return answer, err
	}
	var errs []error
	for _, url := range s.AdminURLs(zone) {
		ctx, cancel := context.WithTimeout(context.Background(), tryFor)
		answer, err = call(ctx, client, url)
		cancel()
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", url, err))
	}
	return answer, errors.Join(errs...)
}

var asFaults = connect.WithInterceptors(rpcfault.Client())

// Nodes asks a zone for its registry.
func (s *Sandbox) Nodes(zone string) (map[string]Node, error) {
	answer, err := anyOf(s, zone, func(ctx context.Context, client *http.Client, url string) (*adminv1.ListNodesResponse, error) {
		return adminv1connect.NewNodeServiceClient(client, url, asFaults).ListNodes(ctx, &adminv1.ListNodesRequest{})
	})
	if err != nil {
		return nil, fmt.Errorf("list the nodes of %s: %w", zone, err)
	}
	position := func(p *adminv1.Position) json.RawMessage {
		if p == nil {
			return nil
		}
		return fmt.Appendf(nil, `{"epoch":%d,"index":%d,"sum":%q}`, p.GetEpoch(), p.GetIndex(), p.GetSum())
	}
	nodes := map[string]Node{}
	for _, n := range answer.GetNodes() {
		nodes[n.GetName()] = Node{Name: n.GetName(), Kind: n.GetKind(), Region: n.GetRegion(), Zone: n.GetZone(), Status: n.GetStatus(),
			Catalog: position(n.GetCatalog()), CatalogWant: position(n.GetCatalogWant()), Position: position(n.GetZonePosition()), Want: position(n.GetZoneWant()),
			NackReason: n.GetNackReason(), Serial: n.GetCertificateSerial(), ConnectedTo: n.GetConnectedTo()}
	}
	return nodes, nil
}

// Leaders says who leads which group, as far as the zones can tell.
func (s *Sandbox) Leaders() map[string]string {
	leaders := map[string]string{}
	for _, zone := range []string{"emea", "us"} {
		answer, err := anyOf(s, zone, func(ctx context.Context, client *http.Client, url string) (*adminv1.LeadersResponse, error) {
			return adminv1connect.NewNodeServiceClient(client, url, asFaults).Leaders(ctx, &adminv1.LeadersRequest{})
		})
		if err != nil {
			continue // the zone is down: its groups are left out
		}
		for group, leader := range answer.GetLeaders() {
			if leader != "" && leaders[group] == "" {
				leaders[group] = leader
			}
		}
	}
	return leaders
}

// Leader of a group. It waits until there is one.
func (s *Sandbox) Leader(group string) (name string) {
	s.t.Helper()
	s.Eventually(30*time.Second, group+" has a leader", func() error {
		leaders := s.Leaders()
		if name = leaders[group]; name == "" {
			return fmt.Errorf("leaders are %v", leaders)
		}
		return nil
	})
	return name
}

// Usage of a customer in the last day.
func (s *Sandbox) Usage(zone, customer string) (Usage, error) {
	answer, err := anyOf(s, zone, func(ctx context.Context, client *http.Client, url string) (*adminv1.QueryUsageResponse, error) {
		return queryUsage(ctx, client, url, customer)
	})
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", customer, err)
	}
	return usageOf(answer), nil
}

func usageOf(answer *adminv1.QueryUsageResponse) (u Usage) {
	t := answer.GetTotal()
	u.Total = UsageTotal{t.GetRequests(), t.GetBillable(), t.GetLimited(), t.GetErrors(), t.GetUnits()}
	for _, r := range answer.GetRows() {
		u.Rows = append(u.Rows, UsageRow{Cell: r.GetCell().AsTime().UTC().Format(time.RFC3339), API: r.GetApi(), Route: r.GetRoute(), Plan: r.GetPlan(), Outcome: r.GetOutcome(),
			ServedRegion: r.GetServedRegion(), Requests: r.GetRequests(), Units: r.GetUnits()})
	}
	if at := answer.GetCompleteThrough(); at != nil {
		u.CompleteThrough = at.AsTime()
	}
	return u
}

// UsageAt asks one control node alone for a customer's usage.
func (s *Sandbox) UsageAt(url, customer string) func() (Usage, error) {
	return func() (Usage, error) {
		client, err := s.adminClient()
		if err != nil {
			return Usage{}, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), tryFor)
		defer cancel()
		answer, err := queryUsage(ctx, client, url, customer)
		if err != nil {
			return Usage{}, fmt.Errorf("usage of %s at %s: %w", customer, url, err)
		}
		return usageOf(answer), nil
	}
}

func queryUsage(ctx context.Context, client *http.Client, url, customer string) (*adminv1.QueryUsageResponse, error) {
	return adminv1connect.NewUsageServiceClient(client, url, asFaults).QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: customer, Since: timestamppb.New(time.Now().Add(-24 * time.Hour))})
}

// Resources of a kind, by its name in the plural, as lines of JSON: the same for the same.
func (s *Sandbox) Resources(zone, kind string) (string, error) {
	answer, err := anyOf(s, zone, func(ctx context.Context, client *http.Client, url string) (*adminv1.ListResponse, error) {
		return adminv1connect.NewResourceServiceClient(client, url, asFaults).List(ctx, &adminv1.ListRequest{Kind: kind})
	})
	if err != nil {
		return "", fmt.Errorf("list %s in %s: %w", kind, zone, err)
	}
	var b strings.Builder
	for _, r := range answer.GetResources() {
		raw, err := protojson.Marshal(r)
		if err != nil {
			return "", err
		}
		b.WriteString(canonical(raw) + "\n") // protojson varies its spaces
	}
	return b.String(), nil
}
