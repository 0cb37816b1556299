package model

import (
	"slices"
	"strings"
)

// validateMatching refuses what no request can match, and what would let pass what the route is there to stop: both read as if
// they held.
func (r Route) validateMatching(at func(string) string, what string) error {
	if i := strings.IndexFunc(r.PathPrefix, func(c rune) bool { return c == '%' || c == '\\' || c == ';' || c < 0x20 || c == 0x7f }); i >= 0 {
		return bad(at("path_prefix"), "PATH_INVALID", "%s: path %q holds %q, and no request matches it: paths are compared decoded, so write what %%C3%%A4 stands for as it is; a '\\' is refused, and what a ';' begins belongs to no prefix",
			what, r.PathPrefix, r.PathPrefix[i])
	}
	for i, m := range r.Methods {
		switch {
		case m == "CONNECT" || m == "TRACE":
			return bad(at("methods"), "METHOD_INVALID", "%s: edges serve neither CONNECT nor TRACE", what)
		case slices.Contains(r.Methods[:i], m):
			return bad(at("methods"), "DUPLICATE", "%s names %s twice", what, m)
		}
	}
	switch {
	case r.GraphQL != nil && r.WebSocket != nil:
		return bad(at("websocket"), "WEBSOCKET_INVALID", "%s holds GraphQL documents against bounds, which what passes in a WebSocket would not be: give WebSockets a route of their own", what)
	case r.GraphQL != nil && len(r.Methods) > 0 && !slices.Contains(r.Methods, "POST") && !slices.Contains(r.Methods, "GET"):
		return bad(at("graphql"), "GRAPHQL_INVALID", "%s: GraphQL is asked by POST or GET, which the route's methods leave out", what)
	case r.HedgeAfter != 0 && r.Timeout != 0 && r.HedgeAfter >= r.Timeout:
		return bad(at("hedge_after"), "HEDGE_INVALID", "%s: hedge_after %v is not before the timeout of %v, so that nobody else would ever be asked", what, r.HedgeAfter, r.Timeout)
	}
	return nil
}
