package model

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// WebSocket bounds the connections of a route.
type WebSocket struct {
	MaxMessageBytes int64         `json:"max_message_bytes,omitempty"`
	IdleTimeout     time.Duration `json:"idle_timeout,omitempty"`
	PingEvery       time.Duration `json:"ping_every,omitempty"`
}

// TCP is of an API whose hosts take connections over TLS that are no HTTP.
type TCP struct {
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"`
}

// Bounds of connections that last. A change here is a change of what stored data may hold: only ever widen.
const (
	MaxMessageBytes = 64 << 20
	MinIdleTimeout  = 10 * time.Second
	MaxIdleTimeout  = 24 * time.Hour
	MinPingEvery    = 5 * time.Second
	MaxPingEvery    = 10 * time.Minute
)

func (r Route) validateWebSocket(at func(string) string, what string) error {
	w := r.WebSocket
	switch {
	case w == nil:
		return nil
	case len(r.Methods) > 0 && !slices.Contains(r.Methods, "GET"):
		return bad(at("websocket"), "WEBSOCKET_INVALID", "%s: a WebSocket is opened by GET, which the route's methods leave out", what)
	case w.MaxMessageBytes < 0 || w.MaxMessageBytes > MaxMessageBytes:
		return bad(at("websocket.max_message_bytes"), "WEBSOCKET_INVALID", "%s: max_message_bytes %d is outside 0 (1 MiB) to %d", what, w.MaxMessageBytes, MaxMessageBytes)
	case w.IdleTimeout != 0 && (w.IdleTimeout < MinIdleTimeout || w.IdleTimeout > MaxIdleTimeout):
		return bad(at("websocket.idle_timeout"), "WEBSOCKET_INVALID", "%s: idle_timeout %v is outside %v to %v", what, w.IdleTimeout, MinIdleTimeout, MaxIdleTimeout)
	case w.PingEvery != 0 && (w.PingEvery < MinPingEvery || w.PingEvery > MaxPingEvery):
		return bad(at("websocket.ping_every"), "WEBSOCKET_INVALID", "%s: ping_every %v is outside %v to %v", what, w.PingEvery, MinPingEvery, MaxPingEvery)
	}
	return nil
}

// upstreamURL judges where requests, or connections, are sent on.
func (a API) upstreamURL(text string) error {
	if a.TCP == nil {
		return baseURL(text, "http", "https")
	}
	if err := baseURL(text, "tcp", "tls"); err != nil {
		return err
	}
	if u, err := url.Parse(text); err != nil || u.Port() == "" { // there is no usual one
		return fmt.Errorf("URL %q names no port", text)
	}
	return nil
}

// validateTCP refuses what is said of HTTP where there is none: it would be read as if it had an effect.
func (a API) validateTCP() error {
	t := a.TCP
	if t == nil {
		return nil
	}
	if t.IdleTimeout != 0 && (t.IdleTimeout < MinIdleTimeout || t.IdleTimeout > MaxIdleTimeout) {
		return bad("spec.tcp.idle_timeout", "TCP_INVALID", "API %s: idle_timeout %v is outside %v to %v", a.Name, t.IdleTimeout, MinIdleTimeout, MaxIdleTimeout)
	}
	if len(a.Routes) > 1 {
		return bad("spec.routes[1]", "TCP_INVALID", "API %s is tcp and has %d routes; a connection has no path to choose one by", a.Name, len(a.Routes))
	}
	for _, r := range a.Routes {
		at := func(field string) error {
			return bad("spec.routes[0]."+field, "TCP_INVALID", "API %s is tcp: its route %s says %s, which only HTTP has", a.Name, r.Name, field)
		}
		switch {
		case strings.Trim(r.PathPrefix, "/") != "":
			return at("path_prefix")
		case len(r.Methods) > 0:
			return at("methods")
		case r.MaxRequestBytes != 0:
			return at("max_request_bytes")
		case r.MaxResponseBytes != 0:
			return at("max_response_bytes")
		case r.HedgeAfter != 0:
			return at("hedge_after")
		case r.Cache != nil:
			return at("cache")
		case r.WebSocket != nil:
			return at("websocket")
		case r.Units != nil && r.Units.Header != "":
			return at("units.header")
		case r.GraphQL != nil:
			return at("graphql")
		case r.GRPCWeb != "":
			return at("grpc_web")
		case r.Shaping != (Shaping{}):
			return at("cors, rewrite or validation")
		}
	}
	switch {
	case a.Shaping != (Shaping{}):
		return bad("spec", "TCP_INVALID", "API %s is tcp, and cors, rewrite and validation are of HTTP: nothing of a connection would be looked at or changed", a.Name)
	case a.Health.Path != "":
		return bad("spec.health.path", "TCP_INVALID", "API %s is tcp: an upstream is well where it takes a connection; it has no health page", a.Name)
	case a.Auth != nil && (a.Auth.KeyHeader != "" || a.Auth.KeyQuery != ""):
		return bad("spec.auth", "TCP_INVALID", "API %s is tcp: a key comes in the first line or by client certificate, not in a header or query", a.Name)
	}
	return nil
}
