package proxy

import (
	"net/http"
	"time"

	"bailiwick/dataplane/internal/accesslog"
)

// methodOf is a method as the access log has it: what is none of HTTP's is text of a client.
func methodOf(method string) string {
	switch method {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodPost:
		return http.MethodPost
	case http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		for _, m := range [...]string{http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
			if m == method {
				return m // not the client's text, which may lie in a buffer that is used again
			}
		}
	}
	return "other"
}

// access writes the request's line. What another edge accepted it has a line of there; what no API is asked for has none.
func (c *call) access() {
	l := c.p.cfg.Access
	if l == nil || c.relayed || c.v.API == nil || !l.Wants(c.id, c.status) {
		return
	}
	e := accesslog.Entry{At: c.began, ID: c.id, API: c.v.API.Name, Method: c.method, Customer: c.v.Customer, Subscription: c.v.Subscription, Plan: c.v.Plan, Key: c.v.KeyID,
		Served: c.served, Status: c.status, Attempts: int(c.tries.Load()), In: max(c.inBefore, c.in+c.body.bytes()), Out: c.outBefore + c.out,
		Took: time.Since(c.began), Waited: c.waited, Cached: c.hit, Relayed: c.abroad.Load()}
	if c.v.Route != nil {
		e.Route = c.v.Route.Name
	}
	if c.counted {
		e.Outcome = c.kept.Outcome.String()
	}
	l.Log(&e)
}
