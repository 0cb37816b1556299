package model

import (
	"fmt"
	"slices"
	"strings"
)

// What upstreams speak, how their health is asked for, and what becomes of gRPC-Web. The empty text is the first of each.
const (
	ProtocolHTTP1 = "http1"
	ProtocolH2    = "h2"  // HTTP/2 over TLS
	ProtocolH2C   = "h2c" // HTTP/2 in clear, from the first byte

	HealthHTTP = "http"
	HealthGRPC = "grpc"

	GRPCWebPass      = "pass"
	GRPCWebTranslate = "translate"

	MaxConnections    = 256
	MaxHealthService  = 256
	longestNamedValue = 32 // of what a message quotes
)

// Multiplexed says whether the upstream speaks HTTP/2.
func (u Upstream) Multiplexed() bool { return u.Protocol == ProtocolH2 || u.Protocol == ProtocolH2C }

func (a API) validateProtocols() error {
	for i, u := range a.Upstreams {
		at := fmt.Sprintf("spec.upstreams[%d].protocol", i)
		switch u.Protocol {
		case "", ProtocolHTTP1:
		case ProtocolH2:
			if !strings.HasPrefix(u.URL, "https://") {
				return bad(at, "PROTOCOL_INVALID", "API %s: upstream %s cannot speak h2, which is HTTP/2 over TLS: give it an https:// URL, or say h2c where it takes HTTP/2 in clear", a.Name, u.URL)
			}
		case ProtocolH2C:
			if !strings.HasPrefix(u.URL, "http://") {
				return bad(at, "PROTOCOL_INVALID", "API %s: upstream %s cannot speak h2c, which is HTTP/2 in clear: say h2", a.Name, u.URL)
			}
		default:
			return bad(at, "PROTOCOL_INVALID", "API %s: protocol %q of upstream %s is none of http1, h2, h2c", a.Name, u.Protocol[:min(len(u.Protocol), longestNamedValue)], u.URL)
		}
		// The edges of a region know one protocol of a URL.
		if j := slices.IndexFunc(a.Upstreams[:i], func(o Upstream) bool {
			return strings.TrimRight(o.URL, "/") == strings.TrimRight(u.URL, "/") && o.Multiplexed() != u.Multiplexed()
		}); j >= 0 {
			return bad(at, "PROTOCOL_INVALID", "API %s: upstream %s speaks HTTP/2 in one entry and HTTP/1.1 in another", a.Name, u.URL)
		}
	}
	single := slices.IndexFunc(a.Upstreams, func(u Upstream) bool { return !u.Multiplexed() })
	h := a.Health
	switch {
	case !slices.Contains([]string{"", HealthHTTP, HealthGRPC}, h.Protocol):
		return bad("spec.health.protocol", "HEALTH_PROTOCOL_INVALID", "API %s: health is asked for over http or grpc, not %q", a.Name, h.Protocol)
	case h.Protocol != HealthGRPC && h.Service != "":
		return bad("spec.health.service", "HEALTH_SERVICE_INVALID", "API %s: a service is what grpc asks about: say protocol: grpc, or leave service out", a.Name)
	case h.Protocol == HealthGRPC && h.Path != "":
		return bad("spec.health.path", "HEALTH_PATH_INVALID", "API %s: grpc asks about a service and not about a path: leave path out", a.Name)
	case len(h.Service) > MaxHealthService || strings.ContainsFunc(h.Service, func(r rune) bool { return r < 0x21 || r > 0x7e }):
		return bad("spec.health.service", "HEALTH_SERVICE_INVALID", "API %s: the service of its health is no name of at most %d printable characters, such as shop.v1.Orders", a.Name, MaxHealthService)
	case h.Protocol == HealthGRPC && single >= 0:
		return bad("spec.health.protocol", "HEALTH_PROTOCOL_INVALID", "API %s: health over grpc needs HTTP/2, and upstream %s does not speak it: give it protocol h2 or h2c", a.Name, a.Upstreams[single].URL)
	case a.Dispatch.MaxConnections < 0 || a.Dispatch.MaxConnections > MaxConnections:
		return bad("spec.dispatch.max_connections", "LIMIT_INVALID", "API %s: max_connections %d is outside 0 (8) to %d", a.Name, a.Dispatch.MaxConnections, MaxConnections)
	case a.Dispatch.MaxConnections > 0 && len(a.Upstreams) > 0 && !slices.ContainsFunc(a.Upstreams, Upstream.Multiplexed):
		return bad("spec.dispatch.max_connections", "LIMIT_INVALID", "API %s: max_connections is of upstreams that speak h2 or h2c, and none does: max_requests bounds what is under way at the others", a.Name)
	}
	for i, r := range a.Routes {
		at := fmt.Sprintf("spec.routes[%d].grpc_web", i)
		switch {
		case !slices.Contains([]string{"", GRPCWebPass, GRPCWebTranslate}, r.GRPCWeb):
			return bad(at, "GRPC_WEB_INVALID", "API %s: route %s: grpc_web %q is neither pass nor translate", a.Name, r.Name, r.GRPCWeb[:min(len(r.GRPCWeb), longestNamedValue)])
		case r.TranslatesGRPCWeb() && single >= 0:
			return bad(at, "GRPC_WEB_INVALID", "API %s: route %s: what is translated goes on as gRPC, which needs HTTP/2, and upstream %s does not speak it: give it protocol h2 or h2c", a.Name, r.Name, a.Upstreams[single].URL)
		}
	}
	return nil
}

// TranslatesGRPCWeb says whether gRPC-Web goes on as gRPC.
func (r Route) TranslatesGRPCWeb() bool { return r.GRPCWeb == GRPCWebTranslate }
