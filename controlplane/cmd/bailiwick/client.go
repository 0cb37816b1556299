package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

const (
	// tryTimeout is for one node: more than a server waits for a quorum, so that its own answer arrives.
	tryTimeout  = 8 * time.Second
	dialTimeout = 2 * time.Second
	// briefTimeout is for a zone when other zones' answers are shown as well.
	briefTimeout = 4 * time.Second
)

// api is all services of one control node.
type api struct {
	adminv1connect.ResourceServiceClient
	adminv1connect.KeyServiceClient
	adminv1connect.NodeServiceClient
	adminv1connect.CacheServiceClient
	adminv1connect.ClusterServiceClient
	adminv1connect.BorderServiceClient
	adminv1connect.ApprovalServiceClient
	adminv1connect.OperatorServiceClient
	adminv1connect.RolloutServiceClient
	adminv1connect.DNSServiceClient
	adminv1connect.UsageServiceClient
	adminv1connect.AlertServiceClient
	adminv1connect.LedgerServiceClient
	adminv1connect.QuotaServiceClient
	adminv1connect.CustomerServiceClient
	adminv1connect.EvidenceServiceClient
}

type client struct {
	http *http.Client
	urls []string      // as configured, in order
	try  time.Duration // for one node
}

// zone is where the control nodes of a zone are.
type zone struct {
	name string
	urls []string
}

func (a *app) setting(flag, env string) string {
	if flag != "" {
		return flag
	}
	return a.getenv(env)
}

func (a *app) connect() (*client, error) {
	c := &client{try: tryTimeout}
	for u := range strings.SplitSeq(a.setting(a.admin, "BAILIWICK_ADMIN"), ",") {
		if u = strings.TrimRight(strings.TrimSpace(u), "/"); u != "" {
			c.urls = append(c.urls, u)
		}
	}
	if len(c.urls) == 0 {
		return nil, misuse("no control node to ask: set BAILIWICK_ADMIN or --admin to its URL")
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13}
	if file := a.setting(a.caFile, "BAILIWICK_CA_FILE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA file %s: it holds no certificate", file)
		}
	}
	token := ""
	if file := a.setting(a.tokenFile, "BAILIWICK_TOKEN_FILE"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read token file: %w", err)
		}
		token = strings.TrimSpace(string(data))
	}
	c.http = &http.Client{Transport: operator{token, a.setting(a.reason, "BAILIWICK_REASON"), &http.Transport{
		TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, TLSHandshakeTimeout: dialTimeout,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
	}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// operator adds the token, and never sends it in clear text over a network.
type operator struct {
	token  string
	reason string // for which customers' data is read; on record in their zone
	next   http.RoundTripper
}

func (o operator) RoundTrip(r *http.Request) (*http.Response, error) {
	if o.token == "" {
		return o.next.RoundTrip(r)
	}
	if ip := net.ParseIP(r.URL.Hostname()); r.URL.Scheme != "https" && r.URL.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s is not https: the token is not sent there", r.URL.Redacted())
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+o.token)
	if o.reason != "" {
		r.Header.Set("Bailiwick-Reason", o.reason)
	}
	return o.next.RoundTrip(r)
}

func (c *client) at(u string) api {
	opt := connect.WithInterceptors(connect.UnaryInterceptorFunc(pages), rpcfault.Client())
	return api{
		adminv1connect.NewResourceServiceClient(c.http, u, opt), adminv1connect.NewKeyServiceClient(c.http, u, opt),
		adminv1connect.NewNodeServiceClient(c.http, u, opt), adminv1connect.NewCacheServiceClient(c.http, u, opt), adminv1connect.NewClusterServiceClient(c.http, u, opt), adminv1connect.NewBorderServiceClient(c.http, u, opt),
		adminv1connect.NewApprovalServiceClient(c.http, u, opt), adminv1connect.NewOperatorServiceClient(c.http, u, opt),
		adminv1connect.NewRolloutServiceClient(c.http, u, opt),
		adminv1connect.NewDNSServiceClient(c.http, u, opt),
		adminv1connect.NewUsageServiceClient(c.http, u, opt),
		adminv1connect.NewAlertServiceClient(c.http, u, opt),
		adminv1connect.NewLedgerServiceClient(c.http, u, opt),
		adminv1connect.NewQuotaServiceClient(c.http, u, opt),
		adminv1connect.NewCustomerServiceClient(c.http, u, opt),
		adminv1connect.NewEvidenceServiceClient(c.http, u, opt),
	}
}

// ask calls one node after the other until one answers for its zone, and once goes where a node says that the
// data rests. The error of a node that did answer is worth more than those of nodes that did not.
func ask[T any](ctx context.Context, c *client, urls []string, call func(context.Context, api) (T, error)) (T, error) {
	return askFollowing(ctx, c, urls, call, true)
}

func askFollowing[T any](ctx context.Context, c *client, urls []string, call func(context.Context, api) (T, error), follow bool) (T, error) {
	var none T
	var worst error
	for _, u := range urls {
		if _, err := url.Parse(u); err != nil {
			return none, misuse("%q is not a URL", u)
		}
		tryCtx, cancel := context.WithTimeout(ctx, c.try)
		v, err := call(tryCtx, c.at(u))
		cancel()
		if err == nil {
			return v, nil
		}
		f, ok := fault.As(err)
		if !ok {
			return none, err
		}
		if f.Kind == fault.WrongZone && follow && f.Meta["admin_urls"] != "" {
			return askFollowing(ctx, c, strings.Split(f.Meta["admin_urls"], ","), call, false)
		}
		switch {
		case f.Kind == fault.Unimplemented && f.Reason == "UNIMPLEMENTED": // not its own word: the node's program is older than this call
			worst = fault.New(fault.Unimplemented, "NODE_OLDER", "the control node at %s runs a release that does not know this call: upgrade the zone's nodes, or ask one that is with --admin: %w", u, f.Err)
		case f.Kind != fault.Unavailable, f.Reason == "CATALOG_NO_LEADER":
			return none, err // no other node can say better
		case f.Reason == rpcfault.ReasonNoAnswer || f.Reason == rpcfault.ReasonDeadline:
			if worst == nil {
				worst = fault.New(fault.Unavailable, f.Reason, "%s does not answer: %w", u, f.Err)
			}
		case worst == nil || fault.ReasonOf(worst) == rpcfault.ReasonNoAnswer || fault.ReasonOf(worst) == rpcfault.ReasonDeadline:
			worst = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if worst == nil {
		worst = fault.New(fault.Unavailable, rpcfault.ReasonNoAnswer, "no control node to ask is known")
	}
	return none, worst
}

// zones lists where each zone is, the one that the configured URLs name first at the head.
func (c *client) zones(ctx context.Context) ([]zone, error) {
	resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ListResponse, error) {
		return n.List(ctx, &adminv1.ListRequest{Kind: "zones"})
	})
	if err != nil {
		return nil, err
	}
	var zones []zone
	rank := map[string]int{}
	for _, r := range resp.GetResources() {
		z := zone{name: r.GetName()}
		rank[z.name] = len(c.urls)
		published := r.GetZone().GetAdminUrls()
		for i, u := range c.urls { // those configured are known to be reachable from here
			if slices.Contains(published, u) || slices.Contains(published, u+"/") {
				z.urls = append(z.urls, u)
				rank[z.name] = min(rank[z.name], i)
			}
		}
		for _, u := range published {
			if u = strings.TrimRight(u, "/"); !slices.Contains(z.urls, u) {
				z.urls = append(z.urls, u)
			}
		}
		if len(z.urls) > 0 {
			zones = append(zones, z)
		}
	}
	slices.SortStableFunc(zones, func(a, b zone) int { return rank[a.name] - rank[b.name] })
	if len(zones) == 0 {
		zones = []zone{{urls: c.urls}} // an installation that publishes no URLs: what is configured is all there is
	}
	return zones, nil
}

// in is the one zone that the operator named.
func (c *client) in(ctx context.Context, name string) (zone, error) {
	zones, err := c.zones(ctx)
	if err != nil {
		return zone{}, err
	}
	for _, z := range zones {
		if z.name == name || z.name == "" {
			return z, nil
		}
	}
	return zone{}, fault.New(fault.NotFound, "ZONE_NOT_FOUND", "zone %q does not exist", name)
}

// around asks zone after zone for what only one of them has. That a zone does not answer is never read as
// absence: the thing may well be there.
func around[T any](ctx context.Context, c *client, only string, call func(context.Context, api) (T, error)) (T, error) {
	var none T
	if only != "" {
		z, err := c.in(ctx, only)
		if err != nil {
			return none, err
		}
		return ask(ctx, c, z.urls, call)
	}
	zones, err := c.zones(ctx)
	if err != nil {
		return none, err
	}
	var absent, silent error
	for _, z := range zones {
		v, err := ask(ctx, c, z.urls, call)
		switch {
		case err == nil:
			return v, nil
		case fault.KindOf(err) == fault.NotFound:
			if absent == nil {
				absent = err
			}
		case fault.KindOf(err) == fault.Unavailable:
			if silent == nil {
				silent = fmt.Errorf("zone %s: %w", z.name, err)
			}
		default:
			return none, err
		}
	}
	if silent != nil {
		return none, silent
	}
	if len(zones) > 1 && absent != nil {
		return none, fmt.Errorf("%w, nor in any other zone", absent)
	}
	return none, absent
}

// everywhere asks all zones at once and returns the answers by zone; a zone that does not answer is told on
// stderr. It is an error if none does.
func everywhere[T any](ctx context.Context, a *app, c *client, call func(context.Context, api) (T, error)) (map[string]T, error) {
	zones, err := c.zones(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, max(briefTimeout, a.timeout/5))
	defer cancel()
	answers := make([]T, len(zones))
	errs := make([]error, len(zones))
	var wg sync.WaitGroup
	for i, z := range zones {
		wg.Go(func() { answers[i], errs[i] = ask(ctx, c, z.urls, call) })
	}
	wg.Wait()
	out := map[string]T{}
	for i, z := range zones {
		switch {
		case errs[i] == nil:
			out[z.name] = answers[i]
		case fault.KindOf(errs[i]) != fault.Unavailable:
			return nil, errs[i]
		default:
			fmt.Fprintf(a.err, "warning: zone %s does not answer: %s\n", z.name, describe(errs[i]))
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(errs[0])
	}
	return out, nil
}

// command runs f with a client and the command's deadline.
func (a *app) command(ctx context.Context, f func(context.Context, *client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return f(ctx, c)
}
