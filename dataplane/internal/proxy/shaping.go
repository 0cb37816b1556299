package proxy

import (
	"cmp"
	"net/http"
	"net/url"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/shape"
)

// answersItself answers what asks the edge and nobody behind it, without a key and for nothing: there is no row of it.
func (x *exchange) answersItself(a *asked) bool {
	api := x.table.API(a.Host)
	if api == nil || len(api.Targets) == 0 || check(x.table, a).Status != 0 {
		return false // decide says why
	}
	h := x.w.Header()
	if method, ok := shape.Preflight(a.Method, x.r.Header); ok && api.Shared {
		route, match := api.Route(method, a.Path)
		if match != policy.RouteFound || route.CORS == nil {
			return false
		}
		shape.AnswerPreflight(route.CORS, h, x.r.Header)
		x.written = true
		x.w.WriteHeader(http.StatusNoContent)
		return true
	}
	return false
}

// rewrite changes the fields that go upstream, as the route says.
func (x *exchange) rewrite() {
	if x.v.Route != nil && x.v.Route.Rewrite != nil {
		shape.Header(&x.v.Route.Rewrite.Request, x.header)
	}
}

// reaimed is which path upstreams are asked for, and at which host. It is the edge of the upstream that rewrites them, also of
// what another edge accepted: both know the path that was asked for.
func (x *exchange) reaimed(host string) (*url.URL, string) {
	if x.v.Route == nil || x.v.Route.Rewrite == nil {
		return x.r.URL, host
	}
	path, raw := shape.Path(x.v.Route.Rewrite, x.r.URL.Path, x.r.URL.RawPath)
	return &url.URL{Path: path, RawPath: raw}, cmp.Or(x.v.Route.Rewrite.Host, host)
}

// reshape changes an answer as the route says. That is the accepting edge's to do.
func (x *exchange) reshape(h http.Header) {
	if x.relayed || x.v.Route == nil {
		return
	}
	if x.v.Route.Rewrite != nil {
		shape.Header(&x.v.Route.Rewrite.Response, h)
	}
	x.share(h)
}

// share says whether the page that asks may read the answer, refusals included.
func (x *exchange) share(h http.Header) {
	if !x.relayed && x.v.Route != nil && x.v.Route.CORS != nil {
		shape.Share(x.v.Route.CORS, h, x.r.Header["Origin"])
	}
}
