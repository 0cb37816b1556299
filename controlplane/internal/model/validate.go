package model

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/quota"
	"bailiwick/regions"
	"bailiwick/regions/answer"
	"bailiwick/shared/fault"
)

// Bounds of single values. A change here is a change of what stored data may hold: only ever widen.
const (
	MaxRouteTimeout   = 5 * time.Minute
	MinHealthInterval = 100 * time.Millisecond
	MaxHealthInterval = time.Minute
	MaxRequestBytes   = 1 << 40
	MaxQuotaUnits     = 1_000_000_000_000_000
	MaxDeadline       = 24 * time.Hour
	MinRateWindow     = time.Second
	MaxRateWindow     = 31 * 24 * time.Hour
	MaxRateWindows    = 4
	MaxConcurrent     = 1_000_000
	MaxScopes         = 16
	MaxAllowFrom      = 32
)

// Outcomes that a product may bill. What the edge answered by itself is never billed.
var billable = []string{"success", "client_error", "upstream_error", "aborted"}

// APIKey is where an API rests. Its name is unique in its zone only: one product sells orders in every zone,
// each under its own host names.
func APIKey(zone, name string) string { return PrefixAPI + zone + "/" + name }

// bad builds the refusal of one field.
func bad(field, reason, format string, args ...any) error {
	return fault.New(fault.Invalid, reason, format, args...).At(field)
}

// ValidName says whether s may name a resource: a lower-case letter, then at most 62 of a-z, 0-9, '.' and '-'.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func checkName(kind, name string) error {
	if !ValidName(name) {
		return bad("name", "NAME_INVALID", "%s name %q is not a lower-case letter followed by at most 62 of a-z, 0-9, '.' and '-'", kind, name)
	}
	return nil
}

func checkZone(what, name, zone string) error {
	if !regions.ValidName(zone) {
		return bad("spec.zone", "ZONE_INVALID", "%s %s: zone %q is not the name of a zone", what, name, zone)
	}
	return nil
}

// names refuses blank and repeated entries of a list of references.
func names(field, what string, list []string) error {
	for i, n := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		if !ValidName(n) {
			return bad(at, "NAME_INVALID", "%s: %q names nothing", what, n)
		}
		if slices.Contains(list[:i], n) {
			return bad(at, "DUPLICATE", "%s: %s is named twice", what, n)
		}
	}
	return nil
}

// Validate judges the zone alone.
func (z Zone) Validate() error {
	if err := checkName("zone", z.Name); err != nil {
		return err
	}
	for i, u := range z.AdminURLs {
		if err := baseURL(u, "https", "http"); err != nil {
			return bad(fmt.Sprintf("spec.admin_urls[%d]", i), "URL_INVALID", "zone %s: %w", z.Name, err)
		}
	}
	return nil
}

// Validate judges the region alone; package regions judges it among the others.
func (r Region) Validate() error {
	if !regions.ValidName(r.Name) {
		return bad("name", "NAME_INVALID", "region name %q is not a lower-case letter followed by at most 31 of a-z, 0-9 and -", r.Name)
	}
	if err := checkZone("region", r.Name, r.Zone); err != nil {
		return err
	}
	if err := checkLabels("region "+r.Name, r.Labels); err != nil {
		return err
	}
	if r.Country != "" && (len(r.Country) != 2 || strings.ToUpper(r.Country) != r.Country) {
		return bad("spec.country", "COUNTRY_INVALID", "region %s: country %q is not two upper-case letters of ISO 3166-1", r.Name, r.Country)
	}
	for i, c := range r.ClientSubnets {
		if _, err := answer.ParseSubnet(c); err != nil {
			return bad(fmt.Sprintf("spec.client_subnets[%d]", i), "SUBNET_INVALID", "region %s: %w", r.Name, err)
		}
	}
	for i, c := range r.UpstreamNetworks {
		if _, err := netip.ParsePrefix(c); err != nil {
			return bad(fmt.Sprintf("spec.upstream_networks[%d]", i), "NETWORK_INVALID", "region %s: upstream network %q is no block such as 10.1.0.0/16", r.Name, c)
		}
	}
	return nil
}

// Validate judges the legal basis alone.
func (b LegalBasis) Validate() error {
	if err := checkName("legal basis", b.Name); err != nil {
		return err
	}
	_, err := b.Rule()
	return err
}

// Validate judges the policy alone.
func (p Policy) Validate() error {
	if err := checkName("policy", p.Name); err != nil {
		return err
	}
	if err := checkZone("policy", p.Name, p.Zone); err != nil {
		return err
	}
	if p.OfflineGrant != nil && *p.OfflineGrant < 0 {
		return bad("spec.offline_grant", "OFFLINE_GRANT_INVALID", "policy %s: an offline grant of %v is less than nothing; write 0s for none", p.Name, *p.OfflineGrant)
	}
	if p.OfflineGrant != nil && *p.OfflineGrant > regions.MaxOfflineGrant {
		return bad("spec.offline_grant", "OFFLINE_GRANT_INVALID", "policy %s: an offline grant of %v is more than the %v that a grant may last at most", p.Name, *p.OfflineGrant, regions.MaxOfflineGrant)
	}
	return nil
}

// Validate judges the API alone.
func (a API) Validate() error {
	if err := checkName("API", a.Name); err != nil {
		return err
	}
	if err := checkZone("API", a.Name, a.Zone); err != nil {
		return err
	}
	if err := checkLabels("API "+a.Name, a.Labels); err != nil {
		return err
	}
	if len(a.Hosts) == 0 {
		return bad("spec.hosts", "HOST_MISSING", "API %s is published at no host name", a.Name)
	}
	for i, h := range a.Hosts {
		field := fmt.Sprintf("spec.hosts[%d]", i)
		if err := hostName(h); err != nil {
			return bad(field, "HOST_INVALID", "API %s: %w", a.Name, err)
		}
		if slices.Contains(a.Hosts[:i], h) {
			return bad(field, "DUPLICATE", "API %s names host %s twice", a.Name, h)
		}
	}
	if err := a.validateRoutes(); err != nil {
		return err
	}
	for i, u := range a.Upstreams {
		if err := a.upstreamURL(u.URL); err != nil {
			return bad(fmt.Sprintf("spec.upstreams[%d].url", i), "URL_INVALID", "API %s: %w", a.Name, err)
		}
		if slices.ContainsFunc(a.Upstreams[:i], func(o Upstream) bool { return o.Region == u.Region && o.URL == u.URL }) {
			return bad(fmt.Sprintf("spec.upstreams[%d]", i), "DUPLICATE", "API %s has upstream %s in %s twice", a.Name, u.URL, u.Region)
		}
	}
	if err := a.Auth.validate("API " + a.Name); err != nil {
		return err
	}
	if err := a.Shaping.validate("API "+a.Name, "spec."); err != nil {
		return err
	}
	if err := a.document(); err != nil {
		return err
	}
	if c := a.Concurrency; c != nil && (c.Min < 0 || c.Max < 0 || c.Max > 0 && c.Min > c.Max) {
		return bad("spec.concurrency", "CONCURRENCY_INVALID", "API %s: a concurrency from %d to %d is none; leave out what is to be the default (4 and 1000)", a.Name, c.Min, c.Max)
	}
	if h := a.Health.Interval; h != 0 && (h < MinHealthInterval || h > MaxHealthInterval) {
		return bad("spec.health.interval", "HEALTH_INTERVAL_INVALID", "API %s: a probe interval of %v is outside %v to %v", a.Name, h, MinHealthInterval, MaxHealthInterval)
	}
	if err := a.validateUpstreams(); err != nil {
		return err
	}
	if err := a.validateTCP(); err != nil {
		return err
	}
	if err := a.validateProtocols(); err != nil {
		return err
	}
	return pathField("spec.health.path", "API "+a.Name, a.Health.Path)
}

func (a API) validateRoutes() error {
	type match struct{ method, prefix string }
	seen := map[match]string{}
	byName := map[string]bool{}
	for i, r := range a.Routes {
		at := func(field string) string { return fmt.Sprintf("spec.routes[%d].%s", i, field) }
		if !ValidName(r.Name) {
			return bad(at("name"), "NAME_INVALID", "API %s: route name %q is not a lower-case letter followed by a-z, 0-9 and -", a.Name, r.Name)
		}
		if byName[r.Name] {
			return bad(at("name"), "ROUTE_DUPLICATE", "API %s has two routes named %s", a.Name, r.Name)
		}
		byName[r.Name] = true
		if err := pathField(at("path_prefix"), "API "+a.Name+": route "+r.Name, r.PathPrefix); err != nil {
			return err
		}
		if r.Timeout < 0 || r.Timeout > MaxRouteTimeout {
			return bad(at("timeout"), "TIMEOUT_INVALID", "API %s: route %s: a timeout of %v is outside 0s to %v", a.Name, r.Name, r.Timeout, MaxRouteTimeout)
		}
		if r.MaxRequestBytes < 0 || r.MaxRequestBytes > MaxRequestBytes {
			return bad(at("max_request_bytes"), "LIMIT_INVALID", "API %s: route %s: max_request_bytes %d is outside 0 to %d", a.Name, r.Name, r.MaxRequestBytes, int64(MaxRequestBytes))
		}
		if r.MaxResponseBytes < 0 || r.MaxResponseBytes > MaxRequestBytes {
			return bad(at("max_response_bytes"), "LIMIT_INVALID", "API %s: route %s: max_response_bytes %d is outside 0 to %d", a.Name, r.Name, r.MaxResponseBytes, int64(MaxRequestBytes))
		}
		if r.Deadline < 0 || r.Deadline > MaxDeadline {
			return bad(at("deadline"), "DEADLINE_INVALID", "API %s: route %s: a deadline of %v is outside 0s (none) to %v", a.Name, r.Name, r.Deadline, MaxDeadline)
		}
		if r.Deadline != 0 && r.Deadline < r.Timeout {
			return bad(at("deadline"), "DEADLINE_INVALID", "API %s: route %s: the deadline of %v ends before the timeout of %v: it bounds the whole request, the timeout each try up to the answer's headers", a.Name, r.Name, r.Deadline, r.Timeout)
		}
		if r.Scope != "" && !ValidScope(r.Scope) {
			return bad(at("scope"), "SCOPE_INVALID", "API %s: route %s: scope %q %s", a.Name, r.Name, r.Scope, scopeForm)
		}
		if h := r.HedgeAfter; h != 0 && (h < MinHedgeAfter || h > MaxHedgeAfter) {
			return bad(at("hedge_after"), "HEDGE_INVALID", "API %s: route %s: hedge_after %v is outside %v to %v", a.Name, r.Name, h, MinHedgeAfter, MaxHedgeAfter)
		}
		if err := r.Units.validate("API "+a.Name+": route "+r.Name, at("units")); err != nil {
			return err
		}
		if r.Units != nil && r.Units.GraphQL != "" && r.GraphQL == nil {
			return bad(at("units.graphql"), "UNITS_INVALID", "API %s: route %s counts what GraphQL documents ask, and takes none: give it graphql", a.Name, r.Name)
		}
		if err := r.Shaping.validate("API "+a.Name+": route "+r.Name, at("")); err != nil {
			return err
		}
		if err := r.GraphQL.validate("API "+a.Name+": route "+r.Name, at("graphql")); err != nil {
			return err
		}
		if r.Free && r.Units != nil {
			return bad(at("free"), "UNITS_INVALID", "API %s: route %s is free and says what its requests cost", a.Name, r.Name)
		}
		if err := r.Cache.validate(at("cache"), "API "+a.Name+": route "+r.Name); err != nil {
			return err
		}
		if err := r.validateWebSocket(at, "API "+a.Name+": route "+r.Name); err != nil {
			return err
		}
		if err := r.validateMatching(at, "API "+a.Name+": route "+r.Name); err != nil {
			return err
		}
		prefix := strings.TrimRight(r.PathPrefix, "/")
		methods := r.Methods
		if len(methods) == 0 {
			methods = []string{"*"}
		}
		for _, m := range methods {
			if other, taken := seen[match{m, prefix}]; taken {
				return bad(at("path_prefix"), "ROUTE_DUPLICATE", "API %s: routes %s and %s match the same requests: %s %s/", a.Name, other, r.Name, m, prefix)
			}
			seen[match{m, prefix}] = r.Name
		}
	}
	return nil
}

// Validate judges the product alone.
func (p Product) Validate() error {
	if err := checkName("product", p.Name); err != nil {
		return err
	}
	if len(p.APIs) == 0 {
		return bad("spec.apis", "API_MISSING", "product %s sells no API", p.Name)
	}
	if err := names("spec.apis", "product "+p.Name, p.APIs); err != nil {
		return err
	}
	for i, o := range p.BillableOutcomes {
		if !slices.Contains(billable, o) {
			return bad(fmt.Sprintf("spec.billable_outcomes[%d]", i), "OUTCOME_INVALID", "product %s: outcome %q is none of %s", p.Name, o, strings.Join(billable, ", "))
		}
	}
	return nil
}

// Bills says whether an outcome of this product is billed. served is whose upstream answered: an answer of nobody's is one of
// the edge's cache. What was aborted and nobody's got none; free hits are never aborted in an edge's rows.
func (p Product) Bills(outcome, served string) bool {
	if p.FreeCacheHits && outcome != "aborted" && served == "" {
		return false
	}
	if len(p.BillableOutcomes) == 0 {
		return outcome == "success"
	}
	return slices.Contains(p.BillableOutcomes, outcome)
}

// Validate judges the plan alone.
func (p Plan) Validate() error {
	if err := checkName("plan", p.Name); err != nil {
		return err
	}
	if len(p.Products) == 0 {
		return bad("spec.products", "PRODUCT_MISSING", "plan %s holds no product", p.Name)
	}
	if err := names("spec.products", "plan "+p.Name, p.Products); err != nil {
		return err
	}
	if r := p.RateLimit; r != nil && (r.RequestsPerSecond < 1 || r.Burst < 0) {
		return bad("spec.rate_limit", "RATE_LIMIT_INVALID", "plan %s: a rate limit needs at least 1 request a second and no negative burst", p.Name)
	}
	if err := p.checkRates(); err != nil {
		return err
	}
	if q := p.Quota; q != nil {
		if err := p.checkQuota(q); err != nil {
			return err
		}
	}
	if p.PriorityClass != "" && !slices.Contains(Classes, p.PriorityClass) {
		return bad("spec.priority_class", "PRIORITY_INVALID", "plan %s: priority class %q is none of %s", p.Name, p.PriorityClass, strings.Join(Classes, ", "))
	}
	if p.MaxKeyStaleness < 0 {
		return bad("spec.max_key_staleness", "STALENESS_INVALID", "plan %s: max_key_staleness %v is less than nothing", p.Name, p.MaxKeyStaleness)
	}
	return nil
}

func (p Plan) checkRates() error {
	if len(p.RateLimits) > MaxRateWindows {
		return bad("spec.rate_limits", "RATE_LIMIT_INVALID", "plan %s: %d rate limits; at most %d", p.Name, len(p.RateLimits), MaxRateWindows)
	}
	for i, w := range p.RateLimits {
		at := func(field string) string { return fmt.Sprintf("spec.rate_limits[%d].%s", i, field) }
		switch {
		case w.Per < MinRateWindow || w.Per > MaxRateWindow || w.Per%time.Second != 0:
			return bad(at("per"), "RATE_LIMIT_INVALID", "plan %s: a rate limit per %v; it must be whole seconds, from %v to 744h (31 days)", p.Name, w.Per, MinRateWindow)
		case w.Requests < 1:
			return bad(at("requests"), "RATE_LIMIT_INVALID", "plan %s: a rate limit of %d requests per %v lets nothing through", p.Name, w.Requests, w.Per)
		case w.Burst < 0 || w.Burst > w.Requests:
			return bad(at("burst"), "RATE_LIMIT_INVALID", "plan %s: a burst of %d is outside 0 (all) to the %d requests per %v", p.Name, w.Burst, w.Requests, w.Per)
		case slices.ContainsFunc(p.RateLimits[:i], func(o RateWindow) bool { return o.Per == w.Per }):
			return bad(at("per"), "DUPLICATE", "plan %s has two rate limits per %v", p.Name, w.Per)
		}
	}
	if p.MaxConcurrent < 0 || p.MaxConcurrent > MaxConcurrent {
		return bad("spec.max_concurrent", "CONCURRENCY_INVALID", "plan %s: max_concurrent %d is outside 0 (no bound) to %d", p.Name, p.MaxConcurrent, MaxConcurrent)
	}
	return nil
}

func (p Plan) checkQuota(q *Quota) error {
	switch {
	case q.Units < 0 || q.Units == 0 && q.Period != "prepaid":
		return bad("spec.quota.units", "QUOTA_INVALID", "plan %s: a quota of %d units sells nothing", p.Name, q.Units)
	case q.Units > MaxQuotaUnits:
		return bad("spec.quota.units", "QUOTA_INVALID", "plan %s: a quota of %d units is more than can be counted: at most %d", p.Name, q.Units, int64(MaxQuotaUnits))
	case !slices.Contains([]string{"", "hour", "day", "week", "month", "year", "rolling", "prepaid"}, q.Period):
		return bad("spec.quota.period", "QUOTA_INVALID", "plan %s: quota period %q is none of hour, day, week, month, year, rolling, prepaid", p.Name, q.Period)
	case !slices.Contains([]string{"", "strict", "elastic", "soft"}, q.Mode):
		return bad("spec.quota.mode", "QUOTA_INVALID", "plan %s: quota mode %q is none of strict, elastic, soft", p.Name, q.Mode)
	case q.Period == "rolling" && !quota.ValidWindow(q.Window):
		return bad("spec.quota.window", "QUOTA_INVALID", "plan %s: the window of a rolling quota is %v; it must be a multiple of 15 minutes, from 15m to 744h", p.Name, q.Window)
	case q.Period != "rolling" && q.Window != 0:
		return bad("spec.quota.window", "QUOTA_INVALID", "plan %s: only a rolling quota has a window", p.Name)
	case q.GracePercent < 0 || q.GracePercent > 1000:
		return bad("spec.quota.grace_percent", "QUOTA_INVALID", "plan %s: grace_percent %d is not between 0 and 1000", p.Name, q.GracePercent)
	case q.GracePercent != 0 && q.Mode != "" && q.Mode != "soft":
		return bad("spec.quota.grace_percent", "QUOTA_INVALID", "plan %s: only a soft quota has a grace; a %s one ends at its units", p.Name, q.Mode)
	}
	return nil
}

// Validate judges the customer alone.
func (c Customer) Validate() error {
	if err := checkName("customer", c.Name); err != nil {
		return err
	}
	if err := checkZone("customer", c.Name, c.Zone); err != nil {
		return err
	}
	if err := checkLabels("customer "+c.Name, c.Labels); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "active", "suspended", "overdue"}, c.Status) {
		return bad("spec.status", "STATUS_INVALID", "customer %s: status %q is none of active, suspended, overdue", c.Name, c.Status)
	}
	for i, s := range c.Subscriptions {
		at := fmt.Sprintf("spec.subscriptions[%d]", i)
		if !ValidName(s.Plan) {
			return bad(at+".plan", "NAME_INVALID", "customer %s: subscription to plan %q, which is no name", c.Name, s.Plan)
		}
		if !ValidName(s.Name) {
			return bad(at+".name", "NAME_INVALID", "customer %s: subscription name %q is no name", c.Name, s.Name)
		}
		if slices.ContainsFunc(c.Subscriptions[:i], func(o Subscription) bool { return o.Name == s.Name }) {
			return bad(at+".name", "DUPLICATE", "customer %s has two subscriptions named %s", c.Name, s.Name)
		}
	}
	return nil
}

// Validate judges the closure alone. One that names nothing closes everything, which has to be meant: it is
// refused, since a forgotten field must not stop a zone's failover.
func (c Closure) Validate() error {
	if err := checkName("closure", c.Name); err != nil {
		return err
	}
	if err := checkZone("closure", c.Name, c.Zone); err != nil {
		return err
	}
	if c.From == "" && c.To == "" && c.Basis == "" {
		return bad("spec", "CLOSURE_EMPTY", "closure %s names neither from, to nor basis", c.Name)
	}
	return nil
}

// Validate judges the drain alone.
func (d Drain) Validate() error {
	if err := checkName("drain", d.Name); err != nil {
		return err
	}
	if err := checkZone("drain", d.Name, d.Zone); err != nil {
		return err
	}
	if d.Reason == "" {
		return bad("spec.reason", "DRAIN_UNEXPLAINED", "the drain of region %s has no reason: those who find it empty will ask", d.Name)
	}
	return nil
}

func pathField(field, what, path string) error {
	if path == "" {
		return nil
	}
	if path[0] != '/' || strings.ContainsAny(path, "?# \t\r\n\x00") || strings.Contains(path, "//") {
		return bad(field, "PATH_INVALID", "%s: path %q does not start with '/', or holds '?', '#', '//' or white space", what, path)
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "." || seg == ".." {
			return bad(field, "PATH_INVALID", "%s: path %q holds a '.' or '..' segment, which no request has after cleaning", what, path)
		}
	}
	return nil
}

// UpstreamURL says why a text is no upstream; nil if it is one.
func UpstreamURL(s string) error { return baseURL(s, "http", "https") }

// baseURL takes scheme, host and port and nothing else.
func baseURL(s string, schemes ...string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsAny(s, " \t\r\n\x00"):
		return fmt.Errorf("%q is not a URL", s)
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("URL %q begins with none of %s", s, strings.Join(schemes, "://, ")+"://")
	case u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("URL %q names no host", s)
	case u.User != nil:
		return fmt.Errorf("URL of host %s holds a user name or password", u.Host)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return fmt.Errorf("URL %q holds more than scheme, host and port", s)
	}
	return nil
}

// hostName takes a lower-case DNS name, as TLS server names are: no port, no wildcard, no IP address.
func hostName(h string) error {
	switch {
	case h == "" || len(h) > 253:
		return fmt.Errorf("host name %q is empty or longer than 253 bytes", h)
	case net.ParseIP(h) != nil:
		return fmt.Errorf("host %q is an IP address, which TLS names no certificate for", h)
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host name %q has an empty label, one over 63 bytes, or one that begins or ends with '-'", h)
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("host name %q holds %q: only a-z, 0-9, '-' and '.' are allowed (write it in lower case, without port)", h, c)
			}
		}
	}
	return nil
}
