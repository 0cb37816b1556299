package model

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// defaultRouteTimeout is what edges take where a route names none.
const defaultRouteTimeout = 30 * time.Second

// Careless is what of an API may be stored and does not do what whoever wrote it will have meant.
func (a API) Careless() (warnings []string) {
	warn := func(format string, args ...any) {
		warnings = append(warnings, fmt.Sprintf("API "+a.Name+" of zone "+a.Zone+": "+format, args...))
	}
	for _, u := range a.Upstreams {
		at, err := url.Parse(u.URL)
		if err != nil {
			continue
		}
		if port := at.Port(); port != "" {
			if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
				warn("upstream %s names port %s, and there are 1 to 65535: nothing can be sent there", u.URL, port)
			}
		}
		if ip, err := netip.ParseAddr(at.Hostname()); err == nil && (ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified()) {
			warn("upstream %s has an address that edges never dial, whatever their -upstream-allow says (link-local with the metadata services, multicast, none)", u.URL)
		}
	}
	if a.Dispatch.Discovery != "etcd" && len(a.Upstreams) > 0 && !slices.ContainsFunc(a.Upstreams, func(u Upstream) bool { return !u.Drain }) {
		warn("all upstreams have drain: true: every request is answered 503")
	}
	for _, r := range a.Routes {
		if r.Timeout == 0 && r.HedgeAfter >= defaultRouteTimeout { // before a timeout that is written down it is refused (validateMatching)
			warn("route %s: hedge_after %v is not before the timeout of %v that a route has by default: no second upstream is ever asked", r.Name, r.HedgeAfter, defaultRouteTimeout)
		}
		if r.Cache != nil && len(r.Methods) > 0 && !slices.Contains(r.Methods, "GET") {
			warn("route %s: only answers to GET are kept, which its methods leave out: its cache does nothing", r.Name)
		}
	}
	return warnings
}

// Takes says whether the region's networks have the upstream, as far as its URL tells.
func (r Region) Takes(u Upstream) bool {
	at, err := url.Parse(u.URL)
	if err != nil || len(r.UpstreamNetworks) == 0 {
		return true
	}
	ip, err := netip.ParseAddr(at.Hostname())
	return err != nil || slices.ContainsFunc(r.UpstreamNetworks, func(n string) bool {
		block, err := netip.ParsePrefix(n)
		return err == nil && block.Contains(ip.Unmap())
	})
}
