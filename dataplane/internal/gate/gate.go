// Package gate owns the decision whether a request is admitted, and on whose account: route, key,
// entitlement, staleness, rate limit, in that order.
//
// It never sees net/http, never touches a network or disk, reads no clock and counts nothing: the same
// logical request over HTTP/1.1, HTTP/2 and HTTP/3 becomes the same Request and gets the same Verdict. A
// flood of random keys costs it no memory. Nothing survives a crash but what its callers hold. A Gate may be
// used from any number of goroutines at once.
package gate

import (
	"math"
	"strconv"
	"strings"
	"time"

	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/usage"
)

// Gate admits. Both fields are required.
type Gate struct {
	Hasher *apikey.Hasher // under the zone's pepper
	Limits *limit.Map     // outlives tables
}

// Request is what a decision rests on.
type Request struct {
	Host          string   // lower case, no port
	Method        string   //
	Path          string   // decoded; the proxy has refused what is ambiguous
	Authorization []string // values as received
	APIKey        []string // values of X-API-Key as received
	// TableAge is how long ago the control plane last confirmed the table.
	TableAge time.Duration
}

// Verdict is the answer. It is admitted if Problem.Status is 0.
type Verdict struct {
	Problem Problem
	API     *policy.API   // set from the host on
	Route   *policy.Route // set from the path on

	// Set once the key is valid; a request with Counted gets exactly one usage row, and when it is not
	// admitted Outcome is that row's.
	Counted      bool
	Outcome      usage.Outcome
	KeyID        string
	Customer     string
	Subscription string
	Plan         string
	PlanRev      uint64
	Product      string
	KeyInBearer  bool // the key came as Authorization, which must then not go upstream

	// Answer headers; blank means none.
	RateLimit       string
	RateLimitPolicy string
	RetryAfter      time.Duration
	Allow           []string // methods, with a 405
}

// Admitted says whether the request goes on.
func (v *Verdict) Admitted() bool { return v.Problem.Status == 0 }

func (v *Verdict) refuse(status int, reason, detail string) {
	v.Problem = NewProblem(status, reason, detail)
}

// nobody is compared against when there is no key of an id, so that an unknown id and a wrong secret take
// one path and one time. No digest is all zero bytes but by a chance of 2^-256.
var nobody = &policy.Key{}

// Admit decides one request under one table, at a monotonic reading from any fixed origin. t may be nil:
// an edge without a table admits nobody.
func (g *Gate) Admit(t *policy.Table, r *Request, now time.Duration) (v Verdict) {
	if t == nil {
		v.refuse(503, ReasonNotReady, "The edge has no policy table yet; try again shortly.")
		v.RetryAfter = time.Second
		return v
	}
	if v.API = t.API(r.Host); v.API == nil {
		if d := t.DirectoryByHost(r.Host); d != nil {
			v.refuse(421, ReasonHostForeign, "This host is served by the edges of another zone.")
			v.Problem.Hosts = d.Hosts
			return v
		}
		v.refuse(421, ReasonHostUnknown, "No API is published at this host here.")
		return v
	}
	// Accepting is what a home region does, and a region without the API is home to none of its requests.
	if len(v.API.Targets) == 0 {
		v.refuse(421, ReasonNotHome, "Use an edge of a region where the API is deployed.")
		v.Problem.Hosts = v.API.Hosts
		return v
	}
	route, match := v.API.Route(r.Method, r.Path)
	switch v.Route = route; match {
	case policy.RouteNotFound:
		v.refuse(404, ReasonRouteUnknown, "The API has no route at this path.")
		return v
	case policy.MethodNotAllowed:
		v.refuse(405, ReasonMethodUnknown, "The Allow header names the methods of this path.")
		v.Allow = v.API.Allowed(r.Path)
		return v
	}
	if !g.authenticate(t, r, &v) {
		return v
	}
	plan := t.Plan(v.Plan)
	v.Counted, v.Outcome = true, usage.OutcomeRefused
	product, entitled := "", false
	if plan != nil {
		v.PlanRev = plan.Rev
		product, entitled = plan.Includes(v.API.Name)
	}
	if !entitled { // a plan that is not there sells nothing
		v.refuse(403, ReasonNotEntitled, "The subscription's plan does not include this API.")
		return v
	}
	v.Product = product
	if plan.MaxKeyStaleness > 0 && r.TableAge > plan.MaxKeyStaleness {
		v.refuse(403, ReasonKeyStale, "This edge has been cut off from its control plane for longer than the plan allows keys to go unconfirmed.")
		return v
	}
	g.limit(plan, now, &v)
	return v
}

// authenticate finds whose key was presented; false leaves a problem in v.
func (g *Gate) authenticate(t *policy.Table, r *Request, v *Verdict) bool {
	text, bearer, problem := present(r)
	if problem.Status != 0 {
		v.Problem = problem
		return false
	}
	zone, id, ok := apikey.Parse(text)
	if !ok {
		v.refuse(401, ReasonKeyInvalid, "The key is not valid at this host.")
		return false
	}
	if zone != t.Settings().Zone {
		// The hint is untrusted text: it picks a directory row and nothing else.
		if hosts := t.Directory(v.API.Name, zone); len(hosts) > 0 {
			v.refuse(421, ReasonKeyForeign, "The key belongs to another zone; send the request to one of the named hosts.")
			v.Problem.Hosts = hosts
			return false
		}
		v.refuse(401, ReasonKeyInvalid, "The key is not valid at this host.")
		return false
	}
	digest := g.Hasher.Sum(text)
	key := t.Key(id)
	known := key != nil
	if !known {
		key = nobody
	}
	if !apikey.Equal(digest, key.Digest) || !known {
		v.refuse(401, ReasonKeyInvalid, "The key is not valid at this host.")
		return false
	}
	v.KeyID, v.Customer, v.Subscription, v.Plan, v.KeyInBearer = key.ID, key.Customer, key.Subscription, key.Plan, bearer
	if key.Suspended {
		if plan := t.Plan(v.Plan); plan != nil {
			v.PlanRev = plan.Rev
		}
		v.Counted, v.Outcome = true, usage.OutcomeRefused
		v.refuse(403, ReasonKeySuspended, "The subscription is suspended; ask the provider of the API.")
		return false
	}
	return true
}

// present takes the one key of a request. Two that differ are refused, not chosen from: whoever stands
// before or behind this edge might choose the other. Authorization of another scheme is the upstream's
// business, and no key.
func present(r *Request) (text string, bearer bool, p Problem) {
	if len(r.Authorization) > 1 || len(r.APIKey) > 1 {
		return "", false, NewProblem(401, ReasonKeyConflict, "Send one Authorization: Bearer or one X-API-Key header, once.")
	}
	if len(r.Authorization) == 1 {
		const scheme = "bearer "
		if a := r.Authorization[0]; len(a) > len(scheme) && strings.EqualFold(a[:len(scheme)], scheme) {
			text, bearer = strings.TrimSpace(a[len(scheme):]), true
		}
	}
	if len(r.APIKey) == 1 {
		k := strings.TrimSpace(r.APIKey[0])
		if bearer && k != text {
			return "", false, NewProblem(401, ReasonKeyConflict, "Authorization and X-API-Key hold two different keys; send one.")
		}
		text = k
	}
	if text == "" {
		return "", false, NewProblem(401, ReasonKeyMissing, "Send the key as Authorization: Bearer or as X-API-Key.")
	}
	return text, bearer, p
}

func (g *Gate) limit(plan *policy.Plan, now time.Duration, v *Verdict) {
	if plan.RequestsPerSecond <= 0 {
		return
	}
	burst := plan.Burst
	if burst <= 0 {
		burst = plan.RequestsPerSecond
	}
	// The customer is part of the name: a subscription's is unique only within its customer.
	res := g.Limits.Take(limit.ID{Customer: v.Customer, Subscription: v.Subscription, Plan: v.Plan}, now, plan.RequestsPerSecond, burst)
	// One buffer for both values (draft-ietf-httpapi-ratelimit-headers-11).
	var buf [96]byte
	b := append(buf[:0], `"plan";q=`...)
	q, w := plan.RequestsPerSecond, 1
	if burst%q == 0 { // a window in whole seconds that holds exactly one burst at the plan's rate
		q, w = burst, burst/q
	}
	b = strconv.AppendInt(b, int64(q), 10)
	b = append(b, ";w="...)
	b = strconv.AppendInt(b, int64(w), 10)
	cut := len(b)
	b = append(b, `"plan";r=`...)
	b = strconv.AppendInt(b, int64(res.Remaining), 10)
	b = append(b, ";t="...)
	b = strconv.AppendInt(b, Seconds(res.Reset), 10)
	s := string(b)
	v.RateLimitPolicy, v.RateLimit = s[:cut], s[cut:]
	if !res.OK {
		v.Outcome, v.RetryAfter = usage.OutcomeLimited, res.RetryAfter
		v.refuse(429, ReasonRateExceeded, "Wait as long as Retry-After says, or move to a plan with a higher rate.")
	}
}

// Seconds rounds up to whole seconds, at least 1: what a header can carry without inviting a client too early.
func Seconds(d time.Duration) int64 {
	return max(1, int64(math.Ceil(d.Seconds())))
}
