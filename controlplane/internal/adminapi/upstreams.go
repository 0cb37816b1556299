package adminapi

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// upstreamsFromProto reads where an API's requests go, and how.
func upstreamsFromProto(v *adminv1.API, out *model.API) (err error) {
	for _, u := range v.GetUpstreams() {
		out.Upstreams = append(out.Upstreams, model.Upstream{Region: u.GetRegion(), URL: u.GetUrl(), Drain: u.GetDrain(), Protocol: u.GetProtocol()})
	}
	read := func(into *time.Duration, d *durationpb.Duration, field string) {
		if err == nil {
			*into, err = duration(d, field)
		}
	}
	h := v.GetHealth()
	out.Health = model.Health{Path: h.GetPath(), Failures: int(h.GetFailures()), Protocol: h.GetProtocol(), Service: h.GetService()}
	read(&out.Health.Interval, h.GetInterval(), "spec.health.interval")
	read(&out.Health.Timeout, h.GetTimeout(), "spec.health.timeout")
	read(&out.Health.GoodFor, h.GetGoodFor(), "spec.health.good_for")
	d := v.GetDispatch()
	out.Dispatch = model.Dispatch{Choice: d.GetChoice(), MaxRequests: int(d.GetMaxRequests()), MaxWaiting: int(d.GetMaxWaiting()),
		MaxEjectedPercent: int(d.GetMaxEjectedPercent()), Discovery: d.GetDiscovery(), MaxConnections: int(d.GetMaxConnections())}
	read(&out.Dispatch.SlowStart, d.GetSlowStart(), "spec.dispatch.slow_start")
	read(&out.Dispatch.MaxWait, d.GetMaxWait(), "spec.dispatch.max_wait")
	t := v.GetUpstreamTls()
	out.UpstreamTLS = model.UpstreamTLS{ServerName: t.GetServerName(), CA: t.GetCa(), ClientCertificate: t.GetClientCertificate()}
	return err
}

func upstreamsToProto(v model.API, out *adminv1.API) {
	for _, u := range v.Upstreams {
		out.Upstreams = append(out.Upstreams, &adminv1.Upstream{Region: u.Region, Url: u.URL, Drain: u.Drain, Protocol: u.Protocol})
	}
	if h := v.Health; h != (model.Health{}) {
		out.Health = &adminv1.Health{Path: h.Path, Interval: showDuration(h.Interval), Timeout: showDuration(h.Timeout),
			Failures: int32(h.Failures), GoodFor: showDuration(h.GoodFor), Protocol: h.Protocol, Service: h.Service}
	}
	if d := v.Dispatch; d != (model.Dispatch{}) {
		out.Dispatch = &adminv1.Dispatch{Choice: d.Choice, SlowStart: showDuration(d.SlowStart), MaxRequests: int32(d.MaxRequests),
			MaxWaiting: int32(d.MaxWaiting), MaxWait: showDuration(d.MaxWait), MaxEjectedPercent: int32(d.MaxEjectedPercent), Discovery: d.Discovery, MaxConnections: int32(d.MaxConnections)}
	}
	if t := v.UpstreamTLS; t != (model.UpstreamTLS{}) {
		out.UpstreamTls = &adminv1.UpstreamTLS{ServerName: t.ServerName, Ca: t.CA, ClientCertificate: t.ClientCertificate}
	}
}

func cacheFromProto(c *adminv1.Cache, out *model.Route, i int) (err error) {
	if c == nil {
		return nil
	}
	out.Cache = &model.Cache{MaxBytes: c.GetMaxBytes(), Scope: c.GetScope(), Generation: c.GetGeneration()}
	for field, d := range map[string]struct {
		into *time.Duration
		from *durationpb.Duration
	}{"ttl": {&out.Cache.TTL, c.GetTtl()}, "stale_while_revalidate": {&out.Cache.StaleWhileRevalidate, c.GetStaleWhileRevalidate()},
		"stale_if_error": {&out.Cache.StaleIfError, c.GetStaleIfError()}} {
		if *d.into, err = duration(d.from, fmt.Sprintf("spec.routes[%d].cache.%s", i, field)); err != nil {
			return err
		}
	}
	return nil
}

func cacheToProto(c *model.Cache) *adminv1.Cache {
	if c == nil {
		return nil
	}
	return &adminv1.Cache{Ttl: showDuration(c.TTL), StaleWhileRevalidate: showDuration(c.StaleWhileRevalidate), StaleIfError: showDuration(c.StaleIfError),
		MaxBytes: c.MaxBytes, Scope: c.Scope, Generation: c.Generation}
}
