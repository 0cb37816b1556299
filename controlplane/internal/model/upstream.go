package model

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of how upstreams are used. A change here is a change of what stored data may hold: only ever widen.
const (
	MinHealthTimeout = 10 * time.Millisecond
	MaxHealthTimeout = 30 * time.Second
	MinGoodFor       = time.Second
	MaxGoodFor       = 10 * time.Minute
	MaxFailures      = 100
	MaxSlowStart     = 15 * time.Minute
	MaxWait          = 30 * time.Second
	MinHedgeAfter    = 5 * time.Millisecond
	MaxHedgeAfter    = 30 * time.Second
)

// MaxCacheTime bounds each time of a cache, MaxCacheBytes one answer's body.
const (
	MaxCacheTime  = 24 * time.Hour
	MaxCacheBytes = 16 << 20
)

func (c *Cache) validate(at, what string) error {
	if c == nil {
		return nil
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"ttl", c.TTL}, {"stale_while_revalidate", c.StaleWhileRevalidate}, {"stale_if_error", c.StaleIfError}} {
		if d.value < 0 || d.value > MaxCacheTime {
			return bad(at+"."+d.field, "CACHE_INVALID", "%s: %s %v of its cache is outside 0s to %v", what, d.field, d.value, MaxCacheTime)
		}
	}
	if c.MaxBytes < 0 || c.MaxBytes > MaxCacheBytes {
		return bad(at+".max_bytes", "CACHE_INVALID", "%s: max_bytes %d of its cache is outside 0 (1 MiB) to %d", what, c.MaxBytes, MaxCacheBytes)
	}
	if !slices.Contains([]string{"", "key", "subscription", "customer", "plan", "all"}, c.Scope) {
		return bad(at+".scope", "CACHE_INVALID", "%s: scope %q of its cache is none of key, subscription, customer, plan, all", what, c.Scope)
	}
	return nil
}

func (a API) validateUpstreams() error {
	h, d := a.Health, a.Dispatch
	switch {
	case h.Timeout != 0 && (h.Timeout < MinHealthTimeout || h.Timeout > MaxHealthTimeout):
		return bad("spec.health.timeout", "HEALTH_TIMEOUT_INVALID", "API %s: a probe timeout of %v is outside %v to %v", a.Name, h.Timeout, MinHealthTimeout, MaxHealthTimeout)
	case h.GoodFor != 0 && (h.GoodFor < MinGoodFor || h.GoodFor > MaxGoodFor):
		return bad("spec.health.good_for", "HEALTH_GOOD_FOR_INVALID", "API %s: good_for %v is outside %v to %v", a.Name, h.GoodFor, MinGoodFor, MaxGoodFor)
	case h.Failures < 0 || h.Failures > MaxFailures:
		return bad("spec.health.failures", "HEALTH_FAILURES_INVALID", "API %s: %d failures in a row is outside 1 to %d", a.Name, h.Failures, MaxFailures)
	case !slices.Contains([]string{"", "least-load", "in-order"}, d.Choice):
		return bad("spec.dispatch.choice", "CHOICE_INVALID", "API %s: choice %q is none of least-load, in-order", a.Name, d.Choice)
	case !slices.Contains([]string{"", "dns", "etcd"}, d.Discovery):
		return bad("spec.dispatch.discovery", "DISCOVERY_INVALID", "API %s: discovery %q is neither dns nor etcd; leave it out where each url is one upstream", a.Name, d.Discovery)
	case d.SlowStart < 0 || d.SlowStart > MaxSlowStart:
		return bad("spec.dispatch.slow_start", "SLOW_START_INVALID", "API %s: a slow start of %v is outside 0s to %v", a.Name, d.SlowStart, MaxSlowStart)
	case d.MaxRequests < 0 || d.MaxWaiting < 0:
		return bad("spec.dispatch", "LIMIT_INVALID", "API %s: max_requests %d or max_waiting %d is less than nothing", a.Name, d.MaxRequests, d.MaxWaiting)
	case d.MaxRequests == 0 && (d.MaxWaiting != 0 || d.MaxWait != 0):
		return bad("spec.dispatch.max_waiting", "LIMIT_INVALID", "API %s: nothing waits where max_requests sets no limit: set it, or leave max_waiting and max_wait out", a.Name)
	case d.MaxWait < 0 || d.MaxWait > MaxWait:
		return bad("spec.dispatch.max_wait", "LIMIT_INVALID", "API %s: max_wait %v is outside 0s to %v", a.Name, d.MaxWait, MaxWait)
	case d.MaxEjectedPercent < 0 || d.MaxEjectedPercent > 100:
		return bad("spec.dispatch.max_ejected_percent", "LIMIT_INVALID", "API %s: max_ejected_percent %d is outside 1 to 100", a.Name, d.MaxEjectedPercent)
	}
	return a.validateTLS()
}

func (a API) validateTLS() error {
	t := a.UpstreamTLS
	if t == (UpstreamTLS{}) {
		return nil
	}
	if len(a.Upstreams) > 0 && !slices.ContainsFunc(a.Upstreams, func(u Upstream) bool {
		return strings.HasPrefix(u.URL, "https://") || strings.HasPrefix(u.URL, "tls://")
	}) {
		return bad("spec.upstream_tls", "TLS_UNUSED", "API %s says how TLS to its upstreams is verified, and none of them is an https:// or tls:// URL", a.Name)
	}
	if t.ServerName != "" {
		if err := hostName(t.ServerName); err != nil {
			return bad("spec.upstream_tls.server_name", "HOST_INVALID", "API %s: %w", a.Name, err)
		}
	}
	if t.ClientCertificate != "" && !ValidName(t.ClientCertificate) {
		return bad("spec.upstream_tls.client_certificate", "NAME_INVALID", "API %s: client certificate %q is no name; it names NAME.crt and NAME.key in the edges' -upstream-certs directory", a.Name, t.ClientCertificate)
	}
	if t.CA != "" {
		if err := authorities(t.CA); err != nil {
			return bad("spec.upstream_tls.ca", "CA_INVALID", "API %s: %w", a.Name, err)
		}
	}
	return nil
}

// authorities takes PEM certificates and nothing else: a private key that was put beside them by mistake must not get
// into the catalog, which rests everywhere.
func authorities(text string) error {
	n := 0
	for rest := []byte(text); len(strings.TrimSpace(string(rest))) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return fmt.Errorf("after %d certificates the ca holds what is not PEM", n)
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("the ca holds a PEM block that is no CERTIFICATE: only certificates of authorities belong there")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate %d of the ca cannot be read: %w", n+1, err)
		}
		if !c.IsCA {
			return fmt.Errorf("certificate %d of the ca is no authority's (basic constraint CA is not set)", n+1)
		}
	}
	if n == 0 {
		return fmt.Errorf("the ca holds no certificate")
	}
	return nil
}
