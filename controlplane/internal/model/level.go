package model

import (
	"fmt"
	"reflect"
	"strings"

	"bailiwick/shared/table"
)

// NodeLevel is the level of fields that a node's program knows, by its own word: a control node's of itself, an edge's when
// it joined and each time that it opens its stream. It rests apart from the registry, whose rows an older program must read.
type NodeLevel struct {
	Name  string      `json:"name"`
	Level table.Level `json:"level"`
}

// Needs is who must know what a record holds before it is written.
type Needs struct {
	// Nodes: a control node of a lower level cannot read the record (Decode), and with it not the view that it belongs to.
	Nodes table.Level
	// Edges: an edge of a lower level would serve as if what the record forbids were not forbidden.
	Edges table.Level
	// Field is one that asks for that level of edges, for people.
	Field string
}

// field is what is to be known of one field of what operators write.
type field struct {
	since     table.Level
	restricts bool             // an edge that does not know it must not serve without it
	values    map[string]field // of a text: values that came later than the field
}

var (
	first = field{} // as old as the value that holds it
	// since2611 came on 2026-11-26 and leaves an edge without it less able, not less strict.
	since2611 = field{since: 1}
	// forbids2611 came on 2026-11-26 and is a bound, a condition or a price.
	forbids2611 = field{since: 1, restricts: true}
)

// fields has a line for each type that operators write and an entry for each of its fields; a test holds it to the types.
// A new field is entered with the level that is table.Current once it is released. When in doubt it restricts: an edge
// that is refused an object is seen, one that serves without a limit is not.
var fields = map[string]map[string]field{
	"Zone": {"name": first, "jurisdiction": first, "description": first, "admin_urls": first, "signing_key": first, "reads_need_reason": first},
	"Region": {"name": first, "zone": first, "provider": first, "provider_region": first, "partition": first, "country": first, "jurisdiction": first, "control_only": first,
		"client_subnets": first, "drain": first, "labels": since2611, "upstream_networks": forbids2611},
	"LegalBasis": {"name": first, "kind": first, "status": first, "expires": first, "source": first},
	"Policy":     {"name": first, "zone": first, "within_zone": first, "pairs": first, "offline_grant": first, "two_person": first},
	"WithinZone": {"basis": first, "classes": first},
	"Pair":       {"from": first, "to": first, "basis": first, "classes": first, "priority": first, "review_by": first, "status": first},
	"API": {"name": first, "zone": first, "hosts": first, "policy": first, "summary": first, "docs": first, "openapi": first, "routes": first, "upstreams": first, "health": first,
		"labels": since2611, "dispatch": since2611, "upstream_tls": forbids2611, "auth": since2611, "concurrency": forbids2611, "tcp": forbids2611},
	"Route": {"name": first, "methods": first, "path_prefix": first, "timeout": first, "max_request_bytes": first, "scope": forbids2611, "deadline": forbids2611,
		"max_response_bytes": forbids2611, "cache": since2611, "hedge_after": since2611, "free": forbids2611, "units": forbids2611, "grpc_web": since2611, "graphql": forbids2611,
		"websocket": since2611},
	"Shaping": {"cors": forbids2611, // an edge without it passes on what the upstream allows pages
		"rewrite": forbids2611, "validation": forbids2611},
	"CORS":       {"origins": first, "methods": first, "headers": first, "expose": first, "credentials": first, "max_age": first},
	"Rewrite":    {"strip": first, "put": first, "host": first, "request": first, "response": first},
	"Fields":     {"remove": first, "set": first, "add": first},
	"Field":      {"name": first, "value": first},
	"Validation": {"requests": first, "schema": first},
	"GraphQL":    {"max_depth": first, "max_aliases": first, "max_root_fields": first, "max_cost": first, "max_batch": first, "introspection": first},
	"WebSocket":  {"max_message_bytes": first, "idle_timeout": first, "ping_every": first},
	"TCP":        {"idle_timeout": first},
	"Cache":      {"ttl": first, "stale_while_revalidate": first, "stale_if_error": first, "max_bytes": first, "scope": first, "generation": first},
	"Units":      {"header": first, "per_bytes": first, "most": first, "per_messages": first, "graphql": first},
	"Upstream":   {"region": first, "url": first, "protocol": since2611, "drain": since2611}, // a view leaves a drained one out
	"Health":     {"path": first, "interval": first, "timeout": since2611, "failures": since2611, "good_for": since2611, "protocol": since2611, "service": since2611},
	"Dispatch": {"choice": first, "slow_start": first, "max_requests": forbids2611, "max_waiting": first, "max_wait": first, "max_ejected_percent": first,
		"max_connections": first, "discovery": first},
	"UpstreamTLS":  {"server_name": first, "ca": first, "client_certificate": first},
	"Auth":         {"key_header": first, "key_query": first, "issuers": first, "client_certificates": first, "identity": {values: map[string]field{"none": forbids2611}}}, // else its upstreams are told who asks
	"Issuer":       {"issuer": first, "audiences": first, "algorithms": first, "jwks_url": first, "jwks": first, "claim": first, "leeway": first},
	"Concurrency":  {"min": first, "max": first},
	"Product":      {"name": first, "apis": first, "billable_outcomes": first, "free_cache_hits": since2611, "summary": first},
	"Plan":         {"name": first, "products": first, "rate_limit": first, "quota": first, "priority_class": first, "sla_target": first, "price": first, "max_key_staleness": first, "rate_limits": forbids2611, "max_concurrent": forbids2611},
	"RateLimit":    {"requests_per_second": first, "burst": first},
	"Quota":        {"units": first, "period": first, "mode": first, "window": first, "grace_percent": first},
	"RateWindow":   {"requests": first, "per": first, "burst": first},
	"Customer":     {"name": first, "zone": first, "display_name": first, "account_id": first, "subscriptions": first, "status": first, "time_zone": first, "labels": since2611},
	"Subscription": {"name": first, "plan": first},
	"Closure":      {"name": first, "zone": first, "from": first, "to": first, "basis": first, "reason": first, "at": first},
	"Drain":        {"name": first, "zone": first, "reason": first, "at": first},
	"Switch":       {"name": first, "feature": first, "off": first, "region": first, "api": first, "reason": first},
	"Key": {"id": first, "digest": first, "customer": first, "subscription": first, "plan": first, "status": first, "created_at": first, "scopes": forbids2611,
		"allow_from": forbids2611, "labels": since2611, "kind": since2611},
}

// NeedsOf says which levels a record asks for. Whatever is empty asks for none.
func NeedsOf(record any) (n Needs) {
	n.of(reflect.ValueOf(record), "")
	return n
}

func (n *Needs) of(v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			n.of(v.Elem(), at)
		}
	case reflect.Slice:
		if elem := v.Type().Elem(); elem.Kind() == reflect.Struct {
			for i := range v.Len() {
				n.of(v.Index(i), fmt.Sprintf("%s[%d]", at, i))
			}
		}
	case reflect.Struct:
		known, ours := fields[v.Type().Name()]
		if !ours {
			return // a time
		}
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				continue
			}
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			path := strings.TrimPrefix(at+"."+name, ".")
			if v.Type().Field(i).Anonymous { // its fields are the holder's
				path = at
			}
			n.take(known[name], path)
			if v.Field(i).Kind() == reflect.String {
				n.take(known[name].values[v.Field(i).String()], path)
			}
			n.of(v.Field(i), path)
		}
	}
}

func (n *Needs) take(f field, path string) {
	n.Nodes = max(n.Nodes, f.since)
	if f.restricts && f.since > n.Edges {
		n.Edges, n.Field = f.since, path
	}
}
